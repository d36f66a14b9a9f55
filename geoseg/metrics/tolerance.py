"""Scores of classes a few pixels thin, such as faults, which a shift by one pixel would otherwise ruin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from geoseg.metrics.boundary import dilate
from geoseg.types import IGNORE


class TolerantCounts(NamedTuple):
    """Pixels of thin classes, and how many of them lie near the class on the other side.

    Attributes:
        hits_pred: int64 [..., T], predicted pixels near a true one.
        total_pred: int64 [..., T], predicted pixels.
        hits_target: int64 [..., T], true pixels near a predicted one.
        total_target: int64 [..., T], true pixels.
    """

    hits_pred: Tensor
    total_pred: Tensor
    hits_target: Tensor
    total_target: Tensor


def tolerant_counts(labels: Tensor, target: Tensor, tolerances: Mapping[int, int]) -> TolerantCounts:
    """Counts every pixel of the given classes and those within tolerance of the class on the other side.

    Args:
        labels: int64 [B, H, W], predicted classes.
        target: int64 [B, H, W], 255 = ignore; ignored pixels count on neither side.
        tolerances: T classes, each with its tolerance in pixels, Euclidean, 0 or more.

    Returns:
        Counts [B, T].

    >>> counts = tolerant_counts(torch.tensor([[[1, 0, 0, 1]]]), torch.tensor([[[0, 1, 0, 0]]]), {1: 1})
    >>> [value.item() for value in counts]
    [1, 2, 1, 1]
    """
    seen = labels.masked_fill(target == IGNORE, IGNORE)
    found: list[list[Tensor]] = []
    for k, radius in tolerances.items():
        predicted, true = seen == k, target == k
        near = predicted & dilate(true, radius), predicted, true & dilate(predicted, radius), true
        found.append([mask.sum((1, 2)) for mask in near])
    if not found:
        return TolerantCounts(*(torch.zeros(len(target), 0, dtype=torch.int64, device=target.device) for _ in range(4)))
    return TolerantCounts(*(torch.stack(of_classes, dim=-1) for of_classes in zip(*found, strict=True)))


def tolerant_precision(counts: TolerantCounts) -> Tensor:
    """Share of predicted pixels within tolerance of the truth, float64 [..., T]; nan where none is predicted."""
    return counts.hits_pred.double() / counts.total_pred


def tolerant_recall(counts: TolerantCounts) -> Tensor:
    """Share of true pixels within tolerance of the prediction, float64 [..., T]; nan where there are none."""
    return counts.hits_target.double() / counts.total_target


def tolerant_f1(counts: TolerantCounts) -> Tensor:
    """Harmonic mean of ``tolerant_precision`` and ``tolerant_recall``.

    Args:
        counts: with any leading axes; add up images first for the score of a data set.

    Returns:
        float64 [..., T] in [0, 1]; nan for a class that is on neither side, 0 where it is on one side only.
    """
    precision, recall = tolerant_precision(counts).nan_to_num(0.0), tolerant_recall(counts).nan_to_num(0.0)
    both = precision + recall
    f1 = torch.where(both > 0, 2 * precision * recall / both.clamp(min=torch.finfo(both.dtype).tiny), 0.0)
    return f1.masked_fill(counts.total_pred + counts.total_target == 0, torch.nan)
