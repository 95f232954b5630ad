"""The prepared cases of a run: made once by the first process, read by all, kept until training is done.

Beside them lies `MANIFEST`, which says what they were made from; a resumed run uses those that are whole and made from
the same files for the same plan, and makes the others anew.
"""

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import medseg
from medseg.cluster.connect import Cluster
from medseg.data.cache import CachedCase, load_case, prepare_case
from medseg.data.cohort import Cohort, broken_errors, raise_broken, read_cohort_case
from medseg.data.rows import run_rows
from medseg.errors import InputError, MedsegError
from medseg.io.atomic import write_json
from medseg.io.cohort_table import CohortRow
from medseg.io.failures import Failure
from medseg.progress import Track, silent
from medseg.values.plan import InputPlan, Plan

FOLDER = "cases"
MANIFEST = "prepared.json"


def prepare_cases(
    cohort: Cohort,
    training: Sequence[str],
    plan: Plan,
    run: Path,
    track: Track = silent,
    cluster: Cluster | None = None,
) -> None:
    """Prepare the cases of a cohort that are not prepared yet.

    Args:
        cohort: all cases.
        training: names of those to train on; the others validate.
        plan: decides the grid.
        run: folder of the training.
        track: progress over the cases to prepare.
        cluster: prepares them (`medseg.cluster.connect.connected`); None: this process does.

    Raises:
        InputError, GeometryError: of the one broken case; CasesError: of several, once the others are prepared.
    """
    folder = run / FOLDER
    before = _read_manifest(folder)
    made_for = {"medseg": medseg.__version__, "input": plan.input.model_dump(mode="json"), "labels": plan.labels.ids}
    manifest = {
        **json.loads(json.dumps(made_for)),
        "training": list(training),
        "files": {row.name: [_stamp(path) for path in (*row.images, row.label)] for row in cohort.rows},
    }
    if any(before.get(key) != manifest[key] for key in made_for):
        shutil.rmtree(folder, ignore_errors=True)
        before = {}
    known = before.get("files", {})
    missing = [r for r in cohort.rows if known.get(r.name) != manifest["files"][r.name] or not _whole(folder, r.name)]
    for row in missing:
        (folder / f"{row.name}.json").unlink(missing_ok=True)  # without it a case is not whole
    write_json(folder / MANIFEST, manifest)
    found = run_rows(partial(_prepare, plan.input, folder), cohort, missing, cluster, stage="prepare")
    errors = broken_errors(cohort)
    for name, error in track(found, "preparing cases", len(missing)):
        if isinstance(error, Failure):
            errors.append(InputError(f"case {name}: {error.reason}"))
        elif error is not None:
            errors.append(error)
    raise_broken(errors, cohort)


def _prepare(plan: InputPlan, folder: Path, cohort: Cohort, row: CohortRow) -> MedsegError | None:
    """Prepare a case, or return why it cannot be."""
    try:
        volumes, instances = read_cohort_case(row, cohort)
        prepare_case(row.name, volumes, instances, plan, folder)
    except MedsegError as error:
        return error
    return None


def load_cases(run: Path) -> tuple[list[CachedCase], list[CachedCase]]:
    """Map the prepared cases of a run: those to train on and those to validate with."""
    manifest = _read_manifest(run / FOLDER)
    training = set(manifest["training"])
    cases = [load_case(run / FOLDER, name) for name in manifest["files"]]
    return [c for c in cases if c.name in training], [c for c in cases if c.name not in training]


def drop_cases(run: Path) -> None:
    """Delete the prepared cases."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _whole(folder: Path, name: str) -> bool:
    try:
        load_case(folder, name)
    except InputError:
        return False
    return True


def _stamp(path: Path) -> list[int]:
    """Return number, bytes and latest change of a file or of all files in a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    facts = [file.stat() for file in files]
    return [len(facts), sum(f.st_size for f in facts), max((f.st_mtime_ns for f in facts), default=0)]
