"""RT structure sets: masks there and back exactly, matched to their image or refused, checked by other programs."""

import re
import shutil
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_fixtures import FRAME, SERIES, write_series
from highdicom import VolumeGeometry
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from medseg.errors import GeometryError, InputError
from medseg.io import read_instances, write_instances
from medseg.io.dicom_context import read_dicom_context
from medseg.io.dicom_seg_labels import UNKNOWN_ORIGIN, Algorithm, predicted_by
from medseg.io.rtstruct import read_rtstruct
from medseg.io.rtstruct_writer import write_rtstruct
from medseg.labels import Code, Label, LabelTable
from medseg.values.instances import InstanceSet
from medseg.values.placement import place

ROOT = Path(__file__).resolve().parents[1]


def same_objects(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert np.array_equal(a.full_mask(one.id), b.full_mask(other.id))


@pytest.fixture(scope="module")
def oblique(tmp_path_factory, oblique_geometry):
    """The context of an oblique series of 5 x 7 x 11 voxels of 3.0 x 0.8 x 0.7 mm."""
    folder = tmp_path_factory.mktemp("oblique")
    write_series(folder / "ct", oblique_geometry)
    return read_dicom_context(folder / "ct")


@pytest.fixture(scope="module")
def axial(tmp_path_factory):
    """The context and folder of an axial series of 7 x 23 x 31 voxels, rows 1.7 mm apart and columns 0.6 mm."""
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, 0.6], [0, 1.7, 0], [2.5, 0, 0]]
    affine[:3, 3] = (-37.2, 51.9, -813.4)
    folder = tmp_path_factory.mktemp("axial") / "ct"
    write_series(folder, VolumeGeometry(affine, (7, 23, 31), "PATIENT"))
    return read_dicom_context(folder), folder


@pytest.fixture
def objects(axial, rng):
    """Noise with holes and diagonal contacts, lesions of a few pixels, and an island in a hole; all overlap."""
    noise = rng.random((7, 23, 31)) < 0.6
    small = np.zeros_like(noise)
    small[2, 5, 7] = small[3, 5:7, 7:9] = small[3, 7, 9] = small[5, 22, 30] = True
    ring = np.zeros_like(noise)
    ring[1:5, 4:20, 4:25] = True
    ring[1:5, 8:12, 10:15] = False
    ring[1:5, 9:11, 12:13] = True
    labels = LabelTable(
        [
            Label(
                id=2, name="noise", colour=(1, 2, 3),
                type=Code(value="52988006", scheme="SCT", meaning="Lesion"),
            ),
            Label(id=5, name="lésion ü", colour=(250, 20, 30), kind="ids"),
            Label(id=9, name="nothing of it", colour=(9, 9, 9)),
        ]
    )  # fmt: skip
    found = InstanceSet.from_masks([(2, noise), (5, small), (5, ring)], axial[0].geometry, labels)
    scored = [replace(i, score=s, source_id=n) for i, s, n in zip(found, (1.0, 0.25, 0.5), (7, 8, 3), strict=True)]
    return InstanceSet.build(scored, found.geometry, labels)


@pytest.fixture
def written(axial, objects, tmp_path):
    """A file with the objects."""
    path = tmp_path / "rt.dcm"
    write_rtstruct(path, objects, axial[0])
    return path


def change(path, edit):
    """Rewrite a file after an edit of its data set."""
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)
    return path


# there and back


def test_objects_come_back_exactly_with_labels_scores_and_numbers(axial, objects, written):
    found = read_rtstruct(written, axial[0])
    assert found.warnings == ()
    same_objects(found.instances, objects)
    assert found.instances.labels == objects.labels
    assert [(i.label, i.score, i.source_id) for i in found.instances] == [(2, 1.0, 7), (5, 0.25, 8), (5, 0.5, 3)]
    assert found.algorithms == (UNKNOWN_ORIGIN,) * 3


@pytest.mark.parametrize("seed", range(4))
def test_any_mask_comes_back_on_oblique_slices(oblique, tmp_path, seed):
    rng = np.random.default_rng(seed)
    masks = [rng.random((5, 7, 11)) < density for density in (0.03, 0.3, 0.5, 0.8, 1.0)]
    written = InstanceSet.from_masks([(1, mask) for mask in masks], oblique.geometry, LabelTable.from_names(["a"]))
    write_rtstruct(tmp_path / "rt.dcm", written, oblique)
    found = read_rtstruct(tmp_path / "rt.dcm", oblique)
    assert found.warnings == ()
    same_objects(found.instances, written)


