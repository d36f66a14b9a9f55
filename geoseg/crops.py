"""Cutting pictures to the square that a model sees, and putting what it says together again."""

from __future__ import annotations

import math

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


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along a side: as few as keep the overlap, evenly spread, from 0 to ``length - tile``.

    >>> starts(100, 40, 0.25)
    [0, 30, 60]
    >>> starts(40, 40, 0.25)
    [0]
    """
    if length <= tile:
        return [0]
    # a step of at least one pixel, rounded down so that rounding places never eats into the overlap
    step = max(1, math.floor(tile * (1 - overlap) + 1e-9))
    steps = math.ceil((length - tile) / step)
    return [i * (length - tile) // steps for i in range(steps + 1)]


def window(height: int, width: int) -> Tensor:
    """Weights of a tile's pixels: a raised cosine along each side, 1 in the middle, above 0 at the border.

    Returns:
        float64 [height, width].
    """
    sides = []
    for length in (height, width):
        position = (torch.arange(length, dtype=torch.float64) + 0.5) / length
        sides.append(0.5 - 0.5 * torch.cos(2 * math.pi * position))
    return torch.outer(*sides)
