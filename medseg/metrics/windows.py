"""Objects as bool arrays in a common window, just large enough for them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.values.instances import Instance


def in_common_window(*groups: Sequence[Instance], shape: tuple[int, ...], margin: int) -> tuple[NDArray[np.bool_], ...]:
    """Return the union of each group of objects, all on one canvas.

    Args:
        groups: objects on one grid; groups may be empty, but not all of them.
        shape: (slices, rows, columns) of the grid.
        margin: voxels to keep around the objects where the grid goes on.
    """
    everything = [instance for group in groups for instance in group]
    low = np.maximum(np.min([i.offset for i in everything], axis=0) - margin, 0)
    high = np.minimum(np.max([np.add(i.offset, i.mask.shape) for i in everything], axis=0) + margin, shape)
    canvases = []
    for group in groups:
        canvas = np.zeros(high - low, np.bool_)
        for instance in group:
            start = np.subtract(instance.offset, low)
            canvas[tuple(slice(s, s + n) for s, n in zip(start, instance.mask.shape, strict=True))] |= instance.mask
        canvases.append(canvas)
    return tuple(canvases)
