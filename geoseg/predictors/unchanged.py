"""The control every method that repaints a picture has to beat: leaving it as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geoseg import progress
from geoseg.palette import Palette
from geoseg.types import Prediction


class InputAsIs(nn.Module):
    """Takes the input picture for the painted one and reads it with the palette; needs no randomness.

    Args:
        palette: which colour means which class.
    """

    def __init__(self, palette: Palette) -> None:
        super().__init__()
        self.palette = palette
        self.num_classes = palette.num_classes

    @torch.no_grad()
    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        """Labels a batch.

        Args:
            image: float [B, 1 or 3, H, W] in [0, 1].
            generator: not used.

        Raises:
            ValueError: neither one nor three channels.
        """
        if image.ndim != 4 or image.shape[1] not in (1, 3):
            raise ValueError(f"a picture must be [B, 1, H, W] or [B, 3, H, W], got {list(image.shape)}")
        painted = image.float().expand(-1, 3, -1, -1)
        progress.advance("prediction", len(image))
        return Prediction(probs=self.palette.decode(painted), painted=painted)
