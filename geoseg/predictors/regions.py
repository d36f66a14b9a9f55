"""What methods without classes have in common: regions that are numbered, and given to classes by number."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from geoseg.types import Prediction

TOGETHER = 16
"""Maps that are enlarged at a time, so that many regions of a large picture need no more memory than a few."""


def enlarged_winners(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Which map is the largest at each pixel, once all are enlarged bilinearly.

    Args:
        maps: float [P, h, w].
        size: H and W.

    Returns:
        int64 [H, W]; of equal ones the first.
    """
    best = maps.new_full(size, -torch.inf)
    winner = torch.zeros(size, dtype=torch.int64, device=maps.device)
    for first in range(0, len(maps), TOGETHER):
        large = interpolate(maps[None, first : first + TOGETHER], size, mode="bilinear")[0]
        values, which = large.max(0)
        better = values > best
        best, winner = torch.where(better, values, best), torch.where(better, which + first, winner)
    return winner


def by_size(regions: Tensor) -> Tensor:
    """Numbers the regions of every picture anew, the largest first and without gaps.

    >>> by_size(torch.tensor([[[7, 3, 3]]])).tolist()
    [[[1, 0, 0]]]
    """
    renumbered = torch.empty_like(regions)
    for i, one in enumerate(regions):
        _, inverse, counts = one.unique(return_inverse=True, return_counts=True)
        # of two regions of one size the one with the lower number comes first
        renumbered[i] = counts.argsort(descending=True, stable=True).argsort()[inverse]
    return renumbered


def as_prediction(regions: Tensor, num_classes: int) -> Prediction:
    """Regions as every method's answer: the largest ones are a class each, and the smallest together the last one.

    Args:
        regions: int64 [B, H, W], any numbers.
        num_classes: K.
    """
    regions = by_size(regions)
    labels = regions.clamp(max=num_classes - 1)
    probs = one_hot(labels, num_classes).permute(0, 3, 1, 2).float()  # [B, K, H, W]
    return Prediction(probs=probs, regions=regions)
