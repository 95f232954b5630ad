"""Competing readings, the solver that chooses between them, and the confidence of joins."""

import itertools

import numpy as np
import pytest
from scipy import ndimage
from scipy.optimize import linprog
from skimage.segmentation import watershed
from test_linking import (
    LABELS,
    LESION,
    ORGAN,
    PLAN,
    content,
    content_turned,
    grid,
    painted,
    rectangle,
    replaced,
    turned,
)

from medseg.linking import flow, link, link_in_detail
from medseg.linking.affinity import Edges
from medseg.linking.alternatives import find_readings
from medseg.linking.dominated import undominated
from medseg.linking.drafts import divide
from medseg.linking.duplicates import drop_duplicates
from medseg.linking.flow import solve_tracks
from medseg.linking.joins import join_confidences
from medseg.linking.nodes import build_nodes

SHAPE = (11, 60, 70)
#: Two lesions side by side, in slices 2 to 7, and one mask over both.
LEFT, RIGHT, BOTH = (10, 10, 14, 14), (10, 24, 14, 14), (10, 10, 14, 28)


def merged_stack(merged, *, label=LESION, slices=range(2, 8)):
    parts = []
    for z in slices:
        boxes = [BOTH] if z in merged else [LEFT, RIGHT]
        parts += [rectangle(z, *box, label=label) for box in boxes]
    return parts


@pytest.mark.parametrize("merged", [(4,), (4, 5), (2,), (7,)])
def test_a_merged_mask_is_divided_where_its_neighbours_show_two(merged):
    found = link(merged_stack(merged), grid(SHAPE), LABELS, PLAN)
    assert len(found) == 2
    for i, box in ((1, LEFT), (2, RIGHT)):
        np.testing.assert_array_equal(found.full_mask(i), painted(SHAPE, *[(z, *box) for z in range(2, 8)]))


@pytest.mark.parametrize("split", [(4,), (4, 5), (2,)])
def test_halves_are_united_where_their_neighbours_show_one(split):
    parts = merged_stack([z for z in range(2, 8) if z not in split])
    found = link(parts, grid(SHAPE), LABELS, PLAN)
    assert len(found) == 1
    np.testing.assert_array_equal(found.full_mask(1), painted(SHAPE, *[(z, *BOTH) for z in range(2, 8)]))


def test_masks_are_divided_together_as_each_alone_along_the_watershed():
    rng = np.random.default_rng(3)
    parts, pixel_mm = [], (0.8, 0.7)
    for z in range(9):  # blobs of random outlines
        h, w = rng.integers(12, 25, 2).tolist()
        soft = (ndimage.gaussian_filter(rng.random((1, 32, 32)), (0, 4, 4)) > 0.47).astype(np.float32)
        parts.append(replaced(rectangle(z, 5, 6, h, w), masks=soft))
    blobs = build_nodes(parts, grid((9, 60, 70)), LABELS, 0.5)
    # Each is divided between those two above and two below.
    wanted = [(k, ((k + 2) % 9, (k + 7) % 9)) for k in range(9)]
    divided = 0
    for (big, covered), drafts in zip(wanted, divide(blobs, wanted, pixel_mm, [1.0] * 9), strict=True):
        (alone,) = divide(blobs, [(big, covered)], pixel_mm, [1.0])
        assert len(drafts) == len(alone)
        mask, markers = np.zeros((60, 70), np.bool_), np.zeros((60, 70), np.int32)
        # Where both lie the first stays.
        for number, i in zip((2, 1), sorted(covered, key=lambda i: blobs.keys[i], reverse=True), strict=True):
            r0, c0, r1, c1 = blobs.windows[i]
            markers[r0:r1, c0:c1][blobs.masks[i]] = number
        r0, c0, r1, c1 = blobs.windows[big]
        mask[r0:r1, c0:c1] = blobs.masks[big]
        depth = ndimage.distance_transform_edt(mask, sampling=pixel_mm)
        rank = np.argsort(np.argsort(-depth.ravel(), kind="stable")).reshape(mask.shape)  # no two pixels are equal
        expected = watershed(rank, markers * mask, mask=mask)
        if not ({1, 2} <= set(expected.ravel().tolist())):
            assert not drafts
            continue
        divided += 1
        for number, (part, same) in enumerate(zip(drafts, alone, strict=True), start=1):
            r0, c0, r1, c1 = part.window
            assert (part.window, part.key, part.reward) == (same.window, same.key, same.reward)
            np.testing.assert_array_equal(part.mask, same.mask)
            np.testing.assert_array_equal(part.mask, (expected == number)[r0:r1, c0:c1])
    assert divided > 3


