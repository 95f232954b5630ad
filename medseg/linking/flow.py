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

Competing readings of a slice (`alternatives`) add f_i + f_j <= 1 for nodes that exclude each other and f_i = f_j for
those that go together, and the proof ends there: three nodes that exclude each other pairwise give halves. One row for
all that exclude each other (a clique; Padberg, "On the facial structure of set packing polyhedra", Mathematical
Programming 1973) rules most of these out, cycles of five and more stay. So the linear programme is solved first; a
connected component whose optimum comes out whole is decided, the others go to branch and bound. That says which of the
readings to leave out; what is left is a flow again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse.csgraph import connected_components

from medseg.linking.affinity import TIE, Edges
from medseg.linking.dominated import undominated
from medseg.values.ragged import blocks

#: Small components are solved together, up to about this many edges: their optima are independent, and a
#: call of the solver costs more than a small problem.
EDGES_PER_CALL = 8000
#: Worth of a node that the choice between alternatives has settled: more than any track could gain by leaving it.
FORCED = 1000.0
#: The solver's numbers are whole up to this much.
WHOLE = 1e-6
#: Presolving takes longer here than it saves.
_SOLVER = {"presolve": False}


def node_rewards(scores: NDArray[np.float64], min_score: float) -> NDArray[np.float64]:
    """Return [N] log-odds of the scores over those of ``min_score``; a score equal to it counts for it."""

    def log_odds(p: NDArray[np.float64] | float) -> NDArray[np.float64]:
        p = np.clip(p, 0.01, 0.99)
        return np.log(p / (1 - p))

    return log_odds(scores) - log_odds(min_score) + TIE


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """The best set of tracks, and what `dual_prices` needs to see how firm it is.

    Attributes:
        taken: [N] bool.
        followed: [E] bool.
        open: [N] bool, nodes that were not left out for an alternative.
        forced: [N] bool, nodes that had to be taken since they go together with another.
        gap: the largest relative distance of a branch and bound to its bound; 0 where all were solved.
    """

    taken: NDArray[np.bool_]
    followed: NDArray[np.bool_]
    open: NDArray[np.bool_]
    forced: NDArray[np.bool_]
    gap: float

    def tracks(self, edges: Edges) -> list[list[int]]:
        """Return node positions of each track by ascending slice, ordered by their first node."""
        successor = np.full(len(self.taken), -1, np.intp)
        successor[edges.first[self.followed]] = edges.second[self.followed]
        started = self.taken.copy()
        started[edges.second[self.followed]] = False
        tracks = []
        for start in np.flatnonzero(started).tolist():
            track = [start]
            while successor[track[-1]] >= 0:
                track.append(int(successor[track[-1]]))
            tracks.append(track)
        return tracks


_NO_PAIRS = np.zeros((0, 2), np.intp)


def solve_tracks(
    rewards: NDArray[np.float64],
    edges: Edges,
    exclusive: NDArray[np.intp] = _NO_PAIRS,
    together: NDArray[np.intp] = _NO_PAIRS,
    node_limit: int = 10000,
) -> Solution:
    """Find the best set of tracks.

    Args:
        rewards: [N] worth of taking each node.
        edges: worth of following each edge, more than 0, from a lower to a higher slice.
        exclusive: [X, 2] nodes of which at most one is taken.
        together: [T, 2] nodes that are taken together or not at all.
        node_limit: of branch and bound, per connected component; never seconds, so that results are the same again.
    """
    certain = rewards > 0
    certain[exclusive], certain[together] = False, False
    kept = undominated(edges, certain)
    some = Edges(first=edges.first[kept], second=edges.second[kept], log_odds=edges.log_odds[kept])
    component = _components(len(rewards), np.concatenate([_ends(some), exclusive, together]))
    choice = _readings(rewards, some, component, exclusive, together, node_limit)
    forced_rewards = np.where(choice.forced, FORCED, rewards)
    taken, by_flow, *_ = _flow(forced_rewards, some, component, choice.open, choice.decided)
    known = choice.decided[component]
    followed = np.zeros(len(kept), np.bool_)
    followed[kept] = np.where(known[some.first], choice.followed, by_flow)
    return Solution(
        taken=np.where(known, choice.taken, taken),
        followed=followed,
        open=choice.open,
        forced=choice.forced,
        gap=choice.gap,
    )


