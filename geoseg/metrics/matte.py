"""Errors of mattes, and of other targets that are shares of two classes, in the units of the matting literature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from geoseg.types import ignored


def matte_errors(values: Tensor, target: Tensor) -> Tensor:
    """Errors of mattes, image by image, over all pixels that count; there is no trimap.

    Args:
        values: float [B, *space] in [0, 1].
        target: float [B, *space] in [0, 1], nan = ignore.

    Returns:
        float64 [2, B]: SAD, the sum of absolute differences in thousands, which grows with the picture; and MSE, the
        mean squared difference in thousandths (Rhemann et al. 2009; in these units since Xu et al. 2017). Both 0 at
        best; nan where every pixel is ignored.

    Raises:
        ValueError: shapes differ.

    >>> matte_errors(torch.tensor([[0.5, 1.0]]), torch.tensor([[0.0, 1.0]])).tolist()
    [[0.0005], [125.0]]
    """
    if values.shape != target.shape:
        raise ValueError(f"values and target must have one shape, got {list(values.shape)} and {list(target.shape)}")
    counts = ~ignored(target)
    apart = (values.to(target.device) - target).masked_fill(~counts, 0).flatten(1).cpu().double()
    pixels = counts.flatten(1).sum(1).cpu()
    nothing = torch.where(pixels > 0, 0.0, torch.nan)
    return torch.stack([apart.abs().sum(1) / 1000 + nothing, 1000 * apart.square().sum(1) / pixels])


class MatteError(Metric):
    """Means over images of ``matte_errors``: ``matte/sad`` and ``matte/mse``, lower is better."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    errors: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("errors", default=[], dist_reduce_fx="cat")

    def update(self, values: Tensor, target: Tensor) -> None:
        """Adds a batch; arguments as for ``matte_errors``."""
        self.errors.append(matte_errors(values, target).T)  # [B, 2]

    def compute(self) -> dict[str, Tensor]:
        """The means over images, float64 scalars; images without a pixel that counts are left out."""
        return dict(zip(MATTES, dim_zero_cat(self.errors).nanmean(0), strict=True))

    def per_image(self) -> dict[str, list[float]]:
        """The errors of every image, in the order of updates."""
        return dict(zip(MATTES, dim_zero_cat(self.errors).T.tolist(), strict=True))


MATTES = ("matte/sad", "matte/mse")
