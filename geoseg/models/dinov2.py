"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): a vision transformer as an encoder of profiles of any size."""

from __future__ import annotations

import os

import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from geoseg.crops import pad_to_multiple
from geoseg.models.finetuned import Encoder
from geoseg.models.transformers_folder import read_transformer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Red, green and blue of ImageNet, with which DINOv2 was trained."""

LEVELS = 4
"""Depths at which features are taken: blocks 3, 6, 9 and 12 of 12, and the same shares of a deeper encoder."""


def levels(depth: int) -> tuple[int, ...]:
    """After which of ``depth`` blocks features are taken, counted from 1."""
    return tuple(depth * level // LEVELS for level in range(1, LEVELS + 1))


class DINOv2(Encoder):
    """Features of a profile from four depths of a DINOv2 vision transformer of any size and patch.

    What is frozen in it stays in evaluation mode, and where all is frozen no gradients are prepared.

    Args:
        net: the transformer, of at least four blocks.
        normalise: subtract ImageNet's mean and divide by its standard deviation, as DINOv2 was trained; False hands on
            values in [0, 1], as the code of Guo et al. (2024) does.

    Attributes:
        width: channels D of a feature.
        patch: side of a patch in pixels.
        blocks: after which blocks features are taken, counted from 1.

    Raises:
        ValueError: a transformer with fewer blocks.
    """

    def __init__(self, net: Dinov2Model, normalise: bool = True) -> None:
        super().__init__(net)
        depth = int(net.config.num_hidden_layers)
        if depth < LEVELS:
            raise ValueError(f"features are taken at {LEVELS} depths, and this DINOv2 has only {depth} blocks")
        self.normalise = normalise
        self.width, self.patch = int(net.config.hidden_size), int(net.config.patch_size)
        self.blocks = levels(depth)

    @classmethod
    def load(
        cls, path_or_id: str | os.PathLike[str] | None, revision: str | None = None, normalise: bool = True
    ) -> DINOv2:
        """Reads a folder in the layout of transformers: ``config.json`` and ``model.safetensors``.

        Args:
            path_or_id: such a folder, or the id of one on the Hugging Face hub, such as facebook/dinov2-small, -base,
                -large or -giant.
            revision: branch, tag or commit on the hub; None is its main branch. Not for folders.
            normalise: see the class.

        Raises:
            ValueError: nothing is there, it is another kind of model, or weights are missing.
        """
        net = read_transformer(path_or_id, revision, {Dinov2Config: Dinov2Model.from_pretrained}, "dinov2", "DINOv2")
        return cls(net, normalise)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of the four depths, shallow to deep.

        Args:
            image: float [B, C, H, W] in [0, 1]; C is 1 or 3. Sides are mirrored up to whole patches.

        Returns:
            four tensors [B, D, h, w] after the transformer's last norm and without its class token; h and w are H and
            W in patches, rounded up.

        Raises:
            ValueError: two channels, or more than three.
        """
        if image.shape[1] not in (1, 3):
            raise ValueError(f"DINOv2 takes grey or RGB images, got {image.shape[1]} channels")
        image = pad_to_multiple(image.expand(-1, 3, -1, -1), self.patch)
        if self.normalise:
            mean, std = (image.new_tensor(values)[:, None, None] for values in (MEAN, STD))
            image = (image - mean) / std
        grid = image.shape[-2] // self.patch, image.shape[-1] // self.patch
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains):
            states = self.net(image, output_hidden_states=True).hidden_states  # of block 0, the embedding, to the last
            features = [self.net.layernorm(states[block])[:, 1:] for block in self.blocks]  # [B, h * w, D]
        return [feature.mT.unflatten(2, grid) for feature in features]
