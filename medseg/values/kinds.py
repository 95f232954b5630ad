"""What a label's voxels are as objects: one, their connected components, or the objects that the source numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import cc3d
import numpy as np
from scipy import ndimage

from medseg.errors import InputError
from medseg.labels import LabelTable
from medseg.values.instances import Instance, InstanceSet


def by_kind(instances: InstanceSet) -> InstanceSet:
    """Return the objects as the kinds of their labels say.

    Objects of a ``single`` label become one; those of a ``components`` label are united and cut into connected
    components (26-neighbourhood), in the order of their first voxels; those of an ``ids`` label stay. Labels keep
    the order in which their first objects come.
    """
    found: list[Instance] = []
    for label in dict.fromkeys(instance.label for instance in instances):
        own = [instance for instance in instances if instance.label == label]
        kind = instances.labels[label].kind
        if kind == "ids" or (kind == "single" and len(own) == 1):
            found += own
            continue
        union = _united(own)
        if kind == "single":
            found.append(union)
            continue
        parts = cc3d.connected_components(union.mask, connectivity=26)
        for part, inner in enumerate(ndimage.find_objects(parts), start=1):
            a, b, c = (o + s.start for o, s in zip(union.offset, inner, strict=True))
            found.append(replace(union, mask=parts[inner] == part, offset=(a, b, c)))
    return InstanceSet.build(found, instances.geometry, instances.labels)


def by_region(instances: InstanceSet, regions: Mapping[int, Sequence[int]], labels: LabelTable) -> InstanceSet:
    """Return the regions of a label map, which may overlap: each the union of the objects of some of its values.

    Args:
        instances: the objects of the map, labelled by its values.
        regions: label id -> values; a value may be in several, and a region without any voxel is no object.
        labels: the label table of the regions.

    Raises:
        InputError: objects of a value that is in no region.
    """
    known = {value for values in regions.values() for value in values}
    nameless = sorted({instance.label for instance in instances} - known)
    if nameless:
        raise InputError(f"values {nameless[:10]} found that are in none of the regions {', '.join(labels.names)}")
    found = []
    for label, values in regions.items():
        own = [instance for instance in instances if instance.label in values]
        if own:
            found.append(replace(_united(own), label=label, source_id=None))
    return InstanceSet.build(found, instances.geometry, labels)


def _united(own: list[Instance]) -> Instance:
    """Return one object with the voxels of all; the source's number where it is one for all."""
    first = np.min([instance.offset for instance in own], axis=0)
    last = np.max([np.add(instance.offset, instance.mask.shape) for instance in own], axis=0)
    mask = np.zeros(last - first, np.bool_)
    for instance in own:
        a, b, c = (slice(o - f, o - f + n) for o, f, n in zip(instance.offset, first, instance.mask.shape, strict=True))
        mask[a, b, c] |= instance.mask
    sources = {instance.source_id for instance in own}
    return replace(
        own[0],
        mask=mask,
        offset=(int(first[0]), int(first[1]), int(first[2])),
        score=min(instance.score for instance in own),
        source_id=sources.pop() if len(sources) == 1 else None,
    )
