"""What is written is read back in its place: 48 axis orders and flips, straight and oblique, in every format.

Each file is also read by libraries that had no part in writing it, and files that they wrote are read by medseg.
Voxels are compared in the world, by a function that knows nothing of axis orders (tests/grids.py).
"""

import shutil
import subprocess
import sys
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from grids import FLIPPED_RAS, GRIDS, HALF, assert_same_voxels, of_nibabel, of_ours, of_simpleitk
from highdicom import Volume, VolumeGeometry
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from medseg.io import read_instances, read_volume, write_ct_series, write_instances, write_volume
from medseg.io.dicom_context import read_dicom_context
from medseg.io.dicom_seg import read_dicom_seg
from medseg.io.dicom_seg_writer import write_dicom_seg
from medseg.io.nifti4d import read_nifti4d, write_nifti4d
from medseg.labels import LabelTable
from medseg.values.instances import InstanceSet

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
LABELS = LabelTable.from_names(["liver", "lesion"], kinds={"lesion": "ids"})


def distinct(grid: VolumeGeometry) -> Volume:
    """Return a volume whose voxels all differ, in no order that an axis could explain."""
    count = int(np.prod(grid.spatial_shape))
    values = np.random.default_rng(8).permutation(count).astype(np.int16) - 200
    return Volume(values.reshape(grid.spatial_shape), grid.affine, "PATIENT")


def objects_on(grid: VolumeGeometry) -> InstanceSet:
    """Return two overlapping objects, one within the other, and a single voxel in a corner of the volume."""
    masks = np.zeros((4, *grid.spatial_shape), bool)
    masks[0, 1:4, 1:6, 2:9] = True
    masks[1, 2:5, 3:7, 5:11] = True
    masks[2, 2, 4, 6] = masks[3, 0, 0, -1] = True
    return InstanceSet.from_masks(list(zip((1, 2, 2, 1), masks, strict=True)), grid, LABELS)


@pytest.mark.parametrize("name", GRIDS)
def test_files_of_volumes(name: str, tmp_path: Path) -> None:
    volume = distinct(GRIDS[name])
    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(np.linalg.norm(volume.affine[:3, :3], axis=0)[::-1].tolist())
    image.SetDirection((volume.affine[:3, 2::-1] / np.array(image.GetSpacing())).ravel().tolist())
    image.SetOrigin(volume.affine[:3, 3].tolist())
    assert_same_voxels(of_simpleitk(image), of_ours(volume), "the test's own image")
    for suffix in SUFFIXES:
        ours = tmp_path / f"ours{suffix}"
        write_volume(ours, volume)
        found = read_volume(ours)
        np.testing.assert_array_equal(found.array, volume.array)  # files keep the order of axes
        assert_same_voxels(of_ours(found), of_ours(volume), suffix)
        assert_same_voxels(of_simpleitk(sitk.ReadImage(str(ours))), of_ours(volume), f"SimpleITK of {suffix}")
        theirs = tmp_path / f"theirs{suffix}"
        sitk.WriteImage(image, str(theirs))
        assert_same_voxels(of_ours(read_volume(theirs)), of_ours(volume), f"{suffix} of SimpleITK")
    for suffix in SUFFIXES[:2]:
        assert_same_voxels(of_nibabel(nib.load(tmp_path / f"ours{suffix}")), of_ours(volume), f"nibabel of {suffix}")
        theirs = tmp_path / f"nibabel{suffix}"
        nib.save(nib.Nifti1Image(volume.array, FLIPPED_RAS @ volume.affine), theirs)
        assert_same_voxels(of_ours(read_volume(theirs)), of_ours(volume), f"{suffix} of nibabel")


@pytest.mark.parametrize("name", HALF)
def test_dicom_series(name: str, tmp_path: Path) -> None:
    volume = distinct(GRIDS[name])
    folder = write_ct_series(tmp_path / "series", volume, seed=1, description="round trip")
    found = read_volume(folder)
    assert_same_voxels(of_ours(found), of_ours(volume), "medseg")
    datasets = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    theirs = hd.get_volume_from_series(datasets, apply_real_world_transform=False)
    assert_same_voxels(of_ours(theirs), of_ours(volume), "highdicom")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    assert_same_voxels(of_simpleitk(reader.Execute()), of_ours(volume), "SimpleITK")


def test_dicom_series_as_dcm2niix_sees_them(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("dcm2niix")
    command = str(program) if program.exists() else shutil.which("dcm2niix")
    if command is None:
        pytest.skip("dcm2niix is not installed (pip install dcm2niix)")
    for number, grid in enumerate(GRIDS.values()):
        write_ct_series(tmp_path / "in" / str(number), distinct(grid), seed=number, description=f"grid{number}")
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [command, "-b", "n", "-z", "n", "-f", "%d", "-o", str(tmp_path / "out"), str(tmp_path / "in")],
        capture_output=True, text=True,
    )  # fmt: skip
    for number, (name, grid) in enumerate(GRIDS.items()):
        path = tmp_path / "out" / f"grid{number}.nii"
        assert path.exists(), (name, sorted((tmp_path / "out").iterdir())[:5], done.stdout[-2000:])
        volume = distinct(grid)
        assert_same_voxels(of_nibabel(nib.load(path)), of_ours(volume), f"dcm2niix of {name}")
        assert_same_voxels(of_ours(read_volume(path)), of_ours(volume), f"medseg of dcm2niix of {name}")


