"""Regions from a diffusion model's own attention, without training and without words (DiffSeg, arXiv 2308.12469)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from geoseg import progress
from geoseg.diffusion.attention import AttentionMaps
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.predictors.regions import as_prediction, enlarged_winners
from geoseg.types import Prediction


class AttentionRegions(nn.Module):
    """Takes places that look alike at a picture for one region.

    A grid of anchors is spread over the picture. Each anchor's map becomes the mean of all maps that are near to it,
    then proposals that are near to each other are merged, one greedy round after the other. What remains is enlarged to
    the picture, and every pixel belongs to the proposal that is strongest there (non-maximum suppression). The number
    of regions follows from the threshold. Nothing is random.

    Args:
        model: a latent diffusion model.
        num_classes: K of the data, which decides nothing but what ``probs`` look like.
        attention: makes ``AttentionMaps`` of the model.
        threshold: symmetric Kullback-Leibler divergence in nats below which two maps are of one region; larger finds
            fewer regions. Published: 1.1 for COCO-Stuff, 0.9 for Cityscapes.
        anchors: along each side; published: 16.
        rounds: of merging, the first of which averages the anchors' surroundings; published: 3.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        num_classes: int,
        attention: Callable[[LatentDiffusion], AttentionMaps],
        threshold: float = 1.0,
        anchors: int = 16,
        rounds: int = 3,
    ) -> None:
        super().__init__()
        if threshold <= 0 or anchors < 1 or rounds < 1:
            raise ValueError(
                f"wanted threshold above 0, anchors >= 1 and rounds >= 1, got threshold={threshold}, "
                f"anchors={anchors}, rounds={rounds}"
            )
        self.num_classes, self.threshold, self.anchors, self.rounds = num_classes, threshold, anchors, rounds
        self.attention = attention(model)

    @torch.inference_mode()
    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        """Finds the regions of a batch, one picture at a time but for the network.

        Args:
            image: float [B, 1 or 3, H, W] in [0, 1].
            generator: not used.

        Returns:
            ``regions`` and the ``probs`` made of them, see ``Prediction``.
        """
        size = (image.shape[2], image.shape[3])
        found = []
        for maps in self.attention(image):
            high, wide, _ = maps.shape
            rows, columns = anchor_rows(high, self.anchors), anchor_rows(wide, self.anchors)
            anchors = maps[rows][:, columns].flatten(0, 1)
            proposals = merged(anchors, maps.flatten(0, 1), self.threshold, self.rounds)
            found.append(enlarged_winners(proposals.view(-1, high, wide), size))
            progress.advance("prediction")
        return as_prediction(torch.stack(found), self.num_classes)


def anchor_rows(length: int, anchors: int) -> list[int]:
    """Where anchors stand along a side, evenly; every place where there are no more than anchors.

    >>> anchor_rows(64, 16)[:3], anchor_rows(64, 16)[-1], anchor_rows(4, 16)
    ([1, 5, 9], 61, [0, 1, 2, 3])
    """
    count = min(length, anchors)
    return [((2 * i + 1) * length - count) // (2 * count) for i in range(count)]


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Symmetric Kullback-Leibler divergence of every distribution from every other, half the sum of both directions.

    Args:
        first: float [A, D]; rows sum to 1.
        second: float [N, D].

    Returns:
        float [A, N] in nats, 0 where two are equal.
    """
    first, second = first.float(), second.float()
    tiny = torch.finfo(torch.float32).tiny  # what underflowed is nearly zero, and its logarithm a number
    log_first, log_second = first.clamp(min=tiny).log(), second.clamp(min=tiny).log()
    own = (first * log_first).sum(1)[:, None] + (second * log_second).sum(1)[None]
    with torch.autocast(first.device.type, enabled=False):  # the differences of large sums need all digits
        cross = first @ log_second.T + log_first @ second.T
    return ((own - cross) / 2).clamp(min=0)


def merged(anchors: Tensor, maps: Tensor, threshold: float, rounds: int) -> Tensor:
    """Proposals of regions: what remains of the anchors' maps once those that are alike are one.

    Args:
        anchors: float [A, D], distributions.
        maps: float [N, D], all of them; the anchors are among them.
        threshold: divergence below which two are alike.
        rounds: the first one averages all maps that are like an anchor's; in each other, the first proposal takes in
            all that are like it, then the first of those that are left does.

    Returns:
        float [P, D], 1 <= P <= A, distributions.
    """
    near = (divergence(anchors, maps) < threshold).to(maps.dtype)  # [A, N]
    count = near.sum(1, keepdim=True)
    # rounding may set an anchor further from itself than a tiny threshold allows
    proposals = torch.where(count > 0, near @ maps / count.clamp(min=1), anchors)
    for _ in range(rounds - 1):
        alike = (divergence(proposals, proposals) < threshold).fill_diagonal_(True).cpu()  # one wait for the device
        left = torch.ones(len(proposals), dtype=torch.bool)
        groups = []
        for i in range(len(proposals)):
            if left[i]:
                groups.append(alike[i] & left)
                left &= ~alike[i]
        members = torch.stack(groups).to(proposals)  # [P, A]
        proposals = members @ proposals / members.sum(1, keepdim=True)
    return proposals
