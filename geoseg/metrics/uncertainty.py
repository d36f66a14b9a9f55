"""Whether a method knows where it is wrong: how unsure it is of every pixel, and what that is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import digamma
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from geoseg.types import IGNORE

BINS = 15
"""Bins of the calibration error, as Guo et al. (2017, arXiv 1706.04599) have it."""

LEVELS = 1 << 16
"""Levels of uncertainty that are told apart."""

RANKINGS = ("auroc", "risk")

COVERAGES = tuple(share / 20 for share in range(1, 21))
"""Shares of pixels that a curve of risk over coverage is given at."""


def entropy(probs: Tensor) -> Tensor:
    """Entropy of class probabilities [B, K, *space] in units of its largest value: [B, *space], 0 sure, 1 undecided.

    >>> entropy(torch.tensor([[[0.5], [0.5]]])).tolist()
    [[1.0]]
    """
    probs = probs.float()
    return torch.special.entr(probs).sum(1) / math.log(probs.shape[1])


def variance(members: Tensor) -> Tensor:
    """Variance of members' probabilities [B, M, K, *space], summed over classes: [B, *space], 0 where all agree."""
    return members.float().var(dim=1, correction=0).sum(1)


def vote_entropy(members: Tensor) -> Tensor:
    """Entropy of the members' votes, one per member for its most probable class, [B, *space] in 0..1.

    Args:
        members: [B, M, K, *space].
    """
    chosen = members.argmax(2)  # [B, M, *space]
    votes = torch.stack([(chosen == k).float().mean(1) for k in range(members.shape[2])], dim=1)  # [B, K, *space]
    return entropy(votes)


def auroc(right: np.ndarray, wrong: np.ndarray) -> float:
    """How well uncertainty ranks wrong pixels above right ones: the chance that it does for a pair, ties counted half.

    Args:
        right: pixels with the right class at every level of uncertainty, from the surest on, [L].
        wrong: the same of those with another, [L].

    Returns:
        0.5 for no better than chance, 1 for all; nan where all are right or all are wrong.

    >>> auroc(np.array([1, 1, 0]), np.array([0, 1, 1]))
    0.875
    """
    pairs = float(right.sum()) * float(wrong.sum())
    surer = np.cumsum(right) - right
    return float((wrong * (surer + right / 2.0)).sum() / pairs) if pairs else float("nan")


def risk(right: np.ndarray, wrong: np.ndarray) -> float:
    """Area under the curve of risk over coverage (Geifman and El-Yaniv 2017): the share of wrong pixels among the n
    surest ones, as a mean over every n from 1 to all; of equally sure ones all count alike.

    Args:
        right: pixels with the right class at every level of uncertainty, from the surest on, [L].
        wrong: the same of those with another, [L].

    Returns:
        0 where all are right; nan where there is no pixel. It cannot fall below what the number of errors allows.

    >>> round(risk(np.array([1, 1, 1]), np.array([0, 0, 1])), 6)  # (0 + 0 + 1/6 + 1/4) / 4
    0.104167
    """
    sizes = (right + wrong).astype(np.float64)
    there = sizes > 0
    sizes, errors = sizes[there], wrong[there].astype(np.float64)
    if not len(sizes):
        return float("nan")
    ends, shares = np.cumsum(sizes), errors / sizes
    starts = ends - sizes
    before = np.cumsum(errors) - errors
    # within a level the share after n pixels is (before + (n - start) * share) / n; harmonic numbers add these up
    total = shares * sizes + (before - starts * shares) * (digamma(ends + 1) - digamma(starts + 1))
    return float(total.sum() / ends[-1])


