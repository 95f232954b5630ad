"""DICOM series: ordered, rescaled and placed as they are, or refused by name."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_fixtures import SERIES, ct_dataset, save, write_series
from highdicom import VolumeGeometry
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ImplicitVRLittleEndian,
    RLELossless,
)

from medseg.errors import GeometryError, InputError
from medseg.io import list_series, read_volume

sitk = pytest.importorskip("SimpleITK")


def itk_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return array and affine as SimpleITK's series reader gives them (axes slice, row, column)."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return itk_parts(reader.Execute())


def itk_parts(image: "sitk.Image") -> tuple[np.ndarray, np.ndarray]:
    """Return array and affine (axes slice, row, column) of a SimpleITK image."""
    affine = np.eye(4)
    affine[:3, :3] = (np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing())[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), affine


@pytest.fixture
def grid(oblique_geometry: VolumeGeometry) -> VolumeGeometry:
    """An oblique grid whose slices ascend along the normal, as `read_volume` returns them."""
    return oblique_geometry


def test_series_is_ordered_by_position_and_rescaled(tmp_path: Path, grid: VolumeGeometry) -> None:
    hu = write_series(tmp_path, grid)
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, hu)
    np.testing.assert_allclose(volume.affine, grid.affine, atol=1e-6)
    array, affine = itk_series(tmp_path)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)


def test_slices_stored_downwards_come_out_ascending(tmp_path: Path, grid: VolumeGeometry) -> None:
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, 0] * 4
    affine[:3, 0] *= -1
    hu = write_series(tmp_path, VolumeGeometry(affine, grid.spatial_shape, "PATIENT"))
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu[::-1])
    np.testing.assert_allclose(volume.affine, grid.affine, atol=1e-6)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, "1.2.840.10008.1.2.2"])
def test_native_transfer_syntaxes(tmp_path: Path, grid: VolumeGeometry, syntax: str) -> None:
    def edit(ds: Dataset, index: int) -> None:
        if syntax == "1.2.840.10008.1.2.2":
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
            ds["PixelData"].VR = "OW"

    hu = write_series(tmp_path, grid, syntax=syntax, edit=edit)
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)


def test_files_without_preamble_and_suffix(tmp_path: Path, grid: VolumeGeometry) -> None:
    hu = write_series(tmp_path, grid, name="IM{:04d}", syntax=ImplicitVRLittleEndian)
    for path in tmp_path.iterdir():
        ds = pydicom.dcmread(path)
        del ds.file_meta
        ds.preamble = None
        ds.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)


def test_rescale_per_slice_and_fractions(tmp_path: Path, grid: VolumeGeometry) -> None:
    def edit(ds: Dataset, index: int) -> None:
        ds.RescaleSlope = 0.5 + index

    hu = write_series(tmp_path, grid, edit=edit)
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.float32
    factors = 0.5 + np.arange(5)[:, None, None]
    np.testing.assert_array_equal(volume.array, ((hu + 1024.0) * factors - 1024).astype(np.float32))


def test_monochrome1_is_not_inverted(tmp_path: Path, grid: VolumeGeometry) -> None:
    def edit(ds: Dataset, index: int) -> None:
        ds.PhotometricInterpretation = "MONOCHROME1"

    np.testing.assert_array_equal(write_series(tmp_path, grid, edit=edit), read_volume(tmp_path).array)


def test_values_beyond_int16_widen_to_float32(tmp_path: Path, grid: VolumeGeometry) -> None:
    def edit(ds: Dataset, index: int) -> None:
        ds.BitsStored, ds.HighBit = 16, 15
        ds.PixelData = np.full((7, 11), 65535 if index == 3 else 7, "<u2").tobytes()

    write_series(tmp_path, grid, edit=edit)
    array = read_volume(tmp_path).array
    assert array.dtype == np.float32
    assert array[:, 0, 0].tolist() == [7 - 1024] * 3 + [65535 - 1024, 7 - 1024]


def test_signed_values_and_overlay_bits(tmp_path: Path, grid: VolumeGeometry) -> None:
    def edit(ds: Dataset, index: int) -> None:
        ds.PixelRepresentation = 1
        # -5 in 12 bits, with overlay bits above it (retired, DICOM PS3.5 section 8.1.1)
        ds.PixelData = np.full((7, 11), (-5 & 0x0FFF) | 0x5000, "<u2").tobytes()

    write_series(tmp_path, grid, edit=edit)
    assert np.unique(read_volume(tmp_path).array).tolist() == [-5 - 1024]


def test_other_series_localizers_and_strangers_are_set_aside(tmp_path: Path, grid: VolumeGeometry) -> None:
    hu = write_series(tmp_path / "study" / "ct", grid)

    def localizer(ds: Dataset, index: int) -> None:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    write_series(tmp_path / "study" / "scout", grid, edit=localizer, series=SERIES + ".7")
    odd = ct_dataset(grid, 0, np.zeros((3, 3), np.uint16))
    odd.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(odd, tmp_path / "study" / "ct" / "topogram.dcm")  # same series, another matrix
    report = Dataset()
    report.SOPClassUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.67", "SR"
    report.SeriesInstanceUID = report.SOPInstanceUID = SERIES + ".8"
    save(report, tmp_path / "study" / "dose.dcm")
    (tmp_path / "study" / "ct" / "notes.txt").write_text("not an image")
    (tmp_path / "study" / "ct" / ".DS_Store").write_bytes(b"\0" * 300)
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)

    infos = list_series(tmp_path)
    assert infos[0].is_image and not any(info.is_image for info in infos[1:])
    assert sorted((i.modality, i.n_slices, i.problem) for i in infos) == [
        ("", 0, "not DICOM"),
        ("CT", 1, "localizer"),
        ("CT", 5, ""),
        ("CT", 5, "localizer"),
        ("SR", 1, "report"),
    ]
    assert {file.name for file in infos[-1].files} == {"notes.txt", ".DS_Store"}
    assert "Planted" not in repr(infos) and "PLANTED" not in repr(infos)
    assert infos[0].shape == (5, 7, 11) and infos[0].orientation == "HPL"
    np.testing.assert_allclose(infos[0].spacing_mm, (3.0, 0.8, 0.7), atol=1e-6)


def test_several_series_need_a_choice(tmp_path: Path, grid: VolumeGeometry) -> None:
    write_series(tmp_path / "a", grid)
    hu = write_series(tmp_path / "b", grid, series=SERIES + ".7", edit=lambda ds, i: setattr(ds, "RescaleIntercept", 0))
    with pytest.raises(InputError, match=rf"2 image series.*--series.*{SERIES} .*{SERIES}\.7 "):
        read_volume(tmp_path)
    with pytest.raises(InputError, match="no image series 1.2.3"):
        read_volume(tmp_path, series="1.2.3")
    np.testing.assert_array_equal(read_volume(tmp_path, series=SERIES + ".7").array, hu + 1024)


def test_a_missing_slice_is_refused_with_the_gap(tmp_path: Path, grid: VolumeGeometry) -> None:
    write_series(tmp_path, grid, name="{:d}.dcm")
    (tmp_path / f"{(2 * 3) % 5}.dcm").unlink()
    with pytest.raises(GeometryError, match=r"6\.00 mm between 3\.dcm and 4\.dcm, 1 slice\(s\) missing"):
        read_volume(tmp_path)
    info = list_series(tmp_path)[0]
    assert info.is_image and info.shape is None and "6.00 mm" in info.problem and info.n_slices == 4


@pytest.mark.parametrize(("shift_mm", "fine"), [(0.03, True), (0.2, False)])
def test_uneven_slices_are_judged_in_mm(tmp_path: Path, grid: VolumeGeometry, shift_mm: float, fine: bool) -> None:
    normal = grid.affine[:3, 0] / np.linalg.norm(grid.affine[:3, 0])

    def edit(ds: Dataset, index: int) -> None:
        if index == 2:
            ds.ImagePositionPatient = list(np.array(ds.ImagePositionPatient, float) + shift_mm * normal)

    write_series(tmp_path, grid, edit=edit)
    if fine:
        np.testing.assert_allclose(read_volume(tmp_path).affine, grid.affine, atol=1e-6)
    else:
        with pytest.raises(GeometryError, match=r"from 2\.80 to 3\.20 mm"):
            read_volume(tmp_path)


def test_gantry_tilt_is_refused_with_its_angle(tmp_path: Path, grid: VolumeGeometry) -> None:
    along_rows = grid.affine[:3, 1] / np.linalg.norm(grid.affine[:3, 1])

    def edit(ds: Dataset, index: int) -> None:
        shift = 3.0 * np.tan(np.deg2rad(12.0)) * index * along_rows
        ds.ImagePositionPatient = list(np.array(ds.ImagePositionPatient, float) + shift)

    write_series(tmp_path, grid, edit=edit)
    with pytest.raises(GeometryError, match=r"tilted by 12\.0 degrees"):
        read_volume(tmp_path)


def test_a_slice_moved_sideways_is_refused(tmp_path: Path, grid: VolumeGeometry) -> None:
    def edit(ds: Dataset, index: int) -> None:
        if index == 1:
            shift = 0.3 * grid.affine[:3, 1] / np.linalg.norm(grid.affine[:3, 1])
            ds.ImagePositionPatient = list(np.array(ds.ImagePositionPatient, float) + shift)

    write_series(tmp_path, grid, edit=edit, name="{:d}.dcm")
    with pytest.raises(GeometryError, match=r"sideways by up to 0\.30 mm.*3\.dcm"):
        read_volume(tmp_path)


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
@pytest.mark.parametrize(
    ("keyword", "value", "error", "text"),
    [
        ("ImagePositionPatient", None, GeometryError, "ImagePositionPatient has none"),
        ("ImagePositionPatient", ["nan", "0", "0"], GeometryError, "no finite numbers"),
        ("PixelSpacing", None, GeometryError, "PixelSpacing has none"),
        ("PixelSpacing", [0, 0.7], GeometryError, "more than zero"),
        ("PixelSpacing", [0.8, 0.75], GeometryError, "1 of 5 slices have another PixelSpacing"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 1, 0], GeometryError, "1 of 5 slices have another orientation"),
        ("ImageOrientationPatient", [1, 0, 0, 0.3, 1, 0], GeometryError, "right angles"),
        ("FrameOfReferenceUID", "1.2.3.4", GeometryError, "another FrameOfReferenceUID"),
        ("RescaleSlope", None, InputError, "only one of RescaleSlope"),
        ("RescaleSlope", 0, InputError, "no usable numbers"),
        ("Rows", 6, InputError, "154 bytes of pixel data, expected 132"),
    ],
)
def test_one_odd_slice_is_refused_by_name(
    tmp_path: Path, grid: VolumeGeometry, keyword: str, value: object, error: type, text: str
) -> None:
    def edit(ds: Dataset, index: int) -> None:
        if index == 3:
            if value is None:
                del ds[keyword]
            else:
                ds.add_new(keyword, ds[keyword].VR, value)

    write_series(tmp_path, grid, edit=edit, name="{:d}.dcm")
    with pytest.raises(error, match=text) as caught:
        read_volume(tmp_path)
    assert f"{(3 * 3) % 5}.dcm" in str(caught.value) and "\n" not in str(caught.value)


def test_the_same_slice_twice_is_read_once(tmp_path: Path, grid: VolumeGeometry) -> None:
    hu = write_series(tmp_path, grid)
    shutil.copy(tmp_path / "IM0003.dcm", tmp_path / "again.dcm")
    ds = pydicom.dcmread(tmp_path / "IM0001.dcm")
    ds.compress(RLELossless)
    ds.save_as(tmp_path / "packed.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)


def test_two_images_in_one_place_are_refused(tmp_path: Path, grid: VolumeGeometry) -> None:
    write_series(tmp_path, grid)
    ds = pydicom.dcmread(tmp_path / "IM0003.dcm")
    ds.PixelData = bytes(len(ds.PixelData))
    ds.save_as(tmp_path / "other.dcm")
    with pytest.raises(GeometryError, match=r"IM0003\.dcm and .*other\.dcm lie in the same place.*different content"):
        read_volume(tmp_path)


@pytest.mark.parametrize("suffix", [".dcm", "", ".img"])
@pytest.mark.parametrize("keep", ["nothing", "half the header", "half the pixels"])
def test_a_damaged_slice_is_refused_by_name(tmp_path: Path, grid: VolumeGeometry, suffix: str, keep: str) -> None:
    write_series(tmp_path, grid, name="IM{:04d}" + suffix)
    victim = tmp_path / f"IM0000{suffix}"
    whole = victim.read_bytes()
    start = whole.rindex(b"\xe0\x7f\x10\x00")
    victim.write_bytes(whole[: {"nothing": 0, "half the header": start // 2, "half the pixels": start + 80}[keep]])
    with pytest.raises(InputError, match=rf"IM0000{suffix}: .*(empty|broken|truncated)"):
        read_volume(tmp_path)


def test_a_number_is_no_suffix(tmp_path: Path, grid: VolumeGeometry) -> None:
    hu = write_series(tmp_path, grid, name="CT.1.2.840.{:d}")
    (tmp_path / "notes.txt").write_text("hello")
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)
    (tmp_path / "CT.1.2.840.77").write_bytes(b"")
    with pytest.raises(InputError, match=r"CT\.1\.2\.840\.77: the file is empty"):
        read_volume(tmp_path)


def test_a_truncated_compressed_slice_is_refused(tmp_path: Path, grid: VolumeGeometry) -> None:
    write_series(tmp_path, grid)
    victim = tmp_path / "IM0002.dcm"
    ds = pydicom.dcmread(victim)
    ds.compress(RLELossless)
    ds.save_as(victim)
    victim.write_bytes(victim.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"IM0002\.dcm: truncated"):
        read_volume(tmp_path)


def test_a_broken_file_among_other_series_does_not_matter(tmp_path: Path, grid: VolumeGeometry) -> None:
    hu = write_series(tmp_path / "a", grid)
    write_series(tmp_path / "b", grid, series=SERIES + ".7")
    (tmp_path / "b" / "IM0000.dcm").write_bytes(b"")
    np.testing.assert_array_equal(read_volume(tmp_path, series=SERIES).array, hu)
    with pytest.raises(InputError, match=r"IM0000\.dcm"):
        read_volume(tmp_path, series=SERIES + ".7")


def test_a_single_file_is_read_alone(tmp_path: Path, grid: VolumeGeometry) -> None:
    hu = write_series(tmp_path, grid, name="{:d}.dcm")
    volume = read_volume(tmp_path / "3.dcm")  # slice 1
    np.testing.assert_array_equal(volume.array, hu[1:2])
    expected = grid.affine.copy()
    expected[:3, 3] += grid.affine[:3, 0]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-6)
    ds = pydicom.dcmread(tmp_path / "3.dcm")
    del ds.SliceThickness
    ds.save_as(tmp_path / "3.dcm")
    with pytest.raises(GeometryError, match="extent along the normal is unknown"):
        read_volume(tmp_path / "3.dcm")


def enhanced(grid: VolumeGeometry, stored: np.ndarray) -> Dataset:
    """Return a multi-frame CT whose frames run against the positions."""
    ds = ct_dataset(grid, 0, stored[0])
    ds.SOPClassUID = EnhancedCTImageStorage
    frames = []
    for index in reversed(range(len(stored))):
        one = ct_dataset(grid, index, stored[index])
        frame = Dataset()
        for name, keywords in (
            ("PlanePositionSequence", ["ImagePositionPatient"]),
            ("PixelValueTransformationSequence", ["RescaleSlope", "RescaleIntercept"]),
        ):
            item = Dataset()
            for keyword in keywords:
                item[keyword] = one[keyword]
            setattr(frame, name, Sequence([item]))
        frame.PixelValueTransformationSequence[0].RescaleIntercept = -1024 + index
        frames.append(frame)
    shared = Dataset()
    for name, keywords in (
        ("PlaneOrientationSequence", ["ImageOrientationPatient"]),
        ("PixelMeasuresSequence", ["PixelSpacing", "SliceThickness"]),
    ):
        item = Dataset()
        for keyword in keywords:
            item[keyword] = ds[keyword]
            del ds[keyword]
        setattr(shared, name, Sequence([item]))
    for keyword in ("ImagePositionPatient", "RescaleSlope", "RescaleIntercept"):
        del ds[keyword]
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    ds.NumberOfFrames = len(frames)
    ds.PixelData = stored[::-1].astype("<u2").tobytes()
    return ds


def test_enhanced_multi_frame(tmp_path: Path, grid: VolumeGeometry, rng: np.random.Generator) -> None:
    stored = rng.integers(0, 4096, grid.spatial_shape).astype(np.uint16)
    ds = enhanced(grid, stored)
    save(ds, tmp_path / "mf.dcm")
    volume = read_volume(tmp_path / "mf.dcm")
    np.testing.assert_array_equal(volume.array, stored.astype(np.int16) - 1024 + np.arange(5)[:, None, None])
    np.testing.assert_allclose(volume.affine, grid.affine, atol=1e-6)
    del ds.PerFrameFunctionalGroupsSequence
    save(ds, tmp_path / "bare" / "mf.dcm")
    with pytest.raises(InputError, match=r"mf\.dcm: 5 frames with 0 positions"):
        read_volume(tmp_path / "bare")


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_volume(tmp_path / "nowhere")
    with pytest.raises(InputError, match="folder is empty"):
        read_volume(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(InputError, match=r"no DICOM image series among 1 files \(1 not DICOM\)"):
        read_volume(tmp_path)
    with pytest.raises(InputError, match=r"a\.txt: not a DICOM file"):
        read_volume(tmp_path / "a.txt")


def test_zip_is_read_like_the_folder_and_leaves_nothing(
    tmp_path: Path, grid: VolumeGeometry, monkeypatch: pytest.MonkeyPatch
) -> None:
    hu = write_series(tmp_path / "study", grid)
    archive = Path(shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path, "study"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    np.testing.assert_array_equal(read_volume(archive).array, hu)
    (info,) = list_series(archive)
    assert info.files[0] == archive / "study" / "IM0000.dcm"
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("study/IM0009.dcm", b"")
    with pytest.raises(InputError, match=r"study\.zip/study/IM0009\.dcm: the file is empty"):
        read_volume(archive)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("name", ["../out.dcm", "/abs.dcm", "a/../../out.dcm", "..\\out.dcm"])
def test_zip_members_outside_are_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr(name, b"x")
    with pytest.raises(InputError, match="leads out of the archive"):
        read_volume(tmp_path / "bad.zip")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.zip"]


def test_broken_and_oversized_zips_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match=r"half\.zip: the archive is damaged"):
        read_volume(tmp_path / "half.zip")
    with zipfile.ZipFile(tmp_path / "big.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.dcm", bytes(3 << 20))
    monkeypatch.setattr("medseg.io.archive.MAX_BYTES", 2 << 20)
    with pytest.raises(InputError, match=r"big\.zip: 1 files of 3 MiB unpacked, at most"):
        read_volume(tmp_path / "big.zip")


def test_real_jpeg2000_series_equals_simpleitk(data_dir: Path) -> None:
    folder = data_dir / "ct_torso_dicom" / "series"
    volume = read_volume(folder)
    assert volume.array.shape == (20, 512, 512) and volume.array.dtype == np.int16
    names = sorted(folder.iterdir(), key=lambda p: float(pydicom.dcmread(p, specific_tags=["ImagePositionPatient"])
                                                         .ImagePositionPatient[2]))  # fmt: skip
    reader = sitk.ImageSeriesReader()  # GDCM finds no series here: the data set has no UID
    reader.SetFileNames([str(p) for p in names])
    array, affine = itk_parts(reader.Execute())
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)


def test_real_tilted_gantry_is_refused(data_dir: Path) -> None:
    with pytest.raises(GeometryError, match=r"tilted by 18\.5 degrees.*from 1\.08 to 7\.00 mm"):
        read_volume(data_dir / "ct_tilted_gantry")


def test_real_transfer_syntaxes_hold_one_image(data_dir: Path) -> None:
    arrays = [read_volume(data_dir / "transfer_syntaxes" / f"{i}.dcm").array for i in range(1, 10)]
    assert arrays[0].shape == (1, 384, 384) and arrays[0].max() > 1000
    assert all(np.array_equal(array, arrays[0]) for array in arrays)


def test_real_multi_frame_equals_its_single_frames(data_dir: Path) -> None:
    folder = data_dir / "dicom_seg" / "dcmqi" / "24x38x3"
    one, many = read_volume(folder / "multiframe"), read_volume(folder / "image")
    np.testing.assert_array_equal(one.array, many.array)
    np.testing.assert_allclose(one.affine, many.affine, atol=1e-4)
