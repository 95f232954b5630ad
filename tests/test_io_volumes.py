"""read_volume and write_volume: NRRD and MetaImage, dispatch by suffix, and real data in every format."""

import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from highdicom import Volume, VolumeGeometry

from medseg.errors import GeometryError, InputError
from medseg.io import list_series, read_volume, write_volume

sitk = pytest.importorskip("SimpleITK")


@pytest.fixture
def volume(oblique_geometry: VolumeGeometry, rng: np.random.Generator) -> Volume:
    array = rng.integers(-1000, 1000, oblique_geometry.spatial_shape).astype(np.int16)
    return Volume(array, oblique_geometry.affine, "PATIENT")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii", ".nii.gz"])
def test_round_trip_and_simpleitk_agree(tmp_path: Path, volume: Volume, suffix: str) -> None:
    path = tmp_path / f"é {suffix}"
    write_volume(path, volume)
    back = read_volume(path)
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-4)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume.array)
    point = image.TransformIndexToPhysicalPoint((10, 6, 4))
    np.testing.assert_allclose(point, (volume.affine @ [4, 6, 10, 1])[:3], atol=1e-3)
    (info,) = list_series(path)
    assert info.shape == (5, 7, 11) and info.is_image and info.n_slices == 5
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_detached_headers_are_read_but_not_written(tmp_path: Path, volume: Volume, suffix: str) -> None:
    write_volume(tmp_path / "a.nrrd", volume)
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nrrd")), str(tmp_path / f"b{suffix}"))
    np.testing.assert_array_equal(read_volume(tmp_path / f"b{suffix}").array, volume.array)
    with pytest.raises(InputError, match="cannot write this format"):
        write_volume(tmp_path / f"c{suffix}", volume)


def edited(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("suffix", "line", "error", "text"),
    [
        (".nrrd", b"space:", GeometryError, "no space"),
        (".nrrd", b"space directions:", GeometryError, "no space directions"),
        (".nrrd", b"space origin:", GeometryError, "no space origin"),
        (".mha", b"ElementSpacing", GeometryError, "no elementspacing"),
        (".mha", b"Offset", GeometryError, "no offset"),
        (".mha", b"TransformMatrix", GeometryError, "no transformmatrix"),
    ],
)
def test_a_header_without_its_place_in_the_patient_is_refused(
    tmp_path: Path, volume: Volume, suffix: str, line: bytes, error: type, text: str
) -> None:
    path = tmp_path / f"a{suffix}"
    write_volume(path, volume)
    header, newline, rest = path.read_bytes().partition(b"\n")
    lines = [header]
    while header and (newline or rest):
        header, newline, rest = rest.partition(b"\n")
        if header.startswith(line):
            break
        lines.append(header)
    path.write_bytes(b"\n".join(lines) + b"\n" + rest)
    with pytest.raises(error, match=text):
        read_volume(path)


def test_an_unknown_space_and_unit_are_refused(tmp_path: Path, volume: Volume) -> None:
    write_volume(tmp_path / "a.nrrd", volume)
    edited(tmp_path / "a.nrrd", b"left-posterior-superior", b"scanner-xyz")
    with pytest.raises(GeometryError, match="space 'scanner-xyz'"):
        read_volume(tmp_path / "a.nrrd")
    write_volume(tmp_path / "b.nrrd", volume)
    edited(tmp_path / "b.nrrd", b"space origin:", b'space units: "m" "m" "m"\nspace origin:')
    with pytest.raises(GeometryError, match="space units"):
        read_volume(tmp_path / "b.nrrd")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [True, False])
def test_truncated_files_are_refused(tmp_path: Path, volume: Volume, suffix: str, compressed: bool) -> None:
    path = tmp_path / f"a{suffix}"
    write_volume(path, volume)
    if not compressed:
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path), useCompression=False)
    data = path.read_bytes()
    path.write_bytes(data[:-120])
    with pytest.raises(InputError, match=rf"a{suffix}"):
        read_volume(path)


def test_wrong_dimensions_and_vectors_are_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((7, 11), np.int16)), str(tmp_path / "flat.mha"))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 5, 7, 11), np.int16), isVector=False), str(tmp_path / "4.mha"))
    rgb = sitk.GetImageFromArray(np.zeros((5, 7, 11, 3), np.uint8), isVector=True)
    sitk.WriteImage(rgb, str(tmp_path / "rgb.mha"))
    for name, text in (("flat", "three axes"), ("4", "three axes"), ("rgb", "several or complex")):
        with pytest.raises(InputError, match=text):
            read_volume(tmp_path / f"{name}.mha")


def test_paths_that_cannot_be_used(tmp_path: Path, volume: Volume) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_volume(tmp_path / "a.nii")
    with pytest.raises(InputError, match="cannot write this format"):
        write_volume(tmp_path / "a.txt", volume)
    (tmp_path / "d.nii").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write_volume(tmp_path / "d.nii", volume)
    write_volume(tmp_path / "a.nii", volume)
    with pytest.raises(InputError, match="leave --series away"):
        read_volume(tmp_path / "a.nii", series="1.2")
    (tmp_path / "junk.nrrd").write_bytes(b"\xff" * 500)
    with pytest.raises(InputError, match="neither an NRRD nor a MetaImage"):
        read_volume(tmp_path / "junk.nrrd")


def test_values_that_are_no_numbers_are_refused(tmp_path: Path, volume: Volume) -> None:
    array = volume.array.astype(np.float32)
    array[0, 1, 2] = np.nan
    write_volume(tmp_path / "a.mha", Volume(array, volume.affine, "PATIENT"))
    with pytest.raises(InputError, match="1 voxels are NaN"):
        read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii", ".nii.gz"])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path, volume: Volume, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(InputError, match=rf"a{suffix}: "):
            write_volume(path, volume)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_real_chest_is_one_volume_in_every_format(data_dir: Path) -> None:
    folder = data_dir / "ct_chest_4mm"
    series, nrrd = read_volume(folder / "series"), read_volume(folder / "ct-64.nrrd")
    np.testing.assert_array_equal(series.array, nrrd.array)
    np.testing.assert_allclose(series.affine, nrrd.affine, atol=2e-3)  # the files round spacing to 3 digits
    oblique = read_volume(folder / "ct-64-transformed.nrrd")
    image = sitk.ReadImage(str(folder / "ct-64-transformed.nrrd"))
    np.testing.assert_array_equal(oblique.array, sitk.GetArrayFromImage(image))
    for k, j, i in [(0, 0, 0), (78, 63, 63), (5, 40, 11)]:
        expected = image.TransformIndexToPhysicalPoint((i, j, k))
        np.testing.assert_allclose((oblique.affine @ [k, j, i, 1])[:3], expected, atol=1e-4)
