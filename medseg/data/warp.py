"""Which pixels of a slice a training sample shows: those of a crop, or of a crop that is turned, scaled and bent.

Image and masks are cut by the same object, so they cannot drift apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medseg.values.augmentation import AugmentationPlan

#: Squares along each side of a crop between whose corners a warp bends smoothly.
CONTROL_SQUARES = 8


class Seen(NamedTuple):
    """What a sample shows of an object.

    share [h, w] uint8: how much of each pixel the object covers, 255 for all of it; (row, column) of that patch in
    the sample; pixels that the object would cover were it not cut off by the sample's edges.
    """

    share: NDArray[np.uint8]
    corner: tuple[int, int]
    whole: float


@dataclass(frozen=True)
class Crop:
    """Pixels as they are: a rectangle of a slice, which may reach beyond it.

    Attributes:
        first: (row, column) of its first pixel in the slice.
        size: (rows, columns).
    """

    first: tuple[int, int]
    size: tuple[int, int]

    def window(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Return the part of a slice of a shape that is needed for an image; at least one pixel."""
        return _window(self.first, [f + n for f, n in zip(self.first, self.size, strict=True)], shape)

    def image(self, pixels: NDArray[np.float32], window: tuple[slice, slice]) -> Tensor:
        """Return [C, H, W] from the [C, h, w] pixels of a window; beyond the slice its edge is repeated."""
        before = [max(part.start - first, 0) for part, first in zip(window, self.first, strict=True)]
        after = [n - b - m for n, b, m in zip(self.size, before, pixels.shape[1:], strict=True)]
        padding = ((0, 0), *zip(before, after, strict=True))
        return torch.from_numpy(np.pad(pixels, padding, mode="edge"))

    def see(self, plane: NDArray[np.bool_], offset: tuple[int, int]) -> Seen | None:
        """Return what is seen of an object with mask ``plane`` at ``offset`` in the slice; None if nothing."""
        part, corner = self.cut(plane, offset)
        pixels = float(np.count_nonzero(part))
        return Seen(part * np.uint8(255), corner, pixels) if pixels else None

    def cut(self, plane: NDArray[np.bool_], offset: tuple[int, int]) -> tuple[NDArray[np.bool_], tuple[int, int]]:
        """Return the part of an object's mask in the crop, which may have no pixels, and its (row, column) there."""
        (top, left), (rows, columns), (height, width) = self.first, self.size, plane.shape
        row, column = offset[0] - top, offset[1] - left
        low = max(0, row), max(0, column)
        high = max(low[0], min(rows, row + height)), max(low[1], min(columns, column + width))
        return plane[low[0] - row : high[0] - row, low[1] - column : high[1] - column], low


