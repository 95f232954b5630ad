"""Objects of several directions become one set: by hand, and for two touching lesions seen along each axis."""

import numpy as np
import pytest

from medseg.labels import LabelTable
from medseg.linking import link
from medseg.linking.directions import SoftObject, agree, linking_of_each, soften
from medseg.values.detections import Detections
from medseg.values.geometry import make_volume, orientation_map
from medseg.values.instances import InstanceSet
from medseg.values.linking_plan import LinkingPlan
from medseg.values.pasting import cut_mask

LABELS = LabelTable.from_names(["organ", "lesion"], kinds={"lesion": "components"})
SHAPE = (11, 13, 17)
CONFIG = LinkingPlan(min_score=0.4, length_ratio=0.0, smooth_mm=0.0)


def grid(spacing=(1.5, 1.0, 0.8)):
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]) * spacing
    affine[:3, 3] = (-12.0, 7.5, 300.25)
    return make_volume(np.zeros(SHAPE, np.int16), affine, "test").get_geometry()


def soft(chance, offset=(2, 3, 4), label=2, score=0.8, instance=1):
    return SoftObject(instance=instance, label=label, score=score, chance=np.array(chance, np.float32), offset=offset)


def seen(masks, score):
    """Return what a perfect detector says of objects [Z, H, W]: one detection per object and slice."""
    found = []
    for z in range(masks[0].shape[0]):
        boxes, cuts = [], []
        for mask in masks:
            if mask[z].any():
                rows, columns = (np.flatnonzero(mask[z].any(axis=a)) for a in (1, 0))
                box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64) + (-1, -1, 1, 1)
                boxes.append(box)
                cuts.append(cut_mask(mask[z], box, 28))
        n = len(boxes)
        found.append(
            Detections(
                slice_index=z,
                boxes=np.array(boxes, np.float32).reshape(n, 4),
                scores=np.full(n, score, np.float32),
                labels=np.full(n, 2, np.int64),
                masks=np.array(cuts, np.float32).reshape(n, 28, 28),
            )
        )
    return found


def balls():
    """Two balls that touch, neither behind the other along any axis; in voxels."""
    z, y, x = np.indices(SHAPE)
    first = (z - 4) ** 2 + (y - 4) ** 2 + (x - 5) ** 2 <= 11
    second = ((z - 7) ** 2 + (y - 8) ** 2 + (x - 9) ** 2 <= 11) & ~first
    assert any((first & np.roll(second, -1, axis)).any() for axis in range(3))
    return [first, second]


def test_probabilities_are_averaged_by_score():
    """0.3 x 0.8 and 0.6 x 0.4 over 1.2 is 0.4; 0.9 and 0.6 is 0.8; 0.9 and 0.9; 0 and 0.9 is 0.3; windows differ."""
    first = soft([[[0.3, 0.9, 0.9]]], offset=(2, 3, 4), score=0.8)
    second = soft([[[0.6, 0.6, 0.9, 0.9]]], offset=(2, 3, 4), score=0.4, instance=3)
    config = CONFIG.model_copy(update={"mask_threshold": 0.45})
    together = agree([[first], [second]], grid(), LABELS, config)
    (instance,) = together.instances
    assert instance.offset == (2, 3, 5) and instance.mask.tolist() == [[[True, True]]]
    assert instance.score == pytest.approx(0.6)
    assert together.members == ({0: 1, 1: 3},)
    lower = agree([[first], [second]], grid(), LABELS, config.model_copy(update={"mask_threshold": 0.29}))
    assert lower.instances.instances[0].mask.tolist() == [[[True, True, True, True]]]


def test_what_one_of_two_directions_sees_has_half_its_score():
    lone = soft(np.ones((2, 2, 2)), score=0.9)
    assert len(agree([[lone], []], grid(), LABELS, CONFIG).instances) == 1
    assert len(agree([[lone], []], grid(), LABELS, CONFIG.model_copy(update={"min_score": 0.5})).instances) == 0
    assert len(agree([[], []], grid(), LABELS, CONFIG).instances) == 0
    small = CONFIG.model_copy(update={"min_volume_ml": {2: 8.1 * 1.2e-3}})  # 8 voxels of 1.2 mm3
    assert len(agree([[lone], []], grid(), LABELS, small).instances) == 0
    sure = CONFIG.model_copy(update={"calibration": ((0.0, 0.0), (0.45, 0.7), (1.0, 1.0))})
    assert [i.score for i in agree([[lone], []], grid(), LABELS, sure).instances] == pytest.approx([0.7])


