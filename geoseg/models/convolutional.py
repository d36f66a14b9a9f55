"""Convolutional networks of other packages and of one's own, for profiles of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation import fcn_resnet50

from geoseg.crops import pad_to_multiple
from geoseg.models.decoders import double_conv, resized


class Convolutional(nn.Module):
    """A network with its own normalisation and any height and width.

    Args:
        num_classes: K.
        network: makes it from (in_channels=, classes=), such as a class of segmentation-models-pytorch.
        in_channels: 1 for profiles, 3 for pictures.
        multiple: image sides are mirrored up to a multiple of this.
        mean: subtracted from images in [0, 1].
        std: divides what is left.
    """

    def __init__(
        self,
        num_classes: int,
        network: Callable[..., nn.Module],
        in_channels: int = 1,
        multiple: int = 32,
        mean: float = 0.5,
        std: float = 0.25,
    ) -> None:
        super().__init__()
        self.net = network(in_channels=in_channels, classes=num_classes)
        self.num_classes, self.in_channels, self.multiple = num_classes, in_channels, multiple
        self.mean, self.std = mean, std

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] to logits [B, K, H, W]; a grey image serves three channels too."""
        (height, width), count = image.shape[-2:], len(image)
        image = image.expand(-1, self.in_channels, -1, -1) if image.shape[1] == 1 else image
        if image.shape[1] != self.in_channels:
            raise ValueError(f"this network takes {self.in_channels} channels, the images have {image.shape[1]}")
        if self.training and count == 1:  # where a network pools to one pixel, BatchNorm cannot do with one image
            image = torch.cat([image, image])
        image = pad_to_multiple(image, self.multiple)
        return self.net((image - self.mean) / self.std)[:count, :, :height, :width]


class PublishedUNet(nn.Module):
    """The U-Net that Guo et al. (2024, arXiv 2408.12396) compare with, 32 to 256 channels at five resolutions.

    Args:
        in_channels: of the image, [B, C, H, W] with sides of at least 16.
        classes: K.
    """

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        widths = (32, 64, 128, 256, 256)
        self.down = nn.ModuleList(
            double_conv(into, out, bias=False) for into, out in zip((in_channels, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(
            double_conv(2 * beside, out, bias=False, between=beside)
            for beside, out in zip((256, 128, 64, 32), (128, 64, 32, 32), strict=True)
        )
        self.head = nn.Conv2d(32, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """To logits [B, K, H, W]."""
        beside: list[Tensor] = []
        for i, down in enumerate(self.down):
            image = down(F.max_pool2d(image, 2) if i else image)
            beside.append(image)
        image = beside.pop()
        for up in self.up:
            skipped = beside.pop()
            size = skipped.shape[-2], skipped.shape[-1]
            image = up(torch.cat([skipped, resized(image, size, align_corners=True)], 1))
        return self.head(image)


class SegNet(nn.Module):
    """A small SegNet (Badrinarayanan et al. 2017): pixels go back where max-pooling found them.

    Args:
        in_channels: of the image, [B, C, H, W] with sides in multiples of 2 to the number of widths.
        classes: K.
        widths: channels at each resolution, half as high and wide as the one before.
    """

    def __init__(self, in_channels: int, classes: int, widths: tuple[int, ...] = (32, 64, 128, 256)) -> None:
        super().__init__()
        widths = tuple(widths)
        self.down = nn.ModuleList(
            double_conv(into, out, bias=False) for into, out in zip((in_channels, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(
            double_conv(into, out, bias=False, between=into)
            for into, out in zip(reversed(widths), (*reversed(widths[:-1]), widths[0]), strict=True)
        )
        self.unpool, self.head = nn.MaxUnpool2d(2), nn.Conv2d(widths[0], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """To logits [B, K, H, W]."""
        places = []
        for down in self.down:
            image, where = F.max_pool2d(down(image), 2, return_indices=True)
            places.append(where)
        for up in self.up:
            image = up(self.unpool(image, places.pop()))
        return self.head(image)


class FCN(nn.Module):
    """The fully convolutional network (Long et al. 2015) of torchvision, on a ResNet-50 from scratch.

    Args:
        in_channels: of the image, [B, C, H, W].
        classes: K.
    """

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.net: Any = fcn_resnet50(weights=None, weights_backbone=None, num_classes=classes)
        if in_channels != 3:
            self.net.backbone.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """To logits [B, K, H, W]."""
        return self.net(image)["out"]
