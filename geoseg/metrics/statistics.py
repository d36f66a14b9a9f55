"""How sure a mean can be, from the independent units that it is a mean of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
