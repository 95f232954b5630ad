"""How likely two detections of different slices are one object: the edges of the graph."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.linking.nodes import Nodes
from medseg.values.plan import LinkingPlan

#: Weights of the log-odds (natural logarithm) that two masks are one object; see `link_log_odds`.
IOU_WEIGHT = 6.0
CONTAINED_WEIGHT = 5.0
AREA_WEIGHT = -0.15
SHIFT_WEIGHT = -4.0
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


def link_log_odds(
    shared: NDArray[np.float64],
    area_a: NDArray[np.float64],
    area_b: NDArray[np.float64],
    shift_in_diameters: NDArray[np.float64],
    neutral_iou: float,
    missing: int,
) -> NDArray[np.float64]:
    """Return the log-odds that two masks show one object.

    A sum of four terms, divided by 1 + the number of slices missing between them (overlap says less the
    further apart):

    - IoU of the masks, less ``neutral_iou``;
    - intersection over the smaller mask, less the value it has for equal areas at ``neutral_iou``. Near an
      object's pole the areas differ much and the IoU is low, but the smaller mask lies within the larger;
    - the logarithm of the area ratio;
    - the shift of the centroids beyond half a diameter of the larger mask.

    So two masks of equal area whose centroids are close have log-odds 0 exactly at ``neutral_iou``.

    Args:
        shared: [P] pixels in both masks.
        area_a, area_b: [P] pixels of each.
        shift_in_diameters: [P] distance of the centroids over the diameter of a disc of the larger area.
        neutral_iou: IoU at which one object is as likely as two.
        missing: slices between the two.
    """
    small, large = np.minimum(area_a, area_b), np.maximum(area_a, area_b)
    evidence = (
        IOU_WEIGHT * (shared / (small + large - shared) - neutral_iou)
        + CONTAINED_WEIGHT * (shared / small - 2 * neutral_iou / (1 + neutral_iou))
        + AREA_WEIGHT * np.log(large / small)
        + SHIFT_WEIGHT * np.maximum(0.0, shift_in_diameters - 0.5)
    )
    return evidence / (1 + missing)


def build_edges(nodes: Nodes, spacing_mm: tuple[float, float, float], config: LinkingPlan) -> Edges:
    """Join detections of one label in neighbouring slices and over gaps of up to ``gap_mm``.

    Only edges with log-odds above 0 are kept: no best set of tracks uses another, since cutting a track
    there costs nothing.
    """
    parts = [(np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0))]
    pixel_mm = np.array(spacing_mm[1:])
    for missing in range(missing_slices(config.gap_mm, spacing_mm[0]) + 1):
        neutral = config.gap_iou if missing else config.link_iou
        first, second = nodes.pairs(missing + 1)
        area_a, area_b = nodes.areas[first].astype(np.float64), nodes.areas[second].astype(np.float64)
        distance_mm = np.linalg.norm((nodes.centroids[first] - nodes.centroids[second]) * pixel_mm, axis=1)
        shift = distance_mm / np.sqrt(4 / np.pi * np.maximum(area_a, area_b) * pixel_mm.prod())
        # The windows bound the intersection: most pairs are out before any mask is looked at.
        a, b = nodes.windows[first], nodes.windows[second]
        window = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).prod(axis=1)
        most = np.minimum(window, np.minimum(area_a, area_b)).astype(np.float64)
        near = link_log_odds(most, area_a, area_b, shift, neutral, missing) > 0
        first, second, area_a, area_b, shift = first[near], second[near], area_a[near], area_b[near], shift[near]
        shared = nodes.intersections(first, second).astype(np.float64)
        log_odds = link_log_odds(shared, area_a, area_b, shift, neutral, missing)
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
