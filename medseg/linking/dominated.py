"""Edges that no best set of tracks follows, found by comparing each with its rivals: what is left is solved faster."""

import numpy as np
from numpy.typing import NDArray

from medseg.linking.affinity import Edges

#: Rounds: every edge that is out may put others out; later ones find next to nothing.
ROUNDS = 6


def undominated(edges: Edges, certain: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return [E], which edges a best set of tracks may follow; every best one follows only such.

    Let an edge from u to v be worth more than the best other edge out of u and the best other edge into v together.
    Then every best set of tracks that takes both u and v follows it: otherwise following it, and not those of the
    others that are followed (one out of u and one into v at most), would be worth more. So where v is certain to be
    taken, no other edge out of u is followed (if u is left out, none is), and where u is, no other edge into v.

    Args:
        edges: worth more than 0 each.
        certain: [N] nodes that every best set of tracks takes: worth more than 0, excluded by no other, and not bound
            to any.
    """
    groups = [_Group.build(ends) for ends in (edges.first, edges.second)]
    worth = edges.log_odds.copy()  # 0: out
    for _ in range(ROUNDS):
        strong = worth > groups[0].best_other(worth) + groups[1].best_other(worth)
        dominated = np.zeros(len(worth), np.bool_)
        for own, other in ((edges.first, edges.second), (edges.second, edges.first)):
            settled = np.zeros(len(certain), np.bool_)
            settled[own[strong & certain[other]]] = True
            dominated |= settled[own]  # a node has one such edge at most, and that is strong
        dominated &= ~strong & (worth > 0)
        if not dominated.any():
            break
        worth[dominated] = 0
    return worth > 0


class _Group:
    """Edges sorted by one of their ends."""

    def __init__(self, order: NDArray[np.intp], starts: NDArray[np.intp], sizes: NDArray[np.intp]) -> None:
        self.order, self.starts, self.sizes = order, starts, sizes

    @classmethod
    def build(cls, ends: NDArray[np.intp]) -> "_Group":
        order = np.argsort(ends, kind="stable")
        starts = np.flatnonzero(np.diff(ends[order], prepend=-1))
        return cls(order, starts, np.diff(starts, append=len(ends)))

    def best_other(self, worth: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return [E], the most that another edge at the same end is worth; 0 where there is none."""
        if not len(worth):
            return worth
        ordered = worth[self.order]
        best = np.repeat(np.maximum.reduceat(ordered, self.starts), self.sizes)
        first = ordered == best
        rest = np.repeat(np.maximum.reduceat(np.where(first, 0.0, ordered), self.starts), self.sizes)
        alone = np.repeat(np.add.reduceat(first, self.starts, dtype=np.intp), self.sizes) == 1
        result = np.empty_like(worth)
        result[self.order] = np.where(first & alone, rest, best)
        return result
