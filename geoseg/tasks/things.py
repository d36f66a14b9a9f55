"""Teaching a network that finds things one by one, from label maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geoseg.tasks.labelling import LabellingTask


class ThingsTask(LabellingTask):
    """Trains a network by losses of its own, a model with ``losses(image, target)`` such as ``models.mask_rcnn``.

    Takes what a ``LabellingTask`` takes. Its criterion judges the label maps of validation squares, so that
    ``val/loss`` is of the same kind as that of the other networks; ``train/loss`` is not.
    """

    def loss(self, batch: dict[str, Any]) -> Tensor:
        model: Any = self.model
        losses: dict[str, Tensor] = model.losses(batch["image"], batch["target"])
        self.told = {f"train/{name}": value.detach() for name, value in losses.items()}
        return torch.stack(list(losses.values())).sum().expand(len(batch["image"]))  # means, which the samples share
