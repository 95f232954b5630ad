"""How far the surfaces of two objects lie apart, in mm, on anisotropic grids.

What a surface is:

- ``subvoxel`` (default): the surfels of Nikolov et al., Deep learning to achieve clinically applicable segmentation
  of head and neck anatomy, arXiv:1809.04430 (also J Med Internet Res 2021, 23:e26151), as in DeepMind's package
  surface-distance. An element sits at each corner of the voxel grid whose 2 x 2 x 2 neighbours are not all alike;
  its weight is the area, in mm2, of the marching-cubes triangles between these neighbours.
- ``border``: the voxels of an object with at least one of their six face neighbours outside it, at their centres, each
  of weight 1. The outside of the array counts as background, as in MONAI.
- ``chaos``: the same, but the outside of the array counts as the object: where an object is cut off by the image is
  no border. Kavur et al., CHAOS challenge, Medical Image Analysis 2021, 69:101950, and its published Python code.

Distances go from each element of one surface to the nearest element of the other. In two dimensions the elements
are those of 2 x 2 pixels (lengths, in mm) and of the four edge neighbours.

What follows from the distances (Maier-Hein et al., Metrics reloaded, Nature Methods 2024, 21:195): NSD, HD95, ASSD.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from medseg.errors import ConfigError, InputError
from medseg.metrics.windows import in_common_window
from medseg.values.geometry import spacing_of
from medseg.values.instances import Instance, InstanceSet
from medseg.values.pairs import PairTable, common_labels, on_grid_of

Surface = Literal["subvoxel", "border", "chaos"]

NAN = float("nan")
#: A distance that exceeds a tolerance by less than this has only been rounded.
ROUNDING_MM = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class SurfaceDistances:
    """Distances between two surfaces, both ways.

    Attributes:
        reference_mm: [n] float64, from each element of the reference's surface to the prediction's, mm; infinite
            where the prediction has none.
        prediction_mm: [m] float64, the other way round.
        reference_weights, prediction_weights: [n], [m] float64, areas of the elements in mm2 (lengths in mm in two
            dimensions); None where every element counts alike.
    """

    reference_mm: NDArray[np.float64]
    prediction_mm: NDArray[np.float64]
    reference_weights: NDArray[np.float64] | None
    prediction_weights: NDArray[np.float64] | None

    def nsd(self, tolerance_mm: float) -> float:
        """Return the normalised surface Dice: the share of both surfaces within the tolerance of the other.

        0 where the prediction has no surface, NaN where the reference has none. A distance equal to the tolerance
        is within it.

        Raises:
            ConfigError: the tolerance is negative or not finite.
        """
        if not 0 <= tolerance_mm < np.inf:
            raise ConfigError(f"surface tolerance {tolerance_mm} mm: expected a finite number, 0 or more")
        if not len(self.reference_mm):
            return NAN
        within = [distances <= tolerance_mm + ROUNDING_MM for distances in (self.reference_mm, self.prediction_mm)]
        if self.reference_weights is None or self.prediction_weights is None:
            return float(np.concatenate(within).mean())
        weights = np.concatenate([self.reference_weights, self.prediction_weights])
        return float(weights[np.concatenate(within)].sum() / weights.sum())

    def hd(self, percentile: float) -> float:
        """Return the Hausdorff distance at a percentile in mm: the larger of the two directed ones.

        100 is the Hausdorff distance itself (the maximum symmetric surface distance), 95 is HD95. Weighted surfaces
        take the smallest distance that covers the percentage of the area, unweighted ones interpolate linearly. NaN
        where either surface is missing.

        Raises:
            ConfigError: a percentile outside 0..100.
        """
        if not 0 <= percentile <= 100:
            raise ConfigError(f"Hausdorff percentile {percentile}: expected 0..100")
        if not (len(self.reference_mm) and len(self.prediction_mm)):
            return NAN
        return max(
            _percentile(self.reference_mm, self.reference_weights, percentile),
            _percentile(self.prediction_mm, self.prediction_weights, percentile),
        )

    def assd(self) -> float:
        """Return the average symmetric surface distance in mm, the elements of both surfaces pooled.

        Each counts by its weight. NaN where either surface is missing.
        """
        if not (len(self.reference_mm) and len(self.prediction_mm)):
            return NAN
        distances = np.concatenate([self.reference_mm, self.prediction_mm])
        if self.reference_weights is None or self.prediction_weights is None:
            return float(distances.mean())
        return float(np.average(distances, weights=np.concatenate([self.reference_weights, self.prediction_weights])))


def surface_distances(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    *,
    surface: Surface = "subvoxel",
) -> SurfaceDistances:
    """Measure the distances between the surfaces of two objects.

    Args:
        reference, prediction: bool arrays of one shape, two or three dimensions: both objects in a common window.
            Empty ones are fine. For ``chaos`` the window ends where the image ends or holds a margin of a voxel.
        spacing_mm: distance between voxel centres along each axis, mm.
        surface: see the module text.

    Raises:
        InputError: arrays that are not bool, not of one shape or not of two or three dimensions, or a spacing that
            does not fit them.
        ConfigError: an unknown surface.
    """
    if reference.dtype != np.bool_ or prediction.dtype != np.bool_ or reference.shape != prediction.shape:
        raise InputError(
            f"surfaces of {reference.dtype}{reference.shape} and {prediction.dtype}{prediction.shape}: expected two "
            "bool arrays of one shape"
        )
    spacing = np.asarray(spacing_mm, np.float64)
    if reference.ndim not in (2, 3) or spacing.shape != (reference.ndim,):
        raise InputError(
            f"surfaces in an array of shape {reference.shape} with spacing {tuple(spacing_mm)} mm: expected two or "
            "three axes and a spacing for each"
        )
    if not (np.isfinite(spacing) & (spacing > 0)).all():
        raise InputError(f"spacing {tuple(spacing_mm)} mm: expected finite numbers above 0")
    if surface not in get_args(Surface):
        raise ConfigError(f"surface {surface!r}: expected one of {', '.join(get_args(Surface))}")
    first_areas: NDArray[np.float64] | None = None
    second_areas: NDArray[np.float64] | None = None
    if surface == "subvoxel":
        first, first_areas = _surfels(reference, spacing)
        second, second_areas = _surfels(prediction, spacing)
    else:
        first, second = (border_voxels(mask, surface == "chaos") for mask in (reference, prediction))
    points, goals = np.argwhere(first), np.argwhere(second)
    return SurfaceDistances(
        reference_mm=_nearest_mm(points, goals, second[first], spacing),
        prediction_mm=_nearest_mm(goals, points, first[second], spacing),
        reference_weights=first_areas,
        prediction_weights=second_areas,
    )


def pair_surface_distances(
    reference: InstanceSet,
    prediction: InstanceSet,
    pairs: PairTable,
    rows: NDArray[np.int64],
    *,
    surface: Surface = "subvoxel",
) -> list[SurfaceDistances]:
    """Measure pairs of objects, each in a window of its own.

    On a grid of a single slice the surfaces are contours in the plane of that slice.

    Args:
        reference, prediction: the sets that ``pairs`` was made of.
        pairs: their touching pairs.
        rows: [M] rows of ``pairs``, for example `PairTable.matching`.
        surface: see the module text.

    Returns:
        One entry per row, in their order.

    Raises:
        GeometryError: the grids differ.
    """
    prediction = on_grid_of(reference, prediction)
    return [
        _distances(
            [reference.instances[pairs.reference[row]]],
            [prediction.instances[pairs.prediction[row]]],
            reference.geometry,
            surface,
        )
        for row in rows
    ]


def class_surface_distances(
    reference: InstanceSet, prediction: InstanceSet, *, surface: Surface = "subvoxel"
) -> dict[str, SurfaceDistances]:
    """Measure class by class: the union of the reference's objects against that of the predicted ones.

    Args:
        reference, prediction: objects on the same grid in world space (any axis order).
        surface: see the module text; on a grid of a single slice, contours in the plane of that slice.

    Returns:
        One entry per label name of either table, the reference's first, as `medseg.metrics.overlap.voxel_overlap`.

    Raises:
        GeometryError: the grids differ.
    """
    prediction = on_grid_of(reference, prediction)
    joint, to_joint = common_labels(reference.labels, prediction.labels)
    return {
        label.name: _distances(
            [i for i in reference if i.label == label.id],
            [i for i in prediction if to_joint[i.label] == label.id],
            reference.geometry,
            surface,
        )
        for label in joint
    }


def _distances(
    first: Sequence[Instance], second: Sequence[Instance], geometry: VolumeGeometry, surface: Surface
) -> SurfaceDistances:
    spacing = list(spacing_of(geometry))
    shape = geometry.spatial_shape
    if first or second:
        a, b = in_common_window(first, second, shape=shape, margin=1)
    else:
        a = b = np.zeros((1, 1, 1), np.bool_)
    if shape.count(1) == 1:
        flat = shape.index(1)
        a, b = a.squeeze(flat), b.squeeze(flat)
        del spacing[flat]
    return surface_distances(a, b, spacing, surface=surface)


def border_voxels(mask: NDArray[np.bool_], outside: bool) -> NDArray[np.bool_]:
    """Return the voxels of an object that a face neighbour outside the object adjoins.

    Args:
        mask: bool, any number of axes.
        outside: what lies beyond the array: True more of the object, False background.
    """
    return mask & ~binary_erosion(mask, border_value=int(outside))


def surfel_areas(spacing_mm: ArrayLike) -> NDArray[np.float64]:
    """Return [256] ([16] for two axes): area in mm2 (length in mm) of each surfel by its neighbours.

    The neighbour with offsets (i, j, k) is bit i + 2 j + 4 k of the index.
    """
    spacing = np.asarray(spacing_mm, np.float64)
    normals = _unit_normals(len(spacing))
    # The area vector of a triangle scales along each axis with the spacings of the other axes.
    scale = np.prod(spacing) / spacing
    return np.linalg.norm(normals * scale, axis=2).sum(axis=1)


def _surfels(mask: NDArray[np.bool_], spacing: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return where the surfels of an object are, [n + 1 along each axis] bool, and their areas in array order."""
    codes: NDArray[np.uint8] = np.pad(mask, 1).view(np.uint8)
    for axis in range(mask.ndim):  # each step joins two neighbours: bits 0 | 1, then 01 | 23, then 0123 | 4567
        low = [slice(None)] * mask.ndim
        high = list(low)
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        codes = codes[tuple(low)] | np.left_shift(codes[tuple(high)], np.uint8(1 << axis))
    areas = surfel_areas(spacing)
    where = (codes != 0) & (codes != len(areas) - 1)
    return where, areas[codes[where]]


