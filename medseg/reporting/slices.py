"""Which slices of a volume show its objects best."""

from collections.abc import Sequence

import numpy as np

from medseg.values.instances import InstanceSet


def choose_slices(sets: Sequence[InstanceSet], limit: int) -> list[int]:
    """Return up to ``limit`` slices (ascending) that together show the objects best.

    Greedy: the next slice is the one that adds most, where an object counts once for being seen at all and
    once more for the share of its largest cross-section that is shown; ties go to the larger total area,
    then to the lower slice. It ends early when nothing is gained. Without objects: evenly spread slices.
    """
    depth = sets[0].geometry.spatial_shape[0]
    areas = np.zeros((sum(len(s) for s in sets), depth))
    for row, instance in enumerate(i for s in sets for i in s):
        window = instance.window[0]
        areas[row, window] = np.count_nonzero(instance.mask, axis=(1, 2))
    if not len(areas):
        if depth <= limit:
            return list(range(depth))
        return [int(p) for p in np.linspace(0, depth - 1, limit + 2)[1:-1].round()]
    value = areas / areas.max(axis=1, keepdims=True) + (areas > 0)
    shown = np.zeros(len(areas))
    total = areas.sum(axis=0)
    chosen: list[int] = []
    while len(chosen) < limit:
        gain = np.maximum(value - shown[:, None], 0).sum(axis=0)
        best = int(np.lexsort((-np.arange(depth), total, gain.round(9)))[-1])
        if gain[best] < 0.1:
            break
        chosen.append(best)
        shown = np.maximum(shown, value[:, best])
    return sorted(chosen)
