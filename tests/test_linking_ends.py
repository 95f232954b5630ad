"""Tracks of which one goes on where another ends become one object."""

import numpy as np
import pytest
from test_linking import LABELS, LESION, ORGAN, content, content_turned, grid, rectangle, turned

from medseg.linking import link
from medseg.linking.ends import join_ends
from medseg.linking.nodes import build_nodes
from medseg.values.linking_plan import LinkingPlan

SHAPE, SPACING_MM = (13, 60, 70), (2.5, 0.8, 0.7)
#: Overlap across a missed slice is hardly believed: what is joined there, the ends join.
PLAN = LinkingPlan(gap_mm=6.0, gap_iou=0.9, min_score=0.3, length_ratio=0.0)


def column(slices, *, step=0, side=12, **settings):
    """A square of ``side`` pixels that moves by ``step`` rows per slice."""
    return [rectangle(z, 10 + step * z, 20, side, side, **settings) for z in slices]


def joined(parts, tracks, **changes):
    """Join tracks given as positions in ``parts``; positions again."""
    nodes = build_nodes(parts, grid(SHAPE, SPACING_MM), LABELS, 0.5)
    place = {(int(z), int(r)): i for i, (z, r) in enumerate(zip(nodes.slices, nodes.windows[:, 0], strict=True))}
    of = [place[(p.slice_index, int(p.boxes[0, 1]))] for p in parts]
    plan = PLAN.model_copy(update=changes)
    found = join_ends(nodes, [[of[i] for i in track] for track in tracks], SPACING_MM, plan)
    return [[of.index(i) for i in track] for track in found]


@pytest.mark.parametrize("missing, tracks", [(1, 1), (2, 1), (3, 2)])
def test_a_track_goes_on_behind_missed_slices(missing, tracks):
    parts = column([*range(4), *range(4 + missing, 8 + missing)], step=2)
    assert len(joined(parts, [[0, 1, 2, 3], [4, 5, 6, 7]])) == tracks  # gap_mm covers two slices
    assert len(joined(parts, [[0, 1, 2, 3], [4, 5, 6, 7]], join_ends=1.0)) == 2


def test_ends_that_lead_elsewhere_stay_apart():
    # The lower track moves by 6 columns a slice, the upper one by 6 as well, or by 10 back to where the lower comes
    # from: half-way between their ends they are 0 or 16 columns apart, 1.1 of the diameter of 10.1 mm.
    def slanted(slices, left, step):
        return [rectangle(z, 20, left + step * k, 12, 12) for k, z in enumerate(slices)]

    below, tracks = slanted(range(4), 4, 6), [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(joined([*below, *slanted(range(5, 9), 34, 6)], tracks)) == 1
    assert len(joined([*below, *slanted(range(5, 9), 34, -10)], tracks)) == 2


def test_ends_that_thin_out_stay_apart():
    sides = [14, 13, 10, 5]
    below = [rectangle(z, 20 - s // 2, 20 - s // 2, s, s) for z, s in enumerate(sides)]
    above = [rectangle(8 - z, 20 - s // 2, 20 - s // 2, s, s) for z, s in reversed(list(enumerate(sides)))]
    assert len(joined([*below, *above], [[0, 1, 2, 3], [4, 5, 6, 7]])) == 2
    blunt = column([*range(4), *range(5, 9)])
    assert len(joined(blunt, [[0, 1, 2, 3], [4, 5, 6, 7]])) == 1


def test_slices_that_two_tracks_share_become_one_object():
    # In slice 5 the object was reported in two halves: one ends a track, the other begins one.
    whole = column([1, 2, 3, 4, 6, 7, 8, 9])
    halves = [rectangle(5, 10, 20, 6, 12), rectangle(5, 16, 20, 6, 12)]
    parts = [*whole[:4], halves[0], halves[1], *whole[4:]]
    assert joined(parts, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]) == [list(range(10))]
    assert len(joined(parts, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], join_ends=0.999)) == 2


def test_too_short_or_of_another_label_is_not_joined():
    parts = column([*range(4), 5, 6])
    assert len(joined(parts, [[0, 1, 2, 3], [4, 5]])) == 2
    parts = [*column(range(4)), *column(range(5, 9), label=ORGAN)]
    assert len(joined(parts, [[0, 1, 2, 3], [4, 5, 6, 7]])) == 2


def test_an_end_joins_the_likelier_of_two():
    straight, aside = column(range(5, 9)), [rectangle(z, 14, 20, 12, 12) for z in range(5, 9)]
    parts = [*column(range(4)), *straight, *aside]
    assert joined(parts, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]) == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11]]


def test_objects_that_are_joined_are_filled_and_the_same_upside_down():
    parts = column([*range(4), *range(5, 9)], step=2)
    found = link(parts, grid(SHAPE, SPACING_MM), LABELS, PLAN)
    assert len(found) == 1
    assert found[1].mask.any(axis=(1, 2)).all() and found[1].mask.shape[0] == 9
    assert found[1].label == LESION and found[1].score == pytest.approx(0.9 * 8 / 9)
    assert len(link(parts, grid(SHAPE, SPACING_MM), LABELS, PLAN.model_copy(update={"join_ends": 1.0}))) == 2
    assert content_turned(link(turned(parts, SHAPE[0]), grid(SHAPE, SPACING_MM), LABELS, PLAN), SHAPE[0]) == content(
        found
    )
    shuffled = [parts[i] for i in np.random.default_rng(1).permutation(len(parts))]
    assert content(link(shuffled, grid(SHAPE, SPACING_MM), LABELS, PLAN)) == content(found)
