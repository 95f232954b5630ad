"""Plots of an evaluation: FROC, precision and recall, scores by class and by size, two predictions compared.

Every plot says how many cases it shows and at which threshold an object counts as found.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullLocator

from medseg.evaluation import Comparison, Evaluation
from medseg.labels import Colour
from medseg.metrics.evaluation import CaseResult, class_values
from medseg.metrics.ranking import FROC_POINTS, average_precision, froc_curve, precision_recall, rank
from medseg.reporting.overlay import save_figure
from medseg.values.shades import shade

#: For what is no class, such as the parts of a loss: told apart by the common forms of colour blindness and on white
#: (Okabe-Ito without yellow, Tol's muted scheme). Classes have the colours of their labels, as everywhere.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933", "#44AA99",
)  # fmt: skip
#: Classes that one plot can hold; those with the most reference objects are taken.
MAX_CLASSES = len(COLOURS)
#: A thin dark edge of dots, for light colours.
EDGE: dict[str, Any] = {"markeredgecolor": "0.25", "markeredgewidth": 0.5}
#: Points of a precision-recall curve up to which each is marked.
FEW = 40
#: IoU thresholds of the precision-recall plots.
PR_IOUS = (0.1, 0.5)


def save_plots(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write froc.png, precision_recall.png, classes.png and size_classes.png.

    A plot without anything to show (no reference object of any class) is not written.

    Returns:
        The files written.

    Raises:
        InputError: the folder cannot be written.
    """
    cases, summary = list(evaluation.cases.values()), evaluation.summary
    shown = _shown(summary)
    if not shown:
        return []
    colours = class_colours({name: summary["colours"][name] for name in shown})
    # Where classes have one object per case, curves say what a table says better.
    several = {name: colours[name] for name in _several(cases, shown) or shown}
    figures = {
        "froc.png": froc_plot(cases, summary, several),
        "precision_recall.png": precision_recall_plot(cases, several),
        "classes.png": class_plot(cases, colours),
        "size_classes.png": size_plot(summary, several),
    }
    for name, figure in figures.items():
        save_figure(folder / name, figure)
    return [folder / name for name in figures]


def class_colours(labels: Mapping[str, Colour]) -> dict[str, str]:
    """Return class -> colour as matplotlib takes it: the label's own, and a shade of it where two labels have one."""
    used: Counter[Colour] = Counter()
    colours = {}
    for name, colour in labels.items():
        r, g, b = shade(colour, used[colour])
        used[colour] += 1
        colours[name] = f"#{r:02x}{g:02x}{b:02x}"
    return colours


def rim(width: float) -> list[withStroke]:
    """Return a thin dark edge for lines of this width in points: light colours stay readable on white."""
    return [withStroke(linewidth=width + 0.8, foreground="0.25")]


def save_comparison_plot(comparison: Comparison, folder: Path) -> list[Path]:
    """Write comparison.png: the differences in Dice and F1 by class; returns the files written."""
    entries = comparison.summary["classes"]
    shown = [n for n in _shown(comparison.evaluations[0].summary) if n in entries]
    if not shown:
        return []
    save_figure(folder / "comparison.png", comparison_plot(comparison.summary, shown))
    return [folder / "comparison.png"]


