"""`medseg check`: what is in a labelled cohort, and what is wrong with it, before time goes into training."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli import console
from medseg.cli.cohort_options import COHORT, KIND
from medseg.cli.compute import CLUSTER
from medseg.cluster.choice import parse_cluster

if TYPE_CHECKING:
    from rich.table import Table

    from medseg.data.check import CohortReport
    from medseg.data.check_case import CaseFacts
    from medseg.data.layouts import Cohort

NAME = "check"
#: Cohorts of up to this many labels get a column for each where that fits, else a line for each.
LABEL_COLUMNS = 4


def run(
    cohort: COHORT,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file for the report.")] = Path("check.json"),
    kind: KIND = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    cluster: CLUSTER = None,
) -> None:
    """Read every case of a cohort: grids, objects, gaps, duplicates, intensities. Exit code 1 if there are errors."""
    from medseg.cluster.connect import connected
    from medseg.data.check import check_cohort
    from medseg.data.cohort import find_cohort, parse_kind
    from medseg.errors import InputError
    from medseg.io.atomic import check_folder, write_json

    choice = parse_cluster(cluster) if cluster else None
    if out.is_dir():
        raise InputError(f"{out}: is a folder, expected the name of a JSON file to write")
    check_folder(out.parent)
    found = find_cohort(cohort, dict(parse_kind(text) for text in kind or []), console.track)
    with connected(choice, note=console.tell) as workers:
        report = check_cohort(found, console.track, workers)
    folders = _folders(found, cohort)
    data = describe(found, report, folders)
    if as_json:
        console.out.print_json(json.dumps(data))
    else:
        _print_table(found, report, _folder_numbers(found, folders))
        for title, lines in (("error", report.errors), ("warning", report.warnings)):
            for line in lines:
                console.out.print(f"{title}: {' '.join(line.split())}", markup=False)
    write_json(out, data)
    if not as_json:
        console.wrote(out)
    if report.errors:
        raise typer.Exit(1)


def describe(cohort: "Cohort", report: "CohortReport", folders: dict[Path, int]) -> dict[str, Any]:
    """Return the report as plain lists and dicts; folders of patients are numbered and not named in it."""
    from medseg.io.patient_folders import without_folders

    numbers = _folder_numbers(cohort, folders)
    return {
        "layout": cohort.layout,
        "channels": list(cohort.channels),
        "labels": [] if cohort.labels is None else cohort.labels.to_dict(),
        "patients": len({row.patient for row in cohort.rows}),
        "cases": [_row(case, cohort, numbers.get(case.name)) for case in report.cases],
        "errors": [without_folders(line, folders) for line in report.errors],
        "warnings": [without_folders(line, folders) for line in report.warnings],
    }


def _folders(cohort: "Cohort", path: Path) -> dict[Path, int]:
    """Return the DICOM folders of patients and their places, from 1; empty for other layouts."""
    from medseg.io.patient_folders import LAYOUT, folder_places

    return folder_places(path) if cohort.layout == LAYOUT else {}


def _folder_numbers(cohort: "Cohort", folders: dict[Path, int]) -> dict[str, int]:
    """Return the place of each case's folder among those of patients; empty for other layouts."""
    return {row.name: folders[row.images[0]] for row in cohort.rows} if folders else {}


def _row(case: "CaseFacts", cohort: "Cohort", folder: int | None) -> dict[str, Any]:
    return {
        "name": case.name,
        **({} if folder is None else {"folder": folder}),
        "shape": case.shape,
        "spacing_mm": case.spacing_mm,
        "orientation": case.orientation,
        "images": {
            channel: {
                "minimum": image.minimum,
                "percentile_0.5": image.low,
                "median": image.median,
                "percentile_99.5": image.high,
                "maximum": image.maximum,
                "sha256": image.sha256,
            }
            for channel, image in zip(cohort.channels, case.images, strict=True)
        },
        "labels": {
            label.name: {
                "objects": label.objects,
                "voxels": label.voxels,
                "objects_with_gaps": label.objects_with_gaps,
                "missing_slices": label.missing_slices,
            }
            for label in case.labels
        },
        "label_sha256": case.label_sha256,
    }


def _print_table(cohort: "Cohort", report: "CohortReport", folders: dict[str, int]) -> None:
    """Print a row per case that can be read, with a column per label where they are few and fit."""
    names = [] if cohort.labels is None else list(cohort.labels.names)
    table = _table(cohort, report, folders, names if len(names) <= LABEL_COLUMNS else [])
    unlimited = console.out.options.update_width(10_000)
    if console.out.measure(table, options=unlimited).maximum > console.out.width:
        table = _table(cohort, report, folders, [])
    console.out.print(table)
    console.out.print(
        f"{len(report.cases)} of {_count(cohort)} cases can be read; errors: {len(report.errors)}, "
        f"warnings: {len(report.warnings)}"
    )


def _count(cohort: "Cohort") -> int:
    return len(cohort.rows) + len(cohort.broken)


def _table(cohort: "Cohort", report: "CohortReport", folders: dict[str, int], names: list[str]) -> "Table":
    """Return the table with a column for each label named; without names, with one for all labels."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    plural = "" if _count(cohort) == 1 else "s"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, title=f"{cohort.layout}, {_count(cohort)} case{plural}")
    for column in ("case", "grid", "spacing mm", "axes"):
        table.add_column(column, no_wrap=True, overflow="fold")
    for column in names or ["objects, voxels"]:
        table.add_column(escape(column) + ("\nobjects,\nvoxels" if names else ""), min_width=len("1, 123456"))
    table.add_column("", no_wrap=True)
    for case in report.cases:
        labels = [f"{label.objects}, {label.voxels}" for label in case.labels]
        if not names:
            labels = [_all_labels(case)]
        wrong = [line for line in report.errors if line.startswith(f"case {case.name}: ")]
        odd = [line for line in report.warnings if line.startswith(f"case {case.name}: ")]
        table.add_row(
            escape(case.name + (f"\n(folder {folders[case.name]})" if folders else "")),
            "x".join(str(n) for n in case.shape),
            "x".join(f"{s:.3g}" for s in case.spacing_mm),
            case.orientation,
            *labels,
            "error" if wrong else "warning" if odd else "",
        )
    return table


def _all_labels(case: "CaseFacts") -> str:
    """Return what a case has of each label, a line for each; of many labels the sums."""
    from rich.markup import escape

    if len(case.labels) <= LABEL_COLUMNS:
        return "\n".join(escape(f"{label.name}: {label.objects}, {label.voxels}") for label in case.labels)
    objects = sum(label.objects for label in case.labels)
    present = sum(label.objects > 0 for label in case.labels)
    return f"{present} labels: {objects}, {sum(label.voxels for label in case.labels)}"
