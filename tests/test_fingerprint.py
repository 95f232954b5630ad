"""Facts of a cohort against sizes, contacts and overlaps that were drawn by hand."""

import json

import numpy as np
import pytest
from highdicom import Volume, VolumeGeometry
from network_fixtures import HPL, LABELS

from medseg.data.contacts import find_contacts
from medseg.data.fingerprint import (
    OUTLINES_PER_CASE,
    OUTLINES_PER_LABEL,
    CaseMeasures,
    Fingerprint,
    fingerprint,
    look_at,
    thin_outlines,
)
from medseg.data.fingerprint_table import describe
from medseg.errors import InputError
from medseg.labels import LabelTable
from medseg.values.geometry import AxisMap, make_volume
from medseg.values.instances import InstanceSet

STORED = [AxisMap(order=(0, 1, 2), flips=(False,) * 3), AxisMap(order=(2, 0, 1), flips=(True, False, True))]
#: Voxels of 4.0 x 3.0 x 2.0 mm: areas of the faces across slices, rows and columns.
ACROSS = (3 * 2.0, 4 * 2.0, 4 * 3.0)


def block_case() -> tuple[Volume, InstanceSet]:
    """Two lesions and an organ in a body, sizes known by hand: 4.0 x 3.0 x 2.0 mm voxels."""
    array = np.full((6, 40, 50), -1000, np.int16)
    array[:, 10:30, 10:40] = 0
    masks = [np.zeros(array.shape, bool) for _ in range(3)]
    masks[0][1:5, 12:26, 12:30] = True
    masks[1][2, 14:18, 14:20] = masks[1][3, 14:19, 14:22] = True
    masks[2][3, 12:14, 32:36] = masks[2][5, 12:14, 32:35] = True
    array[masks[0]], array[masks[1]], array[masks[2]] = 100, 60, 150
    volume = make_volume(array, affine(4.0, 3.0, 2.0), "blocks")
    return volume, InstanceSet.from_masks([(1, masks[0]), (2, masks[1]), (2, masks[2])], volume, LABELS)


def affine(*spacing: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = HPL * spacing
    return matrix


def objects(shape: tuple[int, int, int], *boxes: tuple[int, tuple[slice, slice, slice]]) -> InstanceSet:
    """Boxes of voxels with their labels, on 4.0 x 3.0 x 2.0 mm."""
    masks = []
    for label, window in boxes:
        mask = np.zeros(shape, bool)
        mask[window] = True
        masks.append((label, mask))
    return InstanceSet.from_masks(masks, VolumeGeometry(affine(4.0, 3.0, 2.0), shape, "PATIENT"), LABELS)


def box(z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]) -> tuple[slice, slice, slice]:
    return slice(*z), slice(*y), slice(*x)


def together(*cases: CaseMeasures) -> Fingerprint:
    return fingerprint(cases, LABELS, ("image",), "HPL")


@pytest.mark.parametrize("stored", STORED)
def test_facts_are_measured_in_the_plans_orientation(stored: AxisMap) -> None:
    volume, truth = block_case()
    facts = look_at((stored.volume(volume),), truth.moved(stored), "HPL")
    organ, lesions = facts.classes[1], facts.classes[2]
    np.testing.assert_allclose(facts.spacing_mm, (4.0, 3.0, 2.0))
    assert facts.shape == (6, 40, 50)
    np.testing.assert_allclose(facts.body_mm, ((20 + 8) * 3.0, (30 + 8) * 2.0))  # 4 pixels of air each side
    np.testing.assert_allclose(organ.boxes_mm, [[14 * 3.0, 18 * 2.0]] * 4)
    np.testing.assert_allclose(lesions.boxes_mm, [[4 * 3, 6 * 2], [5 * 3, 8 * 2], [2 * 3, 4 * 2], [2 * 3, 3 * 2]])
    np.testing.assert_allclose(lesions.areas_mm2, [24 * 6, 40 * 6, 8 * 6, 6 * 6])
    np.testing.assert_allclose(organ.sides_mm, [(42 * 36) ** 0.5])
    np.testing.assert_allclose(lesions.sides_mm, [(15 * 16) ** 0.5, (6 * 8) ** 0.5])
    np.testing.assert_allclose(lesions.extents_mm, [[8, 15, 16], [12, 6, 8]])
    np.testing.assert_allclose(lesions.volumes_ml, [64 * 0.024, 14 * 0.024])
    assert lesions.gaps.tolist() == [0, 1] and organ.gaps.tolist() == [0]
    assert facts.per_slice.tolist() == [0, 1, 2, 3, 1, 1] and lesions.per_slice.tolist() == [1, 2, 1]
    assert facts.lowest == (-1000.0,) and not facts.from_dicom
    assert set(organ.values[0]) == {60.0, 100.0} and set(lesions.values[0]) == {60.0, 150.0}
    # the first lesion lies in the organ, the second one beside it
    assert (facts.labelled_voxels, facts.shared_voxels) == (4 * 14 * 18 + 14, 64)
    assert facts.overlapping == {(1, 2): 1} and lesions.overlapped.tolist() == [1.0, 0.0]


