"""Resampling of slices and of objects, against closed forms and slow oracles."""

import numpy as np
import pytest
from highdicom import VolumeGeometry
from scipy import ndimage

from medseg.labels import LabelTable
from medseg.values.geometry import AxisMap
from medseg.values.instances import InstanceSet
from medseg.values.resampling import line_weights, resample_crop, resample_instances, resample_plane, resampled_size


def slow_weights(source: int, target: int) -> np.ndarray:
    """Weigh every source pixel by a triangle around the target pixel's centre; edge values held."""
    width = max(1.0, source / target)
    out = np.zeros((target, source))
    for t in range(target):
        centre = (t + 0.5) * source / target - 0.5
        for tap in range(-2 * source, 3 * source):
            out[t, min(max(tap, 0), source - 1)] += max(0.0, 1 - abs(tap - centre) / width)
    return out / out.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("source", "target"), [(7, 7), (7, 11), (11, 7), (13, 3), (5, 40), (1, 4), (9, 1), (40, 17)])
def test_weights_follow_their_definition(source: int, target: int) -> None:
    np.testing.assert_allclose(line_weights(source, target), slow_weights(source, target), atol=1e-6)
    np.testing.assert_allclose(line_weights(source, target, target // 3, target // 2 + 1),
                               slow_weights(source, target)[target // 3 : target // 2 + 1], atol=1e-6)  # fmt: skip


@pytest.mark.parametrize(
    ("source", "target", "tolerance"), [(31, 31, 1e-5), (31, 77, 1e-5), (60, 12, 1e-5), (77, 31, 0.03), (60, 13, 0.03)]
)
def test_ramps_are_reproduced(source: int, target: int, tolerance: float) -> None:
    """A value that is linear in mm is the same after resampling, away from the edges.

    The few taps of a triangle that is no whole number of pixels wide leave some hundredths of a source pixel.
    """
    ramp = np.arange(source) + 0.5
    expected = (np.arange(target) + 0.5) * source / target
    inside = slice(int(np.ceil(target / source)) + 1, -int(np.ceil(target / source)) - 1)
    got = line_weights(source, target) @ ramp
    np.testing.assert_allclose(got[inside], expected[inside], rtol=0, atol=tolerance)
    assert (np.diff(got) >= -1e-6).all()


def test_sampling_down_averages_and_skips_nothing() -> None:
    """A triangle k pixels wide each way gives any pattern of period k its mean."""
    pattern = np.tile([10.0, 0.0, 0.0, 2.0], 8).astype(np.float32)
    down = line_weights(32, 8) @ pattern
    np.testing.assert_allclose(down[1:-1], 3.0, atol=1e-5)
    assert (line_weights(53, 7).sum(axis=0) > 0).all()


def test_planes_keep_constants_and_leading_axes(rng: np.random.Generator) -> None:
    out = resample_plane(np.full((2, 3, 7, 11), -7, np.int16), 5, 23)
    assert out.shape == (2, 3, 5, 23) and out.dtype == np.float32
    np.testing.assert_allclose(out, -7, atol=1e-5)
    noise = rng.normal(size=(7, 11))
    np.testing.assert_array_equal(resample_plane(noise, 7, 11), noise.astype(np.float32))
    expected = slow_weights(7, 4) @ noise @ slow_weights(11, 15).T
    np.testing.assert_allclose(resample_plane(noise, 4, 15), expected, atol=1e-5)


@pytest.mark.parametrize("target", [(19, 25), (7, 60), (40, 9), (50, 60), (3, 3)])
@pytest.mark.parametrize("window", [(0, 0, 19, 25), (0, 20, 4, 5), (3, 5, 9, 2), (18, 0, 1, 25), (7, 11, 1, 1)])
def test_a_crop_is_resampled_as_the_whole_slice_is(
    target: tuple[int, int], window: tuple[int, int, int, int], rng: np.random.Generator
) -> None:
    source = (19, 25)
    row, column, rows, columns = window
    crop = rng.random((3, rows, columns)) < 0.7
    whole = np.zeros((3, *source), bool)
    whole[:, row : row + rows, column : column + columns] = crop
    share, (first_row, first_column) = resample_crop(crop, (row, column), source, target)
    got = np.zeros((3, *target), np.float32)
    got[:, first_row : first_row + share.shape[1], first_column : first_column + share.shape[2]] = share
    np.testing.assert_allclose(got, resample_plane(whole, *target), atol=1e-6)
    assert got.min() >= 0 and got.max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("pixels", "spacing_mm", "target_mm", "expected"),
    [(512, 0.75, 1.5, 256), (100, 1.0, 3.0, 33), (1, 0.1, 5.0, 1), (7, 2.0, 0.5, 28)],
)
def test_the_size_covers_the_extent(pixels: int, spacing_mm: float, target_mm: float, expected: int) -> None:
    assert resampled_size(pixels, spacing_mm, target_mm) == expected


# Objects on other grids

ONE = LabelTable.from_names(["a"])


def grid(spacing: tuple[float, float, float], shape: tuple[int, int, int], angle: float = 0.0) -> VolumeGeometry:
    """A grid whose outer corner (not its first centre) lies at one point, turned about the slice axis."""
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]]) @ turn * spacing
    affine[:3, 3] = np.array([-40.0, 17.0, 300.0]) + affine[:3, :3] @ (0.5, 0.5, 0.5)
    return VolumeGeometry(affine, shape, "PATIENT")


