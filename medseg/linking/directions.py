"""Objects that models of several directions found, each linked along its own slices, become one set.

A network that sees axial slices and one that sees coronal slices err in different places: each is least sure where an
object ends along its own slice axis, which lies in the plane of the other. Their probabilities are averaged voxel by
voxel (as Roth et al. 2014, arXiv 1406.2639, "A new 2.5D representation for lymph node detection", average views), but
object by object, so that neighbours of one class stay apart. It is the fusion of boxes of a slice
(`medseg.inference.fusion`; Solovyev et al. 2021, arXiv 1910.13302) carried over to volumes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import NDArray

from medseg.labels import LabelTable
from medseg.linking.scores import calibrated
from medseg.values.detections import Detections
from medseg.values.geometry import AxisMap, spacing_of
from medseg.values.instances import Instance, InstanceSet, crop_to_object
from medseg.values.linking_plan import LinkingPlan
from medseg.values.pasting import paste_masks

#: Objects of different directions whose masks have more than this IoU are one. Less than in a slice: two outlines of a
#: small object that are half a voxel apart all around have little more.
SAME_OBJECT_IOU = 0.3
#: Scores come as float32; one that was 0.3 there still reaches a threshold of 0.3.
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class SoftObject:
    """An object with its probabilities.

    Attributes:
        instance: its id in the set that it comes from.
        label: label id.
        score: 0..1.
        chance: [d, h, w] float32 in 0..1, a window of the volume; 0 outside.
        offset: (slice, row, column) of the window's first voxel.
    """

    instance: int
    label: int
    score: float
    chance: NDArray[np.float32]
    offset: tuple[int, int, int]

    def moved(self, axis_map: AxisMap, shape: tuple[int, ...]) -> "SoftObject":
        """Return the same object, array axes of a volume of ``shape`` in another order."""
        chance = np.ascontiguousarray(axis_map.array(self.chance))
        return replace(self, chance=chance, offset=axis_map.offset(self.offset, self.chance.shape, shape))

    @property
    def bounds(self) -> NDArray[np.int64]:
        """[2, 3] first and last + 1 indices of the window."""
        first = np.array(self.offset)
        return np.stack([first, first + self.chance.shape])


def linking_of_each(config: LinkingPlan) -> LinkingPlan:
    """Return how each direction is linked before its objects meet those of the others.

    What is dropped for its volume, and what a score means, is decided once they have met. Nothing is smoothed along the
    slices: the directions smooth each other.
    """
    return config.model_copy(update={"min_volume_ml": {}, "calibration": (), "smooth_mm": 0.0})


def soften(found: InstanceSet, detections: Sequence[Detections], mask_threshold: float) -> list[SoftObject]:
    """Return the objects of one direction with the probabilities of the detections that they were linked from.

    Those are the detections whose mask the object holds, but for what another object of the label has of it. Several in
    a slice give the highest probability. A slice that was filled in has none: it counts as 0 and 1.

    Args:
        found: what the detections were linked to.
        detections: in the pixels of ``found.geometry``.
        mask_threshold: as in linking.
    """
    rows, columns = found.geometry.spatial_shape[1:]
    parts: dict[int, list[_Part]] = {}
    for part in detections:
        for label, (chance, row, column) in zip(
            part.labels.tolist(), paste_masks(part.masks, part.boxes, (rows, columns)), strict=True
        ):
            if chance.size:
                parts.setdefault(part.slice_index, []).append(_Part(int(label), chance, row, column))
    return [_soften(instance, found, parts, mask_threshold) for instance in found]


@dataclass(frozen=True)
class _Part:
    """Probabilities [h, w] of a detection, pasted at (row, column)."""

    label: int
    chance: NDArray[np.float32]
    row: int
    column: int

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.chance.shape
        return slice(self.row, self.row + height), slice(self.column, self.column + width)


def _soften(instance: Instance, found: InstanceSet, parts: dict[int, list[_Part]], mask_threshold: float) -> SoftObject:
    depth, rows, columns = found.geometry.spatial_shape
    z0, z1 = instance.offset[0], instance.offset[0] + instance.mask.shape[0]
    others = [o for o in found if o.label == instance.label and o.id != instance.id]
    full = np.zeros((z1 - z0, rows, columns), np.float32)
    for z in range(z0, z1):
        own = _union([instance], z, (rows, columns))
        taken = _union(others, z, (rows, columns)) & ~own
        mine = []
        for part in parts.get(z, ()):
            hit = part.chance >= mask_threshold
            held = hit & own[part.window]
            if part.label == instance.label and held.any() and not (hit & ~held & ~taken[part.window]).any():
                mine.append(part)
        plane = full[z - z0]
        if not mine:
            plane[:] = own
        for part in mine:
            view = plane[part.window]
            np.maximum(view, part.chance, out=view)
        plane[taken] = 0
    kept = crop_to_object(full > 0)
    assert kept is not None  # an instance has a voxel, and each is covered by what it was made from
    window = tuple(slice(o, o + n) for o, n in zip(kept[1], kept[0].shape, strict=True))
    return SoftObject(
        instance=instance.id,
        label=instance.label,
        score=instance.score,
        chance=full[window].copy(),
        offset=(z0 + kept[1][0], kept[1][1], kept[1][2]),
    )


def _union(instances: Sequence[Instance], z: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels of a slice that any of some objects has."""
    plane = np.zeros(shape, np.bool_)
    for instance in instances:
        mask = instance.slice_mask(z)
        if mask is not None:
            plane[instance.window[1:]] |= mask
    return plane


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement:
    """What several directions found together.

    Attributes:
        instances: the objects.
        members: of each object, instance ids by direction (position in what was given).
    """

    instances: InstanceSet
    members: tuple[dict[int, int], ...]


