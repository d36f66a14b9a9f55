"""How sure a mean can be, from the independent units that it is a mean of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from geoseg.randomness import numpy_stream

FEWEST_UNITS = 5
"""Below this many independent units an interval says more about luck than about the method and is not given."""


def interval(values: Sequence[float], confidence: float = 0.95, draws: int = 10_000) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a mean (Efron 1979), resampling independent units; the seed is fixed.

    Args:
        values: one number per independent unit, such as a section's difference between two methods.
        confidence: share of resampled means inside.
        draws: resamples.

    Returns:
        Lower and upper end, or None below five units.

    >>> interval([1.0] * 5)
    (1.0, 1.0)
    >>> interval([1.0, 2.0]) is None
    True
    """
    if len(values) < FEWEST_UNITS:
        return None
    units = np.asarray(values, dtype=np.float64)
    picks = numpy_stream(0, "bootstrap").integers(len(units), size=(draws, len(units)))
    means = units[picks].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


FEWEST_RUNS = 3
"""Below this many runs not even a normal distribution gives an interval worth drawing: of two it is 18 deviations."""


def student_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of a mean over runs that differ in their seed (Student 1908).

    Seeds are few, too few to resample them as ``interval`` does with units, and a score's scatter over seeds is near
    enough to normal.

    Args:
        values: one number per run.
        confidence: of the interval.

    Returns:
        Lower and upper end, or None below three runs.

    >>> [round(end, 3) for end in student_interval([1.0, 2.0, 3.0])]
    [-0.484, 4.484]
    >>> student_interval([1.0, 2.0]) is None
    True
    """
    if len(values) < FEWEST_RUNS:
        return None
    runs = np.asarray(values, dtype=np.float64)
    half = float(stats.t.ppf((1 + confidence) / 2, len(runs) - 1) * runs.std(ddof=1) / np.sqrt(len(runs)))
    mean = float(runs.mean())
    return mean - half, mean + half


class Correlation(NamedTuple):
    """Spearman's rank correlation.

    Attributes:
        rho: -1 falls always, 0 no order, 1 rises always; None where one side has fewer than two values.
        ends: a 95 % interval, None below five pairs.
        n: pairs.
    """

    rho: float | None
    ends: tuple[float, float] | None
    n: int


def rank_correlation(
    x: Sequence[float], y: Sequence[float], confidence: float = 0.95, draws: int = 10_000
) -> Correlation:
    """Whether y rises where x rises (Spearman 1904), with a percentile bootstrap interval; the seed is fixed.

    Args:
        x: one number per independent unit.
        y: as many.
        confidence: share of resampled correlations inside.
        draws: resamples of pairs; those that leave a side with one value have no correlation and are left out.

    >>> rank_correlation([1, 2, 3, 4, 5], [1, 4, 9, 16, 25]).ends
    (1.0, 1.0)
    """
    n = len(x)
    if len(set(x)) < 2 or len(set(y)) < 2:
        return Correlation(None, None, n)
    rho = float(stats.spearmanr(x, y).statistic)
    if n < FEWEST_UNITS:
        return Correlation(rho, None, n)
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    found = []
    random = numpy_stream(0, "rank correlation")
    at_once = max(1, 1_000_000 // n)  # numbers in memory at a time, however many runs there are
    for start in range(0, draws, at_once):
        picks = random.integers(n, size=(min(at_once, draws - start), n))
        ranks = [stats.rankdata(side[picks], axis=1) for side in (a, b)]
        p, q = (side - side.mean(axis=1, keepdims=True) for side in ranks)
        size = np.sqrt((p**2).sum(axis=1) * (q**2).sum(axis=1))
        found.append(((p * q).sum(axis=1)[size > 0] / size[size > 0]).clip(-1, 1))
    low, high = np.quantile(np.concatenate(found), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Correlation(rho, (float(low), float(high)), n)
