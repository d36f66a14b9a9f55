"""U-Net, the baseline that every other method has to beat."""

from __future__ import annotations

from segmentation_models_pytorch import Unet
from torch import Tensor, nn

from geoseg.crops import pad_to_multiple


class UNet(nn.Module):
    """The U-Net of segmentation-models-pytorch with its own normalisation and any height and width.

    Args:
        num_classes: K.
        encoder: name of an encoder that segmentation-models-pytorch knows, such as "resnet18".
        in_channels: 1 for profiles, 3 for pictures.
        weights: "imagenet" for a pretrained encoder, or None to start from scratch (no download).
        depth: how often the encoder halves, 3 to 5; image sides are mirrored up to a multiple of 2**depth.
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "resnet18",
        in_channels: int = 1,
        weights: str | None = None,
        depth: int = 5,
    ) -> None:
        super().__init__()
        self.net = Unet(
            encoder,
            encoder_weights=weights,
            encoder_depth=depth,
            decoder_channels=tuple(256 // 2**i for i in range(depth)),
            in_channels=in_channels,
            classes=num_classes,
        )
        self.num_classes, self.in_channels, self.multiple = num_classes, in_channels, 2**depth

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] to logits [B, K, H, W]; a grey image serves three channels too."""
        height, width = image.shape[-2:]
        image = image.expand(-1, self.in_channels, -1, -1) if image.shape[1] == 1 else image
        if image.shape[1] != self.in_channels:
            raise ValueError(f"this U-Net takes {self.in_channels} channels, the images have {image.shape[1]}")
        image = pad_to_multiple(image, self.multiple)
        return self.net((image - 0.5) / 0.25)[..., :height, :width]
