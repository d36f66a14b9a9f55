"""The labelling task: teaching a network to give every pixel its class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from geoseg.crops import pad_to, random_corner
from geoseg.data.module import Split
from geoseg.randomness import stream
from geoseg.tasks.task import Task
from geoseg.types import IGNORE


class Crops(Dataset[dict[str, Any]]):
    """Random squares of a split's images and targets; item (index, visit) is a pure function of its key.

    Args:
        split: the samples.
        size: side of the square in pixels; smaller images are mirrored up to it.
        flip: mirror half of the visits left to right.
        phase: "train" or "validation", part of the key.
        seed: key of all randomness.
    """

    def __init__(self, split: Split, size: int, flip: bool, phase: str, seed: int) -> None:
        self.split, self.size, self.flip, self.phase, self.seed = split, size, flip, phase, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, where: tuple[int, int]) -> dict[str, Any]:
        index, visit = where
        item = self.split[index]
        generator = stream(self.seed, "crop", self.phase, index, visit)
        both = torch.cat([item["image"], item["target"][None].float()])  # [C + 1, H, W]; indices up to 255 are exact
        both = pad_to(both, self.size, self.size)
        top, left = random_corner(both.shape[-2], both.shape[-1], self.size, generator)
        both = both[:, top : top + self.size, left : left + self.size]
        if self.flip and torch.rand((), generator=generator) < 0.5:
            both = both.flip(-1)
        return {"image": both[:-1].contiguous(), "target": both[-1].long(), "name": item["name"]}


class LabellingTask(Task):
    """Trains a network on profiles and their label maps.

    Args:
        model: maps images [B, C, H, W] in [0, 1] to logits [B, K, H, W].
        criterion: maps (logits, target) to one loss per sample, [B].
        crop: side of the training square in pixels.
        flip: mirror half of the squares.
        seed: key of all randomness.
        task: what every task needs, see ``Task``.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        seed: int,
        crop: int = 128,
        flip: bool = True,
        **task: Any,
    ) -> None:
        model.requires_grad_(True)
        super().__init__(groups={"model": list(model.parameters())}, seed=seed, **task)
        self.model, self.criterion, self.crop, self.flip = model, criterion, crop, flip

    def view(self, split: Split, training: bool) -> Crops:
        return Crops(split, self.crop, self.flip and training, "train" if training else "validation", self.seed)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        return self.criterion(self.model(batch["image"]), batch["target"])

    def save(self, folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        path, part = folder / "model.safetensors", folder / "model.part"
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        try:
            save_file(state, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return [path]

    def load(self, folder: Path) -> None:
        """Puts back what ``save`` wrote."""
        self.model.load_state_dict(load_file(folder / "model.safetensors"))


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels that count, one value per sample.

    Args:
        logits: float [B, K, H, W].
        target: int64 [B, H, W], 255 = ignore.
    """
    per_pixel = nn.functional.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="none")
    counted = (target != IGNORE).flatten(1).sum(1).clamp(min=1)
    return per_pixel.flatten(1).sum(1) / counted


def cross_entropy_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice loss over the classes present, one value per sample.

    Cross-entropy learns the frequent classes fast, Dice keeps the rare ones from being given up.

    Args:
        logits: float [B, K, H, W].
        target: int64 [B, H, W], 255 = ignore.
    """
    counted = (target != IGNORE)[:, None]
    truth = nn.functional.one_hot(target.masked_fill(~counted[:, 0], 0), logits.shape[1]).movedim(-1, 1) * counted
    probs = logits.float().softmax(1) * counted
    overlap = (probs * truth).sum((2, 3))
    size = (probs + truth).sum((2, 3))
    present = truth.sum((2, 3)) > 0
    dice = ((2 * overlap + 1) / (size + 1) * present).sum(1) / present.sum(1).clamp(min=1)
    return cross_entropy(logits, target) + 1 - dice