def test_channels_are_sampled_each_on_its_own() -> None:
    volume, truth = block_case()
    second = make_volume((volume.array == 150).astype(np.int16), volume.affine, "second")
    facts = look_at((volume, second), truth, "HPL")
    assert facts.lowest == (-1000.0, 0.0)
    assert set(facts.classes[2].values[0]) == {60.0, 150.0} and set(facts.classes[2].values[1]) == {0.0, 1.0}
    cohort = fingerprint([facts], LABELS, ("CT", "PET"), "HPL")
    assert not cohort.is_ct and set(cohort.values(1)) == {0.0, 1.0}
    assert describe(cohort)["intensities"]["PET"]["under_masks_of"]["organ"]["median"] == 0


def test_samples_are_bounded_however_large_the_object() -> None:
    array = np.arange(40 * 60 * 70, dtype=np.float32).reshape(40, 60, 70)
    volume = make_volume(array, affine(1.0, 1.0, 1.0), "large")
    truth = InstanceSet.from_masks([(1, np.ones(array.shape, bool))], volume, LABELS)
    values = look_at((volume,), truth, "HPL").classes[1].values[0]
    assert 3900 <= len(values) <= 4000
    assert values.mean() == pytest.approx(array.mean(), rel=0.01)


@pytest.mark.parametrize("stored", STORED)
def test_touching_blocks(stored: AxisMap) -> None:
    """Two blocks of 2 x 3 x 4 voxels share a face of 2 x 3 across the columns; a third one touches only by an edge."""
    found = objects(
        (9, 10, 12),
        (2, box((2, 4), (2, 5), (1, 5))),
        (2, box((2, 4), (2, 5), (5, 9))),
        (2, box((4, 6), (5, 7), (1, 5))),
    )
    contacts = find_contacts(found.moved(stored))
    surface = 2 * (12 * ACROSS[0] + 8 * ACROSS[1] + 6 * ACROSS[2])
    assert contacts.pairs.tolist() == [[0, 1]]
    np.testing.assert_allclose(contacts.area_mm2, [6 * ACROSS[2]])
    np.testing.assert_allclose(contacts.surface_mm2[:2], surface)
    np.testing.assert_allclose(contacts.own, [6 * ACROSS[2] / surface] * 2 + [0])
    assert contacts.other.tolist() == [0, 0, 0] and contacts.overlapped.tolist() == [0, 0, 0]
    assert (contacts.labelled_voxels, contacts.shared_voxels) == (24 + 24 + 16, 0)


def test_contacts_across_the_other_axes_and_with_other_labels() -> None:
    found = objects(
        (6, 8, 10),
        (1, box((0, 2), (0, 3), (0, 4))),
        (2, box((2, 3), (1, 3), (1, 4))),  # below it: 2 x 3 faces across slices
        (2, box((0, 2), (3, 5), (0, 2))),  # behind it: 2 x 2 faces across rows, and one edge with the other lesion
    )
    contacts = find_contacts(found)
    assert contacts.pairs.tolist() == [[0, 1], [0, 2]]
    np.testing.assert_allclose(contacts.area_mm2, [6 * ACROSS[0], 4 * ACROSS[1]])
    assert contacts.own.tolist() == [0, 0, 0]
    surface = 2 * (12 * ACROSS[0] + 8 * ACROSS[1] + 6 * ACROSS[2])
    assert contacts.other[0] == pytest.approx((6 * ACROSS[0] + 4 * ACROSS[1]) / surface)


