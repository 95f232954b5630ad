"""The best set of tracks: an exact minimum-cost flow.

Each detection is a node that at most one track passes. Taking it is worth the log-odds of its score over
those of ``min_score``; following an edge is worth the edge's log-odds. With f_v = 1 where node v is taken
and x_e = 1 where edge e is followed,

    maximise  sum_v reward_v f_v + sum_e log_odds_e x_e
    subject to  sum of x over edges into v  <= f_v,  sum of x over edges out of v  <= f_v,  0 <= f, x <= 1.

The slack of the first constraint is a track's birth at v, of the second its death. They carry no cost of
their own: tracks + edges followed = nodes taken, so a cost per track is the same as an offset to both of
the others, and is contained in ``min_score`` and ``link_iou``. This is a flow through split nodes, whose
constraint matrix is totally unimodular (edges over gaps included), so the optimum of the linear programme
is whole (Zhang, Li & Nevatia, "Global data association for multi-object tracking using network flows",
CVPR 2008; Schrijver, Combinatorial Optimization, ch. 13).
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog
from scipy.sparse.csgraph import connected_components

from medseg.linking.affinity import TIE, Edges

#: Small components are solved together, up to about this many edges: their optima are independent, and a
#: call of the solver costs more than a small problem.
EDGES_PER_CALL = 20000


def node_rewards(scores: NDArray[np.float64], min_score: float) -> NDArray[np.float64]:
    """Return [N] log-odds of the scores over those of ``min_score``; a score equal to it counts for it."""

    def log_odds(p: NDArray[np.float64] | float) -> NDArray[np.float64]:
        p = np.clip(p, 0.01, 0.99)
        return np.log(p / (1 - p))

    return log_odds(scores) - log_odds(min_score) + TIE


def solve_tracks(rewards: NDArray[np.float64], edges: Edges) -> list[list[int]]:
    """Return the best set of tracks.

    Args:
        rewards: [N] worth of taking each node.
        edges: worth of following each edge, more than 0, from a lower to a higher slice.

    Returns:
        Tracks as node positions by ascending slice, ordered by their first node; every node is in at most one.
    """
    n = len(rewards)
    taken, followed = rewards > 0, np.zeros(len(edges.first), np.bool_)
    out_degree, in_degree = np.bincount(edges.first, minlength=n), np.bincount(edges.second, minlength=n)
    graph = sparse.coo_array((np.ones(len(edges.first)), (edges.first, edges.second)), shape=(n, n))
    count, component = connected_components(graph, directed=False)
    # Where no node has a choice and all are worth taking, every edge is followed.
    hard = np.zeros(count, np.bool_)
    hard[component[(out_degree > 1) | (in_degree > 1) | (rewards <= 0)]] = True
    followed[~hard[component[edges.first]]] = True
    sizes = np.bincount(component[edges.first], minlength=count)
    hard &= sizes > 0
    members = np.flatnonzero(hard)
    if len(members):
        batches = np.cumsum(sizes[members]) // EDGES_PER_CALL
        for batch in np.unique(batches):
            chosen = np.zeros(count, np.bool_)
            chosen[members[batches == batch]] = True
            nodes, arcs = np.flatnonzero(chosen[component]), np.flatnonzero(chosen[component[edges.first]])
            taken[nodes], followed[arcs] = _solve(rewards, edges, nodes, arcs)
    successor = np.full(n, -1, np.intp)
    successor[edges.first[followed]] = edges.second[followed]
    started = taken.copy()
    started[edges.second[followed]] = False
    tracks = []
    for start in np.flatnonzero(started).tolist():
        track = [start]
        while successor[track[-1]] >= 0:
            track.append(int(successor[track[-1]]))
        tracks.append(track)
    return tracks


def _solve(
    rewards: NDArray[np.float64], edges: Edges, nodes: NDArray[np.intp], arcs: NDArray[np.intp]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Solve the linear programme over some nodes and edges; return which are taken and which followed."""
    n, e = len(nodes), len(arcs)
    position = np.full(len(rewards), -1, np.intp)
    position[nodes] = np.arange(n)
    row = np.concatenate([position[edges.second[arcs]], n + position[edges.first[arcs]]])
    incidence = sparse.coo_array((np.ones(2 * e), (row, np.tile(np.arange(e), 2))), shape=(2 * n, e))
    minus = -sparse.eye_array(n)
    constraints = sparse.hstack([sparse.vstack([minus, minus]), incidence], format="csc")
    cost = -np.concatenate([rewards[nodes], edges.log_odds[arcs]])
    result = linprog(cost, A_ub=constraints, b_ub=np.zeros(2 * n), bounds=(0, 1), method="highs-ds")
    assert result.status == 0, f"the flow has no optimum: {result.message}"
    whole = np.round(result.x)
    assert np.abs(result.x - whole).max(initial=0.0) < 1e-6, "the flow is not whole"
    return whole[:n] > 0, whole[n:] > 0
