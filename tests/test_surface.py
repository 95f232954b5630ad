"""Surface distances against closed forms, plain loops, DeepMind's surface-distance, MONAI and CHAOS."""

import math

import numpy as np
import pytest
from highdicom import VolumeGeometry
from scipy import ndimage
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from medseg.errors import ConfigError, GeometryError, InputError
from medseg.labels import LabelTable
from medseg.metrics.chaos import chaos_scores
from medseg.metrics.surface import (
    SurfaceDistances,
    border_voxels,
    class_surface_distances,
    pair_surface_distances,
    surface_distances,
    surfel_areas,
)
from medseg.values.geometry import AxisMap
from medseg.values.instances import InstanceSet
from medseg.values.pairs import PairTable

SHAPE = (5, 7, 11)
SPACING = (2.5, 0.8, 0.5)
LABELS = LabelTable.from_names(["liver", "lesion"], kinds={"lesion": "ids"})


def oblique(shape: tuple[int, int, int] = SHAPE, spacing: tuple[float, float, float] = SPACING) -> VolumeGeometry:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("zyx", [20, -10, 5], degrees=True).as_matrix() * spacing
    affine[:3, 3] = (-31.5, 12.25, -104.0)
    return VolumeGeometry(affine, shape, "PATIENT")


def box(start: tuple[int, ...], stop: tuple[int, ...], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def ball(radius_mm: float, centre: tuple[float, ...], shape: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((x - c) * s) ** 2 for x, c, s in zip(axes, centre, spacing, strict=True)) <= radius_mm**2


def blobs(rng: np.random.Generator, shape: tuple[int, ...], filled: float = 0.3) -> np.ndarray:
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), 1.2)
    return smooth > np.quantile(smooth, 1 - filled)


