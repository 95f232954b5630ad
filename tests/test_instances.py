"""Instances and sets of them: from and to label maps, names, colours, axis orders; refusals."""

from itertools import permutations, product

import numpy as np
import pytest
from highdicom import Volume, VolumeGeometry
from numpy.typing import NDArray
from scipy import ndimage

from medseg.errors import ConfigError, GeometryError, InputError
from medseg.labels import Label, LabelTable
from medseg.values.geometry import AxisMap
from medseg.values.instances import Instance, InstanceSet, crop_to_object

SHAPE = (5, 7, 11)
LABELS = LabelTable(
    [
        Label(id=3, name="liver", colour=(200, 100, 0)),
        Label(id=8, name="lesion", colour=(10, 20, 250), kind="components"),
        Label(id=9, name="vessel", colour=(1, 2, 3), kind="ids"),
    ]
)
LIVER = np.s_[0:4, 0:5, 1:9]
LESION = np.s_[1:2, 2:4, 3:5]
BORDER = np.s_[1:5, 3:7, 3:11]


def box(*window: slice) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, np.bool_)
    mask[window] = True
    return mask


@pytest.fixture
def instances(oblique_geometry: VolumeGeometry) -> InstanceSet:
    """A liver, a lesion inside it and a lesion across its border."""
    return InstanceSet.from_masks([(3, box(*LIVER)), (8, box(*LESION)), (8, box(*BORDER))], oblique_geometry, LABELS)


def with_scores(instances: InstanceSet, *scores: float) -> InstanceSet:
    scored = [
        Instance(id=1, label=i.label, mask=i.mask, offset=i.offset, score=score)
        for i, score in zip(instances, scores, strict=True)
    ]
    return InstanceSet.build(scored, instances.geometry, instances.labels)


def test_masks_go_in_and_come_out(instances: InstanceSet) -> None:
    assert [i.id for i in instances] == [1, 2, 3] and [i.label for i in instances] == [3, 8, 8]
    for instance, window in zip(instances, (LIVER, LESION, BORDER), strict=True):
        np.testing.assert_array_equal(instances.full_mask(instance.id), box(*window))
        assert instance.window == window and instance.mask.all()
        assert instance.voxels == box(*window).sum()
    np.testing.assert_array_equal(instances.semantic(8), box(*LESION) | box(*BORDER))
    assert not instances.semantic(9).any()
    assert instances.volume_ml(2) == pytest.approx(4 * 3.0 * 0.8 * 0.7 / 1000)


def test_slice_masks(instances: InstanceSet) -> None:
    lesion = instances[2]
    assert [lesion.slice_mask(z) is None for z in range(5)] == [True, False, True, True, True]
    np.testing.assert_array_equal(instances[3].slice_mask(4), np.ones((4, 8), bool))


def test_crop_to_object_is_tight(rng: np.random.Generator) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[2, 3, 4] = mask[4, 3, 9] = True
    crop = crop_to_object(mask)
    assert crop is not None
    assert crop[0].shape == (3, 1, 6) and crop[1] == (2, 3, 4) and crop[0].sum() == 2
    assert not np.shares_memory(crop[0], mask)
    assert crop_to_object(np.zeros(SHAPE, bool)) is None


@pytest.mark.parametrize(
    ("overlap", "owners"),
    # who keeps: liver and lesion, lesion and border, liver and border
    [("higher_score", (2, 2, 1)), ("smaller", (2, 2, 3)), ("later", (3, 3, 3))],
)
def test_overlaps_go_to_one_owner(instances: InstanceSet, overlap, owners: tuple[int, int, int]) -> None:
    scored = with_scores(instances, 0.8, 0.9, 0.3)
    flat, lost = scored.to_labelmap(overlap)
    masks = {i.id: scored.full_mask(i.id) for i in scored}
    everyone = masks[1] & masks[2] & masks[3]
    assert everyone.any() and (flat[everyone] == owners[1]).all()
    assert (flat[masks[1] & masks[2] & ~masks[3]] == 2).all()
    assert (flat[masks[1] & masks[3] & ~masks[2]] == owners[2]).all()
    assert flat.dtype == np.uint16 and ((flat > 0) == (masks[1] | masks[2] | masks[3])).all()
    assert lost == {k: int((m & (flat != k)).sum()) for k, m in masks.items() if (m & (flat != k)).any()}


def test_equal_scores_leave_the_voxel_to_the_smaller_object(instances: InstanceSet) -> None:
    flat, lost = instances.to_labelmap("higher_score")
    assert (flat[instances.full_mask(2)] == 2).all() and 2 not in lost


