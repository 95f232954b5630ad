"""What a series hands down: grid, UIDs, patient and study, from single- and multi-frame files."""

import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_fixtures import FRAME, SERIES, write_series
from highdicom import VolumeGeometry

from medseg.errors import GeometryError, InputError
from medseg.io.dicom_context import DicomContext, ImageReference, derive_uid, read_dicom_context, tracking_ids
from medseg.labels import LabelTable
from medseg.values.instances import InstanceSet

CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture
def context(tmp_path: Path, oblique_geometry: VolumeGeometry) -> DicomContext:
    write_series(tmp_path / "series", oblique_geometry)
    return read_dicom_context(tmp_path / "series")


def test_every_slice_has_its_image(context: DicomContext, oblique_geometry: VolumeGeometry) -> None:
    np.testing.assert_allclose(context.geometry.affine, oblique_geometry.affine, atol=1e-6)
    assert context.geometry.spatial_shape == (5, 7, 11)
    # the fixture numbers its instances from the first slice on, against names and InstanceNumber
    assert context.images == tuple(
        ImageReference(sop_class_uid=CT, sop_instance_uid=f"{SERIES}.{index + 1}") for index in range(5)
    )
    assert (context.study_uid, context.series_uid, context.frame_of_reference_uid) == (SERIES + ".9", SERIES, FRAME)
    assert context.missing == ()
    context.check_complete()


def test_a_zip_is_read_too(tmp_path: Path, oblique_geometry: VolumeGeometry) -> None:
    write_series(tmp_path / "series", oblique_geometry)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in (tmp_path / "series").iterdir():
            archive.write(file, file.name)
    context = read_dicom_context(tmp_path / "a.zip")
    assert context.source == str(tmp_path / "a.zip") and len(context.images) == 5


def test_frames_are_numbered_from_one(data_dir: Path) -> None:
    file = data_dir / "dicom_seg" / "dcmqi" / "24x38x3" / "multiframe" / "mf.dcm"
    context = read_dicom_context(file)
    uid = pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID
    assert [image and image.frame for image in context.images] == [1, 2, 3]
    assert {image and image.sop_instance_uid for image in context.images} == {uid}


def test_missing_uids_are_named(data_dir: Path) -> None:
    context = read_dicom_context(data_dir / "ct_torso_dicom" / "series")
    with pytest.raises(InputError, match=r"no StudyInstanceUID, no .*SOPClassUID \(in 20 of 20 slices\)") as caught:
        context.check_complete()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_one_missing_uid_is_enough(tmp_path: Path, oblique_geometry: VolumeGeometry, keyword: str) -> None:
    write_series(tmp_path, oblique_geometry, edit=lambda ds, index: setattr(ds, keyword, ""))
    assert read_dicom_context(tmp_path).missing == (keyword,)


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_odd_values_are_handed_down_or_left_out(tmp_path: Path, oblique_geometry: VolumeGeometry) -> None:
    def edit(ds: pydicom.Dataset, index: int) -> None:
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.PatientName = "Müller^Jörg"
        ds.PatientSex = "unknown"
        ds.add_new("PatientWeight", "DS", "80.5")
        ds.StudyDescription = "Thorax \\ Abdomen"

    write_series(tmp_path, oblique_geometry, edit=edit)
    header = read_dicom_context(tmp_path).header
    assert str(header.PatientName) == "Müller^Jörg"
    assert header.PatientSex == "unknown" and header.PatientWeight == 80.5


def test_what_is_no_stack_is_refused(tmp_path: Path, oblique_geometry: VolumeGeometry) -> None:
    write_series(tmp_path, oblique_geometry)
    next(tmp_path.iterdir()).unlink()
    with pytest.raises((GeometryError, InputError)):
        (tmp_path / "empty").mkdir()
        read_dicom_context(tmp_path / "empty")
    with pytest.raises(InputError, match="no such file"):
        read_dicom_context(tmp_path / "gone")


def test_uids_follow_from_their_parts() -> None:
    uids = [derive_uid("a", "b"), derive_uid("ab"), derive_uid("a", "c"), derive_uid("a", "b", "")]
    assert len(set(uids)) == 4 and derive_uid("a", "b") == uids[0]
    for uid in uids:
        assert uid.startswith("2.25.") and len(uid) <= 64 and pydicom.uid.UID(uid).is_valid


def test_tracking_ids_are_unique_and_carry_the_older_number(context: DicomContext) -> None:
    array = np.zeros((5, 7, 11), np.int32)
    array[0, 0, :3], array[2, 0, :3], array[4, :2, :2] = 7, 7, 9
    table = LabelTable.from_dict(
        [{"id": 7, "name": "lesion", "kind": "components"}, {"id": 9, "name": "liver", "kind": "single"}]
    )
    objects = InstanceSet.from_labelmap(array, context.geometry, table)
    ids = tracking_ids(objects, context)
    assert [text for text, _ in ids] == ["lesion #7", "lesion #7 part 2", "liver #9"]
    assert len({uid for _, uid in ids}) == 3
    assert tracking_ids(objects, context) == ids
