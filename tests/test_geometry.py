"""Grids: axis orders, flips and oblique directions against nibabel and highdicom; refusals."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from highdicom import RGB_COLOR_CHANNEL_DESCRIPTOR, Volume, VolumeGeometry
from numpy.typing import NDArray

from medseg.errors import ConfigError, GeometryError
from medseg.values.geometry import (
    ACQUISITION,
    IDENTITY,
    AxisMap,
    check_affine,
    check_volume,
    corners_of,
    describe_grid,
    grid_map,
    make_volume,
    orientation_map,
    same_grid,
    spacing_of,
)

FLIPS = list(product((False, True), repeat=3))
ALL_MAPS = [AxisMap(order=order, flips=flips) for order, flips in product(permutations(range(3)), FLIPS)]
ORIENTATIONS = ["HPL", "FAR", "LPH", "RAF", "AHL", "PLF"]


@pytest.fixture
def volume(oblique_geometry: VolumeGeometry) -> Volume:
    array = np.arange(5 * 7 * 11, dtype=np.int16).reshape(5, 7, 11)
    return Volume(array, oblique_geometry.affine, "PATIENT", frame_of_reference_uid="1.2.3")


def world_of_values(volume: Volume) -> NDArray[np.float64]:
    """Return the world position of every voxel, ordered by the voxel's value (all different)."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in volume.spatial_shape], indexing="ij"), axis=-1)
    world = index.reshape(-1, 3) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return world[np.argsort(volume.array.ravel())]


def ras_of(volume: VolumeGeometry | Volume) -> NDArray[np.float64]:
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine


def test_there_are_48_maps() -> None:
    assert len(ALL_MAPS) == 48


@pytest.mark.parametrize("axis_map", ALL_MAPS, ids=str)
def test_axis_maps_keep_every_voxel_in_its_place_and_can_be_undone(volume: Volume, axis_map: AxisMap) -> None:
    moved = axis_map.volume(volume)
    np.testing.assert_allclose(world_of_values(moved), world_of_values(volume), atol=1e-9)
    assert moved.spatial_shape == axis_map.shape(volume.spatial_shape) == axis_map.geometry(volume).spatial_shape
    assert moved.frame_of_reference_uid == "1.2.3"
    back = axis_map.inverse().volume(moved)
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-9)


@pytest.mark.parametrize("axis_map", ALL_MAPS, ids=str)
def test_offsets_of_crops_follow(volume: Volume, axis_map: AxisMap) -> None:
    offset, size = (1, 2, 3), (2, 4, 7)
    crop = volume.array[tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))]
    new_offset, new_size = axis_map.offset(offset, size, volume.spatial_shape), axis_map.shape(size)
    moved = axis_map.array(volume.array)
    again = moved[tuple(slice(o, o + n) for o, n in zip(new_offset, new_size, strict=True))]
    np.testing.assert_array_equal(again, axis_map.array(crop))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_agrees_with_highdicom_and_nibabel(volume: Volume, orientation: str) -> None:
    wanted = tuple(orientation.translate(str.maketrans("HF", "SI")))
    for axis_map in ALL_MAPS:
        source = axis_map.volume(volume)
        found = orientation_map(source, orientation).volume(source)
        expected = source.to_patient_orientation(orientation)
        np.testing.assert_array_equal(found.array, expected.array)
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)
        assert nib.aff2axcodes(ras_of(found)) == wanted


def test_orientation_of_a_steep_oblique_grid_is_the_best_assignment() -> None:
    # turned 44 degrees about z: a greedy choice per axis may pick the same world axis twice
    angle = np.deg2rad(44.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn[:, [2, 1, 0]] * [2.0, 0.9, 0.7]
    grid = VolumeGeometry(affine, (3, 4, 5), "PATIENT")
    assert orientation_map(grid, "HPL") == IDENTITY
    assert nib.aff2axcodes(ras_of(grid)) == ("S", "P", "L")


def test_acquisition_keeps_the_stored_axes(volume: Volume) -> None:
    for axis_map in ALL_MAPS[::5]:
        assert orientation_map(axis_map.volume(volume), ACQUISITION) == IDENTITY


@pytest.mark.parametrize("orientation", ["HP", "HPA", "XYZ", "HHL", "", "HPLL"])
def test_unknown_orientations_are_refused(volume: Volume, orientation: str) -> None:
    with pytest.raises(ConfigError, match="expected one each of L/R, P/A and H/F"):
        orientation_map(volume, orientation)


def test_grid_map_finds_every_order_and_flip(volume: Volume) -> None:
    for axis_map in ALL_MAPS:
        target = axis_map.geometry(volume)
        found = grid_map(volume, target)
        assert found == axis_map
        assert same_grid(target, volume)


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (3.0, 2.0, 2.0)])
def test_grid_map_on_cubes_goes_by_direction_not_shape(spacing: tuple[float, float, float]) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(np.array([[1.0, 0.2, 0.1], [0.3, 1.0, -0.2], [-0.1, 0.4, 1.0]]))[0] * spacing
    affine[:3, 3] = (-20.0, 5.0, 300.0)
    cube = Volume(np.arange(64).reshape(4, 4, 4), affine, "PATIENT")
    for axis_map in ALL_MAPS:
        target = axis_map.volume(cube)
        found = grid_map(cube, target)
        assert found is not None
        np.testing.assert_array_equal(found.array(cube.array), target.array)


