"""Detections of all slices as the nodes of one graph, in an order that does not depend on how they came."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import NDArray

from medseg.errors import InputError
from medseg.labels import LabelTable
from medseg.linking.bitmasks import BitMasks
from medseg.values.detections import Detections
from medseg.values.pasting import paste_masks
from medseg.values.ragged import blocks, spans

#: Pairs whose windows are compared in one go; bounds the memory.
PAIRS_PER_CALL = 1 << 18
#: Pixels of masks that are measured in one go; the same.
PIXELS_PER_CALL = 1 << 18


@dataclass(frozen=True, kw_only=True, eq=False)
class Nodes:
    """N detections that cover at least one pixel, sorted by label, slice and content.

    Attributes:
        labels: [N] int64, label ids.
        slices: [N] int64, slice indices.
        scores: [N] float64 in 0..1.
        keys: [N] uint64, a checksum of box, score and mask. It breaks ties, so it must not know the slice:
            a volume that is turned upside down links the same way.
        masks: N bool crops [h, w] of the slice, tight around the object.
        bits: the same crops, packed.
        windows: [N, 4] int64, first row, first column, row end, column end of each crop in its slice.
        areas: [N] int64, pixels.
        centroids: [N, 2] float64, row and column of the centre of mass, in pixel indices.
        boxes: [N, 4] float32, x1 y1 x2 y2 in pixels.
        sources: N tuples of positions in ``detected``: the detection that a node is (or is a part of, or several
            that it unites).
        detected: box and [M, M] float32 probabilities of each detection; kept to paste again where they are needed.
    """

    labels: NDArray[np.int64]
    slices: NDArray[np.int64]
    scores: NDArray[np.float64]
    keys: NDArray[np.uint64]
    masks: tuple[NDArray[np.bool_], ...]
    bits: BitMasks
    windows: NDArray[np.int64]
    areas: NDArray[np.int64]
    centroids: NDArray[np.float64]
    boxes: NDArray[np.float32]
    sources: tuple[tuple[int, ...], ...]
    detected: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: NDArray[np.intp]) -> "Nodes":
        """Return the nodes at these positions, in this order."""
        return Nodes(
            labels=self.labels[index],
            slices=self.slices[index],
            scores=self.scores[index],
            keys=self.keys[index],
            masks=tuple(self.masks[i] for i in index.tolist()),
            bits=self.bits.select(index),
            windows=self.windows[index],
            areas=self.areas[index],
            centroids=self.centroids[index],
            boxes=self.boxes[index],
            sources=tuple(self.sources[i] for i in index.tolist()),
            detected=self.detected,
        )

    def window_overlap(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.int64]:
        """Return [P], how many pixels the windows of each pair share: at least as many as the masks."""
        top, left, end, right = (np.ascontiguousarray(side) for side in self.windows.T)
        height = np.minimum(end[first], end[second]) - np.maximum(top[first], top[second])
        width = np.minimum(right[first], right[second]) - np.maximum(left[first], left[second])
        return np.maximum(height, 0) * np.maximum(width, 0)

    def intersections(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.int64]:
        """Return [P], how many pixels the masks of each pair share when laid over each other."""
        return self.bits.intersections(first, second)

    def pairs(self, distance: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the pairs of one label, ``distance`` slices apart, whose windows overlap in the plane.

        Returns:
            Positions of the two nodes, [P] each, ascending; the first lies in the lower slice (distance 0: comes
            first).
        """
        first, second = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)]
        low, high = self._candidates(distance)
        sizes = high - low
        top, left, end, right = (np.ascontiguousarray(side) for side in self.windows.T)
        for block in blocks(sizes, PAIRS_PER_CALL):
            i, j = spans(low[block], sizes[block])
            i += block.start
            # Those that begin below the lower edge are no candidates.
            overlap = np.flatnonzero((end[j] > top[i]) & (right[j] > left[i]) & (left[j] < right[i]))
            first.append(i[overlap])
            second.append(j[overlap])
        return np.concatenate(first), np.concatenate(second)

    def _candidates(self, distance: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return [N] each, where the nodes begin and end that may overlap each node in the slice ``distance`` above.

        Nodes are sorted by label, slice and first row, so those whose first row is near lie together.
        """
        n = len(self)
        if not n:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        span = int(self.slices.max()) + 1 + distance  # of a label: no slice above runs into the next label
        place = np.unique(self.labels, return_inverse=True)[1] * span + self.slices
        places, starts, group = np.unique(place, return_index=True, return_inverse=True)
        top, end = self.windows[:, 0], self.windows[:, 2]
        tallest = np.maximum.reduceat(end - top, starts)
        above = np.minimum(np.searchsorted(places, place + distance), len(places) - 1)
        exists = places[above] == place + distance
        lowest, size = int(top.min()), int(end.max() - top.min()) + 1
        rows = group * size + (top - lowest)  # ascending
        low = np.searchsorted(rows, above * size + np.maximum(top - tallest[above] + 1 - lowest, 0))
        high = np.searchsorted(rows, above * size + (end - lowest))
        if distance == 0:
            low = np.arange(1, n + 1)
        return low, np.where(exists, np.maximum(low, high), low)


def build_nodes(
    detections: Sequence[Detections], geometry: VolumeGeometry, labels: LabelTable, mask_threshold: float
) -> Nodes:
    """Paste every detection once and collect those that cover a pixel.

    Raises:
        InputError: a slice outside the volume, a label outside the table, a score outside 0..1 or a box or
            mask that is not finite.
    """
    depth, rows, columns = geometry.spatial_shape
    masks: list[NDArray[np.bool_]] = []
    keys: list[int] = []
    soft: list[NDArray[np.float32]] = []
    # One row per detection that covers a pixel.
    label, z = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    windows, sums = [np.zeros((0, 4), np.int64)], [np.zeros((0, 3), np.int64)]
    boxes, scores = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.float32)]
    for part in detections:
        _check(part, depth, labels)
        pasted = list(paste_masks(part.masks, part.boxes, (rows, columns)))
        hits = [mask >= mask_threshold for mask, _, _ in pasted]
        covering, tight, of_pixels = _measure(hits)
        head = np.column_stack([part.boxes, part.scores]).astype(np.float32)  # contiguous, for the checksum
        dense = np.ascontiguousarray(part.masks)
        for i, (r0, c0, r1, c1) in zip(covering.tolist(), tight.tolist(), strict=True):
            masks.append(hits[i][r0:r1, c0:c1].copy())
            keys.append(zlib.crc32(dense[i], zlib.crc32(head[i])))
            soft.append(part.masks[i])
        corners = np.array([corner for _, *corner in pasted], np.int64).reshape(-1, 2)[covering]
        windows.append(tight + np.tile(corners, 2))
        sums.append(of_pixels)
        label.append(part.labels[covering])
        z.append(np.full(len(covering), part.slice_index, np.int64))
        boxes.append(part.boxes[covering])
        scores.append(part.scores[covering])
    window, (areas, *moments) = np.concatenate(windows), np.concatenate(sums).T
    box, score, key = np.concatenate(boxes), np.concatenate(scores).astype(np.float64), np.array(keys, np.uint64)
    of_label, of_slice = np.concatenate(label), np.concatenate(z)
    order = np.lexsort((key, -score, *window.T[::-1], of_slice, of_label))
    positions = order.tolist()
    ordered = tuple(masks[k] for k in positions)
    return Nodes(
        labels=of_label[order],
        slices=of_slice[order],
        scores=score[order],
        keys=key[order],
        masks=ordered,
        bits=BitMasks.pack(ordered, window[order]),
        windows=window[order],
        areas=areas[order],
        centroids=(np.column_stack(moments) / areas[:, None] + window[:, :2])[order],
        boxes=box[order],
        sources=tuple((k,) for k in range(len(order))),
        detected=tuple((box[k], soft[k]) for k in positions),
    )


def centroids_in_crop(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64]:
    """Return [N, 2], the mean row and column of the pixels of masks that lie tight around them."""
    found = [np.zeros((0, 2))]
    for block in blocks(np.array([mask.size for mask in masks], np.int64), PIXELS_PER_CALL):
        _, _, of_pixels = _measure(masks[block])
        found.append(of_pixels[:, 1:] / of_pixels[:, :1])
    return np.concatenate(found)


def _measure(
    masks: Sequence[NDArray[np.bool_]],
) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.int64]]:
    """Return [K] which of N masks have a pixel, and of these:

    [K, 4] the tight window (first row, first column, row end, column end), and [K, 3] the number of pixels and the sums
    of their rows and columns in that window.
    """
    sizes = np.array([mask.size for mask in masks], np.int64)
    widths = np.array([mask.shape[1] for mask in masks], np.int64)
    pixels = np.flatnonzero(np.concatenate([np.zeros(0, np.bool_), *(mask.ravel() for mask in masks)]))
    ends = np.cumsum(sizes)
    counts = np.diff(np.searchsorted(pixels, ends), prepend=0)
    covering = np.flatnonzero(counts)
    if not len(covering):
        return covering, np.zeros((0, 4), np.int64), np.zeros((0, 3), np.int64)
    counts = counts[covering]
    starts = np.cumsum(counts) - counts
    width = np.repeat(widths[covering], counts)
    row, column = np.divmod(pixels - np.repeat((ends - sizes)[covering], counts), width)
    low, high = (
        np.column_stack([ends.reduceat(row, starts), ends.reduceat(column, starts)])
        for ends in (np.minimum, np.maximum)
    )
    sums = np.column_stack([np.add.reduceat(row, starts), np.add.reduceat(column, starts)])
    return covering, np.hstack([low, high + 1]), np.column_stack([counts, sums - counts[:, None] * low])


def _check(part: Detections, depth: int, labels: LabelTable) -> None:
    name = f"detections of slice {part.slice_index}"
    if not 0 <= part.slice_index < depth:
        raise InputError(f"{name}: the volume has slices 0..{depth - 1}; give detections and geometry of one grid")
    unknown = sorted({int(v) for v in part.labels} - set(labels.ids))
    if unknown:
        raise InputError(f"{name}: label ids {unknown} are not in the label table {labels.describe()}")
    if not (np.isfinite(part.boxes).all() and np.isfinite(part.masks).all()):
        raise InputError(f"{name}: a box or mask is not finite; expected finite pixels and probabilities")
    if not ((part.scores >= 0) & (part.scores <= 1)).all():  # also refuses NaN
        raise InputError(f"{name}: scores {part.scores.tolist()[:5]}, expected 0..1")
