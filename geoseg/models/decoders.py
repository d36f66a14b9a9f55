"""Four decoders of Guo et al. (2024, arXiv 2408.12396): features of a vision transformer to logits of every pixel.

They are as the paper's public code has them; where that code harms the result for no gain, what it does is an option
and the sound way the default. All are made with (width, num_classes) and called with the features of four depths and
the height and width of the padded image, so that any patch size will do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MODES = ("bilinear", "nearest")


def resized(picture: Tensor, size: tuple[int, int], mode: str = "bilinear", align_corners: bool = False) -> Tensor:
    """[B, C, h, w] at another height and width."""
    return F.interpolate(picture, size, mode=mode, align_corners=align_corners if mode == "bilinear" else None)


def double_conv(into: int, out: int, bias: bool = True, between: int | None = None) -> nn.Sequential:
    """Two 3x3 convolutions, each with BatchNorm and ReLU; ``between`` channels after the first, or as many as out."""
    between = between or out
    return nn.Sequential(
        nn.Conv2d(into, between, 3, padding=1, bias=bias),
        nn.BatchNorm2d(between),
        nn.ReLU(inplace=True),
        nn.Conv2d(between, out, 3, padding=1, bias=bias),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    )


class Linear(nn.Module):
    """One linear layer on the deepest features: what the encoder knows by itself.

    Args:
        width: channels D of the features.
        num_classes: K.
        interpolation: how logits of patches become those of pixels: "bilinear", or "nearest" as published, which
            leaves steps as large as a patch.
    """

    def __init__(self, width: int, num_classes: int, interpolation: str = "bilinear") -> None:
        super().__init__()
        self.head, self.interpolation = nn.Conv2d(width, num_classes, 1), _mode(interpolation)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Four [B, D, h, w] to logits [B, K, *size]."""
        return resized(self.head(features[-1]), size, self.interpolation)


class PUP(nn.Module):
    """Progressive upsampling (SETR, Zheng et al. 2021) of the deepest features, to 1/8, 1/4, 1/2 and all of the image.

    Args:
        width: channels D of the features; D/4 in between.
        num_classes: K.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        narrow = width // 4
        self.stages = nn.ModuleList(double_conv(width if i == 0 else narrow, narrow) for i in range(4))
        self.head = nn.Conv2d(narrow, num_classes, 1)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Four [B, D, h, w] to logits [B, K, *size]."""
        found = features[-1]
        for stage, share in zip(self.stages, (8, 4, 2, 1), strict=True):
            found = resized(stage(found), _share(size, share))
        return self.head(found)


class MLA(nn.Module):
    """Multi-level aggregation (SETR, Zheng et al. 2021): every depth adds to the one before it, all are put together.

    Args:
        width: channels D of the features; D/2 while they are added, D/4 of each depth in the end.
        num_classes: K.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        half, narrow = width // 2, width // 4
        self.entries = nn.ModuleList(double_conv(width, half) for _ in range(4))  # deep to shallow, as all lists here
        self.middles = nn.ModuleList(double_conv(half, half) for _ in range(3))  # the deepest has none
        self.exits = nn.ModuleList(
            nn.Sequential(
                double_conv(half, half),
                double_conv(half, narrow),
                nn.Upsample(scale_factor=4, mode="bilinear"),
                double_conv(narrow, narrow),
            )
            for _ in range(4)
        )
        self.head = nn.Conv2d(4 * narrow, num_classes, 1)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Four [B, D, h, w] to logits [B, K, *size]."""
        total: Tensor | None = None
        found = []
        for i, (feature, entry, leave) in enumerate(zip(reversed(features), self.entries, self.exits, strict=True)):
            total = entry(feature) if total is None else entry(feature) + total
            found.append(leave(total if i == 0 else self.middles[i - 1](total)))
        return resized(self.head(torch.cat(found, 1)), size)


class DPT(nn.Module):
    """The dense prediction transformer's fusion (Ranftl et al. 2021), deep to shallow, to 1/16, 1/8, 1/4 and 1/2.

    As published it takes every depth at the resolution of patches, without DPT's own reassembling.

    Args:
        width: channels D of the features.
        num_classes: K.
        channels: of the fused features; 256 as published.
        interpolation: from half to all of the image: "bilinear", or "nearest" as published.
        relu_logits: end with a ReLU, as published: a class can then not be ruled out, and where all logits fall below
            zero nothing is learnt any more.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        channels: int = 256,
        interpolation: str = "bilinear",
        relu_logits: bool = False,
    ) -> None:
        super().__init__()
        self.entries = nn.ModuleList(nn.Conv2d(width, channels, 3, padding=1, bias=False) for _ in range(4))
        self.fusions = nn.ModuleList(_Fusion(channels, two=i > 0) for i in range(4))  # deep to shallow, as the entries
        self.narrow = nn.Conv2d(channels, channels // 2, 3, padding=1)
        layers: list[nn.Module] = [nn.Conv2d(channels // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, num_classes, 1)]
        self.head = nn.Sequential(*layers, *[nn.ReLU()] * relu_logits)
        self.interpolation = _mode(interpolation)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Four [B, D, h, w] to logits [B, K, *size]."""
        found: Tensor | None = None
        for feature, entry, fuse, share in zip(
            reversed(features), self.entries, self.fusions, (16, 8, 4, 2), strict=True
        ):
            found = fuse(entry(feature), found, _share(size, share))
        assert found is not None
        return self.head(resized(self.narrow(found), size, self.interpolation))


class _Fusion(nn.Module):
    """Adds a depth to the deeper ones, refines, and resizes both.

    Args:
        channels: of everything.
        two: there are deeper ones; the deepest has none and needs no unit of its own for them.
    """

    def __init__(self, channels: int, two: bool) -> None:
        super().__init__()
        self.beside = _residual(channels) if two else None
        self.refine, self.out = _residual(channels), nn.Conv2d(channels, channels, 1)

    def forward(self, feature: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> Tensor:
        if self.beside is not None and deeper is not None:
            own = feature + self.beside(feature)
            feature = deeper + resized(own, (deeper.shape[-2], deeper.shape[-1]), align_corners=True)
        feature = feature + self.refine(feature)
        return self.out(resized(feature, size, align_corners=True))


def _residual(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        ]
    return nn.Sequential(*layers)


def _share(size: tuple[int, int], of: int) -> tuple[int, int]:
    """A part of a height and width, at least a pixel of each."""
    return max(1, size[0] // of), max(1, size[1] // of)


def _mode(interpolation: str) -> str:
    if interpolation not in MODES:
        raise ValueError(f"interpolation must be {' or '.join(MODES)}, got {interpolation!r}")
    return interpolation
