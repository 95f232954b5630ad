"""Which reference and predicted objects touch, and by how much: computed once, read by every rule.

F1 and PQ take, among the pairs at or above a threshold, the most matches and then the largest total
(`PairTable.matching`). Rules that go by score (AP, FROC) start from the same table.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medseg.errors import ConfigError, GeometryError
from medseg.labels import Label, LabelTable
from medseg.values.geometry import IDENTITY, describe_grid, grid_map
from medseg.values.instances import Instance, InstanceSet

Measure = Literal["iou", "dice"]


def on_grid_of(reference: InstanceSet, prediction: InstanceSet) -> InstanceSet:
    """Return the prediction with the reference's axis order; exact, no voxel is resampled.

    Raises:
        GeometryError: the two grids do not hold the same voxels in the patient.
    """
    axis_map = grid_map(prediction.geometry, reference.geometry)
    if axis_map is None:
        raise GeometryError(
            f"the prediction lies on another grid ({describe_grid(prediction.geometry)}) than the reference "
            f"({describe_grid(reference.geometry)}); predict on the reference's image or resample one of them first"
        )
    return prediction if axis_map == IDENTITY else prediction.moved(axis_map)


def common_labels(reference: LabelTable, prediction: LabelTable) -> tuple[LabelTable, dict[int, int]]:
    """Join two label tables by name.

    Returns:
        The reference's labels followed by those only the prediction has, and the map from label ids of
        the prediction to ids of the joint table. Labels of the reference keep their ids.
    """
    ids = {label.name: label.id for label in reference}
    joint = list(reference.labels)
    next_id = max(reference.ids, default=0) + 1
    for label in prediction:
        if label.name not in ids:
            ids[label.name] = next_id
            joint.append(Label(id=next_id, name=label.name, colour=label.colour, kind=label.kind))
            next_id += 1
    return LabelTable(joint), {label.id: ids[label.name] for label in prediction}


@dataclass(frozen=True, kw_only=True, eq=False)
class PairTable:
    """Every pair of a reference and a predicted object that share a voxel.

    Objects are named by their position in their set: position i is instance id i + 1.

    Attributes:
        labels: the label table of both sets, joined by name.
        reference_labels, prediction_labels: [R], [P] int64, ids of ``labels``.
        reference_voxels, prediction_voxels: [R], [P] int64, sizes.
        prediction_scores: [P] float64.
        reference, prediction: [K] int64, the positions of the objects of each pair; ordered by reference,
            then prediction.
        intersection: [K] int64, voxels shared, at least 1.
    """

    labels: LabelTable
    reference_labels: NDArray[np.int64]
    prediction_labels: NDArray[np.int64]
    reference_voxels: NDArray[np.int64]
    prediction_voxels: NDArray[np.int64]
    prediction_scores: NDArray[np.float64]
    reference: NDArray[np.int64]
    prediction: NDArray[np.int64]
    intersection: NDArray[np.int64]

    @classmethod
    def between(cls, reference: InstanceSet, prediction: InstanceSet) -> "PairTable":
        """Intersect two sets that lie on the same grid in world space (any axis order).

        Labels of the two sets are matched by name. Masks are only compared where boxes meet, found by a
        sweep along the axis that separates the boxes best: many small objects do not cost quadratically.

        Raises:
            GeometryError: the grids differ; both are named.
        """
        prediction = on_grid_of(reference, prediction)
        labels, to_joint = common_labels(reference.labels, prediction.labels)
        first, second = touching_boxes(boxes_of(reference), boxes_of(prediction))
        shared = np.array(
            [
                _shared_voxels(reference.instances[r], prediction.instances[p])
                for r, p in zip(first, second, strict=True)
            ],
            np.int64,
        )
        hit = shared > 0
        return cls(
            labels=labels,
            reference_labels=np.array([i.label for i in reference], np.int64),
            prediction_labels=np.array([to_joint[i.label] for i in prediction], np.int64),
            reference_voxels=np.array([i.voxels for i in reference], np.int64),
            prediction_voxels=np.array([i.voxels for i in prediction], np.int64),
            prediction_scores=np.array([i.score for i in prediction], np.float64),
            reference=first[hit],
            prediction=second[hit],
            intersection=shared[hit],
        )

    def __len__(self) -> int:
        return len(self.intersection)

    def iou(self) -> NDArray[np.float64]:
        """Return [K] intersection over union, in 0..1."""
        both = self.reference_voxels[self.reference] + self.prediction_voxels[self.prediction]
        return self.intersection / (both - self.intersection)

    def dice(self) -> NDArray[np.float64]:
        """Return [K] twice the intersection over the sum of the sizes, in 0..1."""
        both = self.reference_voxels[self.reference] + self.prediction_voxels[self.prediction]
        return 2 * self.intersection / both

    def same_label(self) -> NDArray[np.bool_]:
        """Return [K], whether both objects of a pair have the same label."""
        return self.reference_labels[self.reference] == self.prediction_labels[self.prediction]

    def matching(self, threshold: float, measure: Measure = "iou", same_label: bool = True) -> NDArray[np.int64]:
        """Match objects one to one: most matches first, then the largest total of the measure.

        Args:
            threshold: pairs below it cannot match; a pair exactly at it can. 0 accepts any shared voxel.
            measure: ``iou`` or ``dice``.
            same_label: whether objects of different labels may not match.

        Returns:
            Rows of this table, ascending. Where several matchings are equally good the same one is
            returned each time; counts and totals do not depend on which.

        Raises:
            ConfigError: a threshold outside 0..1 or an unknown measure.
        """
        if not 0 <= threshold <= 1:
            raise ConfigError(f"matching threshold {threshold}: expected 0..1")
        if measure not in ("iou", "dice"):
            raise ConfigError(f"matching measure {measure!r}: expected 'iou' or 'dice'")
        value = self.iou() if measure == "iou" else self.dice()
        rows = np.flatnonzero((value >= threshold) & (self.same_label() if same_label else True))
        if not len(rows):
            return rows.astype(np.int64)
        # Objects that no candidate pair connects do not influence each other: one small assignment per component.
        count = len(self.reference_voxels) + len(self.prediction_voxels)
        ends = self.reference[rows], self.prediction[rows] + len(self.reference_voxels)
        graph = coo_array((np.ones(len(rows)), ends), shape=(count, count))
        component = connected_components(graph, directed=False)[1][ends[0]]
        order = np.argsort(component, kind="stable")
        breaks = np.flatnonzero(np.diff(component[order])) + 1
        chosen = [self._assign(part, value) for part in np.split(rows[order], breaks)]
        return np.sort(np.concatenate(chosen)).astype(np.int64)

    def _assign(self, rows: NDArray[np.intp], value: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return the best one-to-one choice among the rows of one component."""
        if len(rows) == 1:
            return rows
        left, i = np.unique(self.reference[rows], return_inverse=True)
        right, j = np.unique(self.prediction[rows], return_inverse=True)
        # Every match is worth more than all values together, so one more match always wins.
        weight = np.zeros((len(left), len(right)))
        weight[i, j] = value[rows] + min(weight.shape) + 1
        row_of = np.full(weight.shape, -1, np.intp)
        row_of[i, j] = rows
        picked = row_of[linear_sum_assignment(weight, maximize=True)]
        return picked[picked >= 0]


