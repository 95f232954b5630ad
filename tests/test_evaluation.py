"""One case and a cohort in the summary, with values worked out by hand."""

import math

import numpy as np
import pytest
from highdicom import VolumeGeometry

from medseg.errors import ConfigError, GeometryError
from medseg.labels import LabelTable
from medseg.metrics.evaluation import CaseResult, evaluate_case, statistics, summarise
from medseg.values.geometry import AxisMap
from medseg.values.instances import Instance, InstanceSet

SHAPE = (3, 5, 40)
LABELS = LabelTable.from_names(["liver", "lesion"], kinds={"lesion": "ids"})
GRID = VolumeGeometry(np.diag([5.0, 0.5, 0.4, 1.0]), SHAPE, "PATIENT")  # one voxel is 0.001 ml


def runs(*objects: tuple[str, int, int], labels: LabelTable = LABELS) -> InstanceSet:
    """Build objects that are runs of voxels along one line: (class, first, end)."""
    masks = []
    for name, start, stop in objects:
        mask = np.zeros(SHAPE, bool)
        mask[1, 2, start:stop] = True
        masks.append((labels.by_name(name).id, mask))
    return InstanceSet.from_masks(masks, GRID, labels)


def test_a_case_by_hand() -> None:
    reference = runs(("liver", 0, 20), ("lesion", 2, 6), ("lesion", 30, 34))
    prediction = runs(("lesion", 2, 8), ("liver", 0, 16), ("lesion", 36, 38))
    case = evaluate_case(reference, prediction, iou_threshold=0.5)
    liver, lesion = case.of("liver"), case.of("lesion")
    assert liver.voxels.dice == 32 / 36 and (liver.objects.tp, liver.objects.fp, liver.objects.fn) == (1, 0, 0)
    assert lesion.voxels.dice == 8 / 16 and (lesion.objects.tp, lesion.objects.fp, lesion.objects.fn) == (1, 1, 1)
    rows = [(r.label, r.status, r.reference_id, r.prediction_id) for r in case.objects]
    assert rows == [
        ("liver", "matched", 1, 2),
        ("lesion", "matched", 2, 1),
        ("lesion", "missed", 3, None),
        ("lesion", "false_positive", None, 3),
    ]
    assert case.objects[1].iou == 4 / 6 and case.objects[1].dice == 0.8
    assert case.objects[1].prediction_ml == pytest.approx(0.006)
    missed, invented = case.objects[2], case.objects[3]
    assert missed.iou == 0.0 and math.isnan(missed.score) and math.isnan(missed.prediction_ml)
    assert invented.score == 1.0 and math.isnan(invented.reference_ml)


def test_an_unmatched_object_shows_its_best_overlap() -> None:
    case = evaluate_case(runs(("lesion", 0, 10)), runs(("lesion", 8, 20)))
    assert [(r.status, r.iou) for r in case.objects] == [("missed", 2 / 20), ("false_positive", 2 / 20)]


@pytest.mark.parametrize("empty", ["prediction", "reference", "both"])
def test_empty_sides(empty: str) -> None:
    full = runs(("liver", 0, 4))
    reference = runs() if empty in ("reference", "both") else full
    prediction = runs() if empty in ("prediction", "both") else full
    liver = evaluate_case(reference, prediction).of("liver")
    counts = {"prediction": (0, 0, 1), "reference": (0, 1, 0), "both": (0, 0, 0)}
    assert (liver.objects.tp, liver.objects.fp, liver.objects.fn) == counts[empty]
    if empty == "prediction":
        assert liver.voxels.dice == 0.0 == liver.objects.f1
    else:
        assert math.isnan(liver.voxels.dice) and math.isnan(liver.objects.f1)


def test_permuted_prediction_gives_the_same_result() -> None:
    reference = runs(("liver", 0, 20), ("lesion", 2, 6))
    prediction = runs(("lesion", 2, 8), ("liver", 0, 16))
    moved = prediction.moved(AxisMap(order=(1, 2, 0), flips=(True, True, False)))
    assert evaluate_case(reference, moved) == evaluate_case(reference, prediction)


def test_another_grid() -> None:
    other = InstanceSet(instances=(), geometry=VolumeGeometry(np.eye(4), SHAPE, "PATIENT"), labels=LABELS)
    with pytest.raises(GeometryError, match="another grid"):
        evaluate_case(runs(), other)


