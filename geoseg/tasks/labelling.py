"""The labelling task: teaching a network to give every pixel, or every picture, its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from geoseg.crops import pad_to, random_corner
from geoseg.data.module import Split
from geoseg.metrics.score import confusion, iou, pixel_accuracy
from geoseg.randomness import stream
from geoseg.tasks.task import Task
from geoseg.types import IGNORE, ignored


class Crops(Dataset[dict[str, Any]]):
    """Random squares of a split's images and targets; item (index, visit) is a pure function of its key.

    Args:
        split: the samples.
        size: side of the square in pixels; smaller images are mirrored up to it. None: no square but the whole image,
            whose target may then be one class.
        flip: mirror half of the visits left to right.
        phase: "train" or "validation", part of the key.
        seed: key of all randomness.
    """

    def __init__(self, split: Split, size: int | None, flip: bool, phase: str, seed: int) -> None:
        self.split, self.size, self.flip, self.phase, self.seed = split, size, flip, phase, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, where: tuple[int, int]) -> dict[str, Any]:
        index, visit = where
        item = self.split[index]
        generator = stream(self.seed, "crop", self.phase, index, visit)
        image, target = item["image"], item["target"]
        if self.size is not None:
            # only the square is copied: a mosaic may be a hundred times as large
            image, target = (pad_to(whole, self.size, self.size) for whole in (image, target[None]))
            top, left = random_corner(image.shape[-2], image.shape[-1], self.size, generator)
            square = (..., slice(top, top + self.size), slice(left, left + self.size))
            image, target = image[square], target[0][square]
        if self.flip and torch.rand((), generator=generator) < 0.5:
            image, target = image.flip(-1), target.flip(-1) if target.ndim else target
        return {"image": image.contiguous(), "target": target.contiguous(), "name": item["name"]}


class LabellingTask(Task):
    """Trains a network on profiles and their label maps, or on whole pictures and their classes.

    Args:
        model: maps images [B, C, H, W] in [0, 1] to logits [B, K, *space]. What of it wants gradients is trained, and
            saved together with what its layers count. One with a method ``groups`` names the groups that ``lr`` may
            tell apart; else there is one, "model". One whose ``per_image`` is true gives logits of whole images.
        criterion: maps (logits, target) to one loss per sample, [B].
        crop: side of the training square in pixels; None takes whole images, those of one size together.
        flip: mirror half of the squares.
        seed: key of all randomness.
        task: what every task needs, see ``Task``.

    Raises:
        ValueError: a square without pixels, or nothing that could be trained.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        seed: int,
        crop: int | None = 128,
        flip: bool = True,
        *,
        lr: float | Mapping[str, float],
        **task: Any,
    ) -> None:
        self.per_image = bool(getattr(model, "per_image", False))
        if crop is not None and crop < 1:
            raise ValueError(f"crop is the side of a training square in pixels, 1 or more, got {crop}")
        if crop is not None and self.per_image:
            raise ValueError(f"crop={crop}: a square need not show what its picture is a picture of; use crop=null")
        own: Callable[[], dict[str, nn.Module]] | None = getattr(model, "groups", None)
        named = {"model": model} if own is None else own()
        wanted = {name: [p for p in module.parameters() if p.requires_grad] for name, module in named.items()}
        groups = {name: weights for name, weights in wanted.items() if weights}
        if not groups:
            raise ValueError("nothing of the model wants gradients, so nothing would be trained; use task=null")
        if isinstance(lr, Mapping):  # a rate of what is frozen has nothing to say
            lr = {name: rate for name, rate in lr.items() if name in groups or name not in named}
        super().__init__(groups=groups, seed=seed, lr=lr, **task)
        self.model, self.criterion, self.crop, self.flip = model, criterion, crop, flip
        self._counts: Tensor | None = None  # [K, K], of a validation

    def view(self, split: Split, training: bool) -> Crops:
        return Crops(split, self.crop, self.flip and training, "train" if training else "validation", self.seed)

    def buckets(self, split: Split) -> list[Any]:
        """Whole images share a batch where they have one size."""
        return super().buckets(split) if self.crop is not None else [split.source.shape(name) for name in split.names]

    def check_target(self, continuous: bool, per_image: bool = False) -> None:
        super().check_target(continuous)
        if per_image and not self.per_image:
            raise ValueError(
                "the data set has one class per image, and this network gives one per pixel; methods that learn that "
                "are vit, vit_lora and vit_scratch"
            )
        if self.per_image and not per_image:
            raise ValueError(
                "the data set has a class per pixel, and this network gives one per image; give data of whole images, "
                "such as data=image_folder, or another method, such as unet"
            )

    def loss(self, batch: dict[str, Any]) -> Tensor:
        logits, target = self.model(batch["image"]), batch["target"]
        if self.per_image:
            self.told["train/accuracy/image"] = (logits.detach().argmax(1) == target).float().mean()
        return self.criterion(logits, target)

    def on_validation_epoch_start(self) -> None:
        self._counts = None

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        logits, target = self.model(batch["image"]), batch["target"]
        self._validated(self.criterion(logits, target), batch)
        if not target.is_floating_point():
            counts = confusion(logits.argmax(1), target, logits.shape[1])
            if "share" in batch:  # samples that fill up a process's batches count for nothing
                counts = counts[batch["share"] != 0]
            self._counts = counts.sum(0) if self._counts is None else self._counts + counts.sum(0)

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/iou/mean`` of the squares together, a mean over classes that occur; or ``val/accuracy/image``."""
        if self._counts is not None:
            gathered: Any = self.all_gather(self._counts)  # [K, K], or [P, K, K] of P processes
            counts = gathered.sum(0) if gathered.ndim > 2 else gathered
            if self.per_image:
                self.log("val/accuracy/image", pixel_accuracy(counts).nan_to_num(0.0).float())
            else:
                self.log("val/iou/mean", iou(counts).nanmean().nan_to_num(0.0).float())

    def save(self, folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        path, part = folder / "model.safetensors", folder / "model.part"
        kept, state = self._saved(), self.model.state_dict()
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name in kept}
        try:
            save_file(state, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return [path]

    def load(self, folder: Path) -> None:
        """Puts back what ``save`` wrote.

        Raises:
            ValueError: the file holds other weights than this model trains.
        """
        state = load_file(folder / "model.safetensors")
        wrong = sorted(state.keys() ^ self._saved())
        if wrong:
            raise ValueError(
                f"{folder / 'model.safetensors'} and this model differ in {len(wrong)} tensors, such as {wrong[0]}; "
                "other code or other libraries made it: force=true trains anew"
            )
        self.model.load_state_dict(state, strict=False)

    def _saved(self) -> set[str]:
        """Names in the model of what a file of it holds."""
        return {name.removeprefix("model.") for name in self.kept() if name.startswith("model.")}


class MattingTask(LabellingTask):
    """Trains a network on continuous targets: the probability of its second class becomes the share of it in a pixel.

    Takes what a ``LabellingTask`` takes, with a criterion for shares, such as ``absolute_error``.
    """

    def check_target(self, continuous: bool, per_image: bool = False) -> None:
        """Learns either; classes are shares of 0 and 1."""
        super().check_target(False, per_image)


def absolute_error(logits: Tensor, target: Tensor) -> Tensor:
    """Mean distance of the second class's probability from the truth over the pixels that count, one value per sample.

    Args:
        logits: float [B, 2, H, W].
        target: [B, H, W], shares float in [0, 1] with nan = ignore, or int64 in 0..1 with 255 = ignore.
    """
    gaps = ignored(target)
    apart = (logits.float().softmax(1)[:, 1] - target.float().masked_fill(gaps, 0)).abs() * ~gaps
    return apart.flatten(1).sum(1) / (~gaps).flatten(1).sum(1).clamp(min=1)


def cross_entropy(logits: Tensor, target: Tensor, weights: Sequence[float] | str | None = None) -> Tensor:
    """Mean cross-entropy over the pixels that count, one value per sample.

    Args:
        logits: float [B, K, *space].
        target: int64 [B, *space], 255 = ignore.
        weights: K numbers, how much a pixel of each class counts; "inverse": every class that a sample has counts the
            same in it, however many pixels it has; None: every pixel does.

    Raises:
        ValueError: other than K weights, a negative one, or another word.
    """
    per_pixel = nn.functional.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="none")
    return _mean(per_pixel, target, weights, logits.shape[1])


def focal(logits: Tensor, target: Tensor, gamma: float = 2.0, weights: Sequence[float] | str | None = None) -> Tensor:
    """Focal loss (Lin et al. 2017): cross-entropy times (1 - p) ** gamma, p that of the truth; one value per sample.

    Args:
        logits: float [B, K, *space].
        target: int64 [B, *space], 255 = ignore.
        gamma: 0 is cross-entropy; the larger, the less counts what is right already.
        weights: see ``cross_entropy``.
    """
    per_pixel = nn.functional.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="none")
    return _mean((1 - torch.exp(-per_pixel)) ** gamma * per_pixel, target, weights, logits.shape[1])


def cross_entropy_dice(logits: Tensor, target: Tensor, weights: Sequence[float] | str | None = None) -> Tensor:
    """Cross-entropy plus soft Dice loss over the classes present, one value per sample.

    Cross-entropy learns the frequent classes fast, Dice keeps the rare ones from being given up.

    Args:
        logits: float [B, K, H, W].
        target: int64 [B, H, W], 255 = ignore.
        weights: of the cross-entropy, see there.
    """
    return cross_entropy(logits, target, weights) + 1 - _dice(logits, target)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice loss over the classes present, one value per sample in [0, 1].

    Args:
        logits: float [B, K, H, W].
        target: int64 [B, H, W], 255 = ignore.
    """
    return 1 - _dice(logits, target)


