"""Objects from one grid to another: exactly where the voxels coincide, refused or resampled where they do not."""

from dataclasses import replace
from itertools import permutations

import numpy as np
from highdicom import VolumeGeometry

from medseg.errors import GeometryError
from medseg.values.geometry import AxisMap, corners_of, describe_grid, spacing_of
from medseg.values.instances import InstanceSet, crop_to_object

#: Voxels coincide where they lie no further apart than this, and never than a fifth of a voxel: positions in
#: headers are rounded, and slices may lie 0.05 mm off their even places in both grids.
COINCIDE_MM = 0.1


def place(instances: InstanceSet, grid: VolumeGeometry, what: str) -> InstanceSet:
    """Return the same voxels on a grid that has them all: other axis order, flips, more or fewer slices or margins.

    Args:
        instances: the objects.
        grid: where they go; its voxels must coincide with those of the objects' grid where the two overlap.
        what: how the objects are called in an error.

    Raises:
        GeometryError: the voxels do not coincide, or an object would lose voxels.
    """
    found = lattice_map(instances.geometry, grid)
    if found is None:
        raise GeometryError(
            f"{what} lies on a grid of {describe_grid(instances.geometry)}, whose voxels are not those of the image "
            f"({describe_grid(grid)}); give the image it was made on, or resample it (medseg export --resample)"
        )
    axis_map, shift = found
    moved = instances.moved(axis_map)
    placed = []
    for instance in moved:
        crop = crop_to_object(instance.mask)
        assert crop is not None
        mask, inner = crop
        start = tuple(int(o + i + s) for o, i, s in zip(instance.offset, inner, shift, strict=True))
        ends = [s + n for s, n in zip(start, mask.shape, strict=True)]
        if min(start) < 0 or any(e > n for e, n in zip(ends, grid.spatial_shape, strict=True)):
            raise GeometryError(
                f"{what}: object {instance.id} ({instances.names()[instance.id - 1]!r}) reaches beyond the image "
                f"({describe_grid(grid)}); give the image it was made on"
            )
        placed.append(replace(instance, mask=mask, offset=(start[0], start[1], start[2])))
    return InstanceSet(instances=tuple(placed), geometry=grid, labels=instances.labels)


def lattice_map(source: VolumeGeometry, target: VolumeGeometry) -> tuple[AxisMap, tuple[int, int, int]] | None:
    """Return how indices of one grid become those of another with the same voxels, None where voxels differ.

    Returns:
        The axis map, and what is then added to (slice, row, column).
    """
    tolerance = min(COINCIDE_MM, min(*spacing_of(source), *spacing_of(target)) / 5)
    inverse = np.linalg.inv(target.affine)
    for order in permutations(range(3)):
        flips = [bool(np.dot(source.affine[:3, old], target.affine[:3, new]) < 0) for new, old in enumerate(order)]
        axis_map = AxisMap(order=(order[0], order[1], order[2]), flips=(flips[0], flips[1], flips[2]))
        moved = axis_map.geometry(source)
        shift = np.rint((inverse @ moved.affine[:, 3])[:3])
        there = target.affine.copy()
        there[:3, 3] += target.affine[:3, :3] @ shift
        shape = moved.spatial_shape
        if np.linalg.norm(corners_of(moved.affine, shape) - corners_of(there, shape), axis=1).max() <= tolerance:
            return axis_map, (int(shift[0]), int(shift[1]), int(shift[2]))
    return None
