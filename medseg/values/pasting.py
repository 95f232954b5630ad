"""Masks between box and slice coordinates, exact to a fraction of a pixel.

A mask in box coordinates is an [M, M] map of probabilities: cell (i, j) covers an M-th of the box each
way, its value sits at the cell's centre. Pasting samples it (bilinear) at the centres of the pixels whose
centre lies in the box; nothing is rounded to integer boxes, which is where torchvision's
`paste_masks_in_image` loses up to half a pixel. The way in, slice to box, is
`medseg.models.roi.mask_targets`.
"""

import numpy as np
from numpy.typing import NDArray


def axis_weights(start: float, stop: float, cells: int, limit: int) -> tuple[int, NDArray[np.float32]]:
    """Return the first covered pixel and the [pixels, cells] interpolation weights along one axis.

    Args:
        start, stop: box edges in pixels.
        cells: mask cells M along the axis.
        limit: pixels of the slice along the axis; pixels outside are left out.

    A pixel is covered when its centre lies in [start, stop). Beyond the outermost cell centres the
    outermost value is held, as the target of a cell at the box edge is an average up to that edge.
    """
    first = max(0, int(np.ceil(start - 0.5)))
    last = min(limit, int(np.ceil(stop - 0.5)))  # exclusive
    if last <= first or not stop > start:
        return first, np.zeros((0, cells), np.float32)
    position = (np.arange(first, last) + (0.5 - start)) * (cells / (stop - start)) - 0.5
    position = np.minimum(np.maximum(position, 0), cells - 1)
    # Linear between two cells is a triangle around each; a few plain operations, as this runs for every detection.
    weights = 1 - np.abs(position[:, None] - np.arange(cells))
    return first, np.maximum(weights, 0).astype(np.float32)


def paste_mask(
    mask: NDArray[np.float32], box: NDArray[np.float32], shape: tuple[int, int]
) -> tuple[NDArray[np.float32], int, int]:
    """Paste one mask, only into the pixels that its box covers.

    Args:
        mask: [M, M] probabilities in box coordinates.
        box: [4] x1 y1 x2 y2 in pixels of the slice.
        shape: (rows, columns) of the slice.

    Returns:
        Probabilities [h, w] float32 of the covered pixels (h or w may be 0), first row, first column.
    """
    x1, y1, x2, y2 = (float(v) for v in box)
    row, row_weights = axis_weights(y1, y2, mask.shape[0], shape[0])
    column, column_weights = axis_weights(x1, x2, mask.shape[1], shape[1])
    return (row_weights @ mask @ column_weights.T).astype(np.float32, copy=False), row, column


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
