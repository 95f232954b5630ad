"""The forms in which ways of finding objects give their results, and how good a result is.

A semantic network gives one label per voxel, or a mask per label; objects are their connected components, or what a
watershed makes of them. Detectors give masks in boxes slice by slice, which the linker joins. Put the truth itself
into a form and take it out again, and what is lost is the form's, whatever the network.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from medseg.linking import link
from medseg.metrics.detection import pooled
from medseg.metrics.evaluation import evaluate_case
from medseg.values.detections import Detections
from medseg.values.geometry import spacing_of
from medseg.values.instances import Instance, InstanceSet
from medseg.values.linking_plan import LinkingPlan
from medseg.values.pasting import cut_mask

#: Components of fewer voxels are noise.
LEAST_VOXELS = 10
#: IoU at which objects match, side of masks in boxes, tolerance of NSD.
IOU, MASK_SIZE, TOLERANCE_MM = 0.5, 28, 2.0
#: How deep, in mm, the waist between two objects has to be for the watershed to cut there; tried on the training truth.
DEPTHS_MM = (0.5, 1.0, 2.0, 3.0, 5.0)
Masks = Mapping[int, NDArray[np.bool_]]


def masks_of(truth: InstanceSet) -> Masks:
    """Return the mask of every label."""
    return {label: truth.semantic(label) for label in truth.labels.ids}


def one_label_each(masks: Masks) -> Masks:
    """Return masks of which each voxel is in one at most: in the smallest of those that claim it."""
    free = np.ones(next(iter(masks.values())).shape, np.bool_)
    kept = {}
    for label in sorted(masks, key=lambda label: int(masks[label].sum())):
        kept[label] = masks[label] & free
        free &= ~masks[label]
    return {label: kept[label] for label in masks}


def components(masks: Masks, like: InstanceSet, depth_mm: float | None = None) -> InstanceSet:
    """Return the objects in masks of labels: components, cut at waists where a depth is given."""
    found: list[Instance] = []
    for label, mask in masks.items():
        if like.labels[label].kind == "single":
            parts = mask.astype(np.int32)
        else:
            parts = cc3d.connected_components(mask, connectivity=26) if depth_mm is None else _cut(mask, like, depth_mm)
        for number, window in enumerate(ndimage.find_objects(parts), 1):
            if window is None:
                continue
            part = parts[window] == number
            if np.count_nonzero(part) >= LEAST_VOXELS:
                offset = (window[0].start, window[1].start, window[2].start)
                found.append(Instance(id=1, label=label, mask=part, offset=offset))
    return InstanceSet.build(found, like.geometry, like.labels)


def _cut(mask: NDArray[np.bool_], like: InstanceSet, depth_mm: float) -> NDArray[np.int32]:
    """Return [Z, Y, X] the basin of each voxel, of the distance from the outside, component by component."""
    whole, basins = cc3d.connected_components(mask, connectivity=26), np.zeros(mask.shape, np.int32)
    for number, window in enumerate(ndimage.find_objects(whole.astype(np.int32)), 1):
        part = whole[window] == number
        inside = ndimage.distance_transform_edt(np.pad(part, 1), sampling=spacing_of(like.geometry))[1:-1, 1:-1, 1:-1]
        seeds = cc3d.connected_components(h_maxima(inside, depth_mm), connectivity=26)
        found = watershed(-inside, seeds.astype(np.int32), mask=part)
        basins[window][part] = found[part] + basins.max()
    return basins


def best_depth(truths: Sequence[InstanceSet]) -> float:
    """Return the depth whose watershed of the true masks gives the most objects back."""

    def right(depth: float) -> float:
        return measure([(t, components(masks_of(t), t, depth)) for t in truths]).f1

    return max(DEPTHS_MM, key=right)


def in_boxes(truth: InstanceSet) -> list[Detections]:
    """Return the cross-sections of objects as a detector without fault would give them."""
    found = []
    for z in range(truth.geometry.spatial_shape[0]):
        rows = []
        for instance in truth:
            mask = instance.slice_mask(z)
            if mask is None or not mask.any():
                continue
            down, across = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = np.array([across[0], down[0], across[-1] + 1, down[-1] + 1], np.float64)
            rows.append((box + np.tile(instance.offset[:0:-1], 2), instance.label, cut_mask(mask, box, MASK_SIZE)))
        found.append(detections(z, rows, [1.0] * len(rows)))
    return found


def detections(
    index: int, rows: Sequence[tuple[NDArray, int, NDArray[np.float32]]], scores: Sequence[float]
) -> Detections:
    """Return the detections of a slice from (box, label, mask in the box)."""
    return Detections(
        slice_index=index,
        boxes=np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        scores=np.array(scores, np.float32),
        labels=np.array([row[1] for row in rows], np.int64),
        masks=np.array([row[2] for row in rows], np.float32).reshape(-1, MASK_SIZE, MASK_SIZE),
    )


def linked(found: Sequence[Detections], like: InstanceSet) -> InstanceSet:
    """Return the objects that medseg's linker makes of detections."""
    return link(found, like.geometry, like.labels, LinkingPlan())


