"""Objects by the kinds of their labels, on an oblique grid."""

import numpy as np
from highdicom import VolumeGeometry

from medseg.labels import Kind, LabelTable
from medseg.values.instances import InstanceSet
from medseg.values.kinds import by_kind


def objects(grid: VolumeGeometry, kind: Kind) -> InstanceSet:
    """Return a and b, which touch, and c apart, all of one label; and an object of another label between them."""
    boxes = [
        (1, np.s_[0:2, 0:2, 0:3]),
        (2, np.s_[4:5, 0:1, 0:1]),
        (1, np.s_[1:3, 1:4, 2:5]),
        (1, np.s_[4:5, 6:7, 9:11]),
    ]
    masks = []
    for label, box in boxes:
        mask = np.zeros((5, 7, 11), bool)
        mask[box] = True
        masks.append((label, mask))
    masks[2][1][1, 1, 2] = False  # of b, where it would share a voxel with a
    return InstanceSet.from_masks(masks, grid, LabelTable.from_names(["x", "y"], kinds={"x": kind}))


def test_ids_stay(oblique_geometry: VolumeGeometry) -> None:
    given = objects(oblique_geometry, "ids")
    found = by_kind(given)
    assert sorted((i.label, i.offset, i.voxels) for i in found) == sorted((i.label, i.offset, i.voxels) for i in given)


def test_single_is_the_union(oblique_geometry: VolumeGeometry) -> None:
    given = objects(oblique_geometry, "single")
    x, y = by_kind(given)
    assert (x.label, y.label) == (1, 2) and x.voxels == 12 + 18 + 2 - 1
    np.testing.assert_array_equal(by_kind(given).full_mask(1), given.semantic(1))


def test_components_join_what_touches(oblique_geometry: VolumeGeometry) -> None:
    given = objects(oblique_geometry, "components")
    found = [i for i in by_kind(given) if i.label == 1]
    assert [i.voxels for i in found] == [29, 2]
    assert [i.offset for i in found] == [(0, 0, 0), (4, 6, 9)]
    np.testing.assert_array_equal(by_kind(given).semantic(1), given.semantic(1))


def test_nothing_is_nothing(oblique_geometry: VolumeGeometry) -> None:
    empty = InstanceSet.build([], oblique_geometry, LabelTable.from_names(["x"]))
    assert len(by_kind(empty)) == 0