@pytest.mark.parametrize("letters", ["HPL", "RFA", "LHP"])
def test_the_image_may_have_its_axes_in_any_order(axial, objects, written, letters):
    """A NIfTI copy of the image has other axes and flips; the objects lie in the same place."""
    grid = axial[0].geometry.to_patient_orientation(letters)
    found = read_rtstruct(written, grid).instances
    assert tuple(found.geometry.spatial_shape) == tuple(grid.spatial_shape)
    same_objects(place(found, axial[0].geometry, "found"), objects)


def test_objects_on_a_flipped_grid_are_written_in_their_place(axial, objects, written, tmp_path):
    flipped = place(objects, axial[0].geometry.to_patient_orientation("RFA"), "flipped")
    write_rtstruct(tmp_path / "flipped.dcm", flipped, axial[0])
    same_objects(read_rtstruct(tmp_path / "flipped.dcm", axial[0]).instances, objects)


def test_far_from_the_origin_and_with_tiny_pixels(tmp_path):
    """16 characters hold 0.01 mm pixels 12 m away; beyond reason it is refused, not rounded."""
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, 0.011], [0, 0.013, 0], [0.02, 0, 0]]
    affine[:3, 3] = (-12345.678, 9876.543, -12345.0)
    write_series(tmp_path / "ct", VolumeGeometry(affine, (4, 7, 11), "PATIENT"))
    context = read_dicom_context(tmp_path / "ct")
    mask = np.random.default_rng(3).random((4, 7, 11)) < 0.5
    objects = InstanceSet.from_masks([(1, mask)], context.geometry, LabelTable.from_names(["a"]))
    write_rtstruct(tmp_path / "rt.dcm", objects, context)
    same_objects(read_rtstruct(tmp_path / "rt.dcm", context).instances, objects)
    affine[0, 3] = 1e15
    away = VolumeGeometry(affine, (4, 7, 11), "PATIENT", frame_of_reference_uid=FRAME)
    far = InstanceSet.from_masks([(1, mask)], away, LabelTable.from_names(["a"]))
    with pytest.raises(GeometryError, match="16 characters"):
        write_rtstruct(tmp_path / "far.dcm", far, replace(context, geometry=away))
    assert not (tmp_path / "far.dcm").exists()


def test_smoothing_is_on_request_and_close(axial, tmp_path):
    rows, columns = np.mgrid[:23, :31]
    disc = np.zeros((7, 23, 31), bool)
    disc[1:6] = (rows - 11.3) ** 2 + (columns - 14.8) ** 2 < 81
    disc[3, 10:13, 14:16] = False
    objects = InstanceSet.from_masks([(1, disc)], axial[0].geometry, LabelTable.from_names(["a"]))
    write_rtstruct(tmp_path / "smooth.dcm", objects, axial[0], smooth=True)
    found = read_rtstruct(tmp_path / "smooth.dcm", axial[0]).instances.full_mask(1)
    assert 2 * (found & disc).sum() / (found.sum() + disc.sum()) > 0.98
    assert (found != disc).sum() > 0 or len(pydicom.dcmread(tmp_path / "smooth.dcm").ROIContourSequence) == 1


# what is written


def test_the_same_objects_give_the_same_bytes(axial, objects, written, tmp_path):
    write_rtstruct(tmp_path / "again.dcm", objects, axial[0])
    assert (tmp_path / "again.dcm").read_bytes() == written.read_bytes()
    fewer = InstanceSet.build(objects.instances[:2], objects.geometry, objects.labels)
    write_rtstruct(tmp_path / "other.dcm", fewer, axial[0])
    uids = [pydicom.dcmread(p).SOPInstanceUID for p in (written, tmp_path / "other.dcm")]
    assert uids[0] != uids[1]


