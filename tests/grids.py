"""Grids in all 48 axis orders and flips, straight and oblique, and a comparison of voxels that knows no axes."""

from itertools import permutations, product
from typing import Any

import numpy as np
import SimpleITK as sitk
from highdicom import VolumeGeometry
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

SHAPE = (5, 7, 11)
SPACING_MM = np.array([3.0, 0.8, 0.7])
ORIGIN_MM = (-37.2, 51.9, -813.4)
FLIPPED_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def signed_permutations() -> dict[str, NDArray[np.float64]]:
    """Return the 48 matrices that map (slice, row, column) to a signed world axis each, named like ``+S-P+L``."""
    named = {}
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        matrix = np.zeros((3, 3))
        matrix[list(order), range(3)] = signs
        named["".join(f"{'+-'[s < 0]}{'LPS'[axis]}" for axis, s in zip(order, signs, strict=True))] = matrix
    return named


def _grids() -> dict[str, VolumeGeometry]:
    grids = {}
    for number, (name, matrix) in enumerate(signed_permutations().items()):
        for kind, turn in (("", np.eye(3)), (" oblique", Rotation.random(random_state=number).as_matrix())):
            affine = np.eye(4)
            affine[:3, :3] = turn @ matrix * SPACING_MM
            affine[:3, 3] = ORIGIN_MM
            grids[name + kind] = VolumeGeometry(affine, SHAPE, "PATIENT")
    return grids


#: 5 x 7 x 11 voxels of 3.0 x 0.8 x 0.7 mm, off the origin; 48 straight and 48 turned by 48 rotations.
GRIDS = _grids()
#: All 48 orders and flips once, every second one turned, for tests that take longer.
HALF = [name for number, name in enumerate(GRIDS) if number % 4 in (0, 3)]


def assert_same_voxels(
    found: tuple[NDArray, NDArray], expected: tuple[NDArray, NDArray], what: str, tolerance_mm: float = 0.002
) -> None:
    """Compare two (array, affine to LPS mm): where an expected voxel lies in the world, the same value is found."""
    array, affine = found
    wanted, wanted_affine = expected
    assert sorted(array.shape) == sorted(wanted.shape), what
    points = np.indices(wanted.shape).reshape(3, -1).T @ wanted_affine[:3, :3].T + wanted_affine[:3, 3]
    exact = (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    index = np.rint(exact).astype(int)
    apart = np.abs((exact - index) @ affine[:3, :3].T).max()
    assert apart <= tolerance_mm, f"{what}: {apart} mm apart"
    assert (index >= 0).all() and (index < array.shape).all(), f"{what}: elsewhere in the world"
    np.testing.assert_array_equal(array[tuple(index.T)], wanted.ravel(), err_msg=what)


def of_simpleitk(image: sitk.Image) -> tuple[NDArray, NDArray]:
    """Return the array (slice, row, column) of a SimpleITK image and its affine, from the places of four voxels."""
    origin = np.array(image.TransformIndexToPhysicalPoint((0, 0, 0)))
    affine = np.eye(4)
    for axis in range(3):
        index = [0, 0, 0]
        index[2 - axis] = 1
        affine[:3, axis] = np.array(image.TransformContinuousIndexToPhysicalPoint([float(i) for i in index])) - origin
    affine[:3, 3] = origin
    return sitk.GetArrayFromImage(image), affine


def of_nibabel(image: SpatialImage) -> tuple[NDArray, NDArray]:
    """Return the array (i, j, k) of a nibabel image and its affine to LPS."""
    return np.asarray(image.dataobj), FLIPPED_RAS @ image.affine


def of_ours(volume: Any) -> tuple[NDArray, NDArray]:
    """Return array and affine of a highdicom Volume."""
    return volume.array, volume.affine
