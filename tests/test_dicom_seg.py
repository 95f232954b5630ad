"""DICOM SEG: written objects read back by medseg, highdicom, dcmqi and dciodvfy; what is no usable SEG is refused."""

import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_fixtures import FRAME, SERIES, write_series
from highdicom import VolumeGeometry
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from medseg.errors import GeometryError, InputError
from medseg.io import read_instances, write_instances
from medseg.io.dicom_context import DicomContext, ImageReference, read_dicom_context
from medseg.io.dicom_seg import read_dicom_seg
from medseg.io.dicom_seg_labels import PRIVATE_GROUP, predicted_by
from medseg.io.dicom_seg_writer import write_dicom_seg
from medseg.labels import Code, Label, LabelTable
from medseg.values.geometry import AxisMap
from medseg.values.instances import Instance, InstanceSet, crop_to_object
from medseg.values.placement import place

KIDNEY = Code(value="64033007", scheme="SCT", meaning="Kidney")
LABELS = LabelTable(
    [
        Label(id=3, name="liver", colour=(200, 100, 0)),
        Label(
            id=300,
            name='Läsion "1" a\\b 左腎 ' + "x" * 70,
            colour=(10, 20, 250),
            kind="ids",
            category=Code(value="49755003", scheme="SCT", meaning="Morphologically Altered Structure"),
            type=Code(value="4147007", scheme="SCT", meaning="Mass"),
            region=KIDNEY,
            laterality=Code(value="7771000", scheme="SCT", meaning="Left"),
        ),
        Label(id=9, name="unused", colour=(1, 2, 3)),
    ]
)
#: 7 x 11 pixels are no whole bytes, so that every frame but the first begins within one.
PARTS = [
    (3, np.s_[0:4, 0:5, 1:9], 0.1, None),
    (300, np.s_[1:2, 2:4, 3:5], 0.9, 41),
    (300, np.s_[1:5, 3:7, 3:11], 1 / 3, None),
]


def build(parts: list, geometry: VolumeGeometry, labels: LabelTable = LABELS) -> InstanceSet:
    found = []
    for label, window, score, number in parts:
        mask = np.zeros(geometry.spatial_shape, bool)
        mask[window] = True
        mask[0, 0, 1] &= label != 3  # no symmetric box
        crop = crop_to_object(mask)
        assert crop is not None
        found.append(Instance(id=1, label=label, mask=crop[0], offset=crop[1], score=score, source_id=number))
    return InstanceSet.build(found, geometry, labels)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory, oblique_geometry: VolumeGeometry) -> DicomContext:
    folder = tmp_path_factory.mktemp("series")
    write_series(folder, oblique_geometry)
    return read_dicom_context(folder)


@pytest.fixture
def objects(context: DicomContext) -> InstanceSet:
    return build(PARTS, context.geometry)


def assert_same(found: InstanceSet, expected: InstanceSet) -> None:
    np.testing.assert_allclose(found.geometry.affine, expected.geometry.affine, atol=1e-4)
    assert tuple(found.geometry.spatial_shape) == tuple(expected.geometry.spatial_shape)
    assert [(i.id, i.label, i.score) for i in found] == [(i.id, i.label, i.score) for i in expected]
    for instance in expected:
        np.testing.assert_array_equal(found.full_mask(instance.id), expected.full_mask(instance.id))


def edited(source: Path, target: Path, edit: Callable[[Dataset], None]) -> Path:
    dataset = pydicom.dcmread(source)
    edit(dataset)
    dataset.save_as(target)
    return target


# Round trips


def test_objects_come_back_with_labels_and_scores(objects: InstanceSet, context: DicomContext, tmp_path: Path) -> None:
    written = write_instances(tmp_path / "a.dcm", objects, context=context)
    assert written.lost_voxels == {}
    seg = read_dicom_seg(tmp_path / "a.dcm", context)
    assert_same(seg.instances, objects)
    assert seg.instances.labels == LABELS and seg.warnings == ()
    assert [i.source_id for i in seg.instances] == [None, 41, None]
    assert {a.type for a in seg.algorithms} == {"SEMIAUTOMATIC"}
    assert (seg.context.series_uid, seg.context.study_uid) == (context.series_uid, context.study_uid)
    assert seg.context.images == context.images
    assert_same(read_instances(tmp_path / "a.dcm", image=context), objects)


