"""NIfTI: LPS outside, RAS inside, and every header that cannot be trusted refused."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from highdicom import Volume, VolumeGeometry

from medseg.errors import GeometryError, InputError, MedsegError
from medseg.io import read_volume, write_volume
from medseg.io.nifti import read_nifti_grid

RAS = np.array([[-0.7, 0.1, 0.2, 30.0], [0.1, 0.8, 0.3, -40.0], [0.2, -0.2, 2.5, 500.0], [0, 0, 0, 1]])
RAS[:3, :3] = np.linalg.qr(RAS[:3, :3])[0] * [0.7, 0.8, 3.0]
SHAPE = (11, 7, 5)  # i, j, k


def image(array: np.ndarray | None = None, *, sform: int = 1, qform: int = 1) -> nib.Nifti1Image:
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) - 100 if array is None else array
    made = nib.Nifti1Image(array, RAS, dtype=array.dtype)
    made.set_sform(RAS if sform else None, code=sform)
    made.set_qform(RAS if qform else None, code=qform)
    made.header.set_xyzt_units("mm")
    return made


def save(made: nib.Nifti1Image, path: Path) -> Path:
    nib.save(made, path)
    return path


def patch(path: Path, offset: int, values: bytes) -> None:
    """Overwrite bytes of a plain .nii (offsets as in nifti1.h)."""
    data = bytearray(path.read_bytes())
    data[offset : offset + len(values)] = values
    path.write_bytes(data)


@pytest.mark.parametrize("forms", [(1, 1), (2, 0), (0, 1)])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_voxels_keep_their_world_positions(tmp_path: Path, name: str, forms: tuple[int, int]) -> None:
    volume = read_volume(save(image(sform=forms[0], qform=forms[1]), tmp_path / name))
    assert volume.array.shape == (5, 7, 11) and volume.array.dtype == np.int16
    for i, j, k in [(0, 0, 0), (10, 6, 4), (3, 1, 2)]:
        x, y, z = (RAS @ [i, j, k, 1])[:3]
        np.testing.assert_allclose((volume.affine @ [k, j, i, 1])[:3], (-x, -y, z), atol=1e-3)
        assert volume.array[k, j, i] == np.ravel_multi_index((i, j, k), SHAPE) - 100
    np.testing.assert_allclose(read_nifti_grid(tmp_path / name).affine, volume.affine)


def test_a_left_handed_qform_alone(tmp_path: Path) -> None:
    made = image(sform=0)
    mirrored = RAS * [1, 1, -1, 1] if np.linalg.det(RAS[:3, :3]) > 0 else RAS
    made.set_qform(mirrored, code=1)
    volume = read_volume(save(made, tmp_path / "a.nii"))
    assert float(made.header["pixdim"][0]) == -1.0
    x, y, z = (mirrored @ [10, 6, 4, 1])[:3]
    np.testing.assert_allclose((volume.affine @ [4, 6, 10, 1])[:3], (-x, -y, z), atol=1e-3)


def test_nifti_2_and_big_endian(tmp_path: Path) -> None:
    plain = read_volume(save(image(), tmp_path / "a.nii"))
    second = read_volume(save(nib.Nifti2Image.from_image(image()), tmp_path / "b.nii"))
    stored = np.asarray(image().dataobj).astype(">i2")
    swapped = nib.Nifti1Image(stored, RAS, nib.Nifti1Header(endianness=">"), dtype=">i2")
    swapped.set_sform(RAS, code=1)
    third = read_volume(save(swapped, tmp_path / "c.nii"))
    for other in (second, third):
        np.testing.assert_array_equal(other.array, plain.array)
        np.testing.assert_allclose(other.affine, plain.affine, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "slope", "inter", "expected", "factor"),
    [
        (np.uint8, 1, 0, np.int16, 1),
        (np.int32, 1, 0, np.int16, 1),
        (np.int64, 1, 0, np.int16, 1),
        (np.int16, 2, -1024, np.int16, 1),
        (np.int16, 0, 5, np.int16, 1),  # a slope of 0 means no scaling at all
        (np.int16, 0.5, 3, np.float32, 1),
        (np.float64, 1, 0, np.float32, 1),
        (np.int32, 1, 0, np.float32, 1000),
    ],
)
def test_types_and_scaling(
    tmp_path: Path, dtype: type, slope: float, inter: float, expected: type, factor: int
) -> None:
    stored = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 200 * factor).astype(dtype)
    path = save(image(stored), tmp_path / "a.nii")
    patch(path, 112, np.array([slope, inter], "<f4").tobytes())
    array = read_volume(path).array
    assert array.dtype == expected
    scaled = stored.astype(float) * slope + inter if slope else stored
    np.testing.assert_array_equal(array, scaled.transpose(2, 1, 0))


@pytest.mark.parametrize(("unit", "scale"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0), ("unknown", 1.0)])
def test_units(tmp_path: Path, unit: str, scale: float) -> None:
    made = image()
    made.header.set_xyzt_units(unit)
    expected = read_volume(save(image(), tmp_path / "mm.nii")).affine[:3]
    if unit == "micron":
        made.set_sform(RAS * 1000, code=1)  # else corners are too near to tell
        made.set_qform(RAS * 1000, code=1)
        scale = 1.0
    np.testing.assert_allclose(read_volume(save(made, tmp_path / "a.nii")).affine[:3], expected * scale, rtol=1e-5)


def test_one_volume_in_four_axes_is_read_and_several_are_refused(tmp_path: Path) -> None:
    assert read_volume(save(image(np.ones((*SHAPE, 1), np.int16)), tmp_path / "a.nii")).array.shape == (5, 7, 11)
    with pytest.raises(InputError, match=r"3 volumes \[11, 7, 5, 3\]"):
        read_volume(save(image(np.ones((*SHAPE, 3), np.int16)), tmp_path / "b.nii"))
    with pytest.raises(InputError, match=r"2 axes \[11, 7\]"):
        read_volume(save(image(np.ones((11, 7), np.int16)), tmp_path / "c.nii"))


def test_colours_and_complex_numbers_are_refused(tmp_path: Path) -> None:
    rgb = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    for name, array in (("rgb", rgb), ("complex", np.zeros(SHAPE, np.complex64))):
        with pytest.raises(InputError, match="colours or complex"):
            read_volume(save(image(array), tmp_path / f"{name}.nii"))


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3], array[0, 0, 0] = np.nan, np.inf
    with pytest.raises(InputError, match=r"a\.nii\.gz: 2 voxels are NaN or infinite"):
        read_volume(save(image(array), tmp_path / "a.nii.gz"))


def test_forms(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="neither sform nor qform"):
        read_volume(save(image(sform=0, qform=0), tmp_path / "a.nii"))
    made = image()
    moved = RAS.copy()
    moved[0, 3] += 1.5
    made.set_qform(moved, code=1)
    with pytest.raises(GeometryError, match=r"disagree by 1\.50 mm"):
        read_volume(save(made, tmp_path / "b.nii"))


@pytest.mark.parametrize(
    ("offset", "values", "text"),
    [
        (80, np.array([0.0], "<f4").tobytes(), "voxel spacing"),
        (84, np.array([-0.8], "<f4").tobytes(), "voxel spacing"),
        (80, np.array([np.nan], "<f4").tobytes(), "voxel spacing"),
        (280, np.array([np.nan], "<f4").tobytes(), "no finite numbers"),
        (280, np.array([5.0], "<f4").tobytes(), "disagree"),
        (123, b"\x05", "unit code 5"),
        (40, np.array([9], "<i2").tobytes(), "axes"),
        (42, np.array([-11], "<i2").tobytes(), "axes"),
        (42, np.array([30000], "<i2").tobytes(), "its header asks for"),
        (70, np.array([999], "<i2").tobytes(), "broken NIfTI header"),
        (108, np.array([10.0], "<f4").tobytes(), "inside the header"),
        (116, np.array([np.inf], "<f4").tobytes(), "broken NIfTI header"),
        (344, b"oops", "not a NIfTI file"),
    ],
)
def test_broken_headers_are_refused(tmp_path: Path, offset: int, values: bytes, text: str) -> None:
    path = save(image(), tmp_path / "a.nii")
    patch(path, 112, np.array([1.0, 0.0], "<f4").tobytes())
    patch(path, offset, values)
    with pytest.raises(MedsegError, match=text) as caught:
        read_volume(path)
    assert "a.nii" in str(caught.value) and "\n" not in str(caught.value)


def test_sheared_axes_are_refused(tmp_path: Path) -> None:
    made = image(qform=0)
    sheared = RAS.copy()
    sheared[:3, 1] += 0.1 * sheared[:3, 2]
    made.set_sform(sheared, code=1)
    with pytest.raises(GeometryError, match="sheared"):
        read_volume(save(made, tmp_path / "a.nii"))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.98])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated_files_are_refused(tmp_path: Path, rng: np.random.Generator, name: str, share: float) -> None:
    path = save(image(rng.integers(-999, 999, SHAPE).astype(np.int16)), tmp_path / name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=rf"{name}: (truncated|not a NIfTI)"):
        read_volume(path)


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    path = save(image(), tmp_path / "a.nii.gz")
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF  # in the CRC-32 of the trailer, RFC 1952
    path.write_bytes(data)
    with pytest.raises(InputError, match="compressed data is damaged"):
        read_volume(path)


def test_a_header_that_asks_for_terabytes_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = save(image(), tmp_path / "a.nii")
    patch(path, 42, np.array([30000, 30000, 30000], "<i2").tobytes())
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    for name in ("a.nii", "a.nii.gz"):
        with pytest.raises(InputError, match="its header asks for 54000000000352"):
            read_volume(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8, np.uint16, np.int32, bool])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_written_files_come_back_and_are_the_same_every_time(
    tmp_path: Path, oblique_geometry: VolumeGeometry, rng: np.random.Generator, suffix: str, dtype: type
) -> None:
    array = rng.integers(0, 2 if dtype is bool else 200, oblique_geometry.spatial_shape).astype(dtype)
    volume = Volume(array, oblique_geometry.affine, "PATIENT")
    path = tmp_path / "new" / f"a{suffix}"
    write_volume(path, volume)
    first = path.read_bytes()
    write_volume(path, volume)
    assert path.read_bytes() == first and [p.name for p in path.parent.iterdir()] == [path.name]
    back = nib.load(path)
    assert back.get_data_dtype() == (np.uint8 if dtype is bool else dtype)
    np.testing.assert_array_equal(np.asarray(back.dataobj).transpose(2, 1, 0), array)
    assert back.header.get_xyzt_units()[0] == "mm"
    assert (int(back.header["sform_code"]), int(back.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(back.get_qform(), back.get_sform(), atol=1e-3)
    np.testing.assert_allclose(read_volume(path).affine, volume.affine, atol=1e-4)


def test_types_that_nifti_lacks_are_refused(tmp_path: Path, oblique_geometry: VolumeGeometry) -> None:
    array = np.zeros(oblique_geometry.spatial_shape, np.float16)
    with pytest.raises(InputError, match=r"a\.nii: cannot hold values of type float16"):
        write_volume(tmp_path / "a.nii", Volume(array, oblique_geometry.affine, "PATIENT"))
    assert list(tmp_path.iterdir()) == []


def test_real_images_agree_with_simpleitk(data_dir: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    for path in (
        data_dir / "ct_torso_3mm" / "ct.nii.gz",
        next((data_dir / "ct_vertebrae").glob("*_ct.nii.gz")),
        data_dir / "rtstruct" / "sarcoma_001" / "CT" / "nifti" / "image" / "image.nii.gz",
    ):
        image = sitk.ReadImage(str(path))
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image))
        last = np.array(volume.array.shape) - 1
        for index in (np.zeros(3, int), last, last // 3):
            expected = image.TransformIndexToPhysicalPoint([int(n) for n in index[::-1]])
            np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], expected, atol=1e-3)
