"""Scores of regions that have no names: what a method without classes has told apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from geoseg.metrics.boundary import borders, dilate
from geoseg.metrics.matching import apply_matching, most_pixels
from geoseg.metrics.score import iou, pixel_accuracy
from geoseg.types import IGNORE

MOST = 256
"""Regions of one image that are scored; the published grid of anchors can leave no more."""


class RegionScore(Metric):
    """Accuracy and mean IoU of nameless regions after a Hungarian matching, and how well their borders lie.

    ``compute`` gives ``per_image/accuracy`` and ``per_image/iou``, where every image's regions are given the classes
    that fit it best before counts are added up (as DiffSeg is scored: arXiv 2308.12469), and ``once/accuracy`` and
    ``once/iou``, where region number j means the same class in all images (as PiCIE and STEGO are): much stricter, and
    since regions are numbered by size, a question of whether sizes tell classes. Of the regions of an image that are
    more than there are classes the pixels count as missed and not as found wrongly. Then ``boundary_f1``, the harmonic
    mean of the shares of border pixels within ``radius`` of a border of the other side, whatever meets there, and the
    mean numbers per image ``count`` of regions and ``true_count`` of classes.

    Args:
        num_classes: K.
        radius: tolerance of the borders in pixels.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    counts: list[Tensor]
    edges: list[Tensor]

    def __init__(self, num_classes: int, radius: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.radius = num_classes, radius
        self.add_state("counts", default=[], dist_reduce_fx="cat")
        self.add_state("edges", default=[], dist_reduce_fx="cat")

    def update(self, regions: Tensor, target: Tensor) -> None:
        """Counts a batch.

        Args:
            regions: int64 [B, H, W], numbered image by image from 0 on.
            target: int64 [B, H, W] in 0..K-1, 255 = ignore.

        Raises:
            ValueError: the shapes differ.
        """
        if regions.shape != target.shape or target.ndim != 3:
            raise ValueError(
                f"regions and target must have one shape [B, H, W], got {list(regions.shape)} and {list(target.shape)}"
            )
        if int(regions.max()) >= MOST:
            raise ValueError(
                f"an image has {int(regions.max()) + 1} regions, and at most {MOST} are scored; merge more"
            )
        regions = regions.to(target.device)
        gaps = target == IGNORE
        found = borders((regions + IGNORE + 1).masked_fill(gaps, IGNORE))  # no region is called as gaps are
        true = borders(target)
        sums = [found & dilate(true, self.radius), found, true & dilate(found, self.radius), true]
        self.edges.append(torch.stack([each.sum((1, 2)) for each in sums], 1))  # [B, 4]
        for one, classes, keep in zip(regions, target, ~gaps, strict=True):
            cells = torch.bincount(classes[keep] * MOST + one[keep], minlength=self.num_classes * MOST)
            self.counts.append(cells.view(1, self.num_classes, MOST))

    def compute(self) -> dict[str, Tensor]:
        """The scores of the data set, float64 scalars."""
        counts, edges = self._counted()
        once = _named(counts.sum(0, keepdim=True))[0]
        return {
            **self._scores(_named(counts).sum(0), edges.sum(0), "per_image/"),
            **self._scores(once, None, "once/"),
            **{name: value.mean() for name, value in _numbers(counts).items()},
        }

    def per_image(self) -> dict[str, list[float]]:
        """The scores of every image, in the order of updates, without those of one matching for all."""
        counts, edges = self._counted()
        scores = {**self._scores(_named(counts), edges, "per_image/"), **_numbers(counts)}
        return {name: value.tolist() for name, value in scores.items()}

    def _counted(self) -> tuple[Tensor, Tensor]:
        return dim_zero_cat(self.counts).cpu(), dim_zero_cat(self.edges).cpu()

    def _scores(self, named: Tensor, edges: Tensor | None, prefix: str) -> dict[str, Tensor]:
        scores = {
            f"{prefix}accuracy": pixel_accuracy(named),
            # the rows below the classes are regions that got none
            f"{prefix}iou": iou(named)[..., : self.num_classes].nanmean(-1),
        }
        return scores if edges is None else {**scores, "boundary_f1": _f1(edges.double())}


def _named(counts: Tensor) -> Tensor:
    """Counts [N, K, R] as [N, M, M], M the larger of both, with the regions of each in the order of their classes."""
    used = int((counts.sum((0, 1)) > 0).nonzero().max()) + 1 if counts.any() else 1
    most = max(counts.shape[1], used)
    square = pad(counts[..., :used], (0, most - used, 0, most - counts.shape[1]))
    return apply_matching(square, torch.stack([most_pixels(one) for one in square]))


def _numbers(counts: Tensor) -> dict[str, Tensor]:
    there = counts > 0
    return {"count": there.any(1).sum(-1).double(), "true_count": there.any(2).sum(-1).double()}


def _f1(edges: Tensor) -> Tensor:
    """From [..., 4]: hits and number of found border pixels, hits and number of true ones; nan where neither is."""
    precision, recall = edges[..., 0] / edges[..., 1].clamp(min=1), edges[..., 2] / edges[..., 3].clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(edges.dtype).tiny)
    return f1.masked_fill(edges[..., 1] + edges[..., 3] == 0, torch.nan)
