import itertools
import time
import tracemalloc

import numpy as np
import pytest
from highdicom import VolumeGeometry
from linking_simulation import Ellipsoid, Noise, random_ellipsoids, simulate

from medseg.errors import InputError
from medseg.labels import LabelTable
from medseg.linking import link
from medseg.linking.affinity import Edges, link_log_odds, missing_slices, pair_features
from medseg.linking.flow import solve_tracks
from medseg.linking.reassembly import Patch, interpolate
from medseg.values.detections import Detections
from medseg.values.linking_plan import LinkingPlan, LinkWeights

LABELS = LabelTable.from_names(["organ", "lesion", "vertebra"], kinds={"lesion": "components", "vertebra": "ids"})
ORGAN, LESION, VERTEBRA = 1, 2, 3
PLAN = LinkingPlan(gap_mm=6.0, link_iou=0.3, gap_iou=0.4, min_score=0.3, length_ratio=0.5, keep_short=0.0)


def grid(shape=(11, 60, 70), spacing_mm=(5.0, 0.8, 0.7), rotated=False):
    """An off-origin grid, oblique where asked."""
    directions = np.eye(3)
    if rotated:
        a, b = np.deg2rad(25), np.deg2rad(-40)
        turn_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        turn_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
        directions = turn_x @ turn_z
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing_mm
    affine[:3, 3] = (-31.0, 17.5, 404.0)
    return VolumeGeometry(affine, shape, "PATIENT")


def rectangle(z, row, column, height, width, *, score=0.9, label=LESION, probability=1.0):
    """One detection: a filled rectangle of whole pixels."""
    return Detections(
        slice_index=z,
        boxes=np.array([[column, row, column + width, row + height]], np.float32),
        scores=np.array([score], np.float32),
        labels=np.array([label], np.int64),
        masks=np.full((1, 4, 4), probability, np.float32),
    )


def painted(shape, *rectangles):
    """The mask of (slice, row, column, height, width) rectangles."""
    mask = np.zeros(shape, np.bool_)
    for z, row, column, height, width in rectangles:
        mask[z, row : row + height, column : column + width] = True
    return mask


def content(instances):
    """What a set holds, without ids or order."""
    rows = [(i.label, round(i.score, 6), i.offset, i.mask.shape, np.packbits(i.mask).tobytes()) for i in instances]
    return sorted(rows)


def replaced(part, **changes):
    """The detections of a slice with some fields changed."""
    fields = dict(slice_index=part.slice_index, boxes=part.boxes, scores=part.scores, labels=part.labels)
    return Detections(**{**fields, "masks": part.masks, **changes})


def turned(detections, depth):
    """The detections of a volume of ``depth`` slices, upside down."""
    return [replaced(p, slice_index=depth - 1 - p.slice_index) for p in detections]


def content_turned(instances, depth):
    """`content` of a set on ``depth`` slices, upside down."""
    return sorted(
        (i.label, round(i.score, 6), (depth - i.offset[0] - i.mask.shape[0], *i.offset[1:]), i.mask.shape,
         np.packbits(i.mask[::-1]).tobytes())
        for i in instances
    )  # fmt: skip


# --- which detections are one object -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "shift", "objects"),
    # 20 x 20 squares moved by s have IoU (20 - s) / (20 + s): 0.333 and 0.290 around link_iou 0.3,
    # 0.429 and 0.379 around gap_iou 0.4.
    [(0, 10, 1), (0, 11, 2), (1, 8, 1), (1, 9, 2), (1, 0, 1), (1, 25, 2)],
)
def test_overlap_decides_on_either_side_of_the_threshold(missing, shift, objects):
    parts = [rectangle(3, 10, 10, 20, 20), rectangle(4 + missing, 10, 10 + shift, 20, 20)]
    found = link(parts, grid(), LABELS, PLAN)
    assert len(found) == objects


