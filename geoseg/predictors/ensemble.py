"""Several draws of a method that draws, as one answer that knows how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geoseg import progress
from geoseg.metrics.uncertainty import variance
from geoseg.types import Prediction, Predictor


class Ensemble(nn.Module):
    """Asks a method for several answers to every image, all in one batch, and gives their mean.

    ``uncertainty`` is the variance of the members' probabilities, summed over the classes; a method without randomness
    gives the same answer each time and a variance of 0. The mean of probabilities is no picture, so nothing is painted.

    Args:
        predictor: the method.
        members: answers per image. The first ones are the same however many there are.
    """

    def __init__(self, predictor: Predictor, members: int = 10) -> None:
        super().__init__()
        if members < 1:
            raise ValueError(f"members must be 1 or more, got {members}")
        self.predictor, self.members = predictor, members
        self.num_classes = predictor.num_classes

    @torch.no_grad()
    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        """Labels a batch.

        Args:
            image: float [B, C, H, W] in [0, 1].
            generator: one per image; a seed for each member is drawn from it.

        Returns:
            mean ``probs``, ``members``, ``uncertainty``; ``facts`` are means over members.
        """
        if len(generator) != len(image):
            raise ValueError(f"wanted one generator per image, got {len(generator)} for {len(image)} images")
        seeds = [int(torch.randint(2**63 - 1, (), generator=one)) for one in generator for _ in range(self.members)]
        with progress.scale(1 / self.members):
            found = self.predictor.predict(
                image.repeat_interleave(self.members, dim=0), [torch.Generator().manual_seed(seed) for seed in seeds]
            )
        members = found.probs.unflatten(0, (len(image), self.members))  # [B, M, K, *space]
        facts = {name: values.unflatten(0, (len(image), self.members)) for name, values in found.facts.items()}
        return Prediction(
            probs=members.mean(1),
            uncertainty=variance(members),
            members=members,
            facts={name: values.float().mean(1) for name, values in facts.items()},
        )
