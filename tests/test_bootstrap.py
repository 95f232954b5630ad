"""Resampled cases: weights, means and intervals, against closed forms and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from medseg.errors import ConfigError
from medseg.metrics.bootstrap import case_weights, interval, weighted_means


def test_weights_are_the_cohort_and_then_resamples_of_its_size() -> None:
    weights = case_weights(7, resamples=4000, seed=5)
    assert weights.shape == (4001, 7) and weights[0].tolist() == [1] * 7
    assert (weights.sum(axis=1) == 7).all() and weights.min() == 0
    # A case is missing from a resample with probability (1 - 1/7)^7 = 0.340.
    assert (weights[1:] == 0).mean() == pytest.approx((6 / 7) ** 7, abs=0.01)


def test_the_seed_decides() -> None:
    first, again, other = (case_weights(9, resamples=5, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize(("resamples", "seed"), [(-1, 0), (10, -1)])
def test_arguments_out_of_range(resamples: int, seed: int) -> None:
    with pytest.raises(ConfigError, match="expected both 0 or more"):
        case_weights(3, resamples=resamples, seed=seed)


def test_means_leave_out_what_is_undefined() -> None:
    values = np.array([1.0, math.nan, 4.0])
    weights = np.array([[1, 1, 1], [2, 0, 1], [0, 3, 0]])
    means = weighted_means(values, weights)
    assert means[:2].tolist() == [2.5, 2.0] and math.isnan(means[2])


def test_interval_agrees_with_scipy(rng: np.random.Generator) -> None:
    values = rng.gamma(2.0, size=40)
    ours = interval(weighted_means(values, case_weights(40, resamples=9999, seed=0)))
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02)
    spread = 1.96 * values.std() / math.sqrt(40)  # the normal approximation
    assert ours == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.1)


def test_interval_of_what_is_often_undefined() -> None:
    assert all(map(math.isnan, interval(np.array([0.5]))))  # no resamples
    assert all(map(math.isnan, interval(np.array([math.nan, 1.0, 1.0]))))  # undefined for the cohort
    assert all(map(math.isnan, interval(np.array([0.5, math.nan, math.nan, 1.0]))))  # in two of three resamples
    assert interval(np.array([0.5, math.nan, 1.0, 1.0])) == (1.0, 1.0)
