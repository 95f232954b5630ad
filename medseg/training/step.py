"""One step of training: the gradients of a batch, and what precision and threads they are computed with."""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medseg.data.sample import Sample
from medseg.models.heads import Target
from medseg.models.mask_rcnn import MaskRCNN
from medseg.training.distributed import ALONE, World
from medseg.values.plan import TrainingPlan

LOSSES = ("objectness", "rpn_box", "class", "box", "mask", "semantic")


class _Part(NamedTuple):
    """Losses [len(LOSSES)] of one group of samples and their gradients, times the samples.

    A parameter that had no part in them has no gradient.
    """

    losses: Tensor
    gradients: tuple[Tensor | None, ...]


class Stepper:
    """Computes the gradients of a batch.

    On a CPU every sample is a group of its own, on a thread of its own: convolutions of small slices gain nothing from
    several threads each, and a step is nearly twice as fast on two cores. On a GPU all are one group, or as many as
    ``accumulate`` asks for. The losses are means over images, so the sum over groups, and over processes, is that of
    the whole batch; it is taken in the order of the samples and always the same.
    """

    def __init__(self, model: MaskRCNN, settings: TrainingPlan, device: torch.device, world: World = ALONE):
        self.model = model
        self.world = world
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.settings = settings
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

    def gradients(self, share: Sequence[Sample]) -> tuple[dict[str, float], float]:
        """Leave the gradients of a batch, clipped, at the parameters.

        Args:
            share: this process's samples of the batch.

        Returns:
            The mean losses over the whole batch by name, and the norm of its gradients before clipping. Where one of
            them is not finite, neither are the gradients.
        """
        totals: list[Tensor | None] = [None] * len(self.parameters)
        losses = torch.zeros(len(LOSSES), dtype=torch.float64, device=self.device)
        for part in self._parts(share):
            losses += part.losses
            totals = [_sum(total, gradient) for total, gradient in zip(totals, part.gradients, strict=True)]
        whole = [torch.zeros_like(p) if t is None else t for p, t in zip(self.parameters, totals, strict=True)]
        self._add_up(whole)
        self.world.add_up(losses)
        for parameter, total in zip(self.parameters, whole, strict=True):
            parameter.grad = total.div_(self.settings.batch_size)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm))
        return dict(zip(LOSSES, losses.div_(self.settings.batch_size).tolist(), strict=True)), norm

    def find_culprits(self, share: Sequence[Sample], first: int) -> list[int]:
        """Return which samples of a batch have losses or gradients that are not finite, on their own.

        Args:
            share: this process's samples.
            first: place of the first of them in the batch.

        Returns:
            Places in the batch, the same in every process; none where only the sum over samples is too large.
        """
        faults = torch.zeros(self.settings.batch_size, dtype=torch.float64, device=self.device)
        for place, sample in enumerate(share, first):
            part = self._compute([sample])
            known = [part.losses, *(g for g in part.gradients if g is not None)]
            faults[place] = not all(bool(torch.isfinite(value).all()) for value in known)
        return [place for place, fault in enumerate(self.world.add_up(faults).tolist()) if fault]

    def _parts(self, share: Sequence[Sample]) -> Iterable[_Part]:
        if self.device.type == "cpu":
            return self.pool.map(self._compute, [[sample] for sample in share])
        return map(self._compute, groups_of(share, self.settings.accumulate))

    def _compute(self, samples: list[Sample]) -> _Part:
        images = torch.stack([s.image for s in samples]).to(self.device, non_blocking=True)
        targets = [
            Target(
                boxes=torch.from_numpy(s.boxes).to(self.device),
                classes=s.classes().to(self.device),
                masks=s.masks(self.device),
                covered=s.covered(self.model.roi_heads.classes, self.device),
                seed=s.seed,
            )
            for s in samples
        ]
        # Threads share the cache of casts and empty it for each other, which would change the order of sums.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half, cache_enabled=False):
            losses = self.model.losses(images, targets)
        total = torch.stack(list(losses.values())).sum() * len(samples)
        gradients = torch.autograd.grad(total, self.parameters, allow_unused=True)
        nothing = total.new_zeros(())
        named = torch.stack([losses.get(name, nothing).detach() for name in LOSSES])
        return _Part(named.double() * len(samples), gradients)

    def _add_up(self, gradients: list[Tensor]) -> None:
        """Add gradients up over the processes, in place and in one exchange."""
        if self.world.size == 1:
            return
        flat = self.world.add_up(torch.cat([g.flatten() for g in gradients]))
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _sum(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    if total is None or gradient is None:
        return gradient if total is None else total
    return total.add_(gradient)


def groups_of(samples: Sequence[Sample], parts: int) -> Iterator[list[Sample]]:
    """Cut the samples of a batch, all of one size, into so many groups at most."""
    size = max(1, math.ceil(len(samples) / parts))
    for start in range(0, len(samples), size):
        yield list(samples[start : start + size])


def uses_bfloat16(settings: TrainingPlan, device: torch.device) -> bool:
    """Tell whether convolutions run in bfloat16: as the plan says, or where the device has units for it."""
    if settings.precision != "auto":
        return settings.precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch cannot tell: float32
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
