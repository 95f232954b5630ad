"""Slice-wise COCO AP with values worked out by hand."""

import math

import numpy as np
import pytest
from highdicom import VolumeGeometry

from medseg.labels import LabelTable
from medseg.metrics.coco_slices import coco_slice_ap, slice_objects
from medseg.values.instances import Instance, InstanceSet

SHAPE = (5, 7, 30)
LABELS = LabelTable.from_names(["liver", "lesion"], kinds={"lesion": "ids"})
GRID = VolumeGeometry(np.diag([5.0, 0.7, 0.9, 1.0]), SHAPE, "PATIENT")


def boxes(*objects: tuple[int, int, int, int, float], label: int = 2) -> InstanceSet:
    """Build boxes of 3 rows: (first slice, end, first column, end, score)."""
    return InstanceSet.build(
        [
            Instance(id=1, label=label, mask=np.ones((z1 - z0, 3, x1 - x0), bool), offset=(z0, 2, x0), score=score)
            for z0, z1, x0, x1, score in objects
        ],
        GRID,
        LABELS,
    )


def test_every_slice_is_an_image() -> None:
    truth = boxes((0, 4, 0, 10, 1.0))
    # Found in two of its four slices with IoU 0.8; recall is one half.
    found = boxes((1, 3, 0, 8, 0.9))
    sections = slice_objects(truth, found)
    assert [s[:3] for s in sections.reference] == [(z, "lesion", 1.0) for z in range(4)]
    assert [s[:3] for s in sections.prediction] == [(z, "lesion", 0.9) for z in (1, 2)]
    ap = coco_slice_ap([sections], LABELS.names)
    assert ap["lesion"]["ap_50"] == pytest.approx(51 / 101) == pytest.approx(ap["lesion"]["ap_75"])
    assert ap["lesion"]["ap_50_95"] == pytest.approx(0.7 * 51 / 101)  # reached at 0.50 .. 0.80
    assert all(math.isnan(v) for v in ap["liver"].values())


def test_the_ranking_is_over_all_slices_of_all_cases() -> None:
    first = slice_objects(boxes((0, 1, 0, 10, 1.0)), boxes((0, 1, 0, 10, 0.5)))
    second = slice_objects(boxes(), boxes((3, 4, 0, 10, 0.8)))  # invented, with the higher score
    assert coco_slice_ap([first, second], ["lesion"])["lesion"]["ap_50"] == pytest.approx(0.5)


def test_empty_sides() -> None:
    nothing, something = boxes(), boxes((0, 2, 0, 4, 1.0))
    assert coco_slice_ap([slice_objects(something, nothing)], ["lesion"])["lesion"] == {
        "ap_50_95": 0.0, "ap_50": 0.0, "ap_75": 0.0,
    }  # fmt: skip
    for sections in (slice_objects(nothing, something), slice_objects(nothing, nothing)):
        assert all(math.isnan(v) for v in coco_slice_ap([sections], ["lesion"])["lesion"].values())


def test_overlapping_objects_of_one_class_and_more_than_a_hundred() -> None:
    # 120 runs one pixel apart, each of 6 columns: they overlap, and COCO's usual limit is 100 an image.
    grid = VolumeGeometry(np.diag([5.0, 0.7, 0.9, 1.0]), (1, 1, 126), "PATIENT")
    many = InstanceSet.build(
        [Instance(id=1, label=1, mask=np.ones((1, 1, 6), bool), offset=(0, 0, k)) for k in range(120)], grid, LABELS
    )
    assert coco_slice_ap([slice_objects(many, many)], ["liver"])["liver"]["ap_50_95"] == 1.0
