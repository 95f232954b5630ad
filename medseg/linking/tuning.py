"""Fit the weights of linking, and the calibration of its scores, to detections whose truth is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from medseg.linking.affinity import centroid_shifts, missing_slices, neutral_features, pair_features
from medseg.linking.duplicates import drop_duplicates
from medseg.linking.nodes import Nodes, build_nodes
from medseg.values.detections import Detections
from medseg.values.geometry import spacing_of
from medseg.values.instances import InstanceSet
from medseg.values.linking_plan import LinkingPlan, LinkWeights

#: A detection shows a true object where their masks in the slice have this IoU.
MATCH_IOU = 0.3
#: Standard deviation of the prior around the present weights (log-odds per unit): a few pairs change little.
PRIOR_SD = 3.0
_NAMES = ("iou", "contained", "area", "shift", "score")
#: Signs that keep "more overlap is more likely one object" true.
_SIGNS = np.array([1, 1, -1, -1, 1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Candidate pairs of detections and whether they show one object.

    Attributes:
        features: [P, 5], see `affinity.pair_features`.
        missing: [P] int64, slices between the two.
        same: [P] bool.
    """

    features: NDArray[np.float64]
    missing: NDArray[np.int64]
    same: NDArray[np.bool_]

    @classmethod
    def join(cls, parts: Sequence["Pairs"]) -> "Pairs":
        """Return the pairs of several volumes as one."""
        return cls(
            features=np.concatenate([np.zeros((0, 5)), *(p.features for p in parts)]),
            missing=np.concatenate([np.zeros(0, np.int64), *(p.missing for p in parts)]),
            same=np.concatenate([np.zeros(0, np.bool_), *(p.same for p in parts)]),
        )


def label_pairs(detections: Sequence[Detections], truth: InstanceSet, config: LinkingPlan) -> Pairs:
    """Collect the pairs that linking would consider, and look up in the truth whether they are one object.

    Each detection belongs to the true object of its label that it fits best (IoU in the slice of at least
    `MATCH_IOU`), or to none. A pair of detections of one object is one; of two objects, or of an object and nothing,
    is none; of nothing and nothing says nothing and is left out.

    Args:
        detections: of one volume, duplicates included.
        truth: its objects, on the grid that the detections refer to, under the same label table.
        config: thresholds.
    """
    geometry, labels = truth.geometry, truth.labels
    spacing_mm = spacing_of(geometry)
    nodes = drop_duplicates(build_nodes(detections, geometry, labels, config.mask_threshold), labels, config)
    owner = _owners(nodes, truth)
    parts = []
    for missing in range(missing_slices(config.gap_mm, spacing_mm[0]) + 1):
        first, second = nodes.pairs(missing + 1)
        known = (owner[first] > 0) | (owner[second] > 0)
        first, second = first[known], second[known]
        features = pair_features(
            nodes.intersections(first, second).astype(np.float64),
            nodes.areas[first].astype(np.float64),
            nodes.areas[second].astype(np.float64),
            centroid_shifts(nodes, first, second, spacing_mm[1:]),
            np.minimum(nodes.scores[first], nodes.scores[second]),
        )
        same = owner[first] == owner[second]
        parts.append(Pairs(features=features, missing=np.full(len(first), missing, np.int64), same=same))
    return Pairs.join(parts)


def fit_weights(pairs: Pairs, config: LinkingPlan) -> LinkingPlan:
    """Return the config with weights and neutral IoUs that make the pairs' log-odds fit best.

    Logistic regression with a normal prior around the present values, by iteratively reweighted least squares (Green,
    "Iteratively reweighted least squares for maximum likelihood estimation", JRSS B 1984). A weight that
    comes out with the wrong sign is set to 0 and the others are fitted again. The intercepts, one for neighbouring
    slices and one for gaps, become ``link_iou`` and ``gap_iou``, within 0.02..0.98.
    """
    prior_weights = np.array([getattr(config.weights, name) for name in _NAMES])
    prior = np.concatenate(
        [[-neutral_features(iou) @ prior_weights for iou in (config.link_iou, config.gap_iou)], prior_weights]
    )
    gap = pairs.missing > 0
    design = np.column_stack([~gap, gap, pairs.features]) / (1 + pairs.missing)[:, None]
    free = np.ones(len(prior), np.bool_)
    while True:
        fitted = _logistic(design, pairs.same, np.where(free, prior, 0.0), free)
        wrong = np.concatenate([[False, False], fitted[2:] * _SIGNS < 0])
        if not wrong.any():
            break
        free &= ~wrong
    weights = LinkWeights(
        **{name: float(round(w, 4)) + 0.0 for name, w in zip(_NAMES, fitted[2:], strict=True)},
        view=config.weights.view,
    )
    changes = {
        "weights": weights,
        "link_iou": _neutral_iou(fitted[0], fitted[2:], config.link_iou),
        "gap_iou": _neutral_iou(fitted[1], fitted[2:], config.gap_iou),
    }
    return config.model_copy(update=changes)