def test_patient_study_frame_and_images_are_the_sources(axial, written):
    dataset = pydicom.dcmread(written)
    assert (dataset.PatientName, dataset.PatientID) == ("Planted^Name", "PLANTED-ID")
    assert (dataset.StudyInstanceUID, dataset.FrameOfReferenceUID) == (SERIES + ".9", FRAME)
    assert dataset.SeriesInstanceUID != SERIES
    (frame,) = dataset.ReferencedFrameOfReferenceSequence
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert (frame.FrameOfReferenceUID, series.SeriesInstanceUID) == (FRAME, SERIES)
    assert [i.ReferencedSOPInstanceUID for i in series.ContourImageSequence] == [f"{SERIES}.{n}" for n in range(1, 8)]
    context = axial[0]
    for roi in dataset.ROIContourSequence:
        for contour in roi.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            z = (points[:, 2] - context.geometry.affine[2, 3]) / 2.5
            uid = context.images[round(float(z[0]))].sop_instance_uid
            assert np.ptp(z) < 1e-5
            assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID == uid
            assert contour.NumberOfContourPoints == len(points)


def test_names_colours_volumes_and_decimal_strings(objects, written):
    dataset = pydicom.dcmread(written)
    assert [r.ROIName for r in dataset.StructureSetROISequence] == ["noise", "lésion ü 1", "lésion ü 2"]
    assert [list(r.ROIDisplayColor) for r in dataset.ROIContourSequence] == [list(c) for c in objects.colours()]
    assert float(dataset.StructureSetROISequence[0].ROIVolume) == pytest.approx(objects.volume_ml(1))
    assert len({r.TrackingUID for r in dataset.StructureSetROISequence}) == 3
    raw = re.findall(rb"\x06\x30\x50\x00(....)", written.read_bytes(), flags=re.DOTALL)
    assert raw
    for roi in pydicom.dcmread(written).ROIContourSequence:
        for contour in roi.ContourSequence:
            text = contour.get_item((0x3006, 0x0050)).value
            assert len(text) % 2 == 0
            assert all(re.fullmatch(rb"-?[\d.]+(e-\d\d)? ?", v) and len(v.strip()) <= 16 for v in text.split(b"\\"))


def test_algorithms_are_told_and_never_made_up(axial, objects, tmp_path):
    made = [predicted_by("medseg", "0.1"), UNKNOWN_ORIGIN, Algorithm(type="MANUAL")]
    write_rtstruct(tmp_path / "rt.dcm", objects, axial[0], algorithms=made)
    regions = pydicom.dcmread(tmp_path / "rt.dcm").StructureSetROISequence
    assert [r.ROIGenerationAlgorithm for r in regions] == ["AUTOMATIC", "", "MANUAL"]
    found = read_rtstruct(tmp_path / "rt.dcm", axial[0]).algorithms
    assert [(a.type, a.name) for a in found] == [
        ("AUTOMATIC", "medseg 0.1"),
        ("SEMIAUTOMATIC", "unknown"),
        ("MANUAL", ""),
    ]


def test_no_objects_are_regions_without_contours(axial, tmp_path):
    labels = LabelTable.from_names(["liver", "lesion"])
    write_rtstruct(tmp_path / "rt.dcm", InstanceSet.build([], axial[0].geometry, labels), axial[0])
    found = read_rtstruct(tmp_path / "rt.dcm", axial[0])
    assert len(found.instances) == 0
    assert found.instances.labels == labels
    assert [w for w in found.warnings if "'liver' has no contours" in w]
    with pytest.raises(InputError, match="neither objects nor labels"):
        write_rtstruct(tmp_path / "x.dcm", InstanceSet.build([], axial[0].geometry, LabelTable([])), axial[0])


def test_frames_of_one_file_are_named_by_their_number(axial, objects, tmp_path):
    """Enhanced CT: all slices share a SOP instance UID (PS3.3 table 10-3)."""
    images = [replace(image, sop_instance_uid="1.2.3", frame=n) for n, image in enumerate(axial[0].images, 1)]
    context = replace(axial[0], images=tuple(images))
    write_rtstruct(tmp_path / "rt.dcm", objects, context)
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    study = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    (image,) = study.RTReferencedSeriesSequence[0].ContourImageSequence
    assert "ReferencedFrameNumber" not in image
    contours = dataset.ROIContourSequence[1].ContourSequence
    assert {c.ContourImageSequence[0].ReferencedFrameNumber for c in contours} == {3, 4, 6}
    found = read_rtstruct(tmp_path / "rt.dcm", context)
    same_objects(found.instances, objects)
    assert found.warnings == ()


def test_a_series_without_uids_is_refused_by_name(axial, objects, tmp_path):
    header = Dataset()
    header.update(axial[0].header)
    del header.FrameOfReferenceUID
    with pytest.raises(InputError, match="FrameOfReferenceUID"):
        write_rtstruct(tmp_path / "rt.dcm", objects, replace(axial[0], header=header))


