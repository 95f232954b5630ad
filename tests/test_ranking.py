"""AP, FROC and CPM with curves worked out by hand, by brute force and by faster-coco-eval."""

import math

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_mask
from highdicom import VolumeGeometry

from medseg.errors import ConfigError
from medseg.labels import LabelTable
from medseg.metrics.bootstrap import case_weights
from medseg.metrics.ranking import (
    AP_LOOSE,
    AP_STRICT,
    FROC_POINTS,
    average_precision,
    froc_curve,
    froc_sensitivities,
    mean_average_precision,
    precision_recall,
    rank,
)
from medseg.values.instances import Instance, InstanceSet
from medseg.values.pairs import PairTable

SHAPE = (1, 2, 60)
LABELS = LabelTable.from_names(["liver", "lesion"], kinds={"lesion": "ids"})
GRID = VolumeGeometry(np.diag([5.0, 0.7, 0.9, 1.0]), SHAPE, "PATIENT")
ONES = np.ones((1, 1), np.int64)


def runs(*objects: tuple[int, int, float], label: int = 2) -> InstanceSet:
    """Build objects that are runs of voxels along one line: (first, end, score)."""
    return InstanceSet.build(
        [
            Instance(id=1, label=label, mask=np.ones((1, 1, stop - start), bool), offset=(0, 0, start), score=score)
            for start, stop, score in objects
        ],
        GRID,
        LABELS,
    )


def truth(*ends: tuple[int, int]) -> InstanceSet:
    return runs(*((start, stop, 1.0) for start, stop in ends))


TWO_CASES = [
    # Two lesions; found at 0.9 (IoU 1) and 0.5 (IoU 0.8), between them an invention at 0.7.
    PairTable.between(truth((0, 10), (20, 30)), runs((0, 10, 0.9), (40, 50, 0.7), (20, 28, 0.5))),
    # One lesion found at 0.8 (IoU 0.5) and again at 0.6 (IoU 0.4), one missed.
    PairTable.between(truth((0, 10), (20, 30)), runs((0, 5, 0.8), (0, 4, 0.6))),
]


def test_the_ranking_is_over_the_cohort() -> None:
    ranking = rank(TWO_CASES, "lesion", 0.3)
    assert ranking.scores.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert ranking.cases.tolist() == [0, 1, 0, 1, 0]
    assert ranking.hits.tolist() == [True, True, False, False, True]  # the second find of an object is no hit
    assert ranking.references.tolist() == [2, 2]
    assert rank(TWO_CASES, "lesion", 0.6).hits.tolist() == [True, False, False, False, True]


def test_average_precision_by_hand() -> None:
    recall, precision = precision_recall(rank(TWO_CASES, "lesion", 0.3))
    assert recall.tolist() == [1 / 4, 2 / 4, 2 / 4, 2 / 4, 3 / 4]
    assert precision.tolist() == [1, 1, 2 / 3, 2 / 4, 3 / 5]
    # Precision 1 at the 51 recalls up to 0.50, 3 / 5 at the 25 up to 0.75, 0 beyond.
    both = np.ones((1, 2), np.int64)
    assert average_precision(rank(TWO_CASES, "lesion", 0.3), both) == pytest.approx([(51 + 25 * 0.6) / 101])
    # At 0.6: hits at ranks 1 and 5: recall 1/4 with precision 1, 2/4 with 2/5.
    assert average_precision(rank(TWO_CASES, "lesion", 0.6), both) == pytest.approx([(26 + 25 * 0.4) / 101])
    # IoU 1, 0.8 and 0.5 are reached; over 0.10 .. 0.50 nothing changes.
    assert mean_average_precision(TWO_CASES, "lesion", AP_LOOSE, both) == pytest.approx([(51 + 25 * 0.6) / 101])
    strict = [(51 + 15) / 101] + 6 * [(26 + 10) / 101] + 3 * [26 / 101]  # 0.50; 0.55 .. 0.80; 0.85 .. 0.95
    assert mean_average_precision(TWO_CASES, "lesion", AP_STRICT, both) == pytest.approx([np.mean(strict)])


