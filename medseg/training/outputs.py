"""What a training writes while it runs; only the first of several processes does."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from medseg.reporting.curves import read_columns, save_curves
from medseg.training.checkpoint import find_checkpoints, save_checkpoint, save_weights
from medseg.training.distributed import World
from medseg.training.rows import Rows
from medseg.training.state import TrainingState
from medseg.training.step import LOSSES
from medseg.training.tensorboard import TensorBoard
from medseg.training.validation import VALIDATION_FILE, Validation

METRICS_FILE = "metrics.csv"


class Outputs:
    """metrics.csv, checkpoints, model.safetensors and curves.png of a training."""

    def __init__(self, run: Path, state: TrainingState, world: World, tensorboard: bool):
        """Open metrics.csv, cut back to where the state stands, and event files where they are asked for."""
        self.run = run
        self.state = state
        self.rows: Rows | None = None
        self.events = TensorBoard(run, state.step) if tensorboard and world.first else None
        self.saved = state.step
        if not world.first:
            return
        self.rows = Rows(run / METRICS_FILE, ["step", "learning_rate", "loss", *LOSSES], state.step)
        if state.step and state.best_step in (0, state.step):  # killed between the checkpoint and these
            save_weights(run, state.average.values)

    def __enter__(self) -> "Outputs":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close metrics.csv and the event files."""
        if self.rows:
            self.rows.close()
        if self.events:
            self.events.close()

    def add_row(self, values: Sequence[float | int]) -> None:
        """Add the row of a step."""
        if self.rows:
            self.rows.write(values)
        if self.events:
            step, learning_rate, _, *losses = values
            self.events.add_step(int(step), learning_rate, dict(zip(LOSSES, losses, strict=True)))

    def add_validation(self, found: Validation) -> None:
        """Add what a validation found; validation.csv has it already."""
        if self.events:
            self.events.add_validation(found)

    def save_checkpoint(self) -> None:
        """Save the state; the weights too where they are the best validated, or none are validated; draw curves.png."""
        if not self.rows:
            return
        self.rows.sync()
        save_checkpoint(self.run, self.state.step, self.state.tensors(), self.state.header())
        if self.state.best_step in (0, self.state.step):
            save_weights(self.run, self.state.average.values)
        validation = self.run / VALIDATION_FILE
        scores = read_columns(validation) if validation.exists() else {}
        save_curves(self.run, read_columns(self.run / METRICS_FILE), LOSSES, scores)
        self.saved = self.state.step

    def finish(self) -> None:
        """Leave a model and a checkpoint of the last whole step, whether training came to its end or was stopped."""
        if self.state.whole and self.state.step > self.saved:
            self.save_checkpoint()
        elif self.rows and not self.state.best_step and not find_checkpoints(self.run):
            save_weights(self.run, self.state.average.values)
