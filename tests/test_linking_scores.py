"""Scores, their calibration, smoothing, other views, and the fit of weights."""

import numpy as np
import pytest
from linking_simulation import Noise, random_ellipsoids, simulate
from scipy.optimize import minimize
from scipy.special import expit
from test_linking import LABELS, LESION, ORGAN, PLAN, content, content_turned, grid, painted, rectangle, turned

from medseg.errors import ConfigError, GeometryError
from medseg.linking import link
from medseg.linking.affinity import neutral_features
from medseg.linking.nodes import build_nodes
from medseg.linking.scores import calibrated, fit_isotonic, object_score
from medseg.linking.tuning import Pairs, fit_weights, label_pairs, log_loss
from medseg.linking.views import Views
from medseg.values.geometry import AxisMap
from medseg.values.instances import InstanceSet
from medseg.values.linking_plan import LinkingPlan, LinkWeights
from medseg.values.plan import parse_plan

SHAPE = (11, 60, 70)


# --- scores -----------------------------------------------------------------------------------------------------


def test_a_score_is_weighted_by_the_diameter_and_missed_slices_count():
    parts = [rectangle(2, 20, 20, 4, 4, score=0.2), rectangle(3, 18, 18, 8, 8, score=0.9)]
    parts += [rectangle(5, 16, 16, 12, 12, score=0.8)]
    nodes = build_nodes(parts, grid(SHAPE), LABELS, 0.5)
    seen = 4 * 0.2 + 8 * 0.9 + 12 * 0.8
    missed = np.sqrt((64 + 144) / 2)
    assert object_score(nodes, [[0, 1, 2]], 0) == pytest.approx(seen / (24 + missed))
    # Two more that should have shown it, of the mean diameter.
    assert object_score(nodes, [[0, 1, 2]], 2) == pytest.approx(seen / (24 + 16 + missed))
    # Two tracks of one object: what one misses the other may see.
    assert object_score(nodes, [[0, 2], [1]], 0) == pytest.approx(seen / (24 + np.sqrt((16 * 1 + 144 * 2) / 3)))


