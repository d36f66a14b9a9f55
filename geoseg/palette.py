"""Class indices and colour pictures, each from the other.

Generative methods paint a label map as a picture; a palette says which colour means which class and reads a painted
picture back as probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from geoseg.types import IGNORE

SFM_FACIES = ("#F19E9C", "#EB5C56", "#43972B", "#FEE76B", "#F3B677", "#0082F4")
"""The six facies colours of the SeismicFoundationModel data set, the source of the published label maps."""

IGNORED_COLOUR = (128, 128, 128)
"""Pixels to ignore are painted mid-grey, the one colour no palette may hold."""


class Palette:
    """A one-to-one map between K classes and K colours.

    Args:
        colours: K colours as "#RRGGBB", at least two, all different.
        softness: RMS colour distance (0..1 per channel) at which a class loses a factor e of its probability;
            0.1 lets a pixel half way between two colours stay undecided and one on a colour be sure of it.

    >>> palette = Palette(["#000000", "#ffffff"])
    >>> palette.paint(torch.tensor([[[0, 1]]]))[0, 0].tolist()
    [[0.0, 1.0]]
    >>> palette.decode(palette.paint(torch.tensor([[[0, 1]]]))).argmax(1).tolist()
    [[[0, 1]]]
    """

    def __init__(self, colours: Sequence[str], softness: float = 0.1) -> None:
        self.hex = tuple(str(colour).upper() for colour in colours)
        self.softness = softness
        self.colours = torch.tensor([_rgb(colour) for colour in self.hex], dtype=torch.float32) / 255  # [K, 3]
        if len(set(self.hex)) != len(self.hex) or len(self.hex) < 2:
            raise ValueError(f"a palette needs at least two colours, all different; got {list(self.hex)}")
        if softness <= 0:
            raise ValueError(f"softness must be above 0, got {softness}")

    def __repr__(self) -> str:
        return f"Palette({list(self.hex)})"

    @property
    def num_classes(self) -> int:
        """K, the number of colours."""
        return len(self.hex)

    def paint(self, labels: Tensor) -> Tensor:
        """Draws a label map.

        Args:
            labels: int64 [B, H, W] in 0..K-1, or 255 = ignore (painted mid-grey).

        Returns:
            float32 [B, 3, H, W] in [0, 1].

        Raises:
            ValueError: a label has no colour.
        """
        labels = labels.long()
        ignored = labels == IGNORE
        if (((labels < 0) | (labels >= self.num_classes)) & ~ignored).any():
            raise ValueError(
                f"labels {sorted(set(labels.unique().tolist()) - {IGNORE})} do not fit the {self.num_classes} colours; "
                "give the palette one colour per class"
            )
        grey = torch.tensor([IGNORED_COLOUR], dtype=torch.float32) / 255
        table = torch.cat([self.colours, grey]).to(labels.device)  # [K + 1, 3]
        return table[labels.masked_fill(ignored, self.num_classes)].permute(0, 3, 1, 2).contiguous()

    def write(self, labels: Tensor, path: Path) -> None:
        """Writes a label map as a PNG whose pixel values are class indices and whose colours are the palette's.

        Args:
            labels: int [H, W] in 0..K-1, or 255 = ignore.
            path: ends in .png; its folder must exist.
        """
        table = [IGNORED_COLOUR] * 256
        table[: self.num_classes] = [_rgb(colour) for colour in self.hex]
        picture = Image.fromarray(labels.to("cpu", torch.uint8).numpy())
        picture.putpalette([channel for colour in table for channel in colour])
        picture.save(path)

    def decode(self, painted: Tensor) -> Tensor:
        """Reads a painted picture back.

        Args:
            painted: float [B, 3, H, W] in [0, 1]; a grey picture [B, 1, H, W] counts as three equal channels.

        Returns:
            float32 [B, K, H, W], a softmax over squared colour distance, so the nearest colour is the most probable.
        """
        painted = painted.float().expand(-1, 3, -1, -1)
        colours = self.colours.to(painted.device)
        # |p - c|^2 without the [B, K, 3, H, W] intermediate; |p|^2 is the same for every class and drops out
        with torch.autocast(painted.device.type, enabled=False):  # close colours need all their digits
            cross = torch.einsum("bchw,kc->bkhw", painted, colours)
        squared = colours.square().sum(1)[None, :, None, None] - 2 * cross
        return (-squared / (3 * self.softness**2)).softmax(dim=1)


def facies_palette(num_classes: int) -> list[str]:
    """Colours for K classes: the published six first, then hues spread by the golden ratio.

    >>> facies_palette(2)
    ['#F19E9C', '#EB5C56']
    """
    import colorsys

    extra = []
    for i in range(max(0, num_classes - len(SFM_FACIES))):
        rgb = colorsys.hsv_to_rgb((0.12 + 0.618034 * i) % 1, 0.9 - 0.4 * (i % 2), 0.55 + 0.35 * ((i // 2) % 2))
        extra.append("#" + "".join(f"{round(255 * v):02X}" for v in rgb))
    return [*SFM_FACIES[:num_classes], *extra]


def _rgb(colour: str) -> tuple[int, int, int]:
    digits = colour.removeprefix("#")
    try:
        if len(digits) != 6:
            raise ValueError
        return int(digits[0:2], 16), int(digits[2:4], 16), int(digits[4:6], 16)
    except ValueError:
        raise ValueError(f"a colour is written '#RRGGBB', got {colour!r}") from None
