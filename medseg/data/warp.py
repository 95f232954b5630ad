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

    share: Tensor
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
        start = [o - f for o, f in zip(offset, self.first, strict=True)]
        low = [max(0, s) for s in start]
        high = [min(n, s + m) for n, s, m in zip(self.size, start, plane.shape, strict=True)]
        if low[0] >= high[0] or low[1] >= high[1]:
            return None
        part = plane[low[0] - start[0] : high[0] - start[0], low[1] - start[1] : high[1] - start[1]]
        pixels = float(np.count_nonzero(part))
        return Seen(torch.from_numpy(part * np.uint8(255)), (low[0], low[1]), pixels) if pixels else None


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
        """[2, H, W] float32: the (row, column) index in the slice that each pixel shows."""
        rows, columns = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in self.size)
        out = torch.empty((2, *self.size))
        for axis in range(2):
            along = rows * float(self.matrix[axis, 0]) + self.centre[axis]
            torch.add(along[:, None], columns * float(self.matrix[axis, 1]), out=out[axis])
        if self.control is not None:
            down, across = (torch.from_numpy(spline_basis(n)) for n in self.size)
            out += down @ torch.from_numpy(self.control.astype(np.float32)) @ across.T
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
        pixels = torch.from_numpy(plane.astype(np.float32))[None]
        share = _sample(pixels, self.grid[:, rows, columns], offset, "zeros")[0]
        # Of what lies outside the window around the warped crop, nothing could be seen.
        part = self._around.see(plane, offset)
        if part is None:
            return None
        whole = part.whole * abs(float(np.linalg.det(self._inverse)))
        return Seen(share.mul_(255).round_().to(torch.uint8), (rows.start, columns.start), whole)

    @cached_property
    def _around(self) -> Crop:
        """The crop of the slice around everything that is shown."""
        ranges = [axis.aminmax() for axis in self.grid]  # much quicker than aminmax(dim=...)
        first = [math.floor(float(low)) for low, _ in ranges]
        stop = [math.ceil(float(high)) + 1 for _, high in ranges]
        return Crop((first[0], first[1]), (stop[0] - first[0], stop[1] - first[1]))

    @cached_property
    def _inverse(self) -> NDArray[np.float64]:
        return np.asarray(np.linalg.inv(self.matrix), np.float64)

    def _box(self, shape: tuple[int, ...], offset: tuple[int, int]) -> tuple[slice, slice] | None:
        """Return a part of the sample outside of which a rectangle of the slice is not seen; None: nowhere."""
        # A displacement is a mean of control points, so it is nowhere larger than they are.
        reach = np.ones(2) if self.control is None else 1 + np.abs(self.control).max(axis=(1, 2))
        low = np.array(offset) - reach - self.centre
        high = np.array(offset) + shape - 1 + reach - self.centre
        corners = np.array([(r, c) for r in (low[0], high[0]) for c in (low[1], high[1])])
        there = corners @ self._inverse.T + (np.array(self.size) - 1) / 2
        start = np.maximum(np.floor(there.min(axis=0)).astype(int), 0)
        stop = np.minimum(np.ceil(there.max(axis=0)).astype(int) + 1, self.size)
        if (stop <= start).any():
            return None
        return slice(int(start[0]), int(stop[0])), slice(int(start[1]), int(stop[1]))


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
    """Sample [C, h, w] pixels, the first of which is ``first`` in the slice, at [2, H, W] indices of the slice."""
    height, width = pixels.shape[1:]
    at = torch.empty((*grid.shape[1:], 2))  # grid_sample takes (x, y), -1..1 from edge to edge
    torch.mul(grid[1], 2 / width, out=at[..., 0]).add_((1 - 2 * first[1]) / width - 1)
    torch.mul(grid[0], 2 / height, out=at[..., 1]).add_((1 - 2 * first[0]) / height - 1)
    return F.grid_sample(pixels[None], at[None], mode="bilinear", padding_mode=padding, align_corners=False)[0]


def _window(first: Sequence[int], stop: Sequence[int], shape: Sequence[int]) -> tuple[slice, slice]:
    parts = []
    for low, high, limit in zip(first, stop, shape, strict=True):
        start = min(max(low, 0), limit - 1)
        parts.append(slice(start, max(min(high, limit), start + 1)))
    return parts[0], parts[1]