def nothing(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.zeros(shape, bool)


# Plain loops: the definition, element by element.


def slow_surfels(mask: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Corner positions in mm and areas: each cell of neighbours is meshed by itself, at the real spacing."""
    from skimage.measure import marching_cubes, mesh_surface_area

    padded = np.pad(mask, 1)
    positions, areas = [], []
    for corner in np.ndindex(*(n - 1 for n in padded.shape)):
        cell = padded[tuple(slice(c, c + 2) for c in corner)].astype(np.float32)
        if cell.all() or not cell.any():
            continue
        part = cell if cell.sum() <= 4 else 1 - cell
        vertices, faces, _, _ = marching_cubes(part, 0.5, spacing=spacing, method="lorensen")
        positions.append(np.array(corner) * spacing)
        areas.append(mesh_surface_area(vertices, faces))
    return np.array(positions), np.array(areas)


def slow_borders(mask: np.ndarray, spacing: tuple[float, ...], outside: bool) -> np.ndarray:
    """Positions in mm of the voxels with a neighbour outside the object."""
    found = []
    for voxel in np.argwhere(mask):
        for axis, step in [(a, s) for a in range(mask.ndim) for s in (-1, 1)]:
            other = voxel.copy()
            other[axis] += step
            inside = 0 <= other[axis] < mask.shape[axis]
            if not (mask[tuple(other)] if inside else outside):
                found.append(voxel * spacing)
                break
    return np.array(found)


def slow_scores(a: np.ndarray, b: np.ndarray, areas_a: np.ndarray, areas_b: np.ndarray, tolerance_mm: float) -> list:
    """NSD, area-weighted ASSD and Hausdorff distance from all pairs of points."""
    distances = cdist(a, b)
    to_b, to_a = distances.min(axis=1), distances.min(axis=0)
    total = areas_a.sum() + areas_b.sum()
    within = areas_a[to_b <= tolerance_mm].sum() + areas_b[to_a <= tolerance_mm].sum()
    return [within / total, (to_b @ areas_a + to_a @ areas_b) / total, max(to_a.max(), to_b.max())]


def scores(distances: SurfaceDistances, tolerance_mm: float) -> list[float]:
    return [distances.nsd(tolerance_mm), distances.assd(), distances.hd(100)]


@pytest.mark.parametrize("surface", ["subvoxel", "border", "chaos"])
def test_equals_plain_loops(surface: str, rng: np.random.Generator) -> None:
    for _ in range(3):
        a, b = blobs(rng, SHAPE), blobs(rng, SHAPE)
        found = surface_distances(a, b, SPACING, surface=surface)
        if surface == "subvoxel":
            (p, u), (q, v) = slow_surfels(a, SPACING), slow_surfels(b, SPACING)
            # The triangles of skimage have float32 corners.
            np.testing.assert_allclose((found.reference_weights, found.prediction_weights)[0], u, rtol=1e-5)
        else:
            p, q = (slow_borders(m, SPACING, surface == "chaos") for m in (a, b))
            u, v = np.ones(len(p)), np.ones(len(q))
            assert found.reference_weights is None and found.prediction_weights is None
        assert (len(found.reference_mm), len(found.prediction_mm)) == (len(p), len(q))
        assert scores(found, 0.9) == pytest.approx(slow_scores(p, q, u, v, 0.9), rel=1e-5)


# Closed forms.


def box_area(size: tuple[int, int, int], spacing: tuple[float, float, float]) -> float:
    """Area of a box whose edges are cut off at 45 degrees (of the grid): faces, edges and corners of surfels."""
    s = np.array(spacing)
    n = np.array(size) - 1
    area = np.linalg.norm(np.prod(s) / s)  # eight corners of norm / 8
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        area += 2 * n[j] * n[k] * s[j] * s[k]
        area += 4 * n[i] * s[i] * math.hypot(s[j], s[k]) / 2
    return float(area)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 4), (2, 3, 4), (5, 7, 11)])
def test_area_of_a_box(size: tuple[int, int, int]) -> None:
    found = surface_distances(box((0, 0, 0), size), nothing(), SPACING)
    assert found.reference_weights is not None
    assert found.reference_weights.sum() == pytest.approx(box_area(size, SPACING))


def test_areas_by_hand() -> None:
    areas = surfel_areas(SPACING)
    normal = np.array([0.8 * 0.5, 2.5 * 0.5, 2.5 * 0.8])
    assert areas.shape == (256,) and areas[0] == areas[255] == 0
    assert areas[1] == pytest.approx(np.linalg.norm(normal) / 8)  # one corner: the triangle of its edges' midpoints
    assert areas[0b00000011] == pytest.approx(2.5 * math.hypot(0.8, 0.5) / 2)  # two along the first axis
    assert areas[0b00001111] == pytest.approx(2.5 * 0.8)  # a flat face across the last axis
    assert areas[0b01010101] == pytest.approx(0.8 * 0.5)  # and across the first
    assert areas[0b10000001] == pytest.approx(2 * areas[1])  # opposite corners: both by themselves
    np.testing.assert_allclose(areas, areas[::-1])  # an object and its complement share their surface
    lengths = surfel_areas((2.5, 0.8))
    np.testing.assert_allclose(
        lengths[[1, 0b0011, 0b0101, 0b1001]], [math.hypot(2.5, 0.8) / 2, 2.5, 0.8, math.hypot(2.5, 0.8)]
    )


def test_one_voxel_beside_another() -> None:
    a, b = box((2, 3, 4), (3, 4, 5)), box((2, 3, 5), (3, 4, 6))
    fine = surface_distances(a, b, SPACING)
    # Four of the eight corners of a voxel are shared, the others lie one voxel, 0.5 mm, off.
    np.testing.assert_allclose(np.sort(fine.reference_mm), [0] * 4 + [0.5] * 4)
    assert [fine.nsd(0.49), fine.nsd(0.5), fine.assd(), fine.hd(95), fine.hd(50)] == pytest.approx(
        [0.5, 1, 0.25, 0.5, 0]
    )
    coarse = surface_distances(a, b, SPACING, surface="border")
    assert [coarse.nsd(0.49), coarse.nsd(0.5), coarse.assd(), coarse.hd(95)] == pytest.approx([0, 1, 0.5, 0.5])


def test_slices_of_5_mm() -> None:
    # A 3 x 5 x 7 box against the same one slice higher: 5 mm, ten times the pixel.
    spacing = (5.0, 0.5, 0.5)
    a, b = box((0, 1, 2), (3, 6, 9)), box((1, 1, 2), (4, 6, 9))
    found = surface_distances(a, b, spacing, surface="border")
    # a's bottom slice holds 35 voxels, all border, 3 x 5 of its inner voxels; its rim has 20. b's sides reach down to
    # slice 1: 20 voxels of rim at 5 mm, the 15 others find a rim or b's bottom (slice 1) at 5 mm too.
    # a's middle: the rim (20) lies on b's bottom. a's top: 20 on b's rim, 15 in b's inner middle slice: the nearest
    # of b's border is its rim in the plane, 1, 2 or 2 x 3 steps of 0.5 mm away.
    inner = [min(r, 4 - r, c, 6 - c) * 0.5 for r in range(1, 4) for c in range(1, 6)]
    expected = np.sort([5.0] * 35 + [0.0] * 40 + inner)
    np.testing.assert_allclose(np.sort(found.reference_mm), expected)
    np.testing.assert_allclose(np.sort(found.prediction_mm), expected)
    assert found.nsd(1.0) == pytest.approx(55 / 90) and found.nsd(5.0) == 1.0
    assert found.hd(100) == 5.0 and found.hd(95) == 5.0
    assert found.assd() == pytest.approx((35 * 5 + sum(inner)) / 90)
    fine = surface_distances(a, b, spacing)
    assert fine.hd(100) == pytest.approx(5.0) and fine.nsd(4.99) < fine.nsd(5.0) == pytest.approx(1.0)


@pytest.mark.parametrize("surface", ["subvoxel", "border"])
def test_concentric_balls(surface: str) -> None:
    spacing, shape, centre = (1.5, 0.7, 0.9), (33, 65, 51), (16.2, 32.1, 25.3)
    a, b = ball(20, centre, shape, spacing), ball(16, centre, shape, spacing)
    found = surface_distances(a, b, spacing, surface=surface)
    voxel = math.hypot(*spacing)  # each surface may lie half of it off on either side
    assert found.nsd(4 - voxel) == 0.0 and found.nsd(4 + voxel) == 1.0
    assert 4 <= found.hd(100) <= 4 + voxel
    # Between the nearest of two layers of grid points distances are shorter than between the balls: at most a voxel.
    assert 4 - voxel / 2 < found.assd() < 4
    assert found.assd() < found.hd(95) <= found.hd(100)
    if surface == "subvoxel":
        assert found.reference_weights is not None
        # The steps of a digital ball are known to enlarge its marching-cubes area.
        assert 1.0 < found.reference_weights.sum() / (4 * math.pi * 400) < 1.15


def test_the_same_object() -> None:
    mask = ball(4, (2, 3, 5), SHAPE, SPACING)
    for surface in ("subvoxel", "border", "chaos"):
        assert scores(surface_distances(mask, mask, SPACING, surface=surface), 0.0) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("surface", ["subvoxel", "border", "chaos"])
def test_empty(surface: str) -> None:
    mask = box((1, 2, 3), (2, 4, 7))
    no_prediction = surface_distances(mask, nothing(), SPACING, surface=surface)
    assert no_prediction.nsd(1.0) == 0.0
    assert np.isinf(no_prediction.reference_mm).all() and not len(no_prediction.prediction_mm)
    for found in (surface_distances(nothing(), mask, SPACING), surface_distances(nothing(), nothing(), SPACING)):
        assert math.isnan(found.nsd(1.0))
    for pair in ((mask, nothing()), (nothing(), mask), (nothing(), nothing())):
        found = surface_distances(*pair, SPACING, surface=surface)
        assert math.isnan(found.hd(95)) and math.isnan(found.assd())


def test_an_object_at_the_border_of_the_image() -> None:
    # Two and three of five slices, all of each: what they have in common with the world is one plane.
    a, b = box((0, 0, 0), (2, 7, 11)), box((0, 0, 0), (3, 7, 11))
    cut = surface_distances(a, b, SPACING, surface="chaos")
    assert len(cut.reference_mm) == len(cut.prediction_mm) == 77
    assert scores(cut, 2.0) == [0.0, 2.5, 2.5]
    # MONAI closes them: both of a's slices are border, of b the middle one only at its rim of 32 voxels.
    closed = surface_distances(a, b, SPACING, surface="border")
    assert (len(closed.reference_mm), len(closed.prediction_mm)) == (154, 186)
    fine = surface_distances(a, b, SPACING)
    assert fine.reference_weights is not None
    assert fine.reference_weights.sum() == pytest.approx(box_area((2, 7, 11), SPACING))
    whole = np.ones(SHAPE, bool)
    assert math.isnan(surface_distances(whole, whole, SPACING, surface="chaos").nsd(1.0))  # no surface at all


def test_a_distance_equal_to_the_tolerance_is_within_it() -> None:
    for steps in range(1, 9):  # 3 * 0.1 > 0.3 in binary fractions
        a, b = nothing((3, 3, 40)), nothing((3, 3, 40))
        a[1, 1, 7], b[1, 1, 7 + steps] = True, True
        assert surface_distances(a, b, (1.0, 1.0, 0.1), surface="border").nsd(round(steps * 0.1, 1)) == 1.0


def test_percentiles() -> None:
    distances, none = np.array([0.0, 3.0, 1.0, 2.0]), np.zeros(1)
    plain = SurfaceDistances(
        reference_mm=distances, prediction_mm=none, reference_weights=None, prediction_weights=None
    )
    assert plain.hd(50) == 1.5 and plain.hd(100) == 3.0 and plain.hd(0) == 0.0
    weighted = SurfaceDistances(
        reference_mm=distances,
        prediction_mm=none,
        reference_weights=np.array([1.0, 1.0, 5.0, 1.0]),
        prediction_weights=np.ones(1),
    )
    assert [weighted.hd(p) for p in (10, 50, 75, 80, 95, 100)] == [0.0, 1.0, 1.0, 2.0, 3.0, 3.0]


# Peers.


@pytest.fixture
def deepmind(monkeypatch: pytest.MonkeyPatch):
    """DeepMind's package (pip install surface-distance-based-measures), written for older numpy and scipy."""
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    monkeypatch.setattr(np, "NaN", np.nan, raising=False)
    for name in ("filters", "morphology"):
        monkeypatch.setattr(ndimage, name, ndimage, raising=False)
    return pytest.importorskip("surface_distance", reason="surface-distance-based-measures is not installed")


@pytest.mark.parametrize(
    ("shape", "spacing"), [((6, 9, 13), SPACING), ((6, 9, 13), (1.0, 1.0, 1.0)), ((9, 13), (0.8, 0.5))]
)
@pytest.mark.parametrize("filled", [0.05, 0.5, 0.9])
def test_equals_deepmind(deepmind, shape, spacing, filled, rng) -> None:
    noise = rng.random(shape) < filled  # every neighbourhood, at the border as well
    for a, b in ((noise, rng.random(shape) < filled), (blobs(rng, shape, filled), blobs(rng, shape, filled))):
        peer = deepmind.compute_surface_distances(a, b, spacing)
        found = surface_distances(a, b, spacing)
        assert found.reference_weights is not None
        assert found.reference_weights.sum() == pytest.approx(peer["surfel_areas_gt"].sum())
        np.testing.assert_allclose(np.sort(found.reference_mm), peer["distances_gt_to_pred"], atol=1e-12)
        for tolerance_mm in (0.0, 0.7, 1.3):
            expected = deepmind.compute_surface_dice_at_tolerance(peer, tolerance_mm)
            assert found.nsd(tolerance_mm) == pytest.approx(expected, abs=1e-12)
            for percentile in (5, 50, 95, 100):
                # A percentage that is met exactly counts as met; theirs is then decided by rounding.
                expected = deepmind.compute_robust_hausdorff(peer, percentile - 1e-9)
                assert found.hd(percentile) == pytest.approx(expected)
        areas = peer["surfel_areas_gt"].sum(), peer["surfel_areas_pred"].sum()
        pooled = np.average(deepmind.compute_average_surface_distance(peer), weights=areas)
        assert found.assd() == pytest.approx(pooled)


@pytest.mark.parametrize(("shape", "spacing"), [((6, 9, 13), SPACING), ((9, 13), (0.8, 0.5))])
def test_equals_monai(shape, spacing, rng) -> None:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    for filled in (0.1, 0.6):
        a, b = blobs(rng, shape, filled), blobs(rng, shape, filled)
        y, p = (torch.from_numpy(m)[None, None] for m in (a, b))
        settings = {"include_background": True, "spacing": spacing}
        border, fine = (surface_distances(a, b, spacing, surface=s) for s in ("border", "subvoxel"))
        hausdorff = [compute_hausdorff_distance(p, y, percentile=q, **settings).item() for q in (95, 100)]
        assert [border.hd(95), border.hd(100)] == pytest.approx(hausdorff, rel=1e-5)
        average = compute_average_surface_distance(p, y, symmetric=True, **settings).item()
        assert border.assd() == pytest.approx(average, rel=1e-5)
        for tolerance_mm in (0.6, 1.1):  # not a distance that occurs: MONAI's are rounded to float32
            for found, subvoxels in ((border, False), (fine, True)):
                dice = compute_surface_dice(p, y, [tolerance_mm], use_subvoxels=subvoxels, **settings).item()
                assert found.nsd(tolerance_mm) == pytest.approx(dice, rel=1e-4)


def chaos_reference(reference: np.ndarray, prediction: np.ndarray, grid: VolumeGeometry) -> list[float]:
    """The challenge's definitions in patient coordinates, all pairs of border voxels."""
    cross = ndimage.generate_binary_structure(3, 1)
    points = []
    for mask in (reference, prediction):
        border = mask ^ ndimage.binary_erosion(mask, structure=cross, border_value=1)
        points.append(np.argwhere(border) @ grid.affine[:3, :3].T + grid.affine[:3, 3])
    distances = cdist(*points)
    pooled = np.concatenate([distances.min(axis=0), distances.min(axis=1)])
    a, b = reference.sum(), prediction.sum()
    return [2 * (reference & prediction).sum() / (a + b), abs(int(a) - int(b)) / a * 100, pooled.mean(), pooled.max()]


def test_chaos_in_patient_coordinates(rng: np.random.Generator) -> None:
    grid = oblique()
    reference, prediction = blobs(rng, SHAPE), blobs(rng, SHAPE, 0.4)
    sets = [InstanceSet.from_masks([(1, m)], grid, LABELS) for m in (reference, prediction)]
    found = chaos_scores(*sets)
    liver = found["liver"]
    assert [liver.dice, liver.ravd_percent, liver.assd_mm, liver.mssd_mm] == pytest.approx(
        chaos_reference(reference, prediction, grid)
    )
    assert all(math.isnan(value) for value in vars(found["lesion"]).values())
    # A small object keeps the image's edge and gets no edges of its own window.
    inner = box((1, 2, 3), (4, 5, 7)), box((1, 2, 4), (5, 5, 7))
    small = chaos_scores(*[InstanceSet.from_masks([(1, m)], grid, LABELS) for m in inner])["liver"]
    assert [small.dice, small.ravd_percent, small.assd_mm, small.mssd_mm] == pytest.approx(
        chaos_reference(*inner, grid)
    )
    missed = chaos_scores(sets[0], InstanceSet.from_masks([], grid, LABELS))["liver"]
    assert (missed.dice, missed.ravd_percent) == (0.0, 100.0)
    assert math.isnan(missed.assd_mm) and math.isnan(missed.mssd_mm)


# Sets of objects.


def test_pairs_equal_full_size_arrays(rng: np.random.Generator) -> None:
    grid = oblique((9, 14, 17))
    reference = InstanceSet.from_masks([(2, blobs(rng, (9, 14, 17), 0.1)) for _ in range(3)], grid, LABELS)
    prediction = InstanceSet.from_masks([(2, blobs(rng, (9, 14, 17), 0.1)) for _ in range(3)], grid, LABELS)
    turned = prediction.moved(AxisMap(order=(2, 0, 1), flips=(True, False, True)))
    pairs = PairTable.between(reference, prediction)
    rows = np.arange(len(pairs))[::-1]
    assert len(rows) >= 5
    for surface in ("subvoxel", "border", "chaos"):
        for found, row in zip(
            pair_surface_distances(reference, turned, pairs, rows, surface=surface), rows, strict=True
        ):
            a, b = (
                reference.full_mask(int(pairs.reference[row]) + 1),
                prediction.full_mask(int(pairs.prediction[row]) + 1),
            )
            expected = surface_distances(a, b, SPACING, surface=surface)
            assert scores(found, 1.0) == pytest.approx(scores(expected, 1.0))
    assert pair_surface_distances(reference, prediction, pairs, rows[:0]) == []


def test_overlapping_objects_of_one_class_are_one_surface() -> None:
    grid = oblique()
    # Two lesions of 2 x 3 x 4 that share a slice of columns: together 2 x 3 x 7.
    parts = [(2, box((1, 1, 1), (3, 4, 5))), (2, box((1, 1, 4), (3, 4, 8)))]
    joined = box((1, 1, 1), (3, 4, 8))
    found = class_surface_distances(
        InstanceSet.from_masks(parts, grid, LABELS), InstanceSet.from_masks([(2, joined)], grid, LABELS)
    )
    assert list(found) == ["liver", "lesion"]
    assert scores(found["lesion"], 0.0) == [1.0, 0.0, 0.0]
    assert found["lesion"].reference_weights is not None
    assert found["lesion"].reference_weights.sum() == pytest.approx(box_area((2, 3, 7), SPACING))
    assert math.isnan(found["liver"].nsd(1.0))


def test_classes_are_matched_by_name() -> None:
    other = LabelTable.from_names(["lesion", "spleen", "liver"])
    mask, shifted = box((1, 1, 1), (3, 4, 5)), box((1, 1, 2), (3, 4, 6))
    found = class_surface_distances(
        InstanceSet.from_masks([(1, mask)], oblique(), LABELS),
        InstanceSet.from_masks([(3, shifted), (2, mask)], oblique(), other),
    )
    assert list(found) == ["liver", "lesion", "spleen"]
    assert found["liver"].hd(100) == pytest.approx(0.5)
    assert math.isnan(found["spleen"].nsd(1.0)) and len(found["spleen"].prediction_mm)


def test_a_single_slice_is_measured_in_its_plane() -> None:
    # 3 x 4 pixels against the same one column on; in depth there is nothing to measure.
    grid = oblique((1, 7, 11))
    a, b = box((0, 1, 1), (1, 4, 5), (1, 7, 11)), box((0, 1, 2), (1, 4, 6), (1, 7, 11))
    sets = [InstanceSet.from_masks([(1, m)], grid, LABELS) for m in (a, b)]
    for surface in ("subvoxel", "border"):
        (pair,) = pair_surface_distances(*sets, PairTable.between(*sets), np.array([0]), surface=surface)
        for found in (pair, class_surface_distances(*sets, surface=surface)["liver"]):
            expected = surface_distances(a[0], b[0], SPACING[1:], surface=surface)
            assert scores(found, 0.4) == pytest.approx(scores(expected, 0.4))
    (fine,) = pair_surface_distances(*sets, PairTable.between(*sets), np.array([0]))
    assert fine.reference_weights is not None
    # 2 steps down, 3 across, 4 corners cut off.
    assert fine.reference_weights.sum() == pytest.approx(2 * (2 * 0.8 + 3 * 0.5) + 2 * math.hypot(0.8, 0.5))
    # One slice of many is a thin object in space.
    thick = [InstanceSet.from_masks([(1, np.pad(m, ((2, 2), (0, 0), (0, 0))))], oblique(), LABELS) for m in (a, b)]
    (pair,) = pair_surface_distances(*thick, PairTable.between(*thick), np.array([0]))
    assert pair.reference_weights is not None
    assert pair.reference_weights.sum() == pytest.approx(box_area((1, 3, 4), SPACING))


def test_many_small_objects_of_a_real_image(data_dir) -> None:
    """An image of many nuclei: each pair costs its own window."""
    from medseg.io import read_instances

    nuclei = read_instances(data_dir / "nuclei" / "labelsTr" / "nuclei_0ea221716c.nii.gz")
    pairs = PairTable.between(nuclei, nuclei)
    rows = pairs.matching(0.5)
    assert len(rows) == len(nuclei) == 369
    assert all(found.hd(100) == 0 for found in pair_surface_distances(nuclei, nuclei, pairs, rows))


def test_bad_input_is_refused() -> None:
    mask = box((1, 1, 1), (2, 2, 2))
    with pytest.raises(InputError, match="two bool arrays of one shape"):
        surface_distances(mask, mask[1:], SPACING)
    with pytest.raises(InputError, match="two bool arrays of one shape"):
        surface_distances(mask.astype(np.uint8), mask, SPACING)
    with pytest.raises(InputError, match="a spacing for each"):
        surface_distances(mask, mask, (1.0, 1.0))
    with pytest.raises(InputError, match="a spacing for each"):
        surface_distances(mask[0, 0], mask[0, 0], (1.0,))
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="finite numbers above 0"):
            surface_distances(mask, mask, (bad, 1.0, 1.0))
    with pytest.raises(ConfigError, match="expected one of subvoxel, border, chaos"):
        surface_distances(mask, mask, SPACING, surface="surfel")
    found = surface_distances(mask, mask, SPACING)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="surface tolerance"):
            found.nsd(bad)
    for bad in (-1, 101, math.nan):
        with pytest.raises(ConfigError, match="Hausdorff percentile"):
            found.hd(bad)
    elsewhere = oblique(spacing=(2.6, 0.8, 0.5))
    with pytest.raises(GeometryError, match="another grid"):
        class_surface_distances(*[InstanceSet.from_masks([], g, LABELS) for g in (oblique(), elsewhere)])


def test_border_voxels_do_not_change_their_input() -> None:
    mask = box((0, 0, 0), (3, 3, 3))
    before = mask.copy()
    assert border_voxels(mask, False).sum() == 26 and border_voxels(mask, True).sum() == 19
    np.testing.assert_array_equal(mask, before)
