"""What a piece of a picture looks like, in numbers: its edges at several scales and directions, and its colour.

Histograms of oriented gradients (Dalal and Triggs 2005) at three scales. They say what a texture is like and not where
its grains lie, so that they can be foretold from what lies around, where pixels of a texture can not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SCALES = (0.8, 1.6, 3.2)
"""Standard deviations, in pixels, of the Gaussians whose derivatives find edges."""

NUMBERS = 5 * len(SCALES) + 3
"""How many numbers describe a cell: per scale the strength of edges and four of their directions, and three colours."""

_QUIET = 0.01  # added to strengths before their logarithm: 2.5 grey levels per pixel, so that rounding stays unseen


AROUND = (3, 7)
"""Sides, in patches, of the squares around a patch in which textures are described as a whole."""

LOOKS = (4 + 2 * len(AROUND)) * NUMBERS
"""How many numbers say what a patch and its surroundings look like."""


def looks(image: Tensor, patch: int) -> Tensor:
    """Describes patches: each of their quarters, and mean and spread in the squares ``AROUND`` them.

    A texture's strength in one place says little about it, since a wave has crests and zeros; its mean says how strong
    it is, and its spread how patchy.

    Args:
        image: float [B, 3, H, W] in [0, 1]; sides are multiples of ``patch``.
        patch: side of a patch in pixels, even.

    Returns:
        float [B, N, LOOKS], patches row by row, of about mean 0 and variance 1.
    """
    quarters = descriptors(image, patch // 2)
    whole = F.avg_pool2d(quarters, 2)
    found = [F.pixel_unshuffle(quarters, 2)]
    for side in AROUND:
        mean = _mean(whole, side)
        spread = (_mean(whole.square(), side) - mean.square()).clamp(min=0).add(0.01).sqrt()
        found += [mean, 2 * spread - 1]
    return torch.cat(found, 1).flatten(2).mT


def _mean(field: Tensor, side: int) -> Tensor:
    """Means over squares around every cell; what lies beyond the border is as the border."""
    return F.avg_pool2d(F.pad(field, (side // 2,) * 4, mode="replicate"), side, 1)


def descriptors(image: Tensor, cell: int) -> Tensor:
    """Describes square cells of pictures.

    Strengths are means over a cell of the gradient's length, in all, and of its parts near 0, 90, 45 and 135 degrees;
    their logarithms are shifted and scaled so that pictures of scenes have about mean 0 and variance 1.

    Args:
        image: float [B, 3, H, W] in [0, 1]; sides are multiples of ``cell``.
        cell: side of a cell in pixels.

    Returns:
        float [B, NUMBERS, H / cell, W / cell].
    """
    grey = image.mean(1, keepdim=True)
    strengths = torch.cat([_directions(grey, scale) for scale in SCALES], 1)
    energies = (F.avg_pool2d(strengths, cell) + _QUIET).log()
    return torch.cat([(energies + 4) / 0.6, 4 * (F.avg_pool2d(image, cell) - 0.5)], 1)


def _directions(grey: Tensor, scale: float) -> Tensor:
    """The gradient's length [B, 5, H, W] at one scale: whole, and its parts along x, y and both diagonals."""
    reach = math.ceil(3 * scale)
    at = torch.arange(-reach, reach + 1, dtype=grey.dtype, device=grey.device)
    smooth = torch.exp(-at.square() / (2 * scale**2))
    smooth = smooth / smooth.sum()
    slope = at / scale * smooth  # times the scale, which makes edges of all scales equally strong
    padded = F.pad(grey, (reach,) * 4, mode="reflect")
    across = _separable(padded, rows=smooth, columns=slope)
    down = _separable(padded, rows=slope, columns=smooth)
    length = (across.square() + down.square() + 1e-12).sqrt()
    straight = (across.square() - down.square()) / length  # length times the cosine of twice the direction
    diagonal = 2 * across * down / length  # and its sine
    return torch.cat([length, straight.relu(), (-straight).relu(), diagonal.relu(), (-diagonal).relu()], 1)


def _separable(padded: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return F.conv2d(F.conv2d(padded, columns.view(1, 1, 1, -1)), rows.view(1, 1, -1, 1))
