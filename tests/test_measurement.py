"""Measurements against closed forms and brute force."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from highdicom import Volume, VolumeGeometry
from scipy.spatial.transform import Rotation

from medseg.errors import GeometryError
from medseg.labels import LabelTable
from medseg.metrics.measurement import measure, slice_diameters
from medseg.reporting.tables import MEASUREMENT_COLUMNS, write_measurements_csv
from medseg.values.geometry import AxisMap
from medseg.values.instances import Instance, InstanceSet

SHAPE = (5, 7, 11)
LABELS = LabelTable.from_names(["liver", "lesion"], kinds={"lesion": "ids"})
SPACING = (2.5, 0.8, 0.5)  # one voxel is 0.001 ml


def oblique(shape: tuple[int, int, int] = SHAPE) -> VolumeGeometry:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("zyx", [20, -10, 5], degrees=True).as_matrix() * SPACING
    affine[:3, 3] = (-31.5, 12.25, -104.0)
    return VolumeGeometry(affine, shape, "PATIENT")


def box(start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def image(geometry: VolumeGeometry) -> Volume:
    array = np.random.default_rng(5).integers(-1000, 1500, geometry.spatial_shape).astype(np.int16)
    return Volume(array, geometry.affine, "PATIENT")


def test_box_in_an_oblique_image() -> None:
    grid = oblique()
    mask = box((1, 2, 3), (3, 5, 7))  # 2 x 3 x 4
    volume = image(grid)
    (m,) = measure(InstanceSet.from_masks([(1, mask)], grid, LABELS), volume)
    assert (m.id, m.label, m.name, m.score, m.voxels) == (1, "liver", "liver", 1.0, 24)
    assert m.volume_ml == pytest.approx(0.024)
    assert m.bbox == ((1, 2, 3), (2, 4, 6))
    expected = (grid.affine @ (1.5, 3.0, 4.5, 1.0))[:3]
    np.testing.assert_allclose(m.centroid_mm, expected, atol=1e-12)
    values = volume.array[mask].astype(float)
    assert (m.mean, m.sd) == pytest.approx((values.mean(), values.std()))
    assert (m.minimum, m.maximum) == (values.min(), values.max())
    # 3 rows of 0.8 mm by 4 columns of 0.5 mm: diagonal of 2.4 x 2.0, and the width across it.
    diagonal = math.hypot(2.4, 2.0)
    assert m.long_axis_mm == pytest.approx(diagonal)
    assert m.short_axis_mm == pytest.approx(2 * 2.4 * 2.0 / diagonal)
    assert m.axis_slice == 1
    assert not m.touches_border and m.overlaps == {}


def test_centroid_of_an_irregular_object_equals_the_mean_of_its_points() -> None:
    grid = oblique()
    mask = np.random.default_rng(1).random(SHAPE) < 0.2
    (m,) = measure(InstanceSet.from_masks([(2, mask)], grid, LABELS), None)
    points = np.argwhere(mask) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    np.testing.assert_allclose(m.centroid_mm, points.mean(axis=0), atol=1e-10)
    assert all(math.isnan(v) for v in (m.mean, m.sd, m.minimum, m.maximum))


def test_a_mask_with_an_empty_margin_measures_the_object() -> None:
    padded = np.zeros((3, 4, 5), bool)
    padded[1, 1, 2] = True
    lone = Instance(id=1, label=1, mask=padded, offset=(0, 0, 0))
    (m,) = measure(InstanceSet(instances=(lone,), geometry=oblique(), labels=LABELS), None)
    assert m.bbox == ((1, 1, 2), (1, 1, 2)) and not m.touches_border and m.axis_slice == 1


def test_one_voxel() -> None:
    grid = oblique()
    volume = image(grid)
    (m,) = measure(InstanceSet.from_masks([(2, box((2, 3, 4), (3, 4, 5)))], grid, LABELS), volume)
    assert (m.voxels, m.name) == (1, "lesion 1")
    assert m.long_axis_mm == pytest.approx(math.hypot(0.8, 0.5))
    assert m.short_axis_mm == pytest.approx(2 * 0.8 * 0.5 / math.hypot(0.8, 0.5))
    assert m.mean == m.minimum == m.maximum == volume.array[2, 3, 4] and m.sd == 0.0


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("end", [0, 1])
def test_border(axis: int, end: int) -> None:
    start, stop = [1, 2, 3], [2, 3, 4]
    start[axis], stop[axis] = (SHAPE[axis] - 1, SHAPE[axis]) if end else (0, 1)
    (m,) = measure(InstanceSet.from_masks([(1, box(tuple(start), tuple(stop)))], oblique(), LABELS), None)
    assert m.touches_border


def test_lesions_in_a_liver_and_their_names() -> None:
    liver, first, second = box((0, 0, 0), (4, 6, 6)), box((1, 1, 1), (3, 3, 3)), box((1, 2, 4), (2, 4, 8))
    found = measure(InstanceSet.from_masks([(2, first), (1, liver), (2, second)], oblique(), LABELS), None)
    assert [m.name for m in found] == ["lesion 1", "liver", "lesion 2"]
    assert found[0].overlaps == {2: pytest.approx(0.008)}
    assert found[1].overlaps == {1: pytest.approx(0.008), 3: pytest.approx(0.004)}
    assert found[2].overlaps == {2: pytest.approx(0.004)}  # half of its 8 voxels


def test_nothing() -> None:
    grid = oblique()
    assert measure(InstanceSet(instances=(), geometry=grid, labels=LABELS), image(grid)) == []


def test_an_image_with_permuted_axes_measures_the_same() -> None:
    grid = oblique()
    volume = image(grid)
    instances = InstanceSet.from_masks([(1, box((1, 2, 3), (3, 5, 7)))], grid, LABELS)
    moved = AxisMap(order=(2, 0, 1), flips=(False, True, True)).volume(volume)
    assert measure(instances, moved) == measure(instances, volume)


def test_an_image_elsewhere_is_refused() -> None:
    grid = oblique()
    affine = grid.affine.copy()
    affine[2, 3] += 1
    with pytest.raises(GeometryError, match="another grid"):
        measure(InstanceSet(instances=(), geometry=grid, labels=LABELS), Volume(np.zeros(SHAPE), affine, "PATIENT"))


def brute_diameters(section: np.ndarray, row_mm: float, column_mm: float) -> tuple[float, float]:
    """All four corners of every pixel, all pairs."""
    corners = np.concatenate([np.argwhere(section) + (dr, dc) for dr in (0, 1) for dc in (0, 1)]) * (row_mm, column_mm)
    difference = corners[:, None] - corners[None]
    distance = np.linalg.norm(difference, axis=-1)
    a, b = np.unravel_index(distance.argmax(), distance.shape)
    across = corners @ np.array([-difference[a, b, 1], difference[a, b, 0]]) / distance[a, b]
    return distance.max(), np.ptp(across)


def ellipse(angle: float, long: float, short: float, row_mm: float, column_mm: float) -> np.ndarray:
    y, x = np.mgrid[:60, :70]
    y, x = (y - 29.3) * row_mm, (x - 34.8) * column_mm
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return (u / long) ** 2 + (v / short) ** 2 <= 1


@pytest.mark.parametrize("angle", np.radians([0, 17, 45, 80, 123]))
def test_rotated_ellipse(angle: float) -> None:
    section = ellipse(angle, 14.0, 6.0, 0.7, 0.9)
    long_axis, short_axis = slice_diameters(section, 0.7, 0.9)
    expected = brute_diameters(section, 0.7, 0.9)
    assert long_axis == pytest.approx(expected[0], abs=1e-9)
    # Two equally long diameters may lie across from each other: then their widths differ by a pixel at most.
    assert short_axis == pytest.approx(expected[1], abs=1.2)
    # Outer pixel corners lie up to half a pixel diagonal (0.57 mm) outside the true ellipse at either end.
    assert 28.0 - 0.2 <= long_axis <= 28.0 + 1.14
    assert 12.0 - 0.7 <= short_axis <= 12.0 + 1.4


def test_random_sections_equal_brute_force() -> None:
    rng = np.random.default_rng(8)
    for _ in range(30):
        section = rng.random((6, 9)) < 0.15
        section[rng.integers(6), rng.integers(9)] = True
        long_axis, short_axis = slice_diameters(section, 0.71, 0.93)
        expected = brute_diameters(section, 0.71, 0.93)
        assert long_axis == pytest.approx(expected[0], abs=1e-9)
        assert short_axis <= long_axis + 1e-9


def test_the_slice_with_the_longest_diameter_is_taken() -> None:
    mask = box((1, 1, 1), (2, 3, 3)) | box((2, 1, 1), (3, 2, 9)) | box((3, 1, 1), (4, 3, 8))
    (m,) = measure(InstanceSet.from_masks([(1, mask)], oblique(), LABELS), None)
    assert m.axis_slice == 2  # 8 columns in one row: hypot(4.0, 0.8) = 4.08 > hypot(3.5, 1.6) = 3.85
    assert m.long_axis_mm == pytest.approx(math.hypot(4.0, 0.8))


def test_csv(tmp_path: Path) -> None:
    masks = [(1, box((0, 0, 0), (4, 6, 6))), (2, box((1, 1, 1), (3, 3, 3)))]
    write_measurements_csv(measure(InstanceSet.from_masks(masks, oblique(), LABELS), None), tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == MEASUREMENT_COLUMNS
    assert rows[0]["overlaps_ml"] == "2:0.008" and rows[0]["touches_border"] == "yes" and rows[0]["mean"] == "nan"
    assert (rows[1]["name"], rows[1]["slice_first"], rows[1]["slice_last"]) == ("lesion 1", "1", "2")
    write_measurements_csv([], tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text() == ",".join(MEASUREMENT_COLUMNS) + "\n"