def test_thresholds_are_those_named() -> None:
    assert AP_LOOSE == (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
    assert AP_STRICT == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def test_a_recall_of_seven_tenths_counts_at_seven_tenths() -> None:
    pairs = PairTable.between(
        truth(*((5 * k, 5 * k + 4) for k in range(10))), truth(*((5 * k, 5 * k + 4) for k in range(7)))
    )
    assert average_precision(rank([pairs], "lesion", 0.5), ONES) == pytest.approx([71 / 101])


def test_froc_by_hand() -> None:
    ranking = rank(TWO_CASES, "lesion", 0.3)
    curve = froc_curve(ranking)
    assert curve.false_positives.tolist() == [0, 0, 0.5, 1, 1]
    assert curve.sensitivity.tolist() == [0.25, 0.5, 0.5, 0.5, 0.75]
    assert curve.scores.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5]
    # Two scans: 1/8 to 1/2 false positives per scan reach 0.5, from 1 on 0.75, which holds where the curve ends.
    assert FROC_POINTS == (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
    expected = [0.5, 0.5, 0.5, 0.75, 0.75, 0.75, 0.75]
    assert froc_sensitivities(ranking, np.ones((1, 2), np.int64)).tolist() == [expected]


def test_froc_is_zero_where_the_first_detection_already_is_too_much() -> None:
    pairs = PairTable.between(truth((0, 4)), runs((10, 14, 0.9), (0, 4, 0.5)))
    assert froc_sensitivities(rank([pairs], "lesion", 0.1), ONES).tolist() == [[0, 0, 0, 1, 1, 1, 1]]


def test_a_scan_without_objects_still_is_a_scan() -> None:
    healthy = PairTable.between(truth(), runs((0, 4, 0.95)))
    curve = froc_curve(rank([*TWO_CASES, healthy], "lesion", 0.3))
    assert curve.false_positives[0] == 1 / 3 and curve.sensitivity[0] == 0


def test_equal_scores_enter_together() -> None:
    # A find and an invention of one score: precision is 1 / 2 in whichever order they come.
    for order in (1, -1):
        objects = [(0, 4, 0.5), (10, 14, 0.5)][::order]
        ranking = rank([PairTable.between(truth((0, 4)), runs(*objects))], "lesion", 0.5)
        assert average_precision(ranking, ONES) == pytest.approx([0.5])
        assert froc_curve(ranking).false_positives.tolist() == [1]


def test_equal_scores_in_a_case_go_by_iou() -> None:
    # Both touch the one lesion; the better one is the hit, whichever comes first.
    for order in (1, -1):
        objects = [(0, 6, 0.5), (0, 9, 0.5)][::order]
        pairs = PairTable.between(truth((0, 10)), runs(*objects))
        ranking = rank([pairs], "lesion", 0.7)
        assert ranking.hits.sum() == 1 and average_precision(ranking, ONES) == pytest.approx([0.5])


def test_a_higher_score_goes_first_even_with_the_smaller_iou() -> None:
    # 0.9 takes the lesion with IoU 0.5, so 0.8 (IoU 1) finds it taken: greedy, unlike F1's matching.
    ranking = rank([PairTable.between(truth((0, 10)), runs((0, 5, 0.9), (0, 10, 0.8)))], "lesion", 0.5)
    assert ranking.hits.tolist() == [True, False]


def test_undefined_and_empty() -> None:
    nothing = PairTable.between(truth(), truth())
    invented = PairTable.between(truth(), runs((0, 4, 0.5)))
    missed = PairTable.between(truth((0, 4)), truth())
    for pairs in (nothing, invented):
        ranking = rank([pairs], "lesion", 0.5)
        assert math.isnan(average_precision(ranking, ONES)[0])
        assert np.isnan(froc_sensitivities(ranking, ONES)).all()
    assert len(froc_curve(rank([nothing], "lesion", 0.5)).scores) == 0
    ranking = rank([missed], "lesion", 0.5)
    assert average_precision(ranking, ONES) == 0 and froc_sensitivities(ranking, ONES).tolist() == [[0] * 7]
    absent = rank([missed], "spleen", 0.5)
    assert absent.references.tolist() == [0] and len(absent.scores) == 0


def test_other_classes_do_not_count() -> None:
    pairs = PairTable.between(truth((0, 4)), runs((0, 4, 0.9), label=1))
    assert rank([pairs], "lesion", 0.1).scores.tolist() == []
    assert rank([pairs], "liver", 0.1).hits.tolist() == [False]


def test_threshold_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"1\.5: expected 0\.\.1"):
        rank(TWO_CASES, "lesion", 1.5)