def test_objects_of_another_grid_are_refused(oblique, objects, tmp_path):
    with pytest.raises(GeometryError, match="voxels are not those of the image"):
        write_rtstruct(tmp_path / "rt.dcm", objects, oblique)


# matched to the image


def test_another_frame_of_reference_is_refused_unless_insisted(axial, objects, written):
    def edit(dataset):
        for region in dataset.StructureSetROISequence:
            region.ReferencedFrameOfReferenceUID = "1.2.3.4"

    change(written, edit)
    with pytest.raises(GeometryError, match=r"frame of reference 1\.2\.3\.4.*--ignore-frame-of-reference"):
        read_rtstruct(written, axial[0])
    found = read_rtstruct(written, axial[0], ignore_frame_of_reference=True)
    same_objects(found.instances, objects)


def test_one_region_of_another_frame_is_set_aside_by_name(axial, written):
    change(written, lambda d: setattr(d.StructureSetROISequence[0], "ReferencedFrameOfReferenceUID", "1.2.3.4"))
    found = read_rtstruct(written, axial[0])
    assert len(found.instances) == 2
    assert "'noise' is drawn in another frame of reference" in found.warnings[0]


def test_another_series_of_the_same_place_is_a_warning(axial, objects, written):
    def edit(dataset):
        study = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
        study.RTReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3.4"

    found = read_rtstruct(change(written, edit), axial[0])
    same_objects(found.instances, objects)
    assert len(found.warnings) == 1
    assert "drawn on series 1.2.3.4" in found.warnings[0]


def test_images_of_other_slices_or_series_are_a_warning(axial, objects, written):
    def edit(dataset):
        contours = dataset.ROIContourSequence[2].ContourSequence
        contours[0].ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
        contours[1].ContourImageSequence[0].ReferencedSOPInstanceUID = f"{SERIES}.7"

    found = read_rtstruct(change(written, edit), axial[0])
    same_objects(found.instances, objects)
    assert any("1 of " in w and "not of this series" in w for w in found.warnings)
    assert any("slice 7, lies in slice" in w for w in found.warnings)


def shifted(dataset, shift):
    for roi in dataset.ROIContourSequence:
        for contour in roi.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3) + shift
            contour.ContourData = [f"{v:.4f}" for v in points.ravel()]


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ((0, 0, 500.0), r"contours miss the image"),
        ((900.0, 0, 0), r"contours miss the image"),
        ((0, 0, 1.25), r"lies 1\.25 mm off the nearest slice \(slices are 2\.5 mm apart\)"),
    ],
)
def test_contours_that_miss_every_slice_are_refused(axial, written, shift, message):
    change(written, lambda d: shifted(d, shift))
    for insist in (False, True):
        with pytest.raises(GeometryError, match=message):
            read_rtstruct(written, axial[0], ignore_frame_of_reference=insist)


def test_contours_in_other_planes_are_refused(axial, oblique, written):
    with pytest.raises(GeometryError, match="drawn in other planes"):
        read_rtstruct(written, replace(axial[0], geometry=oblique_at(axial[0].geometry)))


def oblique_at(grid):
    """The same place, slices tilted by 30 degrees."""
    a = np.deg2rad(30)
    tilt = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    affine = grid.affine.copy()
    affine[:3, :3] = tilt @ affine[:3, :3]
    return VolumeGeometry(affine, grid.spatial_shape, "PATIENT", frame_of_reference_uid=FRAME)


def test_a_little_off_the_slice_is_a_warning(axial, objects, written):
    change(written, lambda d: shifted(d, (0, 0, 0.4)))
    found = read_rtstruct(written, axial[0])
    same_objects(found.instances, objects)
    assert "up to 0.40 mm off the slices" in found.warnings[0]


def test_what_lies_beyond_the_image_is_set_aside_by_name(axial, objects, written):
    """An image of which three slices are there."""
    part = axial[0].geometry[2:5]
    context = replace(axial[0], geometry=part, images=axial[0].images[2:5])
    found = read_rtstruct(written, context)
    for instance in objects:
        assert np.array_equal(found.instances.full_mask(instance.id), objects.full_mask(instance.id)[2:5])
    assert any(re.search(r"'noise': \d+ of \d+ contours lie outside the image", w) for w in found.warnings)


