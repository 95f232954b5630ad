"""curves.png: the right numbers in the right panel, whatever was validated."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from medseg.errors import InputError
from medseg.reporting.curves import POINTS, curves_figure, read_columns, save_curves
from medseg.reporting.plots import MAX_CLASSES

LOSSES = ("class", "mask", "semantic")


def metrics(steps: int) -> dict[str, np.ndarray]:
    step = np.arange(1, steps + 1, dtype=float)
    parts = {"class": 1 / step, "mask": 2 / step, "semantic": np.zeros(steps)}
    return {"step": step, "learning_rate": 0.01 * step, "loss": 3 / step, **parts}


def validations(classes: int, scores: list[float]) -> dict[str, np.ndarray]:
    found = {"step": np.arange(1, len(scores) + 1) * 10.0, "score": np.array(scores)}
    for number in range(classes):
        found |= {f"f1 c{number}": np.array(scores) / (number + 1), f"dice c{number}": np.array(scores)}
    return found


def labels(axes: object) -> list[str]:
    return [str(text.get_text()) for text in axes.get_legend().get_texts()]  # type: ignore[attr-defined]


def test_losses_and_learning_rate() -> None:
    figure = curves_figure(metrics(30), LOSSES, {})
    losses, rate = figure.axes
    assert losses.get_yscale() == "log" and labels(losses) == ["sum", "class", "mask"]  # semantic is 0 throughout
    np.testing.assert_allclose(losses.lines[2].get_ydata(), 2 / np.arange(1, 31))
    np.testing.assert_allclose(rate.lines[0].get_ydata(), 0.01 * np.arange(1, 31))
    assert rate.get_title() == "learning rate" and rate.get_xlabel() == "step"


@pytest.mark.parametrize("low", [0.011, 0.31])
def test_losses_have_ticks_that_can_be_read(low: float) -> None:
    """Plain numbers, at least two, and nothing between them: a loss often falls by less than a factor of ten."""
    columns = metrics(30)
    columns |= {name: low * (1 + 29 / columns["step"]) / 10 for name in ("loss", "class", "mask")}
    axes = curves_figure(columns, LOSSES, {}).axes[0]
    bottom, top = axes.get_ylim()
    shown = [axes.yaxis.get_major_formatter()(at, None) for at in axes.get_yticks() if bottom <= at <= top]
    assert len(shown) >= 2 and all(float(text) and len(text) <= 6 for text in shown)
    assert not any(axes.yaxis.get_minor_formatter()(at, None) for at in axes.yaxis.get_minorticklocs())


def test_a_long_curve_is_thinned_by_means() -> None:
    line = curves_figure(metrics(4 * POINTS), LOSSES, {}).axes[0].lines[0]
    assert len(line.get_xdata()) == POINTS
    assert line.get_ydata()[1] == pytest.approx(3 * (1 / 5 + 1 / 6 + 1 / 7 + 1 / 8) / 4)
    assert line.get_xdata()[1] == 6.5


def test_validations_by_class_and_the_best() -> None:
    figure = curves_figure(metrics(40), LOSSES, validations(2, [0.2, 0.8, 0.6, 0.7]))
    f1, dice = figure.axes[2:]
    assert labels(dice) == ["score: mean of F1 and Dice", "c0", "c1", "best score: 0.800 at step 20"]
    by_name = {line.get_label(): line for line in f1.lines}
    np.testing.assert_allclose(by_name["c1"].get_ydata(), [0.1, 0.4, 0.3, 0.35])
    np.testing.assert_allclose(by_name["c1"].get_xdata(), [10, 20, 30, 40])
    assert list(by_name["best score: 0.800 at step 20"].get_xdata()) == [20, 20]
    assert (f1.get_title(), dice.get_title()) == ("validation: F1 of objects", "validation: Dice")


def test_undefined_scores_leave_the_rest() -> None:
    scores = validations(2, [0.5, 0.4])
    scores["f1 c1"] = scores["dice c1"] = np.full(2, np.nan)
    assert "c1" not in labels(curves_figure(metrics(20), LOSSES, scores).axes[3])
    nothing = {key: values if key == "step" else np.full(2, np.nan) for key, values in scores.items()}
    assert labels(curves_figure(metrics(20), LOSSES, nothing).axes[3]) == ["score: mean of F1 and Dice"]


def test_of_many_classes_the_lowest_are_shown() -> None:
    axes = curves_figure(metrics(20), LOSSES, validations(MAX_CLASSES + 3, [0.5, 0.4])).axes[3]
    shown = [name for name in labels(axes) if name.startswith("c")]
    assert shown == [f"c{i}" for i in range(3, MAX_CLASSES + 3)]
    assert axes.get_title() == "validation: Dice (the 10 lowest of 13 classes)"


def test_the_picture_is_written_even_at_the_start(tmp_path: Path) -> None:
    assert save_curves(tmp_path, metrics(0), LOSSES, {}) == tmp_path / "curves.png"
    start = imread(tmp_path / "curves.png")
    save_curves(tmp_path, metrics(25), LOSSES, validations(3, [0.1, 0.3]))
    assert imread(tmp_path / "curves.png").shape != start.shape
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_a_table_is_read_up_to_where_it_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('step,"f1 a, b",x\n1,nan,0.5\n2,0.25,1e-3\n3,0.')
    found = read_columns(tmp_path / "a.csv")
    assert list(found) == ["step", "f1 a, b", "x"] and found["step"].tolist() == [1, 2]
    assert np.isnan(found["f1 a, b"][0]) and found["x"].tolist() == [0.5, 0.001]
    (tmp_path / "b.csv").write_text("step,x\n1,word\n")
    with pytest.raises(InputError, match=r"b\.csv: not a readable table of numbers"):
        read_columns(tmp_path / "b.csv")
    with pytest.raises(InputError, match="not a readable table"):
        read_columns(tmp_path / "none.csv")
