"""`medseg evaluate`: compare predictions with references, class by class and object by object."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from medseg.cli import console

if TYPE_CHECKING:
    from rich.table import Table

NAME = "evaluate"


def run(
    reference: Annotated[
        Path,
        typer.Option("--reference", "-r", help="Label file, folder of label files, or a cohort (cohort.csv)."),
    ],
    prediction: Annotated[
        Path,
        typer.Option("--prediction", "-p", help="The same, or a folder that `medseg predict` wrote."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for per_instance.csv, per_case.csv, summary.json.")],
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="JSON label table of the reference, where none lies beside it."),
    ] = None,
    iou: Annotated[float, typer.Option("--iou", help="IoU at which two objects of a class match (0..1).")] = 0.3,
) -> None:
    """Compare predictions with references: Dice, volumes, F1 of objects, splits and merges."""
    from medseg.evaluation import evaluate_files

    result = evaluate_files(reference, prediction, out, labels=labels, iou_threshold=iou, track=console.track)
    console.out.print(summary_table(result.summary))
    if result.extra:
        console.warn(f"{len(result.extra)} predictions have no reference and were left out: {', '.join(result.extra)}")
    for case, reason in result.failures.items():
        console.err.print(f"failed: {case}: {reason}", style="red", markup=False)
    for file in result.files:
        console.wrote(file)
    if result.failures:
        raise typer.Exit(1)


def summary_table(summary: Mapping[str, Any]) -> "Table":
    """Lay out a summary (`medseg.metrics.evaluation.summarise`) as a table per class, 80 columns wide."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{summary['n_cases']} cases, objects matched at IoU {summary['iou_threshold']:g}",
        caption="cases: with a defined Dice / all; n/a: no object in the reference",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("class", no_wrap=True)
    for column in ("Dice", "cases", "TP", "FP", "FN", "F1", "PQ", "splits", "merges"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, entry in summary["classes"].items():
        dice = entry["voxels"]["dice"]
        counts = f"{dice['n']}/{dice['n'] + dice['n_undefined']}"
        table.add_row(escape(name), _number(dice["mean"]), counts, *_object_cells(entry["objects"]))
    table.add_section()
    table.add_row("all", _number(summary["mean_dice"]["mean"]), "", *_object_cells(summary["objects"]))
    return table


def _object_cells(objects: Mapping[str, Any]) -> list[str]:
    return [
        *(str(objects[key]) for key in ("tp", "fp", "fn")),
        *(_number(objects[key]) for key in ("f1", "pq")),
        *(str(objects[key]) for key in ("splits", "merges")),
    ]


def _number(value: float) -> str:
    return "n/a" if value != value else f"{value:.3f}"