def test_weak_poles_do_not_drag_a_good_lesion_down():
    side = {2: 3, 3: 9, 4: 12, 5: 9, 6: 3}
    score = {2: 0.25, 3: 0.85, 4: 0.9, 5: 0.85, 6: 0.25}
    parts = [rectangle(z, 30 - s // 2, 30 - s // 2, s, s, score=score[z]) for z, s in side.items()]
    plan = PLAN.model_copy(update={"min_score": 0.65})
    assert np.mean(list(score.values())) < 0.65  # a plain mean would drop it
    assert len(link(parts, grid(SHAPE), LABELS, plan)) == 1
    # A hole in its middle should.
    assert len(link([p for p in parts if p.slice_index != 4], grid(SHAPE), LABELS, plan)) == 0


def test_isotonic_calibration():
    rng = np.random.default_rng(2)
    scores = rng.permutation(np.linspace(0.1, 0.9, 300))
    true = rng.random(300) < scores**2
    knots = fit_isotonic(scores, true)
    x, p = np.array(knots).T
    assert (np.diff(x) > 0).all() and (np.diff(p) > 0).all() and p[0] > 0 and p[-1] < 1
    np.testing.assert_allclose([calibrated(s, knots) for s in (0.3, 0.5, 0.7)], [0.09, 0.25, 0.49], atol=0.12)
    # Worked out by hand: 0 1 | 0 1 | 1 pools to 0, (1 0), (1 1) -> the means 0, 1/2, 1.
    assert fit_isotonic([0.1, 0.2, 0.3, 0.4, 0.5], [0, 1, 0, 1, 1]) == (
        (pytest.approx(0.1), pytest.approx(1 / 3)),
        (pytest.approx(0.25), pytest.approx(2 / 4)),
        (pytest.approx(0.45), pytest.approx(3 / 4)),
    )
    assert fit_isotonic([0.5, 0.6], [1, 0]) == ((pytest.approx(0.55), pytest.approx(0.5)),)
    assert calibrated(0.37, ()) == 0.37
    assert calibrated(0.0, ((0.2, 0.1), (0.6, 0.5))) == 0.1
    assert calibrated(0.3, ((0.2, 0.1), (0.6, 0.5))) == pytest.approx(0.2)


def test_calibration_changes_scores_and_nothing_else():
    parts = [rectangle(z, 10, c, 9, 9, score=s) for c, s in ((10, 0.9), (40, 0.5)) for z in range(4)]
    plain = link(parts, grid(SHAPE), LABELS, PLAN)
    plan = PLAN.model_copy(update={"calibration": ((0.4, 0.05), (0.6, 0.25), (1.0, 0.65))})
    found = link(parts, grid(SHAPE), LABELS, plan)
    assert [i.score for i in found] == pytest.approx([0.55, 0.15])
    for a, b in zip(found, plain, strict=True):
        np.testing.assert_array_equal(a.mask, b.mask)
    with pytest.raises(ConfigError, match="ascending"):
        parse_plan(
            {"labels": {}, "input": {"spacing_mm": [1, 1]}, "linking": {"calibration": [[0.5, 0.2], [0.4, 0.3]]}}, "x"
        )


# --- reassembly -------------------------------------------------------------------------------------------------


def test_smoothing_averages_over_mm_along_the_slices():
    # 20 x 20 squares, one slice 6 columns to the right: its neighbours outvote it.
    parts = [rectangle(z, 10, 10 + 6 * (z == 3), 20, 20) for z in range(7)]
    expected = [(z, 10, 10, 20, 20) for z in range(7)]
    plan = PLAN.model_copy(update={"smooth_mm": 5.0})
    found = link(parts, grid(SHAPE), LABELS, plan)
    np.testing.assert_array_equal(found.full_mask(1), painted(SHAPE, *expected))
    # The same millimetres on slices four times as far apart are less than half a slice: nothing.
    found = link(parts, grid(SHAPE, (20.0, 0.8, 0.7)), LABELS, plan)
    assert found.full_mask(1)[3, 15, 30:36].all()
    # The ends of the object keep their masks.
    ends = [(2, 15, 15, 10, 10), (3, 10, 10, 20, 20), (4, 15, 15, 10, 10)]
    found = link([rectangle(*box) for box in ends], grid(SHAPE), LABELS, PLAN.model_copy(update={"smooth_mm": 3.0}))
    assert found.full_mask(1)[[2, 4]].any(axis=(1, 2)).all()


def test_smoothing_is_the_same_upside_down_and_keeps_divided_masks_apart():
    rng = np.random.default_rng(3)
    geometry = grid((19, 90, 110), (2.5, 0.8, 0.7))
    objects = random_ellipsoids(rng, geometry, LESION, 6, (5.0, 9.0))
    detections = simulate(rng, geometry, objects, Noise(jitter=0.7, misses=0.1))
    plan = PLAN.model_copy(update={"smooth_mm": 2.5})
    back = link(turned(detections, 19), geometry, LABELS, plan)
    assert content_turned(back, 19) == content(link(detections, geometry, LABELS, plan))
    shape = (7, 60, 70)
    parts = [rectangle(z, 10, c, 14, 14) for z in range(7) for c in (10, 24) if z != 3]
    parts.append(rectangle(3, 10, 10, 14, 28))
    found = link(parts, grid(shape), LABELS, PLAN.model_copy(update={"smooth_mm": 4.0}))
    assert len(found) == 2
    np.testing.assert_array_equal(found.full_mask(1), painted(shape, *[(z, 10, 10, 14, 14) for z in range(7)]))


# --- kinds ------------------------------------------------------------------------------------------------------


def test_a_bowel_loop_is_one_object_with_several_parts_per_slice():
    # Three limbs that turn into each other above and below: ||| with an arch in the first and one in the last slice.
    shape = (9, 60, 70)
    limbs = [(z, 15, column, 20, 8) for z in range(1, 8) for column in (10, 25, 40)]
    arches = [(0, 15, 10, 20, 23), (8, 15, 25, 20, 23)]
    found = link([rectangle(*b, label=ORGAN) for b in limbs + arches], grid(shape), LABELS, PLAN)
    assert len(found) == 1
    np.testing.assert_array_equal(found.full_mask(1), painted(shape, *limbs, *arches))


def test_two_lungs_of_one_single_label_are_one_object():
    shape = (9, 60, 70)
    lobes = [(z, 10, 5, 30, 22) for z in range(9)] + [(z, 10, 40, 30, 18) for z in range(1, 9)]
    found = link([rectangle(*b, label=ORGAN) for b in lobes], grid(shape), LABELS, PLAN)
    assert len(found) == 1
    np.testing.assert_array_equal(found.full_mask(1), painted(shape, *lobes))


# --- other views ------------------------------------------------------------------------------------------------


def coronal_pass(boxes, geometry):
    """Detections of (slice, row, column) boxes of voxels, one per row, on the grid with rows as slices."""
    axis_map = AxisMap(order=(1, 0, 2), flips=(False, True, False))
    turned = axis_map.geometry(geometry)
    parts = []
    for (z0, z1), (r0, r1), (c0, c1) in boxes:
        (k, z, c) = axis_map.offset((z0, r0, c0), (z1 - z0, r1 - r0, c1 - c0), geometry.spatial_shape)
        parts += [rectangle(k + i, z, c, z1 - z0, c1 - c0) for i in range(r1 - r0)]
    return parts, turned


def test_another_view_joins_and_divides():
    geometry = grid(SHAPE)
    # Two stacks that overlap with an IoU of 0.29, below link_iou 0.3.
    parts = [rectangle(z, 10, 10, 20, 20) for z in (2, 3)] + [rectangle(z, 10, 21, 20, 20) for z in (4, 5)]
    plan = PLAN.model_copy(update={"weights": LinkWeights(view=2.0)})
    assert len(link(parts, geometry, LABELS, plan)) == 2
    one = coronal_pass([((2, 6), (10, 30), (10, 41))], geometry)
    assert len(link(parts, geometry, LABELS, plan, [one])) == 1
    assert len(link(parts, geometry, LABELS, PLAN, [one])) == 2  # weight 0: off
    # Two stacks that overlap a little more than needed.
    parts = [rectangle(z, 10, 10, 20, 20) for z in (2, 3)] + [rectangle(z, 10, 20, 20, 20) for z in (4, 5)]
    two = coronal_pass([((2, 4), (10, 30), (10, 41)), ((4, 6), (10, 30), (10, 41))], geometry)
    assert len(link(parts, geometry, LABELS, plan)) == 1
    assert len(link(parts, geometry, LABELS, plan, [two])) == 2


def test_agreement_of_another_view_worked_out_by_hand():
    geometry = grid(SHAPE)
    nodes = build_nodes([rectangle(2, 10, 10, 20, 20), rectangle(3, 10, 14, 20, 20)], geometry, LABELS, 0.5)
    # 20 rows x 16 columns are shared. Held as one in 5 rows x 10 columns, as two in 4 rows x 16 columns.
    boxes = [((2, 4), (10, 15), (14, 24)), ((2, 3), (20, 24), (0, 60)), ((3, 5), (20, 24), (0, 60))]
    views = Views.build([coronal_pass(boxes, geometry)], geometry, LABELS, 0.5)
    got = views.agreement(nodes, np.array([0]), np.array([1]))
    assert got == pytest.approx([(50 - 64) / 320])
    with pytest.raises(GeometryError, match="slices of the volume itself"):
        Views.build([([], geometry)], geometry, LABELS, 0.5)
    with pytest.raises(GeometryError, match="expected the grid of the volume"):
        Views.build([([], grid((11, 60, 71)))], geometry, LABELS, 0.5)


# --- fitting ----------------------------------------------------------------------------------------------------


def random_pairs(rng, count, weights, neutral):
    features = np.column_stack(
        [rng.random(count), rng.random(count), rng.exponential(0.5, count), rng.exponential(0.3, count),
         rng.uniform(-0.3, 0.5, count)]
    )  # fmt: skip
    missing = rng.integers(0, 3, count)
    worth = np.array([weights.iou, weights.contained, weights.area, weights.shift, weights.score])
    offset = np.array([neutral_features(neutral[int(m > 0)]) @ worth for m in missing])
    same = rng.random(count) < expit((features @ worth - offset) / (1 + missing))
    return Pairs(features=features, missing=missing, same=same)


def test_weights_are_found_again():
    rng = np.random.default_rng(0)
    true = LinkWeights(iou=8.0, contained=3.0, area=-1.0, shift=-2.0, score=2.5)
    pairs = random_pairs(rng, 40000, true, (0.35, 0.6))
    fitted = fit_weights(pairs, LinkingPlan())
    for name in ("iou", "contained", "area", "shift", "score"):
        assert getattr(fitted.weights, name) == pytest.approx(getattr(true, name), abs=0.25)
    assert (fitted.link_iou, fitted.gap_iou) == (pytest.approx(0.35, abs=0.03), pytest.approx(0.6, abs=0.03))
    assert log_loss(pairs, fitted) < log_loss(pairs, LinkingPlan())


def test_the_fit_is_the_minimum_that_a_general_optimiser_finds():
    pairs = random_pairs(np.random.default_rng(5), 300, LinkWeights(score=1.0), (0.3, 0.4))
    plan = LinkingPlan(link_iou=0.3, gap_iou=0.4)
    fitted = fit_weights(pairs, plan)
    w0 = np.array([6.0, 5.0, -0.15, -4.0, 0.0])
    prior = np.concatenate([[-neutral_features(0.3) @ w0, -neutral_features(0.4) @ w0], w0])
    gap = pairs.missing > 0
    design = np.column_stack([~gap, gap, pairs.features]) / (1 + pairs.missing)[:, None]
    sign = np.where(pairs.same, -1, 1)

    def objective(beta):
        return np.logaddexp(0, sign * (design @ beta)).sum() + np.sum((beta - prior) ** 2) / 18

    bounds = [(None, None)] * 2 + [(0, None)] * 2 + [(None, 0)] * 2 + [(0, None)]
    found = minimize(objective, prior, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-9}).x
    got = [getattr(fitted.weights, name) for name in ("iou", "contained", "area", "shift", "score")]
    np.testing.assert_allclose(got, found[2:], atol=2e-3)
    assert neutral_features(fitted.link_iou) @ found[2:] == pytest.approx(-found[0], abs=2e-3)


def test_a_weight_of_the_wrong_sign_becomes_zero_and_no_pairs_change_nothing():
    rng = np.random.default_rng(1)
    pairs = random_pairs(rng, 3000, LinkWeights(), (0.45, 0.5))
    # Say the opposite of everything that shift says.
    same = pairs.features[:, 3] > 0.2
    fitted = fit_weights(Pairs(features=pairs.features, missing=pairs.missing, same=same), LinkingPlan())
    assert fitted.weights.shift == 0.0
    none = Pairs.join([])
    assert fit_weights(none, LinkingPlan()) == LinkingPlan()
    assert np.isnan(log_loss(none, LinkingPlan()))


def test_pairs_are_labelled_by_the_truth():
    geometry = grid(SHAPE)
    truth = InstanceSet.from_masks(
        [
            (LESION, painted(SHAPE, *[(z, 10, 10, 14, 14) for z in range(2, 6)])),
            (LESION, painted(SHAPE, *[(z, 10, 24, 14, 14) for z in range(2, 6)])),
        ],
        geometry,
        LABELS,
    )
    parts = [rectangle(2, 10, 10, 14, 14), rectangle(3, 10, 12, 14, 14), rectangle(3, 10, 22, 14, 14)]
    parts += [rectangle(4, 8, 15, 14, 4), rectangle(5, 8, 15, 14, 4)]  # of nothing
    pairs = label_pairs(parts, truth, PLAN)
    rows = {(round(float(f[0]), 4), int(m), bool(s)) for f, m, s in zip(pairs.features, pairs.missing, pairs.same)}  # noqa: B905
    assert (round(12 / 16, 4), 0, True) in rows  # the left one in slices 2 and 3
    assert (round(2 / 26, 4), 0, False) in rows  # the left one and the right one
    assert sum(m == 0 for _, m, _ in rows) == 3  # and the left one of slice 3 with the strip; not strip with strip
    assert (pairs.same == [s for s in pairs.same]).all() and pairs.same.sum() == 1


def test_fitting_on_simulated_detections_does_not_hurt():
    geometry = grid((40, 160, 180), (2.5, 0.8, 0.7))
    rng = np.random.default_rng(8)
    objects = random_ellipsoids(rng, geometry, LESION, 16, (5.0, 9.0))
    detections = simulate(rng, geometry, objects, Noise(jitter=0.7, misses=0.08, false_positives=0.9, duplicates=0.1))
    truth = InstanceSet.from_masks([(LESION, thing.mask(geometry)) for thing in objects], geometry, LABELS)
    pairs = label_pairs(detections, truth, PLAN)
    fitted = fit_weights(pairs, PLAN)
    assert pairs.same.sum() > 100 and (~pairs.same).sum() > 10
    assert log_loss(pairs, fitted) < log_loss(pairs, PLAN)
    before, after = (len(link(detections, geometry, LABELS, plan)) for plan in (PLAN, fitted))
    assert abs(after - 16) <= abs(before - 16) + 1
