"""Short tracks that are probably no objects are left out."""

import numpy as np
import pytest
from test_linking import LABELS, LESION, ORGAN, content, content_turned, grid, rectangle, turned

from medseg.linking import link
from medseg.linking.nodes import build_nodes
from medseg.linking.pieces import drop_pieces
from medseg.values.linking_plan import LinkingPlan

SHAPE, SPACING_MM = (13, 60, 70), (2.5, 0.8, 0.7)
PLAN = LinkingPlan(gap_mm=6.0, min_score=0.1, length_ratio=0.0)


def column(slices, *, left=20, side=12, **settings):
    """A square of ``side`` pixels in each of these slices."""
    return [rectangle(z, 20, left, side, side, **settings) for z in slices]


def kept(*tracks, **changes):
    """Which of the tracks, each a list of detections, stay."""
    parts = [part for track in tracks for part in track]
    nodes = build_nodes(parts, grid(SHAPE, SPACING_MM), LABELS, 0.5)
    at = zip(nodes.labels, nodes.slices, nodes.windows[:, 1], strict=True)
    place = {(int(n), int(z), int(c)): i for i, (n, z, c) in enumerate(at)}
    members = [[place[int(p.labels[0]), p.slice_index, int(p.boxes[0, 0])] for p in track] for track in tracks]
    left = drop_pieces(nodes, members, SPACING_MM, SHAPE[0], PLAN.model_copy(update=changes))
    return [members.index(track) for track in left]


# -1.85 + 2.65 ln(slices) + 0.85 ln(score / (1 - score)) is 0 at these scores; one slice is believed at 0.9.
@pytest.mark.parametrize("slices, score", [(1, 0.8981), (2, 0.5039), (3, 0.2229), (4, 0.1048), (6, 0.0320)])
def test_few_slices_have_to_be_sure(slices, score):
    zs = range(3, 3 + slices)
    assert kept(column(zs, score=score + 0.005)) == [0]
    assert kept(column(zs, score=score - 0.005)) == []


def test_more_slices_are_an_object_at_any_score():
    assert kept(column(range(2, 9), score=0.02)) == [0]


def test_a_longer_track_that_lies_over_an_end_speaks_against_a_short_one():
    # Three slices at 0.7: log-odds 1.78, of which a longer track takes 2.3 where it covers the end wholly.
    short, long = column([4, 5, 6], score=0.7), range(4)
    assert kept(short, column(long)) == [1]
    assert kept(short, column(long, left=27)) == [0, 1]  # 5 of 12 columns: 1.78 - 0.96
    assert kept(short, column(long, label=ORGAN)) == [0, 1]
    assert kept(short, column([1, 2, 3], score=0.7)) == [0, 1]  # not longer: neither is a piece of the other
    # In the slice of the end itself, and nowhere near besides: not what the object goes on as.
    assert kept(short, column([1, 2, 6, 9, 10], left=21), gap_mm=0.0) == [0, 1]


@pytest.mark.parametrize("last, wide, narrow", [(5, 1, 1), (4, 1, 2), (3, 2, 2)])
def test_it_may_be_as_far_away_as_gaps_are_bridged(last, wide, narrow):
    tracks = column([7, 8], score=0.8), column(range(last - 2, last + 1))
    assert len(kept(*tracks, gap_mm=5.0)) == wide  # two slices of 2.5 mm may lie between
    assert len(kept(*tracks, gap_mm=4.9)) == narrow


@pytest.mark.parametrize("slices, count", [([0], 1), ([12], 1), ([1], 0), ([11], 0)])
def test_what_reaches_the_border_of_the_volume_stays(slices, count):
    assert len(kept(column(slices, score=0.4))) == count


def test_the_threshold_is_a_probability():
    track = column([5, 6], score=0.7)  # log-odds 0.71: a probability of 0.67
    assert [len(kept(track, keep_short=p)) for p in (0.0, 0.66, 0.68, 1.0)] == [1, 1, 0, 0]


def test_objects_of_both_kinds_in_a_volume():
    # A lesion in eleven slices, what a detector invented in one, and an organ in one, which may be as flat as it likes.
    parts = [*column(range(1, 12)), *column([5], left=45, score=0.6), *column([5], left=45, label=ORGAN)]
    found = link(parts, grid(SHAPE, SPACING_MM), LABELS, PLAN)
    assert sorted((i.label, i.mask.shape[0]) for i in found) == sorted([(LESION, 11), (ORGAN, 1)])
    assert len(link(parts, grid(SHAPE, SPACING_MM), LABELS, PLAN.model_copy(update={"keep_short": 0.0}))) == 3
    assert len(link(parts, grid(SHAPE, SPACING_MM), LABELS, PLAN.model_copy(update={"method": "greedy"}))) == 3


@pytest.mark.parametrize("seed", range(4))
def test_order_and_direction_change_nothing(seed):
    rng = np.random.default_rng(seed)
    parts = [
        rectangle(int(z), *rng.integers(5, 40, 2).tolist(), *rng.integers(4, 16, 2).tolist(), score=float(s))
        for z, s in zip(rng.integers(0, SHAPE[0], 60), rng.uniform(0.3, 0.99, 60), strict=True)
    ]
    found = link(parts, grid(SHAPE, SPACING_MM), LABELS, PLAN)
    shuffled = [parts[i] for i in rng.permutation(len(parts))]
    assert content(link(shuffled, grid(SHAPE, SPACING_MM), LABELS, PLAN)) == content(found)
    upside = link(turned(parts, SHAPE[0]), grid(SHAPE, SPACING_MM), LABELS, PLAN)
    assert content_turned(upside, SHAPE[0]) == content(found)
