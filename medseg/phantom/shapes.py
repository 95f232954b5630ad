"""Smooth shapes as implicit functions on a warped grid, and how much of each voxel they fill.

A shape is a function f of position with f < 0 inside, roughly in millimetres. Its truth is f < 0 at the
voxel centre; its share of the voxel (partial volume) follows from f and the local slope of f, so thick
slices blur exactly those surfaces that run through them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline

Array = NDArray[np.float32]
Point = tuple[float, float, float]
Window = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where each voxel lies in the patient's anatomy, mm: x towards left, y posterior, z head.

    Attributes:
        x, y, z: float32 arrays of one shape; the nominal grid, tilted and warped.
        axes: nominal coordinates along (slice, row, column) before tilt and warp.
        margin_mm: per array axis, how far any voxel was moved; boxes are widened by it.
    """

    x: Array
    y: Array
    z: Array
    axes: tuple[Array, Array, Array]
    margin_mm: tuple[float, float, float]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        a, b, c = self.x.shape
        return a, b, c

    def box(self, low: Point, high: Point) -> Window:
        """Return the window that holds every voxel with low <= (x, y, z) <= high; it may be empty."""
        windows = []
        for axis, margin, a, b in zip(self.axes, self.margin_mm, low[::-1], high[::-1], strict=True):
            start, stop = np.searchsorted(axis, [a - margin, b + margin])
            # One voxel more at each end: slopes are differences of neighbours.
            windows.append(slice(max(int(start) - 1, 0), min(int(stop) + 1, len(axis))))
        return windows[0], windows[1], windows[2]

    def crop(self, window: Window) -> "Frame":
        """Return the frame of one window."""
        z, y, x = (axis[part] for axis, part in zip(self.axes, window, strict=True))
        return Frame(x=self.x[window], y=self.y[window], z=self.z[window], axes=(z, y, x), margin_mm=self.margin_mm)


def smooth_field(rng: np.random.Generator, axes: tuple[Array, ...], wavelength_mm: float) -> Array:
    """Return a smooth random field of SD about 1 on a grid (tensor-product cubic B-spline).

    The control points lie ``wavelength_mm`` apart on a lattice fixed to coordinate 0, so the field is as
    smooth whatever the voxel spacing.
    """
    result: Array | None = None
    bases = []
    counts = []
    for axis in axes:
        first = int(np.floor(axis[0] / wavelength_mm)) - 2
        last = int(np.ceil(axis[-1] / wavelength_mm)) + 2
        knots = np.arange(first - 2, last + 3, dtype=np.float64) * wavelength_mm
        bases.append(BSpline.design_matrix(axis.astype(np.float64), knots, 3).toarray().astype(np.float32))
        counts.append(bases[-1].shape[1])
    # A cubic B-spline of white control points has variance 0.48 per axis on average.
    result = rng.standard_normal(counts, dtype=np.float32) / np.float32(0.479 ** (len(axes) / 2))
    for basis in bases:  # contracts the first axis and appends the new one at the end
        result = np.tensordot(result, basis, axes=(0, 1))
    return np.ascontiguousarray(result)


def make_frame(rng: np.random.Generator, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Frame:
    """Return a grid centred on the patient, tilted by a few degrees and smoothly deformed."""
    axes = [((np.arange(n) - (n - 1) / 2) * step).astype(np.float32) for n, step in zip(shape, spacing_mm, strict=True)]
    z0, y0, x0 = np.meshgrid(*axes, indexing="ij", sparse=True)
    ax, ay, az = np.radians(rng.normal(0, (1.5, 1.5, 2.5)).clip(-5, 5)).astype(np.float32)
    shift = rng.normal(0, (5, 4, 8)).clip(-12, 12).astype(np.float32)
    moved = []
    fields = [smooth_field(rng, tuple(axes), 70.0) for _ in range(3)]
    # Rotations are small: first order is exact enough and keeps the arrays float32.
    moved.append(x0 - az * y0 + ay * z0 + shift[0] + 4.0 * fields[0])
    moved.append(y0 + az * x0 - ax * z0 + shift[1] + 3.5 * fields[1])
    moved.append(z0 - ay * x0 + ax * y0 + shift[2] + 5.0 * fields[2])
    margins = [float(np.abs(m - n).max()) for m, n in zip(moved, (x0, y0, z0), strict=True)]
    return Frame(
        x=moved[0], y=moved[1], z=moved[2],
        axes=(axes[0], axes[1], axes[2]), margin_mm=(margins[2], margins[1], margins[0]),
    )  # fmt: skip


def rotation(ax: float, ay: float, az: float) -> NDArray[np.float32]:
    """Return the [3, 3] rotation by degrees about x, then y, then z."""
    a, b, c = np.radians([ax, ay, az])
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return (rz @ ry @ rx).astype(np.float32)


def ellipsoid(at: Frame, centre: Point, radii: Point, turn: NDArray[np.float32] | None = None) -> Array:
    """Return about the distance in mm to an ellipsoid (I. Quilez, "ellipsoid - distance estimation")."""
    x, y, z = at.x - np.float32(centre[0]), at.y - np.float32(centre[1]), at.z - np.float32(centre[2])
    if turn is not None:  # into the ellipsoid's own axes
        x, y, z = (turn[0, i] * x + turn[1, i] * y + turn[2, i] * z for i in range(3))
    squared = np.zeros_like(at.x)
    slope = np.zeros_like(at.x)
    for value, radius in ((x, radii[0]), (y, radii[1]), (z, radii[2])):
        part = np.square(value * np.float32(1 / radius))
        squared += part
        slope += part * np.float32(1 / radius**2)
    length = np.sqrt(squared)
    return (length * (length - 1) / np.sqrt(slope + np.float32(1e-8))).astype(np.float32)


def capsule(at: Frame, start: Point, end: Point, radius: float, end_radius: float) -> Array:
    """Return the distance in mm to a straight tube with round ends whose radius goes from one to the other."""
    direction = np.subtract(end, start).astype(np.float32)
    x, y, z = at.x - np.float32(start[0]), at.y - np.float32(start[1]), at.z - np.float32(start[2])
    share = (x * direction[0] + y * direction[1] + z * direction[2]) / np.float32(max(direction @ direction, 1e-6))
    share = np.clip(share, 0, 1)
    x, y, z = x - share * direction[0], y - share * direction[1], z - share * direction[2]
    return np.sqrt(x * x + y * y + z * z) - (np.float32(radius) + share * np.float32(end_radius - radius))


def smooth_union(a: Array, b: Array, width_mm: float) -> Array:
    """Return the union of two shapes with a rounded seam."""
    share = np.clip(0.5 + (b - a) * np.float32(0.5 / width_mm), 0, 1)
    return b + (a - b) * share - np.float32(width_mm) * share * (1 - share)


def smooth_intersection(a: Array, b: Array, width_mm: float) -> Array:
    """Return what two shapes share, with a rounded edge."""
    return -smooth_union(-a, -b, width_mm)


def occupancy(f: Array) -> Array:
    """Return the share 0..1 of each voxel that a shape fills.

    For a flat surface the share, as a function of the distance, is the convolution of three boxes whose
    widths are the changes of f across the voxel; a ramp of the same variance stands for it.
    """
    slope = np.zeros_like(f)
    for axis in range(f.ndim):
        if f.shape[axis] > 1:
            slope += np.square(np.gradient(f, axis=axis))
    return np.clip(0.5 - f / np.sqrt(slope + np.float32(1e-6)), 0, 1).astype(np.float32)