def test_weights_are_repeated_cases(rng: np.random.Generator) -> None:
    cases = [random_case(rng)[0] for _ in range(5)]
    weights = case_weights(5, resamples=4, seed=3)
    ap = average_precision(rank(cases, "lesion", 0.3), weights)
    froc = froc_sensitivities(rank(cases, "lesion", 0.3), weights)
    for row, counts in enumerate(weights):
        repeated = rank([case for case, n in zip(cases, counts, strict=True) for _ in range(n)], "lesion", 0.3)
        once = np.ones((1, len(repeated.references)), np.int64)
        assert ap[row] == pytest.approx(average_precision(repeated, once)[0])
        assert froc[row] == pytest.approx(froc_sensitivities(repeated, once)[0])


def random_case(rng: np.random.Generator) -> tuple[PairTable, InstanceSet, InstanceSet]:
    """Overlapping runs, and shifted copies of some with distinct scores."""
    starts = rng.integers(0, 45, 6)
    reference = truth(*((int(s), int(s + rng.integers(3, 12))) for s in starts))
    found = []
    for s in starts[: rng.integers(2, 6)]:
        for _ in range(rng.integers(1, 3)):
            first = max(0, int(s + rng.integers(-2, 3)))
            found.append((first, first + int(rng.integers(3, 12)), float(rng.uniform())))
    prediction = runs(*found)
    return PairTable.between(reference, prediction), reference, prediction


def test_agreement_with_faster_coco_eval(rng: np.random.Generator) -> None:
    """Cases of a single slice are COCO's images."""
    cases = [random_case(rng) for _ in range(8)]
    annotations, detections = [], []
    for image, (_, reference, prediction) in enumerate(cases, start=1):
        for instance in reference:
            code = coco_mask.encode(np.asfortranarray(reference.full_mask(instance.id)[0].astype(np.uint8)))
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": 1, "iscrowd": 0,
                "area": instance.voxels, "segmentation": code,
            })  # fmt: skip
        for instance in prediction:
            code = coco_mask.encode(np.asfortranarray(prediction.full_mask(instance.id)[0].astype(np.uint8)))
            detections.append({"image_id": image, "category_id": 1, "score": instance.score, "segmentation": code})
    images = [{"id": i + 1, "height": SHAPE[1], "width": SHAPE[2]} for i in range(len(cases))]
    data = COCO({"images": images, "categories": [{"id": 1}], "annotations": annotations})
    evaluation = COCOeval_faster(data, data.loadRes(detections), iouType="segm")
    thresholds = sorted({*AP_LOOSE, *AP_STRICT})
    evaluation.params.iouThrs = np.array(thresholds)
    evaluation.params.recThrs = np.arange(101) / 100
    evaluation.evaluate()
    evaluation.accumulate()
    theirs = np.asarray(evaluation.eval["precision"])[:, :, 0, 0, -1].mean(axis=1)
    weights = np.ones((1, len(cases)), np.int64)
    ours = [average_precision(rank([c[0] for c in cases], "lesion", t), weights)[0] for t in thresholds]
    assert ours == pytest.approx(theirs.tolist(), abs=1e-12)
    assert len(set(ours)) > 5 and 0.3 < ours[0] < 0.95  # not trivial


def test_agreement_with_monai(rng: np.random.Generator) -> None:
    """MONAI (after CAMELYON 16) takes scores of hits and inventions; its curve leaves out the lowest score."""
    from monai.metrics import compute_froc_curve_data

    cases = [random_case(rng)[0] for _ in range(8)]
    ranking = rank(cases, "lesion", 0.3)
    hits, invented = ranking.scores[ranking.hits], ranking.scores[~ranking.hits]
    false_positives, sensitivity = compute_froc_curve_data(invented, hits, int(ranking.references.sum()), len(cases))
    curve = froc_curve(ranking)
    assert len(curve.scores) == len(ranking.scores) > 20
    assert curve.false_positives[:-1] == pytest.approx(false_positives[::-1][1:])
    assert curve.sensitivity[:-1] == pytest.approx(sensitivity[::-1][1:])