def test_without_alternatives_the_merged_mask_goes_to_one_of_them():
    plan = PLAN.model_copy(update={"merged_prior": 0.0, "split_prior": 0.0})
    found = link(merged_stack((4,)), grid(SHAPE), LABELS, plan)
    # One bridges slice 4, and loses what it would fill there to the other.
    assert sorted(i.voxels for i in found) == [5 * 14 * 14, 7 * 14 * 14]


@pytest.mark.parametrize(("scores", "objects"), [((0.9, 0.8), 2), ((0.6, 0.8), 2)])
def test_a_mask_and_two_within_it_compete(scores, objects):
    # In slice 4 the detector gives all three; elsewhere two.
    parts = merged_stack(())
    parts.append(rectangle(4, *BOTH, score=scores[0]))
    found = link(parts, grid(SHAPE), LABELS, PLAN)
    assert len(found) == objects
    assert {i.voxels for i in found} == {6 * 14 * 14}
    # Elsewhere one: the two small ones lose.
    parts = merged_stack(range(2, 8))
    parts += [rectangle(4, *box, score=scores[1]) for box in (LEFT, RIGHT)]
    found = link(parts, grid(SHAPE), LABELS, PLAN)
    assert [i.voxels for i in found] == [6 * 14 * 28]


def test_a_single_label_has_no_alternatives():
    nodes = build_nodes(merged_stack((4,), label=ORGAN), grid(SHAPE), LABELS, 0.5)
    readings = find_readings(nodes, LABELS, (5.0, 0.8, 0.7), PLAN)
    assert len(readings.nodes) == len(nodes) and not len(readings.exclusive)
    found = link(merged_stack((4,), label=ORGAN), grid(SHAPE), LABELS, PLAN)
    assert len(found) == 1


def test_readings_of_a_merged_mask():
    geometry = grid(SHAPE)
    nodes = build_nodes(merged_stack((4,)), geometry, LABELS, 0.5)
    nodes = drop_duplicates(nodes, LABELS, PLAN, contained=False)
    readings = find_readings(nodes, LABELS, (5.0, 0.8, 0.7), PLAN)
    at = np.flatnonzero(readings.nodes.slices == 4)
    assert sorted(readings.nodes.areas[at].tolist()) == [14 * 14, 14 * 14, 14 * 28]
    assert readings.shares[at].tolist().count(0.5) == 2
    parts = at[readings.shares[at] == 0.5]
    whole = int(at[readings.shares[at] == 1.0][0])
    assert {tuple(sorted(p)) for p in readings.together.tolist()} == {tuple(parts.tolist())}
    assert {frozenset((whole, int(p))) for p in parts} <= {frozenset(p) for p in readings.exclusive.tolist()}
    # Together the parts are worth the whole and the price of dividing it.
    price = np.log(PLAN.merged_prior / (1 - PLAN.merged_prior))
    assert readings.rewards[parts].sum() == pytest.approx(readings.rewards[whole] + price)
    # In 3 and 5 the union of the two, whose price is another.
    union = np.flatnonzero((readings.nodes.slices == 3) & (readings.nodes.areas == 14 * 28))
    pair = np.flatnonzero((readings.nodes.slices == 3) & (readings.nodes.areas == 14 * 14))
    price = np.log(PLAN.split_prior / (1 - PLAN.split_prior))
    assert readings.rewards[union] == pytest.approx(readings.rewards[pair].sum() + price)


