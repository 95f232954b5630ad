"""Object agreement with values worked out by hand. Objects are runs of voxels along one line."""

import math

import numpy as np
import pytest
from highdicom import VolumeGeometry

from medseg.labels import LabelTable
from medseg.metrics.detection import DetectionScore, pooled, score_detections
from medseg.values.instances import InstanceSet
from medseg.values.pairs import PairTable

SHAPE = (1, 2, 40)
LABELS = LabelTable.from_names(["liver", "lesion"], kinds={"lesion": "ids"})
GRID = VolumeGeometry(np.diag([5.0, 0.7, 0.9, 1.0]), SHAPE, "PATIENT")
SCORES = ("f1", "sensitivity", "precision", "sq", "pq", "mean_matched_dice")


def runs(*ends: tuple[int, int], label: int = 2) -> InstanceSet:
    masks = []
    for start, stop in ends:
        mask = np.zeros(SHAPE, bool)
        mask[0, 0, start:stop] = True
        masks.append((label, mask))
    return InstanceSet.from_masks(masks, GRID, LABELS)


def score(reference: InstanceSet, prediction: InstanceSet, threshold: float = 0.3, label: int = 2) -> DetectionScore:
    pairs = PairTable.between(reference, prediction)
    return score_detections(pairs, pairs.matching(threshold), label)


def test_counts_and_scores_by_hand() -> None:
    # 0-10 against 0-8: IoU 0.8, Dice 16/18. 20-24 against 22-26: IoU 2/6, Dice 4/8. 30-34 missed, 36-38 invented.
    result = score(runs((0, 10), (20, 24), (30, 34)), runs((0, 8), (22, 26), (36, 38)))
    assert (result.tp, result.fp, result.fn) == (2, 1, 1)
    assert result.f1 == pytest.approx(4 / 6)
    assert result.sensitivity == result.precision == pytest.approx(2 / 3)
    assert result.sq == pytest.approx((0.8 + 1 / 3) / 2)
    assert result.pq == pytest.approx((0.8 + 1 / 3) / (2 + 0.5 + 0.5)) == pytest.approx(result.sq * result.f1)
    assert result.mean_matched_dice == pytest.approx((16 / 18 + 0.5) / 2)
    assert (result.splits, result.merges) == (0, 0)


def test_threshold_decides_what_matches() -> None:
    reference, prediction = runs((0, 10)), runs((0, 8))
    assert score(reference, prediction, 0.8).tp == 1
    above = score(reference, prediction, 0.81)
    assert (above.tp, above.fp, above.fn) == (0, 1, 1)
    assert above.f1 == 0.0 and above.pq == 0.0 and math.isnan(above.sq)


def test_empty_prediction() -> None:
    result = score(runs((0, 4), (5, 9)), runs())
    assert (result.tp, result.fp, result.fn) == (0, 0, 2)
    assert (result.f1, result.pq, result.sensitivity) == (0.0, 0.0, 0.0)
    assert math.isnan(result.precision) and math.isnan(result.sq) and math.isnan(result.mean_matched_dice)


def test_empty_reference_is_undefined_and_false_positives_are_counted() -> None:
    result = score(runs(), runs((0, 4), (5, 9)))
    assert (result.tp, result.fp, result.fn) == (0, 2, 0)
    assert all(math.isnan(getattr(result, name)) for name in SCORES)


def test_both_empty() -> None:
    result = score(runs(), runs())
    assert result == DetectionScore()
    assert all(math.isnan(getattr(result, name)) for name in SCORES)


def test_one_voxel_object_at_the_border() -> None:
    result = score(runs((39, 40)), runs((39, 40)), 1.0)
    assert (result.tp, result.f1, result.pq, result.mean_matched_dice) == (1, 1.0, 1.0, 1.0)


def test_an_object_of_another_class_is_no_match() -> None:
    result = score(runs((0, 4)), runs((0, 4), label=1))
    assert (result.tp, result.fp, result.fn) == (0, 0, 1)
    other = score(runs((0, 4)), runs((0, 4), label=1), label=1)
    assert (other.tp, other.fp, other.fn) == (0, 1, 0)


