"""DICOM CT series: read back by pydicom, highdicom and SimpleITK, and held against the CT Image IOD."""

import shutil
import subprocess
from itertools import permutations, product
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from highdicom import Volume, VolumeGeometry
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map

from medseg.errors import GeometryError, InputError
from medseg.io import read_volume, write_ct_series
from medseg.values.geometry import AxisMap, grid_map


@pytest.fixture
def volume(oblique_geometry: VolumeGeometry, rng: np.random.Generator) -> Volume:
    array = rng.integers(-1024, 3071, oblique_geometry.spatial_shape, endpoint=True).astype(np.int16)
    return Volume(array, oblique_geometry.affine, "PATIENT")


def datasets(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def test_every_reader_returns_the_same_voxels_in_the_same_place(volume: Volume, tmp_path: Path) -> None:
    folder = write_ct_series(tmp_path / "ct", volume, seed=3, description="phantom")

    read = read_volume(folder)
    back = grid_map(read, volume)
    assert back is not None
    np.testing.assert_array_equal(back.array(read.array), volume.array)

    other = highdicom.get_volume_from_series(datasets(folder), dtype=np.int16)
    back = grid_map(other, volume)
    assert back is not None
    np.testing.assert_array_equal(back.array(other.array), volume.array)

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    array = sitk.GetArrayFromImage(image)
    for index in [(0, 0, 0), (4, 6, 10), (2, 3, 1)]:
        world = image.TransformIndexToPhysicalPoint(index[::-1])
        own = np.rint(np.linalg.inv(volume.affine) @ [*world, 1.0])[:3].astype(int)
        np.testing.assert_allclose(volume.affine[:3] @ [*own, 1], world, atol=1e-4)
        assert array[index] == volume.array[tuple(own)]


def test_all_axis_orders_and_flips_keep_their_place(volume: Volume, tmp_path: Path) -> None:
    small = Volume(volume.array[:2, :3, :4], volume.affine, "PATIENT")
    for number, (order, flips) in enumerate(product(permutations(range(3)), product([False, True], repeat=3))):
        moved = AxisMap(order=order, flips=flips).volume(small)
        folder = write_ct_series(tmp_path / str(number), moved, seed=1, description="x")
        read = highdicom.get_volume_from_series(datasets(folder), dtype=np.int16)
        back = grid_map(read, small)
        assert back is not None, (order, flips)
        np.testing.assert_array_equal(back.array(read.array), small.array)


def test_required_attributes_of_the_ct_image_iod(volume: Volume, tmp_path: Path) -> None:
    for image in datasets(write_ct_series(tmp_path / "ct", volume, seed=3, description="phantom")):
        for module in get_iod_module_map()["ct-image"]:
            if module["usage"] != "M":
                continue
            for attribute in get_module_attribute_map()[module["key"]]:
                if attribute["path"] or attribute["type"] not in ("1", "2"):
                    continue
                assert attribute["keyword"] in image, (module["key"], attribute)
                if attribute["type"] == "1":
                    assert image[attribute["keyword"]].VM > 0, (module["key"], attribute)


def test_dciodvfy_finds_no_error(volume: Volume, tmp_path: Path) -> None:
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    folder = write_ct_series(tmp_path / "ct", volume, seed=3, description="phantom")
    report = subprocess.run([program, str(folder / "0001.dcm")], capture_output=True, text=True, check=False)
    assert "Error" not in report.stdout + report.stderr
    assert "CTImage" in report.stdout + report.stderr


def test_header_says_what_was_asked_and_no_patient(volume: Volume, tmp_path: Path) -> None:
    images = datasets(write_ct_series(tmp_path / "ct", volume, seed=7, description="thick slices", series_number=4))
    first = images[0]
    assert first.PatientName == "PHANTOM" and first.PatientIdentityRemoved == "YES"
    assert (first.SeriesDescription, first.SeriesNumber, first.Modality) == ("thick slices", 4, "CT")
    assert (first.RescaleIntercept, first.RescaleSlope) == (-1024, 1)
    assert (first.BitsAllocated, first.BitsStored, first.HighBit, first.PixelRepresentation) == (16, 12, 11, 0)
    np.testing.assert_allclose(first.PixelSpacing, (0.8, 0.7))
    assert first.SliceThickness == pytest.approx(3.0) and first.SpacingBetweenSlices == pytest.approx(3.0)
    assert len({i.SOPInstanceUID for i in images}) == 5
    assert len({(i.StudyInstanceUID, i.SeriesInstanceUID, i.FrameOfReferenceUID) for i in images}) == 1
    for image in images:
        assert pydicom.uid.UID(image.SOPInstanceUID).is_valid
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID


def test_names_say_nothing_about_position(volume: Volume, tmp_path: Path) -> None:
    for seed in range(12):
        two = Volume(volume.array[:2], volume.affine, "PATIENT")
        images = datasets(write_ct_series(tmp_path / str(seed), two, seed=seed, description="x"))
        assert [i.InstanceNumber for i in images] != [1, 2]


def test_same_seed_same_bytes_and_other_content_other_uids(volume: Volume, tmp_path: Path) -> None:
    a, b = (write_ct_series(tmp_path / name, volume, seed=3, description="x") for name in "ab")
    assert [p.name for p in sorted(a.iterdir())] == [f"{i:04d}.dcm" for i in range(1, 6)]
    assert [p.read_bytes() for p in sorted(a.iterdir())] == [p.read_bytes() for p in sorted(b.iterdir())]
    changed = Volume(volume.array.copy(), volume.affine, "PATIENT")
    changed.array[2, 2, 2] += 1
    c = datasets(write_ct_series(tmp_path / "c", changed, seed=3, description="x"))
    before = datasets(a)
    assert not {i.SOPInstanceUID for i in c} & {i.SOPInstanceUID for i in before}
    assert {i.StudyInstanceUID for i in c} == {i.StudyInstanceUID for i in before}


def test_written_again_it_stays_and_other_files_are_refused(volume: Volume, tmp_path: Path) -> None:
    folder = write_ct_series(tmp_path / "ct", volume, seed=3, description="x")
    write_ct_series(folder, volume, seed=3, description="x")
    with pytest.raises(InputError, match="holds other files"):
        write_ct_series(folder, volume, seed=4, description="x")
    assert len(list(folder.iterdir())) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["ct"]  # no temporary folder is left


def test_a_failure_leaves_nothing(volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def full_disk(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("medseg.io.dicom_writer.os.fsync", full_disk)
    with pytest.raises(InputError, match="ct: cannot be written .No space left"):
        write_ct_series(tmp_path / "ct", volume, seed=3, description="x")
    assert list(tmp_path.iterdir()) == []


def test_sixteen_bits_only_where_needed(volume: Volume, tmp_path: Path) -> None:
    array = volume.array.astype(np.int32)
    array[0, 0, 0] = 30000
    image = datasets(write_ct_series(tmp_path / "ct", Volume(array, volume.affine, "PATIENT"), seed=0, description=""))
    assert {i.BitsStored for i in image} == {16}
    read = read_volume(tmp_path / "ct")
    assert read.array.max() == 30000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: (v.array.astype(np.float32), v.affine), "values of type float32, expected integers"),
        (lambda v: (v.array - 1, v.affine), "values -1025"),
        (lambda v: (v.array.astype(np.int32) + 70000, v.affine), "expected -1024..64511"),
    ],
)
def test_unusable_values_are_refused(volume: Volume, tmp_path: Path, change, message: str) -> None:
    volume.array[0, 0, 0] = -1024
    array, affine = change(volume)
    with pytest.raises(InputError, match=message):
        write_ct_series(tmp_path / "ct", Volume(array, affine, "PATIENT"), seed=0, description="x")
    assert list(tmp_path.iterdir()) == []


def test_bad_descriptions_and_affines_are_refused(volume: Volume, tmp_path: Path) -> None:
    for description in ("a\\b", "x" * 65, "line\nbreak", "Übersicht"):
        with pytest.raises(InputError, match="description"):
            write_ct_series(tmp_path / "ct", volume, seed=0, description=description)
    affine = volume.affine.copy()
    affine[:3, 0] += 0.5 * affine[:3, 1]
    with pytest.raises((GeometryError, ValueError)):
        write_ct_series(tmp_path / "ct", Volume(volume.array, affine, "PATIENT"), seed=0, description="x")