def masks_of(objects: InstanceSet) -> list[NDArray[np.bool_]]:
    return [objects.full_mask(instance.id) for instance in objects]


def assert_same_objects(found: InstanceSet, expected: InstanceSet, what: str) -> None:
    """Compare labels and, in the world, masks."""
    assert [found.labels[i.label].name for i in found] == [expected.labels[i.label].name for i in expected], what
    for number, (mask, wanted) in enumerate(zip(masks_of(found), masks_of(expected), strict=True), start=1):
        assert_same_voxels(
            (mask, found.geometry.affine), (wanted, expected.geometry.affine), f"{what}, object {number}"
        )


@pytest.mark.parametrize("name", HALF)
def test_files_of_objects(name: str, tmp_path: Path) -> None:
    objects = objects_on(GRIDS[name])
    affine = objects.geometry.affine
    write_instances(tmp_path / "a.seg.nrrd", objects)
    assert_same_objects(read_instances(tmp_path / "a.seg.nrrd"), objects, ".seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    layers = sitk.GetArrayFromImage(image)
    for number, wanted in enumerate(masks_of(objects)):
        value, layer = (int(image.GetMetaData(f"Segment{number}_{key}")) for key in ("LabelValue", "Layer"))
        place = of_simpleitk(sitk.VectorIndexSelectionCast(image, layer))[1]
        assert_same_voxels((layers[..., layer] == value, place), (wanted, affine), ".seg.nrrd in SimpleITK")

    write_nifti4d(tmp_path / "b.nii.gz", objects)
    assert_same_objects(read_nifti4d(tmp_path / "b.nii.gz"), objects, "4-D NIfTI")
    channels, place = of_nibabel(nib.load(tmp_path / "b.nii.gz"))
    for number, wanted in enumerate(masks_of(objects)):
        assert_same_voxels((channels[..., number] > 0, place), (wanted, affine), "4-D NIfTI in nibabel")

    write_instances(tmp_path / "c.nii.gz", objects, overlap="smaller")
    flat = objects.to_labelmap("smaller").array
    found = read_instances(tmp_path / "c.nii.gz")
    for instance in found:
        mask = found.full_mask(instance.id)
        assert_same_voxels((mask, found.geometry.affine), (flat == instance.id, affine), "ids")
    assert_same_voxels(of_simpleitk(sitk.ReadImage(str(tmp_path / "c.nii.gz"))), (flat, affine), "ids in SimpleITK")


@pytest.mark.parametrize("name", HALF[1::2])
def test_dicom_seg(name: str, tmp_path: Path) -> None:
    series = write_ct_series(tmp_path / "series", distinct(GRIDS[name]), seed=1, description="round trip")
    context = read_dicom_context(series)
    objects = objects_on(GRIDS[name])  # in the order of axes of the grid, which need not be that of the series
    write_dicom_seg(tmp_path / "a.dcm", objects, context)
    assert_same_objects(read_dicom_seg(tmp_path / "a.dcm", context).instances, objects, "SEG")
    theirs = hd.seg.segread(tmp_path / "a.dcm").get_volume(combine_segments=False, skip_overlap_checks=True)
    full = theirs.match_geometry(context.geometry)  # SEG has no empty slices at its ends
    for number, wanted in enumerate(masks_of(objects)):
        mask = full.array[..., number] > 0
        assert_same_voxels((mask, full.affine), (wanted, objects.geometry.affine), "SEG in highdicom")


@st.composite
def any_grid(draw: st.DrawFn) -> VolumeGeometry:
    """Draw a grid: 1 to 9 voxels of 0.3 to 9 mm along each axis, any rotation, mirrored or not, anywhere."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=3, max_size=3)))
    spacing = draw(st.lists(st.floats(0.3, 9.0), min_size=3, max_size=3))
    quaternion = draw(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_quat(quaternion).as_matrix() * [draw(st.sampled_from([1, -1])), 1, 1] * spacing
    affine[:3, 3] = draw(st.lists(st.floats(-2000, 2000), min_size=3, max_size=3))
    return VolumeGeometry(affine, shape, "PATIENT")


@settings(max_examples=40, deadline=None)
@given(grid=any_grid(), suffix=st.sampled_from(SUFFIXES))
def test_any_grid(grid: VolumeGeometry, suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    volume = distinct(grid)
    write_volume(folder / f"a{suffix}", volume)
    tolerance = 0.02 if suffix.startswith(".nii") else 1e-6  # NIfTI's numbers have 24 bits
    assert_same_voxels(of_ours(read_volume(folder / f"a{suffix}")), of_ours(volume), suffix, tolerance)
    assert_same_voxels(of_simpleitk(sitk.ReadImage(str(folder / f"a{suffix}"))), of_ours(volume), suffix, tolerance)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8", "bool"])
def test_every_type_of_voxels(kind: str, suffix: str, tmp_path: Path) -> None:
    grid = GRIDS["+S-P+L oblique"]
    array = np.arange(385).reshape(grid.spatial_shape).astype(kind)
    write_volume(tmp_path / f"a{suffix}", Volume(array, grid.affine, "PATIENT"))
    image = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
    found = sitk.GetArrayFromImage(image)
    assert found.dtype == (np.uint8 if kind == "bool" else array.dtype.newbyteorder("="))
    np.testing.assert_array_equal(found, array)
