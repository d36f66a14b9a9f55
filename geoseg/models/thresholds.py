"""Thresholds from a histogram alone: where to cut the greys of a picture into so many groups.

A cut is a level that begins a group: with the cuts 90 and 180 the levels 0 to 89 are the first group, 90 to 179 the
second, 180 and above the third. Where there are fewer levels than groups, some groups stay empty.
"""

from __future__ import annotations

import numpy as np


def otsu(histogram: np.ndarray, count: int) -> list[int]:
    """The cuts that leave least variance inside the groups (Otsu 1979; for several, Liao et al. 2001).

    Found exactly for any number of groups, group by group; trying all cuts takes hours for six of them.

    Args:
        histogram: [L], how many pixels have each level.
        count: groups, 1 or more.

    Returns:
        count - 1 cuts in 0..L, in order.

    >>> otsu(np.array([4, 0, 0, 2, 3]), 2)
    [3]
    """
    weight = np.concatenate([[0.0], np.cumsum(histogram, dtype=np.float64)])
    total = np.concatenate([[0.0], np.cumsum(histogram * np.arange(len(histogram)), dtype=np.float64)])
    pixels = weight[None, :] - weight[:, None]  # [L + 1, L + 1], of the levels from a row's up to a column's
    # what is spread inside is the same for all cuts but for this, the squares of the means of groups
    squares = (total[None, :] - total[:, None]) ** 2
    return _best_cuts(np.divide(squares, pixels, out=np.zeros_like(squares), where=pixels > 0), count)


def maximum_entropy(histogram: np.ndarray, count: int) -> list[int]:
    """The cuts that make the sum of the groups' entropies largest (Kapur, Sahoo and Wong 1985).

    A group is left empty only where there are fewer levels than groups; one of all would often have the largest sum.

    Args:
        histogram: [L], how many pixels have each level.
        count: groups, 1 or more.

    Returns:
        count - 1 cuts in 0..L, in order.

    >>> maximum_entropy(np.array([2, 2, 0, 0, 1, 1]), 2)
    [4]
    """
    counts = np.asarray(histogram, dtype=np.float64)
    logs = np.log(counts, out=np.zeros_like(counts), where=counts > 0)
    weight = np.concatenate([[0.0], np.cumsum(counts)])
    total = np.concatenate([[0.0], np.cumsum(counts * logs)])
    pixels, sums = weight[None, :] - weight[:, None], total[None, :] - total[:, None]
    some = pixels > 0
    entropy = np.log(pixels, out=np.zeros_like(pixels), where=some)
    entropy -= np.divide(sums, pixels, out=np.zeros_like(pixels), where=some)
    # sums of floats leave crumbs, by which equal cuts would differ; no sum of entropies makes up for an empty group
    return _best_cuts(np.where(some, np.round(entropy, 9), -1e6), count)


def balanced(histogram: np.ndarray, count: int) -> list[int]:
    """The cut at which a histogram balances, like a beam (Anjos and Shahbazkia 2008).

    The heavier side loses its outermost level until the sides meet, and the fulcrum stays in the middle of what is
    left. Published for two groups; for more, the group with most pixels is cut again.

    Args:
        histogram: [L], how many pixels have each level.
        count: groups, 1 or more.

    Returns:
        At most count - 1 cuts in order; fewer where no group is left that has two levels.

    >>> balanced(np.array([5, 0, 0, 1, 4]), 2)
    [3]
    """
    counts = np.asarray(histogram).tolist()
    groups = [(0, len(counts))]
    while len(groups) < count:
        wide = [(first, last) for first, last in groups if sum(value > 0 for value in counts[first:last]) > 1]
        if not wide:
            break
        first, last = max(wide, key=lambda group: sum(counts[slice(*group)]))
        cut = first + _fulcrum(counts[first:last])
        groups.remove((first, last))
        groups = sorted([*groups, (first, cut), (cut, last)])
    return [first for first, _ in groups[1:]]


def _fulcrum(counts: list[int]) -> int:
    """The level that begins the right side of a beam with at least two levels on it."""
    there = [level for level, value in enumerate(counts) if value > 0]
    first, last = there[0], there[-1]
    middle = (first + last) // 2  # the last level of the left side
    left, right = sum(counts[first : middle + 1]), sum(counts[middle + 1 : last + 1])
    while first < last:
        if right > left:
            right -= counts[last]
            last -= 1
        else:
            left -= counts[first]
            first += 1
        wanted = (first + last) // 2
        if wanted < middle:
            left, right = left - counts[middle], right + counts[middle]
        elif wanted > middle:
            left, right = left + counts[wanted], right - counts[wanted]
        middle = wanted
    return min(max(middle + 1, there[0] + 1), there[-1])  # both sides keep a level


def _best_cuts(worth: np.ndarray, count: int) -> list[int]:
    """The cuts with the largest sum of worths, the last of them where several have it.

    Args:
        worth: [L + 1, L + 1], of a group that begins with the row's level and ends before the column's.
        count: groups.
    """
    size = len(worth)
    worth = np.where(np.arange(size)[:, None] <= np.arange(size)[None, :], worth, -np.inf)
    best, began = worth[0], []
    for _ in range(count - 1):
        sums = best[:, None] + worth
        came_from = size - 1 - sums[::-1].argmax(0)  # the last of equals, so that a flat picture is all one low group
        best = sums[came_from, np.arange(size)]
        began.append(came_from)
    cuts, end = list[int](), size - 1
    for came_from in reversed(began):
        end = int(came_from[end])
        cuts.insert(0, end)
    return cuts