def weighted_dice(logits: Tensor, target: Tensor) -> Tensor:
    """The loss of Guo et al. (2024, arXiv 2408.12396) as their code has it, one value per sample; theirs is per batch.

    A soft Dice loss per class, its sums weighted by the inverse of the class's pixels and smoothed by 1, and the mean
    over all classes. A weight stands above and below the line and so cancels but for that 1: it is nearly ``dice``,
    only that a class that is not there is counted and adds about nothing, so that it costs little to paint it.

    Args:
        logits: float [B, K, H, W].
        target: int64 [B, H, W], 255 = ignore.
    """
    overlap, size, pixels = _sums(logits, target)
    share = 1 / torch.where(pixels > 0, pixels, 1e10)
    share = share / share.sum(1, keepdim=True)
    return (1 - (2 * share * overlap + 1) / (share * size + 1)).mean(1)


def _dice(logits: Tensor, target: Tensor) -> Tensor:
    overlap, size, pixels = _sums(logits, target)
    present = pixels > 0
    return ((2 * overlap + 1) / (size + 1) * present).sum(1) / present.sum(1).clamp(min=1)


def _sums(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of samples and classes [B, K]: probability inside the class; the same everywhere plus its pixels; its pixels."""
    counted = (target != IGNORE)[:, None]
    truth = nn.functional.one_hot(target.masked_fill(~counted[:, 0], 0), logits.shape[1]).movedim(-1, 1) * counted
    probs = logits.float().softmax(1) * counted
    return (probs * truth).sum((2, 3)), (probs + truth).sum((2, 3)), truth.sum((2, 3))


def _mean(per_pixel: Tensor, target: Tensor, weights: Sequence[float] | str | None, num_classes: int) -> Tensor:
    """Of the pixels that count [B, *space], each by the weight of its class, one value per sample."""
    per_pixel, target = (values.reshape(len(values), -1) for values in (per_pixel, target))  # [B, N]; N = 1 of images
    counts = target != IGNORE
    if weights is None:
        return per_pixel.sum(1) / counts.sum(1).clamp(min=1)
    labels = target.masked_fill(~counts, 0)
    if isinstance(weights, str):
        if weights != "inverse":
            raise ValueError(f"weights must be {num_classes} numbers, inverse or null; got {weights!r}")
        pixels = nn.functional.one_hot(labels, num_classes).mul(counts[..., None]).sum(1)  # [B, K]
        of_class = 1 / pixels.clamp(min=1)
    else:
        if len(weights) != num_classes or min(weights) < 0:
            raise ValueError(f"weights must be {num_classes} numbers of 0 or more, one per class; got {list(weights)}")
        of_class = per_pixel.new_tensor(list(weights)).expand(len(target), -1)
    of_pixel = of_class.gather(1, labels) * counts
    total = of_pixel.sum(1)
    return (per_pixel * of_pixel).sum(1) / torch.where(total > 0, total, 1)