@pytest.mark.parametrize(
    ("slice_mm", "gap_mm", "missing", "objects"),
    [(5.0, 6.0, 1, 1), (5.0, 6.0, 2, 2), (5.0, 4.9, 1, 2), (2.0, 6.0, 3, 1), (2.0, 6.0, 4, 2), (0.1, 0.3, 3, 1)],
)
@pytest.mark.parametrize("rotated", [False, True])
def test_a_gap_is_bridged_up_to_so_many_mm(slice_mm, gap_mm, missing, objects, rotated):
    geometry = grid(spacing_mm=(slice_mm, 0.8, 0.7), rotated=rotated)
    # Two slices on either side, so that the score does not decide.
    slices = [1, 2, 3 + missing, 4 + missing]
    plan = PLAN.model_copy(update={"gap_mm": gap_mm, "length_ratio": 0.0})
    found = link([rectangle(z, 10, 10, 20, 20) for z in slices], geometry, LABELS, plan)
    assert len(found) == objects
    assert missing_slices(gap_mm, slice_mm) == (missing if objects == 1 else missing - 1)


def test_a_tie_does_not_merge_both_neighbours():
    parts = [
        rectangle(2, 10, 20, 10, 20),
        rectangle(3, 10, 10, 10, 20, label=LESION),
        rectangle(3, 10, 30, 10, 20, label=LESION),
    ]
    found = link(parts, grid(), LABELS, PLAN)
    assert len(found) == 2
    assert sorted(i.mask.shape[0] for i in found) == [1, 2]


@pytest.mark.parametrize("label", [LESION, VERTEBRA])
def test_touching_objects_stay_two(label):
    shape = (11, 60, 70)
    parts = [
        rectangle(z, 10 + z, column, 12, width, label=label)
        for z in range(11)
        for column, width in ((20, 10), (30, 14))
    ]
    found = link(parts, grid(shape), LABELS, PLAN)
    assert len(found) == 2
    np.testing.assert_array_equal(found.full_mask(1), painted(shape, *[(z, 10 + z, 20, 12, 10) for z in range(11)]))
    np.testing.assert_array_equal(found.full_mask(2), painted(shape, *[(z, 10 + z, 30, 12, 14) for z in range(11)]))


def test_objects_crossing_each_other_follow_the_better_overlap():
    # Greedy would take the pair of highest IoU first and leave the other two alone; the best set takes both.
    log_odds = np.array([3.0, 2.5, 2.5])
    edges = Edges(first=np.array([0, 0, 1]), second=np.array([2, 3, 2]), log_odds=log_odds)
    assert solve_tracks(np.full(4, 0.1), edges).tracks(edges) == [[0, 3], [1, 2]]


def test_the_flow_is_the_optimum_of_all_sets_of_tracks():
    rng = np.random.default_rng(3)
    for trial in range(40):
        slices = np.sort(rng.integers(0, 4, 6))
        first, second = np.nonzero((slices[None] > slices[:, None]) & (rng.random((6, 6)) < 0.6))
        first, second = first[:9], second[:9]
        worth, rewards = rng.uniform(0.01, 3, len(first)), rng.normal(0, 1.5, 6)
        if trial % 2:
            rewards = np.abs(rewards)
        best = -np.inf
        for chosen in itertools.product((False, True), repeat=len(first)):
            pick = np.array(chosen, np.bool_)
            u, v = first[pick], second[pick]
            if len(set(u)) < len(u) or len(set(v)) < len(v):
                continue
            used = np.zeros(6, np.bool_)
            used[u], used[v] = True, True
            best = max(best, worth[pick].sum() + rewards[used | (rewards > 0)].sum())
        edges = Edges(first=first, second=second, log_odds=worth)
        tracks = solve_tracks(rewards, edges).tracks(edges)
        value = dict(zip(zip(first.tolist(), second.tolist(), strict=True), worth, strict=True))
        got = sum(rewards[t].sum() + sum(value[pair] for pair in itertools.pairwise(t)) for t in tracks)
        assert got == pytest.approx(best)
        members = [i for t in tracks for i in t]
        assert len(members) == len(set(members))