def test_overlap_can_be_refused(instances: InstanceSet) -> None:
    with pytest.raises(InputError, match="instances 1 and 2 overlap"):
        instances.to_labelmap("error")
    apart = InstanceSet.from_masks([(3, box(*LESION))], instances.geometry, LABELS)
    assert apart.to_labelmap("error").lost_voxels == {}


def test_an_object_under_another_loses_everything(oblique_geometry: VolumeGeometry) -> None:
    twice = InstanceSet.from_masks([(3, box(*LESION)), (8, box(*LESION))], oblique_geometry, LABELS)
    assert twice.to_labelmap("later").lost_voxels == {1: 4}


def test_label_map_of_label_ids(rng: np.random.Generator, oblique_geometry: VolumeGeometry) -> None:
    array = np.zeros(SHAPE, np.int16)
    array[0, 0, 0] = array[4, 6, 10] = 3  # single: one object in two parts
    array[1, 1, 1] = array[2, 2, 2] = 8  # touch by a corner: one component
    array[1, 5, 1] = array[1, 5, 3] = 8  # apart: two
    array[3, 3, 3] = array[3, 3, 7] = 9  # ids: one number, one object
    found = InstanceSet.from_labelmap(array, oblique_geometry, LABELS)
    assert [(i.label, i.voxels, i.source_id) for i in found] == [
        (3, 2, 3), (8, 2, 8), (8, 1, 8), (8, 1, 8), (9, 2, 9),
    ]  # fmt: skip
    union = sum(found.full_mask(i.id) * i.label for i in found)
    np.testing.assert_array_equal(union, array)


def test_components_agree_with_scipy(rng: np.random.Generator, oblique_geometry: VolumeGeometry) -> None:
    mask = rng.random(SHAPE) < 0.12
    found = InstanceSet.from_labelmap(mask * 8, oblique_geometry, LABELS)
    parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert len(found) == count > 5
    for instance in found:
        full = found.full_mask(instance.id)
        assert len(np.unique(parts[full])) == 1
        np.testing.assert_array_equal(full, parts == parts[full][0])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("high", [200, 65535, 65536, 3_000_000_000])
def test_label_map_of_instance_ids(oblique_geometry: VolumeGeometry, dtype: type, high: int) -> None:
    if high > np.iinfo(dtype).max:
        high = int(np.iinfo(dtype).max)
    array = np.zeros(SHAPE, dtype)
    array[0, 0, :4], array[0, 0, 4:], array[4] = 7, 12, high  # 7 and 12 touch
    found = InstanceSet.from_labelmap(array, oblique_geometry, LABELS, instance_labels={7: 8, 12: 8, high: 3, 99: 3})
    assert [(i.id, i.label, i.voxels, i.source_id) for i in found] == [(1, 8, 4, 7), (2, 8, 7, 12), (3, 3, 77, high)]


def test_a_map_without_background(oblique_geometry: VolumeGeometry) -> None:
    for value in (3, 70000):
        found = InstanceSet.from_labelmap(np.full(SHAPE, value), oblique_geometry, LABELS, instance_labels={value: 3})
        assert [i.voxels for i in found] == [385]


def test_empty_maps_give_no_objects(oblique_geometry: VolumeGeometry) -> None:
    found = InstanceSet.from_labelmap(np.zeros(SHAPE, np.uint8), oblique_geometry, LABELS)
    assert len(found) == 0 and found.names() == () and found.colours() == ()
    flat, lost = found.to_labelmap("error")
    assert not flat.any() and lost == {}
    assert len(InstanceSet.from_masks([(3, np.zeros(SHAPE, bool))], oblique_geometry, LABELS)) == 0


def test_maps_that_do_not_fit_are_refused(oblique_geometry: VolumeGeometry) -> None:
    array = np.zeros(SHAPE, np.int16)
    array[0, 0, 0] = 4
    with pytest.raises(InputError, match="a.nii: values .4. are not in the table .3: 'liver'"):
        InstanceSet.from_labelmap(array, oblique_geometry, LABELS, source="a.nii")
    with pytest.raises(InputError, match="values .4. are not in the table instance ids .1, 2."):
        InstanceSet.from_labelmap(array, oblique_geometry, LABELS, instance_labels={1: 3, 2: 3})
    with pytest.raises(InputError, match="value -4 found"):
        InstanceSet.from_labelmap(-array, oblique_geometry, LABELS)
    with pytest.raises(GeometryError, match="expected that of its grid"):
        InstanceSet.from_labelmap(array[:4], oblique_geometry, LABELS)
    with pytest.raises(GeometryError, match="expected that of the grid"):
        InstanceSet.from_masks([(3, np.ones((5, 7, 10), bool))], oblique_geometry, LABELS)
    with pytest.raises(ConfigError, match="label id 5 is not in the label table"):
        InstanceSet.from_masks([(5, np.ones(SHAPE, bool))], oblique_geometry, LABELS)