def test_a_cohort_by_hand() -> None:
    other = LabelTable.from_names(["spleen", "liver", "lesion"])
    cases = {
        "a": evaluate_case(runs(("liver", 0, 10), ("lesion", 2, 6)), runs(("liver", 0, 10), ("lesion", 2, 6))),
        "b": evaluate_case(runs(("liver", 0, 10)), runs(("liver", 0, 5), ("lesion", 20, 22))),
        "c": evaluate_case(runs(("liver", 0, 10)), runs(("spleen", 30, 34), labels=other)),
    }
    summary = summarise(cases)
    assert summary["n_cases"] == 3 and summary["iou_threshold"] == 0.3
    liver, lesion, spleen = (summary["classes"][name] for name in ("liver", "lesion", "spleen"))
    # Liver Dice: 1, 10 / 15, 0.
    dice = liver["voxels"]["dice"]
    assert (dice["mean"], dice["median"], dice["min"], dice["max"]) == pytest.approx((5 / 9, 2 / 3, 0, 1))
    assert dice["sd"] == pytest.approx(np.std([1, 2 / 3, 0], ddof=1))
    assert (dice["n"], dice["n_undefined"], liver["cases_with_reference"]) == (3, 0, 3)
    assert liver["voxels"]["volume_difference_ml"]["mean"] == pytest.approx((0 - 0.005 - 0.010) / 3)
    assert (liver["voxels"]["precision"]["n"], liver["voxels"]["precision"]["n_undefined"]) == (2, 1)
    # Lesion: one found in a, one invented in b; undefined in b and c.
    assert (lesion["voxels"]["dice"]["mean"], lesion["voxels"]["dice"]["n_undefined"]) == (1.0, 2)
    assert (lesion["objects"]["tp"], lesion["objects"]["fp"], lesion["objects"]["fn"]) == (1, 1, 0)
    assert lesion["objects"]["f1"] == pytest.approx(2 / 3)
    # Spleen: known to the prediction of c alone, in no reference.
    assert spleen["in_prediction"] and not spleen["in_reference"] and spleen["cases_with_reference"] == 0
    assert math.isnan(spleen["voxels"]["dice"]["mean"]) and spleen["voxels"]["dice"]["n_undefined"] == 3
    assert spleen["objects"]["fp"] == 1 and math.isnan(spleen["objects"]["f1"])
    mean_dice = summary["mean_dice"]
    assert (mean_dice["mean"], mean_dice["n"], mean_dice["n_undefined"]) == (pytest.approx((5 / 9 + 1) / 2), 2, 1)
    assert (summary["objects"]["tp"], summary["objects"]["fp"], summary["objects"]["fn"]) == (3, 2, 1)


def test_statistics_of_nothing_and_of_one() -> None:
    assert statistics([])["n"] == 0 and math.isnan(statistics([float("nan")])["mean"])
    one = statistics([0.5, float("nan")])
    assert (one["mean"], one["n"], one["n_undefined"]) == (0.5, 1, 1) and math.isnan(one["sd"])


def test_summary_wants_one_threshold_and_a_case() -> None:
    def case(threshold: float) -> CaseResult:
        return evaluate_case(runs(), runs(), iou_threshold=threshold)

    with pytest.raises(ConfigError, match="expected one"):
        summarise({"a": case(0.3), "b": case(0.5)})
    with pytest.raises(ConfigError, match="0 cases"):
        summarise({})


def test_unknown_class() -> None:
    with pytest.raises(ConfigError, match="'spleen' was not evaluated"):
        evaluate_case(runs(), runs()).of("spleen")


def scored(*objects: tuple[int, int, float]) -> InstanceSet:
    """Build lesions that are runs of voxels: (first, end, score)."""
    return InstanceSet.build(
        [
            Instance(id=1, label=2, mask=np.ones((1, 1, stop - start), bool), offset=(1, 2, start), score=value)
            for start, stop, value in objects
        ],
        GRID,
        LABELS,
    )


@pytest.fixture
def three_cases() -> dict[str, CaseResult]:
    """Lesions: one found, one of two found with an invention, one missed."""
    return {
        "a": evaluate_case(runs(("lesion", 0, 10)), scored((0, 10, 0.9))),
        "b": evaluate_case(runs(("lesion", 0, 10), ("lesion", 20, 24)), scored((0, 8, 0.6), (30, 33, 0.7))),
        "c": evaluate_case(runs(("lesion", 0, 2)), scored()),
    }