def froc_plot(cases: Sequence[CaseResult], summary: Mapping[str, Any], colours: Mapping[str, str]) -> Figure:
    """Draw sensitivity against false positives per scan, one curve per class, dots where the CPM reads it.

    Args:
        cases: of the cohort.
        summary: theirs.
        colours: class -> colour, of the classes to draw.
    """
    figure, (axes,) = new_figure(1, width=6.4)
    for name, colour in colours.items():
        curve = froc_curve(rank([c.pairs for c in cases], name, summary["froc_iou"]))
        ranking = summary["classes"][name]["ranking"]
        # A step up at each score, from nothing found; the last sensitivity holds to the end of the axis.
        x = np.concatenate([[0], curve.false_positives, [max(FROC_POINTS[-1], curve.false_positives.max(initial=0))]])
        y = np.concatenate([[0], curve.sensitivity, curve.sensitivity[-1:] if len(curve.sensitivity) else [0]])
        label = f"{name}, CPM {_number(ranking['cpm']['value'])}"
        axes.step(x, y, where="post", color=colour, label=label, path_effects=rim(1.5))
        axes.plot(FROC_POINTS, list(ranking["froc"].values()), "o", color=colour, markersize=4, **EDGE)
    axes.set_xscale("log", base=2)
    axes.set_xlim(FROC_POINTS[0] / 1.2, FROC_POINTS[-1] * 1.2)
    axes.xaxis.set_major_locator(FixedLocator(FROC_POINTS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(["1/8", "1/4", "1/2", *(f"{p:g}" for p in FROC_POINTS[3:])])
    axes.set_xlabel("false positives per scan")
    axes.set_ylabel("sensitivity")
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(f"FROC, {len(cases)} cases; hit: IoU ≥ {summary['froc_iou']:g}")
    _legend(axes)
    return figure


def precision_recall_plot(cases: Sequence[CaseResult], colours: Mapping[str, str]) -> Figure:
    """Draw precision against recall at a loose and a strict IoU, one curve per class (class -> colour)."""
    everyone = np.ones((1, len(cases)), np.int64)
    figure, panels = new_figure(len(PR_IOUS), width=5.6)
    for axes, iou in zip(panels, PR_IOUS, strict=True):
        for name, colour in colours.items():
            ranking = rank([c.pairs for c in cases], name, iou)
            label = f"{name}, AP {_number(average_precision(ranking, everyone)[0])}"
            recall, precision = precision_recall(ranking)
            style = ".-" if len(recall) <= FEW else "-"
            axes.plot(
                recall, precision, style, color=colour, label=label, drawstyle="steps-pre", markersize=4,
                path_effects=rim(1.5),
            )  # fmt: skip
        axes.set_xlabel("recall")
        axes.set_ylabel("precision")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(f"{len(cases)} cases; hit: IoU ≥ {iou:g}")
        _legend(axes, below=True)
    return figure


def class_plot(cases: Sequence[CaseResult], colours: Mapping[str, str]) -> Figure:
    """Draw the spread over cases of Dice and of the surface scores: a box, 5 to 95 per cent, and every case.

    Args:
        cases: of the cohort.
        colours: class -> colour, of the classes to draw.
    """
    names = list(colours)
    values = {name: class_values(cases, name) for name in names}
    surfaces = next((tuple(v["surface"]) for v in values.values()), ())
    chosen = [("voxels", "dice"), *(("surface", key) for key in surfaces if _drawn(key))]
    figure, panels = new_figure(len(chosen), width=max(3.4, 1.2 + 0.45 * len(names)), height=3.9)
    jitter = np.random.default_rng(0)
    for axes, (group, key) in zip(panels, chosen, strict=True):
        for position, (name, colour) in enumerate(colours.items()):
            scores = values[name][group][key]
            defined = scores[~np.isnan(scores)]
            axes.boxplot(
                [defined], positions=[position], widths=0.6, showfliers=False, manage_ticks=False,
                medianprops={"color": colour, "linewidth": 2, "path_effects": rim(2)}, whis=(5, 95),
            )  # fmt: skip
            x = position + jitter.uniform(-0.2, 0.2, len(defined))
            axes.plot(x, defined, ".", color=colour, markersize=5, alpha=0.7, **EDGE)
        counts = [int(np.count_nonzero(~np.isnan(values[name][group][key]))) for name in names]
        axes.set_xticks(range(len(names)), [f"{n} ({c})" for n, c in zip(names, counts, strict=True)], rotation=60)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_title(_title(key))
        if key == "dice" or key.startswith("nsd"):
            axes.set_ylim(-0.02, 1.02)
        else:
            top = axes.get_ylim()[1]
            axes.set_ylim(-0.02 * top, top)  # a case of 0 shows whole
    figure.supxlabel(f"class (cases in which it is defined, of {len(cases)})", fontsize=9)
    return figure


def size_plot(summary: Mapping[str, Any], colours: Mapping[str, str]) -> Figure:
    """Draw the share of reference objects that were found, by size and class (class -> colour)."""
    classes = [summary["classes"][name]["size_classes"] for name in colours]
    figure, (axes,) = new_figure(1, width=max(5.0, 1.5 + len(classes[0]) * max(1.1, 0.4 * len(colours))))
    width = 0.8 / len(colours)
    for k, ((name, colour), entries) in enumerate(zip(colours.items(), classes, strict=True)):
        x = np.arange(len(entries)) + (k - (len(colours) - 1) / 2) * width
        shares = [0.0 if e["reference"] == 0 else e["sensitivity"] for e in entries]
        axes.bar(x, shares, width * 0.95, color=colour, edgecolor="0.25", linewidth=0.5, label=name)
        for place, share, e in zip(x, shares, entries, strict=True):
            text = f"{e['found']}/{e['reference']}" if e["reference"] else "none"
            axes.annotate(text, (place, share), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    ends = [f"{e['from_mm']:g} to {e['to_mm']:g}" if e["to_mm"] else f"{e['from_mm']:g} and more" for e in classes[0]]
    ends[0] = f"below {classes[0][0]['to_mm']:g}" if classes[0][0]["to_mm"] else "all"
    axes.set_xticks(range(len(ends)), ends)
    axes.set_xlabel("diameter of the sphere of the same volume, mm")
    axes.set_ylabel("share of objects found")
    axes.set_ylim(0, 1.08)
    axes.set_title(f"Found by size, {summary['n_cases']} cases; matched at {_threshold(summary)}")
    _legend(axes)
    return figure


def comparison_plot(summary: Mapping[str, Any], names: Sequence[str]) -> Figure:
    """Draw the differences between two predictions with their intervals, one line per class."""
    panels = [("mean Dice", "voxels", "dice"), ("F1 of objects", "objects", "f1")]
    figure, axes = new_figure(len(panels), width=4.6, height=max(2.6, 1.4 + 0.35 * len(names)))
    for panel, (title, group, key) in zip(axes, panels, strict=True):
        for position, name in enumerate(names):
            entry = summary["classes"][name][group][key]
            panel.plot([entry["ci_low"], entry["ci_high"]], [position] * 2, color=COLOURS[0])
            panel.plot(entry["difference"], position, "o", color=COLOURS[0])
        panel.axvline(0, color="0.5", linewidth=1)
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_xlabel(f"{title}: second minus first")
    level = summary["bootstrap"]["level"]
    figure.suptitle(f"{summary['n_cases']} cases, {level:.0%} intervals (paired bootstrap)", fontsize=10)
    return figure


def _title(key: str) -> str:
    """Return how a score is called above its panel: ``HD95, mm``, ``NSD at 1 mm``."""
    if key.startswith("nsd_"):
        return f"NSD at {key.removeprefix('nsd_').removesuffix('mm')} mm"
    if key == "dice":
        return "Dice"
    name, _, unit = key.removeprefix("chaos_").partition("_")
    kind = " (CHAOS)" if key.startswith("chaos_") else ""
    return f"{name.upper()}{kind}, {unit.replace('percent', '%')}"


def _drawn(key: str) -> bool:
    """Tell whether a surface score has a panel: the CHAOS Dice is the Dice that is there already."""
    return key != "chaos_dice"


def _shown(summary: Mapping[str, Any]) -> list[str]:
    """Return the classes with reference objects, in their order; of too many, those with the most."""
    counts = {name: entry["objects"]["reference"] for name, entry in summary["classes"].items()}
    most = sorted((name for name in counts if counts[name]), key=lambda name: -counts[name])[:MAX_CLASSES]
    return [name for name in counts if name in most]


def _several(cases: Sequence[CaseResult], names: Sequence[str]) -> list[str]:
    """Return the classes of which some case has more than one reference object."""
    return [n for n in names if any(r.name == n and r.objects.reference_objects > 1 for c in cases for r in c.classes)]


def _threshold(summary: Mapping[str, Any]) -> str:
    dice = summary["dice_threshold"]
    return f"IoU ≥ {summary['iou_threshold']:g}" if dice is None else f"Dice ≥ {dice:g}"


def _number(value: float) -> str:
    return "n/a" if np.isnan(value) else f"{value:.3f}"


def new_figure(panels: int, *, width: float, height: float = 4.4, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """Return a figure with an Agg canvas (no pyplot state) and its panels, up to ``columns`` side by side."""
    columns = min(panels, columns)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in axes[panels:]:
        unused.remove()
    del axes[panels:]
    for panel in axes:
        panel.grid(True, color="0.9", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axes: Axes, *, below: bool = False) -> None:
    place = (0.5, -0.14) if below else (1.0, 1.0)
    axes.legend(fontsize=8, frameon=False, loc="upper center" if below else "upper left", bbox_to_anchor=place)
