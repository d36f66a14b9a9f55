"""Intervals and correlations against SciPy's own."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from geoseg.metrics.statistics import rank_correlation, student_interval


def test_the_interval_of_a_mean_over_runs() -> None:
    values = np.random.default_rng(0).normal(0.4, 0.1, 6)
    found = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert student_interval(values.tolist()) == pytest.approx((found.low, found.high))
    assert student_interval([0.1, 0.2]) is None
    assert student_interval([0.1] * 3) == pytest.approx((0.1, 0.1))


def test_a_rank_correlation_and_its_interval() -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=25).round(1)  # with ties
    y = (x**3 + random.normal(size=25)).round(1)
    found = rank_correlation(x.tolist(), y.tolist())
    assert (found.rho, found.n) == (pytest.approx(stats.spearmanr(x, y).statistic), 25)
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=1000,
        random_state=np.random.default_rng(2),
    ).confidence_interval
    assert found.ends == pytest.approx((theirs.low, theirs.high), abs=0.04)
    assert rank_correlation(x.tolist(), y.tolist()) == found  # the seed is fixed


def test_what_has_no_correlation_or_no_interval() -> None:
    assert rank_correlation([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]) == (None, None, 5)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == (pytest.approx(-1), None, 4)
    assert rank_correlation([], []) == (None, None, 0)
