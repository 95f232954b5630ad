"""Voxel agreement with values worked out by hand."""

import math

import numpy as np
import pytest
from highdicom import VolumeGeometry

from medseg.errors import GeometryError
from medseg.labels import LabelTable
from medseg.metrics.overlap import voxel_overlap
from medseg.values.geometry import AxisMap
from medseg.values.instances import InstanceSet

SHAPE = (5, 7, 11)
LABELS = LabelTable.from_names(["liver", "lesion"], kinds={"lesion": "ids"})
#: 2.5 x 0.8 x 0.5 mm: one voxel is 0.001 ml.
AFFINE = np.array([[0, 0, 0.5, -7.0], [0, 0.8, 0, 3.0], [2.5, 0, 0, 40.0], [0, 0, 0, 1]])
GRID = VolumeGeometry(AFFINE, SHAPE, "PATIENT")


def box(start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def objects(*masks: tuple[int, np.ndarray], labels: LabelTable = LABELS) -> InstanceSet:
    return InstanceSet.from_masks(masks, GRID, labels)


def test_boxes_by_hand() -> None:
    # 2 x 3 x 4 = 24 against 2 x 2 x 5 = 20 voxels, 1 x 2 x 2 = 4 shared.
    reference = objects((1, box((0, 0, 0), (2, 3, 4))))
    prediction = objects((1, box((1, 1, 2), (3, 3, 7))))
    liver = voxel_overlap(reference, prediction)["liver"]
    assert (liver.reference_voxels, liver.prediction_voxels, liver.shared_voxels) == (24, 20, 4)
    assert liver.dice == 8 / 44 and liver.iou == 4 / 40
    assert liver.sensitivity == 4 / 24 and liver.precision == 4 / 20
    assert liver.reference_ml == pytest.approx(0.024) and liver.prediction_ml == pytest.approx(0.020)
    assert liver.volume_difference_ml == pytest.approx(-0.004)
    assert liver.volume_difference_percent == pytest.approx(-100 / 6)


def test_overlapping_objects_of_one_class_count_their_shared_voxels_once() -> None:
    # Two lesions of 8 share 4: a union of 12, not 16. The prediction is the second one.
    reference = objects((2, box((0, 0, 0), (2, 2, 2))), (2, box((1, 0, 0), (3, 2, 2))))
    prediction = objects((2, box((1, 0, 0), (3, 2, 2))))
    lesion = voxel_overlap(reference, prediction)["lesion"]
    assert (lesion.reference_voxels, lesion.prediction_voxels, lesion.shared_voxels) == (12, 8, 8)
    assert lesion.dice == 16 / 20


def test_classes_do_not_mix() -> None:
    mask = box((0, 0, 0), (2, 2, 2))
    result = voxel_overlap(objects((1, mask)), objects((2, mask)))
    assert result["liver"].dice == 0.0 and result["liver"].shared_voxels == 0
    assert math.isnan(result["lesion"].dice)


def test_empty_prediction() -> None:
    liver = voxel_overlap(objects((1, box((0, 0, 0), (1, 1, 3)))), objects())["liver"]
    assert (liver.dice, liver.iou, liver.sensitivity) == (0.0, 0.0, 0.0)
    assert math.isnan(liver.precision)
    assert liver.volume_difference_percent == -100.0


def test_empty_reference_is_undefined_and_its_false_volume_is_kept() -> None:
    liver = voxel_overlap(objects(), objects((1, box((0, 0, 0), (1, 1, 3)))))["liver"]
    for score in ("dice", "iou", "sensitivity", "precision", "volume_difference_percent"):
        assert math.isnan(getattr(liver, score)), score
    assert liver.prediction_ml == pytest.approx(0.003) == liver.volume_difference_ml


def test_both_empty() -> None:
    result = voxel_overlap(objects(), objects())
    assert list(result) == ["liver", "lesion"]
    assert math.isnan(result["liver"].dice) and result["liver"].volume_difference_ml == 0.0


def test_one_voxel_in_the_corner() -> None:
    corner = box((4, 6, 10), (5, 7, 11))
    assert voxel_overlap(objects((1, corner)), objects((1, corner)))["liver"].dice == 1.0


def test_permuted_prediction_and_other_label_ids() -> None:
    other = LabelTable.from_names(["lesion", "spleen", "liver"])
    reference = objects((1, box((0, 0, 0), (2, 3, 4))))
    prediction = objects((3, box((1, 1, 2), (3, 3, 7))), (2, box((0, 0, 0), (1, 1, 1))), labels=other)
    moved = prediction.moved(AxisMap(order=(2, 0, 1), flips=(True, False, True)))
    result = voxel_overlap(reference, moved)
    assert list(result) == ["liver", "lesion", "spleen"]
    assert result["liver"].shared_voxels == 4
    assert result["spleen"].prediction_voxels == 1 and math.isnan(result["spleen"].iou)


def test_equals_full_size_arrays() -> None:
    rng = np.random.default_rng(0)
    sets = []
    for _ in range(2):
        sets.append(objects(*[(int(rng.integers(1, 3)), rng.random(SHAPE) < 0.1) for _ in range(6)]))
    for label, result in zip((1, 2), voxel_overlap(*sets).values(), strict=True):
        a, b = (s.semantic(label) for s in sets)
        assert (result.reference_voxels, result.prediction_voxels) == (a.sum(), b.sum())
        assert result.shared_voxels == (a & b).sum()


def test_another_grid_is_refused() -> None:
    affine = AFFINE.copy()
    affine[2, 0] = 2.6
    other = InstanceSet(instances=(), geometry=VolumeGeometry(affine, SHAPE, "PATIENT"), labels=LABELS)
    with pytest.raises(GeometryError, match="another grid"):
        voxel_overlap(objects(), other)
