"""How like two pictures are: whether a drawn one is little else than one of those it was learnt from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

SIDE = 16
"""Cells of a thumbnail in each direction."""

INNER = 12
"""Cells of the middle that is looked for; what is left around it lets a picture be moved by an eighth of its side."""

FLAT = 1 / 255
"""Spread of greys in a thumbnail below which there is nothing to recognise; such pictures are like no other."""

COPY = 0.01
"""Distance below which two pictures are one in any case: what saving, scaling and brightness do to a picture."""

UNLUCKY = 0.01
"""Share of the training pictures that lie nearer to another one than what is flagged."""

CALIBRATED = 512
"""Training pictures, evenly spread, whose distance to the nearest other one is measured."""

LUMA = (0.299, 0.587, 0.114)
"""Brightness of red, green and blue (ITU-R BT.601)."""

MEASURE = (
    f"1 - the largest correlation of the middle {INNER} x {INNER} cells of a grey {SIDE} x {SIDE} thumbnail, turned "
    f"and mirrored in all 8 ways and moved by halves of a cell, with any {INNER} x {INNER} cells of another's"
)
"""The distance in words."""


class Nearest(NamedTuple):
    """The training picture that a picture is most like.

    Attributes:
        name: of the training picture.
        distance: 0 for a copy, 1 for nothing in common, up to 2.
    """

    name: str
    distance: float


class Likeness:
    """Finds the training picture that a picture is most like, whatever its size, brightness, contrast and colours.

    As with ``Copies``, a picture of one grey throughout tells nothing. ``threshold`` is the distance below which a
    picture counts as a near-duplicate. It is measured on the training pictures: nearer to one than all but 1 in 100 of
    them are to another one, with up to 100 pictures nearer than the closest two. It is not below ``COPY``, which the
    closest two may be that are copies.

    Args:
        names: T names.
        images: T pictures, uint8 [H, W] or [H, W, 3].
    """

    def __init__(self, names: Sequence[str], images: Iterable[np.ndarray]) -> None:
        self.names = list(names)
        fine = torch.stack([_greys(image) for image in images])  # [T, 32, 32]
        thumbnails = avg_pool2d(fine, 2)  # [T, 16, 16]
        windows = thumbnails.unfold(1, INNER, 1).unfold(2, INNER, 1)  # [T, 5, 5, 12, 12]
        self._windows = _unit(windows.flatten(3).flatten(1, 2))  # [T, 25, 144]
        self.threshold = round(max(COPY, self._unlucky(fine)), 4)

    def nearest(self, images: Sequence[np.ndarray]) -> list[Nearest]:
        """For every picture, uint8 [H, W] or [H, W, 3], the training picture that it is most like."""
        distances = torch.stack([self._distances(_greys(image)) for image in images])  # [B, T]
        least = distances.min(dim=1)
        return [
            Nearest(self.names[i], round(float(distance), 4))
            for i, distance in zip(least.indices.tolist(), least.values, strict=True)
        ]

    def _unlucky(self, fine: Tensor) -> float:
        """The distance that a small share of the training pictures have from the nearest other one; 0 without any."""
        count = len(fine)
        found = []
        for i in np.unique(np.linspace(0, count - 1, min(count, CALIBRATED)).round().astype(int)).tolist():
            others = self._distances(fine[i])
            others[i] = np.inf
            found.append(float(others.min()))
        found.sort()
        return found[int(UNLUCKY * (len(found) - 1))] if count > 1 else 0.0

    def _distances(self, fine: Tensor) -> Tensor:
        """Of the greys [32, 32] of one picture from every training picture, [T]."""
        edge = SIDE - INNER
        # whole cells are moved in the other one
        moved = [fine[y : y + 2 * INNER, x : x + 2 * INNER] for y in (edge, edge + 1) for x in (edge, edge + 1)]
        middles = avg_pool2d(torch.stack(moved), 2)  # [4, 12, 12]
        turned = [middles.rot90(k, (1, 2)) for k in range(4)]
        looked_for = _unit(torch.cat([*turned, *(way.flip(1) for way in turned)]).flatten(1))  # [32, 144]
        return 1 - (self._windows @ looked_for.T).amax(dim=(1, 2))


def _greys(image: np.ndarray) -> Tensor:
    """The greys of a picture in 32 x 32 halves of cells, float32 in [0, 1]."""
    picture = torch.from_numpy(np.array(image)).float() / 255
    grey = picture @ torch.tensor(LUMA) if picture.ndim == 3 else picture
    return adaptive_avg_pool2d(grey[None], 2 * SIDE)[0]


def _unit(cells: Tensor) -> Tensor:
    """Without mean and of length 1, so that products are correlations; zeros where there is nothing to recognise."""
    centred = cells - cells.mean(dim=-1, keepdim=True)
    spread = centred.square().mean(dim=-1, keepdim=True).sqrt()
    return torch.where(spread < FLAT, 0.0, centred / (spread.clamp(min=FLAT) * cells.shape[-1] ** 0.5))
