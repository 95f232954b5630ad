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
    """Return the network's input [C, H, W] for one slice of a `NetworkGrid` array [N, Z, H, W] (or a crop of it).

    Channels are ordered image by image, window by window within each, planes ascending within those:
    (image 0, window 0, plane 0), (image 0, window 0, plane 1), ..., (image 0, window 1, plane 0), ... A window
    maps low..high to -1..1 and clips.
    """
    count = len(plan.context_mm)
    channels = np.empty((plan.channels, *array.shape[2:]), np.float32)
    parts = iter(channels.reshape(-1, count, *array.shape[2:]))
    for image in array:
        planes = context_planes(image, index, plan.context_mm, slice_spacing_mm)
        if plan.intensity == "zscore":
            next(parts)[:] = planes
            continue
        for low, high in plan.windows:
            part = next(parts)
            np.multiply(planes - low, 2 / (high - low), out=part)
            part -= 1
            np.clip(part, -1, 1, out=part)
    return channels