def agree(
    directions: Sequence[Sequence[SoftObject]], geometry: VolumeGeometry, labels: LabelTable, config: LinkingPlan
) -> Agreement:
    """Fuse the objects of several directions.

    By descending score, each object joins those of its label of which its mask overlaps the mean most, if by an IoU of
    more than `SAME_OBJECT_IOU` and none of its own direction is among them, or starts a new one. The probability of a
    voxel is the mean over the members, weighted by their scores; the score is the sum of theirs over the number of
    directions, so what one of two sees with 0.8 scores 0.4. Objects below ``config.min_score`` and
    ``config.min_volume_ml`` are dropped, of a label of kind `single` all but the best. A voxel that several objects of
    one label claim goes to the one that is more probable there; equal ones to the one with the higher score.

    Args:
        directions: the objects of each, all in the voxels of ``geometry``.
        geometry: the grid.
        labels: the label table.
        config: thresholds, those of masks, scores, volumes, and the calibration.
    """
    clusters: list[dict[int, SoftObject]] = []
    order = sorted(
        ((d, obj) for d, objects in enumerate(directions) for obj in objects),
        key=lambda entry: (-entry[1].score, entry[1].label, entry[1].offset, entry[0]),
    )
    for direction, obj in order:
        near = [c for c in clusters if direction not in c and next(iter(c.values())).label == obj.label]
        overlaps = [_iou(_mean(c), obj, config.mask_threshold) for c in near]
        if overlaps and max(overlaps) > SAME_OBJECT_IOU:
            near[int(np.argmax(overlaps))][direction] = obj
        else:
            clusters.append({direction: obj})

    fused = [(sum(o.score for o in c.values()) / len(directions), c) for c in clusters]
    fused = [entry for entry in fused if entry[0] >= config.min_score - _ROUNDING]
    fused.sort(key=lambda entry: -entry[0])
    alone = {label.id for label in labels if label.kind == "single"}
    taken: set[int] = set()
    chosen: list[tuple[SoftObject, dict[int, int]]] = []
    for score, cluster in fused:
        mean = _mean(cluster)
        if mean.label in alone & taken:
            continue
        taken.add(mean.label)
        chosen.append((replace(mean, score=min(1.0, score)), {d: o.instance for d, o in cluster.items()}))
    objects = [obj for obj, _ in chosen]
    found = []
    for obj, mask, (_, members) in zip(objects, _settled(objects, config.mask_threshold), chosen, strict=True):
        crop = crop_to_object(mask)
        if crop is None:
            continue
        volume_ml = np.count_nonzero(crop[0]) * float(np.prod(spacing_of(geometry))) / 1000
        if volume_ml < config.min_volume_ml.get(obj.label, 0.0):
            continue
        offset = tuple(a + b for a, b in zip(obj.offset, crop[1], strict=True))
        probability = calibrated(obj.score, config.calibration)
        instance = Instance(id=1, label=obj.label, mask=crop[0], offset=offset, score=probability)  # type: ignore[arg-type]
        found.append(((obj.label, offset), instance, members))
    found.sort(key=lambda entry: entry[0])
    return Agreement(
        instances=InstanceSet.build((instance for _, instance, _ in found), geometry, labels),
        members=tuple(members for *_, members in found),
    )


