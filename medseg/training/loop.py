"""The training loop: plain PyTorch, read from top to bottom.

On a CPU a run is bit-exact under its seed at the same thread count: samples are a function of (seed,
number), so are the proposals drawn for their losses, and the weights start from the seed.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medseg.data.cache import CachedCase
from medseg.data.dataset import SliceDataset
from medseg.errors import ModelError
from medseg.inference.run import PLAN_FILE, WEIGHTS_FILE
from medseg.models.mask_rcnn import build_mask_rcnn
from medseg.progress import Track, silent
from medseg.training.checkpoint import save_plan, save_weights
from medseg.training.step import Stepper
from medseg.values.plan import Plan, TrainingPlan

METRICS_FILE = "metrics.csv"
LOSSES = ("objectness", "rpn_box", "class", "box", "mask", "semantic")
#: The weights are saved this often, in steps, and at the end.
SAVE_EVERY = 500


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended: steps done, whether it was stopped before its end, and the last mean loss."""

    steps: int
    interrupted: bool
    loss: float


def train(
    cases: Sequence[CachedCase], plan: Plan, run: Path, device: torch.device, track: Track = silent
) -> TrainingResult:
    """Train a plan's network on prepared cases.

    Args:
        cases: from `medseg.data.cache.load_case`.
        plan: decides everything, the seed included.
        run: folder that gets plan.yaml, model.safetensors (the exponential average of the weights) and
            metrics.csv (step, learning rate, losses).
        device: where to compute.
        track: progress over steps.

    Returns:
        How it ended. KeyboardInterrupt (Ctrl-C, SIGTERM) saves the weights so far and ends the run early.

    Raises:
        ModelError: losses or gradients are no longer finite.
    """
    settings = plan.training
    torch.manual_seed(settings.seed)
    model = build_mask_rcnn(plan).to(device).train()
    average = _Average(model, settings.ema_decay)
    optimizer = torch.optim.AdamW(
        _parameter_groups(model, settings.weight_decay), lr=settings.learning_rate, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate(step, settings))
    dataset = SliceDataset(cases, plan, settings.steps * settings.batch_size, settings.seed)
    loader = DataLoader(
        dataset,
        batch_size=settings.batch_size,
        num_workers=settings.workers,
        collate_fn=list,
        pin_memory=device.type == "cuda",
        persistent_workers=False,
        worker_init_fn=_one_thread,
    )
    save_plan(run, plan)
    stepper = Stepper(model, optimizer, settings, device)
    step, loss, interrupted = 0, math.nan, False
    with _metrics(run / METRICS_FILE) as write:
        try:
            for batch in track(loader, "training", settings.steps):
                losses = stepper.step(batch)
                loss = sum(losses.values())
                write([step + 1, optimizer.param_groups[0]["lr"], loss, *(losses.get(name, 0.0) for name in LOSSES)])
                average.update(model)
                schedule.step()
                step += 1
                if step % SAVE_EVERY == 0:
                    save_weights(run, average.weights())
        except KeyboardInterrupt:
            interrupted = True
        except ModelError:
            if not (run / WEIGHTS_FILE).exists():  # nothing came of it: the folder can be used again
                (run / PLAN_FILE).unlink()
                (run / METRICS_FILE).unlink()
            raise
        finally:
            stepper.close()
    save_weights(run, average.weights())
    return TrainingResult(steps=step, interrupted=interrupted, loss=loss)


def _learning_rate(step: int, settings: TrainingPlan) -> float:
    """Return the share of the learning rate: linear warm-up, then a half cosine to zero."""
    warmup = max(1, round(settings.warmup_fraction * settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay the weights of convolutions and linear layers, not biases and normalisation."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


class _Average:
    """Exponential moving average of the weights, short at first so that a short run is not mostly its start."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.values.values()), list(model.state_dict().values()), 1 - decay)

    def weights(self) -> dict[str, Tensor]:
        return self.values


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


@contextmanager
def _metrics(path: Path) -> Iterator["_Writer"]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        yield _Writer(file)


class _Writer:
    def __init__(self, file: TextIO):
        self.file = file
        self.csv = csv.writer(file)
        self.csv.writerow(["step", "learning_rate", "loss", *LOSSES])

    def __call__(self, row: list[float]) -> None:
        self.csv.writerow([f"{v:.6g}" for v in row])
        self.file.flush()