def ball(geometry: VolumeGeometry, centre: np.ndarray, radius_mm: float) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, geometry.spatial_shape), indexing="ij"), axis=-1)
    world = index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    return np.linalg.norm(world - centre, axis=-1) <= radius_mm


def centroid(instances: InstanceSet, number: int) -> np.ndarray:
    index = np.argwhere(instances.full_mask(number)).mean(axis=0)
    return instances.geometry.affine[:3, :3] @ index + instances.geometry.affine[:3, 3]


def test_the_same_voxels_stay_the_same(rng: np.random.Generator, oblique_geometry: VolumeGeometry) -> None:
    masks = rng.random((2, 5, 7, 11)) < 0.4
    objects = InstanceSet.from_masks([(1, masks[0]), (1, masks[1])], oblique_geometry, ONE)
    axis_map = AxisMap(order=(2, 0, 1), flips=(True, False, True))
    found, kept = resample_instances(objects, axis_map.geometry(oblique_geometry))
    assert kept == (1, 2)
    for expected, got in zip(objects.moved(axis_map), found, strict=True):
        assert got.offset == expected.offset
        np.testing.assert_array_equal(got.mask, expected.mask)


def test_finer_voxels_repeat_the_coarse_ones(rng: np.random.Generator) -> None:
    mask = rng.random((3, 4, 5)) < 0.5
    objects = InstanceSet.from_masks([(1, mask)], grid((3.0, 2.0, 1.5), (3, 4, 5)), ONE)
    found = resample_instances(objects, grid((1.5, 1.0, 0.5), (6, 8, 15))).instances
    expected = mask.repeat(2, 0).repeat(2, 1).repeat(3, 2)
    np.testing.assert_array_equal(found.full_mask(1), expected)


def test_coarser_voxels_belong_by_half(rng: np.random.Generator) -> None:
    """Against block means; exact halves go by the centre, which here lies on an edge."""
    mask = ndimage.binary_opening(rng.random((12, 16, 20)) < 0.8, iterations=1)
    objects = InstanceSet.from_masks([(1, mask)], grid((1.0, 1.0, 1.0), (12, 16, 20)), ONE)
    found = resample_instances(objects, grid((2.0, 4.0, 4.0), (6, 4, 5))).instances
    share = mask.reshape(6, 2, 4, 4, 5, 4).mean(axis=(1, 3, 5))
    np.testing.assert_array_equal(found.full_mask(1)[share != 0.5], share[share != 0.5] > 0.5)


