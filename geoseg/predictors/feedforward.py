"""A network that labels a picture in one pass, as a predictor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from geoseg import progress
from geoseg.types import Prediction


class Feedforward(nn.Module):
    """Labels with one pass of a network; needs no randomness.

    Args:
        model: maps images [B, C, H, W] in [0, 1] to logits [B, K, *space]; normalises them itself.
        num_classes: K.
    """

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes

    @torch.inference_mode()
    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        """Labels a batch with the network in evaluation mode, which is left as it was found.

        Args:
            image: float [B, C, H, W] in [0, 1].
            generator: not used.

        Returns:
            ``probs`` float32 [B, K, *space], the softmax of the logits.

        Raises:
            ValueError: the network gives other than K classes, or other than H x W pixels.
        """
        with _evaluating(self.model):
            logits = self.model(image)
        wanted = [len(image), self.num_classes]
        if list(logits.shape[:2]) != wanted or (logits.ndim > 2 and logits.shape[2:] != image.shape[2:]):
            raise ValueError(
                f"the model turned {list(image.shape)} into {list(logits.shape)}, wanted {wanted} or "
                f"{wanted + list(image.shape[2:])}; give model and predictor one num_classes and let the model "
                "resize its logits to its input"
            )
        progress.advance("prediction", len(image))
        # half-precision logits would give probabilities that do not sum to 1
        return Prediction(probs=logits.float().softmax(dim=1))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:  # one by one, since a part may be frozen in evaluation mode
            module.training = True
