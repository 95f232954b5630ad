"""Everything that changes from step to step, to be saved and taken up again bit by bit."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from medseg.errors import ModelError
from medseg.models.mask_rcnn import MaskRCNN, build_mask_rcnn
from medseg.training.checkpoint import Checkpoint
from medseg.training.optimizer import Average, build_optimizer, learning_rate
from medseg.values.plan import Plan


class TrainingState:
    """Model, average of its weights, optimiser, and where training stands.

    The learning rate and the samples of a step follow from its number, and the order of nothing else is random, so
    these and torch's generator are all that a run needs to go on as if it had never stopped.

    Attributes:
        step: steps done.
        validated: the step at which it was last validated; 0: never.
        best_score, best_step: of the best validation so far; NaN and 0: there was none.
        stopped: whether a validation ended it early.
        whole: False while a step is half made; such a state must not be saved.
    """

    def __init__(self, plan: Plan, device: torch.device, initialise: Callable[[MaskRCNN], object] | None = None):
        """Start from the plan's seed, and the weights that ``initialise`` puts into the network."""
        torch.manual_seed(plan.training.seed)
        self.settings = plan.training
        self.device = device
        network = build_mask_rcnn(plan)
        if initialise:
            initialise(network)
        self.model = network.to(device).train()
        self.average = Average(self.model, plan.training.ema_decay)
        self.optimizer = build_optimizer(self.model, plan.training)
        self.step = 0
        self.validated = 0
        self.best_score = math.nan
        self.best_step = 0
        self.stopped = False
        self.whole = True
        self._seconds_before = 0.0
        self._start = time.perf_counter()

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(self.step, self.settings)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or it was ended early."""
        return self.stopped or self.step >= self.settings.steps

    @property
    def seconds(self) -> float:
        """Time so far, that of the runs before a resume included."""
        return self._seconds_before + time.perf_counter() - self._start

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Mark a part that must be done wholly, or the state cannot be saved."""
        self.whole = False
        yield
        self.whole = True

    def advance(self) -> None:
        """Make a step with the gradients at the parameters."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.step()
        self.average.update(self.model)
        self.step += 1

    def judge(self, score: float, is_best: float, stop: float) -> None:
        """Take note of what a validation of the average found."""
        self.validated = self.step
        self.stopped = bool(stop)
        if is_best:
            self.best_score, self.best_step = score, self.step

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint has to hold."""
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        found |= {f"average.{name}": value for name, value in self.average.values.items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
        found["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            found["random.cuda"] = torch.cuda.get_rng_state(self.device)
        return found

    def header(self) -> dict[str, Any]:
        """Return the numbers that a checkpoint has to hold beside its step; JSON has no NaN."""
        return {
            "validated": self.validated,
            "best_score": None if math.isnan(self.best_score) else self.best_score,
            "best_step": self.best_step,
            "stopped": self.stopped,
            "seconds": self.seconds,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            ModelError: it is of another plan.
        """
        tensors, header = checkpoint
        try:
            self.model.load_state_dict(_below(tensors, "model."))
            self.average.restore(_below(tensors, "average."), header["step"])
            moments: dict[int, dict[str, Tensor]] = {}
            for name, value in _below(tensors, "optimizer.").items():
                number, _, kind = name.partition(".")
                moments.setdefault(int(number), {})[kind] = value
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"the checkpoint of step {header['step']} does not fit plan.yaml ({reason}); the plan of a run must "
                "not be changed while it trains"
            ) from None
        torch.set_rng_state(tensors["random.cpu"])
        if self.device.type == "cuda" and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        self.step = header["step"]
        self.validated = header["validated"]
        self.best_score = math.nan if header["best_score"] is None else header["best_score"]
        self.best_step = header["best_step"]
        self.stopped = header["stopped"]
        self._seconds_before = header["seconds"]


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name starts with a prefix, named without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
