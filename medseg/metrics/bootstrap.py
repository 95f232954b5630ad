"""Intervals by resampling whole cases with replacement, the unit that is independent in a cohort.

A resample is told by how often it holds each case: one row of a [W, C] array of weights, in which the first
row is the cohort itself. A score that is computed from such weights gives its value (row 0) and, from the
other rows, the percentile interval: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
Two predictions that are scored with the same weights are compared in pairs: the interval is that of the
difference (ibid., chapter 8).
"""

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError

NAN = float("nan")
#: Share of the resamples that an interval holds.
LEVEL = 0.95


def case_weights(cases: int, *, resamples: int, seed: int) -> NDArray[np.int64]:
    """Return [1 + resamples, cases] how often each case counts: ones in row 0, then one row per resample.

    Raises:
        ConfigError: fewer than 0 resamples, or a negative seed.
    """
    if resamples < 0 or seed < 0:
        raise ConfigError(f"bootstrap: {resamples} resamples and seed {seed}; expected both 0 or more")
    drawn = np.random.default_rng(seed).multinomial(cases, np.full(cases, 1 / cases), size=resamples)
    return np.concatenate([np.ones((1, cases), np.int64), drawn])


def weighted_means(values: NDArray[np.float64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return [W] the mean of the defined among [C] values under each row of weights; NaN where none is."""
    defined = ~np.isnan(values)
    total = weights @ np.where(defined, values, 0.0)
    count = weights @ defined.astype(np.float64)
    return np.divide(total, count, out=np.full(len(weights), NAN), where=count > 0)


def interval(scores: NDArray[np.float64]) -> tuple[float, float]:
    """Return the percentile interval at ``LEVEL`` of a score.

    Args:
        scores: [W], row 0 the cohort's own value, then one value per resample; NaN where a resample leaves
            the score undefined.

    Returns:
        The two ends; NaN where the cohort's own value or more than half of the resamples are undefined (or
        there is none).
    """
    drawn = scores[1:][~np.isnan(scores[1:])]
    if np.isnan(scores[0]) or 2 * len(drawn) < len(scores) - 1 or not len(drawn):
        return NAN, NAN
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
