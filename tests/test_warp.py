"""Warped crops: image and masks move together, and as the matrix and the spline say."""

import numpy as np
import pytest
import torch
from network_fixtures import ellipse

from medseg.data.warp import CONTROL_SQUARES, Crop, Seen, Warp, draw_warp, spline_basis
from medseg.values.augmentation import AugmentationPlan

SIZE = (48, 64)
SHAPE = (70, 90)
POINTS = CONTROL_SQUARES + 3


def drawn(seed: int, plan: AugmentationPlan | None = None, rotate: float = 180.0, flips: bool = True) -> Warp:
    """Return a drawn warp of a crop that reaches beyond the slice on one side."""
    rng = np.random.default_rng(seed)
    ranges = plan or AugmentationPlan(elastic_share=0.5, elastic=0.3, zoom=0.3)
    return draw_warp((9, -3), SIZE, ranges, rotate_degrees=rotate, flip_rows=flips, flip_columns=flips, rng=rng)


def image_of(view: Crop | Warp, plane: np.ndarray) -> np.ndarray:
    window = view.window(plane.shape)
    return view.image(plane[None, window[0], window[1]].astype(np.float32), window).numpy()[0]


def painted(seen: Seen | None) -> np.ndarray:
    out = np.zeros(SIZE, np.uint8)
    if seen is not None:
        (row, column), (height, width) = seen.corner, seen.share.shape
        out[row : row + height, column : column + width] = seen.share
    return out


@pytest.mark.parametrize("seed", range(6))
def test_image_and_mask_move_together(seed: int) -> None:
    """An image that equals an object's mask still does, wherever the object's cut-out begins."""
    whole = ellipse(SHAPE, (31.2, 40.4), (14.3, 22.8))
    view = drawn(seed)
    image = image_of(view, whole)
    rows, columns = slice(12, 60), slice(11, 80)
    share = painted(view.see(whole[rows, columns], (12, 11)))
    np.testing.assert_allclose(share / 255, image, atol=0.5 / 255 + 1e-4)
    assert 300 < (share >= 128).sum() < SIZE[0] * SIZE[1]


def test_small_objects_anywhere_are_found_or_are_outside() -> None:
    """No pixel of the image of a spot lies outside of the patch that is searched for it."""
    for seed in range(5):
        view = drawn(seed)
        for row, column in np.random.default_rng(seed).integers((0, 0), (67, 86), (12, 2)):
            spot = np.zeros(SHAPE, bool)
            spot[row : row + 3, column : column + 4] = True
            edge = row == 0 or column == 0 or row == 67 or column == 86
            seen = view.see(np.ones((3, 4), bool), (int(row), int(column)))
            if not edge:  # there, the image repeats the spot beyond the slice
                np.testing.assert_allclose(painted(seen) / 255, image_of(view, spot), atol=0.5 / 255 + 1e-4)


def test_a_quarter_turn_and_mirrors_are_those_of_numpy(rng: np.random.Generator) -> None:
    plane = rng.normal(size=(20, 20)).astype(np.float32)
    centre, size = (9.5, 9.5), (20, 20)
    for matrix, expected in (
        ([[0, -1], [1, 0]], np.rot90(plane, -1)),
        ([[-1, 0], [0, 1]], plane[::-1]),
        ([[1, 0], [0, -1]], plane[:, ::-1]),
        ([[1, 0], [0, 1]], plane),
    ):
        view = Warp(centre, size, np.array(matrix, float))
        np.testing.assert_allclose(image_of(view, plane), expected, atol=1e-4)


def test_zoom_and_shear_sample_a_ramp_where_they_say() -> None:
    ramp = 3.0 * np.arange(70.0)[:, None] + 0.5 * np.arange(90.0)
    view = Warp((35.0, 45.0), (11, 13), np.array([[1.2, 0.1], [-0.3, 0.8]]))
    rows, columns = np.arange(11)[:, None] - 5.0, np.arange(13) - 6.0
    expected = 3.0 * (35 + 1.2 * rows + 0.1 * columns) + 0.5 * (45 - 0.3 * rows + 0.8 * columns)
    np.testing.assert_allclose(image_of(view, ramp), expected, rtol=1e-5)


