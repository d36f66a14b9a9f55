"""The control for methods that may draw what they learnt and not what they see: hiding the picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geoseg.types import Prediction, Predictor


class Blinded(nn.Module):
    """Shows a method a flat picture of the profile's mean colour.

    What it answers comes from its training and from chance alone. Where that scores as well as the method itself, the
    method does not read the profile.

    Args:
        predictor: the method.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor
        self.num_classes = predictor.num_classes

    @torch.no_grad()
    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        """Labels a batch of which the method sees no more than the mean of each channel.

        Args:
            image: float [B, C, H, W] in [0, 1].
            generator: one per image, for the predictor.
        """
        return self.predictor.predict(image.mean((2, 3), keepdim=True).expand_as(image), generator)
