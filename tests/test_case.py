"""One case with every score worked out by hand: what is empty, small, cut off, thick-sliced or overlapping."""

import math

import numpy as np
import pytest
from highdicom import VolumeGeometry

from medseg.errors import ConfigError
from medseg.labels import LabelTable
from medseg.metrics.case import CaseResult, diameter_mm, evaluate_case
from medseg.values.geometry import AxisMap
from medseg.values.instances import Instance, InstanceSet

SHAPE = (5, 7, 30)
LABELS = LabelTable.from_names(["lesion"], kinds={"lesion": "ids"})
#: Slices 5 mm apart; off the origin.
GRID = VolumeGeometry(np.diag([5.0, 0.8, 0.7, 1.0]) + np.eye(4, k=3) * -40, SHAPE, "PATIENT")
Box = tuple[int, int, int, int, int, int]


def boxes(*objects: Box) -> InstanceSet:
    """Build boxes of one class: (slice, row, column, depth, height, width)."""
    return InstanceSet.build(
        [Instance(id=1, label=1, mask=np.ones(box[3:], bool), offset=box[:3]) for box in objects], GRID, LABELS
    )


def scores(result: CaseResult) -> tuple[float, dict[str, float], tuple[int, int, int]]:
    lesion = result.of("lesion")
    return lesion.voxels.dice, dict(lesion.surface), (lesion.objects.tp, lesion.objects.fp, lesion.objects.fn)


def isnan(*values: float) -> bool:
    return all(map(math.isnan, values))


@pytest.mark.parametrize("surface", ["subvoxel", "border"])
def test_empty_prediction(surface: str) -> None:
    dice, surfaces, counts = scores(evaluate_case(boxes((1, 2, 3, 2, 2, 2)), boxes(), surface=surface))
    assert dice == 0 and counts == (0, 0, 1)
    assert surfaces["nsd_1mm"] == surfaces["nsd_2mm"] == 0  # no part of the surface was found
    assert isnan(surfaces["hd95_mm"], surfaces["assd_mm"])  # and there is nothing to measure to


@pytest.mark.parametrize("surface", ["subvoxel", "border", "chaos"])
@pytest.mark.parametrize("found", [0, 1])
def test_empty_reference_and_both_empty(surface: str, found: int) -> None:
    result = evaluate_case(boxes(), boxes(*[(1, 2, 3, 2, 2, 2)] * found), surface=surface)
    dice, surfaces, counts = scores(result)
    assert counts == (0, found, 0) and len(surfaces) == 4
    assert isnan(dice, *surfaces.values(), result.of("lesion").objects.f1)
    assert [o.status for o in result.objects] == ["false_positive"] * found
    assert all(isnan(*o.surface.values()) for o in result.objects)


def test_chaos_of_an_empty_prediction() -> None:
    _, chaos, _ = scores(evaluate_case(boxes((1, 2, 3, 2, 2, 2)), boxes(), surface="chaos"))
    assert chaos["chaos_dice"] == 0 and chaos["chaos_ravd_percent"] == 100
    assert isnan(chaos["chaos_assd_mm"], chaos["chaos_mssd_mm"])


@pytest.mark.parametrize("surface", ["subvoxel", "border"])
def test_one_voxel_found_exactly(surface: str) -> None:
    one = boxes((2, 3, 4, 1, 1, 1))
    result = evaluate_case(one, one, surface=surface)
    dice, surfaces, counts = scores(result)
    assert dice == 1 and counts == (1, 0, 0)
    assert surfaces == {"nsd_1mm": 1, "nsd_2mm": 1, "hd95_mm": 0, "assd_mm": 0} == dict(result.objects[0].surface)
    assert result.objects[0].reference_ml == pytest.approx(5 * 0.8 * 0.7 / 1000)


def test_one_voxel_found_one_column_aside() -> None:
    result = evaluate_case(boxes((2, 3, 4, 1, 1, 1)), boxes((2, 3, 5, 1, 1, 1)), surface="border")
    dice, surfaces, counts = scores(result)
    assert dice == 0 and counts == (0, 1, 1)
    # The class's surfaces lie a column apart; its objects do not match.
    assert surfaces == pytest.approx({"nsd_1mm": 1, "nsd_2mm": 1, "hd95_mm": 0.7, "assd_mm": 0.7})
    assert all(isnan(*o.surface.values()) for o in result.objects)


def test_slices_of_5_mm() -> None:
    # A plate of one slice, found a slice too high.
    reference, prediction = boxes((1, 2, 3, 1, 3, 4)), boxes((2, 2, 3, 1, 3, 4))
    dice, border, _ = scores(evaluate_case(reference, prediction, surface="border", tolerances_mm=(4.9, 5)))
    assert dice == 0 and border == pytest.approx({"nsd_4.9mm": 0, "nsd_5mm": 1, "hd95_mm": 5, "assd_mm": 5})
    # Between voxels: the upper face of the one is the lower face of the other, the other faces are 5 mm away.
    # Areas are those of marching cubes (edges are cut), but the same above and below: one half each.
    _, subvoxel, _ = scores(evaluate_case(reference, prediction, tolerances_mm=(1, 5)))
    assert subvoxel == pytest.approx({"nsd_1mm": 0.5, "nsd_5mm": 1, "hd95_mm": 5, "assd_mm": 2.5})


