"""Which objects share voxels: layers that hold them all without overlap."""

import numpy as np

from medseg.values.instances import Instance, InstanceSet


def assign_layers(instances: InstanceSet) -> dict[int, int]:
    """Return a layer (0, 1 ...) per instance id so that no two objects of a layer share a voxel."""
    low = np.array([i.offset for i in instances], np.intp).reshape(-1, 3)
    high = low + np.array([i.mask.shape for i in instances], np.intp).reshape(-1, 3)
    layers: dict[int, int] = {}
    for position, instance in enumerate(instances):
        near = (low[:position] < high[position]).all(axis=1) & (high[:position] > low[position]).all(axis=1)
        others = [instances.instances[p] for p in np.flatnonzero(near)]
        taken = {layers[other.id] for other in others if _overlap(instance, other)}
        layers[instance.id] = next(layer for layer in range(len(taken) + 1) if layer not in taken)
    return layers


def _overlap(a: Instance, b: Instance) -> bool:
    inner = [slice(max(s.start, t.start), min(s.stop, t.stop)) for s, t in zip(a.window, b.window, strict=True)]
    in_a, in_b = (tuple(slice(s.start - o, s.stop - o) for s, o in zip(inner, i.offset, strict=True)) for i in (a, b))
    return bool((a.mask[in_a] & b.mask[in_b]).any())
