"""Cutting pictures to the square that a model sees."""

from __future__ import annotations

import torch
from torch import Tensor


def pad_to(picture: Tensor, height: int, width: int) -> Tensor:
    """Enlarges [C, H, W] at the bottom and right to at least the given size by mirroring its own content.

    Mirrors as often as needed, so a picture may be far smaller than the size asked for.
    """
    while picture.shape[-2] < height or picture.shape[-1] < width:
        grow_h = min(max(0, height - picture.shape[-2]), picture.shape[-2])
        grow_w = min(max(0, width - picture.shape[-1]), picture.shape[-1])
        if grow_h:
            picture = torch.cat([picture, picture[..., -grow_h:, :].flip(-2)], dim=-2)
        if grow_w:
            picture = torch.cat([picture, picture[..., -grow_w:].flip(-1)], dim=-1)
    return picture


def pad_to_multiple(picture: Tensor, multiple: int) -> Tensor:
    """Enlarges [..., H, W] by mirroring until both sides are multiples of ``multiple``."""
    height, width = (-(-side // multiple) * multiple for side in picture.shape[-2:])
    return pad_to(picture, height, width)


def random_corner(height: int, width: int, size: int, generator: torch.Generator) -> tuple[int, int]:
    """Top and left of a random ``size`` x ``size`` square inside height x width."""
    top = int(torch.randint(height - size + 1, (), generator=generator))
    left = int(torch.randint(width - size + 1, (), generator=generator))
    return top, left