@pytest.mark.parametrize(
    ("shared", "area_a", "area_b", "shift", "score", "missing", "expected"),
    [
        # Equal areas at the neutral IoU: 0.3 = 6 / 20 -> shared 6 of areas 13 and 13.
        (6, 13, 13, 0, 0.5, 0, 0.0),
        # A pole: 10 within 40. 6 (0.25 - 0.3) + 5 (1 - 0.6/1.3) - 0.15 ln 4
        (10, 10, 40, 0, 0.5, 0, 2.184364),
        # Half of that across one missing slice, and 4 (0.75 - 0.5) less for a far centroid.
        (10, 40, 10, 0.75, 0.5, 1, (2.184364 - 1) / 2),
        # Two units of score weight for 0.4 above one half.
        (6, 13, 13, 0, 0.9, 0, 0.8),
    ],
)
def test_log_odds_worked_out_by_hand(shared, area_a, area_b, shift, score, missing, expected):
    features = pair_features(*(np.array([float(v)]) for v in (shared, area_a, area_b, shift, score)))
    assert link_log_odds(features, 0.3, missing, LinkWeights(score=2.0)) == pytest.approx(expected)


# --- masks ---------------------------------------------------------------------------------------------------


def test_a_missed_slice_is_filled_between_its_neighbours():
    shape = (11, 60, 70)
    boxes = {z: (z, 10 + z, 15 + z, 11, 13) for z in range(2, 8)}  # an oblique column
    found = link([rectangle(*box) for z, box in boxes.items() if z != 5], grid(shape), LABELS, PLAN)
    assert len(found) == 1
    np.testing.assert_array_equal(found.full_mask(1), painted(shape, *boxes.values()))
    assert found[1].score == pytest.approx(5 * 0.9 / 6)


def test_interpolation_averages_the_distance_to_the_boundary():
    # Discs of radius 12 and 6 mm on pixels of 0.8 x 0.5 mm: a third of the way the radius is 10 mm.
    shape, pixel_mm = (64, 90), (0.8, 0.5)
    row, column = np.ogrid[:64, :90]
    r_mm = np.hypot((row - 31.5) * pixel_mm[0], (column - 44.5) * pixel_mm[1])
    big, small = Patch(mask=r_mm < 12, row=0, column=0), Patch(mask=r_mm < 6, row=0, column=0)
    third = interpolate(big, small, 3, pixel_mm, shape)[0]
    back = interpolate(small, big, 3, pixel_mm, shape)[1]
    area = np.count_nonzero(third.mask) * 0.8 * 0.5
    assert np.sqrt(area / np.pi) == pytest.approx(10.0, abs=0.15)
    assert third.window == back.window
    np.testing.assert_array_equal(third.mask, back.mask)


def test_interpolation_keeps_a_mask_that_moves_far():
    a = Patch(mask=np.ones((5, 30), np.bool_), row=3, column=0)
    b = Patch(mask=np.ones((5, 4), np.bool_), row=20, column=26)
    half = interpolate(a, b, 2, (0.8, 0.7), (40, 60))[0]
    rows, columns = np.nonzero(half.mask)
    assert rows.mean() + half.row == pytest.approx((5 + 22) / 2, abs=0.5)
    assert columns.mean() + half.column == pytest.approx((14.5 + 27.5) / 2, abs=0.5)


def test_interpolation_stays_within_the_slice():
    # A tall mask moved towards a short one at the upper and left border would reach beyond it.
    tall = Patch(mask=np.ones((30, 28), np.bool_), row=0, column=0)
    short = Patch(mask=np.ones((20, 20), np.bool_), row=0, column=0)
    for shape in ((40, 60), (30, 28)):
        half = interpolate(tall, short, 2, (0.8, 0.7), shape)[0]
        r0, c0, r1, c1 = half.window
        assert r0 >= 0 and c0 >= 0 and r1 <= shape[0] and c1 <= shape[1]
        assert half.mask[0, 2:18].all() and half.mask[2:18, 0].all()  # it still touches the border


