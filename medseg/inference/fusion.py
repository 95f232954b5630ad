"""Detections of several passes over a slice become one set: weighted box fusion, with masks.

Solovyev, Wang, Gabruseva 2021, "Weighted boxes fusion: ensembling boxes from different object detection models"
(arXiv 1910.13302). Non-maximum suppression would keep the best box and forget the others; here all that show one object
have a say in where it is. The authors fuse boxes only; the masks are ours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.values.detections import Detections
from medseg.values.pasting import paste_masks

#: Boxes of different passes with more than this IoU show one object (the value of the paper).
FUSION_IOU = 0.55


class _Cluster:
    """Detections of different passes that show one object."""

    def __init__(self) -> None:
        self.members: list[tuple[int, int]] = []  # pass, position in it
        self.weighted = np.zeros(4)  # sum of score x box
        self.scores = 0.0

    def add(self, member: tuple[int, int], box: NDArray[np.float64], score: float) -> None:
        self.members.append(member)
        self.weighted += score * box
        self.scores += score

    @property
    def box(self) -> NDArray[np.float64]:
        return self.weighted / self.scores


class _Fused(NamedTuple):
    label: int
    cluster: _Cluster
    score: float


def fuse(
    passes: Sequence[Detections], *, score_threshold: float, limit: int, fusion_iou: float = FUSION_IOU
) -> Detections:
    """Fuse what several passes found in one slice, class by class.

    Detections are taken by descending score. Each joins the object whose fused box it overlaps most, if by more than
    ``fusion_iou``, or starts a new one. A fused box is the mean of its members' boxes weighted by their scores; a
    fused mask the mean, with the same weights, of their masks, each pasted from its own box into the fused one (0 where
    its box does not reach). A fused score is the sum of the members' scores over the number of all passes: their mean,
    times the share of passes that saw the object.

    Unlike the authors' code, an object takes at most one detection of each pass: two of one pass that overlap so much
    have survived non-maximum suppression, and whether they are one is for linking to judge. So one pass alone, or
    several that found the same, come out as they went in, to the bit. The order of the passes changes nothing.

    Args:
        passes: at least one; boxes in the same pixels, the same slice. Mask sizes may differ.
        score_threshold: what does not score more than this is left out, as in a single pass.
        limit: at most so many detections are kept.
        fusion_iou: in 0..1.

    Returns:
        Best first; masks of the largest size among the passes.

    Raises:
        ValueError: passes of different slices, or none.
    """
    if len({found.slice_index for found in passes}) != 1:
        raise ValueError(f"slices {[found.slice_index for found in passes]}: expected passes over one slice")
    if len(passes) == 1:
        return passes[0]
    # An order that only depends on what was found: sums, and ties of scores, then come out the same.
    ordered = sorted(passes, key=_content)
    size = max(found.masks.shape[1] for found in ordered)
    index = ordered[0].slice_index
    chosen: list[_Fused] = []
    for label in sorted({int(label) for found in ordered for label in found.labels}):
        for cluster in _clusters(ordered, label, fusion_iou):
            score = float(np.float32(cluster.scores / len(ordered)))
            if score > score_threshold:
                chosen.append(_Fused(label, cluster, score))
    if not chosen:
        return Detections.empty(index, size)
    chosen = sorted(chosen, key=lambda fused: -fused.score)[:limit]
    boxes = np.array([fused.cluster.box for fused in chosen]).astype(np.float32)
    return Detections(
        slice_index=index,
        boxes=boxes,
        scores=np.array([fused.score for fused in chosen], np.float32),
        labels=np.array([fused.label for fused in chosen], np.int64),
        masks=_fused_masks(ordered, [fused.cluster for fused in chosen], boxes, size),
    )


def _content(found: Detections) -> tuple[bytes, ...]:
    return tuple(array.tobytes() for array in (found.scores, found.labels, found.boxes, found.masks))


def _clusters(passes: Sequence[Detections], label: int, fusion_iou: float) -> list[_Cluster]:
    """Return the objects of one class in a slice."""
    members = [
        (p, int(i))
        for p, found in enumerate(passes)
        for i in np.flatnonzero((found.labels == label) & (found.scores > 0))
    ]
    members.sort(key=lambda m: (-passes[m[0]].scores[m[1]], passes[m[0]].boxes[m[1]].tobytes(), m))
    clusters: list[_Cluster] = []
    fused = np.zeros((len(members), 4))  # boxes of the clusters so far
    saw = np.zeros((len(passes), len(members)), bool)  # which passes have a detection in them
    for number, position in members:
        box = passes[number].boxes[position].astype(np.float64)
        overlap = np.where(saw[number], 0, _iou(fused, box))
        best = int(overlap.argmax())
        if overlap[best] <= fusion_iou:
            best = len(clusters)
            clusters.append(_Cluster())
        clusters[best].add((number, position), box, float(passes[number].scores[position]))
        fused[best] = clusters[best].box
        saw[number, best] = True
    return clusters


def _iou(boxes: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [K] of each of [K, 4] boxes with one; 0 where neither has an area."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = np.maximum(sides, 0).prod(axis=1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - shared
    return shared / np.maximum(union, np.finfo(np.float64).tiny)


def _fused_masks(
    passes: Sequence[Detections], clusters: Sequence[_Cluster], boxes: NDArray[np.float32], size: int
) -> NDArray[np.float32]:
    """Return [K, size, size]: the members' masks pasted into the fused boxes, weighted by score."""
    total = np.zeros((len(clusters), size, size))
    windows = boxes.astype(np.float64)
    for number, found in enumerate(passes):
        owned = [(k, i) for k, cluster in enumerate(clusters) for seen, i in cluster.members if seen == number]
        if not owned:
            continue
        into, index = (np.array(column) for column in zip(*owned, strict=True))
        # The fused box as a slice of size x size pixels: what lies where in it.
        origin, extent = windows[into, :2], windows[into, 2:] - windows[into, :2]
        corners = found.boxes[index].astype(np.float64).reshape(-1, 2, 2)
        placed = ((corners - origin[:, None]) / extent[:, None] * size).reshape(-1, 4).astype(np.float32)
        pasted = paste_masks(found.masks[index], placed, (size, size))
        for k, i, (mask, row, column) in zip(into.tolist(), index.tolist(), pasted, strict=True):
            h, w = mask.shape
            total[k, row : row + h, column : column + w] += found.scores[i].astype(np.float64) * mask
    return (total / np.array([cluster.scores for cluster in clusters])[:, None, None]).astype(np.float32)
