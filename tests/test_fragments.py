"""Fragments and mixed objects, counted by hand."""

import numpy as np
import pytest

from medseg.labels import Label, LabelTable
from medseg.metrics.fragments import count_fragments
from medseg.values.instances import InstanceSet
from medseg.values.pairs import PairTable

LABELS = LabelTable([Label(id=i, name=n, colour=(9, 9, 9), kind="ids") for i, n in ((1, "lesion"), (2, "cyst"))])


def objects(geometry, *columns, label=1):
    """One object per (first, end) range of columns, in all slices and rows."""
    masks = []
    for first, end in columns:
        mask = np.zeros(geometry.spatial_shape, bool)
        mask[:, :, first:end] = True
        masks.append((label, mask))
    return InstanceSet.from_masks(masks, geometry, LABELS)


@pytest.mark.parametrize(
    "reference, prediction, expected",
    [
        ([(0, 4), (6, 10)], [(0, 4), (6, 10)], (2, 2, 0)),
        ([(0, 4), (6, 10)], [(0, 2), (2, 4), (6, 10)], (3, 2, 0)),  # the first in two pieces
        ([(0, 4), (4, 8)], [(0, 8)], (2, 2, 1)),  # half of it in each: both are said to hold it
        ([(0, 4), (4, 8)], [(0, 5)], (1, 1, 1)),  # a quarter of the second
        ([(0, 4), (4, 9)], [(0, 5)], (1, 1, 0)),  # a fifth of it
        ([(0, 4)], [(6, 10)], (0, 0, 0)),
        ([], [(0, 3)], (0, 0, 0)),
        ([(0, 3)], [], (0, 0, 0)),
    ],
)
def test_counts(oblique_geometry, reference, prediction, expected):
    pairs = PairTable.between(objects(oblique_geometry, *reference), objects(oblique_geometry, *prediction))
    assert count_fragments(pairs) == expected


def test_another_label_is_no_fragment(oblique_geometry):
    pairs = PairTable.between(objects(oblique_geometry, (0, 4)), objects(oblique_geometry, (0, 4), label=2))
    assert count_fragments(pairs) == (0, 0, 0)