def log_loss(pairs: Pairs, config: LinkingPlan) -> float:
    """Return the mean negative log-likelihood of the pairs; NaN without any."""
    if not len(pairs.same):
        return float("nan")
    weights = np.array([getattr(config.weights, name) for name in _NAMES])
    neutral = np.where(pairs.missing > 0, config.gap_iou, config.link_iou)
    offset = np.array([neutral_features(iou) @ weights for iou in neutral])
    log_odds = (pairs.features @ weights - offset) / (1 + pairs.missing)
    return float(np.logaddexp(0, np.where(pairs.same, -log_odds, log_odds)).mean())


def _logistic(
    design: NDArray[np.float64], outcome: NDArray[np.bool_], prior: NDArray[np.float64], free: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the coefficients of greatest posterior density; those not ``free`` stay at ``prior``."""
    beta = prior.copy()
    precision = np.eye(int(free.sum())) / PRIOR_SD**2
    x = design[:, free]

    def objective(candidate: NDArray[np.float64]) -> float:
        eta = design @ candidate
        penalty = 0.5 * float(np.sum((candidate - prior) ** 2)) / PRIOR_SD**2
        return float(np.logaddexp(0, np.where(outcome, -eta, eta)).sum()) + penalty

    for _ in range(100):
        p = expit(design @ beta)
        gradient = x.T @ (p - outcome) + (beta - prior)[free] / PRIOR_SD**2
        step = np.zeros(len(beta))
        step[free] = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + precision, gradient)
        scale, before = 1.0, objective(beta)
        while objective(beta - scale * step) > before and scale > 1e-6:  # too long a step
            scale /= 2
        beta = beta - scale * step
        if np.abs(scale * step).max() < 1e-8:
            break
    return beta


def _neutral_iou(intercept: float, weights: NDArray[np.float64], present: float) -> float:
    """Return the IoU at which two masks of equal area and place have log-odds 0."""
    low, high = 0.02, 0.98

    def log_odds(iou: float) -> float:
        return float(neutral_features(iou) @ weights) + intercept

    if weights[0] + weights[1] == 0:  # overlap says nothing
        return present
    if log_odds(low) >= 0:
        return low
    return round(float(brentq(log_odds, low, high)), 4) if log_odds(high) > 0 else high


def _owners(nodes: Nodes, truth: InstanceSet) -> NDArray[np.int64]:
    """Return [N], the id of the true object that each detection shows; 0: none."""
    owner = np.zeros(len(nodes), np.int64)
    for i in range(len(nodes)):
        r0, c0, r1, c1 = nodes.windows[i].tolist()
        best = 0.0
        for thing in truth:
            plane = thing.slice_mask(int(nodes.slices[i])) if thing.label == nodes.labels[i] else None
            if plane is None:
                continue
            a, b = thing.offset[1], thing.offset[2]
            low, high = (max(r0, a), max(c0, b)), (min(r1, a + plane.shape[0]), min(c1, b + plane.shape[1]))
            if low[0] >= high[0] or low[1] >= high[1]:
                continue
            mine = nodes.masks[i][low[0] - r0 : high[0] - r0, low[1] - c0 : high[1] - c0]
            shared = np.count_nonzero(mine & plane[low[0] - a : high[0] - a, low[1] - b : high[1] - b])
            iou = shared / (int(nodes.areas[i]) + np.count_nonzero(plane) - shared)
            if iou > max(best, MATCH_IOU - 1e-9):
                best, owner[i] = iou, thing.id
    return owner