class Ranking(Metric):
    """What an uncertainty is worth, for the data set and image by image.

    ``compute`` gives ``auroc`` (higher is better) and ``risk`` (lower is better), see there. Pixels of all images are
    ranked together for the data set. Values that agree in their first eight binary digits count as equal, so that
    pictures of any number and size take no more than two lists of ``LEVELS`` numbers.
    """

    is_differentiable = False
    full_state_update = False

    right: Tensor
    wrong: Tensor
    images: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("right", "wrong"):
            self.add_state(name, default=torch.zeros(LEVELS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", default=[], dist_reduce_fx="cat")

    def update(self, uncertainty: Tensor, labels: Tensor, target: Tensor) -> None:
        """Counts a batch.

        Args:
            uncertainty: float [B, *space], larger is less sure.
            labels: int [B, *space], predicted classes.
            target: int [B, *space], 255 = ignore.

        Raises:
            ValueError: shapes differ.
        """
        if uncertainty.shape != target.shape or labels.shape != target.shape:
            raise ValueError(
                f"uncertainty, labels and target must have one shape [B, *space], got {list(uncertainty.shape)}, "
                f"{list(labels.shape)} and {list(target.shape)}"
            )
        for values, found, true in zip(uncertainty.float().cpu(), labels.cpu(), target.cpu(), strict=True):
            counts = true != IGNORE
            level, hit = _level(values[counts]), (found == true)[counts]
            right, wrong = (torch.bincount(level[some], minlength=LEVELS) for some in (hit, ~hit))
            self.right += right.to(self.right)
            self.wrong += wrong.to(self.wrong)
            self.images.append(torch.tensor([_ranked(right, wrong)], dtype=torch.float64))

    def compute(self) -> dict[str, Tensor]:
        """``auroc`` and ``risk`` of all pixels, float64 scalars; nan where they mean nothing."""
        found = torch.tensor(_ranked(self.right, self.wrong), dtype=torch.float64)
        return dict(zip(RANKINGS, found, strict=True))

    def per_image(self) -> dict[str, list[float]]:
        """The same of every image, in the order of updates."""
        return dict(zip(RANKINGS, dim_zero_cat(self.images).T.tolist(), strict=True))

    def curve(self, coverages: Sequence[float] = COVERAGES) -> list[float]:
        """Share of wrong pixels among the surest, at each of these shares of all pixels of all images; nan for none."""
        sizes, errors = (self.right + self.wrong).cpu().numpy(), self.wrong.cpu().numpy()
        ends = np.r_[0, np.cumsum(sizes)].astype(np.float64)
        sums = np.interp(np.asarray(coverages) * ends[-1], ends, np.r_[0, np.cumsum(errors)])
        return (sums / (np.asarray(coverages) * (ends[-1] or math.nan))).tolist()


class CalibrationError(Metric):
    """Expected calibration error: how far the probability of the chosen class is from how often it is right.

    Pixels are sorted into equal bins of that probability; ``compute`` gives the mean over pixels of a bin's distance
    between mean probability and share of right ones (Naeini et al. 2015), 0 best, below 1.

    Args:
        bins: how many.
    """

    is_differentiable = False
    full_state_update = False

    counts: list[Tensor]

    def __init__(self, bins: int = BINS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bins = bins
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(self, probs: Tensor, target: Tensor) -> None:
        """Counts a batch.

        Args:
            probs: float [B, K, *space], sum 1 over K.
            target: int [B, *space], 255 = ignore.
        """
        # a mean of probabilities may exceed 1 by a rounding
        sure, labels = (part.to(target.device) for part in probs.float().clamp(max=1).max(dim=1))
        place = (sure * self.bins).long().clamp(max=self.bins - 1)
        for i in range(len(target)):  # an image at a time, for scores of each
            keep = target[i] != IGNORE
            into = place[i][keep].cpu()
            rows = [torch.ones(len(into)), sure[i][keep].cpu(), (labels[i] == target[i])[keep].cpu()]
            sums = [torch.bincount(into, row.double(), minlength=self.bins) for row in rows]
            self.counts.append(torch.stack(sums)[None])  # [1, 3, bins]: pixels, probability, right ones

    def compute(self) -> Tensor:
        """The error of all pixels, a float64 scalar."""
        return _calibration(dim_zero_cat(self.counts).cpu().sum(0))

    def per_image(self) -> list[float]:
        """The same of every image, in the order of updates."""
        return [float(_calibration(one)) for one in dim_zero_cat(self.counts).cpu()]


def _calibration(counts: Tensor) -> Tensor:
    pixels, sure, right = counts
    return (sure - right).abs().sum() / pixels.sum()


def _ranked(right: Tensor, wrong: Tensor) -> tuple[float, float]:
    counts = right.cpu().numpy(), wrong.cpu().numpy()
    return auroc(*counts), risk(*counts)


def _level(values: Tensor) -> Tensor:
    """Numbers float32 [N] as levels int64 [N] in the same order: the first half of their bits, sign first."""
    bits = values.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    ordered = torch.where(bits >= 1 << 31, (1 << 32) - 1 - bits, bits + (1 << 31))
    return ordered >> 16