def test_the_own_context_of_a_seg_is_enough_to_write_it_again(
    objects: InstanceSet, context: DicomContext, tmp_path: Path
) -> None:
    write_dicom_seg(tmp_path / "a.dcm", objects, context)
    seg = read_dicom_seg(tmp_path / "a.dcm")
    write_dicom_seg(tmp_path / "b.dcm", seg.instances, seg.context, algorithms=seg.algorithms)
    again = read_dicom_seg(tmp_path / "b.dcm", context)
    assert_same(again.instances, objects)
    assert again.context.images == context.images and again.algorithms == seg.algorithms


def test_any_axis_order_of_the_objects_is_brought_to_the_series(
    objects: InstanceSet, context: DicomContext, tmp_path: Path
) -> None:
    for order, flips in [((2, 0, 1), (True, False, True)), ((0, 2, 1), (True, True, True))]:
        write_dicom_seg(tmp_path / "a.dcm", objects.moved(AxisMap(order=order, flips=flips)), context)
        assert_same(read_dicom_seg(tmp_path / "a.dcm", context).instances, objects)


def test_sparse_frames_keep_their_places(context: DicomContext, tmp_path: Path) -> None:
    sparse = build([(3, np.s_[1::3, 1:3, 2:4], 1.0, None)], context.geometry)
    write_dicom_seg(tmp_path / "a.dcm", sparse, context)
    assert pydicom.dcmread(tmp_path / "a.dcm").NumberOfFrames == 2
    assert_same(read_dicom_seg(tmp_path / "a.dcm", context).instances, sparse)
    alone = read_dicom_seg(tmp_path / "a.dcm").instances
    assert tuple(alone.geometry.spatial_shape) == (4, 7, 11)
    assert_same(place(alone, context.geometry, "a"), sparse)


@pytest.mark.parametrize("table", [LABELS, LabelTable.from_names(["liver"])])
def test_nothing_found_is_a_valid_file(context: DicomContext, tmp_path: Path, table: LabelTable) -> None:
    write_dicom_seg(tmp_path / "a.dcm", InstanceSet.build([], context.geometry, table), context)
    found = read_dicom_seg(tmp_path / "a.dcm", context).instances
    assert len(found) == 0 and found.labels == table
    assert len(hd.seg.segread(tmp_path / "a.dcm").SegmentSequence) == len(table)
    with pytest.raises(InputError, match="neither objects nor labels"):
        write_dicom_seg(tmp_path / "b.dcm", InstanceSet.build([], context.geometry, LabelTable([])), context)


def test_label_maps(objects: InstanceSet, context: DicomContext, tmp_path: Path) -> None:
    apart = build([PARTS[0], (300, np.s_[4:5, 5:7, 0:3], 0.5, None)], context.geometry)
    write_instances(tmp_path / "a.dcm", apart, context=context, format="seg-labelmap")
    assert_same(read_dicom_seg(tmp_path / "a.dcm", context).instances, apart)
    seg = hd.seg.segread(tmp_path / "a.dcm")
    assert seg.segmentation_type == hd.seg.SegmentationTypeValues.LABELMAP
    with pytest.raises(InputError, match="one object per voxel, and objects overlap"):
        write_instances(tmp_path / "b.dcm", objects, context=context, format="seg-labelmap")
    many = [
        (3, np.s_[z : z + 1, y : y + 1, x : x + 1], 1.0, None) for z in range(4) for y in range(7) for x in range(10)
    ]
    crowd = build([part for part in many if part[1] != np.s_[0:1, 0:1, 1:2]], context.geometry)
    assert len(crowd) > 255  # two bytes a voxel
    write_instances(tmp_path / "c.dcm", crowd, context=context, format="seg-labelmap")
    assert_same(read_dicom_seg(tmp_path / "c.dcm", context).instances, crowd)


