"""Which objects of a case touch or overlap, and how much of each: what makes them hard to tell apart.

Counted on voxel faces: two objects touch where a voxel of one alone shares a face with a voxel of the other alone.
Only the windows are looked at where the boxes of two objects meet.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.values.geometry import spacing_of
from medseg.values.instances import Instance, InstanceSet
from medseg.values.pairs import boxes_of, touching_boxes

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Contacts:
    """Contacts and overlaps between the objects of one case; N objects in the order of their set.

    Attributes:
        pairs: [P, 2] positions of the objects that touch or overlap, the first below the second.
        area_mm2: [P] area of the voxel faces at which the two touch.
        shared: [P] voxels that both have.
        surface_mm2: [N] area of all voxel faces of each object (in cases of one slice: of the faces in the plane).
        own, other: [N] share of that area which touches objects of the same label and of other labels, 0..1.
        overlapped: [N] share of the voxels of each object that some other object has too.
        labelled_voxels: voxels in at least one object.
        shared_voxels: voxels in at least two.
    """

    pairs: NDArray[np.int64]
    area_mm2: NDArray[np.float64]
    shared: NDArray[np.int64]
    surface_mm2: NDArray[np.float64]
    own: NDArray[np.float64]
    other: NDArray[np.float64]
    overlapped: NDArray[np.float64]
    labelled_voxels: int
    shared_voxels: int


def find_contacts(objects: InstanceSet) -> Contacts:
    """Measure the contacts between all objects of a set."""
    faces = face_areas(objects)
    boxes = boxes_of(objects)
    grown = boxes + np.array([[-1], [1]])
    first, second = touching_boxes(grown, boxes)
    candidates = np.stack([first, second], axis=1)[first < second]
    rows = [(int(i), int(j), *_meet(objects.instances[i], objects.instances[j], faces)) for i, j in candidates]
    rows = [row for row in rows if row[2] > 0 or row[3]]
    pairs = np.array([row[:2] for row in rows], np.int64).reshape(-1, 2)
    area = np.array([row[2] for row in rows], np.float64)
    shared = np.array([row[3] for row in rows], np.int64)
    surface = np.array([surface_area(instance.mask, faces) for instance in objects], np.float64)
    labels = np.array([instance.label for instance in objects], np.int64)
    same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
    touched = [np.zeros(len(objects)) for _ in range(2)]
    for kind, chosen in enumerate((same, ~same)):
        for side in range(2):
            np.add.at(touched[kind], pairs[chosen, side], area[chosen])
    overlapped, labelled, twice = _overlaps(objects, pairs[shared > 0])
    return Contacts(
        pairs=pairs,
        area_mm2=area,
        shared=shared,
        surface_mm2=surface,
        own=np.minimum(touched[0] / surface, 1),
        other=np.minimum(touched[1] / surface, 1),
        overlapped=overlapped,
        labelled_voxels=labelled,
        shared_voxels=twice,
    )


def face_areas(objects: InstanceSet) -> tuple[float, float, float]:
    """Return the area in mm2 of a voxel's face across each axis; 0 across the slices where there is only one."""
    z, y, x = spacing_of(objects.geometry)
    return (y * x if objects.geometry.spatial_shape[0] > 1 else 0.0), z * x, z * y


def surface_area(mask: Mask, faces: tuple[float, float, float]) -> float:
    """Return the area in mm2 of the outer faces of a [d, h, w] mask's voxels."""
    padded = np.pad(mask, 1)
    counts = [np.count_nonzero(np.diff(padded, axis=axis)) for axis in range(3)]
    return float(np.dot(counts, faces))


def _meet(a: Instance, b: Instance, faces: tuple[float, float, float]) -> tuple[float, int]:
    """Return the area at which two objects touch and the number of voxels they share."""
    low = np.maximum(a.offset, b.offset) - 1
    high = np.minimum(np.add(a.offset, a.mask.shape), np.add(b.offset, b.mask.shape)) + 1
    one, two = cut_out(a, low, high), cut_out(b, low, high)
    both = one & two
    shared = int(np.count_nonzero(both))
    if shared:
        one, two = one & ~both, two & ~both
    area = 0.0
    for axis, face in enumerate(faces):
        if face:
            before, after = (_along(axis, slice(None, -1)), _along(axis, slice(1, None)))
            touching = np.count_nonzero(one[before] & two[after]) + np.count_nonzero(two[before] & one[after])
            area += face * touching
    return area, shared


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return tuple(part if i == axis else slice(None) for i in range(3))


def cut_out(instance: Instance, low: NDArray[np.int64], high: NDArray[np.int64]) -> Mask:
    """Return an object's voxels in a window ``low``..``high`` (exclusive), which may reach beyond the volume."""
    out = np.zeros(np.maximum(high - low, 0), np.bool_)
    start = np.maximum(low, instance.offset)
    stop = np.minimum(high, np.add(instance.offset, instance.mask.shape))
    if (stop > start).all():
        to = tuple(slice(s, e) for s, e in zip(start - low, stop - low, strict=True))
        of = tuple(slice(s, e) for s, e in zip(start - instance.offset, stop - instance.offset, strict=True))
        out[to] = instance.mask[of]
    return out


def _overlaps(objects: InstanceSet, pairs: NDArray[np.int64]) -> tuple[NDArray[np.float64], int, int]:
    """Return the share of each object that others have too, the voxels in any object, and those in several."""
    partners: dict[int, list[int]] = {}
    for i, j in pairs.tolist():
        partners.setdefault(i, []).append(j)
        partners.setdefault(j, []).append(i)
    share = np.zeros(len(objects))
    labelled = twice = 0
    for i, instance in enumerate(objects):
        if i not in partners:
            labelled += instance.voxels
            continue
        low = np.array(instance.offset)
        before, after = (np.zeros(instance.mask.shape, np.bool_) for _ in range(2))
        for j in partners[i]:
            (before if j < i else after)[...] |= cut_out(objects.instances[j], low, low + instance.mask.shape)
        share[i] = np.count_nonzero(instance.mask & (before | after)) / instance.voxels
        # each voxel is counted once, by the first object that has it
        mine = instance.mask & ~before
        labelled += int(np.count_nonzero(mine))
        twice += int(np.count_nonzero(mine & after))
    return share, labelled, twice
