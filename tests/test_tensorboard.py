"""TensorBoard's event files hold the figures of the run, and one line says what to install where it is missing."""

import math
import sys
from pathlib import Path

import pytest

from medseg.errors import ConfigError
from medseg.training.tensorboard import TensorBoard, check_tensorboard
from medseg.training.validation import ClassScore, Validation


def found(step: int) -> Validation:
    classes = {"organ": ClassScore(f1=1.0, dice=0.5), "spleen": ClassScore(f1=math.nan, dice=math.nan)}
    return Validation(step=step, score=0.75, classes=classes, cases=1, undefined=1, is_best=True, stop=False)


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"not installed; pip install 'medseg\[tensorboard\]', or leave it out"):
        check_tensorboard()
    with pytest.raises(ConfigError, match="not installed"):
        TensorBoard(tmp_path, 0)
    assert not any(tmp_path.iterdir())


def test_the_figures_can_be_read_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path, 0)
    for step in (1, 2, 3):
        board.add_step(step, 0.1 / step, {"mask": 2.0, "class": 0.5 * step})
    board.add_validation(found(2))
    board.close()
    again = TensorBoard(tmp_path, 2)  # killed after step 3, gone on with from step 2
    again.add_step(3, 0.5, {"mask": 7.0, "class": 1.0})
    again.close()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    tags = {"learning_rate", "loss/sum", "loss/mask", "loss/class", "validation/score"}
    assert set(read.Tags()["scalars"]) == tags | {"validation_f1/organ", "validation_dice/organ"}
    assert [(e.step, e.value) for e in read.Scalars("loss/mask")] == [(1, 2.0), (2, 2.0), (3, 7.0)]
    assert [(e.step, e.value) for e in read.Scalars("validation_dice/organ")] == [(2, 0.5)]
