"""The Dice that no training can pass: outlines through the network's pixels and masks of M x M, and back.

Truth on the cohort's own pixels -> the plan's pixels -> box and mask target -> pasted on the cohort's pixels, as
preparing, training and predicting do it (`medseg.data.cache`, `medseg.models.roi`, `medseg.values.pasting`).
"""

import numpy as np
from numpy.typing import NDArray

from medseg.values.pasting import cut_mask, paste_mask
from medseg.values.resampling import resample_crop, resampled_size

#: Pixels of background around an outline, beside the mask's margin.
RIM = 3


def mask_ceiling(
    outline: NDArray[np.bool_], pixel_mm: tuple[float, float], target_mm: tuple[float, float], size: int, margin: float
) -> float:
    """Return the Dice of an outline with what comes back of it.

    Args:
        outline: [h, w] cross-section of an object, at least one pixel.
        pixel_mm: its (row, column) pixel.
        target_mm: the network's.
        size: side M of the masks.
        margin: share of the box that masks reach beyond it on every side.
    """
    rim = RIM + int(np.ceil(margin * max(outline.shape)))
    truth = np.pad(outline, rim)
    shape = (
        resampled_size(truth.shape[0], pixel_mm[0], target_mm[0]),
        resampled_size(truth.shape[1], pixel_mm[1], target_mm[1]),
    )
    share, (top, left) = resample_crop(outline, (rim, rim), (truth.shape[0], truth.shape[1]), shape)
    seen = np.zeros(shape, np.bool_)
    seen[top : top + share.shape[0], left : left + share.shape[1]] = share >= 0.5
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    if not len(rows):
        return 0.0
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
    box += margin * np.tile(box[2:] - box[:2], 2) * (-1, -1, 1, 1)
    target = cut_mask(seen, box, size)
    back = box * np.tile([truth.shape[1] / shape[1], truth.shape[0] / shape[0]], 2)
    pasted, row, column = paste_mask(target, back.astype(np.float32), (truth.shape[0], truth.shape[1]))
    found = pasted >= 0.5
    inside = truth[row : row + found.shape[0], column : column + found.shape[1]]
    return 2 * int(np.count_nonzero(found & inside)) / (int(np.count_nonzero(found)) + int(np.count_nonzero(truth)))