def dual_prices(
    rewards: NDArray[np.float64], edges: Edges, solution: Solution
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return [N] each, at least 0, the dual values of the two constraints of each node, the choice of readings held.

    Args:
        rewards, edges: as given to `solve_tracks`.
        solution: its result.
    """
    component = _components(len(rewards), _ends(edges))
    none = np.zeros(int(component.max(initial=-1)) + 1, np.bool_)
    forced_rewards = np.where(solution.forced, FORCED, rewards)
    return _flow(forced_rewards, edges, component, solution.open, none)[2:]


def _ends(edges: Edges) -> NDArray[np.intp]:
    return np.column_stack([edges.first, edges.second])


def _components(n: int, ends: NDArray[np.intp]) -> NDArray[np.int32]:
    graph = sparse.coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n))
    component: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return component


def _flow(
    rewards: NDArray[np.float64],
    edges: Edges,
    component: NDArray[np.int32],
    allowed: NDArray[np.bool_],
    decided: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Return which of the ``allowed`` nodes are taken, which edges followed, and the dual values of the nodes.

    Components that are ``decided`` are left out: nothing that is returned of them means anything.
    """
    n, count = len(rewards), len(decided)
    usable = allowed[edges.first] & allowed[edges.second]
    taken, followed = allowed & (rewards > 0), usable.copy()
    prices_in, prices_out = np.zeros(n), np.zeros(n)
    out_degree = np.bincount(edges.first[usable], minlength=n)
    in_degree = np.bincount(edges.second[usable], minlength=n)
    # Where no node has a choice and all are worth taking, every edge is followed.
    hard = np.zeros(count, np.bool_)
    hard[component[allowed & ((out_degree > 1) | (in_degree > 1) | (rewards <= 0))]] = True
    sizes = np.bincount(component[edges.first[usable]], minlength=count)
    hard &= (sizes > 0) & ~decided
    for chosen in _batches(np.flatnonzero(hard), sizes):
        nodes = np.flatnonzero(chosen[component] & allowed)
        arcs = np.flatnonzero(chosen[component[edges.first]] & usable)
        taken[nodes], followed[arcs], prices_in[nodes], prices_out[nodes] = _solve(rewards, edges, nodes, arcs)
    return taken, followed, prices_in, prices_out


def _batches(components: NDArray[np.intp], sizes: NDArray[np.int64]) -> Iterator[NDArray[np.bool_]]:
    """Yield which of all components are solved together; ``sizes`` are the edges of every component."""
    for block in blocks(sizes[components], EDGES_PER_CALL):
        chosen = np.zeros(len(sizes), np.bool_)
        chosen[components[block]] = True
        yield chosen


@dataclass(kw_only=True, eq=False)
class _Choice:
    """Between competing readings.

    Attributes:
        open: [N] bool, nodes that stay; ``forced``: those of them that must be taken.
        decided: [C] bool, components of which ``taken`` [N] and ``followed`` [E] are the best set of tracks already.
        gap: the largest relative one.
    """

    open: NDArray[np.bool_]
    forced: NDArray[np.bool_]
    decided: NDArray[np.bool_]
    taken: NDArray[np.bool_]
    followed: NDArray[np.bool_]
    gap: float = 0.0


def _readings(
    rewards: NDArray[np.float64],
    edges: Edges,
    component: NDArray[np.int32],
    exclusive: NDArray[np.intp],
    together: NDArray[np.intp],
    node_limit: int,
) -> _Choice:
    """Choose between competing readings: by the linear programme where its optimum is whole, else branch and bound."""
    n = len(rewards)
    choice = _Choice(
        open=np.ones(n, np.bool_),
        forced=np.zeros(n, np.bool_),
        decided=np.zeros(int(component.max(initial=-1)) + 1, np.bool_),
        taken=np.zeros(n, np.bool_),
        followed=np.zeros(len(edges.first), np.bool_),
    )
    bound = np.concatenate([exclusive, together]).ravel()
    if not len(bound):
        return choice
    of_edge = component[edges.first]
    sizes = np.bincount(of_edge, minlength=len(choice.decided))
    cliques = _cliques(exclusive)
    of_clique = component[[clique[0] for clique in cliques]] if cliques else component[:0]

    def part(chosen: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp], list[list[int]], NDArray[np.intp]]:
        apart = [cliques[c] for c in np.flatnonzero(chosen[of_clique]).tolist()]
        nodes, arcs = np.flatnonzero(chosen[component]), np.flatnonzero(chosen[of_edge])
        return nodes, arcs, apart, together[chosen[component[together[:, 0]]]]

    for batch in _batches(np.unique(component[bound]), sizes):
        nodes, arcs, apart, pairs = part(batch)
        problem = _problem(rewards, edges, nodes, arcs, apart, pairs)
        result = linprog(
            problem.cost,
            A_ub=sparse.vstack([problem.flow, problem.exclusive]),
            b_ub=np.repeat([0.0, 1.0], [problem.flow.shape[0], problem.exclusive.shape[0]]),
            A_eq=problem.together,
            b_eq=np.zeros(problem.together.shape[0]),
            bounds=(0, 1),
            method="highs-ds",
            options=_SOLVER,
        )
        assert result.status == 0, f"the choice between readings has no optimum: {result.message}"
        n = len(nodes)
        halves = np.unique(component[nodes[np.abs(result.x[:n] - np.round(result.x[:n])) > WHOLE]])
        choice.decided[component[nodes]] = True
        choice.decided[halves] = False
        split = ~choice.decided[of_edge[arcs]]  # of the others, those of the whole nodes are a flow
        assert np.all(split | (np.abs(result.x[n:] - np.round(result.x[n:])) < WHOLE)), "the flow is not whole"
        choice.taken[nodes], choice.followed[arcs] = result.x[:n] > 0.5, result.x[n:] > 0.5
        for half in halves:
            nodes, arcs, apart, pairs = part(np.arange(len(sizes)) == half)
            choice.taken[nodes], gap = _branch(rewards, edges, nodes, arcs, apart, pairs, node_limit)
            choice.gap = max(choice.gap, gap)
    linked = together.ravel()
    choice.open[bound], choice.forced[linked] = choice.taken[bound], choice.taken[linked]
    return choice


