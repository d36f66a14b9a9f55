"""Cuts of histograms against trying all cuts, against scikit-image, and against counts by hand."""

from __future__ import annotations

from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
from skimage.filters import threshold_multiotsu, threshold_otsu

from geoseg.models.thresholds import balanced, maximum_entropy, otsu

RULES = [otsu, maximum_entropy, balanced]


def parts(histogram: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    ends = [0, *cuts, len(histogram)]
    return [np.repeat(np.arange(a, b), histogram[a:b]) for a, b in pairwise(ends)]  # the level of every pixel


def spread(histogram: np.ndarray, cuts: list[int]) -> float:
    return sum(((part - part.mean()) ** 2).sum() for part in parts(histogram, cuts) if len(part))


def entropy(histogram: np.ndarray, cuts: list[int]) -> float:
    """Minus infinity where a group is empty."""
    total = 0.0
    for part in parts(histogram, cuts):
        if not len(part):
            return -np.inf
        p = np.unique(part, return_counts=True)[1] / len(part)
        total -= float((p * np.log(p)).sum())
    return total


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_cuts_are_better(count: int, seed: int) -> None:
    histogram = np.random.default_rng(seed).integers(0, 9, 10)
    every = list(combinations_with_replacement(range(11), count - 1))
    assert spread(histogram, otsu(histogram, count)) == pytest.approx(min(spread(histogram, list(c)) for c in every))
    found = entropy(histogram, maximum_entropy(histogram, count))
    assert found == pytest.approx(max(entropy(histogram, list(c)) for c in every))


def test_otsu_is_that_of_scikit_image() -> None:
    levels = np.random.default_rng(0).normal([[60], [120], [200]], 15, (3, 2000)).clip(0, 255).round().astype(np.uint8)
    histogram = np.bincount(levels.ravel(), minlength=256)
    assert otsu(histogram, 2) == [threshold_otsu(levels) + 1]  # theirs is the last level below, ours the first above
    theirs = threshold_multiotsu(levels, 3)
    assert otsu(histogram, 3) == [theirs[0] + 1, theirs[1] + 1]


def beam(histogram: list[int]) -> int:
    """Anjos and Shahbazkia's rule, every sum taken anew."""
    first = min(i for i, n in enumerate(histogram) if n)
    last = max(i for i, n in enumerate(histogram) if n)
    while first < last:
        middle = (first + last) // 2
        if sum(histogram[middle + 1 : last + 1]) > sum(histogram[first : middle + 1]):
            last -= 1
        else:
            first += 1
    return first + 1


@pytest.mark.parametrize("seed", range(8))
def test_the_beam_balances(seed: int) -> None:
    histogram = np.random.default_rng(seed).integers(0, 20, 17)
    there = histogram.nonzero()[0]
    assert balanced(histogram, 2) == [min(max(beam(histogram.tolist()), there[0] + 1), there[-1])]


def test_a_beam_by_hand() -> None:
    # 4 | 0 | 1 | 5: the middle is after the second level, 4 against 6, so the last level falls, 4 against 1 is heavier
    # on the left and loses its first, and what is left meets between the second and the third
    assert balanced(np.array([4, 0, 1, 5]), 2) == [2]
    # of three groups the heavier half is cut again
    assert balanced(np.array([4, 0, 1, 5]), 3) == [2, 3]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 2, 6])
def test_few_levels(rule: object, count: int) -> None:
    assert callable(rule)
    for level in (0, 3, 7):
        flat = np.zeros(8, dtype=int)
        flat[level] = 5
        cuts = rule(flat, count)
        assert len(cuts) <= count - 1 and cuts == sorted(cuts)
        assert sum(cut <= level for cut in cuts) == 0  # a flat picture is the lowest group
    two = np.array([0, 3, 0, 0, 4, 0])
    groups = {sum(cut <= level for cut in rule(two, count)) for level in (1, 4)}
    assert len(groups) == min(count, 2)
