"""The best that a method can come to which draws its answers through an autoencoder: the truth, drawn by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geoseg import progress
from geoseg.crops import pad_to_multiple
from geoseg.diffusion.image_conditioned import ImageConditioned
from geoseg.palette import without_gaps
from geoseg.types import Prediction


class Reconstructed(nn.Module):
    """Paints the true target, passes it through the autoencoder and reads it, as ``LatentMask`` reads what it draws.

    A control that is told the truth: what it scores below perfect is what colours and autoencoder lose.

    Args:
        model: an image-conditioned diffusion model, of which only the autoencoder is at work.
        target: int64 or float [B, H, W], what it was told, see ``types.Told``.
    """

    def __init__(self, model: ImageConditioned, target: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.num_classes = model, model.num_classes
        self.target = target

    def told(self, target: Tensor) -> Reconstructed:
        """The same for one batch whose targets it knows."""
        return Reconstructed(self.model, target)

    @torch.no_grad()
    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        """Draws the targets that it was told.

        Args:
            image: float [B, C, H, W]; not looked at.
            generator: not used.

        Returns:
            probs [B, K, H, W], and ``painted``, the picture they were read from.

        Raises:
            ValueError: it was told nothing, as where profiles have no label.
        """
        if self.target is None:
            raise ValueError("this control draws the true target, and a prediction without truth does without it")
        height, width = image.shape[2:]
        whole = torch.stack([without_gaps(one) for one in self.target.cpu()]).to(image.device)
        pictures = pad_to_multiple(self.model.palette.paint(whole), self.model.multiple)
        painted = self.model.codec.decode(self.model.codec.encode(pictures))[..., :height, :width]
        progress.advance("prediction", len(image))
        return Prediction(probs=self.model.read(painted), painted=painted)
