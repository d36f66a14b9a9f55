"""The control that looks at nothing: every class as probable as any other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geoseg import progress
from geoseg.types import Prediction


class Constant:
    """Says the same of every pixel, 1 / K of each class; of a matte 0.5.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        """Labels a batch.

        Args:
            image: float [B, C, H, W].
            generator: not used.
        """
        progress.advance("prediction", len(image))
        shape = (len(image), self.num_classes, *image.shape[2:])
        return Prediction(probs=torch.full(shape, 1 / self.num_classes, device=image.device))
