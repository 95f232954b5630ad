"""How firm each join of a solution is, and which ones a reader should look at."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components, dijkstra

from medseg.linking.affinity import Edges
from medseg.linking.flow import Solution, dual_prices

#: Rerouting is looked at for so many joins of a component at once; bounds the memory.
SOURCES_PER_CALL = 256


@dataclass(frozen=True, kw_only=True)
class Join:
    """Two detections of different slices that were taken for one object.

    Attributes:
        instance: id of the object.
        slices: the two slice indices.
        point_mm: LPS, half-way between the centroids of the two masks.
        log_odds: that the two masks show one object.
        confidence: by how much the whole solution would be worse without this join, in log-odds; near 0 the
            alternative is as good.
    """

    instance: int
    slices: tuple[int, int]
    point_mm: tuple[float, float, float]
    log_odds: float
    confidence: float


def join_confidences(rewards: NDArray[np.float64], edges: Edges, solution: Solution) -> NDArray[np.float64]:
    """Return [E] the optimum less the optimum without the edge; NaN for edges that are not followed.

    Without an edge its unit of flow takes the cheapest way round in the residual network (Ahuja, Magnanti & Orlin,
    Network Flows, ch. 9), found by Dijkstra's algorithm as the dual prices make every cost non-negative: exact,
    without solving again. Where readings of a slice compete, the choice between them is held.

    Args:
        rewards: [N], as given to `solve_tracks`.
        edges: the same.
        solution: its result.
    """
    confidence = np.where(solution.followed, edges.log_odds, np.nan)
    prices = dual_prices(rewards, edges, solution)
    usable = solution.open[edges.first] & solution.open[edges.second]
    n = len(rewards)
    graph = sparse.coo_array((np.ones(usable.sum()), (edges.first[usable], edges.second[usable])), shape=(n, n))
    count, component = connected_components(graph, directed=False)
    arcs = np.flatnonzero(usable)
    arcs = arcs[np.argsort(component[edges.first[arcs]], kind="stable")]
    nodes = np.argsort(component, kind="stable")
    arc_ends = np.searchsorted(component[edges.first[arcs]], np.arange(count + 1))
    node_ends = np.searchsorted(component[nodes], np.arange(count + 1))
    for part in range(count):
        own = arcs[arc_ends[part] : arc_ends[part + 1]]
        followed = own[solution.followed[own]]
        members = nodes[node_ends[part] : node_ends[part + 1]]
        # Where every edge is followed and every node worth taking, the loss is the edge itself.
        if len(followed) and not (len(followed) == len(own) and (rewards[members] > 0).all()):
            confidence[followed] = _rerouted(rewards, edges, solution, prices, members, own, followed)
    return confidence


def _rerouted(
    rewards: NDArray[np.float64],
    edges: Edges,
    solution: Solution,
    prices: tuple[NDArray[np.float64], NDArray[np.float64]],
    nodes: NDArray[np.intp],
    arcs: NDArray[np.intp],
    followed: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Return what one component loses without each of the edges it follows.

    Vertices: entry (0..n) and exit (n..2n) of each node, and one (2n) where all tracks begin and end. Potentials:
    minus the price at the entry, the price at the exit.
    """
    n = len(nodes)
    u, v = np.searchsorted(nodes, edges.first[arcs]), np.searchsorted(nodes, edges.second[arcs])
    used = solution.followed[arcs]
    taken, forced = solution.taken[nodes], solution.forced[nodes]
    entered, left = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    entered[v[used]], left[u[used]] = True, True
    every, hub = np.arange(n), np.full(n, 2 * n)
    through = np.where(forced, 0.0, -rewards[nodes])
    # Free arcs forwards, used ones backwards; a node that is forced is neither entered anew nor given up.
    begin, end = taken & ~entered, taken & ~left
    tails = [u[~used] + n, v[used], every[~taken], every[taken & ~forced] + n, hub[~begin], every[begin]]
    heads = [v[~used], u[used] + n, every[~taken] + n, every[taken & ~forced], every[~begin], hub[begin]]
    worth = edges.log_odds[arcs]
    costs = [-worth[~used], worth[used], through[~taken], -through[taken & ~forced], np.zeros(n - begin.sum())]
    costs += [np.zeros(begin.sum()), np.zeros(n - end.sum()), np.zeros(end.sum())]
    tails += [every[~end] + n, hub[end]]
    heads += [hub[~end], every[end] + n]
    tail, head, cost = np.concatenate(tails), np.concatenate(heads), np.concatenate(costs)
    potential = np.concatenate([-prices[0][nodes], prices[1][nodes], [0.0]])
    reduced = np.maximum(0.0, cost + potential[tail] - potential[head])
    network = sparse.csr_array((reduced, (tail, head)), shape=(2 * n + 1, 2 * n + 1))
    start, stop = u[used] + n, v[used]
    loss = np.empty(len(followed))
    for low in range(0, len(followed), SOURCES_PER_CALL):
        rows = slice(low, low + SOURCES_PER_CALL)
        distance = dijkstra(network, indices=start[rows])[np.arange(len(start[rows])), stop[rows]]
        loss[rows] = distance - potential[start[rows]] + potential[stop[rows]]
    return np.maximum(0.0, loss + edges.log_odds[followed])