def test_grid_map_is_judged_at_the_far_corner(volume: Volume) -> None:
    near = volume.affine.copy()
    near[:3, 3] += (0.004, 0.0, 0.004)
    far = volume.affine.copy()
    far[:3, 3] += (0.0, 0.02, 0.0)
    stretched = volume.affine.copy()
    stretched[:3, 2] *= 1 + 0.02 / (10 * 0.7)  # right at the origin, 0.02 mm off after ten voxels
    shape = volume.spatial_shape
    assert same_grid(volume, VolumeGeometry(near, shape, "PATIENT"))
    assert not same_grid(volume, VolumeGeometry(far, shape, "PATIENT"))
    assert not same_grid(volume, VolumeGeometry(stretched, shape, "PATIENT"))
    assert same_grid(volume, VolumeGeometry(far, shape, "PATIENT"), tolerance_mm=0.03)
    assert not same_grid(volume, VolumeGeometry(volume.affine, (5, 7, 10), "PATIENT"))


def test_grid_map_of_single_slices(oblique_geometry: VolumeGeometry) -> None:
    single = VolumeGeometry(oblique_geometry.affine, (1, 7, 11), "PATIENT")
    for axis_map in ALL_MAPS:
        target = axis_map.geometry(single)
        found = grid_map(single, target)
        assert found is not None
        np.testing.assert_allclose(
            corners_of(found.geometry(single).affine, target.spatial_shape),
            corners_of(target.affine, target.spatial_shape),
            atol=1e-9,
        )


def test_spacing_and_corners(volume: Volume) -> None:
    assert spacing_of(volume) == pytest.approx((3.0, 0.8, 0.7))
    assert spacing_of(volume) == pytest.approx(volume.spacing)
    np.testing.assert_allclose(spacing_of(volume), nib.affines.voxel_sizes(ras_of(volume)))
    corners = corners_of(volume.affine, volume.spatial_shape)
    np.testing.assert_allclose(corners[0], volume.affine[:3, 3])
    np.testing.assert_allclose(corners[-1], (volume.affine @ [4, 6, 10, 1])[:3])
    assert describe_grid(volume) == "5 x 7 x 11 voxels of 3 x 0.8 x 0.7 mm at (-37.2, 51.9, -813.4) LPS"


def test_a_sound_affine_comes_back_unchanged(volume: Volume) -> None:
    for axis_map in ALL_MAPS:  # left-handed ones too
        affine = axis_map.geometry(volume).affine
        np.testing.assert_array_equal(check_affine(affine, axis_map.shape((5, 7, 11)), "x"), affine)


@pytest.mark.parametrize("axis_map", ALL_MAPS[::7], ids=str)
def test_small_shear_is_polished_and_keeps_spacing_and_handedness(volume: Volume, axis_map: AxisMap) -> None:
    affine, shape = axis_map.geometry(volume).affine, axis_map.shape((5, 7, 11))
    sheared = affine.copy()
    sheared[:3, 0] += 1e-3 * affine[:3, 1]
    polished = check_affine(sheared, shape, "x")
    axes = polished[:3, :3] / np.linalg.norm(polished[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(polished[:3, :3], axis=0), np.linalg.norm(sheared[:3, :3], axis=0))
    assert np.sign(np.linalg.det(polished[:3, :3])) == np.sign(np.linalg.det(affine[:3, :3]))
    moved = np.linalg.norm(corners_of(polished, shape) - corners_of(sheared, shape), axis=1).max()
    assert 0 < moved < 0.05


def test_the_same_shear_is_refused_on_a_long_volume(volume: Volume) -> None:
    sheared = volume.affine.copy()
    sheared[:3, 0] += 1e-3 * volume.affine[:3, 1]
    check_affine(sheared, (5, 7, 11), "x")
    with pytest.raises(GeometryError, match="a.nii: the axes are sheared .a corner of the volume is 0.*mm off"):
        check_affine(sheared, (300, 512, 512), "a.nii")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.__setitem__((0, 3), np.nan), "not a finite 4 x 4 matrix"),
        (lambda a: a.__setitem__((1, 1), np.inf), "not a finite 4 x 4 matrix"),
        (lambda a: a.__setitem__((slice(0, 3), 1), 0.0), "expected more than zero along every axis"),
        (lambda a: a.__setitem__((3, 0), 0.1), "last row"),
        (lambda a: a.__setitem__((slice(0, 3), 1), a[:3, 0]), "sheared"),
    ],
)
def test_broken_affines_are_refused(volume: Volume, change, message: str) -> None:
    affine = volume.affine.copy()
    change(affine)
    with pytest.raises(GeometryError, match=message):
        check_affine(affine, (5, 7, 11), "a.nii")


def test_broken_shapes_are_refused(volume: Volume) -> None:
    with pytest.raises(GeometryError, match="expected three axes"):
        check_affine(volume.affine, (5, 7), "x")
    with pytest.raises(GeometryError, match="at least one voxel"):
        check_affine(volume.affine, (5, 0, 7), "x")
    with pytest.raises(GeometryError, match="4 x 4"):
        check_affine(np.eye(3), (5, 7, 11), "x")
    channels = {RGB_COLOR_CHANNEL_DESCRIPTOR: ["R", "G", "B"]}
    coloured = Volume(np.zeros((5, 7, 11, 3), np.uint8), volume.affine, "PATIENT", channels=channels)
    with pytest.raises(GeometryError, match="expected .slices, rows, columns"):
        check_volume(coloured, "x")


def test_check_volume_refuses_a_position_that_highdicom_accepts(volume: Volume) -> None:
    affine = volume.affine.copy()
    affine[0, 3] = np.nan
    with pytest.raises(GeometryError, match="not a finite"):
        check_volume(Volume(volume.array, affine, "PATIENT"), "x")
    checked = make_volume(volume.array, volume.affine, "x", frame_of_reference_uid="1.2.3")
    assert checked.frame_of_reference_uid == check_volume(volume, "x").frame_of_reference_uid == "1.2.3"
