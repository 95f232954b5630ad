"""The baselines do what their sources do, and fail where their sources fail: the comparison stays true."""

import cc3d
import numpy as np
import pytest

from medseg.labels import Label, LabelTable
from medseg.linking import link
from medseg.linking.baselines import BASELINES
from medseg.linking.crowd import crowded_stack
from medseg.linking.nodes import build_nodes
from medseg.linking.simulation import DetectorNoise, simulate_detections
from medseg.values.detections import Detections
from medseg.values.geometry import make_volume, spacing_of
from medseg.values.linking_plan import LinkingPlan

LABELS = LabelTable([Label(id=1, name="lesion", colour=(200, 40, 40), kind="ids")])
METHODS = tuple(BASELINES)


def grid(shape=(11, 60, 70), spacing_mm=(5.0, 0.8, 0.7)):
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing_mm)[::-1]
    return make_volume(np.zeros(shape, np.uint8), affine, "test").get_geometry()


def rectangle(z, row, column, height, width, *, score=0.9):
    """One detection that covers exactly these pixels."""
    return Detections(
        slice_index=z,
        boxes=np.array([[column, row, column + width, row + height]], np.float32),
        scores=np.array([score], np.float32),
        labels=np.array([1], np.int64),
        masks=np.ones((1, 5, 5), np.float32),
    )


def linked(detections, method, geometry=None, **settings):
    settings = {"min_score": 0.1, "length_ratio": 0.0, "keep_short": 0.0, "link_iou": 0.2, "gap_iou": 0.2, **settings}
    return link(detections, geometry or grid(), LABELS, LinkingPlan(method=method, **settings))


