"""Two predictions of the same cases compared in pairs.

Cases are resampled, and each resample scores both predictions on the same cases: what makes a case hard is
hard for both and drops out of the difference (`medseg.metrics.bootstrap`). An interval that holds 0 means that
these cases do not tell the two apart.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError
from medseg.metrics.bootstrap import LEVEL, case_weights, weighted_means
from medseg.metrics.case import CaseResult
from medseg.metrics.evaluation import (
    FROC_IOU,
    RESAMPLES,
    cases_with_reference,
    class_names,
    class_values,
    defined_mean,
    ends,
    pooled_scores,
    ranking_scores,
    settings_of,
)


def compare(
    first: Mapping[str, CaseResult],
    second: Mapping[str, CaseResult],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    froc_iou: float = FROC_IOU,
) -> dict[str, Any]:
    """Compare two predictions on the cases that both have.

    Args:
        first, second: case name -> result against the same reference, under the same settings.
        resamples, seed: of the bootstrap.
        froc_iou: IoU of a hit in FROC, 0..1.

    Returns:
        - ``n_cases``; ``left_out``: names of cases that only one of the two has; ``bootstrap``;
        - ``mean_dice``, and ``objects``: score -> difference, of all classes;
        - ``classes``: class name -> ``voxels``, ``surface``, ``objects``, ``ranking``: score -> difference.

        A difference is {first, second, difference (second minus first), ci_low, ci_high}. Means over cases
        (``voxels``, ``surface``) are of the cases in which both are defined and have ``n`` and ``n_undefined``
        besides; the others are of the counts of all cases. The interval is NaN where fewer than two cases decide it.

    Raises:
        ConfigError: no case in common, or different settings.
    """
    names = [name for name in first if name in second]
    if not names:
        raise ConfigError("comparison: the two predictions have no evaluated case in common")
    a, b = [first[name] for name in names], [second[name] for name in names]
    settings_of([*a, *b])
    weights = case_weights(len(names), resamples=resamples, seed=seed)
    both = class_names([*a, *b])
    holding = cases_with_reference(a, both)
    classes: dict[str, dict[str, Any]] = {}
    dice = []
    for name in both:
        values = class_values(a, name), class_values(b, name)
        entry: dict[str, Any] = {
            group: {
                key: _means(values[0][group][key], values[1][group][key], weights)
                for key in values[0][group]
                if key in values[1][group]
            }
            for group in ("voxels", "surface")
        }
        here = cases_with_reference(a, [name])
        objects = pooled_scores(a, [name], weights), pooled_scores(b, [name], weights)
        entry["objects"] = {key: _difference(objects[0][key], objects[1][key], here) for key in objects[0]}
        ranking = ranking_scores(a, name, weights, froc_iou), ranking_scores(b, name, weights, froc_iou)
        entry["ranking"] = {
            key: _difference(ranking[0][key], ranking[1][key], here) for key in ("ap_10_50", "ap_50_95", "cpm")
        }
        classes[name] = entry
        dice.append([weighted_means(v["voxels"]["dice"], weights) for v in values])
    means = [defined_mean(np.array([row[side] for row in dice])) for side in (0, 1)]
    objects = pooled_scores(a, both, weights), pooled_scores(b, both, weights)
    return {
        "n_cases": len(names),
        "left_out": sorted(first.keys() ^ second.keys()),
        "bootstrap": {"resamples": resamples, "seed": seed, "level": LEVEL},
        "mean_dice": _difference(means[0], means[1], holding),
        "objects": {key: _difference(objects[0][key], objects[1][key], holding) for key in objects[0]},
        "classes": classes,
    }


def _means(first: NDArray[np.float64], second: NDArray[np.float64], weights: NDArray[np.int64]) -> dict[str, float]:
    defined = ~np.isnan(first) & ~np.isnan(second)
    a, b = (weighted_means(np.where(defined, values, np.nan), weights) for values in (first, second))
    n = int(defined.sum())
    return _difference(a, b, n) | {"n": n, "n_undefined": len(first) - n}


def _difference(first: NDArray[np.float64], second: NDArray[np.float64], cases: int) -> dict[str, float]:
    """Describe a score under all weightings, [W] each; ``cases`` decide it."""
    difference = second - first
    described = {"first": float(first[0]), "second": float(second[0]), "difference": float(difference[0])}
    return described | ends(difference, cases)