def test_order_and_direction_change_nothing_where_readings_compete():
    rng = np.random.default_rng(4)
    geometry = grid((13, 90, 110))
    for _ in range(4):
        parts = []
        for z in range(13):
            for row, column in ((10, 10), (45, 50)):
                left = (row, column, 15 + z % 3, 14)
                right = (row + 1, column + 14, 15, 14 + z % 2)
                whole = (row, column, 16, 28)
                draw = rng.random()
                boxes = [whole] if draw < 0.3 else [left, right, whole] if draw < 0.5 else [left, right]
                parts += [rectangle(z, *b, score=float(rng.uniform(0.4, 1))) for b in boxes if rng.random() > 0.05]
        first = link(parts, geometry, LABELS, PLAN)
        again = link([parts[i] for i in rng.permutation(len(parts))], geometry, LABELS, PLAN)
        assert content(again) == content(first)
        assert content_turned(link(turned(parts, 13), geometry, LABELS, PLAN), 13) == content(first)


# --- the solver -------------------------------------------------------------------------------------------------


def random_problem(rng, nodes=7, density=0.6):
    slices = np.sort(rng.integers(0, 4, nodes))
    first, second = np.nonzero((slices[None] > slices[:, None]) & (rng.random((nodes, nodes)) < density))
    keep = rng.permutation(len(first))[:10]
    edges = Edges(first=first[keep], second=second[keep], log_odds=rng.uniform(0.01, 3, len(keep)))
    same = np.argwhere(np.triu(slices[None] == slices[:, None], k=1))
    return slices, rng.normal(0.3, 1.5, nodes), edges, same


def brute_force(rewards, edges, exclusive=(), together=(), without=None, following=None):
    """The best value over every set of edges and nodes (``without`` one edge, or those ``following`` one)."""
    best = -np.inf
    n = len(rewards)
    for chosen in itertools.product((False, True), repeat=len(edges.first)):
        pick = np.array(chosen, np.bool_)
        if (without is not None and pick[without]) or (following is not None and not pick[following]):
            continue
        u, v = edges.first[pick], edges.second[pick]
        if len(set(u.tolist())) < len(u) or len(set(v.tolist())) < len(v):
            continue
        used = np.zeros(n, np.bool_)
        used[u], used[v] = True, True
        for rest in itertools.product((False, True), repeat=int(n - used.sum())) if len(exclusive) else [None]:
            taken = used | (rewards > 0) if rest is None else used.copy()
            if rest is not None:
                taken[~used] = rest
            if any(taken[i] and taken[j] for i, j in exclusive) or any(taken[i] != taken[j] for i, j in together):
                continue
            best = max(best, edges.log_odds[pick].sum() + rewards[taken].sum())
    return best


def worth(solution, rewards, edges):
    return rewards[solution.taken].sum() + edges.log_odds[solution.followed].sum()


def test_competing_readings_are_chosen_as_the_best_of_all_choices():
    rng = np.random.default_rng(11)
    for _ in range(12):
        _, rewards, edges, same = random_problem(rng, nodes=6)
        edges = Edges(first=edges.first[:6], second=edges.second[:6], log_odds=edges.log_odds[:6])
        exclusive, together = same[:2], same[2:3]
        solution = solve_tracks(rewards, edges, exclusive, together)
        assert solution.gap == 0
        assert worth(solution, rewards, edges) == pytest.approx(brute_force(rewards, edges, exclusive, together))


def test_edges_that_are_left_out_are_followed_by_no_best_choice():
    rng = np.random.default_rng(5)
    out = 0
    for _ in range(15):
        _, rewards, edges, same = random_problem(rng, nodes=6, density=1)
        edges = Edges(first=edges.first[:7], second=edges.second[:7], log_odds=edges.log_odds[:7])
        exclusive, together = same[:1], same[1:2]
        certain = rewards > 0
        certain[same[:2]] = False
        kept = undominated(edges, certain)
        best = brute_force(rewards, edges, exclusive, together)
        for e in np.flatnonzero(~kept):
            assert brute_force(rewards, edges, exclusive, together, following=e) < best
        out += np.count_nonzero(~kept)
    assert out > 8


def test_edges_of_equal_worth_stay():
    # 0 to 2 and to 3, 1 to 3: 0 -> 2 is worth as much as the two others, 1 -> 3 less than 0 -> 3.
    edges = Edges(first=np.array([0, 0, 1]), second=np.array([2, 3, 3]), log_odds=np.array([2.0, 2.0, 1.0]))
    certain = np.ones(4, np.bool_)
    assert undominated(edges, certain).all()
    edges.log_odds[0] = 2.1  # alone at 2: worth more than 0 -> 3
    assert undominated(edges, certain).tolist() == [True, False, True]
    assert undominated(edges, certain & (np.arange(4) != 2)).all()  # 2 may be left out, and 0 -> 3 followed


