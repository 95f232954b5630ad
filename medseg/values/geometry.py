"""Grids in the patient: checks, comparison in world space, and exact changes of axis order.

A grid is a `highdicom.VolumeGeometry`: a shape (slice, row, column) and an affine from array indices to
LPS millimetres. `highdicom.Volume` carries the voxels besides. Neither checks that its affine is finite,
so every reader ends in `check_volume`.
"""

from dataclasses import dataclass
from itertools import permutations
from typing import Literal, TypeVar

import numpy as np
from highdicom import Volume, VolumeGeometry
from numpy.typing import ArrayLike, NDArray

from medseg.errors import ConfigError, GeometryError

Orientation = str  # three of L/R, P/A, H/F (towards left, posterior, head ...), or "acquisition"
ACQUISITION: Literal["acquisition"] = "acquisition"
#: LPS direction each letter points to.
_LETTERS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "H": (2, 1), "F": (2, -1)}
#: How far the far corner may move when nearly orthogonal axes are made orthogonal.
POLISH_MM = 0.05
#: How far apart two grids may lie anywhere and still be the same grid.
SAME_GRID_MM = 0.01

Grid = TypeVar("Grid", Volume, VolumeGeometry)


def spacing_of(grid: Volume | VolumeGeometry) -> tuple[float, float, float]:
    """Return the distance between voxel centres in mm along (slice, row, column)."""
    z, y, x = np.linalg.norm(grid.affine[:3, :3], axis=0)
    return float(z), float(y), float(x)