def _cliques(exclusive: NDArray[np.intp]) -> list[list[int]]:
    """Cover pairs that exclude each other by sets of which every two do, each grown from a pair that is left."""
    rivals: dict[int, set[int]] = {}
    for i, j in exclusive.tolist():
        rivals.setdefault(i, set()).add(j)
        rivals.setdefault(j, set()).add(i)
    cliques: list[list[int]] = []
    covered: set[tuple[int, ...]] = set()
    for i, j in exclusive.tolist():
        if (min(i, j), max(i, j)) in covered:
            continue
        clique, common = [i, j], rivals[i] & rivals[j]
        while common:
            clique.append(min(common))
            common &= rivals[clique[-1]]
        covered.update(combinations(sorted(clique), 2))
        cliques.append(clique)
    return cliques


@dataclass(frozen=True, kw_only=True, eq=False)
class _Problem:
    """A linear programme over the n nodes and e edges of some components: costs, and rows of constraints.

    Attributes:
        cost: [n + e].
        flow: [2n, n + e], "edges in - f <= 0" above "edges out - f <= 0".
        exclusive: [C, n + e], <= 1: a row for each set of nodes that exclude each other.
        together: [T, n + e], = 0.
    """

    cost: NDArray[np.float64]
    flow: sparse.csc_array
    exclusive: sparse.csc_array
    together: sparse.csc_array


