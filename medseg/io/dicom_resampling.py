"""Tilted and unevenly spaced slices, resampled onto the rectangular grid that they lie in.

The slices keep their planes: a voxel of the new grid lies in, or between, two of them, is sampled in both at its own
place in the patient (linear within the plane, where a tilted gantry has shifted the slices against each other), and
mixed by its distance to them along the normal (linear). Nothing is extrapolated along the normal; what no slice covers
gets the smallest value of the series, which in CT is air or padding.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Distances this even are kept in number; otherwise the smallest distance becomes the new one ...
EVEN_ENOUGH = 0.75
#: ... but no less than this share of the usual one.
FINEST = 0.25


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Where the slices lie, and the grid they are brought to.

    Attributes:
        along_mm: [n] places of the slices along their normal, the first 0, ascending.
        shifts: [n, 2] places of each slice's first pixel, in rows and columns from the first pixel of the new grid.
        levels_mm: [m] places of the new slices.
        corner: row and column of the new grid's first pixel, in pixels of the first slice.
        shape: (slices, rows, columns) of the new grid.
    """

    along_mm: NDArray[np.float64]
    shifts: NDArray[np.float64]
    levels_mm: NDArray[np.float64]
    corner: tuple[int, int]
    shape: tuple[int, int, int]

    @property
    def step_mm(self) -> float:
        """Distance of the new slices in mm."""
        return float(self.levels_mm[-1]) / (len(self.levels_mm) - 1)


def plan_resampling(along_mm: NDArray, aside: NDArray, plane: tuple[int, ...], *, even: bool) -> Resampling:
    """Choose a grid that covers all slices.

    Args:
        along_mm: [n] places along the normal, ascending from 0.
        aside: [n, 2] places of the slices within their planes, in rows and columns from the first slice.
        plane: rows and columns of a slice.
        even: the slices are evenly spaced, and only shifted against each other.
    """
    gaps = np.diff(along_mm)
    usual, smallest = float(np.median(gaps)), float(gaps.min())
    step = usual if smallest > EVEN_ENOUGH * usual else max(smallest, FINEST * usual)
    count = len(gaps) if even else max(1, round(float(along_mm[-1]) / step))
    # A thousandth of a pixel is rounding in the header; without this it would cost every slice an interpolation.
    aside = np.where(np.abs(aside - np.round(aside)) < 1e-3, np.round(aside), aside)
    low, high = np.floor(aside.min(axis=0)).astype(int), np.ceil(aside.max(axis=0)).astype(int)
    levels = np.linspace(0.0, float(along_mm[-1]), count + 1)
    return Resampling(
        along_mm=levels if even else along_mm,
        shifts=aside - low,
        levels_mm=levels,
        corner=(int(low[0]), int(low[1])),
        shape=(count + 1, plane[0] + int(high[0] - low[0]), plane[1] + int(high[1] - low[1])),
    )


def resample_planes(planes: NDArray, plan: Resampling) -> NDArray:
    """Bring planes [n, rows, columns] to the new grid; whole numbers are rounded, the type is kept."""
    fill = planes.min()
    result = np.empty(plan.shape, planes.dtype)
    shifted: dict[int, NDArray] = {}
    for level, place in enumerate(plan.levels_mm):
        below = int(np.clip(np.searchsorted(plan.along_mm, place, side="right") - 1, 0, len(planes) - 2))
        weight = (place - plan.along_mm[below]) / (plan.along_mm[below + 1] - plan.along_mm[below])
        weight = float(np.clip(round(weight, 6), 0.0, 1.0))  # a level at a slice is that slice, not nearly
        parts = [(below, 1.0 - weight), (below + 1, weight)]
        needed = [index for index, share in parts if share]
        shifted = {
            i: shifted[i] if i in shifted else _shifted(planes[i], plan.shifts[i], plan.shape[1:], fill) for i in needed
        }
        mixed = sum(shifted[index] * share for index, share in parts if share)
        result[level] = np.rint(mixed) if planes.dtype.kind in "iu" else mixed
    return result


def _shifted(plane: NDArray, shift: NDArray, shape: tuple[int, ...], fill: float) -> NDArray[np.float64]:
    """Place a plane in a larger one, moved by whole and partial pixels (linear)."""
    row, column = (int(n) for n in np.floor(shift))
    canvas = np.full(shape, float(fill))
    canvas[row : row + plane.shape[0], column : column + plane.shape[1]] = plane
    for axis, part in enumerate(shift - np.floor(shift)):
        if part > 0:
            before = np.roll(canvas, 1, axis)  # the last line is fill wherever there is a partial shift
            canvas = (1.0 - part) * canvas + part * before
    return canvas
