"""An encoder that was pretrained elsewhere and a decoder that was not, as one network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from geoseg.models.dinov2 import DINOv2
from geoseg.models.finetuned import Finetuned


class EncoderDecoder(Finetuned):
    """Features of an encoder, decoded to logits of every pixel of a profile of any size.

    Args:
        num_classes: K.
        encoder: gives features of four depths.
        decoder: makes the decoder from (width, num_classes); see ``geoseg.models.decoders``.
        finetune: what is trained of the encoder beside the decoder; see ``Finetuned``.

    Raises:
        ValueError: another word for ``finetune``.
    """

    top = "decoder"
    encoder: DINOv2
    decoder: nn.Module

    def __init__(
        self,
        num_classes: int,
        encoder: DINOv2,
        decoder: Callable[[int, int], nn.Module],
        finetune: str = "lora",
    ) -> None:
        super().__init__(num_classes, encoder, lambda: decoder(encoder.width, num_classes), finetune)

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1], C 1 or 3, to logits [B, K, H, W]."""
        height, width = image.shape[-2:]
        features = self.encoder(image)
        patch = self.encoder.patch
        size = features[0].shape[-2] * patch, features[0].shape[-1] * patch  # of the padded image
        logits: Tensor = self.decoder(features, size)
        return logits[..., :height, :width]