def test_objects_of_one_label_share_no_voxel_and_labels_overlap_freely():
    shape = (5, 60, 70)
    parts = []
    for z in range(5):
        parts.append(rectangle(z, 10, 10, 20, 20, probability=0.9))
        parts.append(rectangle(z, 10, 26, 20, 20, probability=0.7))
        parts.append(rectangle(z, 5, 5, 40, 50, label=ORGAN, probability=0.6))
    found = link(parts, grid(shape), LABELS, PLAN)
    assert [i.label for i in found] == [ORGAN, LESION, LESION]
    np.testing.assert_array_equal(found.full_mask(1), painted(shape, *[(z, 5, 5, 40, 50) for z in range(5)]))
    np.testing.assert_array_equal(found.full_mask(2), painted(shape, *[(z, 10, 10, 20, 20) for z in range(5)]))
    np.testing.assert_array_equal(found.full_mask(3), painted(shape, *[(z, 10, 30, 20, 16) for z in range(5)]))


def test_a_filled_slice_loses_to_a_detection():
    shape = (7, 60, 70)
    left = [rectangle(z, 10, 10, 20, 20, score=0.99) for z in range(7) if z != 3]
    right = [rectangle(z, 10, 30 - 4 * (z == 3), 20, 20, score=0.6) for z in range(7)]
    found = link(left + right, grid(shape), LABELS, PLAN)
    assert len(found) == 2
    np.testing.assert_array_equal(found.full_mask(1)[3], painted(shape, (3, 10, 10, 20, 16))[3])
    np.testing.assert_array_equal(found.full_mask(2)[3], painted(shape, (3, 10, 26, 20, 20))[3])


def test_an_object_at_the_border_is_cut_off_there():
    shape = (4, 60, 70)
    found = link([rectangle(z, -5, 60, 20, 20) for z in (0, 1, 3)], grid(shape), LABELS, PLAN)
    assert len(found) == 1
    np.testing.assert_array_equal(found.full_mask(1), painted(shape, *[(z, 0, 60, 15, 10) for z in range(4)]))


# --- detections that are not objects ---------------------------------------------------------------------------


def test_nothing_detected_gives_an_empty_set():
    assert len(link([], grid(), LABELS, PLAN)) == 0
    assert len(link([Detections.empty(z, 28) for z in range(11)], grid(), LABELS, PLAN)) == 0
    outside = rectangle(3, -30, -30, 10, 10)
    unsure = rectangle(3, 10, 10, 10, 10, probability=0.4)
    assert len(link([outside, unsure], grid(), LABELS, PLAN)) == 0


@pytest.mark.parametrize("depth", [1, 11])
@pytest.mark.parametrize(("score", "objects"), [(0.9, 1), (0.3, 1), (0.29, 0)])
def test_one_slice_is_an_object_where_its_score_is_high(depth, score, objects):
    found = link([rectangle(0, 10, 10, 9, 7, score=score)], grid((depth, 60, 70)), LABELS, PLAN)
    assert len(found) == objects
    if objects:
        np.testing.assert_array_equal(found.full_mask(1), painted((depth, 60, 70), (0, 10, 10, 9, 7)))


@pytest.mark.parametrize("min_score", [0.05, 0.3, 0.6, 0.7, 0.95])
def test_a_score_equal_to_the_threshold_is_kept(min_score):
    plan = PLAN.model_copy(update={"min_score": min_score})
    assert len(link([rectangle(2, 10, 10, 9, 7, score=min_score)], grid(), LABELS, plan)) == 1


@pytest.mark.parametrize(("min_extent_mm", "objects"), [(0.0, 2), (5.0, 2), (10.0, 1), (10.1, 0)])
def test_short_objects_are_dropped_by_their_length_in_mm(min_extent_mm, objects):
    parts = [rectangle(2, 10, 10, 9, 9), rectangle(2, 40, 40, 9, 9), rectangle(3, 40, 40, 9, 9)]
    plan = PLAN.model_copy(update={"min_extent_mm": min_extent_mm})
    assert len(link(parts, grid(), LABELS, plan)) == objects