@pytest.mark.parametrize("corner", [(0, 0, 0), (4, 6, 26)])
def test_an_object_at_the_border_of_the_image(corner: tuple[int, int, int]) -> None:
    # A run of 4 voxels in a corner of the volume, of which the 3 nearest the corner or beside it are found.
    first = 0 if corner[2] == 0 else 1
    reference = boxes((*corner, 1, 1, 4))
    prediction = boxes((corner[0], corner[1], corner[2] + first, 1, 1, 3))
    dice, border, counts = scores(evaluate_case(reference, prediction, surface="border", tolerances_mm=(0.5,)))
    assert dice == pytest.approx(6 / 7) and counts == (1, 0, 0)
    # Distances: 0, 0, 0, 0.7 one way and 0, 0, 0 the other.
    assert border == pytest.approx({"nsd_0.5mm": 6 / 7, "hd95_mm": 0.85 * 0.7, "assd_mm": 0.7 / 7})
    _, chaos, _ = scores(evaluate_case(reference, prediction, surface="chaos"))
    expected = {"chaos_dice": 6 / 7, "chaos_ravd_percent": 25, "chaos_assd_mm": 0.1, "chaos_mssd_mm": 0.7}
    assert chaos == pytest.approx(expected)


def test_overlapping_objects_of_one_class() -> None:
    # 0-10 and 5-15 against 0-10 and 6-15: the union is the same, the objects are not.
    reference = boxes((1, 2, 0, 1, 1, 10), (1, 2, 5, 1, 1, 10))
    prediction = boxes((1, 2, 6, 1, 1, 9), (1, 2, 0, 1, 1, 10))
    result = evaluate_case(reference, prediction, iou_threshold=0.5, surface="border", tolerances_mm=(0.5,))
    dice, surfaces, counts = scores(result)
    assert dice == 1 and surfaces["nsd_0.5mm"] == 1 and counts == (2, 0, 0)
    assert [(o.reference_id, o.prediction_id, o.iou) for o in result.objects] == [(1, 2, 1.0), (2, 1, 0.9)]
    assert result.of("lesion").objects.pq == pytest.approx(0.95)
    assert result.of("lesion").objects.lesion_dice == pytest.approx((1 + 18 / 19) / 2)
    # 10 and 9 voxels, of which one is a column away: 18 of 19 within half a millimetre.
    assert result.objects[1].surface["nsd_0.5mm"] == pytest.approx(18 / 19)


def test_the_same_in_another_axis_order() -> None:
    reference, prediction = boxes((1, 2, 3, 2, 3, 4), (0, 0, 20, 1, 2, 5)), boxes((2, 2, 4, 2, 3, 4))
    moved = prediction.moved(AxisMap(order=(2, 0, 1), flips=(True, False, True)))
    first, second = (evaluate_case(reference, p, iou_threshold=0.1) for p in (prediction, moved))
    assert scores(first) == scores(second) and [o.status for o in first.objects] == [o.status for o in second.objects]


def test_a_dice_threshold_instead_of_an_iou() -> None:
    reference, prediction = boxes((1, 2, 0, 1, 1, 10)), boxes((1, 2, 5, 1, 1, 10))  # Dice 1/2, IoU 1/3
    assert scores(evaluate_case(reference, prediction, dice_threshold=0.5))[2] == (1, 0, 0)
    assert scores(evaluate_case(reference, prediction, dice_threshold=0.51))[2] == (0, 1, 1)
    result = evaluate_case(reference, prediction, dice_threshold=0.5)
    assert result.iou_threshold == pytest.approx(1 / 3) and result.dice_threshold == 0.5


def test_without_surfaces() -> None:
    one = boxes((2, 3, 4, 1, 1, 1))
    result = evaluate_case(one, one, surface=None)
    assert result.of("lesion").surface == {} == result.objects[0].surface


def test_diameter_of_a_sphere() -> None:
    assert diameter_mm(4 / 3 * math.pi * 5**3 / 1000) == pytest.approx(10)
    assert isnan(diameter_mm(math.nan))
    assert evaluate_case(boxes((1, 2, 0, 1, 1, 10)), boxes()).objects[0].reference_diameter_mm == pytest.approx(
        (6 * 28 / math.pi) ** (1 / 3)  # 10 voxels of 2.8 mm3
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iou_threshold": 1.5}, "IoU threshold 1.5: expected 0..1"),
        ({"dice_threshold": -0.1}, "Dice threshold -0.1: expected 0..1"),
        ({"tolerances_mm": ()}, "tolerances"),
        ({"tolerances_mm": (-1.0,)}, "tolerances"),
        ({"surface": "smooth"}, "expected one of subvoxel"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_case(boxes(), boxes(), **settings)