@cache
def _unit_normals(dimensions: int) -> NDArray[np.float64]:
    """Return [256, 4, 3] ([16, 2, 2]): area vectors of the marching-cubes triangles at spacing 1, zeros where none.

    Neighbourhoods of more than half of the corners have the surface of their complement.
    """
    corners = 2**dimensions
    table = np.zeros((2**corners, dimensions + 1 if dimensions == 3 else 2, dimensions))
    for code in range(1, 2**corners - 1):
        used = code if code.bit_count() <= corners // 2 else 2**corners - 1 - code
        cell = np.array([used >> bit & 1 for bit in range(corners)], np.float32).reshape((2,) * dimensions, order="F")
        vectors = _triangles(cell) if dimensions == 3 else _segments(cell)
        table[code, : len(vectors)] = vectors
    return table


def _triangles(cell: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return [T, 3] area vectors of the triangles that part the ones from the zeros of a [2, 2, 2] cell."""
    from skimage.measure import marching_cubes

    vertices, faces, _, _ = marching_cubes(cell, 0.5, method="lorensen")
    a, b, c = vertices[faces].astype(np.float64).transpose(1, 0, 2)
    return np.cross(b - a, c - a) / 2


def _segments(cell: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return [T, 2] normals, of the segments' lengths, of the contour in a [2, 2] cell."""
    from skimage.measure import find_contours

    segments = np.concatenate([np.diff(line, axis=0) for line in find_contours(cell, 0.5)])
    return segments[:, ::-1] * (1, -1)


def _percentile(values: NDArray[np.float64], weights: NDArray[np.float64] | None, percentile: float) -> float:
    if weights is None:
        return float(np.percentile(values, percentile))
    order = np.argsort(values)
    covered = np.cumsum(weights[order])
    # Rounding of the sum does not decide whether the percentage is reached.
    position = np.searchsorted(covered, percentile / 100 * covered[-1] * (1 - 1e-12))
    return float(values[order[position]])


def _nearest_mm(
    points: NDArray[np.intp], goals: NDArray[np.intp], met: NDArray[np.bool_], spacing: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the distance in mm from each of ``points`` [n, d] to the nearest of ``goals`` [m, d].

    A search tree of the goals: exact as a distance transform is, and the volume between the surfaces costs nothing.

    Args:
        points, goals: array indices.
        met: [n], which points are goals themselves: there is nothing to search.
        spacing: [d], mm.
    """
    if not len(goals):
        return np.full(len(points), np.inf)
    distances = np.zeros(len(points))
    apart = points[~met]
    tree = KDTree(goals * spacing, leafsize=32, balanced_tree=False, compact_nodes=False)
    nearest: NDArray[np.intp] = tree.query(apart * spacing)[1]
    # From differences of indices: 3 steps of 0.7 mm are the same number everywhere in the volume.
    distances[~met] = np.linalg.norm((apart - goals[nearest]) * spacing, axis=1)
    return distances