@pytest.mark.parametrize(
    ("z", "slice_mm", "score"),
    [(4, 5.0, 0.9), (4, 2.5, 0.3), (4, 2.0, 0.225), (4, 1.0, 0.225), (0, 2.0, 0.9), (10, 2.0, 0.9)],
)
def test_neighbours_that_should_have_shown_it_count_in_the_score(z, slice_mm, score):
    # 20 x 20 pixels are a disc of 16.9 mm: half of that is 1 slice of 5 mm, 3 of 2.5 mm, 4 of 2 mm, or 8 of 1 mm, of
    # which three count besides the one seen. At the ends of the volume the object may go on outside. An organ may be
    # flat.
    plan = PLAN.model_copy(update={"min_score": 0.1})
    geometry = grid(spacing_mm=(slice_mm, 0.8, 0.7))
    found = link([rectangle(z, 10, 10, 20, 20), rectangle(z, 10, 10, 20, 20, label=ORGAN)], geometry, LABELS, plan)
    assert found[1].score == pytest.approx(0.9)
    assert found[2].score == pytest.approx(score)


def test_a_weak_slice_counts_inside_an_object_and_not_alone():
    parts = [rectangle(z, 10, 10, 9, 9, score=s) for z, s in ((2, 0.9), (3, 0.2), (4, 0.8))]
    parts.append(rectangle(3, 40, 40, 9, 9, score=0.2))
    found = link(parts, grid(), LABELS, PLAN)
    assert len(found) == 1
    assert found[1].mask.shape == (3, 9, 9)
    assert found[1].score == pytest.approx((0.9 + 0.2 + 0.8) / 3)


def test_duplicates_are_judged_on_masks_and_the_higher_score_stays():
    geometry = grid()
    parts = [rectangle(z, 10, 10, 12, 12, score=0.9) for z in range(4)]
    parts += [rectangle(z, 11, 11, 12, 12, score=0.6) for z in range(4)]  # IoU 0.72
    parts += [rectangle(z, 12, 18, 5, 5, score=0.7) for z in range(4)]  # 4 of 5 columns within the first
    found = link(parts, geometry, LABELS, PLAN)
    assert len(found) == 1
    np.testing.assert_array_equal(found.full_mask(1), painted((11, 60, 70), *[(z, 10, 10, 12, 12) for z in range(4)]))
    # The same boxes, but one mask in the upper left half of it and one in the lower right: two things.
    upper = np.triu(np.ones((24, 24), np.float32), k=3)[:, ::-1]
    masks = np.stack([upper, upper[::-1, ::-1]])
    box = np.array([[10, 10, 34, 34]] * 2, np.float32)
    pair = [
        Detections(
            slice_index=z, boxes=box, scores=np.array([0.9, 0.8], np.float32), labels=np.array([2, 2]), masks=masks
        )
        for z in range(4)
    ]
    assert len(link(pair, geometry, LABELS, PLAN)) == 2


# --- labels of kind single -------------------------------------------------------------------------------------


def test_a_single_label_may_branch_and_have_parts():
    shape = (9, 60, 70)
    # A horseshoe: two arms in slices 0-4 that are one mass in 5-8.
    boxes = [(z, 10, c, 14, 15) for z in range(5) for c in (10, 35)] + [(z, 10, 10, 14, 40) for z in range(5, 9)]
    found = link([rectangle(*box, label=ORGAN) for box in boxes], grid(shape), LABELS, PLAN)
    assert len(found) == 1
    np.testing.assert_array_equal(found.full_mask(1), painted(shape, *boxes))
    # An arm of a single slice is little evidence, but an edge leads from it to the mass.
    short = [box for box in boxes if box[2] == 10 or box[0] == 4]
    found = link([rectangle(*box, label=ORGAN) for box in short], grid(shape), LABELS, PLAN)
    np.testing.assert_array_equal(found.full_mask(1), painted(shape, *short))
    # The same as lesions: the arms are two objects, and one of them continues.
    assert len(link([rectangle(*box) for box in boxes], grid(shape), LABELS, PLAN)) == 2


def test_a_single_label_keeps_parts_of_weight_and_drops_stray_ones():
    shape = (11, 60, 70)
    upper = [(z, 10, 10, 14, 15) for z in range(4)]
    lower = [(z, 12, 12, 14, 15) for z in range(8, 11)]  # too far for a link
    stray = [(5, 45, 50, 6, 6), (6, 45, 50, 6, 6)]
    parts = [rectangle(*box, label=ORGAN) for box in (*upper, *lower)]
    parts += [rectangle(*box, label=ORGAN, score=0.5) for box in stray]
    found = link(parts, grid(shape), LABELS, PLAN)
    assert len(found) == 1
    np.testing.assert_array_equal(found.full_mask(1), painted(shape, *upper, *lower))
    assert found[1].score == pytest.approx(0.9)  # slices between the parts are not missing


