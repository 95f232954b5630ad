"""Objects that stand on each other are parted where the track thins out."""

import numpy as np
import pytest

from medseg.labels import Label, LabelTable
from medseg.linking import link
from medseg.linking.nodes import build_nodes
from medseg.linking.waists import cut_at_waists
from medseg.values.detections import Detections
from medseg.values.geometry import make_volume
from medseg.values.linking_plan import LinkingPlan


def geometry(depth):
    affine = np.diag([0.7, 0.8, 3.0, 1.0])[:, [2, 1, 0, 3]]
    return make_volume(np.zeros((depth, 60, 70), np.uint8), affine, "test").get_geometry()


def table(kind="ids"):
    return LabelTable([Label(id=1, name="lesion", colour=(200, 40, 40), kind=kind)])


def stack(areas, slices=None, columns=None):
    """One detection per slice, all about one centre or column: rectangles of 2 columns x (area / 2) rows."""
    places = zip(areas, slices or range(len(areas)), columns or [30] * len(areas), strict=True)
    return [
        Detections(
            slice_index=z,
            boxes=np.array([[column, 30 - area / 4, column + 2, 30 + area / 4]], np.float32),
            scores=np.array([0.9], np.float32),
            labels=np.array([1], np.int64),
            masks=np.ones((1, 4, 4), np.float32),
        )
        for area, z, column in places
    ]


def parts(areas, ratio):
    nodes = build_nodes(stack(areas), geometry(len(areas)), table(), 0.5)
    assert nodes.areas.tolist() == list(areas)
    found = cut_at_waists(nodes, list(range(len(areas))), ratio, (0.7, 0.8))
    return [[areas[i] for i in part] for part in found]


@pytest.mark.parametrize(
    "areas, expected",
    [
        ([20, 40, 60, 48, 24, 8], 1),  # convex
        ([40, 80, 20, 20, 64, 40], 2),  # waist 20 of 64: 0.31
        ([80, 80, 36, 36, 80, 80], 2),  # 0.45
        ([80, 80, 40, 40, 80, 80], 1),  # 0.5, which is not thinner
        ([80, 80, 40, 80, 80, 80], 1),  # one outline cut to half: 0.71
        ([40, 80, 16, 16, 80, 12, 20, 80], 3),
        ([80, 8, 80], 1),  # too short to tell
    ],
)
def test_a_track_is_cut_where_it_thins_out(areas, expected):
    assert len(parts(areas, 0.5)) == expected
    assert len(parts(areas, 0.0)) == 1
    upside_down = parts(areas[::-1], 0.5)
    assert sorted(p[::-1] for p in upside_down) == sorted(parts(areas, 0.5))


def test_missed_slices_were_thinner_and_outlines_apart_are_of_an_object_that_winds():
    areas = [60, 80, 44, 44, 80, 60]  # 0.55

    def count(ratio, **places):
        nodes = build_nodes(stack(areas, **places), geometry(9), table(), 0.5)
        return len(cut_at_waists(nodes, list(range(6)), ratio, (0.7, 0.8)))

    assert [count(r) for r in (0.55, 0.56)] == [1, 2]
    assert [count(r, slices=[0, 1, 2, 4, 5, 6]) for r in (0.275, 0.28)] == [1, 2]
    # The widest lie 4 columns apart: 3.2 mm, the diameter of a disc of 80 x 0.56 mm2 is 7.553 mm; 0.55 x 1.424.
    assert [count(r, columns=[26, 28, 30, 30, 32, 34]) for r in (0.783, 0.784)] == [1, 2]
    # A pole on a side: the smaller outline counts, 30 of 80.
    areas = [60, 80, 30, 70, 80, 60]
    assert [count(r) for r in (0.375, 0.376)] == [1, 2]


def test_the_cut_lies_at_the_thinnest_place():
    assert parts([40, 80, 40, 20, 24, 64, 72], 0.5) == [[40, 80, 40, 20], [24, 64, 72]]


def test_equal_waists_are_cut_together():
    assert parts([80, 80, 20, 20, 20, 80, 80], 0.5) == [[80, 80, 20], [20], [20, 80, 80]]


def test_only_the_flow_cuts_and_no_single_label():
    areas = [40, 80, 80, 36, 32, 72, 80, 40]
    detections, grid = stack(areas), geometry(len(areas))
    settings = {"min_score": 0.1, "link_iou": 0.1, "length_ratio": 0.0}

    def objects(kind="ids", **more):
        return len(link(detections, grid, table(kind), LinkingPlan(**settings, **more)))

    assert objects(waist_ratio=0.5) == 2
    assert objects(waist_ratio=0.0) == 1
    assert objects("single", waist_ratio=0.5) == 1
    assert objects(method="greedy", waist_ratio=0.5) == 1