@dataclass(frozen=True, eq=False)
class Warp:
    """A crop whose pixel at p, from its centre, shows the slice at centre + matrix @ p + displacement(p).

    Attributes:
        centre: (row, column) index in the slice.
        size: (rows, columns).
        matrix: [2, 2], (row, column) of the slice per (row, column) of the crop.
        control: [2, n, n] displacements, (row, column) in pixels of the slice, at the control points; None: none.
    """

    centre: tuple[float, float]
    size: tuple[int, int]
    matrix: NDArray[np.float64]
    control: NDArray[np.float64] | None = None

    @cached_property
    def grid(self) -> Tensor:
        """[H, W, 2] float32: the (column, row) index in the slice that each pixel shows."""
        rows, columns = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in self.size)
        out = torch.empty((*self.size, 2))
        for axis in range(2):
            along = rows * float(self.matrix[axis, 0]) + self.centre[axis]
            torch.add(along[:, None], columns * float(self.matrix[axis, 1]), out=out[..., 1 - axis])
        if self.control is not None:
            down, across = (spline_basis(n) for n in self.size)
            bends = np.einsum("kij,cj->ick", self.control[::-1], across).astype(np.float32)
            out.view(self.size[0], -1).addmm_(torch.from_numpy(down), torch.from_numpy(bends.reshape(len(bends), -1)))
        return out

    def window(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Return the part of a slice of a shape that is needed for an image; at least one pixel."""
        return self._around.window(shape)

    def image(self, pixels: NDArray[np.float32], window: tuple[slice, slice]) -> Tensor:
        """Return [C, H, W] from the [C, h, w] pixels of a window; beyond the slice its edge is repeated."""
        first = (window[0].start, window[1].start)
        return _sample(torch.from_numpy(pixels), self.grid, first, "border")

    def see(self, plane: NDArray[np.bool_], offset: tuple[int, int]) -> Seen | None:
        """Return what is seen of an object with mask ``plane`` at ``offset`` in the slice; None if nothing."""
        box = self._box(plane.shape, offset)
        if box is None:
            return None
        rows, columns = box
        # Of what lies outside the window around the warped crop, nothing could be seen.
        part, _ = self._around.cut(plane, offset)
        pixels = np.count_nonzero(part)
        if not pixels:
            return None
        mask = torch.from_numpy(plane.astype(np.float32))[None]
        share = _sample(mask, self.grid[rows, columns], offset, "zeros")[0].numpy()
        whole = pixels * abs(float(np.linalg.det(self._inverse)))
        return Seen(np.rint(share * np.float32(255)).astype(np.uint8), (rows.start, columns.start), whole)

    @cached_property
    def _around(self) -> Crop:
        """The crop of the slice around everything that is shown."""
        # Extremes of rows first: much quicker than those of every other number.
        lines = self.grid.view(self.size[0], -1)
        low, high = (lines.amin(0).view(-1, 2).amin(0).tolist(), lines.amax(0).view(-1, 2).amax(0).tolist())
        first = (math.floor(low[1]), math.floor(low[0]))
        return Crop(first, (math.ceil(high[1]) + 1 - first[0], math.ceil(high[0]) + 1 - first[1]))

    @cached_property
    def _inverse(self) -> NDArray[np.float64]:
        return np.asarray(np.linalg.inv(self.matrix), np.float64)

    @cached_property
    def _reach(self) -> tuple[float, float]:
        """How far, in pixels of the slice, what a pixel shows may lie from where the matrix puts it; and one pixel."""
        # A displacement is a mean of control points, so it is nowhere larger than they are.
        rows, columns = (0.0, 0.0) if self.control is None else np.abs(self.control).max(axis=(1, 2)).tolist()
        return 1 + rows, 1 + columns

    def _box(self, shape: tuple[int, ...], offset: tuple[int, int]) -> tuple[slice, slice] | None:
        """Return a part of the sample outside of which a rectangle of the slice is not seen; None: nowhere."""
        middle = [o + (n - 1) / 2 - c for o, n, c in zip(offset, shape, self.centre, strict=True)]
        half = [(n - 1) / 2 + r for n, r in zip(shape, self._reach, strict=True)]
        parts = []
        for (a, b), n in zip(self._inverse.tolist(), self.size, strict=True):
            there = a * middle[0] + b * middle[1] + (n - 1) / 2
            reach = abs(a) * half[0] + abs(b) * half[1]
            parts.append(slice(max(math.floor(there - reach), 0), min(math.ceil(there + reach) + 1, n)))
        rows, columns = parts
        return None if rows.stop <= rows.start or columns.stop <= columns.start else (rows, columns)


View = Crop | Warp


def draw_warp(
    first: tuple[int, int],
    size: tuple[int, int],
    plan: AugmentationPlan,
    *,
    rotate_degrees: float,
    flip_rows: bool,
    flip_columns: bool,
    rng: np.random.Generator,
) -> Warp:
    """Draw a warp of the crop at ``first`` from a generator.

    Args:
        first: (row, column) of the crop's first pixel in the slice.
        size: (rows, columns) of the crop.
        plan: ranges of zoom, shear and elastic.
        rotate_degrees: the largest angle in the plane of the slice, either way.
        flip_rows, flip_columns: whether half of the samples are mirrored along them.
        rng: every call takes as many numbers from it, whatever the plan.
    """
    angle = np.deg2rad(rng.uniform(-rotate_degrees, rotate_degrees))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = rng.uniform(-plan.shear, plan.shear, 2)
    zoom = rng.uniform(1 - plan.zoom, 1 + plan.zoom, 2)
    mirrored = rng.random(2) < 0.5
    signs = np.where(mirrored & (flip_rows, flip_columns), -1.0, 1.0)
    matrix = turn @ np.array([[1.0, shear[0]], [shear[1], 1.0]]) @ np.diag(zoom * signs)
    bent = rng.random() < plan.elastic_share
    points = CONTROL_SQUARES + 3
    moves = rng.uniform(-plan.elastic, plan.elastic, (2, points, points))
    control = moves * (np.array(size) / CONTROL_SQUARES)[:, None, None] if bent else None
    centre = (first[0] + (size[0] - 1) / 2, first[1] + (size[1] - 1) / 2)
    return Warp(centre, size, matrix, control)


def spline_basis(pixels: int) -> NDArray[np.float32]:
    """Return [pixels, CONTROL_SQUARES + 3] weights of the control points of a uniform cubic B-spline along an axis.

    Rueckert et al. 1999, IEEE TMI 18:712, eq. 3. Rows sum to 1.
    """
    at = (np.arange(pixels) + 0.5) * CONTROL_SQUARES / pixels
    cell = np.floor(at).astype(int)
    u = at - cell
    weights = np.stack([(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3], axis=1) / 6
    basis = np.zeros((pixels, CONTROL_SQUARES + 3))
    np.put_along_axis(basis, cell[:, None] + np.arange(4), weights, axis=1)
    return basis.astype(np.float32)


def _sample(pixels: Tensor, grid: Tensor, first: tuple[int, int], padding: str) -> Tensor:
    """Sample [C, h, w] pixels, the first of which is ``first`` in the slice, at [H, W, 2] indices of the slice."""
    rows, columns = grid.shape[:2]
    height, width = pixels.shape[1:]
    # To (x, y) from -1 to 1, from edge to edge; whole rows at a time, several times as quick as pair by pair.
    scale, shift = (
        torch.from_numpy(np.tile(np.array(pair, np.float32), columns))
        for pair in ((2 / width, 2 / height), ((1 - 2 * first[1]) / width - 1, (1 - 2 * first[0]) / height - 1))
    )
    at = torch.addcmul(shift, grid.flatten(1), scale).view(1, rows, columns, 2)
    return F.grid_sample(pixels[None], at, mode="bilinear", padding_mode=padding, align_corners=False)[0]


def _window(first: Sequence[int], stop: Sequence[int], shape: Sequence[int]) -> tuple[slice, slice]:
    parts = []
    for low, high, limit in zip(first, stop, shape, strict=True):
        start = min(max(low, 0), limit - 1)
        parts.append(slice(start, max(min(high, limit), start + 1)))
    return parts[0], parts[1]
