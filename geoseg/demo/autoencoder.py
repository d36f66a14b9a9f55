"""Trains the small autoencoder: pictures to latents and back, grey textures and flat colours alike."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import Dataset

from geoseg.crops import random_corner
from geoseg.data.module import Split
from geoseg.data.synthetic import SUBJECTS
from geoseg.randomness import stream
from geoseg.tasks.task import Task


class Pieces(Dataset[dict[str, Any]]):
    """Small random squares of a split's pictures; item (index, visit) is a pure function of its key.

    Several squares per picture make small, fast steps out of pictures that are slow to draw.

    Args:
        split: the pictures.
        size: side of a square in pixels; None gives the whole picture once, and its caption.
        count: squares per picture and visit.
        seed: key of all randomness.
    """

    def __init__(self, split: Split, size: int | None, count: int, seed: int) -> None:
        self.split, self.size, self.count, self.seed = split, size, count, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, where: tuple[int, int]) -> dict[str, Any]:
        index, visit = where
        item = self.split[index]
        image = item["image"].expand(3, -1, -1)
        if self.size is None:
            return {"image": image, "name": item["name"], "caption": item["caption"]}
        if min(image.shape[-2:]) < self.size:
            raise ValueError(f"{item['name']} is {tuple(image.shape[-2:])}, smaller than task.crop={self.size}")
        generator = stream(self.seed, "pieces", index, visit)
        pieces = []
        for _ in range(self.count):
            top, left = random_corner(image.shape[-2], image.shape[-1], self.size, generator)
            piece = image[:, top : top + self.size, left : left + self.size]
            pieces.append(piece.flip(-1) if torch.rand((), generator=generator) < 0.5 else piece)
        return {"image": torch.stack(pieces), "name": item["name"]}  # [P, 3, size, size]


class AutoencoderTask(Task):
    """Trains an autoencoder to give back the pictures of a corpus.

    Args:
        model: the autoencoder.
        seed: key of all randomness.
        crop: side of the training squares in pixels.
        pieces: squares per picture and visit.
        chroma: weight of the colour axes in the loss; more than half the corpus is grey.
        kl: weight of the distance between latents and a standard normal distribution.
        task: what every task needs, see ``Task``.
    """

    def __init__(
        self,
        model: AutoencoderKL,
        seed: int,
        crop: int = 64,
        pieces: int = 4,
        chroma: float = 1.0,
        kl: float = 2e-4,
        **task: Any,
    ) -> None:
        super().__init__(groups={"vae": list(model.train().parameters())}, seed=seed, **task)
        self.model, self.crop, self.pieces, self.chroma, self.kl = model, crop, pieces, chroma, kl
        self._seen: Split | None = None

    def view(self, split: Split, training: bool) -> Pieces:
        self._seen = split if training or self._seen is None else self._seen
        return Pieces(split, self.crop if training else None, self.pieces, self.seed)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        image = 2 * batch["image"] - 1  # [B, P, 3, H, W]
        count = image.shape[1]
        image = image.flatten(0, 1)
        latent = self.model.encode(image).latent_dist
        drawn = self.model.decode(latent.sample()).sample.float()
        mean, variance, log_variance = latent.mean.float(), latent.var.float(), latent.logvar.float()
        divergence = 0.5 * (mean.square() + variance - 1 - log_variance).mean((1, 2, 3))
        centre = mean.mean((0, 2, 3)).square().mean()  # latents of a batch have mean 0 in every channel
        losses = reconstruction_loss(drawn, image, self._sharpness(), self.chroma)
        losses = losses + self.kl * divergence + 0.05 * centre
        return losses.unflatten(0, (-1, count)).mean(1)

    def _sharpness(self) -> float:
        """Colours first: absolute errors come in over the first third of the training."""
        if self._trainer is None or not self.training:
            return 1.0
        return min(1.0, 3 * self.trainer.global_step / float(self.trainer.estimated_stepping_batches))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        image = batch["image"]
        drawn = self.model.decode(self.model.encode(2 * image - 1).latent_dist.mode()).sample.float() / 2 + 0.5
        decibels = psnr(drawn.clamp(0, 1), image)
        self.log("val/psnr/mean", decibels.mean(), batch_size=len(decibels))
        for kind, subject in (("profiles", "section"), ("labels", "map")):
            chosen = [i for i, caption in enumerate(batch["caption"]) if is_about(caption, subject)]
            if chosen:
                self.log(f"val/psnr/{kind}", decibels[chosen].mean(), batch_size=len(chosen))

    def save(self, folder: Path) -> list[Path]:
        """Writes ``vae/`` in the layout of diffusers and float16, scaled so that latents have a spread of 1."""
        self.model.register_to_config(scaling_factor=self._scale())
        copy.deepcopy(self.model).half().save_pretrained(folder / "vae")
        return [folder / "vae"]

    def load(self, folder: Path) -> None:
        """Puts back what ``save`` wrote."""
        saved = AutoencoderKL.from_pretrained(folder / "vae")
        self.model.register_to_config(scaling_factor=saved.config.scaling_factor)
        self.model.load_state_dict(saved.state_dict())

    @torch.no_grad()
    def _scale(self, pictures: int = 256) -> float:
        """1 / standard deviation of latents, as Rombach et al. 2022 (appendix G) scale them."""
        if self._seen is None:
            raise ValueError("the scale of the latents is measured on the training pictures; fit the task first")
        latents = []
        for index in range(min(pictures, len(self._seen))):
            item = self._seen[index]
            image = 2 * item["image"].expand(3, -1, -1)[None].to(self.device) - 1
            latents.append(self.model.encode(image).latent_dist.sample(stream(self.seed, "scale", index)).cpu())
        return float(1 / torch.cat([latent.flatten() for latent in latents]).std())


def reconstruction_loss(drawn: Tensor, image: Tensor, sharpness: float = 1.0, chroma: float = 1.0) -> Tensor:
    """Distance between drawn and true pictures: squared errors for colours, absolute errors for detail.

    Absolute errors pull a colour that is not understood yet to the median of all colours, grey, and keep it there: a
    whole colour axis is then never learnt. Squared errors do not, and fade beside absolute ones as they become small.

    Args:
        drawn: float [B, 3, H, W], about [-1, 1].
        image: float [B, 3, H, W] in [-1, 1]; H and W multiples of 8.
        sharpness: weight of the absolute errors of pixels, of edges and at three coarser scales.
        chroma: weight of the two colour axes, red against green and blue against both, in the squared errors.

    Returns:
        float [B], 0 where both agree.
    """
    error = drawn - image
    red, green, blue = F.avg_pool2d(error, 4).unbind(1)
    axes = torch.stack([red - green, blue - (red + green) / 2], 1)
    colour = error.square().mean((1, 2, 3)) + chroma * axes.square().mean((1, 2, 3))
    detail = error.abs().mean((1, 2, 3))
    detail = detail + 0.5 * (error.diff(dim=-1).abs().mean((1, 2, 3)) + error.diff(dim=-2).abs().mean((1, 2, 3)))
    for scale in (2, 4, 8):
        detail = detail + 0.5 * F.avg_pool2d(error, scale).abs().mean((1, 2, 3))
    return 10 * colour + sharpness * detail


def psnr(drawn: Tensor, image: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, [B]; both pictures float [B, C, H, W] in [0, 1]."""
    return -10 * (drawn - image).square().flatten(1).mean(1).clamp(min=1e-10).log10()


def is_about(caption: str, subject: str) -> bool:
    """Whether a caption of the corpus names a picture of this kind, a key of ``SUBJECTS``."""
    return any(words in caption for words in SUBJECTS[subject])
