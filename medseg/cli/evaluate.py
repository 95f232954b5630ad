"""`medseg evaluate`: compare predictions with references, class by class and object by object."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from medseg.cli import console
from medseg.cli.cohort_options import KIND
from medseg.cli.compute import CLUSTER
from medseg.cluster.choice import parse_cluster
from medseg.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from medseg.evaluation import Evaluation

NAME = "evaluate"


class SurfaceOption(StrEnum):
    """What a surface is."""

    SUBVOXEL = "subvoxel"
    BORDER = "border"
    NONE = "none"


class MetricsOption(StrEnum):
    """Which scores of surfaces."""

    STANDARD = "standard"
    CHAOS = "chaos"


def run(
    reference: Annotated[
        Path,
        typer.Option("--reference", "-r", help="Label file, folder of label files, or a cohort as for training."),
    ],
    prediction: Annotated[
        list[Path],
        typer.Option(
            "--prediction", "-p", help="The same, or a folder that `medseg predict` wrote. Twice: compare the two."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tables, summary.json and the plots.")],
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="JSON label table of the reference, where none lies beside it."),
    ] = None,
    kind: KIND = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="Image of the one case, where neither file has its grid (RTSTRUCT)."),
    ] = None,
    iou: Annotated[float, typer.Option("--iou", help="IoU at which two objects of a class match (0..1).")] = 0.3,
    dice: Annotated[float | None, typer.Option("--dice", help="Match at this Dice instead of an IoU (0..1).")] = None,
    metrics: Annotated[
        MetricsOption,
        typer.Option("--metrics", help="chaos: DICE, RAVD, ASSD and MSSD as the CHAOS challenge defines them."),
    ] = MetricsOption.STANDARD,
    surface: Annotated[
        SurfaceOption | None,
        typer.Option("--surface", help="What a surface is (default: subvoxel); none is fastest."),
    ] = None,
    tolerance: Annotated[
        list[float], typer.Option("--tolerance", help="Tolerance of NSD in mm; may be given several times.")
    ] = [1.0, 2.0],  # noqa: B006 typer wants a list and does not change it
    slices: Annotated[bool, typer.Option("--slices", help="Also COCO's AP with every slice as an image.")] = False,
    froc_iou: Annotated[float, typer.Option("--froc-iou", help="IoU of a hit in FROC (0..1).")] = 0.1,
    size_edge: Annotated[
        list[float], typer.Option("--size-edge", help="Where size classes end, in mm; several times, rising.")
    ] = [5.0, 10.0, 20.0],  # noqa: B006 as above
    resamples: Annotated[int, typer.Option("--resamples", help="Resampled cohorts for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the resampling.")] = 0,
    workers: Annotated[int, typer.Option("--workers", help="Processes that evaluate cases.")] = 1,
    cluster: CLUSTER = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html.")] = True,
) -> None:
    """Compare predictions with references: Dice, surfaces, objects found, FROC, AP, with intervals and plots."""
    from medseg.cluster.connect import connected
    from medseg.data.cohort import parse_kind
    from medseg.evaluation import Settings, compare_files, evaluate_files
    from medseg.reporting.evaluation_report import clear_report, save_evaluation_report, save_worst_pictures
    from medseg.reporting.plots import save_comparison_plot, save_plots

    choice = parse_cluster(cluster) if cluster else None
    if choice and workers != 1:
        raise ConfigError("--cluster and --workers: both say where cases are evaluated; leave out one")
    if len(prediction) > 2:
        raise ConfigError(f"{len(prediction)} predictions: give -p once, or twice to compare two")
    if metrics is MetricsOption.CHAOS and surface is not None:
        raise ConfigError("--metrics chaos defines its own surface: leave out --surface")
    settings = Settings(
        iou_threshold=iou,
        dice_threshold=dice,
        surface=_surface(metrics, surface),
        tolerances_mm=tuple(tolerance),
        coco_slices=slices,
        resamples=resamples,
        seed=seed,
        froc_iou=froc_iou,
        size_edges_mm=tuple(size_edge),
    )
    kinds = dict(parse_kind(text) for text in kind or [])
    with connected(choice, note=console.tell) as found:
        both = None
        if len(prediction) == 1:
            results = [
                evaluate_files(
                    reference, prediction[0], out,
                    settings=settings, labels=labels, kinds=kinds, image=image, workers=workers, cluster=found,
                    track=console.track,
                )
            ]  # fmt: skip
        else:
            both = compare_files(
                reference, (prediction[0], prediction[1]), out,
                settings=settings, labels=labels, kinds=kinds, image=image, workers=workers, cluster=found,
                track=console.track,
            )  # fmt: skip
            results = list(both.evaluations)
    if both is None:
        files = [*results[0].files, *save_plots(results[0], out.absolute())]
    else:
        files = [*both.files, *save_comparison_plot(both, out.absolute())]
        for number, result in enumerate(results, start=1):
            files += save_plots(result, out.absolute() / f"prediction_{number}")
    clear_report(out.absolute(), compared=len(results) == 2)
    if report:
        save_worst_pictures(results, out.absolute())
        files.append(save_evaluation_report(out.absolute()))
    for path, result in zip(prediction, results, strict=True):
        if len(results) == 2:
            console.out.print(f"{'second' if result is results[1] else 'first'} prediction: {path}", markup=False)
        _report(result)
    if both is not None:
        console.out.print(comparison_table(both.summary))
    for file in files:
        console.wrote(file)
    if any(result.failures for result in results):
        raise typer.Exit(1)


def _surface(metrics: MetricsOption, surface: SurfaceOption | None) -> Any:
    if metrics is MetricsOption.CHAOS:
        return "chaos"
    return None if surface is SurfaceOption.NONE else (surface or SurfaceOption.SUBVOXEL).value


def _report(result: "Evaluation") -> None:
    """Print tables and warnings of one evaluation."""
    console.out.print(summary_table(result.summary))
    if result.settings.surface is not None:
        console.out.print(surface_table(result.summary))
    console.out.print(ranking_table(result.summary))
    worst = ", ".join(f"{w['case']} ({_number(w['mean_dice'])})" for w in result.summary["worst_cases"])
    if worst and len(result.cases) > 1:
        console.out.print(f"lowest mean Dice: {worst}", markup=False)
    for side, other in (("reference", "prediction"), ("prediction", "reference")):
        only = [n for n, e in result.summary["classes"].items() if e[f"in_{side}"] and not e[f"in_{other}"]]
        if only:
            console.warn(f"classes of the {side} that the {other} does not name: {', '.join(only)} (matched by name)")
    for case, remarks in result.summary["remarks"].items():
        for remark in remarks:
            console.warn(f"{case}: {remark}")
    if result.extra:
        console.warn(f"{len(result.extra)} predictions have no reference and were left out: {', '.join(result.extra)}")
    for case, reason in result.failures.items():
        console.failed(f"{case}: {reason}")


def summary_table(summary: Mapping[str, Any]) -> "Table":
    """Lay out a summary (`medseg.metrics.evaluation.summarise`) as a table per class, 80 columns wide."""
    matched = f"IoU {summary['iou_threshold']:g}"
    if summary["dice_threshold"] is not None:
        matched = f"Dice {summary['dice_threshold']:g}"
    table = _table(
        f"{summary['n_cases']} cases, objects matched at {matched}",
        "cases: with a defined Dice / all; n/a: no object in the reference",
        ("Dice", "cases", "TP", "FP", "FN", "F1", "PQ", "splits", "merges"),
    )
    for name, entry in summary["classes"].items():
        dice = entry["voxels"]["dice"]
        counts = f"{dice['n']}/{dice['n'] + dice['n_undefined']}"
        table.add_row(escape(name), _number(dice["mean"]), counts, *_object_cells(entry["objects"]))
    table.add_section()
    table.add_row("all", _number(summary["mean_dice"]["mean"]), "", *_object_cells(summary["objects"]))
    return table


def surface_table(summary: Mapping[str, Any]) -> "Table":
    """Lay out the means of the surface scores, or of the CHAOS scores, per class."""
    keys = next((list(entry["surface"]) for entry in summary["classes"].values()), [])
    heads = [key.removeprefix("chaos_").replace("_percent", " %").replace("_mm", " mm") for key in keys]
    kind = "CHAOS" if summary["surface"] == "chaos" else f"{summary['surface']} surfaces"
    table = _table(f"{kind}, means over cases", "n/a: undefined in every case", heads)
    for name, entry in summary["classes"].items():
        table.add_row(escape(name), *(_number(entry["surface"][key]["mean"]) for key in keys))
    return table


def ranking_table(summary: Mapping[str, Any]) -> "Table":
    """Lay out AP, CPM and lesion Dice per class, with the interval of F1."""
    table = _table(
        f"objects by score; {summary['bootstrap']['level']:.0%} interval of F1 from resampled cases",
        f"AP: mean over IoU; CPM: FROC, hit at IoU {summary['froc_iou']:g}",
        ("AP 10-50", "AP 50-95", "CPM", "object Dice", "F1 low", "F1 high"),
    )
    for name, entry in summary["classes"].items():
        ranking, objects = entry["ranking"], entry["objects"]
        f1 = objects["intervals"]["f1"]
        values = [*(ranking[key]["value"] for key in ("ap_10_50", "ap_50_95", "cpm")), objects["lesion_dice"]]
        table.add_row(escape(name), *map(_number, (*values, f1["ci_low"], f1["ci_high"])))
    return table


def comparison_table(summary: Mapping[str, Any]) -> "Table":
    """Lay out the differences of two predictions in Dice and F1 per class."""
    table = _table(
        f"second minus first, {summary['n_cases']} cases",
        f"{summary['bootstrap']['level']:.0%} intervals, paired bootstrap",
        ("Dice", "low", "high", "F1", "low", "high"),
    )
    rows = {n: (e["voxels"]["dice"], e["objects"]["f1"]) for n, e in summary["classes"].items()}
    for name, pair in (rows | {"all": (summary["mean_dice"], summary["objects"]["f1"])}).items():
        cells = [_number(entry[key], "+") for entry in pair for key in ("difference", "ci_low", "ci_high")]
        table.add_row(escape(name), *cells)
    return table


def _table(title: str, caption: str, columns: Any) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("class", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _object_cells(objects: Mapping[str, Any]) -> list[str]:
    return [
        *(str(objects[key]) for key in ("tp", "fp", "fn")),
        *(_number(objects[key]) for key in ("f1", "pq")),
        *(str(objects[key]) for key in ("splits", "merges")),
    ]


def _number(value: float, sign: str = "") -> str:
    return "n/a" if value != value else f"{value:{sign}.3f}"