def test_rankings_by_hand(three_cases: dict[str, CaseResult]) -> None:
    lesion = summarise(three_cases)["classes"]["lesion"]
    # Scores 0.9 (hit), 0.7 (invented), 0.6 (hit, IoU 0.8) of four lesions: precision 1 up to recall 1/4, 2/3 up to 1/2.
    loose = (26 + 25 * 2 / 3) / 101
    assert lesion["ranking"]["ap_10_50"]["value"] == pytest.approx(loose)
    assert lesion["ranking"]["ap_50_95"]["value"] == pytest.approx((7 * loose + 3 * 26 / 101) / 10)
    # One invention in three scans: 1/4 sensitivity at 1/8 and 1/4 per scan, 1/2 from 1/2 on.
    assert lesion["ranking"]["froc"] == {
        "0.125": 0.25, "0.25": 0.25, "0.5": 0.5, "1": 0.5, "2": 0.5, "4": 0.5, "8": 0.5,
    }  # fmt: skip
    assert lesion["ranking"]["cpm"]["value"] == pytest.approx(3 / 7)
    assert lesion["objects"]["lesion_dice"] == pytest.approx((1 + 16 / 18 + 0 + 0) / 4)
    assert lesion["objects"]["jaccard_detection"] == pytest.approx(2 / 5)


def test_size_classes_by_hand(three_cases: dict[str, CaseResult]) -> None:
    # A voxel has 1 mm3: the spheres of 10, 4, 3 and 2 voxels have diameters of 2.67, 1.97, 1.79 and 1.56 mm.
    lesion = summarise(three_cases, size_edges_mm=(1.6, 1.9, 2.5))["classes"]["lesion"]
    rows = [
        tuple(e[k] for k in ("from_mm", "to_mm", "reference", "found", "false_positives"))
        for e in lesion["size_classes"]
    ]
    assert rows == [(0.0, 1.6, 1, 0, 0), (1.6, 1.9, 0, 0, 1), (1.9, 2.5, 1, 0, 0), (2.5, None, 2, 2, 0)]
    assert [e["sensitivity"] for e in lesion["size_classes"]][2:] == [0, 1]
    assert math.isnan(lesion["size_classes"][1]["sensitivity"])
    assert lesion["size_classes"][3]["lesion_dice"] == pytest.approx((1 + 16 / 18) / 2)


def test_worst_cases(three_cases: dict[str, CaseResult]) -> None:
    three_cases["healthy"] = evaluate_case(runs(), scored())
    summary = summarise(three_cases)
    # Lesion Dice: 1, 2 * 8 / (14 + 11), 0, undefined.
    assert [w["case"] for w in summary["classes"]["lesion"]["worst_cases"]] == ["c", "b", "a"]
    assert [w["mean_dice"] for w in summary["worst_cases"]] == pytest.approx([0, 16 / 25, 1])
    assert summary["worst_cases"][1]["f1"] == pytest.approx(2 / 4)


def test_intervals_of_a_cohort(three_cases: dict[str, CaseResult]) -> None:
    summary = summarise(three_cases, resamples=2000, seed=4)
    assert summary["bootstrap"] == {"resamples": 2000, "seed": 4, "level": 0.95}
    dice = summary["classes"]["lesion"]["voxels"]["dice"]
    # Of the resamples 1 in 27 holds the worst case thrice, and as many the best: more than 2.5 per cent.
    assert (dice["ci_low"], dice["ci_high"]) == (0, 1)
    f1 = summary["classes"]["lesion"]["objects"]["intervals"]["f1"]
    assert f1["ci_low"] == 0 and f1["ci_high"] == 1
    again = summarise(three_cases, resamples=2000, seed=4)["classes"]["lesion"]
    assert again == summary["classes"]["lesion"]
    none = summarise(three_cases, resamples=0)["classes"]["lesion"]
    assert math.isnan(none["voxels"]["dice"]["ci_low"]) and math.isnan(none["ranking"]["cpm"]["ci_high"])


def test_surfaces_of_matched_objects_weigh_each_alike(three_cases: dict[str, CaseResult]) -> None:
    matched = summarise(three_cases)["classes"]["lesion"]["matched"]
    assert set(matched) == {"nsd_1mm", "nsd_2mm", "hd95_mm", "assd_mm"}
    assert matched["nsd_1mm"]["n"] == 2 and matched["hd95_mm"]["min"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"froc_iou": 2}, "FROC 2"), ({"size_edges_mm": (5, 5)}, "that rise"), ({"size_edges_mm": (0, 5)}, "above 0")],
)
def test_summary_settings_out_of_range(three_cases: dict[str, CaseResult], settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        summarise(three_cases, **settings)
