"""Scores of classes of whole images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from geoseg.metrics.score import confusion, dice, mean_accuracy, pixel_accuracy, recall
from geoseg.types import IGNORE


class ImageScore(Metric):
    """Accuracy, F1 and cross-entropy of classes of whole images, for the data set and image by image.

    ``compute`` gives ``accuracy/image`` (share of images with the right class), ``accuracy/mean`` (the same of every
    class, averaged), ``f1/mean`` (macro F1), all higher better, and ``cross_entropy``, the mean of -log of the
    probability of the truth, in nats, lower better; ``f1/class_<k>`` and ``accuracy/class_<k>`` of single classes. A
    class that occurs neither in the target nor in the answers has no F1, one that the target lacks no accuracy: nan,
    and a mean leaves it out. Images whose target is 255 count nowhere.

    Args:
        num_classes: K.
    """

    is_differentiable = False
    full_state_update = False

    matrix: Tensor
    right: list[Tensor]
    losses: list[Tensor]

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("matrix", default=zeros, dist_reduce_fx="sum")  # [K, K]; rows = target, columns = answer
        for name in ("right", "losses"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, probs: Tensor, target: Tensor) -> None:
        """Counts a batch.

        Args:
            probs: float [B, K], sum 1 over K.
            target: int [B] in 0..K-1, 255 = ignore.

        Raises:
            ValueError: as ``confusion`` says.
        """
        probs = probs.float().to(target.device)
        labels, ignored = probs.argmax(1), target == IGNORE
        self.matrix += confusion(labels, target, self.num_classes).sum(0).to(self.matrix)
        of_truth = probs.gather(1, target.masked_fill(ignored, 0)[:, None])[:, 0]
        nan = torch.full_like(of_truth, torch.nan)
        self.right.append(torch.where(ignored, nan, (labels == target).float()))
        # a probability that is too small for its type is not 0
        self.losses.append(torch.where(ignored, nan, -of_truth.clamp(min=torch.finfo(torch.float32).tiny).log()))

    def compute(self) -> dict[str, Tensor]:
        """The scores of the data set, float64 scalars."""
        counts = self.matrix.cpu()
        f1 = dice(counts)
        return {
            "accuracy/image": pixel_accuracy(counts),
            "accuracy/mean": mean_accuracy(counts),
            "f1/mean": f1.nanmean(),
            "cross_entropy": dim_zero_cat(self.losses).double().nanmean().cpu(),
            **{f"f1/class_{k}": value for k, value in enumerate(f1)},
            **{f"accuracy/class_{k}": value for k, value in enumerate(recall(counts))},
        }

    def per_image(self) -> dict[str, list[float]]:
        """``accuracy/image``, 0 or 1, and ``cross_entropy`` of every image, in the order of updates."""
        found = {"accuracy/image": dim_zero_cat(self.right), "cross_entropy": dim_zero_cat(self.losses)}
        return {name: values.double().tolist() for name, values in found.items()}
