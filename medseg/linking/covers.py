"""Masks that cover several of a slice nearby: one of the two slices shows as one what the other shows as several."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.linking.nodes import Nodes
from medseg.values.linking_plan import LinkingPlan
from medseg.values.ragged import spans


@dataclass(frozen=True, kw_only=True, eq=False)
class Covers:
    """C times that a mask covers two or more of another slice.

    Attributes:
        mask: [C] the covering mask.
        distance: [C] to the other slice, in slices.
        iou: [C] of the mask and all that it covers together.
        begin, end: [C] where in ``covered`` the masks that it covers lie, ascending.
        covered: their positions.
    """

    mask: NDArray[np.intp]
    distance: NDArray[np.int64]
    iou: NDArray[np.float64]
    begin: NDArray[np.intp]
    end: NDArray[np.intp]
    covered: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.mask)

    def members(self, c: int) -> tuple[int, ...]:
        """Return the masks that are covered the c-th time."""
        return tuple(self.covered[self.begin[c] : self.end[c]].tolist())

    def best(self, wanted: NDArray[np.bool_], keys: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Return, for each mask that is ``wanted`` [N], which cover is nearest and then fills it best."""
        if not len(self):
            return np.zeros(0, np.intp)
        sums = np.append(np.uint64(0), np.cumsum(keys[self.covered]))
        total = sums[self.end] - sums[self.begin]
        order = np.lexsort((total, -np.round(self.iou, 9), self.distance, self.mask))
        order = order[wanted[self.mask[order]]]
        return order[np.unique(self.mask[order], return_index=True)[1]]


def find_covers(
    nodes: Nodes, plural: NDArray[np.bool_], fresh: NDArray[np.bool_], reach: int, config: LinkingPlan
) -> Covers:
    """Find the masks that cover two or more of another slice, up to ``reach`` slices away.

    Each is covered by ``duplicate_overlap`` of itself and holds no other of them; together they fill the mask to an
    IoU of ``duplicate_iou``. Where no mask nearby is ``fresh`` none is looked for.
    """
    area = nodes.areas
    parts = []
    for distance in range(1, reach + 1):
        below, above = nodes.pairs(distance)
        upper = area[above] < area[below]  # the smaller one is the upper
        big, small = np.where(upper, below, above), np.where(upper, above, below)
        # One slice on one side: twice the mask's position, odd for the upper side.
        side = 2 * big + upper
        near = np.zeros(2 * len(nodes), np.bool_)
        near[side[fresh[small]]] = True
        keep = near[side] & plural[big] & (area[small] < area[big])
        big, small, side = big[keep], small[keep], side[keep]
        keep = nodes.window_overlap(big, small) >= config.duplicate_overlap * area[small]
        big, small, side = big[keep], small[keep], side[keep]
        groups, group, sizes = np.unique(side, return_inverse=True, return_counts=True)
        some = np.bincount(group, weights=fresh[small], minlength=len(groups)) > 0
        keep = (sizes[group] > 1) & some[group]
        big, small, side = big[keep], small[keep], side[keep]
        shared = nodes.intersections(big, small)
        keep = shared >= config.duplicate_overlap * area[small]
        big, small, side, shared = big[keep], small[keep], side[keep], shared[keep]
        order = np.lexsort((small, side))
        apart = order[_smallest(nodes, small[order], side[order], config.duplicate_overlap)]
        big, small, side, shared = big[apart], small[apart], side[apart], shared[apart]
        begin = np.flatnonzero(np.diff(side, prepend=-1))
        end = np.append(begin[1:], len(side))[: len(begin)]
        both = np.add.reduceat(shared, begin) if len(begin) else shared
        all_small = np.add.reduceat(area[small], begin) if len(begin) else shared
        iou = both / (area[big[begin]] + all_small - both)
        filled = (end - begin > 1) & (iou >= config.duplicate_iou)
        distances = np.full(filled.sum(), distance)
        parts.append((big[begin][filled], distances, iou[filled], begin[filled], end[filled], small))
    offset = np.cumsum([0, *(len(part[5]) for part in parts)])
    return Covers(
        mask=np.concatenate([part[0] for part in parts]),
        distance=np.concatenate([part[1] for part in parts]),
        iou=np.concatenate([part[2] for part in parts]),
        begin=np.concatenate([part[3] + o for part, o in zip(parts, offset, strict=False)]),
        end=np.concatenate([part[4] + o for part, o in zip(parts, offset, strict=False)]),
        covered=np.concatenate([part[5] for part in parts]),
    )


def _smallest(nodes: Nodes, members: NDArray[np.intp], group: NDArray[np.int64], overlap: float) -> NDArray[np.bool_]:
    """Return [K], which masks hold no other of their group; groups, each of one slice, lie together."""
    after = np.searchsorted(group, group, side="right") - np.arange(len(group)) - 1
    first, second = spans(np.arange(1, len(group) + 1), after)
    shared = nodes.intersections(members[first], members[second])
    a, b = nodes.areas[members[first]], nodes.areas[members[second]]
    nested = shared >= overlap * np.minimum(a, b)
    result = np.ones(len(members), np.bool_)
    result[np.where(a >= b, first, second)[nested]] = False
    return result