def corners_of(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the [8, 3] world positions (mm) of the centres of the corner voxels."""
    index = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), axis=-1).reshape(8, 3)
    return index @ affine[:3, :3].T + affine[:3, 3]


def check_affine(affine: ArrayLike, shape: tuple[int, ...], source: str) -> NDArray[np.float64]:
    """Return the affine with exactly orthogonal axes, or refuse it.

    Args:
        affine: [4, 4], array index -> LPS mm.
        shape: (slices, rows, columns).
        source: what to call the volume in an error.

    Raises:
        GeometryError: not finite, a spacing of zero, or axes so far from orthogonal that making them so
            would move a corner of the volume by more than ``POLISH_MM``.
    """
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise GeometryError(f"{source}: the affine is not a finite 4 x 4 matrix; check the file's header")
    if len(shape) != 3 or min(shape) < 1:
        raise GeometryError(f"{source}: shape {tuple(shape)}, expected three axes with at least one voxel each")
    if not np.array_equal(matrix[3], (0.0, 0.0, 0.0, 1.0)):
        raise GeometryError(f"{source}: last row of the affine is {matrix[3].tolist()}, expected [0, 0, 0, 1]")
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    if spacing.min() < 1e-6:
        raise GeometryError(f"{source}: voxel spacing {spacing.tolist()} mm, expected more than zero along every axis")
    directions = matrix[:3, :3] / spacing
    u, _, vt = np.linalg.svd(directions)
    polished = matrix.copy()
    polished[:3, :3] = (u @ vt) * spacing
    moved = np.linalg.norm(corners_of(polished, shape) - corners_of(matrix, shape), axis=1).max()
    if moved > POLISH_MM:
        raise GeometryError(
            f"{source}: the axes are sheared (a corner of the volume is {moved:.2f} mm off a rectangular grid, "
            f"at most {POLISH_MM} mm is accepted); resample the image to a rectangular grid first"
        )
    return polished if moved > 1e-9 else matrix


def check_volume(volume: Volume, source: str) -> Volume:
    """Return the volume with a sound affine and 3 spatial axes, or refuse it (see `check_affine`)."""
    if volume.array.ndim != 3:
        raise GeometryError(f"{source}: array of shape {volume.array.shape}, expected (slices, rows, columns)")
    affine = check_affine(volume.affine, volume.array.shape, source)
    return Volume(volume.array, affine, "PATIENT", frame_of_reference_uid=volume.frame_of_reference_uid)


def make_volume(array: NDArray, affine: ArrayLike, source: str, frame_of_reference_uid: str | None = None) -> Volume:
    """Build a checked Volume from an array (slice, row, column) and its LPS affine."""
    checked = check_affine(affine, array.shape, source)
    return Volume(array, checked, "PATIENT", frame_of_reference_uid=frame_of_reference_uid)


@dataclass(frozen=True, kw_only=True)
class AxisMap:
    """An exact change of axis order and direction; no voxel is resampled.

    New axis i is old axis ``order[i]``, reversed where ``flips[i]``.
    """

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def array(self, array: NDArray) -> NDArray:
        """Return a view of a (slice, row, column) array in the new order."""
        moved = array.transpose(self.order)
        return moved[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the shape in the new order."""
        return shape[self.order[0]], shape[self.order[1]], shape[self.order[2]]

    def offset(self, offset: tuple[int, ...], size: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the first index of a crop (``offset``, ``size`` within ``shape``, old order) in the new order."""
        new = [
            shape[old] - offset[old] - size[old] if flip else offset[old]
            for old, flip in zip(self.order, self.flips, strict=True)
        ]
        return new[0], new[1], new[2]

    def geometry(self, grid: Volume | VolumeGeometry) -> VolumeGeometry:
        """Return the same grid, its axes in the new order."""
        affine = np.eye(4)
        origin = grid.affine[:3, 3].copy()
        for new, (old, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            step = grid.affine[:3, old]
            affine[:3, new] = -step if flip else step
            if flip:
                origin = origin + step * (grid.spatial_shape[old] - 1)
        affine[:3, 3] = origin
        return VolumeGeometry(
            affine, self.shape(grid.spatial_shape), "PATIENT", frame_of_reference_uid=grid.frame_of_reference_uid
        )

    def volume(self, volume: Volume) -> Volume:
        """Return the volume, its axes in the new order (the array is a view)."""
        geometry = self.geometry(volume)
        return Volume(
            self.array(volume.array), geometry.affine, "PATIENT", frame_of_reference_uid=volume.frame_of_reference_uid
        )

    def inverse(self) -> "AxisMap":
        """Return the map that undoes this one."""
        order = [0, 0, 0]
        flips = [False, False, False]
        for new, old in enumerate(self.order):
            order[old] = new
            flips[old] = self.flips[new]
        return AxisMap(order=(order[0], order[1], order[2]), flips=(flips[0], flips[1], flips[2]))


IDENTITY = AxisMap(order=(0, 1, 2), flips=(False, False, False))


def check_orientation(orientation: Orientation) -> None:
    """Refuse (ConfigError) what is neither ``acquisition`` nor three letters that name three different axes."""
    letters = orientation.upper()
    known = len(letters) == 3 and {_LETTERS.get(c, (-1, 0))[0] for c in letters} == {0, 1, 2}
    if orientation != ACQUISITION and not known:
        raise ConfigError(
            f"orientation {orientation!r}: expected one each of L/R, P/A and H/F (for example HPL) or 'acquisition'"
        )


def orientation_map(grid: Volume | VolumeGeometry, orientation: Orientation) -> AxisMap:
    """Return the axis map that brings a grid closest to an orientation.

    Args:
        grid: the source grid, possibly oblique.
        orientation: where slices, rows and columns increase towards, e.g. ``"HPL"`` (head, posterior,
            left); ``"acquisition"`` keeps the stored axes.

    Raises:
        ConfigError: letters that do not name three different axes.
    """
    if orientation == ACQUISITION:
        return IDENTITY
    check_orientation(orientation)
    letters = orientation.upper()
    wanted = np.zeros((3, 3))
    for axis, letter in enumerate(letters):
        world, sign = _LETTERS[letter]
        wanted[world, axis] = sign
    directions = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    alignment = wanted.T @ directions  # [new axis, old axis], cosine
    best = max(permutations(range(3)), key=lambda order: round(sum(abs(alignment[i, order[i]]) for i in range(3)), 9))
    flips = [bool(alignment[i, best[i]] < 0) for i in range(3)]
    return AxisMap(order=(best[0], best[1], best[2]), flips=(flips[0], flips[1], flips[2]))


def grid_map(
    source: Volume | VolumeGeometry, target: Volume | VolumeGeometry, tolerance_mm: float = SAME_GRID_MM
) -> AxisMap | None:
    """Return the axis map from one grid to another that lies in the same place, or None where none does.

    Grids are compared in world space: equal up to axis order and flips is the same grid, judged at the
    corner of the volume where the difference is largest.
    """
    for order in permutations(range(3)):
        if tuple(source.spatial_shape[i] for i in order) != tuple(target.spatial_shape):
            continue
        flips = []
        for new, old in enumerate(order):
            flips.append(bool(np.dot(source.affine[:3, old], target.affine[:3, new]) < 0))
        candidate = AxisMap(order=(order[0], order[1], order[2]), flips=(flips[0], flips[1], flips[2]))
        moved = candidate.geometry(source)
        distance = corners_of(moved.affine, moved.spatial_shape) - corners_of(target.affine, target.spatial_shape)
        if np.linalg.norm(distance, axis=1).max() <= tolerance_mm:
            return candidate
    return None


def same_grid(a: Volume | VolumeGeometry, b: Volume | VolumeGeometry, tolerance_mm: float = SAME_GRID_MM) -> bool:
    """Tell whether two grids hold the same voxels in the patient, whatever their axis order."""
    return grid_map(a, b, tolerance_mm) is not None


def describe_grid(grid: Volume | VolumeGeometry) -> str:
    """Return shape, spacing and origin of a grid in one line, for messages."""
    shape = " x ".join(str(n) for n in grid.spatial_shape)
    spacing = " x ".join(f"{s:.4g}" for s in spacing_of(grid))
    origin = ", ".join(f"{p:.1f}" for p in grid.affine[:3, 3])
    return f"{shape} voxels of {spacing} mm at ({origin}) LPS"