def test_the_spline_reproduces_shifts_and_stretches() -> None:
    """Uniform cubic B-splines are exact for polynomials of degree 1; control point i lies at (i - 1) squares."""
    at = (np.arange(50) + 0.5) * CONTROL_SQUARES / 50
    basis = spline_basis(50)
    np.testing.assert_allclose(basis.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(basis @ (np.arange(POINTS) - 1.0), at, atol=1e-5)
    control = np.zeros((2, POINTS, POINTS))
    control[0] = 2.5
    control[1] = 0.7 * (np.arange(POINTS) - 1)
    view = Warp((35.0, 45.0), SIZE, np.eye(2), control)
    plain = Warp((35.0, 45.0), SIZE, np.eye(2))
    moved = (view.grid - plain.grid).numpy()
    np.testing.assert_allclose(moved[..., 1], 2.5, atol=1e-4)
    along = 0.7 * (np.arange(64) + 0.5) * CONTROL_SQUARES / 64
    np.testing.assert_allclose(moved[..., 0], np.broadcast_to(along, SIZE), atol=1e-4)


def test_the_strongest_bend_folds_nothing() -> None:
    for seed in range(10):
        plan = AugmentationPlan(elastic_share=1.0, elastic=0.4, zoom=0.0, shear=0.0)
        view = drawn(seed, plan, rotate=0.0, flips=False)
        dr, dc = (np.gradient(view.grid[..., i].numpy().astype(float)) for i in (1, 0))
        assert (dr[0] * dc[1] - dr[1] * dc[0]).min() > 0


def test_the_crop_is_cut_and_its_edge_repeated() -> None:
    plane = np.arange(70.0 * 90).reshape(SHAPE)
    view = Crop((-2, 80), SIZE)
    padded = np.pad(plane, ((2, 0), (0, 60)), mode="edge")
    np.testing.assert_array_equal(image_of(view, plane), padded[:48, 80:144])
    seen = view.see(np.ones((4, 20), bool), (0, 70))
    assert seen is not None and (seen.corner, tuple(seen.share.shape), seen.whole) == ((2, 0), (4, 10), 40.0)
    assert view.see(np.ones((4, 5), bool), (0, 70)) is None and view.see(np.zeros((4, 20), bool), (0, 70)) is None


def test_what_is_cut_off_counts_in_the_size_of_the_result() -> None:
    """Sampled at half the distance, an object of 100 pixels would cover 400."""
    view = Warp((35.0, 45.0), SIZE, np.eye(2) / 2)
    seen = view.see(np.ones((10, 10), bool), (30, 40))
    assert seen is not None and seen.whole == pytest.approx(400)
    assert int((seen.share >= 128).sum()) == pytest.approx(400, abs=45)
    assert view.see(np.ones((10, 10), bool), (55, 40)) is None


def test_nothing_is_mirrored_or_turned_unless_the_plan_says_so() -> None:
    """A mirrored patient has the liver on the left: larger columns of the sample are larger columns of the slice."""
    for seed in range(12):
        step = np.array([[1, 0], [0, 1]]) @ drawn(seed, rotate=10.0, flips=False).matrix
        assert step[0, 0] > 0.5 and step[1, 1] > 0.5
    signs = {tuple(np.sign(np.diag(drawn(seed, rotate=0.0).matrix)).astype(int)) for seed in range(20)}
    assert signs == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_a_warp_is_a_function_of_its_generator() -> None:
    torch.manual_seed(3)
    a = drawn(7).grid
    torch.manual_seed(4)
    np.random.seed(1)
    assert torch.equal(a, drawn(7).grid) and not torch.equal(a, drawn(8).grid)
