"""Objects on another grid with the same voxels, checked in world space; other voxels are refused."""

from itertools import permutations, product

import numpy as np
import pytest
from highdicom import VolumeGeometry

from medseg.errors import GeometryError
from medseg.labels import LabelTable
from medseg.values.geometry import AxisMap
from medseg.values.instances import InstanceSet
from medseg.values.placement import lattice_map, place


def world(instances: InstanceSet) -> list[set[tuple[float, ...]]]:
    """The world positions of the voxels of each object, to a hundredth of a millimetre."""
    found = []
    for instance in instances:
        index = np.argwhere(instances.full_mask(instance.id))
        points = index @ instances.geometry.affine[:3, :3].T + instances.geometry.affine[:3, 3]
        found.append({tuple(point) for point in points.round(2) + 0.0})
    return found


def part(grid: VolumeGeometry, first: tuple[int, int, int], shape: tuple[int, int, int]) -> VolumeGeometry:
    """A window of a grid, which may reach beyond it."""
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first
    return VolumeGeometry(affine, shape, "PATIENT")


@pytest.fixture
def objects(oblique_geometry: VolumeGeometry, rng: np.random.Generator) -> InstanceSet:
    masks = np.zeros((2, 5, 7, 11), bool)
    masks[:, 1:4, 2:5, 3:9] = rng.random((2, 3, 3, 6)) < 0.4
    return InstanceSet.from_masks([(1, masks[0]), (1, masks[1])], oblique_geometry, LabelTable.from_names(["a"]))


def test_all_orders_and_flips_with_margins(objects: InstanceSet, oblique_geometry: VolumeGeometry) -> None:
    for order, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        larger = part(oblique_geometry, (-2, 1, -3), (8, 5, 17))
        target = AxisMap(order=order, flips=flips).geometry(larger)
        placed = place(objects, target, "objects")
        assert placed.geometry is target
        assert world(placed) == world(objects)


def test_one_slice_has_no_direction_of_its_own(oblique_geometry: VolumeGeometry) -> None:
    single = part(oblique_geometry, (3, 0, 0), (1, 7, 11))
    affine = single.affine.copy()
    affine[:3, 0] *= 1.7  # another thickness
    mask = np.zeros((1, 7, 11), bool)
    mask[0, 2, 3:5] = True
    found = InstanceSet.from_masks(
        [(1, mask)], VolumeGeometry(affine, (1, 7, 11), "PATIENT"), LabelTable.from_names(["a"])
    )
    placed = place(found, oblique_geometry, "objects")
    assert placed[1].offset == (3, 2, 3) and placed[1].mask.shape == (1, 1, 2)


def test_rounded_positions_are_the_same_voxels(objects: InstanceSet, oblique_geometry: VolumeGeometry) -> None:
    affine = oblique_geometry.affine.copy()
    affine[:3, 3] += 0.02
    placed = place(objects, VolumeGeometry(affine, (5, 7, 11), "PATIENT"), "objects")
    assert [i.offset for i in placed] == [i.offset for i in objects]


@pytest.mark.parametrize(
    ("axis", "factor", "shift"), [(0, 1.0, 0.5), (2, 1.0, 0.3), (0, 2.0, 0.0), (1, 1.1, 0.0)]
)  # fmt: skip
def test_other_voxels_are_refused(
    objects: InstanceSet, oblique_geometry: VolumeGeometry, axis: int, factor: float, shift: float
) -> None:
    affine = oblique_geometry.affine.copy()
    affine[:3, 3] += shift * affine[:3, axis]
    affine[:3, axis] *= factor
    target = VolumeGeometry(affine, (9, 12, 15), "PATIENT")
    assert lattice_map(objects.geometry, target) is None
    with pytest.raises(GeometryError, match="x.nii: the objects lies on a grid of .* voxels are not those") as caught:
        place(objects, target, "x.nii: the objects")
    assert "\n" not in str(caught.value)


def test_losing_voxels_is_refused(objects: InstanceSet, oblique_geometry: VolumeGeometry) -> None:
    target = part(oblique_geometry, (0, 0, 0), (5, 7, 6))
    with pytest.raises(GeometryError, match=r"object 1 \('a 1'\) reaches beyond the image"):
        place(objects, target, "x")