def test_split_in_two() -> None:
    # One lesion of 10 predicted as 6 + 4: IoU 0.6 matches, 0.4 is a false positive; one split.
    result = score(runs((0, 10)), runs((0, 6), (6, 10)))
    assert (result.tp, result.fp, result.fn, result.splits, result.merges) == (1, 1, 0, 1, 0)


def test_merged_from_two() -> None:
    result = score(runs((0, 6), (6, 10)), runs((0, 10)))
    assert (result.tp, result.fp, result.fn, result.splits, result.merges) == (1, 0, 1, 0, 1)


def test_less_than_half_inside_is_no_part() -> None:
    # The second prediction has 2 of 5 voxels in the reference: no split. With 2 of 4 it is one.
    assert score(runs((0, 10)), runs((0, 8), (8, 13))).splits == 0
    assert score(runs((0, 10)), runs((0, 8), (8, 12))).splits == 1


def test_overlapping_objects_of_one_class_stay_apart() -> None:
    reference = runs((0, 10), (5, 15))
    assert score(reference, runs((0, 10), (5, 15)), 0.9).tp == 2
    one = score(reference, runs((0, 10)), 0.3)
    # The prediction is the first object (IoU 1) and holds half of the second (5 of 10): found, missed, merged.
    assert (one.tp, one.fp, one.fn, one.merges) == (1, 0, 1, 1)
    assert one.sq == 1.0


def test_pooling_weighs_every_object_alike() -> None:
    cases = [score(runs((0, 10)), runs((0, 8))), score(runs((0, 4), (6, 9)), runs()), score(runs(), runs((1, 2)))]
    total = pooled(cases)
    assert (total.tp, total.fp, total.fn) == (1, 1, 2)
    assert total.f1 == pytest.approx(2 / 5) and total.sq == pytest.approx(0.8)
    assert pooled([]) == DetectionScore()


def test_lesion_dice_and_jaccard_by_hand() -> None:
    # Dice 16/18 and 4/8; one lesion is missed, one invented.
    result = score(runs((0, 10), (20, 24), (30, 34)), runs((0, 8), (22, 26), (36, 38)))
    assert result.lesion_dice == pytest.approx((16 / 18 + 0.5 + 0) / 3)
    assert result.jaccard_detection == pytest.approx(2 / 4)
    empty = score(runs(), runs((0, 4)))
    assert math.isnan(empty.lesion_dice) and math.isnan(empty.jaccard_detection)
    assert score(runs((0, 4)), runs()).lesion_dice == 0 == score(runs((0, 4)), runs()).jaccard_detection


def test_a_blob_that_swallows_two_lesions_merges_them_however_large() -> None:
    assert score(runs((0, 2), (30, 32)), runs((0, 40))).merges == 1


def test_agreement_with_monai(rng: np.random.Generator) -> None:
    """Panoptic quality of label maps: runs of random length, cut and moved."""
    import torch
    from monai.metrics.panoptic_quality import compute_panoptic_quality

    for _ in range(5):
        ends = np.sort(rng.choice(np.arange(1, 40), 8, replace=False))
        reference = runs(*((int(a), int(b)) for a, b in zip(ends[::2], ends[1::2], strict=True)))
        moved = np.clip(ends + rng.integers(-1, 2, 8), 0, 40)
        found = [(int(a), int(b)) for a, b in zip(moved[::2], moved[1::2], strict=True) if b > a]
        apart = [found[0]] + [pair for last, pair in zip(found, found[1:], strict=False) if pair[0] >= last[1]]
        prediction = runs(*apart)
        ours = score(reference, prediction, 0.5)
        maps = [torch.tensor(s.to_labelmap("error").array.astype(np.int64)[0]) for s in (prediction, reference)]
        for name, value in (("pq", ours.pq), ("rq", ours.f1)):
            theirs = float(compute_panoptic_quality(*maps, metric_name=name, match_iou_threshold=0.5))
            # MONAI matches above 0.5 and not at it: no pair of these lies exactly there, see the next line.
            assert value == pytest.approx(theirs, abs=1e-5)
        assert not (PairTable.between(reference, prediction).iou() == 0.5).any()
