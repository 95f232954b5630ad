"""How likely two detections of different slices are one object: the edges of the graph."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.linking.nodes import Nodes
from medseg.linking.views import Views
from medseg.values.linking_plan import LinkingPlan, LinkWeights

#: Ties are broken by up to this much: far above the solver's tolerance, far below anything that was measured.
TIE = 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class Edges:
    """E pairs of nodes that are rather one object than not.

    Attributes:
        first, second: [E] node positions, first in the lower slice.
        log_odds: [E] float64, more than 0.
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    log_odds: NDArray[np.float64]


def missing_slices(gap_mm: float, slice_spacing_mm: float) -> int:
    """Return how many slices in a row an object may be missing from: those that ``gap_mm`` covers wholly."""
    return int(np.floor(gap_mm / slice_spacing_mm + 1e-6))


def pair_features(
    shared: NDArray[np.float64],
    area_a: NDArray[np.float64],
    area_b: NDArray[np.float64],
    shift_in_diameters: NDArray[np.float64],
    score: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return [P, 5] what speaks for and against one object, in the order of `LinkWeights`.

    IoU of the masks; intersection over the smaller mask (near an object's pole the areas differ much and the
    IoU is low, but the smaller mask lies within the larger); logarithm of larger over smaller area; shift of the
    centroids beyond half a diameter of the larger mask; the score above 0.5.

    Args:
        shared: [P] pixels in both masks.
        area_a, area_b: [P] pixels of each.
        shift_in_diameters: [P] distance of the centroids over the diameter of a disc of the larger area, both in mm.
        score: [P] the lower of the two scores.
    """
    small, large = np.minimum(area_a, area_b), np.maximum(area_a, area_b)
    return np.column_stack(
        [
            shared / (small + large - shared),
            shared / small,
            np.log(large / small),
            np.maximum(0.0, shift_in_diameters - 0.5),
            score - 0.5,
        ]
    )


def neutral_features(iou: float) -> NDArray[np.float64]:
    """Return [5] the `pair_features` of two masks of equal area and place that overlap with this IoU."""
    return np.array([iou, 2 * iou / (1 + iou), 0.0, 0.0, 0.0])


def link_log_odds(
    features: NDArray[np.float64], neutral_iou: float, missing: int, weights: LinkWeights
) -> NDArray[np.float64]:
    """Return [P] log-odds (natural logarithm) that two masks show one object.

    The weighted sum of the features less those at ``neutral_iou``, over 1 + the number of slices missing between
    the two (overlap says less the further apart). So two masks of equal area whose centroids are close have
    log-odds 0 exactly at ``neutral_iou``. The default weights were set on simulated ellipsoids.

    Args:
        features: [P, 5], see `pair_features`.
        neutral_iou: IoU at which one object is as likely as two.
        missing: slices between the two.
        weights: of the features.
    """
    worth = np.array([weights.iou, weights.contained, weights.area, weights.shift, weights.score])
    return (features - neutral_features(neutral_iou)) @ worth / (1 + missing)


def centroid_shifts(
    nodes: Nodes, first: NDArray[np.intp], second: NDArray[np.intp], pixel_mm: tuple[float, float]
) -> NDArray[np.float64]:
    """Return [P] distance of the centroids in the plane over the diameter of a disc of the larger area."""
    distance_mm = np.linalg.norm((nodes.centroids[first] - nodes.centroids[second]) * pixel_mm, axis=1)
    area_mm2 = np.maximum(nodes.areas[first], nodes.areas[second]) * pixel_mm[0] * pixel_mm[1]
    return distance_mm / np.sqrt(4 / np.pi * area_mm2)


def build_edges(
    nodes: Nodes,
    spacing_mm: tuple[float, float, float],
    config: LinkingPlan,
    shares: NDArray[np.float64] | None = None,
    views: Views | None = None,
) -> Edges:
    """Join detections of one label in neighbouring slices and over gaps of up to ``gap_mm``.

    Only edges with log-odds above 0 are kept: no best set of tracks uses another, since cutting a track
    there costs nothing.

    Args:
        nodes: the detections.
        spacing_mm: of the grid, (slice, row, column).
        config: thresholds and weights.
        shares: [N] in 0..1, what part of a detection a node stands for; an edge counts as the mean of its two.
        views: detections of passes along other axes; their agreement (-1..1) times ``weights.view`` is added.
    """
    parts = [(np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0))]
    pixel_mm = spacing_mm[1:]
    most_view = config.weights.view if views is not None else 0.0
    for missing in range(missing_slices(config.gap_mm, spacing_mm[0]) + 1):
        neutral = config.gap_iou if missing else config.link_iou
        first, second = nodes.pairs(missing + 1)
        area_a, area_b = nodes.areas[first].astype(np.float64), nodes.areas[second].astype(np.float64)
        shift = centroid_shifts(nodes, first, second, pixel_mm)
        score = np.minimum(nodes.scores[first], nodes.scores[second])
        # The windows bound the intersection: most pairs are out before any mask is looked at.
        most = np.minimum(nodes.window_overlap(first, second), np.minimum(area_a, area_b)).astype(np.float64)
        bound = link_log_odds(pair_features(most, area_a, area_b, shift, score), neutral, missing, config.weights)
        near = bound + most_view / (1 + missing) > 0
        first, second = first[near], second[near]
        shared = nodes.intersections(first, second).astype(np.float64)
        features = pair_features(shared, area_a[near], area_b[near], shift[near], score[near])
        log_odds = link_log_odds(features, neutral, missing, config.weights)
        if views is not None:
            log_odds += config.weights.view * views.agreement(nodes, first, second) / (1 + missing)
        if shares is not None:
            log_odds *= (shares[first] + shares[second]) / 2
        log_odds -= TIE * _unit_hash(nodes.keys[first], nodes.keys[second])
        keep = log_odds > 0
        parts.append((first[keep], second[keep], log_odds[keep]))
    first, second, log_odds = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return Edges(first=first, second=second, log_odds=log_odds)


def _unit_hash(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return a number in 0..1 for each pair of keys, the same whichever comes first (splitmix64 of their sum).

    Not a sum of two functions: in a square of equal overlaps both pairings would stay tied.
    """
    with np.errstate(over="ignore"):
        x = a + b + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return x.astype(np.float64) / 2.0**64
