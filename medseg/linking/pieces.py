"""Short tracks that are no objects: what is left over of longer ones, and what a detector invents for a slice or two.

A missed slice, an outline that was split or a change from one track to another leaves a few detections over, which make
a track of their own beside that of their object. What tells such a piece from a small object: it was seen in few
slices, by a detector that was not sure, and it ends where the outline of a longer track lies over it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.linking.affinity import missing_slices
from medseg.linking.nodes import PAIRS_PER_CALL, Nodes
from medseg.values.linking_plan import LinkingPlan
from medseg.values.ragged import blocks, spans

#: Log-odds that a track is an object of its own, at one slice and so on. The two in the middle are of a logistic
#: regression on simulated crowds with slices of 1.25, 2.5 and 5 mm, phantoms, hippocampi and vertebrae (seeds 700 to
#: 777), which has -2.9 and -1.3 for the others. There hardly any object is as small as a slice is thick; so what lies
#: by itself is believed more than there (one slice from a score of 0.9), and what a longer track covers less.
START, PER_LOG_SLICES, PER_SCORE_ODDS, IF_COVERED = -1.85, 2.65, 0.85, -2.3
#: Tracks that were seen in more slices are objects.
SHORT = 6


def drop_pieces(
    nodes: Nodes,
    tracks: Sequence[list[int]],
    spacing_mm: tuple[float, float, float],
    depth: int,
    config: LinkingPlan,
) -> list[list[int]]:
    """Leave out the short tracks whose probability to be an object is below ``config.keep_short``.

    Tracks that reach the first or last slice of the volume may go on outside it and stay.

    Args:
        nodes: all detections.
        tracks: node positions, each by ascending slice.
        spacing_mm: of the grid, (slice, row, column).
        depth: slices of the volume.
        config: for ``keep_short``, and ``gap_mm``: as far as that a longer track may lie over an end.
    """
    seen = np.array([len(np.unique(nodes.slices[track])) for track in tracks], np.int64)
    first = np.array([track[0] for track in tracks], np.intp)
    last = np.array([track[-1] for track in tracks], np.intp)
    short = np.flatnonzero((seen <= SHORT) & (nodes.slices[first] > 0) & (nodes.slices[last] < depth - 1))
    if not config.keep_short or not len(short):
        return list(tracks)
    length = np.zeros(len(nodes), np.int64)  # of the track that a node is in; 0: none
    for track, slices in zip(tracks, seen.tolist(), strict=True):
        length[track] = slices
    reach = missing_slices(config.gap_mm, spacing_mm[0]) + 1
    covered = np.maximum(_covered(nodes, first[short], length, -reach), _covered(nodes, last[short], length, reach))
    score = np.array([np.sort(nodes.scores[tracks[t]]).mean() for t in short.tolist()]).clip(0.01, 0.99)
    log_odds = START + PER_LOG_SLICES * np.log(seen[short]) + IF_COVERED * covered
    log_odds += PER_SCORE_ODDS * np.log(score / (1 - score))
    least = np.log(config.keep_short / (1 - config.keep_short)) if config.keep_short < 1 else np.inf
    gone = set(short[log_odds < least].tolist())
    return [track for t, track in enumerate(tracks) if t not in gone]


def _covered(nodes: Nodes, ends: NDArray[np.intp], length: NDArray[np.int64], reach: int) -> NDArray[np.float64]:
    """Return [K], how much of each of these nodes lies under one of a longer track, up to ``reach`` slices away.

    Args:
        nodes: all detections.
        ends: [K] positions.
        length: [N] slices of the track that each node is in, 0 where in none.
        reach: slices: above where positive, below where negative.
    """
    result = np.zeros(len(ends))
    span = int(nodes.slices.max(initial=0)) + 1 + 2 * abs(reach)  # of a label: no slice runs into the next label
    place = nodes.labels * span + nodes.slices  # ascending, as the nodes are
    low = np.searchsorted(place, place[ends] + min(reach, 1))
    high = np.searchsorted(place, place[ends] + max(reach, -1), side="right")
    for block in blocks(high - low, PAIRS_PER_CALL):
        i, j = spans(low[block], (high - low)[block])
        i += block.start
        near = (length[j] > length[ends[i]]) & (nodes.window_overlap(ends[i], j) > 0)
        i, j = i[near], j[near]
        np.maximum.at(result, i, nodes.intersections(ends[i], j) / nodes.areas[ends[i]])
    return result