def _problem(
    rewards: NDArray[np.float64],
    edges: Edges,
    nodes: NDArray[np.intp],
    arcs: NDArray[np.intp],
    cliques: Sequence[Sequence[int]] = (),
    together: NDArray[np.intp] = _NO_PAIRS,
) -> _Problem:
    n, e = len(nodes), len(arcs)
    position = np.full(len(rewards), -1, np.intp)
    position[nodes] = np.arange(n)
    row = np.concatenate([position[edges.second[arcs]], n + position[edges.first[arcs]]])
    incidence = sparse.coo_array((np.ones(2 * e), (row, np.tile(np.arange(e), 2))), shape=(2 * n, e))
    minus = -sparse.eye_array(n)
    members = np.array([i for clique in cliques for i in clique], np.intp)
    of_clique = np.repeat(np.arange(len(cliques)), [len(clique) for clique in cliques])
    of_pair = np.repeat(np.arange(len(together)), 2)
    signs = np.tile([1.0, -1.0], len(together))
    return _Problem(
        cost=-np.concatenate([rewards[nodes], edges.log_odds[arcs]]),
        flow=sparse.hstack([sparse.vstack([minus, minus]), incidence], format="csc"),
        exclusive=sparse.csc_array(
            (np.ones(len(members)), (of_clique, position[members])), shape=(len(cliques), n + e)
        ),
        together=sparse.csc_array((signs, (of_pair, position[together.ravel()])), shape=(len(together), n + e)),
    )


def _solve(
    rewards: NDArray[np.float64], edges: Edges, nodes: NDArray[np.intp], arcs: NDArray[np.intp]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Solve the linear programme over some nodes and edges.

    Returns:
        Which nodes are taken, which edges followed, and the dual values of the nodes' constraints.
    """
    n = len(nodes)
    problem = _problem(rewards, edges, nodes, arcs)
    result = linprog(
        problem.cost, A_ub=problem.flow, b_ub=np.zeros(2 * n), bounds=(0, 1), method="highs-ds", options=_SOLVER
    )
    assert result.status == 0, f"the flow has no optimum: {result.message}"
    whole = np.round(result.x)
    assert np.abs(result.x - whole).max(initial=0.0) < WHOLE, "the flow is not whole"
    prices = np.maximum(0.0, -result.ineqlin.marginals)
    return whole[:n] > 0, whole[n:] > 0, prices[:n], prices[n:]


def _branch(
    rewards: NDArray[np.float64],
    edges: Edges,
    nodes: NDArray[np.intp],
    arcs: NDArray[np.intp],
    cliques: Sequence[Sequence[int]],
    together: NDArray[np.intp],
    node_limit: int,
) -> tuple[NDArray[np.bool_], float]:
    """Choose between the alternatives of one component by branch and bound.

    Only the nodes of cliques and pairs need to be whole: with those fixed, the rest is a flow.

    Returns:
        Which nodes are taken, and the relative gap. Where the limit is reached before anything was found, the nodes
        of higher reward are taken one after the other, and the gap is infinite.
    """
    problem = _problem(rewards, edges, nodes, arcs, cliques, together)
    n = len(nodes)
    sets = [np.searchsorted(nodes, clique) for clique in cliques]
    pairs = np.searchsorted(nodes, together)
    whole = np.zeros(len(problem.cost))
    whole[np.concatenate([*sets, pairs.ravel()])] = 1
    result = milp(
        problem.cost,
        integrality=whole,
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(problem.flow, -np.inf, 0),
            LinearConstraint(problem.exclusive, -np.inf, 1),
            LinearConstraint(problem.together, 0, 0),
        ],
        options={"node_limit": node_limit, "mip_rel_gap": 0.0},
    )
    if result.x is not None:
        return np.round(result.x[:n]) > 0, round(float(result.mip_gap or 0.0), 9)  # below is rounding
    chosen = np.ones(n, np.bool_)
    chosen[pairs.ravel()] = False
    for members in sorted(sets, key=lambda members: -rewards[nodes[members]].max()):
        best = max((i for i in members if chosen[i]), key=lambda i: rewards[nodes[i]], default=-1)
        chosen[[i for i in members if i != best]] = False
    return chosen, float("inf")