def _mean(cluster: dict[int, SoftObject]) -> SoftObject:
    """Return the mean of objects, weighted by their scores, on the window that holds them all."""
    members = [cluster[direction] for direction in sorted(cluster)]
    if len(members) == 1:
        return members[0]
    bounds = np.stack([member.bounds for member in members])
    low, high = bounds[:, 0].min(axis=0), bounds[:, 1].max(axis=0)
    total = np.zeros(high - low)
    weight = 0.0
    for member in members:
        share = max(member.score, _ROUNDING)
        window = tuple(slice(a, b) for a, b in (member.bounds - low).T.tolist())
        total[window] += share * member.chance
        weight += share
    chance = (total / weight).astype(np.float32)
    return replace(members[0], chance=chance, offset=(int(low[0]), int(low[1]), int(low[2])))


def _iou(a: SoftObject, b: SoftObject, threshold: float) -> float:
    shared = sum(int(np.count_nonzero((u >= threshold) & (v >= threshold))) for u, v in _common(a, b))
    if not shared:  # most objects are nowhere near each other
        return 0.0
    return shared / (sum(int(np.count_nonzero(obj.chance >= threshold)) for obj in (a, b)) - shared)


def _common(a: SoftObject, b: SoftObject) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Give the probabilities (views) of two objects in the window that both have, if there is one."""
    low, high = _shared_window(a, b)
    if (high > low).all():
        yield a.chance[_cut(a, low, high)], b.chance[_cut(b, low, high)]


def _shared_window(a: SoftObject, b: SoftObject) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.maximum(a.bounds[0], b.bounds[0]), np.minimum(a.bounds[1], b.bounds[1])


def _cut(obj: SoftObject, low: NDArray[np.int64], high: NDArray[np.int64]) -> tuple[slice, ...]:
    """Return where the voxels from ``low`` to before ``high`` lie in the window of an object."""
    return tuple(slice(a, b) for a, b in zip((low - obj.offset).tolist(), (high - obj.offset).tolist(), strict=True))


def _settled(objects: Sequence[SoftObject], threshold: float) -> list[NDArray[np.bool_]]:
    """Return the masks of objects, by descending score, no voxel in two of one label."""
    masks = [obj.chance >= threshold for obj in objects]
    for i, first in enumerate(objects):
        for j, second in enumerate(objects[i + 1 :], start=i + 1):
            if first.label != second.label:
                continue
            for a, b in _common(first, second):
                window = _shared_window(first, second)
                own, other = masks[i][_cut(first, *window)], masks[j][_cut(second, *window)]
                both = own & other
                own &= ~(both & (b > a))
                other &= ~(both & (b <= a))
    return masks
