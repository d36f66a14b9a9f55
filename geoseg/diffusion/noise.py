"""Noise with structure of many sizes, for training on targets that are flat over large regions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

LEVELS = 10
"""Most fields that are added up; smaller pictures end earlier, at a field of one cell."""


def multi_resolution(noise: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Adds ever coarser fields of noise, as Ke et al. (2024, Marigold, arXiv 2312.02145) do, and scales to unit spread.

    Args:
        noise: float [C, h, w], standard normal.
        strength: how much a field counts in relation to the next finer one; 0 gives ``noise`` itself. Marigold starts
            from 0.9 at the noisiest time and anneals it to 0 with the time.
        generator: on the CPU; draws sizes and fields.
    """
    if not strength:
        return noise
    high, wide = noise.shape[-2:]
    total = noise.clone()
    for level in range(LEVELS):
        ratio = 2 + 2 * float(torch.rand((), generator=generator))
        high, wide = max(1, int(high / ratio**level)), max(1, int(wide / ratio**level))
        field = torch.randn(1, noise.shape[0], high, wide, generator=generator)
        total += strength**level * interpolate(field, noise.shape[-2:], mode="bilinear")[0]
        if high == 1 or wide == 1:
            break
    return total / total.std()