def test_contours_are_cut_at_the_edge_of_the_image(axial, objects, written):
    part = axial[0].geometry[:, 5:18, 6:20]
    found = read_rtstruct(written, replace(axial[0], geometry=part))
    assert np.array_equal(found.instances.full_mask(1), objects.full_mask(1)[:, 5:18, 6:20])
    assert any("reach beyond the image and were cut" in w for w in found.warnings)


# contours as others draw them


def drawn(axial, tmp_path, contours, name="organ", number=1, edit=None):
    """Write a structure set of one region from (points in (row, column) indices, slice, type)."""
    affine = axial[0].geometry.affine
    empty = InstanceSet.build([], axial[0].geometry, LabelTable.from_names([name]))
    path = tmp_path / "drawn.dcm"
    write_rtstruct(path, empty, axial[0])

    def add(dataset):
        del dataset[0x0063, 0x0010], dataset[0x0063, 0x1001]  # as other programs write it
        sequence = []
        for points, z, kind in contours:
            item = Dataset()
            item.ContourGeometricType = kind
            item.NumberOfContourPoints = len(points)
            world = [affine[:3, :3] @ (z, r, c) + affine[:3, 3] for r, c in points]
            item.ContourData = [f"{v:.4f}" for v in np.ravel(world)]
            sequence.append(item)
        dataset.ROIContourSequence[0].ContourSequence = sequence
        dataset.StructureSetROISequence[0].ROINumber = number
        dataset.ROIContourSequence[0].ReferencedROINumber = number
        if edit:
            edit(dataset)

    return change(path, add)


def box(first, last):
    return [(first, first), (first, last), (last, last), (last, first)]


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_nested_contours_alternate(axial, tmp_path, kind):
    path = drawn(axial, tmp_path, [(box(4.5, 15.5), 3, kind), (box(6.5, 13.5), 3, kind), (box(8.5, 10.5), 3, kind)])
    found = read_rtstruct(path, axial[0]).instances
    expected = np.zeros((7, 23, 31), bool)
    expected[3, 5:16, 5:16] = True
    expected[3, 7:14, 7:14] = False
    expected[3, 9:11, 9:11] = True
    assert np.array_equal(found.full_mask(1), expected)


def test_overlapping_contours_unite_or_exclude_by_their_type(axial, tmp_path):
    pairs = {}
    for kind in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
        path = drawn(axial, tmp_path, [(box(2.5, 8.5), 3, kind), (box(5.5, 12.5), 3, kind)])
        pairs[kind] = read_rtstruct(path, axial[0])
    assert pairs["CLOSED_PLANAR"].instances[1].voxels == 36 + 49 - 9
    assert "1 contours cross another" in pairs["CLOSED_PLANAR"].warnings[-1]
    assert pairs["CLOSEDPLANAR_XOR"].instances[1].voxels == 36 + 49 - 18


def test_a_keyhole_is_a_hole(axial, tmp_path):
    ring = [(4.5, 4.5), (4.5, 15.5), (15.5, 15.5), (15.5, 4.5), (7.5, 4.5), (7.5, 7.5), (10.5, 7.5), (10.5, 10.5),
            (7.5, 10.5), (7.5, 7.5), (7.5, 4.5)]  # fmt: skip
    found = read_rtstruct(drawn(axial, tmp_path, [(ring, 2, "CLOSED_PLANAR")]), axial[0]).instances
    assert found[1].voxels == 121 - 9
    assert not found.full_mask(1)[2, 8:11, 8:11].any()


def test_points_and_open_lines_are_set_aside_by_name(axial, tmp_path):
    line = [(3, 3), (9, 9), (3, 9)]
    path = drawn(
        axial, tmp_path, [(box(2.5, 8.5), 3, "CLOSED_PLANAR"), (line, 3, "OPEN_PLANAR"), (line, 4, "OPEN_NONPLANAR"),
                          (line[:1], 2, "POINT"), (line[:1], 2, "POINT"), (line[:2], 1, "CLOSED_PLANAR")],
    )  # fmt: skip
    found = read_rtstruct(path, axial[0])
    assert found.instances[1].voxels == 36
    text = "1 OPEN_PLANAR, 1 OPEN_NONPLANAR, 2 POINT, 1 CLOSED_PLANAR of fewer than 3 points set aside"
    assert any(f"'organ': {text}" in w for w in found.warnings)


