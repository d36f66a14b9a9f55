"""Soft Dice between grey values of pictures, the number the label-LoRA paper reports; no class is involved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601), those of PIL's ``convert("L")``."""


def grey(image: Tensor) -> Tensor:
    """The grey value of every pixel.

    Args:
        image: float [B, 3, H, W] or [B, 1, H, W] in [0, 1].

    Returns:
        float32 [B, 1, H, W] in [0, 1].

    Raises:
        ValueError: neither one nor three channels.
    """
    if image.ndim != 4 or image.shape[1] not in (1, 3):
        raise ValueError(f"a picture must be [B, 1, H, W] or [B, 3, H, W], got {list(image.shape)}")
    if image.shape[1] == 1:
        return image.float()
    weights = torch.tensor(LUMA, device=image.device).view(1, 3, 1, 1)
    return (image.float() * weights).sum(1, keepdim=True)


def dice_loss(a: Tensor, b: Tensor, smooth: float = 1e-6, squared: bool = False, colour: bool = False) -> Tensor:
    """One minus the soft Dice of two pictures, by default of their grey values; lower is better.

    The linear form, 1 - (2 sum(ab) + s) / (sum(a) + sum(b) + s), is 0 for two identical pictures only if they are
    black and white: a picture of grey value g everywhere is at 1 - g from itself. Only the squared form, with
    sum(a^2) + sum(b^2) below, is 0 for any two identical pictures. The paper does not say which one it used.

    Args:
        a: float [B, 1, H, W] or [B, 3, H, W] in [0, 1].
        b: the other picture, of the same height and width.
        smooth: s, keeps two black pictures at a loss of 0.
        squared: which form.
        colour: sums run over red, green and blue instead of grey values (ITU-R BT.601); the paper does not say.

    Returns:
        float64 [B] in [0, 1].

    Raises:
        ValueError: the pictures differ in number or size.

    >>> half = torch.full((1, 1, 2, 2), 0.5)
    >>> round(dice_loss(half, half).item(), 6), round(dice_loss(half, half, squared=True).item(), 6)
    (0.5, 0.0)
    """
    if a.shape[0] != b.shape[0] or a.shape[2:] != b.shape[2:]:
        raise ValueError(f"pictures must agree in number and size, got {list(a.shape)} and {list(b.shape)}")
    # sums over a million pixels: float64, where the device has it
    a, b = (x.float().expand(-1, 3, -1, -1) if colour else grey(x) for x in (a, b))
    a, b = (x.flatten(1).to("cpu" if x.device.type == "mps" else x.device, torch.float64) for x in (a, b))
    below = a.square().sum(1) + b.square().sum(1) if squared else a.sum(1) + b.sum(1)
    return 1 - (2 * (a * b).sum(1) + smooth) / (below + smooth)


class IntensityDice(Metric):
    """The paper's three Dice losses between a profile, its label picture and the generated picture, lower is better.

    ``dice_loss/original_label``, ``dice_loss/original_generated`` and ``dice_loss/label_generated``, each the mean of
    ``dice_loss`` over images. In the linear form two identical pictures that are not black and white are not at 0, see
    ``dice_loss``: compare these numbers with each other, not with 0.

    Args:
        smooth: see ``dice_loss``.
        squared: see ``dice_loss``.
        colour: see ``dice_loss``.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    original_label: list[Tensor]
    original_generated: list[Tensor]
    label_generated: list[Tensor]

    def __init__(self, smooth: float = 1e-6, squared: bool = False, colour: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.smooth = smooth
        self.squared = squared
        self.colour = colour
        for name in _PAIRS:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, original: Tensor, label: Tensor, generated: Tensor) -> None:
        """Adds a batch.

        Args:
            original: float [B, 1 or 3, H, W] in [0, 1], the profiles.
            label: float [B, 3, H, W] in [0, 1], their painted targets.
            generated: float [B, 3, H, W] in [0, 1], what the method drew.
        """
        self.original_label.append(dice_loss(original, label, self.smooth, self.squared, self.colour))
        self.original_generated.append(dice_loss(original, generated, self.smooth, self.squared, self.colour))
        self.label_generated.append(dice_loss(label, generated, self.smooth, self.squared, self.colour))

    def compute(self) -> dict[str, Tensor]:
        """The mean over images, float64 scalars in [0, 1]."""
        return {f"dice_loss/{name}": losses.mean() for name, losses in self._losses().items()}

    def per_image(self) -> dict[str, list[float]]:
        """The losses of every image, in the order of updates; among several processes, call it on all."""
        with self.sync_context():
            return {f"dice_loss/{name}": losses.tolist() for name, losses in self._losses().items()}

    def _losses(self) -> dict[str, Tensor]:
        if isinstance(self.original_label, list) and not self.original_label:
            raise ValueError("no image was scored yet; call update(original, label, generated) first")
        return {name: dim_zero_cat(getattr(self, name)) for name in _PAIRS}


_PAIRS = ("original_label", "original_generated", "label_generated")