@pytest.mark.parametrize(
    ("spacing", "angle", "tolerance"),
    [((2.5, 0.8, 0.8), 0.3, 0.02), ((1.0, 1.0, 1.0), 0.7, 0.02), ((5, 3, 3), -0.4, 0.06)],
)
def test_volume_and_place_stay_on_turned_grids(
    spacing: tuple[float, float, float], angle: float, tolerance: float
) -> None:
    source = grid((1.25, 0.7, 0.9), (40, 70, 55))
    centre = source.affine[:3, :3] @ (20.0, 34.0, 27.0) + source.affine[:3, 3]
    objects = InstanceSet.from_masks([(1, ball(source, centre, 15.0)), (1, ball(source, centre + 5, 9.0))], source, ONE)
    target = grid(spacing, tuple(int(90 / s) for s in spacing), angle)  # type: ignore[arg-type]
    affine = target.affine.copy()
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(target.spatial_shape) / 2 + 0.3)
    found = resample_instances(objects, VolumeGeometry(affine, target.spatial_shape, "PATIENT")).instances
    for instance in objects:
        assert found.volume_ml(instance.id) == pytest.approx(objects.volume_ml(instance.id), rel=tolerance)
        moved = np.linalg.norm(centroid(found, instance.id) - centroid(objects, instance.id))
        assert moved < 0.15 * max(spacing)
    assert found[1].mask.any() and (found.full_mask(1) & found.full_mask(2)).any()


def test_half_a_voxel_of_shift_neither_grows_nor_shrinks() -> None:
    source = grid((1.0, 1.0, 1.0), (9, 9, 9))
    mask = np.zeros((9, 9, 9), bool)
    mask[2:6, 3:7, 1:8] = True
    affine = source.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ (0.5, 0.5, 0.5)
    found = resample_instances(
        InstanceSet.from_masks([(1, mask)], source, ONE), VolumeGeometry(affine, (9, 9, 9), "PATIENT")
    ).instances
    assert found[1].mask.shape == (4, 4, 7)
    assert found[1].voxels == 3 * 3 * 6 + 3 * 3 + 2 * 3 * 6  # three of the six faces; of edges it covers a quarter


@pytest.mark.parametrize("shift", [0.0, 0.4, 0.9])
def test_what_is_thinner_than_a_voxel_stays_in_one_piece(shift: float) -> None:
    source = grid((1.0, 1.0, 1.0), (24, 24, 24))
    masks = np.zeros((3, 24, 24, 24), bool)
    masks[0, 11] = True  # a plate of 1 mm
    masks[1, 5, 13, 2:22] = True  # a vessel
    masks[2, 17, 17, 6] = True  # a voxel
    objects = InstanceSet.from_masks([(1, mask) for mask in masks], source, ONE)
    affine = grid((5.0, 4.0, 4.0), (6, 8, 8)).affine.copy()
    affine[:3, 3] -= shift
    found, kept = resample_instances(objects, VolumeGeometry(affine, (6, 8, 8), "PATIENT"))
    assert kept == (1, 2, 3)
    for number, extent in [(1, (1, 6, 6)), (2, (1, 1, 5)), (3, (1, 1, 1))]:
        shape = found[number].mask.shape
        assert ndimage.label(found[number].mask, np.ones((3, 3, 3)))[1] == 1
        assert all(e <= n <= e + 1 for n, e in zip(shape, extent, strict=True)), (number, shape)


def test_what_lies_outside_is_left_out() -> None:
    source = grid((1.0, 1.0, 1.0), (9, 9, 9))
    masks = np.zeros((2, 9, 9, 9), bool)
    masks[0, 7:, 7:, 7:] = masks[1, :5, :5, :5] = True
    found, kept = resample_instances(
        InstanceSet.from_masks([(1, mask) for mask in masks], source, ONE), grid((1.0, 1.0, 1.0), (4, 4, 4))
    )
    assert kept == (2,) and found[1].mask.all() and found[1].mask.shape == (4, 4, 4)