def test_contours_in_every_other_slice_are_told(axial, tmp_path):
    path = drawn(axial, tmp_path, [(box(2.5, 8.5), z, "CLOSED_PLANAR") for z in (0, 2, 4, 6)])
    found = read_rtstruct(path, axial[0])
    assert found.instances[1].voxels == 4 * 36
    assert any("'organ' has contours in no two neighbouring slices" in w for w in found.warnings)


def test_points_at_astronomical_distances_are_outside(axial, tmp_path):
    def edit(dataset):
        far = deepcopy(dataset.ROIContourSequence[0].ContourSequence[0])
        far.ContourData = ["1e300", "1e300", "-805.9"] * 4
        dataset.ROIContourSequence[0].ContourSequence.append(far)

    path = drawn(axial, tmp_path, [(box(2.5, 8.5), 3, "CLOSED_PLANAR")], edit=edit)
    found = read_rtstruct(path, axial[0])
    assert found.instances[1].voxels == 36
    assert any("1 of 2 contours lie outside the image" in w for w in found.warnings)


def test_a_region_between_the_pixel_centres_is_told(axial, tmp_path):
    found = read_rtstruct(drawn(axial, tmp_path, [(box(4.1, 4.9), 3, "CLOSED_PLANAR")]), axial[0])
    assert len(found.instances) == 0
    assert found.instances.labels.names == ("organ",)
    assert any("'organ': its contours enclose no voxel centre" in w for w in found.warnings)


def test_contours_through_pixel_centres_include_them(axial, tmp_path):
    """As programs draw them that outline the outermost pixels; PS3.3 C.8.8.6.3 counts the path in."""
    found = read_rtstruct(drawn(axial, tmp_path, [(box(4, 9), 3, "CLOSED_PLANAR")]), axial[0]).instances
    assert found[1].voxels == 36


def test_labels_follow_from_names_and_display_colours(axial, tmp_path):
    def edit(dataset):
        roi, contours, observation = (
            getattr(dataset, f"{n}Sequence")[0] for n in ("StructureSetROI", "ROIContour", "RTROIObservations")
        )
        for number, name in ((7, "organ"), (9, "")):
            for sequence, item, key in (
                (dataset.StructureSetROISequence, roi, "ROINumber"),
                (dataset.ROIContourSequence, contours, "ReferencedROINumber"),
                (dataset.RTROIObservationsSequence, observation, "ReferencedROINumber"),
            ):
                copy = deepcopy(item)
                setattr(copy, key, number)
                if key == "ROINumber":
                    copy.ROIName = name
                sequence.append(copy)
        contours.ROIDisplayColor = [10, 20, 300]

    path = drawn(axial, tmp_path, [(box(2.5, 8.5), 3, "CLOSED_PLANAR")], number=4, edit=edit)
    found = read_rtstruct(path, axial[0]).instances
    assert [(label.name, label.kind) for label in found.labels] == [("organ", "ids"), ("ROI 9", "single")]
    assert found.labels[1].colour == (10, 20, 255)
    assert [(i.label, i.source_id) for i in found] == [(1, 4), (1, 7), (2, 9)]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: setattr(c, "NumberOfContourPoints", 5), "expected 3 for each of 5 points"),
        (lambda c: setattr(c, "ContourData", ["1", "2", "3", "4"]), "4 coordinates"),
        (lambda c: c.get_item((0x3006, 0x0050)), None),
    ],
)
def test_contours_cut_short_are_refused(axial, tmp_path, edit, message):
    path = drawn(
        axial, tmp_path, [(box(2.5, 8.5), 3, "CLOSED_PLANAR")],
        edit=lambda d: edit(d.ROIContourSequence[0].ContourSequence[0]),
    )  # fmt: skip
    if message is None:
        data = path.read_bytes()
        path.write_bytes(data.replace(b"-805.9000", b"-8o5.9000"))
        message = "no numbers"
    with pytest.raises(InputError, match=message):
        read_rtstruct(path, axial[0])


def test_not_a_number_is_refused(axial, tmp_path):
    path = drawn(axial, tmp_path, [(box(2.5, 8.5), 3, "CLOSED_PLANAR")])
    path.write_bytes(path.read_bytes().replace(b"-805.9000", b"nan      "))
    with pytest.raises(InputError, match="NaN or infinity"):
        read_rtstruct(path, axial[0])