def forms(depth_mm: float) -> dict[str, Callable[[InstanceSet], InstanceSet]]:
    """Return what each form gives back of a truth."""
    return {
        "one label per voxel, components": lambda t: components(one_label_each(masks_of(t)), t),
        "a mask per label, components": lambda t: components(masks_of(t), t),
        "a mask per label, watershed": lambda t: components(masks_of(t), t, depth_mm),
        "masks in boxes, linked": lambda t: linked(in_boxes(t), t),
    }


@dataclass(frozen=True, kw_only=True)
class Score:
    """A result over some cases; NaN where undefined.

    Attributes:
        overlap_kept: of the voxels that several objects share, the part that as many predicted objects of each label
            hold.
        f1, splits, merges: objects of labels that can have several, matched at `IOU`, and in parts or joined.
        pairs, separated: those that touch, and of how many both were found, each on its own.
        nsd: of the labels' outlines within `TOLERANCE_MM`, mean over labels and cases.
    """

    overlap_kept: float
    f1: float
    splits: int
    merges: int
    pairs: int
    separated: int
    nsd: float

    def plain(self) -> dict[str, Any]:
        """Return plain data, None where undefined."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            k: None if isinstance(v, float) and math.isnan(v) else round(v, 4) if isinstance(v, float) else v
            for k, v in values.items()
        }


def measure(results: Sequence[tuple[InstanceSet, InstanceSet]]) -> Score:
    """Compare (truth, found) of some cases."""
    shared = kept = pairs = separated = 0
    counts, surfaces = [], []
    for truth, found in results:
        case = evaluate_case(truth, found, iou_threshold=IOU, surface="subvoxel", tolerances_mm=(TOLERANCE_MM,))
        several = [c for c in case.classes if truth.labels.by_name(c.name).kind != "single"]
        counts += [c.objects for c in several]
        surfaces += [c.surface[f"nsd_{TOLERANCE_MM:g}mm"] for c in case.classes]
        matched = {row.reference_id for row in case.objects if row.status == "matched"}
        touching = touching_pairs(truth)
        pairs += len(touching)
        separated += sum(a in matched and b in matched for a, b in touching)
        of_case = overlap_kept(truth, found)
        shared, kept = shared + of_case[0], kept + of_case[1]
    score, defined = pooled(counts), [s for s in surfaces if not math.isnan(s)]
    return Score(
        overlap_kept=kept / shared if shared else math.nan,
        f1=score.f1, splits=score.splits, merges=score.merges, pairs=pairs, separated=separated,
        nsd=float(np.mean(defined)) if defined else math.nan,
    )  # fmt: skip


def overlap_kept(truth: InstanceSet, found: InstanceSet) -> tuple[int, int]:
    """Return how many voxels several objects share, and in how many as many are found of each label."""
    shape = truth.geometry.spatial_shape
    several, right = np.zeros(shape, np.int32), np.ones(shape, np.bool_)
    for label in truth.labels.ids:
        count = [np.zeros(shape, np.int32) for _ in range(2)]
        for side, instances in enumerate((truth, found)):
            for instance in instances:
                if instance.label == label:
                    count[side][instance.window] += instance.mask
        several += count[0]
        right &= count[1] >= count[0]
    return int((several > 1).sum()), int(((several > 1) & right).sum())


def touching_pairs(truth: InstanceSet) -> list[tuple[int, int]]:
    """Return the ids of objects of one label, of which there can be several, that share a face."""
    owners: dict[int, NDArray[np.int32]] = {}
    for instance in truth:
        if truth.labels[instance.label].kind != "single":
            owner = owners.setdefault(instance.label, np.zeros(truth.geometry.spatial_shape, np.int32))
            owner[instance.window][instance.mask] = instance.id
    pairs: set[tuple[int, int]] = set()
    for owner in owners.values():
        for axis in range(3):
            a, b = (np.moveaxis(owner, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
            border = (a != b) & (a > 0) & (b > 0)
            pairs |= {(min(p), max(p)) for p in zip(a[border].tolist(), b[border].tolist(), strict=True)}
    return sorted(pairs)
