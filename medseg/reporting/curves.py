"""Curves of a training: losses, learning rate, and what its validations found, by class."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from medseg.errors import InputError
from medseg.reporting.overlay import save_figure
from medseg.reporting.plots import COLOURS, new_figure

CURVES_FILE = "curves.png"
#: Points of a loss curve: each is the mean of the steps between two of them.
POINTS = 200
Columns = Mapping[str, NDArray[np.float64]]


def read_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read a CSV table of numbers as its columns; a last row that a killed process left half-written is passed by.

    Raises:
        InputError: not readable, or a cell that is no number.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        whole = [row for row in rows if len(row) == len(header)]
        return {name: np.array([float(row[i]) for row in whole], np.float64) for i, name in enumerate(header)}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable table of numbers ({error}); train into a new folder") from None


def save_curves(folder: Path, metrics: Columns, losses: Sequence[str], validation: Columns) -> Path:
    """Draw curves.png, whole or not at all.

    Args:
        folder: of the run.
        metrics: ``step``, ``learning_rate``, ``loss`` (the sum) and the columns of ``losses``, a row per step.
        losses: the parts of the loss; one that is 0 throughout is left out.
        validation: ``step``, ``score`` and, per class, ``f1 CLASS`` and ``dice CLASS``; empty without validation.

    Returns:
        The file.
    """
    save_figure(folder / CURVES_FILE, curves_figure(metrics, losses, validation))
    return folder / CURVES_FILE


def curves_figure(metrics: Columns, losses: Sequence[str], validation: Columns) -> Figure:
    """Draw what `save_curves` writes."""
    scored = bool(len(validation.get("step", ())))
    figure, panels = new_figure(4 if scored else 2, width=5.4, height=3.6, columns=2)
    end = float(metrics["step"][-1]) if len(metrics["step"]) else 1.0
    _draw_losses(panels[0], metrics, losses)
    panels[1].plot(metrics["step"], metrics["learning_rate"], color=COLOURS[0])
    panels[1].set_title("learning rate")
    panels[1].ticklabel_format(axis="y", scilimits=(-2, 2))
    panels[1].set_ylim(bottom=0)
    if scored:
        _draw_scores(panels[2:], validation)
        end = max(end, float(validation["step"][-1]))
    for panel in panels:
        panel.set_xlim(0, end * 1.02)
        panel.set_xlabel("step")
    return figure


def _draw_losses(axes: Axes, metrics: Columns, losses: Sequence[str]) -> None:
    drawn = {"loss": "0.35"} | dict(zip(losses, COLOURS, strict=False))
    for name, colour in drawn.items():
        values = metrics[name]
        if not (values > 0).any():
            continue
        label = "sum" if name == "loss" else name.replace("_", " ")
        axes.plot(*_thinned(metrics["step"], values), color=colour, linewidth=1.3, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # 0.2, 0.5, 1 ...: a range of losses is often no decade
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("losses")
    if axes.lines:
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_scores(panels: Sequence[Axes], validation: Columns) -> None:
    """Draw F1 and Dice by class, their mean, and where that is best."""
    names = [key.removeprefix("f1 ") for key in validation if key.startswith("f1 ")]
    seen = [name for name in names if not np.isnan(validation[f"f1 {name}"]).all()]
    shown = sorted(seen, key=lambda name: validation[f"f1 {name}"][-1] + validation[f"dice {name}"][-1])[: len(COLOURS)]
    score = validation["score"]
    for axes, key, title in zip(panels, ("f1", "dice"), ("F1 of objects", "Dice"), strict=True):
        axes.plot(validation["step"], score, color="0.8", linewidth=4, label="score: mean of F1 and Dice")
        for name, colour in zip([name for name in names if name in shown], COLOURS, strict=False):
            style = "o-" if len(score) <= POINTS // 4 else "-"
            axes.plot(validation["step"], validation[f"{key} {name}"], style, color=colour, markersize=3, label=name)
        if not np.isnan(score).all():
            best = int(np.nanargmax(score))
            label = f"best score: {score[best]:.3f} at step {validation['step'][best]:.0f}"
            axes.axvline(validation["step"][best], color="0.5", linestyle=":", linewidth=1.2, label=label)
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(f"validation: {title}")
    if len(shown) < len(seen):
        panels[1].set_title(f"validation: Dice (the {len(shown)} lowest of {len(seen)} classes)")
    panels[1].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _thinned(step: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return at most ``POINTS`` points of a curve, each the mean of the steps around it."""
    groups = np.array_split(np.arange(len(step)), min(POINTS, len(step)))
    return np.array([step[g].mean() for g in groups]), np.array([values[g].mean() for g in groups])
