"""What an object's score means: how sure the slices were that should have seen it."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from medseg.linking.nodes import Nodes

#: Slices beyond its ends that count against an object: a finding of one slice falls to a quarter of its score, a flat
#: object that was seen in many keeps most of it.
MOST_UNSEEN = 3


def object_score(nodes: Nodes, tracks: Sequence[Sequence[int]], unseen: int) -> float:
    """Return the mean score of the slices that should show an object, each weighted by the object's diameter in it.

    In an unweighted mean the poles, a few pixels that any detector scores low, drag a good lesion under the
    threshold. Weighted by area, one missed slice through the middle does. The diameter (square root of the area) lies
    between; on simulated lesions it lost the fewest over both kinds of error.

    Args:
        nodes: all detections.
        tracks: those of the object, each by ascending slice. A slice between two members of a track that has no
            detection counts 0, its area between theirs. Of several parts in a slice the best score counts, and the
            areas add up.
        unseen: slices beyond the ends of the object that should show it as well: score 0, the mean diameter.
    """
    best: dict[int, float] = {}
    seen: dict[int, float] = {}
    found = []
    for track in tracks:
        index = np.array(track, np.intp)
        areas = nodes.areas[index].astype(np.float64)
        found.append((nodes.slices[index].tolist(), nodes.scores[index].tolist(), areas.tolist()))
    for z, score, pixels in (row for rows in found for row in zip(*rows, strict=True)):
        best[z] = max(best.get(z, 0.0), score)
        seen[z] = seen.get(z, 0.0) + pixels
    missed: dict[int, float] = {}
    for slices, _, area in found:
        for z0, z1, area0, area1 in zip(slices[:-1], slices[1:], area[:-1], area[1:], strict=True):
            for z in range(z0 + 1, z1):
                if z not in seen:
                    between = (area0 * (z1 - z) + area1 * (z - z0)) / (z1 - z0)
                    missed[z] = missed.get(z, 0.0) + between
    weight = {z: area**0.5 for z, area in seen.items()}
    known = _sum(weight.values())
    expected = known * (1 + unseen / len(seen)) + _sum(area**0.5 for area in missed.values())
    return _sum(best[z] * weight[z] for z in seen) / expected


def unseen_slices(
    nodes: Nodes, track: Sequence[int], spacing_mm: tuple[float, float, float], depth: int, length_ratio: float
) -> int:
    """Return how many slices beyond the ends of a track should show its object.

    An object that is much shorter than it is wide should be as many slices long as ``length_ratio`` times its
    diameter in the plane covers wholly: a finding 20 mm wide in one slice of 1 mm is missing from its neighbours; of
    them, `MOST_UNSEEN` count. An object that reaches the first or last slice of the volume may go on outside it: none.
    """
    z0, z1 = int(nodes.slices[track[0]]), int(nodes.slices[track[-1]])
    if z0 == 0 or z1 == depth - 1:
        return 0
    pixels = int(nodes.areas[list(track)].max())
    diameter_mm = float(np.sqrt(4 / np.pi * pixels * spacing_mm[1] * spacing_mm[2]))
    return min(MOST_UNSEEN, max(0, int(length_ratio * diameter_mm / spacing_mm[0] + 1e-6) - (z1 - z0 + 1)))


def fit_isotonic(scores: ArrayLike, true: ArrayLike) -> tuple[tuple[float, float], ...]:
    """Fit the non-decreasing map from score to probability that is closest to the outcomes (least squares).

    Pool adjacent violators (Ayer et al., "An empirical distribution function for sampling with incomplete
    information", Annals of Mathematical Statistics 1955; for classifiers Zadrozny & Elkan, KDD 2002). One success
    and one failure are added to each pool, so that ten hits of ten are not called certain, and pools that the addition
    puts out of order are pooled.

    Args:
        scores: [N] of objects.
        true: [N], whether each was one.

    Returns:
        (score, probability) knots, both ascending, to be joined by straight lines; see `calibrated`.
    """
    order = np.argsort(np.asarray(scores, np.float64), kind="stable")
    x, y = np.asarray(scores, np.float64)[order], np.asarray(true, np.float64)[order]
    pools: list[tuple[float, float, float]] = []  # objects, sum of scores, true ones
    values, starts = np.unique(x, return_index=True)
    for value, group in zip(values, np.split(y, starts[1:]), strict=True):
        pool = (float(len(group)), float(value) * len(group), float(group.sum()))
        while pools and pools[-1][2] * pool[0] >= pool[2] * pools[-1][0]:
            last = pools.pop()
            pool = (last[0] + pool[0], last[1] + pool[1], last[2] + pool[2])
        pools.append(pool)
    smooth: list[tuple[float, float, float]] = []
    for pool in pools:
        while smooth and _smoothed(smooth[-1]) >= _smoothed(pool):
            last = smooth.pop()
            pool = (last[0] + pool[0], last[1] + pool[1], last[2] + pool[2])
        smooth.append(pool)
    return tuple((total / count, _smoothed((count, total, hits))) for count, total, hits in smooth)


def calibrated(score: float, knots: Sequence[tuple[float, float]]) -> float:
    """Return the probability that belongs to a score, constant beyond the outermost knots; the score without knots."""
    if not knots:
        return score
    return float(np.interp(score, [x for x, _ in knots], [p for _, p in knots]))


def _smoothed(pool: tuple[float, float, float]) -> float:
    return (pool[2] + 1) / (pool[0] + 2)


def _sum(values: Iterable[float]) -> float:
    """Return a sum that does not depend on the order: the same upside down."""
    return float(np.array(sorted(values)).sum())
