"""One step of training: the gradients of a batch, and what precision and threads they are computed with."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medseg.data.dataset import Sample
from medseg.errors import ModelError
from medseg.models.heads import Target
from medseg.models.mask_rcnn import MaskRCNN
from medseg.values.plan import TrainingPlan


class _Gradients(NamedTuple):
    """Losses of one group of samples and their gradients, times the samples; None for a parameter without a part."""

    losses: dict[str, float]
    gradients: tuple[Tensor | None, ...]


class Stepper:
    """Computes the gradients of a batch and makes one step.

    On a GPU the samples of one size are one group. On a CPU every sample is a group of its own, on a thread of its own:
    convolutions of small slices gain nothing from several threads each, and a step is nearly twice as fast
    on two cores. The groups' gradients are averaged in the order of the samples, so the sum is always the same.
    """

    def __init__(self, model: MaskRCNN, optimizer: torch.optim.Optimizer, settings: TrainingPlan, device: torch.device):
        self.model = model
        self.optimizer = optimizer
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.clip_norm = settings.clip_norm
        self.device = device
        self.half = uses_bfloat16(settings, device)
        self.threads = torch.get_num_threads()
        workers = min(self.threads, settings.batch_size) if device.type == "cpu" else 1
        each = max(1, self.threads // workers)
        self.pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(each,))

    def close(self) -> None:
        """End the threads and give torch its own back."""
        self.pool.shutdown()
        torch.set_num_threads(self.threads)

    def step(self, batch: list[Sample]) -> dict[str, float]:
        """Change the weights once; return the mean losses.

        Raises:
            ModelError: losses or gradients are not finite; the weights stay as they are.
        """
        groups = [[sample] for sample in batch] if self.device.type == "cpu" else _of_one_size(batch)
        parts = list(self.pool.map(self._gradients, groups))
        for parameter, *gradients in zip(self.parameters, *(part.gradients for part in parts), strict=True):
            known = [g for g in gradients if g is not None]
            total = known[0] if known else torch.zeros_like(parameter)
            for gradient in known[1:]:
                total.add_(gradient)
            parameter.grad = total.div_(len(batch))
        losses = {name: sum(part.losses[name] for part in parts) / len(batch) for name in parts[0].losses}
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.clip_norm))
        if not math.isfinite(norm + sum(losses.values())):
            rounded = {name: round(value, 3) for name, value in losses.items()}
            raise ModelError(
                f"losses {rounded} with a gradient of {norm:.3g} are not finite; lower training.learning_rate or look "
                "for extreme intensities in the cohort"
            )
        self.optimizer.step()
        return losses

    def _gradients(self, samples: list[Sample]) -> _Gradients:
        images = torch.stack([s.image for s in samples]).to(self.device, non_blocking=True)
        targets = [
            Target(
                boxes=s.boxes.to(self.device),
                classes=s.classes.to(self.device),
                masks=s.masks.to(self.device),
                covered=s.covered.to(self.device),
                seed=s.seed,
            )
            for s in samples
        ]
        # Threads share the cache of casts and empty it for each other, which would change the order of sums.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half, cache_enabled=False):
            losses = self.model.losses(images, targets)
        total = torch.stack(list(losses.values())).sum() * len(samples)
        gradients = torch.autograd.grad(total, self.parameters, allow_unused=True)
        return _Gradients({name: float(value.detach()) * len(samples) for name, value in losses.items()}, gradients)


def _of_one_size(batch: list[Sample]) -> list[list[Sample]]:
    """Split a batch into groups of images that can be stacked."""
    groups: dict[tuple[int, ...], list[Sample]] = {}
    for sample in batch:
        groups.setdefault(tuple(sample.image.shape), []).append(sample)
    return list(groups.values())


def uses_bfloat16(settings: TrainingPlan, device: torch.device) -> bool:
    """Tell whether convolutions run in bfloat16: as the plan says, or where the device has units for it."""
    if settings.precision != "auto":
        return settings.precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch cannot tell: float32
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
