"""The index of a folder of results: every case with its thumbnail, objects and warnings, totals, and what failed."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import InputError
from medseg.io.atomic import is_leftover
from medseg.io.failures import read_failures, write_failures
from medseg.reporting.case_report import REPORT_FILE, RUN_FILE, THUMBNAIL_ENDING, read_json
from medseg.reporting.html import amount, data_uri, save_page
from medseg.reporting.page_tables import Cell, words

INDEX_FILE = "index.html"
#: What looks like a path in a message: a folder's name may be that of a patient.
_PATH = re.compile(r"(?:[A-Za-z]:)?[^\s'\"(]*[/\\][^\s'\":;,)]*")


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A case in the index."""

    name: str
    report: str | None
    thumbnail: str | None
    counts: Mapping[str, int]
    volumes_ml: Mapping[str, float]
    warnings: int
    seconds: float


def case_folders(folder: Path | str) -> list[Path]:
    """Return the folders of the cases that `medseg predict` wrote into a folder, by name."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one that medseg predict wrote")
    found = (path for path in folder.iterdir() if path.is_dir() and not is_leftover(Path(path.name)))
    return sorted(path for path in found if (path / RUN_FILE).is_file() and "case" in read_json(path / RUN_FILE))


def forget_failure(folder: Path | str, case: str) -> None:
    """Strike a case that was predicted after all from the failures beside the results (`medseg.io.failures`)."""
    failures = read_failures(folder)
    if failures.pop(case, None) is not None:
        write_failures(folder, failures)


def without_paths(reason: str, paths: Iterable[Path] = ()) -> str:
    """Return a message without the names of files and folders, which may be called after patients.

    Args:
        reason: a message, one line.
        paths: whose names are taken out even where they hold spaces, and what lies in them up to the next colon.
    """
    names = {str(form) for path in paths for form in (path, path.absolute(), path.resolve())}
    for name in sorted(names, key=len, reverse=True):
        reason = re.sub(rf"{re.escape(name)}(?:[/\\][^:]*)?", "(file)", reason)
    return _PATH.sub("(file)", reason)


def save_index(folder: Path | str) -> Path:
    """Write index.html of a folder of results, and return its path.

    Raises:
        InputError: no case in it, or files that cannot be read.
    """
    folder = Path(folder)
    failures = {case: found.reason for case, found in read_failures(folder).items()}
    rows = [_row(path, folder) for path in case_folders(folder) if path.name not in failures]
    if not rows and not failures:
        raise InputError(f"{folder}: holds no case; expected a folder that medseg predict wrote")
    labels = list(dict.fromkeys(label for row in rows for label in row.counts))
    return save_page(
        folder / INDEX_FILE,
        "index.html",
        scripts=("sort.js",),
        title="Cases",
        labels=labels,
        cards=_cards(rows, failures),
        totals=[_total(label, rows) for label in labels],
        rows=rows,
        failures=failures,
        amount=amount,
    )


def _row(path: Path, folder: Path) -> _Row:
    run = read_json(path / RUN_FILE)
    name = str(run["case"])
    measurements = read_json(path / f"{name}_measurements.json").get("measurements", [])
    report, thumbnail = path / REPORT_FILE, path / f"{name}{THUMBNAIL_ENDING}"
    volumes: dict[str, float] = {}
    for m in measurements:
        volumes[m["label"]] = volumes.get(m["label"], 0.0) + m["volume_ml"]
    cut = any(m["touches_border"] for m in measurements)
    doubtful = run.get("linking", {}).get("doubtful_joins", [])
    return _Row(
        name=name,
        report=report.relative_to(folder).as_posix() if report.is_file() else None,
        thumbnail=data_uri(thumbnail.read_bytes(), "jpeg") if thumbnail.is_file() else None,
        counts=Counter(m["label"] for m in measurements),
        volumes_ml=volumes,
        warnings=len(run.get("warnings", [])) + len(doubtful) + cut,
        seconds=sum(run.get("seconds", {}).values()),
    )


def _cards(rows: list[_Row], failures: Mapping[str, str]) -> list[tuple[str, Cell]]:
    objects = sum(sum(row.counts.values()) for row in rows)
    return [
        ("Cases", words(str(len(rows) + len(failures)))),
        ("Failed", words(str(len(failures)))),
        ("Objects", words(str(objects))),
        ("Cases with warnings", words(str(sum(row.warnings > 0 for row in rows)))),
    ]


def _total(label: str, rows: list[_Row]) -> dict[str, Any]:
    volumes = [row.volumes_ml[label] for row in rows if label in row.volumes_ml]
    return {
        "label": label,
        "cases": len(volumes),
        "objects": sum(row.counts.get(label, 0) for row in rows),
        "total_ml": amount(sum(volumes)),
        "mean_ml": amount(sum(volumes) / len(volumes)),
    }
