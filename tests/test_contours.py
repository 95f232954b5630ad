"""Polygons and masks: exact there and back, and against a point-by-point definition."""

import numpy as np
import pytest
from skimage.measure import points_in_poly

from medseg.values.contours import fill_polygons, outline


def full(filled, shape):
    """Paste what `fill_polygons` returns into a slice."""
    out = np.zeros(shape, bool)
    if filled is not None:
        (r, c), (h, w) = filled.offset, filled.mask.shape
        out[r : r + h, c : c + w] = filled.mask
    return out


def refilled(mask, **options):
    return np.stack([full(fill_polygons(p, mask.shape[1:]), mask.shape[1:]) for p in outline(mask, **options)])


@pytest.mark.parametrize("seed", range(8))
def test_any_mask_comes_back_exactly(seed):
    """All sizes from one pixel, all densities: holes in holes, diagonal contacts, objects at the border."""
    rng = np.random.default_rng(seed)
    for _ in range(25):
        mask = rng.random(rng.integers(1, [4, 15, 18])) < rng.choice([0.1, 0.4, 0.6, 0.9, 1.0])
        assert np.array_equal(refilled(mask), mask)


def test_readers_that_unite_and_readers_that_xor_find_the_same(rng):
    mask = rng.random((3, 17, 19)) < 0.65
    for plane, polygons in zip(mask, outline(mask), strict=True):
        united = np.any([full(fill_polygons([p], plane.shape), plane.shape) for p in polygons], axis=0)
        assert np.array_equal(united, plane)
        assert np.array_equal(full(fill_polygons(polygons, plane.shape, exclusive=True), plane.shape), plane)
        assert fill_polygons(polygons, plane.shape).crossing == 0


def test_outline_of_a_ring_is_one_polygon_with_a_channel():
    mask = np.ones((1, 3, 3), bool)
    mask[0, 1, 1] = False
    ((polygon,),) = outline(mask)
    assert polygon.tolist() == [
        [0, 0], [0, 3], [3, 3], [3, 0],
        [1, 0], [1, 1], [2, 1], [2, 2], [1, 2], [1, 1], [1, 0],
    ]  # fmt: skip


def test_outlines_turn_where_the_mask_turns_and_nowhere_else():
    mask = np.zeros((1, 7, 11), bool)
    mask[0, 1:3, 2:9] = True
    mask[0, 3, 9] = True  # touches by a corner only: a polygon of its own
    polygons = outline(mask)[0]
    assert [p.tolist() for p in polygons] == [[[1, 2], [1, 9], [3, 9], [3, 2]], [[3, 9], [3, 10], [4, 10], [4, 9]]]


def test_points_stay_on_pixel_corners_so_that_rounding_cannot_matter(rng):
    mask = rng.random((2, 40, 31)) < 0.6
    for plane, polygons in zip(mask, outline(mask), strict=True):
        assert all(np.array_equal(p, np.rint(p)) for p in polygons)
        shaken = [p + rng.uniform(-1e-3, 1e-3, p.shape) for p in polygons]
        assert np.array_equal(full(fill_polygons(shaken, plane.shape), plane.shape), plane)


def test_filling_agrees_with_points_in_polygon_of_scikit_image(rng):
    """Centres inside by the even-odd rule, polygons that cross themselves and leave the slice."""
    for _ in range(60):
        polygon = rng.uniform(-6, 24, (rng.integers(3, 12), 2))
        shape = (17, 13)
        centres = np.stack(np.meshgrid(np.arange(17), np.arange(13), indexing="ij"), -1).reshape(-1, 2) + 0.5
        expected = points_in_poly(centres, polygon).reshape(shape)
        assert np.array_equal(full(fill_polygons([polygon], shape), shape), expected)


def test_area_of_a_circle():
    """Gauss' circle problem: the count of centres tends to the area."""
    angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    polygon = np.column_stack([256.3 + 150 * np.sin(angle), 250.1 + 150 * np.cos(angle)])
    assert fill_polygons([polygon], (512, 512)).mask.sum() == pytest.approx(np.pi * 150**2, rel=1e-3)