def boxes_of(instances: InstanceSet) -> NDArray[np.int64]:
    """Return [N, 2, 3]: first voxel and end (exclusive) of every object."""
    boxes = [(i.offset, [o + n for o, n in zip(i.offset, i.mask.shape, strict=True)]) for i in instances]
    return np.array(boxes, np.int64).reshape(len(instances), 2, 3)


def touching_boxes(a: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions in a and b of all boxes that share a voxel, ordered by a, then b.

    Along one axis two intervals meet when b starts inside a, or a starts inside b after b's start; both
    are ranges in the sorted starts, so the pairs that meet along the axis are listed without a search.
    """
    ranges = []
    for axis in range(3):
        order_a, order_b = np.argsort(a[:, 0, axis], kind="stable"), np.argsort(b[:, 0, axis], kind="stable")
        starts_a, starts_b = a[order_a, 0, axis], b[order_b, 0, axis]
        b_in_a = np.searchsorted(starts_b, a[:, 0, axis], "left"), np.searchsorted(starts_b, a[:, 1, axis], "left")
        a_in_b = np.searchsorted(starts_a, b[:, 0, axis], "right"), np.searchsorted(starts_a, b[:, 1, axis], "left")
        pairs = int((b_in_a[1] - b_in_a[0]).sum() + np.maximum(a_in_b[1] - a_in_b[0], 0).sum())
        ranges.append((pairs, axis, order_a, order_b, b_in_a, a_in_b))
    _, _, order_a, order_b, b_in_a, a_in_b = min(ranges, key=lambda entry: entry[:2])
    owner, inside = _expand(*b_in_a)
    owner_b, inside_b = _expand(*a_in_b)
    first = np.concatenate([owner, order_a[inside_b]])
    second = np.concatenate([order_b[inside], owner_b])
    meet = ((a[first, 0] < b[second, 1]) & (b[second, 0] < a[first, 1])).all(axis=1)
    first, second = first[meet], second[meet]
    order = np.lexsort((second, first))
    return first[order], second[order]


def _expand(low: NDArray[np.intp], high: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """List every (i, k) with low[i] <= k < high[i]."""
    counts = np.maximum(high - low, 0)
    owner = np.repeat(np.arange(len(counts)), counts)
    position = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owner, low[owner] + position


def _shared_voxels(a: Instance, b: Instance) -> int:
    """Count the voxels that two objects of one grid share."""
    parts: tuple[list[slice], list[slice]] = ([], [])
    for oa, na, ob, nb in zip(a.offset, a.mask.shape, b.offset, b.mask.shape, strict=True):
        low, high = max(oa, ob), min(oa + na, ob + nb)
        if low >= high:
            return 0
        parts[0].append(slice(low - oa, high - oa))
        parts[1].append(slice(low - ob, high - ob))
    return int(np.count_nonzero(a.mask[tuple(parts[0])] & b.mask[tuple(parts[1])]))
