"""The plots of an evaluation show what the summary says."""

from pathlib import Path

import numpy as np
import pytest
from highdicom import VolumeGeometry
from matplotlib.axes import Axes

from medseg.evaluation import Evaluation, Settings
from medseg.labels import LabelTable
from medseg.metrics.comparison import compare
from medseg.metrics.evaluation import CaseResult, evaluate_case, summarise
from medseg.reporting.plots import (
    class_colours,
    class_plot,
    comparison_plot,
    froc_plot,
    precision_recall_plot,
    save_plots,
    size_plot,
)
from medseg.values.instances import Instance, InstanceSet

LABELS = LabelTable.from_names(["liver", "lesion"], kinds={"lesion": "ids"})
GRID = VolumeGeometry(np.diag([5.0, 0.5, 0.4, 1.0]), (1, 2, 60), "PATIENT")
COLOURS = {"liver": "#0072B2", "lesion": "#D55E00"}


def runs(*objects: tuple[int, int, int, float]) -> InstanceSet:
    """Build runs of voxels along a line: (label, first, end, score)."""
    return InstanceSet.build(
        [
            Instance(id=1, label=c, mask=np.ones((1, 1, b - a), bool), offset=(0, 0, a), score=s)
            for c, a, b, s in objects
        ],
        GRID,
        LABELS,
    )


@pytest.fixture(scope="module")
def cases() -> dict[str, CaseResult]:
    truth = runs((1, 0, 20, 1.0), (2, 30, 34, 1.0), (2, 40, 50, 1.0))
    found = runs((1, 0, 18, 0.8), (2, 40, 48, 0.9), (2, 55, 58, 0.6))
    nothing = runs((1, 0, 20, 0.7))
    return {"a": evaluate_case(truth, found), "b": evaluate_case(truth, nothing)}


def legend(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_froc_states_its_hit_and_holds_to_the_end(cases: dict[str, CaseResult]) -> None:
    (axes,) = froc_plot(list(cases.values()), summarise(cases), COLOURS).axes
    assert axes.get_title() == "FROC, 2 cases; hit: IoU ≥ 0.1"
    assert legend(axes) == ["liver, CPM 1.000", "lesion, CPM 0.250"]
    curve, dots = axes.lines[2], axes.lines[3]
    assert curve.get_xdata().tolist() == [0, 0, 0.5, 8] and curve.get_ydata().tolist() == [0, 0.25, 0.25, 0.25]
    assert list(dots.get_xdata()) == [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8] and set(dots.get_ydata()) == {0.25}


def test_precision_and_recall(cases: dict[str, CaseResult]) -> None:
    axes = precision_recall_plot(list(cases.values()), COLOURS).axes
    assert [a.get_title() for a in axes] == ["2 cases; hit: IoU ≥ 0.1", "2 cases; hit: IoU ≥ 0.5"]
    assert legend(axes[0])[1] == f"lesion, AP {26 / 101:.3f}"
    assert axes[0].lines[1].get_xdata().tolist() == [0.25, 0.25] and axes[0].lines[1].get_ydata().tolist() == [1, 0.5]


def test_classes_show_every_case(cases: dict[str, CaseResult]) -> None:
    axes = class_plot(list(cases.values()), COLOURS).axes
    assert [a.get_title() for a in axes] == ["Dice", "NSD at 1 mm", "NSD at 2 mm", "HD95, mm", "ASSD, mm"]
    dots = [line for line in axes[0].lines if line.get_marker() == "."]
    assert sorted(dots[0].get_ydata()) == pytest.approx([36 / 38, 1])
    # Of the lesions HD95 is undefined where none was found.
    assert [t.get_text() for t in axes[3].get_xticklabels()] == ["liver (2)", "lesion (1)"]
    # A value of 0 stands clear of the axis, and classes keep their places where nothing is defined.
    assert all(a.get_ylim()[0] < 0 and a.get_xlim() == (-0.5, 1.5) for a in axes)


def test_sizes_count(cases: dict[str, CaseResult]) -> None:
    summary = summarise(cases, size_edges_mm=(2.0,))  # 4 voxels of 1 mm3: 1.97 mm
    (axes,) = size_plot(summary, {"lesion": "#D55E00"}).axes
    assert axes.get_title() == "Found by size, 2 cases; matched at IoU ≥ 0.3"
    assert [p.get_height() for p in axes.patches] == [0, 0.5]
    assert [t.get_text() for t in axes.texts] == ["0/2", "1/2"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["below 2", "2 and more"]


def test_a_comparison(cases: dict[str, CaseResult]) -> None:
    truth = runs((1, 0, 20, 1.0), (2, 30, 34, 1.0), (2, 40, 50, 1.0))
    better = {name: evaluate_case(truth, truth) for name in cases}
    figure = comparison_plot(compare(cases, better), ["liver", "lesion"])
    f1 = figure.axes[1]
    assert [t.get_text() for t in f1.get_yticklabels()] == ["liver", "lesion"]
    assert f1.lines[3].get_xdata().tolist() == pytest.approx([1 - 2 / 6])  # 1 hit, 1 invention, 3 misses


def test_classes_have_the_colours_of_their_labels(cases: dict[str, CaseResult]) -> None:
    """As in pictures and exports; two labels of one colour are told apart by shades of it."""
    colours = class_colours({"liver": (230, 159, 0), "lesion": (86, 180, 233), "cyst": (230, 159, 0)})
    assert list(colours.values())[:2] == ["#e69f00", "#56b4e9"] and len(set(colours.values())) == 3
    (axes,) = froc_plot(list(cases.values()), summarise(cases), {n: colours[n] for n in ("liver", "lesion")}).axes
    assert [axes.lines[i].get_color() for i in (0, 2)] == ["#e69f00", "#56b4e9"]


def test_files(cases: dict[str, CaseResult], tmp_path: Path) -> None:
    def evaluation(of: dict[str, CaseResult]) -> Evaluation:
        return Evaluation(
            settings=Settings(), cases=of, failures={}, extra=(), files=(), sources={},
            summary=summarise(of) | {"colours": {label.name: label.colour for label in LABELS}},
        )  # fmt: skip

    files = save_plots(evaluation(cases), tmp_path)
    assert [f.name for f in files] == ["froc.png", "precision_recall.png", "classes.png", "size_classes.png"]
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)
    healthy = {"a": evaluate_case(runs(), runs((2, 0, 4, 0.5)))}
    assert save_plots(evaluation(healthy), tmp_path) == []  # nothing to show: no reference object


def test_nothing_found() -> None:
    missed = {"a": evaluate_case(runs((2, 0, 4, 1.0)), runs())}
    colours = {"lesion": "#D55E00"}
    curve = froc_plot(list(missed.values()), summarise(missed), colours).axes[0].lines[0]
    assert curve.get_xdata().tolist() == [0, 8] and curve.get_ydata().tolist() == [0, 0]
    panels = class_plot(list(missed.values()), colours).axes
    assert [a.get_xticklabels()[0].get_text() for a in panels] == ["lesion (1)"] * 3 + ["lesion (0)"] * 2
    assert precision_recall_plot(list(missed.values()), colours).axes[0].get_legend().get_texts()[0].get_text() == (
        "lesion, AP 0.000"
    )