@pytest.mark.parametrize(("nodes", "branched"), [(3, 0), (5, 1)])
def test_odd_circles_of_conflicts_give_halves_and_are_solved(monkeypatch, nodes, branched):
    # Nodes in a circle, each excluding the next: pair by pair, the relaxation takes half of each. Three that exclude
    # each other are one row of the programme and come out whole; five in a circle need branch and bound.
    edges = Edges(first=np.zeros(0, np.intp), second=np.zeros(0, np.intp), log_odds=np.zeros(0))
    pairs = np.sort([[i, (i + 1) % nodes] for i in range(nodes)], axis=1)
    rows = np.zeros((nodes, nodes))
    rows[np.arange(nodes)[:, None], pairs] = 1
    relaxed = linprog(-np.ones(nodes), A_ub=rows, b_ub=np.ones(nodes), bounds=(0, 1))
    assert relaxed.fun == pytest.approx(-nodes / 2)
    calls = []
    branch = flow._branch
    monkeypatch.setattr(flow, "_branch", lambda *args: calls.append(1) or branch(*args))
    solution = solve_tracks(np.ones(nodes) + 0.1 * (np.arange(nodes) == 1), edges, pairs)
    assert solution.taken[1] and solution.taken.sum() == nodes // 2 and solution.gap == 0
    assert not solution.taken[pairs].all(axis=1).any()
    assert len(calls) == branched


def test_the_node_limit_ends_the_search_and_is_told():
    rng = np.random.default_rng(0)
    n = 100
    pairs = np.unique(np.sort([rng.choice(n, 2, replace=False) for _ in range(700)], axis=1), axis=0)
    edges = Edges(first=np.zeros(0, np.intp), second=np.zeros(0, np.intp), log_odds=np.zeros(0))
    rewards = rng.random(n)
    limited = solve_tracks(rewards, edges, pairs, node_limit=1)
    again = solve_tracks(rewards, edges, pairs, node_limit=1)
    np.testing.assert_array_equal(limited.taken, again.taken)
    assert 0 < limited.gap < np.inf
    assert not (limited.taken[pairs[:, 0]] & limited.taken[pairs[:, 1]]).any()


def test_confidence_is_the_optimum_less_the_optimum_without_the_join():
    rng = np.random.default_rng(7)
    compared = 0
    for trial in range(25):
        _, rewards, edges, _ = random_problem(rng, density=0.3 + 0.6 * (trial % 2))
        solution = solve_tracks(rewards, edges)
        confidence = join_confidences(rewards, edges, solution)
        best = brute_force(rewards, edges)
        for e in range(len(edges.first)):
            if solution.followed[e]:
                assert confidence[e] == pytest.approx(best - brute_force(rewards, edges, without=e), abs=1e-6)
                compared += 1
            else:
                assert np.isnan(confidence[e])
    assert compared > 40


def test_joins_are_listed_with_their_place_and_the_doubtful_first():
    geometry = grid(SHAPE)
    # A lesion that two others compete to continue: 20 x 20, moved by 6 on one side and by 7 on the other.
    parts = [rectangle(z, 20, 25, 20, 20) for z in (2, 3)]
    parts += [rectangle(4, 20, 31, 20, 20), rectangle(4, 20, 18, 20, 13)]
    result = link_in_detail(parts, geometry, LABELS, PLAN)
    assert result.optimality_gap == 0
    assert content(result.instances) == content(link(parts, geometry, LABELS, PLAN))
    assert [j.slices for j in result.joins] == [(2, 3), (3, 4)]
    sure, doubtful = result.joins
    assert doubtful.confidence < sure.confidence
    assert result.doubtful_joins(doubtful.confidence + 0.1) == (doubtful,)
    assert result.doubtful_joins(0.0) == ()
    # Half-way between (3, 29.5, 34.5) and (4, 29.5, 40.5) or (4, 29.5, 24).
    column = {31: 37.5, 18: 29.25}[31 if result.instances[sure.instance].mask.shape[2] == 26 else 18]
    expected = geometry.affine @ [3.5, 29.5, column, 1]
    np.testing.assert_allclose(doubtful.point_mm, expected[:3])