def tracks(detections, method, geometry=None, **settings):
    """The tracks of a baseline alone, each as the [slice, row] of its detections."""
    geometry = geometry or grid()
    nodes = build_nodes(detections, geometry, LABELS, 0.5)
    found = BASELINES[method](nodes, spacing_of(geometry), LinkingPlan(method=method, **settings))
    return sorted([(int(nodes.slices[i]), int(nodes.windows[i, 0])) for i in track] for track in found)


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_object_is_one_object(method):
    found = linked([rectangle(z, 10 + z // 3, 12, 20, 25) for z in range(2, 9)], method)
    assert [(i.offset, i.mask.shape) for i in found] == [((2, 10, 12), (7, 22, 25))]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_detected_is_nothing_found(method):
    assert len(linked([], method)) == 0
    assert len(linked([Detections.empty(3, 5)], method)) == 0


@pytest.mark.parametrize("method", METHODS)
def test_labels_are_linked_apart(method):
    table = LabelTable([*LABELS, Label(id=2, name="cyst", colour=(0, 0, 200), kind="ids")])
    both = [rectangle(3, 10, 10, 20, 20), rectangle(4, 10, 10, 20, 20)]
    other = Detections(**{**vars(both[1]), "labels": np.array([2])})
    found = link([both[0], other], grid(), table, LinkingPlan(method=method, min_score=0.1, length_ratio=0.0))
    assert [i.label for i in found] == [1, 2]


# What each is known to get wrong. The flow gets these right (see test_linking.py).


@pytest.mark.parametrize("method", [*METHODS, "flow"])
def test_two_objects_with_an_empty_slice_between_get_one_id(method):
    """An IoU of 0.25 that is one object in neighbouring slices is one across a gap too; the flow wants more there."""
    pair = [rectangle(2, 10, 10, 20, 20), rectangle(4, 10, 22, 20, 20)]  # 8 of 20 columns shared: IoU 0.25
    assert len(linked(pair, method, gap_iou=0.5 if method == "flow" else 0.2)) == (2 if method == "flow" else 1)


@pytest.mark.parametrize("method", [*METHODS, "flow"])
def test_one_missed_slice_splits_an_object_where_no_gap_is_bridged(method):
    seen = [rectangle(z, 10, 10, 20, 20) for z in (2, 3, 5, 6)]
    assert len(linked(seen, method, gap_mm=0.0)) == 2  # as published: none of the four bridges a gap
    assert len(linked(seen, method, gap_mm=5.0)) == 1


def test_greedy_gives_both_upper_masks_of_a_tie_to_one_object():
    fork = [rectangle(2, 10, 10, 20, 20), rectangle(3, 10, 1, 20, 18), rectangle(3, 10, 21, 20, 18)]
    assert len(linked(fork, "greedy")) == 1
    assert len(linked(fork, "hungarian")) == len(linked(fork, "flow")) == 2
    assert len(tracks(fork, "nms", link_iou=0.2)[0]) == 2  # the third is suppressed


def test_a_tie_of_lower_masks_is_decided():
    """Greedy gives the upper mask to one of them, not to both."""
    join = [rectangle(2, 10, 10, 20, 9), rectangle(2, 10, 21, 20, 9), rectangle(3, 10, 10, 20, 20)]
    assert sorted(len(track) for track in tracks(join, "greedy", link_iou=0.2)) == [1, 2]


def test_hungarian_joins_strangers_to_have_more_matches():
    """a goes on as c; b ends and d begins. One match of IoU 0.6 loses against two of 0.2 and 0.25."""
    a, b = rectangle(2, 10, 10, 10, 10), rectangle(2, 26, 10, 10, 10)
    c, d = rectangle(3, 17, 10, 10, 10), rectangle(3, 3, 10, 10, 10)
    found = tracks([a, b, c, d], "hungarian", link_iou=0.05)
    assert found == [[(2, 10), (3, 3)], [(2, 26), (3, 17)]]
    assert tracks([a, b, c], "hungarian", link_iou=0.05) == [[(2, 10), (3, 17)], [(2, 26)]]


def test_nms_loses_what_no_longer_overlaps_the_best_slice():
    """An object that drifts by 4 of 20 rows a slice is cut where it leaves its best slice; the others follow it."""
    drifting = [rectangle(z, 4 + 4 * z, 10, 20, 20, score=0.95 if z == 0 else 0.9) for z in range(9)]
    assert len(linked(drifting, "nms", link_iou=0.3)) > 1
    assert len(linked(drifting, "hungarian", link_iou=0.3)) == len(linked(drifting, "flow")) == 1


def test_nms_suppresses_what_it_does_not_use():
    same = [rectangle(3, 10, 10, 20, 20), rectangle(3, 14, 14, 20, 20, score=0.8), rectangle(4, 12, 12, 20, 20)]
    assert tracks(same, "nms", link_iou=0.3) == [[(3, 10), (4, 12)]]


def test_nms_ends_at_a_hole():
    """The example of the source: a core at 50; 23, 46, 48, 49, 51, 52, 53, 56, 57 besides, and no gap bridged."""
    slices = (23, 46, 48, 49, 50, 51, 52, 53, 56, 57)
    seen = [rectangle(z, 10, 10, 20, 20, score=0.99 if z == 50 else 0.9) for z in slices]
    found = tracks(seen, "nms", grid((60, 60, 70)), gap_mm=0.0)
    expected = [[23], [46], [48, 49, 50, 51, 52, 53], [56, 57]]
    assert [[z for z, _ in track] for track in found] == expected


@pytest.mark.parametrize("shift, objects", [(20, 1), (21, 2)])
def test_components_fuse_what_touches(shift, objects):
    pair = [rectangle(z, row, 10, 20, 20) for z in (2, 3, 4) for row in (5, 5 + shift)]
    assert len(linked(pair, "components")) == objects
    assert len(linked(pair, "flow")) == len(linked(pair, "greedy")) == 2


def test_components_fuse_corners_through_another_slice_only():
    corners = [rectangle(3, 5, 5, 10, 10), rectangle(3, 15, 15, 10, 10)]
    assert len(tracks(corners, "components")) == 2
    assert len(tracks([*corners, rectangle(4, 10, 10, 10, 10)], "components")) == 1


@pytest.mark.parametrize("seed", range(3))
def test_components_are_those_of_the_pasted_voxels(seed):
    """Against cc3d (face neighbours) on the union of all masks, for masks in one piece and no gap."""
    rng = np.random.default_rng(seed)
    geometry = grid((7, 40, 50))
    boxes = [(rng.integers(7), rng.integers(32), rng.integers(40), *rng.integers(2, 9, 2)) for _ in range(60)]
    volume = np.zeros(geometry.spatial_shape, np.uint8)
    for z, row, column, height, width in boxes:
        volume[z, row : row + height, column : column + width] = 1
    expected = cc3d.connected_components(volume, connectivity=6, return_N=True)[1]
    assert 3 < expected < 50
    detections = [rectangle(int(z), *(int(v) for v in rest)) for z, *rest in boxes]
    assert len(tracks(detections, "components", geometry, gap_mm=0.0)) == expected


@pytest.mark.parametrize("method", METHODS)
def test_no_detection_is_in_two_tracks(method):
    truth = crowded_stack(seed=4, shape=(20, 96, 96), spacing_mm=(2.5, 0.8, 0.8), count=25)
    detections = simulate_detections(truth, DetectorNoise(), seed=1).detections
    nodes = build_nodes(detections, truth.geometry, truth.labels, 0.5)
    found = BASELINES[method](nodes, spacing_of(truth.geometry), LinkingPlan(method=method))
    members = [i for track in found for i in track]
    assert len(set(members)) == len(members)
    assert all(track == sorted(track) for track in found) and found == sorted(found)
    if method != "nms":  # which suppresses
        assert len(members) == len(nodes)
