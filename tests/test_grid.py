"""The network's grid: independent of how a volume is stored, and back again."""

from itertools import permutations

import numpy as np
import pytest
from highdicom import Volume, VolumeGeometry
from network_fixtures import HPL, simple_case

from medseg.data.grid import BODY_MARGIN, body_window, to_network_grid
from medseg.values.detections import Detections
from medseg.values.geometry import AxisMap, grid_map, make_volume
from medseg.values.plan import InputPlan

PLAN = InputPlan(spacing_mm=(1.7, 2.3), air_threshold=-300.0)
STORED = [
    AxisMap(order=order, flips=((i & 1) > 0, (i & 2) > 0, (i & 4) > 0))  # type: ignore[arg-type]
    for i, order in enumerate(permutations(range(3)))
] + [AxisMap(order=(0, 1, 2), flips=(True, True, True))]


@pytest.mark.parametrize("stored", STORED, ids=lambda m: f"{m.order}{''.join('-+'[not f] for f in m.flips)}")
@pytest.mark.parametrize("intensity", ["window", "zscore"])
def test_the_array_does_not_depend_on_how_a_study_is_stored(stored: AxisMap, intensity: str) -> None:
    plan = InputPlan(spacing_mm=(1.7, 2.3), air_threshold=-300.0, intensity=intensity)  # type: ignore[arg-type]
    volume, _ = simple_case(1)
    expected = to_network_grid((volume,), plan)
    moved = stored.volume(volume)
    affine = moved.affine.astype(np.float32).astype(np.float64)  # as NIfTI keeps it
    grid = to_network_grid((make_volume(np.ascontiguousarray(moved.array), affine, "float32"),), plan)
    np.testing.assert_array_equal(grid.array, expected.array)
    assert grid.slice_spacing_mm == expected.slice_spacing_mm == 5.0
    assert (grid.rows, grid.columns) == (expected.rows, expected.columns)
    np.testing.assert_allclose(grid.geometry.affine, expected.geometry.affine, atol=1e-4)


def test_rounding_in_a_float32_affine_does_not_change_the_size() -> None:
    """10 pixels of 0.7 mm are 3.5 of 2 mm; 0.7 in float32 is a little less, and would give 3 and not 4."""
    affine = np.eye(4)
    affine[:3, :3] = HPL * [3.0, 0.7, 0.7]
    volume = make_volume(np.zeros((2, 10, 10), np.int16), affine, "exact")
    rounded = make_volume(volume.array, affine.astype(np.float32).astype(np.float64), "float32")
    shapes = [to_network_grid((v,), InputPlan(spacing_mm=(2.0, 2.0))).array.shape for v in (volume, rounded)]
    assert shapes == [(1, 2, 4, 4)] * 2


def test_an_oblique_grid_keeps_its_voxels(oblique_geometry: VolumeGeometry, rng: np.random.Generator) -> None:
    array = rng.integers(-200, 900, (5, 7, 11)).astype(np.int16)
    volume = Volume(array, oblique_geometry.affine, "PATIENT")
    turned = AxisMap(order=(2, 0, 1), flips=(True, False, True)).volume(volume)
    plan = InputPlan(spacing_mm=(0.8, 0.7))
    for stored in (volume, turned):
        grid = to_network_grid((stored,), plan)
        np.testing.assert_array_equal(grid.array, array[None])
        assert grid.slice_spacing_mm == 3.0 and grid.factors == (1.0, 1.0)


def test_pixels_are_those_of_the_plan_and_slices_stay() -> None:
    volume, _ = simple_case(1)
    grid = to_network_grid((volume,), PLAN)
    rows, columns = grid.rows[1] - grid.rows[0], grid.columns[1] - grid.columns[0]
    assert grid.array.shape == (1, 14, round(rows * 2.0 / 1.7), round(columns * 2.0 / 2.3))
    assert grid.array.dtype == np.int16
    assert to_network_grid((volume,), InputPlan(spacing_mm=(1, 1), orientation="acquisition")).array.shape[1] == 14
    cut_sideways = to_network_grid((volume,), InputPlan(spacing_mm=(5, 2), orientation="LPF"))
    assert cut_sideways.array.shape == (1, 68, round(60 * 2.0 / 5), round(14 * 5.0 / 2)) and (
        cut_sideways.slice_spacing_mm == 2.0
    )


def test_to_source_undoes_the_way_there() -> None:
    """Pixel edges of the cropped and resampled slice land on the edges of the source's window, boxes in proportion."""
    volume, _ = simple_case(2)
    grid = to_network_grid((volume,), PLAN)
    height, width = grid.array.shape[2:]
    boxes = np.array([[0, 0, width, height], [width / 4, height / 2, width / 2, height]], np.float32)
    found = Detections(
        slice_index=3,
        boxes=boxes,
        scores=np.full(2, 0.5, np.float32),
        labels=np.array([1, 2]),
        masks=np.zeros((2, 14, 14), np.float32),
    )
    back = grid.to_source(found)
    (r0, r1), (c0, c1) = grid.rows, grid.columns
    expected = [[c0, r0, c1, r1], [c0 + (c1 - c0) / 4, (r0 + r1) / 2, (c0 + c1) / 2, r1]]
    np.testing.assert_allclose(back.boxes, expected, atol=1e-5)
    again = back.shifted(-r0, -c0).scaled(*grid.factors)
    np.testing.assert_allclose(again.boxes, boxes, atol=1e-4)
    assert back.slice_index == 3 and back.masks is found.masks