def test_a_part_within_the_whole_of_a_single_label():
    shape = (5, 60, 70)
    whole = [rectangle(z, 10, 10, 30, 30, label=ORGAN, score=0.6) for z in range(5)]
    part = [rectangle(z, 15, 35, 6, 7, label=ORGAN, score=0.9) for z in range(5)]  # 5 of 7 columns inside
    found = link(whole + part, grid(shape), LABELS, PLAN)
    assert len(found) == 1
    expected = painted(shape, *[(z, 10, 10, 30, 30) for z in range(5)], *[(z, 15, 35, 6, 7) for z in range(5)])
    np.testing.assert_array_equal(found.full_mask(1), expected)
    # A whole of less than half the part's score is not believed.
    doubtful = [rectangle(z, 10, 10, 30, 30, label=ORGAN, score=0.4) for z in range(5)]
    found = link(doubtful + part, grid(shape), LABELS, PLAN.model_copy(update={"single_min_score": 0.0}))
    np.testing.assert_array_equal(found.full_mask(1), painted(shape, *[(z, 15, 35, 6, 7) for z in range(5)]))


@pytest.mark.parametrize(("least", "slices"), [(0.0, 11), (0.375, 11), (0.5, 8), (0.625, 7)])
def test_an_organ_ends_where_its_scores_fall(least, slices):
    """Seven slices that are sure, one of 0.5, three of 0.375 where it runs on into a neighbour; a lesion keeps all."""
    scores = [0.9] * 7 + [0.5] + [0.375] * 3
    boxes = [(z, 10 + z, 12, 14, 15) for z in range(11)]
    plan = PLAN.model_copy(update={"single_min_score": least})
    for label, expected in ((ORGAN, slices), (LESION, 11)):
        parts = [rectangle(*box, label=label, score=score) for box, score in zip(boxes, scores, strict=True)]
        found = link(parts, grid(), LABELS, plan)
        np.testing.assert_array_equal(found.full_mask(1), painted((11, 60, 70), *boxes[:expected]))
    assert LinkingPlan().single_min_score == 0.5


# --- invariances -----------------------------------------------------------------------------------------------

NOISY = Noise(jitter=0.7, misses=0.08, false_positives=0.2, duplicates=0.1)


def scene(seed, shape=(13, 90, 110), spacing_mm=(2.5, 0.8, 0.7), rotated=False, count=6):
    rng = np.random.default_rng(seed)
    geometry = grid(shape, spacing_mm, rotated)
    objects = random_ellipsoids(rng, geometry, LESION, count, (4.0, 7.0))
    centre = tuple(n * s / 2 for n, s in zip(shape, spacing_mm, strict=True))
    objects.append(Ellipsoid(centre, tuple(c * 0.9 for c in centre), ORGAN))
    return geometry, objects, simulate(rng, geometry, objects, NOISY)


def shuffled(rng, detections):
    parts = []
    for part in detections:
        part = part[rng.permutation(len(part))]
        cut = rng.integers(0, len(part) + 1)
        parts += [part[:cut], part[cut:]]  # even the split into Detections is no matter
    return [parts[i] for i in rng.permutation(len(parts))]


@pytest.mark.parametrize("seed", range(6))
def test_order_classes_and_direction_change_nothing(seed):
    geometry, _, detections = scene(seed, rotated=seed % 2 == 1)
    first = link(detections, geometry, LABELS, PLAN)
    assert content(link(detections, geometry, LABELS, PLAN)) == content(first)

    other = link(shuffled(np.random.default_rng(seed), detections), geometry, LABELS, PLAN)
    assert [i.label for i in other] == [i.label for i in first]
    for a, b in zip(first, other, strict=True):
        assert (a.offset, a.score) == (b.offset, b.score)
        np.testing.assert_array_equal(a.mask, b.mask)

    depth = geometry.spatial_shape[0]
    assert content_turned(link(turned(detections, depth), geometry, LABELS, PLAN), depth) == content(first)

    swapped = LabelTable.from_names(["lesion", "organ"], kinds={"lesion": "components"})
    renumbered = link([replaced(p, labels=3 - p.labels) for p in detections], geometry, swapped, PLAN)
    assert sorted((3 - c[0], *c[1:]) for c in content(renumbered)) == content(first)


