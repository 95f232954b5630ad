"""Pasting against two independent samplers: torch grid_sample and scipy map_coordinates."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from medseg.models.roi import mask_targets
from medseg.values import pasting
from medseg.values.pasting import axis_weights, cut_mask, paste_mask, paste_masks

SHAPE = (23, 31)
BOXES = [
    (4.0, 5.0, 20.0, 17.0),  # whole pixels
    (3.3, 2.7, 19.9, 18.45),  # anywhere
    (10.5, 7.5, 12.5, 9.5),  # edges on pixel centres
    (5.2, 5.2, 5.9, 5.9),  # inside one pixel, its centre covered
    (-6.4, -3.2, 8.8, 9.1),  # leaves the slice at the top left
    (25.1, 15.6, 60.2, 40.3),  # leaves it at the bottom right
    (-10.0, -10.0, 50.0, 40.0),  # larger than the slice
]


def place(mask: NDArray[np.float32], box: tuple[float, ...], shape: tuple[int, int] = SHAPE) -> NDArray[np.float32]:
    """Return the pasted mask in the size of the slice."""
    pasted, row, column = paste_mask(mask, np.array(box), shape)
    full = np.zeros(shape, np.float32)
    full[row : row + pasted.shape[0], column : column + pasted.shape[1]] = pasted
    return full


def inside(box: tuple[float, ...], shape: tuple[int, int] = SHAPE) -> NDArray[np.bool_]:
    """Return which pixels have their centre in the box."""
    y, x = (np.arange(n) + 0.5 for n in shape)
    return ((y >= box[1]) & (y < box[3]))[:, None] & ((x >= box[0]) & (x < box[2]))


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [2, 5, 28])
def test_agrees_with_grid_sample(rng: np.random.Generator, box: tuple[float, ...], size: int) -> None:
    mask = rng.random((size, size), np.float32)
    y, x = (np.arange(n) + 0.5 for n in SHAPE)
    grid = np.stack(
        np.meshgrid((x - box[0]) / (box[2] - box[0]) * 2 - 1, (y - box[1]) / (box[3] - box[1]) * 2 - 1), axis=-1
    )
    sampled = torch.nn.functional.grid_sample(
        torch.from_numpy(mask)[None, None].double(),
        torch.from_numpy(grid)[None],
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )[0, 0].numpy()
    np.testing.assert_allclose(place(mask, box), np.where(inside(box), sampled, 0), atol=1e-5)


@pytest.mark.parametrize("box", BOXES)
def test_agrees_with_map_coordinates(rng: np.random.Generator, box: tuple[float, ...]) -> None:
    mask = rng.random((14, 14), np.float32)
    y, x = (np.arange(n) + 0.5 for n in SHAPE)
    rows = (y - box[1]) / (box[3] - box[1]) * 14 - 0.5
    columns = (x - box[0]) / (box[2] - box[0]) * 14 - 0.5
    coordinates = np.meshgrid(rows, columns, indexing="ij")
    sampled = map_coordinates(mask.astype(float), coordinates, order=1, mode="nearest")
    np.testing.assert_allclose(place(mask, box), np.where(inside(box), sampled, 0), atol=1e-5)


def test_a_mask_of_the_box_size_comes_back_exactly(rng: np.random.Generator) -> None:
    mask = rng.random((9, 9), np.float32)
    pasted, row, column = paste_mask(mask, np.array([6.0, 4.0, 15.0, 13.0]), SHAPE)
    assert (row, column) == (4, 6)
    np.testing.assert_allclose(pasted, mask, atol=1e-6)


def test_a_linear_ramp_stays_where_it_is_under_any_shift() -> None:
    # cell centres of a ramp p(x) = x / 40 sampled anywhere inside give the same ramp back
    size, row, column = 20, 3.37, 2.81
    box = (column, row, column + 24.0, row + 16.0)
    centres = column + (np.arange(size) + 0.5) * 24.0 / size
    mask = np.tile((centres / 40).astype(np.float32), (size, 1))
    full = place(mask, box, (30, 40))
    x = np.arange(40) + 0.5
    between = (x >= centres[0]) & (x <= centres[-1])
    np.testing.assert_allclose(full[10, between], x[between] / 40, atol=1e-6)


@pytest.mark.parametrize(
    "box",
    [
        (5.6, 5.6, 6.4, 6.4),  # no pixel centre in it
        (5.0, 5.0, 5.0, 9.0),  # no width
        (9.0, 5.0, 5.0, 9.0),  # turned round
        (40.0, 3.0, 45.0, 8.0),  # right of the slice
        (3.0, -9.0, 8.0, -2.0),  # above it
    ],
)
def test_nothing_is_covered(box: tuple[float, ...]) -> None:
    pasted, row, column = paste_mask(np.ones((4, 4), np.float32), np.array(box), SHAPE)
    assert pasted.size == 0 and pasted.ndim == 2
    assert row >= 0 and column >= 0


def test_one_cell_is_constant_and_the_type_is_float32() -> None:
    full = place(np.full((1, 1), 0.625, np.float64), (2.0, 3.0, 9.0, 6.0))
    np.testing.assert_array_equal(full, np.where(inside((2.0, 3.0, 9.0, 6.0)), 0.625, 0))
    assert paste_mask(np.ones((3, 3)), np.array([0, 0, 3, 3]), SHAPE)[0].dtype == np.float32


@pytest.mark.parametrize("cells", [1, 2, 7])
def test_weights_of_every_pixel_sum_to_one(cells: int) -> None:
    first, count, weights = axis_weights(np.array([-2.3, 4.2, 9.0]), np.array([14.9, 4.4, 11.1]), cells, 12)
    assert first.tolist()[::2] == [0, 9] and count.tolist() == [12, 0, 2] and weights.shape == (14, cells)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert (weights >= 0).all() and (weights <= 1).all()


@pytest.mark.parametrize("weights_per_call", [1, 1 << 20])
def test_many_at_once_are_the_same_to_the_bit(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, weights_per_call: int
) -> None:
    masks = rng.random((len(BOXES), 6, 6), np.float32)
    alone = [paste_mask(mask, np.array(box), SHAPE) for mask, box in zip(masks, BOXES, strict=True)]
    monkeypatch.setattr(pasting, "WEIGHTS_PER_CALL", weights_per_call)
    for one, (pasted, row, column) in zip(alone, paste_masks(masks, np.array(BOXES), SHAPE), strict=True):
        assert (row, column) == one[1:]
        np.testing.assert_array_equal(pasted, one[0])
    assert list(paste_masks(masks[:0], np.zeros((0, 4)), SHAPE)) == []


@pytest.mark.parametrize("box", [*BOXES, (40.0, 30.0, 50.0, 35.0)])
@pytest.mark.parametrize("size", [5, 28])
def test_cutting_agrees_with_the_targets_of_training(
    rng: np.random.Generator, box: tuple[float, ...], size: int
) -> None:
    mask = rng.random(SHAPE) < 0.5
    expected = mask_targets(torch.from_numpy(mask)[None], torch.tensor([box]), torch.tensor([0]), size)[0]
    np.testing.assert_allclose(cut_mask(mask, np.array(box), size), expected.numpy(), atol=1e-5)