def test_a_spot_is_found_again_where_it_was() -> None:
    """The centre of a bright block, seen in the network's array, maps to its centre in the source."""
    array = np.full((3, 50, 70), -1000, np.int16)
    array[:, 9:45, 13:66] = 0
    array[1, 20:28, 31:47] = 1000
    affine = np.eye(4)
    affine[:3, :3] = HPL * [4.0, 1.1, 0.9]
    grid = to_network_grid(
        (make_volume(array, affine, "block"),), InputPlan(spacing_mm=(2.0, 1.5), air_threshold=-300.0)
    )
    assert (grid.rows, grid.columns) == ((9 - BODY_MARGIN, 45 + BODY_MARGIN), (13 - BODY_MARGIN, 66 + BODY_MARGIN))
    weight = np.clip(grid.array[0, 1].astype(float), 0, None)
    rows, columns = np.indices(weight.shape) + 0.5
    y, x = (weight * rows).sum() / weight.sum(), (weight * columns).sum() / weight.sum()
    spot = Detections(
        slice_index=1,
        boxes=np.array([[x, y, x, y]], np.float32),
        scores=np.ones(1, np.float32),
        labels=np.array([1]),
        masks=np.zeros((1, 2, 2), np.float32),
    )
    np.testing.assert_allclose(grid.to_source(spot).boxes[0, :2], [39.0, 24.0], atol=0.05)
    place = grid.array_geometry.affine @ (1, y - 0.5, x - 0.5, 1)  # 0.5 is the centre of the first pixel, index 0
    np.testing.assert_allclose(place, affine @ (1, 23.5, 38.5, 1), atol=0.05)


def test_the_array_covers_the_window_it_was_cut_from(oblique_geometry: VolumeGeometry) -> None:
    """The outer corner of the first pixel and that of the last are those of the source's, in the patient."""
    volume = Volume(np.zeros((5, 7, 11), np.int16), oblique_geometry.affine, "PATIENT")
    grid = to_network_grid((volume,), InputPlan(spacing_mm=(0.5, 1.9)))
    found = grid.array_geometry
    assert found.spatial_shape == grid.array.shape[1:] == (5, 11, 4)
    for corner in (-0.5 * np.ones(3), np.array(found.spatial_shape) - 0.5):
        expected = np.where(corner < 0, -0.5, np.array([5, 7, 11]) - 0.5)
        there = found.affine @ (*corner, 1), grid.geometry.affine @ (*expected, 1)
        np.testing.assert_allclose(*there, atol=1e-9)


def test_body_window() -> None:
    array = np.full((3, 20, 30), -1000, np.int16)
    assert body_window(array, -300.0) == ((0, 20), (0, 30))  # nothing but air: everything
    array[1, 9, 2] = 0
    array[2, 12, 17] = -299
    assert body_window(array, -300.0) == ((5, 17), (0, 22))
    assert body_window(array, -299.0) == ((5, 14), (0, 7))
    assert body_window(array, None) == ((0, 20), (0, 30))


def test_standard_scores_have_mean_0_and_sd_1() -> None:
    volume, _ = simple_case(3)
    grid = to_network_grid((volume,), InputPlan(spacing_mm=(2.0, 2.0), intensity="zscore"))
    assert grid.array.dtype == np.float32
    assert abs(grid.array.mean(dtype=np.float64)) < 1e-5 and abs(grid.array.std(dtype=np.float64) - 1) < 1e-5
    flat = make_volume(np.full((2, 40, 40), 5, np.int16), volume.affine, "flat")
    np.testing.assert_array_equal(to_network_grid((flat,), InputPlan(spacing_mm=(2, 2), intensity="zscore")).array, 0)


def test_values_beyond_16_bits_are_clipped_not_wrapped() -> None:
    volume, _ = simple_case(3)
    array = np.full((2, 40, 40), 1e6, np.float32)
    array[1] = -1e6
    grid = to_network_grid((make_volume(array, volume.affine, "extreme"),), InputPlan(spacing_mm=(2, 2)))
    assert set(grid.array[0, 0].ravel()) == {32767} and set(grid.array[0, 1].ravel()) == {-32768}


@pytest.mark.parametrize(
    ("windows", "kept"),
    [
        (((0.0, 1.0),), True),
        (((-100.0, 300.0), (0.0, 63.0)), True),
        (((-100.0, 300.0), (0.0, 64.0)), False),
        (((0.0, 40000.0),), True),
    ],
)
def test_narrow_windows_keep_fractions(windows: tuple[tuple[float, float], ...], kept: bool) -> None:
    """Images of 0..1 rounded to whole numbers would be two values."""
    array = np.linspace(0, 1, 3 * 20 * 24, dtype=np.float32).reshape(3, 20, 24)
    affine = np.eye(4)
    affine[:3, :3] = HPL * [5.0, 2.0, 2.0]
    plan = InputPlan(spacing_mm=(2.0, 2.0), windows=windows)
    found = to_network_grid((make_volume(array, affine, "image"),), plan).array
    assert found.dtype == (np.float32 if kept else np.int16)
    np.testing.assert_allclose(found[0], array if kept else np.rint(array), atol=1e-6)


def test_the_axis_map_leads_from_the_source_to_the_grid() -> None:
    volume, _ = simple_case(3)
    moved = AxisMap(order=(1, 2, 0), flips=(True, False, True)).volume(volume)
    grid = to_network_grid((moved,), PLAN)
    assert grid_map(moved, grid.geometry) == grid.axis_map
    np.testing.assert_array_equal(grid.axis_map.array(moved.array), volume.array)