def test_ties_fall_the_same_way_in_any_order_and_upside_down():
    # Two squares side by side, then two one above the other: the four overlaps are equal, so both ways to join
    # them are equally good and only the tie-break decides.
    plan = PLAN.model_copy(update={"link_iou": 0.05, "gap_mm": 0.0})
    rng = np.random.default_rng(0)
    for _ in range(12):
        row, column = rng.integers(0, 20, 2)
        beside = [(row + 10, column), (row + 10, column + 20)]
        above = [(row, column + 10), (row + 20, column + 10)]
        parts = [rectangle(z, *at, 20, 20) for z in range(4) for at in (above if z % 2 else beside)]
        found = link(parts, grid((4, 60, 70)), LABELS, plan)
        assert [i.mask.shape[0] for i in found] == [4, 4]
        masks = {np.packbits(found.full_mask(i.id)).tobytes() for i in found}
        again = link([parts[i] for i in rng.permutation(8)], grid((4, 60, 70)), LABELS, plan)
        assert {np.packbits(again.full_mask(i.id)).tobytes() for i in again} == masks
        below = link(turned(parts, 4), grid((4, 60, 70)), LABELS, plan)
        assert {np.packbits(below.full_mask(i.id)[::-1]).tobytes() for i in below} == masks


# --- simulated detections of a known truth -------------------------------------------------------------------------


def best_iou(truth, instances, label):
    """IoU of the truth with the object that fits it best, and how many objects lie mostly in it."""
    best, fragments = 0.0, 0
    for instance in instances:
        if instance.label == label:
            inside = np.count_nonzero(truth[instance.window] & instance.mask)
            best = max(best, inside / (truth.sum() + instance.voxels - inside))
            fragments += inside > 0.5 * instance.voxels
    return best, fragments


def recover(noise, spacing_mm, rotated, seeds):
    """Link simulated lesions, half of them touching another; return IoU and fragments per lesion, objects found."""
    geometry = grid((int(100 / spacing_mm[0]), 220, 260), spacing_mm, rotated)
    ious, fragments, found = [], [], 0
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        least = max(4.0, 2 * spacing_mm[0])  # a lesion shows in 4 slices or so
        objects = random_ellipsoids(rng, geometry, LESION, 16, (least, least + 3))
        instances = link(
            simulate(rng, geometry, objects, noise), geometry, LABELS, PLAN.model_copy(update={"min_score": 0.5})
        )
        best = [best_iou(thing.mask(geometry), instances, thing.label) for thing in objects]
        ious += [iou for iou, _ in best]
        fragments += [n for _, n in best]
        found += len(instances)
    return np.array(ious), np.array(fragments), found


@pytest.mark.parametrize(("slice_mm", "rotated"), [(1.5, False), (2.5, True), (5.0, False)])
def test_all_objects_are_recovered_from_jitter_duplicates_and_false_positives(slice_mm, rotated):
    noise = Noise(jitter=0.7, misses=0.0, false_positives=0.2, duplicates=0.1)
    ious, fragments, found = recover(noise, (slice_mm, 0.8, 0.7), rotated, seeds=3)
    assert ious.min() > 0.6
    np.testing.assert_array_equal(fragments, 1)
    assert found == len(ious)


@pytest.mark.parametrize("slice_mm", [1.5, 2.5, 5.0])
def test_objects_stay_whole_where_slices_are_missed(slice_mm):
    # 8 % of the slices missed. What is left: lesions of four slices of which two are missed, and the last
    # few pixels of a lesion behind a missed slice.
    ious, fragments, found = recover(NOISY, (slice_mm, 0.8, 0.7), False, seeds=5)
    print(f"{len(ious)} lesions: IoU > 0.5 {np.mean(ious > 0.5):.3f}, {fragments.mean():.3f} fragments, {found} found")
    assert np.mean(ious > 0.5) >= 0.97
    assert fragments.mean() <= 1.05
    assert found <= 1.05 * len(ious)


