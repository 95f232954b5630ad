"""Measurements against closed forms and brute force."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from highdicom import Volume, VolumeGeometry
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from medseg.errors import ConfigError, GeometryError
from medseg.labels import LabelTable
from medseg.metrics.measurement import degrees_from_axial, measure
from medseg.metrics.shape import hull_axes, maximum_diameter, outlines, sphericity, surface_and_volume
from medseg.reporting.tables import MEASUREMENT_COLUMNS, write_measurements_csv, write_measurements_json
from medseg.values.geometry import AxisMap
from medseg.values.instances import Instance, InstanceSet

SHAPE = (5, 7, 11)
LABELS = LabelTable.from_names(["liver", "lesion", "spleen"], kinds={"lesion": "ids"})
SPACING = (2.5, 0.8, 0.5)  # one voxel is 0.001 ml


def tilted(degrees: float, shape: tuple[int, int, int] = SHAPE, spacing: tuple[float, ...] = SPACING) -> VolumeGeometry:
    """Slices tilted from axial by an angle, turned in their own plane as well, off the origin."""
    axial = np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0]])  # slices along S, rows along P, columns along L
    turn = Rotation.from_euler("xz", [degrees, 20], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ axial * spacing
    affine[:3, 3] = (-31.5, 12.25, -104.0)
    return VolumeGeometry(affine, shape, "PATIENT")


def oblique() -> VolumeGeometry:
    return tilted(11)


def box(start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def ball(radius_mm: float, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((x - n / 2.03) * s) ** 2 for x, n, s in zip(axes, shape, spacing, strict=True)) <= radius_mm**2


def image(geometry: VolumeGeometry) -> Volume:
    array = np.random.default_rng(5).integers(-1000, 1500, geometry.spatial_shape).astype(np.int16)
    return Volume(array, geometry.affine, "PATIENT")


def objects(*masks: tuple[int, np.ndarray], geometry: VolumeGeometry | None = None) -> InstanceSet:
    return InstanceSet.from_masks(masks, geometry or oblique(), LABELS)


def test_box_in_an_oblique_image() -> None:
    grid = oblique()
    mask = box((1, 2, 3), (3, 5, 7))  # 2 x 3 x 4
    volume = image(grid)
    (m,) = measure(objects((1, mask)), volume)
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
    assert m.axis_slice == 1 and m.axis_reason == ""
    assert m.max_diameter_mm == pytest.approx(math.hypot(5.0, 2.4, 2.0))
    assert not m.touches_border and m.overlaps == m.class_overlaps == {} and m.lies_in == ()


def test_centroid_of_an_irregular_object_equals_the_mean_of_its_points() -> None:
    grid = oblique()
    mask = np.random.default_rng(1).random(SHAPE) < 0.2
    (m,) = measure(objects((2, mask)), None)
    points = np.argwhere(mask) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    np.testing.assert_allclose(m.centroid_mm, points.mean(axis=0), atol=1e-10)
    assert all(math.isnan(v) for v in (m.mean, m.sd, m.minimum, m.maximum))


def test_a_mask_with_an_empty_margin_measures_the_object() -> None:
    padded = np.zeros((3, 4, 5), bool)
    padded[1, 1, 2] = True
    lone = Instance(id=1, label=1, mask=padded, offset=(0, 0, 0))
    (m,) = measure(InstanceSet(instances=(lone,), geometry=oblique(), labels=LABELS), None)
    (tight,) = measure(objects((1, box((1, 1, 2), (2, 2, 3)))), None)
    assert m.bbox == tight.bbox == ((1, 1, 2), (1, 1, 2)) and not m.touches_border and m.axis_slice == 1
    for key in ("centroid_mm", "long_axis_mm", "short_axis_mm", "max_diameter_mm", "surface_mm2", "sphericity"):
        assert getattr(m, key) == pytest.approx(getattr(tight, key)), key


def test_one_voxel() -> None:
    volume = image(oblique())
    (m,) = measure(objects((2, box((2, 3, 4), (3, 4, 5)))), volume)
    assert (m.voxels, m.name) == (1, "lesion 1")
    assert m.long_axis_mm == pytest.approx(math.hypot(0.8, 0.5))
    assert m.short_axis_mm == pytest.approx(2 * 0.8 * 0.5 / math.hypot(0.8, 0.5))
    assert m.max_diameter_mm == pytest.approx(math.hypot(*SPACING))
    assert m.mean == m.minimum == m.maximum == volume.array[2, 3, 4] and m.sd == 0.0
    # The mesh is an octahedron between the midpoints: eight triangles, a sixth of the voxel's volume.
    area = math.hypot(0.8 * 0.5, 2.5 * 0.5, 2.5 * 0.8)
    assert m.surface_mm2 == pytest.approx(area)
    assert m.sphericity == pytest.approx((36 * math.pi * (1 / 6) ** 2) ** (1 / 3) / area)


def test_slices_of_5_mm() -> None:
    # One slice of 3 x 3 pixels of 0.5 mm: flat, and still 5 mm thick.
    (m,) = measure(objects((2, box((2, 2, 4), (3, 5, 7))), geometry=tilted(0, spacing=(5.0, 0.5, 0.5))), None)
    assert m.volume_ml == pytest.approx(9 * 1.25 / 1000)
    assert (m.long_axis_mm, m.short_axis_mm) == pytest.approx((math.hypot(1.5, 1.5), math.hypot(1.5, 1.5)))
    assert m.max_diameter_mm == pytest.approx(math.hypot(5.0, 1.5, 1.5))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("end", [0, 1])
def test_border(axis: int, end: int) -> None:
    start, stop = [1, 2, 3], [2, 3, 4]
    start[axis], stop[axis] = (SHAPE[axis] - 1, SHAPE[axis]) if end else (0, 1)
    (m,) = measure(objects((1, box(tuple(start), tuple(stop)))), None)
    assert m.touches_border
    # The mesh is closed where the image ends.
    assert m.surface_mm2 == pytest.approx(math.hypot(0.8 * 0.5, 2.5 * 0.5, 2.5 * 0.8))


def test_lesions_in_a_liver_and_their_names() -> None:
    liver, first, second = box((0, 0, 0), (4, 6, 6)), box((1, 1, 1), (3, 3, 3)), box((1, 2, 4), (2, 4, 8))
    third = box((1, 2, 5), (2, 4, 8))
    found = measure(objects((2, first), (1, liver), (2, second), (2, third)), None)
    assert [m.name for m in found] == ["lesion 1", "liver", "lesion 2", "lesion 3"]
    assert found[0].overlaps == {2: pytest.approx(0.008)}
    assert found[0].class_overlaps == {"liver": pytest.approx(0.008)} and found[0].lies_in == ("liver",)
    # Lesions 2 and 3 overlap each other; the liver shares 4 voxels with them together, not 4 + 2, and 8 with lesion 1.
    assert found[1].overlaps == {1: pytest.approx(0.008), 3: pytest.approx(0.004), 4: pytest.approx(0.002)}
    assert found[1].class_overlaps == {"lesion": pytest.approx(0.012)} and found[1].lies_in == ()
    # Half of lesion 2, but only a third of lesion 3, lies in the liver. Lesions are no other class.
    assert found[2].overlaps == {2: pytest.approx(0.004), 4: pytest.approx(0.006)}
    assert found[2].class_overlaps == {"liver": pytest.approx(0.004)} and found[2].lies_in == ("liver",)
    assert found[3].class_overlaps == {"liver": pytest.approx(0.002)} and found[3].lies_in == ()


def test_overlaps_with_classes_equal_full_size_arrays() -> None:
    rng = np.random.default_rng(3)
    masks = [(int(label), rng.random(SHAPE) < 0.15) for label in rng.integers(1, 4, 9)]
    instances = objects(*masks)
    for m in measure(instances, None):
        mask = instances.full_mask(m.id)
        for label in LABELS:
            shared = np.count_nonzero(mask & instances.semantic(label.id)) if label.name != m.label else 0
            assert m.class_overlaps.get(label.name, 0.0) == pytest.approx(shared / 1000)
            assert (label.name in m.lies_in) == (shared >= mask.sum() / 2)


def test_nothing() -> None:
    grid = oblique()
    assert measure(InstanceSet(instances=(), geometry=grid, labels=LABELS), image(grid)) == []


def test_a_mask_stored_with_other_axes_measures_the_same_on_its_image() -> None:
    volume = image(oblique())
    instances = objects((1, box((1, 2, 3), (3, 5, 7))), (2, box((1, 2, 4), (3, 4, 8))))
    moved = instances.moved(AxisMap(order=(2, 0, 1), flips=(False, True, True)))
    assert measure(moved, volume) == measure(instances, volume)
    # By itself it has other slices, and these are not axial.
    assert math.isnan(measure(moved, None)[0].long_axis_mm)


def test_an_image_elsewhere_is_refused() -> None:
    grid = oblique()
    affine = grid.affine.copy()
    affine[2, 3] += 1
    with pytest.raises(GeometryError, match="another grid"):
        measure(InstanceSet(instances=(), geometry=grid, labels=LABELS), Volume(np.zeros(SHAPE), affine, "PATIENT"))


@pytest.mark.parametrize("degrees", [-90, -21, -20, -3, 0, 12, 20, 20.1, 90, 179])
def test_axes_need_slices_near_axial(degrees: float) -> None:
    grid = tilted(degrees)
    tilt = min(abs(degrees), 180 - abs(degrees))
    assert degrees_from_axial(grid) == pytest.approx(tilt, abs=1e-6)
    (m,) = measure(objects((1, box((1, 2, 3), (3, 5, 7))), geometry=grid), None)
    if tilt <= 20:
        assert m.long_axis_mm == pytest.approx(math.hypot(2.4, 2.0)) and m.axis_reason == "" and m.axis_slice == 1
    else:
        assert math.isnan(m.long_axis_mm) and math.isnan(m.short_axis_mm) and m.axis_slice is None
        assert m.axis_reason == f"slices are {tilt:.1f} degrees from axial, more than 20"
    assert m.max_diameter_mm == pytest.approx(math.hypot(5.0, 2.4, 2.0))  # defined in any orientation


# Diameters.


def outline(section: np.ndarray, row_mm: float, column_mm: float) -> np.ndarray:
    return outlines(section[None], row_mm, column_mm)[0]


def brute_axes(section: np.ndarray, row_mm: float, column_mm: float) -> tuple[float, float]:
    """All four corners of every pixel, all pairs; of equally long diameters the one with the largest width."""
    corners = np.concatenate([np.argwhere(section) + (dr, dc) for dr in (0, 1) for dc in (0, 1)]) * (row_mm, column_mm)
    difference = corners[:, None] - corners[None]
    distance = np.linalg.norm(difference, axis=-1)
    widths = []
    for a, b in np.argwhere(distance >= distance.max() - 1e-9):
        widths.append(np.ptp(corners @ np.array([-difference[a, b, 1], difference[a, b, 0]]) / distance[a, b]))
    return distance.max(), max(widths)


def ellipse(angle: float, long: float, short: float, row_mm: float, column_mm: float) -> np.ndarray:
    y, x = np.mgrid[:60, :70]
    y, x = (y - 29.3) * row_mm, (x - 34.8) * column_mm
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return (u / long) ** 2 + (v / short) ** 2 <= 1


@pytest.mark.parametrize("angle", np.radians([0, 17, 45, 80, 123]))
def test_rotated_ellipse(angle: float) -> None:
    section = ellipse(angle, 14.0, 6.0, 0.7, 0.9)
    long_axis, short_axis = hull_axes(outline(section, 0.7, 0.9))
    assert (long_axis, short_axis) == pytest.approx(brute_axes(section, 0.7, 0.9), abs=1e-9)
    # Outer pixel corners lie up to half a pixel diagonal (0.57 mm) outside the true ellipse at either end.
    assert 28.0 - 0.2 <= long_axis <= 28.0 + 1.14
    assert 12.0 - 0.7 <= short_axis <= 12.0 + 1.4


def test_random_sections_equal_brute_force() -> None:
    rng = np.random.default_rng(8)
    for spacing in ((0.71, 0.93), (1.0, 1.0)):  # square pixels have many diameters of one length
        for _ in range(30):
            section = rng.random((6, 9)) < 0.15
            section[rng.integers(6), rng.integers(9)] = True
            expected = pytest.approx(brute_axes(section, *spacing), abs=1e-9)
            assert hull_axes(outline(section, *spacing)) == expected
            assert hull_axes(outline(section[::-1, ::-1], *spacing)) == expected
            assert hull_axes(outline(section.T, *spacing[::-1])) == expected


def test_the_slice_with_the_longest_diameter_is_taken() -> None:
    mask = box((1, 1, 1), (2, 3, 3)) | box((2, 1, 1), (3, 2, 9)) | box((3, 1, 1), (4, 3, 8))
    (m,) = measure(objects((1, mask)), None)
    assert m.axis_slice == 2  # 8 columns in one row: hypot(4.0, 0.8) = 4.08 > hypot(3.5, 1.6) = 3.85
    assert m.long_axis_mm == pytest.approx(math.hypot(4.0, 0.8))


def test_of_equally_long_slices_the_wider_counts() -> None:
    thin = np.eye(7, 11, dtype=bool)  # a diagonal and, a slice further on, the square around it
    mask = np.zeros(SHAPE, bool)
    mask[1], mask[2, :7, :7], mask[3] = thin, True, thin
    for turned in (mask, mask[:, ::-1, ::-1]):
        (m,) = measure(objects((1, turned)), None)
        assert m.axis_slice == 2
        assert (m.long_axis_mm, m.short_axis_mm) == pytest.approx(brute_axes(turned[2], 0.8, 0.5))


def test_maximum_diameter_equals_brute_force() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        mask = rng.random(SHAPE) < 0.05
        mask[tuple(rng.integers(SHAPE))] = True
        corners = [np.argwhere(mask) + c for c in np.ndindex(2, 2, 2)]
        expected = pdist(np.concatenate(corners) * SPACING).max()
        assert maximum_diameter(outlines(mask, *SPACING[1:]), SPACING[0]) == pytest.approx(expected)
    # A straight line in space, and a ball whose hull has many corners.
    line = np.zeros((9, 9, 9), bool)
    line[range(9), range(9), range(9)] = True
    assert maximum_diameter(outlines(line, 1.0, 1.0), 1.0) == pytest.approx(9 * math.sqrt(3))
    spacing = (1.5, 0.7, 0.9)
    diameter = maximum_diameter(outlines(ball(20, (33, 65, 51), spacing), *spacing[1:]), spacing[0])
    assert 40 - 0.7 <= diameter <= 40 + math.hypot(*spacing)


# Surface.


@pytest.mark.parametrize("size", [(1, 1, 4), (2, 3, 4), (5, 7, 11)])
def test_surface_of_a_box(size: tuple[int, int, int]) -> None:
    # The mesh of a box runs through the voxel centres' hull, half a voxel further out on each side, its edges cut off.
    s, n = np.array(SPACING), np.array(size) - 1
    area, volume = np.linalg.norm(np.prod(s) / s), np.prod(s) / 6  # the corners: an octahedron in eight parts
    volume += np.prod(n * s)
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        area += 2 * n[j] * n[k] * s[j] * s[k] + 4 * n[i] * s[i] * math.hypot(s[j], s[k]) / 2
        volume += n[j] * n[k] * np.prod(s) + 4 * n[i] * np.prod(s) / 8
    assert surface_and_volume(np.ones(size, bool), SPACING) == pytest.approx((area, volume))


@pytest.mark.parametrize(
    ("spacing", "excess"), [((1.0, 1.0, 1.0), 0.10), ((1.5, 0.7, 0.9), 0.15), ((5.0, 0.8, 0.8), 0.25)]
)
def test_surface_of_a_ball(spacing: tuple[float, float, float], excess: float) -> None:
    shape = tuple(int(50 / s) for s in spacing)
    surface, volume = surface_and_volume(ball(20, shape, spacing), spacing)
    assert volume == pytest.approx(4 / 3 * math.pi * 8000, rel=0.02)
    assert 1.0 < surface / (4 * math.pi * 400) < 1 + excess
    assert 1 / (1 + excess) < sphericity(surface, volume) < 1.0


def test_sphericity_of_known_bodies() -> None:
    assert sphericity(4 * math.pi * 9, 4 / 3 * math.pi * 27) == pytest.approx(1.0)
    assert sphericity(6 * 4, 8) == pytest.approx((math.pi / 6) ** (1 / 3))  # a cube


# Files.


def test_csv(tmp_path: Path) -> None:
    masks = [(1, box((0, 0, 0), (4, 6, 6))), (2, box((1, 1, 1), (3, 3, 3)))]
    write_measurements_csv(measure(objects(*masks), None), tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == MEASUREMENT_COLUMNS
    assert rows[0]["overlaps_ml"] == "2:0.008" and rows[0]["touches_border"] == "yes" and rows[0]["mean"] == "nan"
    assert rows[0]["class_overlaps_ml"] == "lesion: 0.008" and rows[0]["lies_in"] == ""
    assert (rows[1]["name"], rows[1]["slice_first"], rows[1]["slice_last"]) == ("lesion 1", "1", "2")
    assert rows[1]["lies_in"] == "liver"
    write_measurements_csv(measure(objects(*masks, geometry=tilted(45)), None), tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["long_axis_mm"], row["axis_slice"]) == ("nan", "")
    assert row["axis_reason"] == "slices are 45.0 degrees from axial, more than 20"
    write_measurements_csv([], tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text() == ",".join(MEASUREMENT_COLUMNS) + "\n"


def test_json(tmp_path: Path) -> None:
    masks = [(1, box((0, 0, 0), (4, 6, 6))), (2, box((1, 1, 1), (3, 3, 3)))]
    found = measure(objects(*masks, geometry=tilted(45)), None)
    write_measurements_json(found, tmp_path / "m.json")
    liver, lesion = json.loads((tmp_path / "m.json").read_text())["measurements"]
    assert lesion["bbox"] == {"first": [1, 1, 1], "last": [2, 2, 2]}
    assert lesion["centroid_lps_mm"] == pytest.approx(found[1].centroid_mm)
    assert lesion["class_overlaps_ml"] == {"liver": pytest.approx(0.008)} and lesion["lies_in"] == ["liver"]
    assert lesion["long_axis_mm"] is None and lesion["axis_slice"] is None and lesion["mean"] is None
    assert liver["overlaps_ml"] == {"2": pytest.approx(0.008)} and liver["touches_border"] is True
    write_measurements_json([], tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text()) == {"measurements": []}


# The verb.


@pytest.fixture
def files(tmp_path: Path) -> Path:
    from medseg.io import write_instances, write_volume

    write_volume(tmp_path / "ct.nii.gz", image(oblique()))
    masks = (1, box((0, 0, 0), (4, 6, 6))), (2, box((1, 1, 1), (3, 3, 3)))
    write_instances(tmp_path / "objects.seg.nrrd", objects(*masks))
    write_instances(tmp_path / "empty.seg.nrrd", objects())
    write_instances(tmp_path / "coronal.seg.nrrd", objects(*masks, geometry=tilted(90)))
    return tmp_path


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "measurements.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_measure_on_the_command_line(files: Path, capsys: pytest.CaptureFixture) -> None:
    from medseg.cli.measure import run

    run(files / "objects.seg.nrrd", files / "out", image=files / "ct.nii.gz")
    written = [files / "out" / "measurements.csv", files / "out" / "measurements.json"]
    assert capsys.readouterr().out.splitlines() == ["2 objects", *map(str, written)]
    expected = measure(objects((1, box((0, 0, 0), (4, 6, 6))), (2, box((1, 1, 1), (3, 3, 3)))), image(oblique()))
    for row, m in zip(rows_of(files / "out"), expected, strict=True):
        assert row["name"] == m.name and float(row["mean"]) == pytest.approx(m.mean, rel=1e-5)
        assert float(row["long_axis_mm"]) == pytest.approx(m.long_axis_mm, rel=1e-5)
    run(files / "objects.seg.nrrd", files / "alone")
    assert [row["mean"] for row in rows_of(files / "alone")] == ["nan", "nan"]
    run(files / "empty.seg.nrrd", files / "empty")
    assert rows_of(files / "empty") == []
    capsys.readouterr()
    run(files / "coronal.seg.nrrd", files / "coronal")
    assert "warning: no long and short axis: slices are 90.0 degrees" in capsys.readouterr().err


def test_measure_names_the_labels_of_a_label_map(files: Path) -> None:
    import nibabel as nib

    from medseg.cli.measure import run

    nib.save(nib.Nifti1Image(box((1, 1, 1), (3, 3, 3)).astype(np.uint8), np.diag([2.0, 2, 2, 1])), files / "map.nii.gz")
    (files / "names.json").write_text('[{"id": 1, "name": "spleen"}]')
    run(files / "map.nii.gz", files / "out", labels=files / "names.json")
    assert [row["name"] for row in rows_of(files / "out")] == ["spleen"]


def test_measure_refuses(files: Path) -> None:
    from medseg.cli.measure import run
    from medseg.io import write_volume

    with pytest.raises(ConfigError, match="give --image as well"):
        run(files / "objects.seg.nrrd", files / "out", series="1.2")
    write_volume(files / "other.nii.gz", image(tilted(11, spacing=(2.6, 0.8, 0.5))))
    with pytest.raises(GeometryError, match="another grid"):
        run(files / "objects.seg.nrrd", files / "out", image=files / "other.nii.gz")
    assert not (files / "out").exists()
