"""Slices on their way into the network: what a batch needs is sent as it is stored and made into windows there.

The way of `medseg.data.context.network_input`, for several slices at once and on any device; a test holds the two
equal.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.values.plan import InputPlan

#: The pyramid's coarsest stride that is pooled from; inputs are padded to a multiple of it.
STRIDE = 32


def feed(
    array: NDArray, batches: Sequence[range], slice_spacing_mm: float, plan: InputPlan, device: torch.device
) -> Iterator[Tensor]:
    """Give the network's input for batches of slices, [b, C, H, W] float32, channels last in memory.

    H and W are those of the array filled up to a multiple of 32 by its edge pixels. On a GPU, a batch travels while the
    network works on the one before: a thread fills one of two buffers of pinned memory, and a stream of its own
    copies from there.

    Args:
        array: [N, Z, H, W] of a `NetworkGrid`.
        batches: slices of each.
        slice_spacing_mm: distance of the array's slices.
        plan: the input's.
        device: where the network is.
    """
    needs = [Planes.of(batch, array.shape[1], slice_spacing_mm, plan.context_mm) for batch in batches]
    if device.type != "cuda":
        for need in needs:
            yield make_input(torch.from_numpy(array[:, need.slices]), need, plan)
        return
    most = max(len(need.slices) for need in needs)
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype  # the array may run backwards, which torch refuses
    buffers = [torch.empty((most, len(array), *array.shape[2:]), dtype=dtype, pin_memory=True) for _ in range(2)]
    sent = [torch.cuda.Event() for _ in range(2)]
    stream = torch.cuda.Stream(device)

    def send(number: int) -> Tensor:
        buffer, event = buffers[number % 2][: len(needs[number].slices)], sent[number % 2]
        event.synchronize()  # the batch before last has left this buffer
        filled = buffer.numpy()
        for place, index in enumerate(needs[number].slices):
            filled[place] = array[:, index]
        with torch.cuda.stream(stream):
            there = buffer.to(device, non_blocking=True)
            event.record()
        return there

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(send, 0)
        for number, need in enumerate(needs):
            there = ahead.result()
            current = torch.cuda.current_stream(device)
            current.wait_event(sent[number % 2])
            there.record_stream(current)  # its memory is free again when this stream is done with it
            if number + 1 < len(needs):
                ahead = pool.submit(send, number + 1)
            yield make_input(there.transpose(0, 1), need, plan)


class Planes:
    """Which slices a batch is made of: each plane lies between two of them.

    Attributes:
        slices: indices, ascending.
        low, high: [b, P] places in ``slices`` of the slices before and after each plane.
        share: [b, P] float32, how far it lies from the first to the second.
    """

    def __init__(self, slices: list[int], low: NDArray[np.int64], high: NDArray[np.int64], share: NDArray[np.float64]):
        self.slices, self.low, self.high, self.share = slices, low, high, share

    @classmethod
    def of(cls, batch: range, depth: int, slice_spacing_mm: float, offsets_mm: tuple[float, ...]) -> "Planes":
        """Place the planes of a batch as `medseg.data.context.context_planes` does."""
        steps = [round(offset / slice_spacing_mm, 6) for offset in offsets_mm]
        position: NDArray[np.float64] = np.clip(np.add.outer(np.array(batch, np.float64), steps), 0.0, depth - 1.0)
        low = position.astype(np.int64)
        share: NDArray[np.float64] = position - low.astype(np.float64)
        high = np.where(share > 0, low + 1, low)
        slices, places = np.unique(np.stack([low, high]), return_inverse=True)
        places = places.reshape(2, *low.shape)
        return cls(slices.tolist(), places[0], places[1], share)


def make_input(stored: Tensor, need: Planes, plan: InputPlan) -> Tensor:
    """Make [b, C, H, W] float32 windows of [N, s, H, W] stored slices on their device, channels last in memory."""
    device = stored.device
    low, high = _on(device, need.low), _on(device, need.high)
    share = _on(device, need.share.astype(np.float32))[..., None, None]
    rest = _on(device, (1 - need.share).astype(np.float32))[..., None, None]
    between = bool((need.share > 0).any())
    windows = plan.windows if plan.intensity == "window" else (None,)
    count = len(plan.context_mm)
    height, width = stored.shape[2:]
    padded = [n + (-n % STRIDE if n > STRIDE else 2 * STRIDE - n) for n in (height, width)]
    made = torch.empty((len(low), plan.channels, *padded), device=device, memory_format=torch.channels_last)
    inner = made[..., :height, :width]
    first = 0
    for image in stored:
        values = image.float()
        planes = values[low]
        if between:
            planes = planes * rest + share * values[high]
        for window in windows:
            part = inner[:, first : first + count]
            if window is None:
                part.copy_(planes)
            else:
                part.copy_(((planes - window[0]) * (2 / (window[1] - window[0])) - 1).clamp_(-1, 1))
            first += count
    made[..., :height, width:] = made[..., :height, width - 1 : width]
    made[..., height:, :] = made[..., height - 1 : height, :]
    return made


def _on(device: torch.device, values: NDArray) -> Tensor:
    """Return values on a device; a copy to a GPU is not waited for, as that would be for all that the GPU has to do."""
    here = torch.from_numpy(values)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here