def test_moving_axes_is_exact(instances: InstanceSet) -> None:
    for order, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        axis_map = AxisMap(order=order, flips=flips)
        moved = instances.moved(axis_map)
        assert moved.geometry.spatial_shape == axis_map.shape(SHAPE)
        for instance in instances:
            np.testing.assert_array_equal(
                moved.full_mask(instance.id), axis_map.array(instances.full_mask(instance.id))
            )
        back = moved.moved(axis_map.inverse())
        assert [i.offset for i in back] == [i.offset for i in instances]
        np.testing.assert_allclose(back.geometry.affine, instances.geometry.affine, atol=1e-9)


def test_names_are_numbered_and_unique(oblique_geometry: VolumeGeometry) -> None:
    table = LabelTable(
        [
            Label(id=1, name="liver", colour=(0, 0, 0)),
            Label(id=2, name="lesion", colour=(0, 0, 0), kind="components"),
            Label(id=3, name="lesion 1", colour=(0, 0, 0)),
        ]
    )
    masks = [(2, box(*LESION)), (1, box(*LIVER)), (2, box(*BORDER)), (3, box(*LESION))]
    names = InstanceSet.from_masks(masks, oblique_geometry, table).names()
    assert names == ("lesion 1 (object 1)", "liver", "lesion 2", "lesion 1 (object 4)")
    one = InstanceSet.from_masks(masks[:1], oblique_geometry, table)
    assert one.names() == ("lesion 1",)  # the form does not depend on how many there are


def test_colours_start_with_the_labels_own_and_differ(instances: InstanceSet) -> None:
    colours = instances.colours()
    assert colours[:2] == ((200, 100, 0), (10, 20, 250))
    assert colours[2] != colours[1]
    many = InstanceSet.from_masks([(8, box(*LESION))] * 9, instances.geometry, LABELS).colours()
    assert len(set(many)) == 9 and all(0 <= c <= 255 and isinstance(c, int) for rgb in many for c in rgb)


def test_volumes_serve_as_grids(instances: InstanceSet, oblique_geometry: VolumeGeometry) -> None:
    volume = Volume(np.zeros(SHAPE, np.int16), oblique_geometry.affine, "PATIENT")
    built = InstanceSet.build(instances.instances, volume, LABELS)
    assert isinstance(built.geometry, VolumeGeometry)
    assert repr(built).startswith("InstanceSet(3 instances of 3 labels on 5 x 7 x 11 voxels")


def test_instances_that_make_no_sense_are_refused(oblique_geometry: VolumeGeometry) -> None:
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(InputError, match="non-empty 3-D bool"):
        Instance(id=1, label=3, mask=np.zeros((2, 2, 2), bool), offset=(0, 0, 0))
    with pytest.raises(InputError, match="non-empty 3-D bool"):
        Instance(id=1, label=3, mask=mask.astype(np.uint8), offset=(0, 0, 0))  # type: ignore[arg-type]
    for score in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="expected 0..1"):
            Instance(id=1, label=3, mask=mask, offset=(0, 0, 0), score=score)
    with pytest.raises(ConfigError, match="instance id 0"):
        Instance(id=0, label=3, mask=mask, offset=(0, 0, 0))
    for offset in ((4, 0, 0), (0, 0, 10), (0, -1, 0)):
        with pytest.raises(GeometryError, match="leave the volume"):
            InstanceSet.build([Instance(id=1, label=3, mask=mask, offset=offset)], oblique_geometry, LABELS)
    second = Instance(id=2, label=3, mask=mask, offset=(0, 0, 0))
    with pytest.raises(ConfigError, match=r"instance ids are \[2\]"):
        InstanceSet(instances=(second,), geometry=oblique_geometry, labels=LABELS)
    found = InstanceSet.build([second], oblique_geometry, LABELS)
    for wrong in (0, 2):
        with pytest.raises(ConfigError, match="the set has ids 1..1"):
            found[wrong]
