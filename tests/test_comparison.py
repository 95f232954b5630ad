"""Two predictions compared in pairs, with values worked out by hand and against scipy."""

import math

import numpy as np
import pytest
from highdicom import VolumeGeometry
from scipy import stats

from medseg.errors import ConfigError
from medseg.labels import LabelTable
from medseg.metrics.case import CaseResult, evaluate_case
from medseg.metrics.comparison import compare
from medseg.values.instances import Instance, InstanceSet

LABELS = LabelTable.from_names(["liver", "lesion"], kinds={"lesion": "ids"})
GRID = VolumeGeometry(np.diag([5.0, 0.5, 0.4, 1.0]), (1, 2, 60), "PATIENT")


def runs(*objects: tuple[int, int, int]) -> InstanceSet:
    """Build runs of voxels along a line: (label, first, end)."""
    return InstanceSet.build(
        [Instance(id=1, label=c, mask=np.ones((1, 1, b - a), bool), offset=(0, 0, a)) for c, a, b in objects],
        GRID,
        LABELS,
    )


def livers(*lengths: int) -> dict[str, CaseResult]:
    """Cases in which the liver is 20 voxels long and found at a length of up to 20."""
    return {f"case_{k}": evaluate_case(runs((1, 0, 20)), runs((1, 0, n))) for k, n in enumerate(lengths)}


def test_a_prediction_against_itself() -> None:
    cases = livers(10, 15, 20)
    result = compare(cases, cases)
    for entry in (result["mean_dice"], result["objects"]["f1"], result["classes"]["liver"]["ranking"]["cpm"]):
        assert (entry["difference"], entry["ci_low"], entry["ci_high"]) == (0, 0, 0)
    lesion = result["classes"]["lesion"]["voxels"]["dice"]
    assert math.isnan(lesion["difference"]) and (lesion["n"], lesion["n_undefined"]) == (0, 3)


def test_differences_by_hand() -> None:
    # Dice of n of 20 voxels is 2n / (20 + n).
    first, second = livers(10, 15, 4), livers(12, 20, 20)
    dice = compare(first, second)["classes"]["liver"]["voxels"]["dice"]
    a, b = np.mean([20 / 30, 30 / 35, 8 / 24]), np.mean([24 / 32, 1, 1])
    assert (dice["first"], dice["second"], dice["difference"]) == pytest.approx((a, b, b - a))
    assert (dice["n"], dice["n_undefined"]) == (3, 0)
    assert 24 / 32 - 20 / 30 - 1e-9 <= dice["ci_low"] < b - a < dice["ci_high"] <= 1 - 8 / 24 + 1e-9
    # IoU 4 / 20 does not match at 0.3: two of three found, then all.
    f1 = compare(first, second)["classes"]["liver"]["objects"]["f1"]
    assert (f1["first"], f1["second"]) == pytest.approx((4 / 6, 1))


def test_pairing_takes_out_what_makes_cases_hard() -> None:
    # Cases differ widely, the second prediction is better by a voxel in each: paired, that is plain.
    lengths = [2, 4, 6, 8, 10, 12, 14, 16, 18]
    dice = compare(livers(*lengths), livers(*(n + 1 for n in lengths)))["classes"]["liver"]["voxels"]["dice"]
    differences = np.array([2 * (n + 1) / (21 + n) - 2 * n / (20 + n) for n in lengths])
    assert dice["difference"] == pytest.approx(differences.mean())
    theirs = stats.bootstrap((differences,), np.mean, method="percentile", rng=1).confidence_interval
    assert (dice["ci_low"], dice["ci_high"]) == pytest.approx((theirs.low, theirs.high), abs=0.003)
    assert dice["ci_low"] > 0


def test_only_cases_of_both_count() -> None:
    first, second = livers(10, 15), livers(10, 15, 20)
    result = compare(first, second)
    assert result["n_cases"] == 2 and result["left_out"] == ["case_2"]
    with pytest.raises(ConfigError, match="no evaluated case in common"):
        compare(first, {"other": second["case_0"]})


def test_an_undefined_side_leaves_the_case_out_of_means() -> None:
    # Precision is undefined where nothing was predicted.
    first = livers(10, 15) | {"empty": evaluate_case(runs((1, 0, 20)), runs())}
    second = livers(10, 15) | {"empty": evaluate_case(runs((1, 0, 20)), runs((1, 0, 20)))}
    precision = compare(first, second)["classes"]["liver"]["voxels"]["precision"]
    assert (precision["first"], precision["second"], precision["n"], precision["n_undefined"]) == (1, 1, 2, 1)


def test_one_case_has_no_interval() -> None:
    dice = compare(livers(10), livers(20))["classes"]["liver"]["voxels"]["dice"]
    assert dice["difference"] == pytest.approx(1 / 3) and math.isnan(dice["ci_low"]) and math.isnan(dice["ci_high"])


def test_other_settings_are_refused() -> None:
    other = {"case_0": evaluate_case(runs((1, 0, 20)), runs((1, 0, 20)), iou_threshold=0.5)}
    with pytest.raises(ConfigError, match="2 settings"):
        compare(livers(10), other)
