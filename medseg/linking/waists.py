"""Objects that stand on each other: a track is cut where the object thins out and grows again.

A flow judges pairs of slices. Where one object ends on another, the last outline of the one lies well within the
first of the other, and nothing in the pair tells them from an object that goes on. The areas of the whole track do:
they fall towards the contact and rise again. This is the waist along which watersheds part blobs that touch (Beucher
and Lantuejoul, Use of watersheds in contour detection, 1979), on the profile of areas along the slice axis.

An object that winds past others thins out, too. What tells the two apart, on simulated crowds of both: of an object
that goes on, the two outlines at the waist are alike, and its widest outlines on either side lie apart; one that stands
on another lies above it, and a pole meets a side.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.linking.affinity import centroid_shifts
from medseg.linking.nodes import Nodes


def cut_at_waists(
    nodes: Nodes, track: Sequence[int], waist_ratio: float, pixel_mm: tuple[float, float]
) -> list[list[int]]:
    """Cut a track at its waists, the thinnest first, until none is left.

    The thinnest place is that where the geometric mean of two consecutive areas (so one outline that was cut short does
    not make one) is least, over the largest area on either side, whichever side is the smaller. Places that are equally
    thin are judged and cut together: upside down, the cuts are the same. The waist there is the smaller of the two
    areas over that largest, halved for a missed slice between them (which was thinner yet), a third for two, and so on,
    and times 1 and the distance of the widest outlines of the two sides in diameters of the larger.

    Args:
        nodes: all detections.
        track: node positions by ascending slice.
        waist_ratio: cut where the waist is less; 0 never cuts.
        pixel_mm: (row, column) spacing.

    Returns:
        The parts, in order; the track itself where there is no waist.
    """
    members = np.array(track, np.intp)
    areas = nodes.areas[members].astype(np.float64)
    if len(areas) < 4:  # two slices on either side: a peak and a shoulder
        return [list(track)]
    left = np.maximum.accumulate(areas)[:-1]
    right = np.maximum.accumulate(areas[::-1])[::-1][1:]
    widest = np.minimum(left, right)
    thin = np.sqrt(areas[:-1] * areas[1:]) / widest
    places = np.flatnonzero(thin == thin.min())
    if thin[places[0]] >= 1:
        return [list(track)]
    steps = np.diff(nodes.slices[members])[places]
    waist = np.minimum(areas[:-1], areas[1:])[places] / (widest[places] * steps)
    waist *= [1 + _distance(nodes, members[: k + 1], members[k + 1 :], pixel_mm) for k in places.tolist()]
    cuts = places[waist < waist_ratio]
    if not len(cuts):
        return [list(track)]
    ends = [0, *(cuts + 1).tolist(), len(track)]
    return [
        part
        for a, b in zip(ends[:-1], ends[1:], strict=True)
        for part in cut_at_waists(nodes, track[a:b], waist_ratio, pixel_mm)
    ]


def _distance(nodes: Nodes, below: NDArray[np.intp], above: NDArray[np.intp], pixel_mm: tuple[float, float]) -> float:
    """Return how far the widest outlines of two parts lie apart in the plane, in diameters of the larger."""
    a, b = (part[[np.argmax(nodes.areas[part])]] for part in (below, above[::-1]))  # the outermost of equal ones
    return float(centroid_shifts(nodes, a, b, pixel_mm)[0])