def test_a_direction_gives_an_object_one_member_and_a_label_of_kind_single_has_one_object():
    twice = [soft(np.ones((3, 3, 3)), instance=1), soft(np.ones((3, 3, 3)), instance=2, score=0.7)]
    found = agree([twice, [soft(np.ones((3, 3, 3)), score=0.6)]], grid(), LABELS, LinkingPlan(min_score=0.1))
    assert found.members == ({0: 1, 1: 1},)  # the other double has no voxel left
    organs = [soft(np.ones((2, 2, 2)), label=1), soft(np.ones((2, 2, 2)), (7, 7, 7), label=1, score=0.9, instance=2)]
    (organ,) = agree([organs], grid(), LABELS, CONFIG).instances
    assert organ.offset == (7, 7, 7)


def test_a_voxel_of_two_objects_goes_to_the_more_probable():
    left = soft([[[0.9, 0.8, 0.6]]], (2, 3, 4), score=0.8)
    right = soft([[[0.7, 0.7, 0.9]]], (2, 3, 5), score=0.7, instance=2)
    other = soft([[[0.99, 0.99, 0.99]]], (2, 3, 4), label=1)
    found = agree([[left, right, other]], grid(), LABELS, CONFIG).instances
    assert [(i.label, i.offset[2], i.mask.sum()) for i in found] == [(1, 4, 3), (2, 4, 2), (2, 6, 2)]


@pytest.mark.parametrize("orientations", [("HPL", "PFL", "LFP"), ("PFL", "RAH"), ("LFP",)])
def test_touching_lesions_seen_along_every_axis(orientations):
    geometry = grid()
    truth = balls()
    directions = []
    for orientation in orientations:
        axis_map = orientation_map(geometry, orientation)
        own = axis_map.geometry(geometry)
        detections = seen([axis_map.array(mask) for mask in truth], 0.9)
        found = link(detections, own, LABELS, linking_of_each(CONFIG))
        assert len(found) == 2
        objects = soften(found, detections, CONFIG.mask_threshold)
        for obj, instance in zip(objects, found, strict=True):
            hard = InstanceSet.build([instance], own, LABELS).full_mask(1)
            full = np.zeros(own.spatial_shape, np.float32)
            full[tuple(slice(o, o + n) for o, n in zip(obj.offset, obj.chance.shape, strict=True))] = obj.chance
            np.testing.assert_array_equal(full >= CONFIG.mask_threshold, hard)
        directions.append([obj.moved(axis_map.inverse(), own.spatial_shape) for obj in objects])
    together = agree(directions, geometry, LABELS, CONFIG)
    assert len(together.instances) == 2
    for i, mask in enumerate(truth, start=1):
        np.testing.assert_array_equal(together.instances.full_mask(i), mask)
    assert [i.score for i in together.instances] == pytest.approx([0.9, 0.9])


def test_a_slice_that_was_filled_in_counts_whole():
    geometry, mask = grid(), balls()[0]
    detections = [part for part in seen([mask], 0.9) if part.slice_index != 4]
    found = link(detections, geometry, LABELS, linking_of_each(CONFIG))
    (obj,) = soften(found, detections, 0.5)
    (instance,) = found
    plane = obj.chance[4 - obj.offset[0]]
    assert set(np.unique(plane)) == {0.0, 1.0} and plane.sum() == instance.slice_mask(4).sum()


def test_a_detection_of_two_objects_gives_each_its_own_part():
    """Two objects side by side that were seen as one: neither has a probability where the other is."""
    geometry = grid()
    whole = np.zeros(SHAPE, np.bool_)
    whole[4, 2:8, 3:11] = True
    left, right = whole.copy(), whole.copy()
    left[..., 7:], right[..., :7] = False, False
    found = InstanceSet.from_masks([(2, left), (2, right)], geometry, LABELS)
    first, second = soften(found, seen([whole], 0.9), 0.5)
    for obj, own, other in ((first, left, right), (second, right, left)):
        full = np.zeros(SHAPE, np.float32)
        full[tuple(slice(o, o + n) for o, n in zip(obj.offset, obj.chance.shape, strict=True))] = obj.chance
        np.testing.assert_array_equal(full >= 0.5, own)
        assert not full[other].any() and full[3].sum() == 0
