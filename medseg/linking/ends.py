"""Tracks that end where another begins: one object of which some slices went wrong.

The flow weighs pairs of slices: over a missed slice it may find the overlap of two outlines too small, and where a
detection was reported in two pieces it gains more by ending one track with the one and beginning another with the
other than by leaving one out. What tells such ends from those of objects are the tracks themselves: an object thins out
towards its end, and one that was cut is as wide there as before; and both tracks lead to one place.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.linking.affinity import missing_slices
from medseg.linking.nodes import PAIRS_PER_CALL, Nodes
from medseg.values.linking_plan import LinkingPlan
from medseg.values.ragged import blocks, spans

#: Slices of a track that tell where it leads to: at most, and at least.
MOST, LEAST = 4, 3
#: Log-odds that two ends are of one object, by logistic regression on simulated crowds (`linking.crowd`, seeds 700 to
#: 711): at one diameter of distance and so on. The last counts where slices that both tracks have lie between.
START, PER_MISSED, PER_DIAMETER, PER_LOG_TAPER, PER_LOG_RATIO, IF_SHARED = 4.7, -1.4, -3.9, 1.1, 0.8, -2.2
#: Ends further apart than this, in diameters of the larger, are not looked at.
FARTHEST = 1.5


def join_ends(
    nodes: Nodes, tracks: Sequence[list[int]], spacing_mm: tuple[float, float, float], config: LinkingPlan
) -> list[list[int]]:
    """Join tracks of one label of which one goes on where the other ends, the likeliest pair first.

    Up to as many slices may be missing between the two, or be shared by both, as ``gap_mm`` covers; besides them each
    has three or more. In slices that both have, the joined track has the detections of both. Every end is joined to
    one other at most, and only where the probability that the two are one is above ``config.join_ends``.

    Args:
        nodes: all detections.
        tracks: node positions, each by ascending slice.
        spacing_mm: of the grid, (slice, row, column).
        config: for ``gap_mm`` and ``join_ends``.

    Returns:
        The tracks, joined ones by ascending slice, in the order of their first nodes.
    """
    most = missing_slices(config.gap_mm, spacing_mm[0])
    if config.join_ends == 1 or not most:
        return list(tracks)
    least = float(np.log(config.join_ends / (1 - config.join_ends))) if config.join_ends else -np.inf
    found = []
    for p, q in _neighbours(nodes, tracks, most, spacing_mm[1:]):
        log_odds = _log_odds(nodes, tracks[p], tracks[q], spacing_mm)
        if log_odds > least:
            keys = sum(int(nodes.keys[i]) for i in (*tracks[p], *tracks[q]))  # breaks ties without knowing the slice
            found.append((-round(log_odds, 9), keys, p, q))
    after: dict[int, int] = {}
    before: dict[int, int] = {}
    for *_, p, q in sorted(found):
        if p not in after and q not in before:
            after[p], before[q] = q, p
    joined = []
    for t in range(len(tracks)):
        if t not in before:
            members, at = list(tracks[t]), t
            while at in after:
                at = after[at]
                members += tracks[at]
            joined.append(sorted(members))
    return sorted(joined)


def _neighbours(
    nodes: Nodes, tracks: Sequence[list[int]], most: int, pixel_mm: tuple[float, float]
) -> list[tuple[int, int]]:
    """Return the pairs (p, q) of tracks where q begins after p does and ends after p does, near the end of p.

    Besides the slices that both have, each has `LEAST` or more.
    """
    sizes = np.array([len(track) for track in tracks], np.int64)
    first = np.array([track[0] for track in tracks], np.intp)
    last = np.array([track[-1] for track in tracks], np.intp)
    begin, end = nodes.slices[first], nodes.slices[last]
    members = np.array([i for track in tracks for i in track], np.intp)
    starts = np.cumsum(sizes) - sizes
    reach = int(end.max(initial=0)) + 1
    place_in = np.repeat(np.arange(len(tracks)), sizes) * reach + nodes.slices[members]  # ascending
    span = int(end.max(initial=0)) + 2 + 2 * most  # of a label: no track runs into the next
    place = nodes.labels[first] * span
    order = np.argsort(place + begin, kind="stable")
    low = np.searchsorted((place + begin)[order], place + end + 1 - most)
    high = np.searchsorted((place + begin)[order], place + end + 1 + most, side="right")
    pairs: list[tuple[int, int]] = []
    for block in blocks(high - low, PAIRS_PER_CALL):
        p, q = spans(low[block], (high - low)[block])
        p, q = p + block.start, order[q]
        near = (begin[q] > begin[p]) & (end[q] > end[p]) & (begin[q] != end[p] + 1)
        near &= np.minimum(sizes[p], sizes[q]) >= LEAST
        p, q = p[near], q[near]
        # Where p ends before q begins, and q begins after p ends.
        a = np.searchsorted(place_in, p * reach + begin[q]) - 1
        b = np.searchsorted(place_in, q * reach + end[p], side="right")
        near = (a - starts[p] + 1 >= LEAST) & (starts[q] + sizes[q] - b >= LEAST)
        p, q, a, b = p[near], q[near], members[a[near]], members[b[near]]
        apart_mm = np.linalg.norm((nodes.centroids[a] - nodes.centroids[b]) * pixel_mm, axis=1)
        areas = np.maximum(nodes.areas[a], nodes.areas[b])
        near = apart_mm <= FARTHEST * np.sqrt(4 / np.pi * areas * np.prod(pixel_mm))
        pairs += zip(p[near].tolist(), q[near].tolist(), strict=True)
    return pairs


def _log_odds(nodes: Nodes, below: list[int], above: list[int], spacing_mm: tuple[float, float, float]) -> float:
    """Return the log-odds that two tracks are of one object; of a pair that `_neighbours` found."""
    begin, end = nodes.slices[above[0]], nodes.slices[below[-1]]
    shared = begin <= end
    p = np.array([i for i in below if nodes.slices[i] < begin], np.intp)
    q = np.array([i for i in above if nodes.slices[i] > end], np.intp)
    a, b = p[-1], q[0]
    steps = int(nodes.slices[b] - nodes.slices[a])
    areas = nodes.areas[[a, b]].astype(np.float64)
    pixel_mm = np.array(spacing_mm[1:])
    diameter_mm = np.sqrt(4 / np.pi * areas.max() * pixel_mm.prod())
    apart_mm = (nodes.centroids[b] - nodes.centroids[a]) * pixel_mm
    # Half-way, where does either lead to?
    leads = _slope(nodes, p[-MOST:]) + _slope(nodes, q[:MOST])
    distance = np.linalg.norm(apart_mm - leads * pixel_mm * steps / 2) / diameter_mm
    taper = np.log(areas[0] / nodes.areas[p].max()) + np.log(areas[1] / nodes.areas[q].max())
    log_odds = START + PER_MISSED * (steps - 1) + PER_DIAMETER * distance + PER_LOG_TAPER * taper
    return float(log_odds + PER_LOG_RATIO * np.log(areas.min() / areas.max()) + IF_SHARED * shared)


def _slope(nodes: Nodes, members: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return (rows, columns) by which the centroid moves from slice to slice, least squares."""
    z = nodes.slices[members] - nodes.slices[members].mean()
    slope: NDArray[np.float64] = z @ nodes.centroids[members] / (z @ z)
    return slope