def test_regions_that_contradict_each_other_are_refused(axial, tmp_path):
    path = drawn(axial, tmp_path, [(box(2.5, 8.5), 3, "CLOSED_PLANAR")])
    change(path, lambda d: setattr(d.ROIContourSequence[0], "ReferencedROINumber", 12))
    with pytest.raises(InputError, match="contours of region 12 but StructureSetROISequence does not describe it"):
        read_rtstruct(path, axial[0])


def test_other_files_are_refused(axial, tmp_path):
    image = next(axial[1].iterdir())
    with pytest.raises(InputError, match="a DICOM object of CT, expected an RT structure set"):
        read_rtstruct(image, axial[0])
    (tmp_path / "text.dcm").write_text("nothing of the kind")
    with pytest.raises(InputError, match=r"text\.dcm"):
        read_rtstruct(tmp_path / "text.dcm", axial[0])
    with pytest.raises(InputError, match="cannot be opened"):
        read_rtstruct(tmp_path / "absent.dcm", axial[0])


def test_long_contours_in_explicit_vr(axial, objects, written):
    """Beyond 64 KiB, decimal strings become UN in explicit VR (PS3.5 6.2.2); the text is the same."""
    dataset = pydicom.dcmread(written)
    contour = dataset.ROIContourSequence[2].ContourSequence[0]
    values = [str(v) for v in contour.ContourData]
    points = len(values) // 3
    contour.ContourData = values + values[-3:] * 4000  # a long rest at one point
    contour.NumberOfContourPoints = points + 4000
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with pytest.warns(UserWarning, match="64 kByte"):
        dataset.save_as(written, implicit_vr=False, little_endian=True)
    same_objects(read_rtstruct(written, axial[0]).instances, objects)


# real files


def test_a_sarcoma_is_the_mask_drawn_from_it(data_dir):
    """MIRP's test data: the NIfTI mask was made from the structure set by another program."""
    folder = data_dir / "rtstruct" / "sarcoma_001" / "CT"
    context = read_dicom_context(folder / "dicom" / "image")
    found = read_rtstruct(folder / "dicom" / "mask" / "RS.dcm", context)
    reference = place(read_instances(folder / "nifti" / "mask" / "mask.nii.gz"), context.geometry, "reference")
    assert found.instances[1].voxels == 117145
    assert np.array_equal(found.instances.full_mask(1), reference.full_mask(1))
    assert [label.name for label in found.instances.labels] == ["GTV_Mass_CT"]
    assert found.instances.labels[1].colour == (255, 0, 0)
    assert all("matched by their positions" in w for w in found.warnings)
    assert len(found.warnings) == 2  # series and images were given new UIDs when the case was cut out


def test_structure_sets_with_broken_references(data_dir):
    folder = data_dir / "rtstruct" / "two_slices"
    context = read_dicom_context(folder)
    with pytest.raises(GeometryError, match="frame of reference 1.2.826.*--ignore-frame-of-reference"):
        read_rtstruct(folder / "rt.dcm", context)
    insisted = read_rtstruct(folder / "rt.dcm", context, ignore_frame_of_reference=True)
    # a square of 24 mm with an octagon cut out, at 0.488281 mm: 49 x 49 centres less 958
    assert insisted.instances[1].voxels == 1443
    for name in ("invalid_reference_rt.dcm", "non_existent_reference_rt.dcm"):
        found = read_rtstruct(folder / name, context)
        assert [i.voxels for i in found.instances] == [4976, 3697, 4519, 6954]
        assert sum("1 of 3 contours lie outside the image" in w for w in found.warnings) == 4
    assert any("names no image series" in w for w in found.warnings)


def test_an_oblique_series_of_another_scanner(data_dir, tmp_path):
    """Its images name no frame of reference, so nothing can be written for it as it is, and reading tells."""
    context = read_dicom_context(data_dir / "rtstruct" / "oblique")
    mask = np.random.default_rng(7).random(context.geometry.spatial_shape) < 0.4
    objects = InstanceSet.from_masks([(1, mask)], context.geometry, LabelTable.from_names(["a"]))
    with pytest.raises(InputError, match="no FrameOfReferenceUID"):
        write_rtstruct(tmp_path / "rt.dcm", objects, context)
    header = Dataset()
    header.update(context.header)
    header.FrameOfReferenceUID = FRAME
    write_rtstruct(tmp_path / "rt.dcm", objects, replace(context, header=header))
    found = read_rtstruct(tmp_path / "rt.dcm", context)
    same_objects(found.instances, objects)
    assert "the image names no frame of reference" in found.warnings[0]


