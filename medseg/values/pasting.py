"""Masks between box and slice coordinates, exact to a fraction of a pixel.

A mask in box coordinates is an [M, M] map of probabilities: cell (i, j) covers an M-th of the box each
way, its value sits at the cell's centre. Pasting samples it (bilinear) at the centres of the pixels whose
centre lies in the box; nothing is rounded to integer boxes, which is where torchvision's
`paste_masks_in_image` loses up to half a pixel. The way in, slice to box, is
`medseg.models.roi.mask_targets`.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from medseg.values.ragged import blocks, spans

#: Weights of boxes that are worked out in one go; bounds the memory.
WEIGHTS_PER_CALL = 1 << 20


def axis_weights(
    start: NDArray[np.float64], stop: NDArray[np.float64], cells: int, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return where boxes cover pixels along one axis, and the interpolation weights there.

    Args:
        start, stop: [N] box edges in pixels.
        cells: mask cells M along the axis.
        limit: pixels of the slice along the axis; pixels outside are left out.

    Returns:
        [N] first covered pixel, [N] covered pixels, and [sum of them, cells] weights, box after box.

    A pixel is covered when its centre lies in [start, stop). Beyond the outermost cell centres the
    outermost value is held, as the target of a cell at the box edge is an average up to that edge.
    """
    first, last = (np.clip(np.ceil(edge - 0.5), 0, limit).astype(np.int64) for edge in (start, stop))  # last: exclusive
    count = np.maximum(last - first, 0)
    with np.errstate(divide="ignore"):  # a box of no width covers nothing
        scale = cells / (stop - start)
    box, pixel = spans(first, count)
    position = (pixel + (0.5 - start)[box]) * scale[box] - 0.5
    position = np.minimum(np.maximum(position, 0), cells - 1)
    # Linear between two cells is a triangle around each.
    weights = np.subtract.outer(position, np.arange(cells))
    np.abs(weights, out=weights)
    np.subtract(1, weights, out=weights)
    return first, count, np.maximum(weights, 0, out=weights).astype(np.float32)


def paste_masks(
    masks: NDArray[np.float32], boxes: NDArray[np.float32], shape: tuple[int, int]
) -> Iterator[tuple[NDArray[np.float32], int, int]]:
    """Paste masks, each only into the pixels that its box covers.

    Args:
        masks: [N, M, M] probabilities in box coordinates.
        boxes: [N, 4] x1 y1 x2 y2 in pixels of the slice.
        shape: (rows, columns) of the slice.

    Yields:
        Of each mask the probabilities [h, w] float32 of the covered pixels (h or w may be 0), first row, first column.
    """
    inside = np.clip(boxes.astype(np.float64), 0, [shape[1], shape[0]] * 2)
    sides = np.maximum(inside[:, 2:] - inside[:, :2], 0).sum(axis=1).astype(np.int64) + 2
    for block in blocks(sides * masks.shape[1], WEIGHTS_PER_CALL):
        x1, y1, x2, y2 = boxes[block].astype(np.float64).T
        rows, heights, row_weights = axis_weights(y1, y2, masks.shape[1], shape[0])
        columns, widths, column_weights = axis_weights(x1, x2, masks.shape[2], shape[1])
        down, across = np.cumsum(heights).tolist(), np.cumsum(widths).tolist()
        sizes = zip(heights.tolist(), down, widths.tolist(), across, strict=True)
        for mask, row, column, (h, i, w, j) in zip(masks[block], rows.tolist(), columns.tolist(), sizes, strict=True):
            pasted = row_weights[i - h : i] @ mask @ column_weights[j - w : j].T
            yield pasted.astype(np.float32, copy=False), row, column


def paste_mask(
    mask: NDArray[np.float32], box: NDArray[np.float32], shape: tuple[int, int]
) -> tuple[NDArray[np.float32], int, int]:
    """Paste one mask, see `paste_masks`.

    Args:
        mask: [M, M] probabilities in box coordinates.
        box: [4] x1 y1 x2 y2 in pixels of the slice.
        shape: (rows, columns) of the slice.
    """
    return next(paste_masks(mask[None], box[None], shape))


#: Samples per cell and direction when masks are cut, as `medseg.models.roi.mask_targets` takes them.
CUT_SAMPLES = 4


def cut_mask(mask: NDArray[np.bool_], box: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    """Cut a mask out of a slice: the share of each cell that the object covers, the way back of `paste_mask`.

    The twin without torch of `medseg.models.roi.mask_targets` for one box: bilinear samples, aligned (ROI Align, He et
    al. 2017), averaged over each cell.

    Args:
        mask: [H, W] of the slice.
        box: [4] x1 y1 x2 y2 in pixels.
        size: M.

    Returns:
        [M, M] float32 in 0..1.
    """
    x1, y1, x2, y2 = (float(v) for v in box)
    rows, columns = _cut_weights(y1, y2, size, mask.shape[0]), _cut_weights(x1, x2, size, mask.shape[1])
    return np.asarray(rows @ mask.astype(np.float32) @ columns.T, np.float32)


def _cut_weights(start: float, stop: float, cells: int, pixels: int) -> NDArray[np.float32]:
    """Return the [cells, pixels] weights of the average of `CUT_SAMPLES` linear samples in each cell of a line."""
    step = (stop - start) / (cells * CUT_SAMPLES)
    position = start - 0.5 + (np.arange(cells * CUT_SAMPLES) + 0.5) * step
    inside = (position >= -1) & (position <= pixels)  # further than a pixel from the outermost centres there is nothing
    held = np.clip(position, 0, pixels - 1)
    weights = np.maximum(1 - np.abs(held[:, None] - np.arange(pixels)), 0) * inside[:, None]
    return weights.reshape(cells, CUT_SAMPLES, pixels).mean(axis=1).astype(np.float32)
