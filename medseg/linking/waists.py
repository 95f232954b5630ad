"""Objects that stand on each other: a track is cut where the object thins out and grows again.

A flow judges pairs of slices. Where one object ends on another, the last outline of the one lies well within the
first of the other, and nothing in the pair tells them from an object that goes on. The areas of the whole track do:
they fall towards the contact and rise again. This is the waist along which watersheds part blobs that touch (Beucher
and Lantuejoul, Use of watersheds in contour detection, 1979), on the profile of areas along the slice axis.
"""

from collections.abc import Sequence

import numpy as np

from medseg.linking.nodes import Nodes


def cut_at_waists(nodes: Nodes, track: Sequence[int], waist_ratio: float) -> list[list[int]]:
    """Cut a track at its waists, the thinnest first, until none is left.

    The waist between two consecutive detections is the geometric mean of their areas (so one outline that was cut
    short does not make one) over the largest area on either side, whichever side is the smaller. Equal waists are cut
    together: upside down, the cuts are the same.

    Args:
        nodes: all detections.
        track: node positions by ascending slice.
        waist_ratio: cut where the waist is thinner; 0 never cuts.

    Returns:
        The parts, in order; the track itself where there is no waist.
    """
    areas = nodes.areas[list(track)].astype(np.float64)
    if len(areas) < 4:  # two slices on either side: a peak and a shoulder
        return [list(track)]
    left = np.maximum.accumulate(areas)[:-1]
    right = np.maximum.accumulate(areas[::-1])[::-1][1:]
    waist = np.sqrt(areas[:-1] * areas[1:]) / np.minimum(left, right)
    thinnest = waist.min()
    if thinnest >= waist_ratio:
        return [list(track)]
    ends = [0, *(np.flatnonzero(waist == thinnest) + 1).tolist(), len(track)]
    return [
        part for a, b in zip(ends[:-1], ends[1:], strict=True) for part in cut_at_waists(nodes, track[a:b], waist_ratio)
    ]