def test_exact_detections_give_back_the_truth():
    geometry = grid((19, 120, 140), (3.0, 0.8, 0.7))
    rng = np.random.default_rng(5)
    objects = random_ellipsoids(rng, geometry, LESION, 8, (8.0, 12.0))
    found = link(simulate(rng, geometry, objects, Noise()), geometry, LABELS, PLAN)
    assert len(found) == 8
    for thing in objects:
        assert best_iou(thing.mask(geometry), found, LESION)[0] > 0.96


@pytest.mark.parametrize("spacing_mm", [(0.8, 0.8, 0.8), (5.0, 0.8, 0.7), (10.0, 0.8, 0.7)])
@pytest.mark.parametrize("rotated", [False, True])
def test_isotropic_thick_and_oblique_volumes(spacing_mm, rotated):
    # An ellipsoid and a slice through it missed: 50 mm long, so that 10 mm slices show it five times.
    geometry = grid((int(70 / spacing_mm[0]), 60, 70), spacing_mm, rotated)
    thing = Ellipsoid((35.0, 24.0, 25.0), (25.0, 14.0, 16.0), LESION)
    detections = simulate(np.random.default_rng(0), geometry, [thing], Noise())
    missed = int(45 / spacing_mm[0])
    plan = PLAN.model_copy(update={"gap_mm": 10.0})
    found = link([p for p in detections if p.slice_index != missed], geometry, LABELS, plan)
    assert len(found) == 1
    truth = thing.mask(geometry)
    mask = found.full_mask(1)
    assert (mask & truth).sum() / (mask | truth).sum() > 0.9
    filled, wanted = mask[missed], truth[missed]
    # Straight lines between slices 20 mm apart cut off what bulges.
    assert (filled & wanted).sum() / (filled | wanted).sum() > (0.7 if spacing_mm[0] == 10.0 else 0.85)
    np.testing.assert_array_equal(found.geometry.affine, geometry.affine)


def test_thousands_of_detections_in_seconds_and_little_memory():
    geometry = grid((300, 400, 400), (1.5, 0.8, 0.7))
    rng = np.random.default_rng(1)
    objects = random_ellipsoids(rng, geometry, LESION, 500, (5.0, 9.0))
    detections = simulate(rng, geometry, objects, NOISY)
    count = sum(len(part) for part in detections)
    started = time.process_time()
    found = link(detections, geometry, LABELS, PLAN)
    seconds = time.process_time() - started
    print(f"{count} detections, {len(found)} objects, {seconds:.2f} s")
    assert count > 5000
    assert 490 < len(found) < 550  # some fragments, some false positives
    assert seconds < 10  # 1.5 s on one idle core


def test_memory_grows_with_the_objects_not_with_the_volume():
    def peak(shape):
        parts = [rectangle(z, 10, 10, 20, 20) for z in range(5)]
        tracemalloc.start()
        link(parts, grid(shape), LABELS, PLAN)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak((11, 60, 70))  # whatever is imported or cached on the way
    assert peak((1100, 1600, 1700)) < 2 * peak((11, 60, 70)) < 2 * 2**20


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (rectangle(11, 1, 1, 3, 3), "slices 0..10"),
        (rectangle(-1, 1, 1, 3, 3), "slices 0..10"),
        (rectangle(2, 1, 1, 3, 3, label=9), r"label ids \[9\]"),
        (rectangle(2, np.nan, 1, 3, 3), "not finite"),
        (rectangle(2, 1, 1, 3, 3, probability=np.nan), "not finite"),
        (rectangle(2, 1, 1, 3, 3, score=np.nan), "scores"),
        (rectangle(2, 1, 1, 3, 3, score=1.5), "scores"),
    ],
)
def test_detections_that_do_not_fit_are_refused(part, message):
    with pytest.raises(InputError, match=message):
        link([part], grid(), LABELS, PLAN)