def test_same_objects_same_bytes(
    objects: InstanceSet, context: DicomContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom_seg(tmp_path / "a.dcm", objects, context)
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    write_dicom_seg(tmp_path / "b" / "c.dcm", objects, context)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b" / "c.dcm").read_bytes()
    write_dicom_seg(tmp_path / "d.dcm", build(PARTS[:2], context.geometry), context)
    first, other = (pydicom.dcmread(tmp_path / name) for name in ("a.dcm", "d.dcm"))
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert first[keyword] != other[keyword]


def test_memory_grows_with_the_objects(tmp_path: Path) -> None:
    shape = (60, 256, 256)
    affine = np.array([[0, 0, 0.7, 3], [0, 0.7, 0, 4], [1.5, 0, 0, 5], [0, 0, 0, 1.0]])
    grid = VolumeGeometry(affine, shape, "PATIENT", frame_of_reference_uid=FRAME)
    images = [ImageReference(sop_class_uid="1.2.840.10008.5.1.4.1.1.2", sop_instance_uid=f"1.2.{z}") for z in range(60)]
    header = Dataset()
    header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = "1.2.3", "1.2.4", FRAME
    context = DicomContext(source="x", geometry=grid, header=header, images=tuple(images))
    parts = [(3, np.s_[k : k + 40, k : k + 60, 2 * k : 2 * k + 60], 1.0, None) for k in range(20)]
    objects = build(parts, grid)
    dense = len(parts) * np.prod(shape)
    tracemalloc.start()
    write_dicom_seg(tmp_path / "a.dcm", objects, context)
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    found = read_dicom_seg(tmp_path / "a.dcm", context).instances
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_same(found, objects)
    assert written < dense / 4 and read < dense / 2


# highdicom, dciodvfy and dcmqi


def source_images(context: DicomContext) -> list[Dataset]:
    """The slices as highdicom wants them."""
    images = []
    for file in Path(context.source).iterdir():
        image = pydicom.dcmread(file)
        for keyword in ("PatientBirthDate", "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "PatientSex"):
            setattr(image, keyword, "")
        images.append(image)
    return images


def by_highdicom(
    objects: InstanceSet, context: DicomContext, kind: str = "BINARY", array: NDArray | None = None, **options: str
) -> hd.seg.Segmentation:
    if array is None:
        array = np.stack([objects.full_mask(i.id) for i in objects], axis=-1)
    numbers = list(range(1, array.shape[-1] + 1))
    tissue = hd.sr.CodedConcept("85756007", "SCT", "Tissue")
    return hd.seg.Segmentation(
        source_images(context),
        hd.Volume(
            array,
            context.geometry.affine,
            "PATIENT",
            frame_of_reference_uid=FRAME,
            channels={"SegmentNumber": numbers},
        ),
        kind,
        [hd.seg.SegmentDescription(n, f"part {n}", tissue, tissue, "MANUAL") for n in numbers],
        series_instance_uid="1.2.3",
        series_number=1,
        sop_instance_uid="1.2.4",
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
        **options,  # type: ignore[arg-type]
    )


def frames_of(path: Path) -> dict[tuple[int, tuple[float, ...]], tuple[str, bytes]]:
    """(segment, position) -> image and pixels of every frame."""
    seg = hd.seg.segread(path)
    found = {}
    for number, group in enumerate(seg.PerFrameFunctionalGroupsSequence, 1):
        position = tuple(round(float(v), 4) for v in group.PlanePositionSequence[0].ImagePositionPatient)
        image = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        segment = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        found[segment, position] = (image, seg.get_frame(number, as_index=False).astype(np.uint8).tobytes())
    return found


def test_every_frame_is_as_highdicom_writes_it(objects: InstanceSet, context: DicomContext, tmp_path: Path) -> None:
    write_dicom_seg(tmp_path / "a.dcm", objects, context)
    by_highdicom(objects, context).save_as(tmp_path / "b.dcm")
    assert frames_of(tmp_path / "a.dcm") == frames_of(tmp_path / "b.dcm")
    ours, theirs = pydicom.dcmread(tmp_path / "a.dcm"), pydicom.dcmread(tmp_path / "b.dcm")
    theirs_only = {element.keyword for element in theirs} - {element.keyword for element in ours}
    assert theirs_only <= {"InstanceCreationDate", "InstanceCreationTime", "SpecificCharacterSet"}
    for keyword in ("SegmentsOverlap", "Rows", "Columns", "NumberOfFrames", "SOPClassUID", "FrameOfReferenceUID",
                    "StudyInstanceUID", "BitsAllocated", "DimensionIndexSequence"):  # fmt: skip
        if keyword == "DimensionIndexSequence":
            assert [i.DimensionIndexPointer for i in ours[keyword]] == [
                i.DimensionIndexPointer for i in theirs[keyword]
            ]
        else:
            assert ours[keyword] == theirs[keyword], keyword
    assert ours.SegmentsOverlap == "YES"
    measures = [d.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0] for d in (ours, theirs)]
    for keyword in ("PixelSpacing", "SpacingBetweenSlices"):
        np.testing.assert_allclose(*(np.array(m[keyword].value, float) for m in measures), rtol=1e-6)


def test_highdicom_reads_the_same_masks(objects: InstanceSet, context: DicomContext, tmp_path: Path) -> None:
    write_dicom_seg(tmp_path / "a.dcm", objects, context)
    volume = hd.seg.segread(tmp_path / "a.dcm").get_volume()
    matched = volume.match_geometry(context.geometry)  # their slices run the other way
    for instance in objects:
        np.testing.assert_array_equal(matched.array[..., instance.id - 1], objects.full_mask(instance.id))


def test_fractional_counts_from_half(objects: InstanceSet, context: DicomContext, tmp_path: Path) -> None:
    share = np.linspace(0, 1, 5 * 7 * 11).reshape(5, 7, 11, 1)
    by_highdicom(objects, context, "FRACTIONAL", share).save_as(tmp_path / "a.dcm")
    plain = pydicom.dcmread(tmp_path / "a.dcm")
    plain.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    plain.save_as(tmp_path / "b.dcm")
    for name in ("a.dcm", "b.dcm"):
        found = read_dicom_seg(tmp_path / name, context).instances
        np.testing.assert_array_equal(found.full_mask(1), np.around(share[..., 0] * 255) >= 127.5)


def test_labels_of_others(objects: InstanceSet, context: DicomContext, tmp_path: Path) -> None:
    """Without our private block the standard attributes tell the labels; segments of one name are of one label."""
    write_dicom_seg(tmp_path / "a.dcm", objects, context)

    def anonymise(dataset: Dataset) -> None:
        dataset.remove_private_tags()
        for item in dataset.SegmentSequence[1:]:
            item.SegmentLabel = "tumour"

    found = read_dicom_seg(edited(tmp_path / "a.dcm", tmp_path / "b.dcm", anonymise), context).instances
    assert PRIVATE_GROUP not in {element.tag.group for element in pydicom.dcmread(tmp_path / "b.dcm")}
    assert [(label.name, label.kind) for label in found.labels] == [("liver", "single"), ("tumour", "ids")]
    assert [(i.label, i.source_id, i.score) for i in found] == [(1, 1, 1.0), (2, 2, 1.0), (2, 3, 1.0)]
    tumour = found.labels[2]
    assert tumour.region == KIDNEY and tumour.laterality == LABELS[300].laterality
    assert (tumour.category, tumour.type) == (LABELS[300].category, LABELS[300].type)
    np.testing.assert_allclose(tumour.colour, objects.colours()[1], atol=1)


def dciodvfy(path: Path) -> list[str]:
    """The errors of dicom3tools' validator."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    return sorted(line for line in (done.stderr + done.stdout).splitlines() if line.startswith("Error"))


def test_dciodvfy_finds_no_error_that_highdicom_does_not_have(
    objects: InstanceSet, context: DicomContext, tmp_path: Path
) -> None:
    by_highdicom(objects, context).save_as(tmp_path / "b.dcm")
    theirs = dciodvfy(tmp_path / "b.dcm")
    for parts, algorithm in [(PARTS, None), (PARTS[:1], predicted_by("medseg", "1.0"))]:
        algorithms = None if algorithm is None else [algorithm] * len(parts)
        write_dicom_seg(tmp_path / "a.dcm", build(parts, context.geometry), context, algorithms=algorithms)
        assert set(dciodvfy(tmp_path / "a.dcm")) <= set(theirs)
    assert not theirs


def test_dcmqi_reads_the_same_masks(objects: InstanceSet, context: DicomContext, tmp_path: Path) -> None:
    # pip puts it beside the interpreter, which need not be on the PATH
    program = shutil.which(
        "segimage2itkimage", path=os.pathsep.join((os.environ["PATH"], str(Path(sys.executable).parent)))
    )
    if program is None:
        pytest.skip("segimage2itkimage is not installed (pip install dcmqi)")
    write_dicom_seg(tmp_path / "a.dcm", objects, context)
    command = [program, "--inputDICOM", str(tmp_path / "a.dcm"), "--outputDirectory", str(tmp_path), "--outputType",
               "nrrd", "--prefix", "x"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for instance in objects:
        image = sitk.ReadImage(str(tmp_path / f"x-{instance.id}.nrrd"))
        found = np.argwhere(sitk.GetArrayFromImage(image) > 0)
        world = [image.TransformIndexToPhysicalPoint([int(v) for v in index[::-1]]) for index in found]
        expected = np.argwhere(objects.full_mask(instance.id)) @ context.geometry.affine[:3, :3].T
        expected = expected + context.geometry.affine[:3, 3]
        np.testing.assert_allclose(
            sorted(map(tuple, np.round(world, 2))), sorted(map(tuple, expected.round(2))), atol=0.02
        )


# Identity and algorithm


def test_patient_study_tracking_and_algorithm(objects: InstanceSet, context: DicomContext, tmp_path: Path) -> None:
    origin = predicted_by("medseg", "9.8")
    write_instances(tmp_path / "a.dcm", objects, context=context, algorithms=[origin] * 3)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    assert (str(dataset.PatientName), dataset.PatientID) == ("Planted^Name", "PLANTED-ID")
    assert (dataset.StudyInstanceUID, dataset.FrameOfReferenceUID) == (SERIES + ".9", FRAME)
    assert dataset.SeriesInstanceUID.startswith("2.25.") and dataset.SeriesInstanceUID != SERIES
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == SERIES and len(series.ReferencedInstanceSequence) == 5
    items = dataset.SegmentSequence
    assert [item.TrackingID.split(" #")[1] for item in items] == ["1", "41", "3"]
    assert len({item.TrackingUID for item in items}) == 3
    for item in items:
        assert item.SegmentAlgorithmType == "AUTOMATIC" and item.SegmentAlgorithmName == "medseg"
        assert item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "9.8"
        assert len(item.RecommendedDisplayCIELabValue) == 3
    label = items[1].SegmentLabel
    assert len(label.encode()) <= 64 and "左腎" in label and label.endswith("x 1") and "\\" not in label
    assert read_dicom_seg(tmp_path / "a.dcm").algorithms == (origin,) * 3


def test_odd_patients_are_passed_on_and_never_told(
    tmp_path: Path, oblique_geometry: VolumeGeometry, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    def edit(dataset: Dataset, index: int) -> None:
        dataset.SpecificCharacterSet = ""
        dataset.PatientName, dataset.PatientSex, dataset.StudyDate = "SECRETNAME", "?", "yesterday"

    with pytest.warns(UserWarning, match="Invalid value"):
        write_series(tmp_path / "s", oblique_geometry, edit=edit)
    context = read_dicom_context(tmp_path / "s")
    write_dicom_seg(tmp_path / "a.dcm", build(PARTS, context.geometry), context)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    assert (str(dataset.PatientName), dataset.PatientSex) == ("SECRETNAME", "?")
    assert dataset.ContentDate == "20000101"
    assert "SECRET" not in caplog.text + "".join(capfd.readouterr())


def test_a_series_without_uids_is_refused_by_name(data_dir: Path, tmp_path: Path) -> None:
    series = read_dicom_context(data_dir / "ct_torso_dicom" / "series")
    empty = InstanceSet.build([], series.geometry, LABELS)
    with pytest.raises(InputError, match="ct_torso_dicom.*has no StudyInstanceUID"):
        write_instances(tmp_path / "a.dcm", empty, context=series)
    with pytest.raises(InputError, match="belongs to a series; name it"):
        write_instances(tmp_path / "a.dcm", empty)
    assert list(tmp_path.iterdir()) == []


# Matching to an image


def test_another_frame_of_reference_is_refused(objects: InstanceSet, context: DicomContext, tmp_path: Path) -> None:
    write_dicom_seg(tmp_path / "a.dcm", objects, context)
    path = edited(tmp_path / "a.dcm", tmp_path / "b.dcm", lambda ds: setattr(ds, "FrameOfReferenceUID", "1.2.9"))
    with pytest.raises(GeometryError, match=rf"b.dcm: frame of reference 1.2.9, that of the image is {FRAME}"):
        read_instances(path, image=context)
    assert_same(read_instances(path, image=context, ignore_frame_of_reference=True), objects)
    bare = VolumeGeometry(context.geometry.affine, (5, 7, 11), "PATIENT")
    assert_same(read_instances(path, image=bare), objects)


def test_another_series_on_the_same_grid_is_a_warning(
    objects: InstanceSet, context: DicomContext, tmp_path: Path
) -> None:
    write_dicom_seg(tmp_path / "a.dcm", objects, context)

    def edit(dataset: Dataset) -> None:
        dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"

    said: list[str] = []
    path = edited(tmp_path / "a.dcm", tmp_path / "b.dcm", edit)
    assert_same(read_instances(path, image=context, note=said.append), objects)
    assert len(said) == 1 and "made on series 1.2.3" in said[0]


def test_another_grid_is_refused(objects: InstanceSet, context: DicomContext, tmp_path: Path) -> None:
    affine = context.geometry.affine.copy()
    affine[:3, 0] /= 2  # twice as many slices: the stated distance tells that these are no sparse frames
    finer = VolumeGeometry(affine, (9, 7, 11), "PATIENT", frame_of_reference_uid=FRAME)
    with pytest.raises(GeometryError, match="whose voxels are not those of the image"):
        write_dicom_seg(tmp_path / "x.dcm", build(PARTS[:1], finer), context)
    write_dicom_seg(tmp_path / "a.dcm", objects, context)
    with pytest.raises(GeometryError, match="whose voxels are not those of the image"):
        read_instances(tmp_path / "a.dcm", image=finer)


# Files that cannot be used


def _shift_frame(dataset: Dataset) -> None:
    position = dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
    position.ImagePositionPatient = [float(v) + 0.7 for v in position.ImagePositionPatient]


def _repeat_frame(dataset: Dataset) -> None:
    groups = dataset.PerFrameFunctionalGroupsSequence
    groups[1].PlanePositionSequence = groups[0].PlanePositionSequence


def _no_position(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence


def _no_segments(dataset: Dataset) -> None:
    dataset.SegmentSequence = dataset.SegmentSequence[:2]


def _cut(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:20]


def _nan(dataset: Dataset) -> None:
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0, 0.7]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_shift_frame, "shifted sideways by up to|no multiples of one slice distance"),
        (_repeat_frame, "segment 1 has several frames in one place"),
        (_no_position, "frame 1 has no position"),
        (_no_segments, r"voxels of segments \[3\] that SegmentSequence does not describe"),
        (_cut, "truncated: 20 bytes of 9 frames"),
        (_nan, "are no usable numbers"),
        (lambda ds: setattr(ds, "TotalPixelMatrixRows", 7), "tiled segmentation of a slide"),
        (lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"), "a DICOM object of SEG, expected a segm"),
    ],
)
def test_broken_segmentations_are_refused(
    objects: InstanceSet, context: DicomContext, tmp_path: Path, edit: Callable[[Dataset], None], message: str
) -> None:
    write_dicom_seg(tmp_path / "a.dcm", objects, context)
    path = edited(tmp_path / "a.dcm", tmp_path / "b.dcm", edit)
    with pytest.raises(InputError, match=f"b.dcm: .*({message})") as caught:
        read_instances(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_dicom_are_refused(objects: InstanceSet, context: DicomContext, tmp_path: Path) -> None:
    write_dicom_seg(tmp_path / "a.dcm", objects, context)
    whole = (tmp_path / "a.dcm").read_bytes()
    for content in (b"", b"hello, this is no image\n" * 9, whole[:200], whole[: len(whole) // 2]):
        (tmp_path / "b.dcm").write_bytes(content)
        with pytest.raises(InputError, match="b.dcm: ") as caught:
            read_instances(tmp_path / "b.dcm")
        assert "\n" not in str(caught.value)


# Real data


def test_partial_overlaps_of_dcmqi(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "dicom_seg" / "dcmqi"
    expected = {}
    for number in (1, 2, 3):
        image = sitk.ReadImage(str(folder / f"partial_overlaps-{number}.nrrd"))
        array = sitk.GetArrayFromImage(image)
        expected |= {int(value): array == value for value in np.unique(array) if value}
    seg = read_dicom_seg(folder / "partial_overlaps.dcm")
    assert seg.instances.labels.names == ("GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE")
    np.testing.assert_allclose(seg.instances.geometry.affine[:3, 3], image.GetOrigin())
    assert {a.type for a in seg.algorithms} == {"MANUAL"}
    for instance in seg.instances:
        np.testing.assert_array_equal(seg.instances.full_mask(instance.id), expected[instance.id])
    series = read_dicom_context(folder / "ct-3slice")
    assert_same(read_instances(folder / "partial_overlaps.dcm", image=series), seg.instances)
    for name, form, partner in [
        ("a.dcm", None, seg.context),
        ("b.dcm", None, series),
        ("c.seg.nrrd", None, None),
        ("d.nii.gz", "nifti4d", None),
    ]:
        write_instances(tmp_path / name, seg.instances, format=form, context=partner)  # type: ignore[arg-type]
        found = read_instances(tmp_path / name)
        assert_same(found, seg.instances)
        assert found.labels == seg.instances.labels


@pytest.mark.parametrize(
    "name", ["binary", "binary_fractional", "binary_overlap", "binary_single_frame", "true_fractional"]
)
def test_files_of_highdicom(data_dir: Path, name: str) -> None:
    path = data_dir / "dicom_seg" / "highdicom" / f"seg_image_ct_{name}.dcm"
    volume = hd.seg.segread(path).get_volume(allow_missing_positions=True)
    found = read_instances(path)
    expected = volume.match_geometry(found.geometry).array
    assert len(found) == expected.shape[-1]
    for instance in found:
        np.testing.assert_array_equal(found.full_mask(instance.id), expected[..., instance.id - 1] >= 0.5)


def test_a_file_of_dcmqi_on_a_multiframe_image(data_dir: Path) -> None:
    folder = data_dir / "dicom_seg" / "dcmqi" / "24x38x3"
    image = read_dicom_context(folder / "multiframe" / "mf.dcm")
    found = read_instances(folder / "seg" / "label.seg", image=image)
    expected = read_instances(folder / "nrrd" / "label.nrrd", image=image)
    np.testing.assert_array_equal(found.full_mask(1), expected.full_mask(1))
