"""From a labelled cohort to a trained run: check every case, decide the plan, prepare, train."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from medseg.data.cache import load_case, prepare_case
from medseg.data.cohort import Cohort, common_labels, find_cohort, read_cases
from medseg.data.fingerprint import fingerprint, look_at
from medseg.data.planning import derive_plan
from medseg.errors import ConfigError, InputError
from medseg.inference.provenance import environment
from medseg.io.atomic import check_folder, write_json
from medseg.progress import Track, silent
from medseg.training.loop import TrainingResult, train
from medseg.values.plan import Plan, check_fields


def plan_cohort(cohort: Cohort, settings: Mapping[str, Any], track: Track = silent) -> Plan:
    """Read and check every case, and decide the plan.

    Args:
        cohort: from `find_cohort`.
        settings: dotted plan fields that the user decides, e.g. ``{"model.backbone": "resnet34"}``.
        track: progress over cases.

    Raises:
        InputError, GeometryError: the first case that is broken, by name and reason.
        ConfigError: a setting that is unknown or out of range.
    """
    orientation = str(settings.get("input.orientation", "HPL"))
    facts, tables = [], []
    for _, volumes, instances in read_cases(cohort, track):
        facts.append(look_at(volumes[0], instances, orientation))
        tables.append(instances.labels)
    labels = cohort.labels or common_labels(tables, "cohort")
    spacing = settings.get("input.spacing_mm")
    sound = isinstance(spacing, (list, tuple)) and all(isinstance(s, (int, float)) and s > 0 for s in spacing)
    pixel = min(spacing) if spacing and sound else None  # with_overrides tells what is wrong with another
    plan = derive_plan(fingerprint(facts, labels), orientation=orientation, pixel_mm=pixel)
    windowed = {"input.intensity": "window"} if "input.windows" in settings else {}
    return plan.with_overrides({**windowed, **settings})


def train_cohort(
    path: Path | str,
    run: Path,
    device: torch.device,
    *,
    settings: Mapping[str, Any] | None = None,
    single_case: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    track: Track = silent,
) -> TrainingResult:
    """Train on a cohort; nothing is written before every case has been read and checked.

    Args:
        path: see `find_cohort`.
        run: new or empty folder for plan.yaml, model.safetensors, metrics.csv and run.json; the prepared cases
            lie in it while training runs.
        device: where to compute.
        settings: plan fields that override what the cohort suggests.
        single_case: allow a cohort of one case (which says nothing about any other patient).
        on_plan: called with the plan before training.
        track: progress.

    Raises:
        InputError: a broken case, or one case without ``single_case``.
        ConfigError: the folder is not empty, or a bad setting.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ConfigError(f"{run}: exists and is not an empty folder; name a new one, or delete it")
    check_folder(run)
    check_fields(settings or {})
    cohort = find_cohort(path)
    if len(cohort.rows) == 1 and not single_case:
        raise InputError(
            f"{path}: the cohort has one case, expected at least two; a model of one patient says nothing about "
            "others (--single-case trains it all the same)"
        )
    plan = plan_cohort(cohort, settings or {}, track)
    if on_plan:
        on_plan(plan)
    with _folder_for_cases(run) as prepared:
        for row, volumes, instances in read_cases(cohort, track):
            prepare_case(row.name, volumes[0], instances, plan.input, prepared)
        cases = [load_case(prepared, row.name) for row in cohort.rows]
        result = train(cases, plan, run, device, track)
    write_json(
        run / "run.json",
        {
            "environment": environment(device),
            "cases": len(cohort.rows),
            "seed": plan.training.seed,
            "steps": result.steps,
            "interrupted": result.interrupted,
            "last_loss": result.loss,
        },
    )
    return result


@contextmanager
def _folder_for_cases(run: Path) -> Iterator[Path]:
    """Give a folder in ``run`` that is deleted at the end, whatever happens."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".cases-", dir=run, ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(f"{run}: cannot be written ({error.strerror or error}); name another folder") from None
    with folder as path:
        yield Path(path)
