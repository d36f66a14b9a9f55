"""An encoder that was pretrained elsewhere and a decoder that was not, as one network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from geoseg.models.dinov2 import DINOv2

FINETUNE = ("lora", "full", "frozen", "scratch")
"""What is trained of an encoder."""


class EncoderDecoder(nn.Module):
    """Features of an encoder, decoded to logits of every pixel of a profile of any size.

    The decoder is always trained. A task that trains this network finds learning rates for the groups "encoder" and
    "decoder".

    Args:
        num_classes: K.
        encoder: gives features of four depths.
        decoder: makes the decoder from (width, num_classes); see ``geoseg.models.decoders``.
        finetune: what is trained of the encoder: "lora", an adapter that the method attaches to the part "encoder";
            "full", all of it; "frozen", nothing; "scratch", all of it, from random weights of the same sizes.

    Raises:
        ValueError: another word for ``finetune``.
    """

    def __init__(
        self,
        num_classes: int,
        encoder: DINOv2,
        decoder: Callable[[int, int], nn.Module],
        finetune: str = "lora",
    ) -> None:
        super().__init__()
        if finetune not in FINETUNE:
            raise ValueError(f"finetune must be one of {', '.join(FINETUNE)}, got {finetune!r}")
        if finetune == "scratch":
            encoder.redraw()
        elif finetune != "full":
            encoder.requires_grad_(False)
        self.num_classes, self.finetune = num_classes, finetune
        self.encoder, self.decoder = encoder, decoder(encoder.width, num_classes)

    def parts(self) -> dict[str, nn.Module]:
        """What an adapter may be attached to; nothing where the encoder is trained, or kept, as it is."""
        return {"encoder": self.encoder.net} if self.finetune == "lora" else {}

    def groups(self) -> dict[str, nn.Module]:
        """What may have learning rates of its own.

        Raises:
            ValueError: an adapter is announced and none is attached.
        """
        if self.finetune == "lora" and not self.encoder.trains:
            raise ValueError(
                "finetune=lora, but no adapter is attached; give the method one, or choose finetune=frozen to train "
                "the decoder alone"
            )
        return {"encoder": self.encoder, "decoder": self.decoder}

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1], C 1 or 3, to logits [B, K, H, W]."""
        height, width = image.shape[-2:]
        features = self.encoder(image)
        patch = self.encoder.patch
        size = features[0].shape[-2] * patch, features[0].shape[-1] * patch  # of the padded image
        return self.decoder(features, size)[..., :height, :width]
