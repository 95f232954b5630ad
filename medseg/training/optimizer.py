"""What turns gradients into weights: optimiser, learning rate, average of the weights."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from medseg.values.plan import TrainingPlan


def build_optimizer(model: nn.Module, settings: TrainingPlan) -> torch.optim.Optimizer:
    """Return the plan's optimiser; the weights of convolutions and linear layers decay, biases and norms do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    nesterov = settings.nesterov and settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=nesterov, fused=True)


def learning_rate(step: int, settings: TrainingPlan) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up, then a half cosine to zero.

    Loshchilov and Hutter 2017, "SGDR" (arXiv 1608.03983), one period; Goyal et al. 2017 (arXiv 1706.02677).
    """
    warmup = max(1, round(settings.warmup_fraction * settings.steps))
    if step < warmup:
        return settings.learning_rate * ((step + 1) / warmup)
    share = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))
    return settings.learning_rate * share


class Average:
    """Exponential moving average of the weights, short at first so that a short run is not mostly its start.

    Polyak and Juditsky 1992; the growing decay is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.values.values()), list(model.state_dict().values()), 1 - decay)

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Take up the average of another process after ``updates`` updates."""
        self.updates = updates
        for name, value in self.values.items():
            value.copy_(values[name])