def test_centres_on_the_path_belong_on_every_side():
    """PS3.3 C.8.8.6.3; a square through the centres of rows 2..4 and columns 3..6, whole and in either direction."""
    square = np.array([[2, 3], [2, 6], [4, 6], [4, 3]]) + 0.5
    expected = np.zeros((7, 11), bool)
    expected[2:5, 3:7] = True
    for polygon in (square, square[::-1], square + 4e-4, square - 4e-4, np.roll(square, 1, axis=0)):
        assert np.array_equal(full(fill_polygons([polygon], (7, 11)), (7, 11)), expected)
    assert fill_polygons([square + 0.01], (7, 11)).mask.sum() == 2 * 3  # a hundredth off, it is no longer on it


def test_the_path_of_a_hole_belongs():
    outer = np.array([[0, 0], [0, 9], [9, 9], [9, 0]], float) + 0.5
    hole = np.array([[3, 3], [3, 6], [6, 6], [6, 3]], float) + 0.5
    expected = np.ones((10, 10), bool)
    expected[4:6, 4:6] = False
    for exclusive in (False, True):
        assert np.array_equal(full(fill_polygons([hole, outer], (10, 10), exclusive=exclusive), (10, 10)), expected)


def square(first, last):
    return np.array([[first, first], [first, last], [last, last], [last, first]], float)


def test_nested_polygons_alternate():
    found = full(fill_polygons([square(4, 7), square(0, 11), square(2, 9)], (11, 11)), (11, 11))
    assert found.sum() == 121 - 49 + 9
    assert found[5, 5]
    assert not found[3, 3]


def test_polygons_that_overlap_are_united_and_counted():
    a, b = square(0, 5), square(3, 8)
    found = fill_polygons([a, b], (11, 11))
    assert found.mask.sum() == 25 + 25 - 4
    assert found.crossing == 1
    assert fill_polygons([a, b], (11, 11), exclusive=True).mask.sum() == 25 + 25 - 8


def test_a_polygon_that_is_there_twice_counts_once():
    a = square(1, 6)
    assert fill_polygons([a, a[::-1], np.roll(a, 2, axis=0)], (11, 11)).mask.sum() == 25
    assert fill_polygons([a, a], (11, 11), exclusive=True) is None


def test_a_ring_thinner_than_a_pixel_is_not_filled():
    """Outer and inner outline cover the same centres; they are a wall, not the same polygon twice."""
    assert fill_polygons([square(1.1, 6.9), square(1.2, 6.8)], (11, 11)) is None


def test_what_covers_no_centre_or_lies_outside_is_nothing():
    assert fill_polygons([square(2.6, 3.4)], (11, 11)) is None
    assert fill_polygons([square(-9, -1)], (11, 11)) is None
    assert fill_polygons([square(12, 15)], (11, 11)) is None
    assert fill_polygons([], (11, 11)) is None
    assert fill_polygons([square(-5, 50)], (7, 11)).mask.all()


def test_smoothing_rounds_corners_and_moves_little():
    rows, columns = np.mgrid[:64, :64]
    disc = ((rows - 30.2) ** 2 + (columns - 31.7) ** 2 < 22**2) & ((rows - 28) ** 2 + (columns - 33) ** 2 > 8**2)
    mask = disc[None]
    (polygon,) = outline(mask, smooth=True)[0]
    turns = np.diff(polygon, axis=0)
    lengths = np.linalg.norm(turns, axis=1)
    cosine = (turns[1:] * turns[:-1]).sum(axis=1) / (lengths[1:] * lengths[:-1])
    assert np.median(cosine) > 0.99  # a staircase has right angles
    found = refilled(mask, smooth=True)
    dice = 2 * (found & mask).sum() / (found.sum() + mask.sum())
    assert dice > 0.99


def test_smoothing_loses_no_object(rng):
    mask = np.zeros((1, 11, 13), bool)
    mask[0, 2, 3] = mask[0, 6:8, 6:8] = True
    assert np.array_equal(refilled(mask, smooth=True), mask)


def test_an_empty_mask_has_no_polygons():
    assert outline(np.zeros((5, 7, 11), bool)) == [[], [], [], [], []]
