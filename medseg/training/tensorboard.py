"""The figures of metrics.csv and validation.csv for TensorBoard as well, where it is installed."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.errors import ConfigError
from medseg.training.validation import Validation

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoard:
    """Event files in a run's folder ``tensorboard``; ``tensorboard --logdir RUN`` shows them.

    Their names hold the time and the name of this machine: TensorBoard finds what belongs together by them.

    Args:
        run: folder of the training.
        step: steps done by then; what a run that was killed wrote after them is not shown any more.

    Raises:
        ConfigError: the package tensorboard is not installed.
    """

    def __init__(self, run: Path, step: int):
        self.writer: SummaryWriter = _writer_class()(str(run / FOLDER), purge_step=step + 1 if step else None)

    def add_step(self, step: int, learning_rate: float, losses: Mapping[str, float]) -> None:
        """Add the losses of a step, their sum, and the learning rate that it was made with."""
        self.writer.add_scalar("learning_rate", learning_rate, step)
        self.writer.add_scalar("loss/sum", sum(losses.values()), step)
        for name, value in losses.items():
            self.writer.add_scalar(f"loss/{name}", value, step)

    def add_validation(self, found: Validation) -> None:
        """Add the score of a validation, and F1 and Dice by class; undefined ones are left out."""
        values = {"validation/score": found.score}
        for name, score in found.classes.items():
            values |= {f"validation_f1/{name}": score.f1, f"validation_dice/{name}": score.dice}
        for tag, value in values.items():
            if value == value:
                self.writer.add_scalar(tag, value, found.step)
        self.writer.flush()

    def close(self) -> None:
        """Write what is left and close."""
        self.writer.close()


def check_tensorboard() -> None:
    """Refuse (ConfigError) before time is spent, where the package is missing."""
    _writer_class()


def _writer_class() -> "type[SummaryWriter]":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "--tensorboard: the package tensorboard is not installed; pip install 'medseg[tensorboard]', or leave it "
            "out: curves.png shows the same"
        ) from None
    return SummaryWriter
