"""What the network found, on its way back: a few transfers per batch, none of which is waited for at once."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.models.heads import Result
from medseg.values.detections import Detections


def fetch(results: Sequence[Result], indices: Sequence[int], ids: NDArray[np.int64]) -> Iterator[Detections]:
    """Start to bring the results of a batch to the CPU; what is returned waits for them and gives them out.

    Args:
        results: of each slice.
        indices: of the slices.
        ids: label id of each class, 0 first.
    """
    counts = [len(result.scores) for result in results]
    parts = [_send(torch.cat(part)) for part in zip(*results, strict=True)]
    arrived = None
    if parts[0].is_pinned():
        arrived = torch.cuda.Event()
        arrived.record()
    return _give(parts, counts, indices, ids, arrived)


def _send(there: Tensor) -> Tensor:
    if there.device.type != "cuda":
        return there
    return torch.empty_like(there, device="cpu", pin_memory=True).copy_(there, non_blocking=True)


def _give(
    parts: Sequence[Tensor],
    counts: Sequence[int],
    indices: Sequence[int],
    ids: NDArray[np.int64],
    arrived: torch.cuda.Event | None,
) -> Iterator[Detections]:
    if arrived is not None:
        arrived.synchronize()
    boxes, scores, classes, masks = (part.numpy() for part in parts)
    first = 0
    for index, count in zip(indices, counts, strict=True):
        own = slice(first, first + count)
        first += count
        yield Detections(
            slice_index=index,
            boxes=boxes[own].copy(),  # out of pinned memory, of which there is little
            scores=scores[own].copy(),
            labels=ids[classes[own]],
            masks=masks[own].copy(),
        )