def run_medseg(*arguments):
    command = [sys.executable, "-m", "medseg", *(str(a) for a in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_export_there_and_back(axial, objects, tmp_path):
    """The command line: .seg.nrrd to RTSTRUCT to .seg.nrrd, overlaps kept; without --image there is no grid."""
    source, contours, target = tmp_path / "in.seg.nrrd", tmp_path / "rt.dcm", tmp_path / "out.seg.nrrd"
    write_instances(source, objects)
    done = run_medseg("export", source, contours, "--format", "rtstruct", "--image", axial[1])
    assert (done.returncode, done.stderr) == (0, "")
    assert "Planted" not in done.stdout
    done = run_medseg("export", contours, target, "--image", axial[1])
    assert (done.returncode, done.stderr) == (0, "")
    same_objects(place(read_instances(target), axial[0].geometry, "target"), objects)
    assert read_instances(target).labels == objects.labels
    refused = run_medseg("export", contours, target)
    assert refused.returncode == 2
    assert "--image" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


# other programs


def program(name, package):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian package {package})")
    return path


@pytest.mark.parametrize("options", [[], ["--xor-contours"]], ids=["or", "xor"])
def test_plastimatch_finds_the_same_voxels(axial, objects, written, tmp_path, options):
    """Non-square pixels, noise, lesions of a few pixels; whether it unites contours or excludes."""
    import SimpleITK as sitk

    command = [program("plastimatch", "plastimatch"), "convert", "--input", written, "--referenced-ct", axial[1],
               "--output-prefix", tmp_path / "out", "--prefix-format", "nrrd", *options]  # fmt: skip
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    files = sorted((tmp_path / "out").iterdir(), key=lambda p: p.name)
    masks = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) > 0 for path in files]
    assert len(masks) == 3
    sizes = {int(mask.sum()): mask for mask in masks}
    for instance in objects:
        assert np.array_equal(sizes[instance.voxels], objects.full_mask(instance.id))


def test_contours_of_plastimatch_are_read_as_it_reads_them(axial, objects, tmp_path):
    """plastimatch draws between pixel centres; the mask that it was given comes back."""
    import SimpleITK as sitk

    ring = objects.full_mask(3)
    image = sitk.GetImageFromArray(ring.astype(np.uint8))
    image.SetSpacing((0.6, 1.7, 2.5))
    image.SetOrigin((-37.2, 51.9, -813.4))
    sitk.WriteImage(image, str(tmp_path / "ring.nrrd"))
    command = [program("plastimatch", "plastimatch"), "convert", "--input-ss-img", tmp_path / "ring.nrrd",
               "--referenced-ct", axial[1], "--output-dicom", tmp_path / "dicom"]  # fmt: skip
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    path = next(p for p in (tmp_path / "dicom").iterdir() if pydicom.dcmread(p).Modality == "RTSTRUCT")
    found = read_rtstruct(path, axial[0])
    assert np.array_equal(found.instances.full_mask(1), ring)


def test_dciodvfy_finds_no_error(axial, written, tmp_path):
    done = subprocess.run([program("dciodvfy", "dicom3tools"), str(written)], capture_output=True, text=True)
    assert "RTStructureSet" in done.stderr + done.stdout
    assert not [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("Error")]
    empty = tmp_path / "empty.dcm"
    write_rtstruct(empty, InstanceSet.build([], axial[0].geometry, LabelTable.from_names(["a"])), axial[0])
    done = subprocess.run([program("dciodvfy", "dicom3tools"), str(empty)], capture_output=True, text=True)
    assert not [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("Error")]


def test_many_small_contours_are_quick(oblique, tmp_path):
    """Thousands of contours must not cost milliseconds each; the bound is ten times what is needed."""
    grid = VolumeGeometry(oblique.geometry.affine, (5, 100, 100), "PATIENT", frame_of_reference_uid=FRAME)
    mask = np.zeros((5, 100, 100), bool)
    mask[:, ::5, ::5] = True
    objects = InstanceSet.from_masks([(1, mask)], grid, LabelTable.from_names(["a"]))
    context = replace(oblique, geometry=grid)
    start = time.process_time()
    write_rtstruct(tmp_path / "rt.dcm", objects, context)
    found = read_rtstruct(tmp_path / "rt.dcm", context)
    assert time.process_time() - start < 10  # 2000 contours
    same_objects(found.instances, objects)
