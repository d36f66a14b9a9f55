"""Vision transformers that describe a whole picture, and a classifier on top of one."""

from __future__ import annotations

import os
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import Dinov2Config, Dinov2Model, PreTrainedConfig, PreTrainedModel, ViTConfig, ViTModel

from geoseg.models import dinov2
from geoseg.models.finetuned import Encoder, Finetuned
from geoseg.models.transformers_folder import read_transformer


class Kind(NamedTuple):
    """How one kind of vision transformer is used.

    Attributes:
        model: its class in transformers.
        mean: of red, green and blue, which is subtracted.
        std: what they are divided by.
        patches: whether the mean of its patches describes a picture beside its class token, as its authors have it.
        options: of the model, beside its configuration.
    """

    model: type[PreTrainedModel]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patches: bool
    options: dict[str, bool]


KINDS: dict[type[PreTrainedConfig], Kind] = {
    ViTConfig: Kind(ViTModel, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), False, {"add_pooling_layer": False}),
    Dinov2Config: Kind(Dinov2Model, dinov2.MEAN, dinov2.STD, True, {}),
}
"""Kinds by their configuration: ViT (Dosovitskiy et al. 2021) as Google publishes it, and DINOv2."""


class ViT(Encoder):
    """One description of a whole picture, by a vision transformer of either kind.

    What is frozen in it stays in evaluation mode, and where all is frozen no gradients are prepared.

    Args:
        net: the transformer.
        side: pictures are scaled to a square of so many pixels, a multiple of the patch; None takes what it was trained
            with.

    Attributes:
        width: numbers D of a description.
        side: as it is used.

    Raises:
        ValueError: a side that is no multiple of the patch.
    """

    def __init__(self, net: PreTrainedModel, side: int | None = None) -> None:
        kind = KINDS[type(net.config)]
        super().__init__(net, **kind.options)
        self.kind = kind
        self.side = int(net.config.image_size) if side is None else side
        patch = int(net.config.patch_size)
        if self.side < patch or self.side % patch:
            raise ValueError(
                f"checkpoints.vit.side={self.side}: a multiple of the transformer's patch is wanted, {patch} pixels"
            )
        self.width = int(net.config.hidden_size) * (2 if self.kind.patches else 1)

    @classmethod
    def load(
        cls, path_or_id: str | os.PathLike[str] | None, revision: str | None = None, side: int | None = None
    ) -> ViT:
        """Reads a folder in the layout of transformers: ``config.json`` and ``model.safetensors``.

        Args:
            path_or_id: such a folder, or the id of one on the Hugging Face hub, such as
                google/vit-base-patch16-224-in21k.
            revision: branch, tag or commit on the hub; None is its main branch. Not for folders.
            side: see the class.

        Raises:
            ValueError: nothing is there, it is another kind of model, or weights are missing.
        """
        read = {config: partial(kind.model.from_pretrained, **kind.options) for config, kind in KINDS.items()}
        return cls(read_transformer(path_or_id, revision, read, "vit", "vision transformer"), side)

    def forward(self, image: Tensor) -> Tensor:
        """Pictures float [B, C, H, W] in [0, 1], C 1 or 3, to descriptions [B, D].

        Raises:
            ValueError: two channels, or more than three.
        """
        if image.shape[1] not in (1, 3):
            raise ValueError(f"a vision transformer takes grey or RGB images, got {image.shape[1]} channels")
        image = image.expand(-1, 3, -1, -1)
        if image.shape[-2:] != (self.side, self.side):
            image = interpolate(image, (self.side, self.side), mode="bilinear", antialias=True)
        mean, std = (image.new_tensor(values)[:, None, None] for values in (self.kind.mean, self.kind.std))
        # DINOv2 fits its positions to any size by itself
        fit = {} if self.kind.patches else {"interpolate_pos_encoding": self.side != self.net.config.image_size}
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains):
            tokens: Tensor = self.net((image - mean) / std, **fit).last_hidden_state  # [B, 1 + N, hidden]
        first = tokens[:, 0]
        return torch.cat([first, tokens[:, 1:].mean(1)], dim=1) if self.kind.patches else first


class Classifier(Finetuned):
    """Logits of a whole picture: a linear layer on what an encoder says of it.

    Args:
        num_classes: K.
        encoder: describes pictures.
        finetune: what is trained of the encoder beside the layer; see ``Finetuned``.

    Raises:
        ValueError: another word for ``finetune``.
    """

    per_image = True
    top = "head"
    head: nn.Linear

    def __init__(self, num_classes: int, encoder: ViT, finetune: str = "full") -> None:
        super().__init__(num_classes, encoder, lambda: nn.Linear(encoder.width, num_classes), finetune)

    def forward(self, image: Tensor) -> Tensor:
        """Pictures [B, C, H, W] in [0, 1] to logits [B, K]."""
        logits: Tensor = self.head(self.encoder(image))
        return logits