def test_a_single_slice_has_no_faces_across_slices() -> None:
    found = objects((1, 8, 10), (2, box((0, 1), (0, 3), (0, 4))), (2, box((0, 1), (3, 6), (1, 3))))
    contacts = find_contacts(found)
    np.testing.assert_allclose(contacts.surface_mm2, [8 * ACROSS[1] + 6 * ACROSS[2], 4 * ACROSS[1] + 6 * ACROSS[2]])
    np.testing.assert_allclose(contacts.area_mm2, [2 * ACROSS[1]])


def test_overlaps_count_each_voxel_once() -> None:
    """Three bars along the columns: 0..6, 4..10 and 5..12; voxels 4..9 are in two or three of them."""
    bars = [box((1, 2), (1, 2), columns) for columns in ((0, 6), (4, 10), (5, 12))]
    contacts = find_contacts(objects((3, 4, 14), (1, bars[0]), (2, bars[1]), (2, bars[2])))
    assert contacts.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert contacts.shared.tolist() == [2, 1, 5]
    assert (contacts.labelled_voxels, contacts.shared_voxels) == (12, 6)
    np.testing.assert_allclose(contacts.overlapped, [2 / 6, 6 / 6, 5 / 7])


def test_one_object_has_no_contacts() -> None:
    contacts = find_contacts(objects((3, 4, 5), (2, box((1, 2), (1, 2), (1, 2)))))
    assert contacts.pairs.shape == (0, 2) and contacts.own.tolist() == [0.0]


def test_a_fingerprint_needs_every_label() -> None:
    volume, truth = block_case()
    facts = look_at((volume,), truth, "HPL")
    with pytest.raises(InputError, match="no cases"):
        together()
    with pytest.raises(InputError, match=r"labels \['spleen'\] occur in no case"):
        fingerprint([facts], LabelTable.from_names(["organ", "lesion", "spleen"]), ("image",), "HPL")


def test_outlines_are_largest_cross_sections_and_few() -> None:
    volume, truth = block_case()
    facts = look_at((volume,), truth, "HPL")
    shapes = [outline.shape for outline in facts.classes[2].outlines]
    assert shapes == [(2, 4), (5, 8)] and len(shapes) == OUTLINES_PER_CASE
    assert facts.classes[1].outlines[0].pixel_mm == (3.0, 2.0)
    assert facts.classes[1].outlines[0].mask().all()
    kept = list(thin_outlines([facts] * 60))
    assert sum(len(case.classes[2].outlines) for case in kept) == OUTLINES_PER_LABEL
    assert sum(len(case.classes[1].outlines) for case in kept) == OUTLINES_PER_LABEL
    assert len(kept[-1].classes[2].outlines) == 0 and len(kept[-1].classes[2].sides_mm) == 2


def test_the_table_is_plain_data_and_says_what_is_there() -> None:
    volume, truth = block_case()
    facts = look_at((volume,), truth, "HPL")
    table = describe(together(facts, facts))
    assert json.loads(json.dumps(table)) == table
    assert table["cases"] == 2 and table["slices"] == 12 and table["slices_without_object"] == 2
    assert table["spacing_mm"]["row"]["median"] == 3.0 and table["shape_voxels"]["column"]["max"] == 50
    lesion = table["classes"]["lesion"]
    assert (lesion["cases"], lesion["objects"], lesion["cross_sections"]) == (2, 4, 8)
    assert lesion["objects_per_case"]["median"] == 2 and lesion["objects_per_slice"]["max"] == 2
    assert lesion["extent_mm"]["slice"]["max"] == 12 and lesion["objects_with_gaps"] == 2
    assert lesion["overlapped"]["share_of_objects"] == 0.5
    assert table["pairs_of_objects"] == [{"classes": ["organ", "lesion"], "touching": 0, "overlapping": 2}]
    assert table["voxels_in_several_objects"] == pytest.approx(64 / (4 * 14 * 18 + 14))
