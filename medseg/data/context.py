"""The 2.5-D input: a slice, its neighbours at exact distances, and intensity windows as channels.

One function for training and inference (`network_input`).
"""

import numpy as np
from numpy.typing import NDArray

from medseg.values.plan import InputPlan


def context_planes(
    array: NDArray, index: int, offsets_mm: tuple[float, ...], slice_spacing_mm: float
) -> NDArray[np.float32]:
    """Return [P, H, W] planes at distances from slice ``index``, linear between slices.

    Args:
        array: [Z, H, W].
        index: the slice.
        offsets_mm: distance of each plane along the first axis.
        slice_spacing_mm: distance of the array's slices.

    Beyond the first and last slice the edge slice is repeated.
    """
    planes = np.empty((len(offsets_mm), *array.shape[1:]), np.float32)
    last = array.shape[0] - 1
    for plane, offset in zip(planes, offsets_mm, strict=True):
        position = min(max(index + round(offset / slice_spacing_mm, 6), 0.0), float(last))
        low = int(position)
        share = position - low
        plane[:] = array[low]
        if share > 0:
            plane *= 1 - share
            plane += share * array[low + 1].astype(np.float32)
    return planes


def network_input(array: NDArray, index: int, slice_spacing_mm: float, plan: InputPlan) -> NDArray[np.float32]:
    """Return the network's input [C, H, W] for one slice of a `NetworkGrid` array (or a crop of it).

    Channels are ordered window by window, planes ascending within each: (window 0, plane 0), (window 0,
    plane 1), ... A window maps low..high to -1..1 and clips.
    """
    planes = context_planes(array, index, plan.context_mm, slice_spacing_mm)
    if plan.intensity == "zscore":
        return planes
    channels = np.empty((plan.channels, *planes.shape[1:]), np.float32)
    for i, (low, high) in enumerate(plan.windows):
        part = channels[i * len(planes) : (i + 1) * len(planes)]
        np.multiply(planes - low, 2 / (high - low), out=part)
        part -= 1
        np.clip(part, -1, 1, out=part)
    return channels
