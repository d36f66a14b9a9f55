"""Cutting pictures to the square that a model sees, and putting what it says together again."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Bucket(NamedTuple):
    """How a picture comes to the shape that it is trained in; both are (high, wide) in pixels.

    Attributes:
        resized: the whole picture.
        cut: the rectangle inside it.
    """

    resized: tuple[int, int]
    cut: tuple[int, int]


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


def random_corner(height: int, width: int, size: int | tuple[int, int], generator: torch.Generator) -> tuple[int, int]:
    """Top and left of a random square of side ``size``, or rectangle (high, wide), inside height x width."""
    high, wide = (size, size) if isinstance(size, int) else size
    top = int(torch.randint(height - high + 1, (), generator=generator))
    left = int(torch.randint(width - wide + 1, (), generator=generator))
    return top, left


def bucket_sizes(size: int, step: int) -> list[tuple[int, int]]:
    """Rectangles (high, wide) of at most ``size`` x ``size`` pixels, for pictures of any aspect.

    Sides are multiples of ``step`` from half of ``size`` to its double; of every width the highest one.

    >>> bucket_sizes(128, 64)
    [(64, 192), (64, 256), (128, 128), (192, 64), (256, 64)]
    """
    sides = range(-(-size // 2 // step) * step, 2 * size + 1, step)
    found = {(size**2 // wide // step * step, wide) for wide in sides}
    found = {(high, wide) for high, wide in found if high >= sides.start}
    return sorted(found | {(wide, high) for high, wide in found})


def bucket(height: int, width: int, size: int, step: int, upscale: bool = False) -> Bucket:
    """What a picture is resized to, and the rectangle that is cut out of that.

    The rectangle is the one of ``bucket_sizes`` nearest in aspect, the larger of two that are equally near, and the
    picture just covers it. Without ``upscale`` no picture is enlarged: one with fewer pixels than the square stays as
    it is and loses what exceeds a multiple of ``step``, and a long one that does not reach the rectangle is continued
    by mirroring.

    Args:
        height: of the picture, pixels.
        width: of the picture, pixels.
        size: side of the square that the model was trained on.
        step: what sides are multiples of.
        upscale: enlarge small pictures.
    """
    if not upscale and height * width < size**2:
        high, wide = (max(step, side // step * step) for side in (height, width))
        return Bucket((height, width), (high, wide))

    def distance(shape: tuple[int, int]) -> tuple[float, int]:
        return abs(math.log(shape[1] / shape[0] * height / width)), -shape[0] * shape[1]

    high, wide = min(bucket_sizes(size, step), key=distance)
    scale = max(high / height, wide / width)
    if scale > 1 and not upscale:
        return Bucket((height, width), (high, wide))
    # the side that decides comes out exactly, whatever rounding says
    resized = (max(high, round(height * scale)), max(wide, round(width * scale)))
    return Bucket(resized, (high, wide))


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


def scaled_to_area(size: tuple[int, int], side: int | None, multiple: int) -> tuple[int, int]:
    """Sides (high, wide) of a picture scaled as a whole to the area of a square, in multiples of ``multiple``.

    Args:
        size: H and W in pixels.
        side: of the square; None keeps the size but for the rounding.
        multiple: of both sides of the result.

    >>> scaled_to_area((100, 400), 128, 16)
    (64, 256)
    """
    factor = 1.0 if side is None else side / math.sqrt(size[0] * size[1])
    high, wide = (max(1, round(factor * length / multiple)) * multiple for length in size)
    return high, wide
