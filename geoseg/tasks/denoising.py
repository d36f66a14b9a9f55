"""The denoising task: teaching a latent diffusion model to draw label maps, or anything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from geoseg import lora, progress
from geoseg.crops import Bucket, bucket, pad_to, pad_to_multiple, random_corner
from geoseg.data.module import SameShape, Split
from geoseg.diffusion.codec import Codec
from geoseg.diffusion.flux import FluxDiffusion
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.diffusion.objectives import FlowTimes, Steps
from geoseg.lora import Plan
from geoseg.palette import Palette
from geoseg.randomness import stream
from geoseg.tasks.task import Task

ENCODED = 1 << 18
"""Pixels per call of the encoder: one square of 512, whose activations take memory like those of a training step."""


@torch.no_grad()
def encoded(
    codec: Codec,
    split: Split,
    picture: Callable[[dict[str, Any]], Tensor],
    at_once: int,
    flip: bool,
    device: torch.device,
) -> list[tuple[Tensor, Tensor]]:
    """Latent moments of a picture of every sample, kept as fp16 on the CPU; nothing frozen is computed twice.

    Args:
        codec: the autoencoder.
        split: the samples.
        picture: what is to be encoded of a sample, [3, H, W] in [0, 1].
        at_once: pictures per call.
        flip: encode the mirror image as well.
        device: where the autoencoder is.

    Returns:
        mean and standard deviation of every sample, each [4, h, w], or [2, 4, h, w] with the mirror image.

    Raises:
        ValueError: names the samples whose latents are no numbers.
    """
    moments: list[tuple[Tensor, Tensor]] = []
    progress.expect("encoding", len(split), unit="picture")
    for batch in SameShape(split, at_once):
        pictures = torch.stack([picture(split[i]) for i in batch]).to(device)
        try:
            mean, std = _halved(codec.moments(pictures))
            if flip:
                mirror = _halved(codec.moments(pictures.flip(-1)))
                mean, std = torch.stack([mean, mirror[0]], 1), torch.stack([std, mirror[1]], 1)
        except OverflowError as error:
            raise ValueError(f"{', '.join(split.names[i] for i in batch)}: {error}") from error
        moments += list(zip(mean, std, strict=True))
        progress.advance("encoding", len(batch))
    return moments


def _halved(moments: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    mean, std = (moment.half() for moment in moments)
    if not bool(mean.isfinite().all() and std.isfinite().all()):
        raise OverflowError("the latents are beyond what fp16, in which they are kept, can hold")
    return mean.cpu().clone(), std.cpu().clone()


class Latents(Dataset[dict[str, Any]]):
    """The pictures of a split as latents, encoded once, with noise and timestep looked up per visit.

    Item (index, visit) holds ``latent`` and ``noise`` [4, h, w], ``time`` [] as the model counts it, ``caption`` and
    ``name``.

    Args:
        moments: mean and standard deviation of every picture's latent, each [4, h, w], or [2, 4, h, w] with
            its mirror image.
        captions: words of every picture.
        names: sample ids.
        crop: side of the latent square that is cut out per visit, or the rectangle (high, wide) of every picture.
        times: those of the model's noise schedule.
        visits: for validation, how many fixed times are spread over the schedule; None draws them at random.
        drop_caption: share of visits with empty words, which classifier-free guidance needs.
        noise_offset: size of a constant per channel that is added to the noise.
        seed: key of all randomness.
    """

    def __init__(
        self,
        moments: Sequence[tuple[Tensor, Tensor]],
        captions: Sequence[str],
        names: Sequence[str],
        crop: int | Sequence[tuple[int, int]],
        times: Steps | FlowTimes,
        visits: int | None,
        drop_caption: float,
        noise_offset: float,
        seed: int,
    ) -> None:
        self.moments, self.captions, self.names = moments, captions, names
        self.crops = [(crop, crop)] * len(moments) if isinstance(crop, int) else list(crop)
        self.times, self.visits = times, visits
        self.drop_caption, self.noise_offset, self.seed = drop_caption, noise_offset, seed

    def __len__(self) -> int:
        return len(self.moments)

    def __getitem__(self, where: tuple[int, int]) -> dict[str, Any]:
        index, visit = where
        phase = "train" if self.visits is None else "validation"
        generator = stream(self.seed, "denoising", phase, index, visit)
        mean, std = self.moments[index]
        if mean.ndim == 4:  # the picture and its mirror image
            side = int(torch.randint(2, (), generator=generator))
            mean, std = mean[side], std[side]
        high, wide = self.crops[index]
        top, left = random_corner(mean.shape[-2], mean.shape[-1], (high, wide), generator)
        here = (slice(None), slice(top, top + high), slice(left, left + wide))
        mean, std = mean[here].float(), std[here].float()
        latent = mean + std * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        noise = noise + self.noise_offset * torch.randn(mean.shape[0], 1, 1, generator=generator)
        if self.visits is None:
            time = self.times.drawn(generator, cells=high * wide)
        else:
            time = self.times.at((visit + 0.5) / self.visits)
        dropped = self.visits is None and float(torch.rand((), generator=generator)) < self.drop_caption
        return {
            "latent": latent,
            "noise": noise,
            "time": time,
            "caption": "" if dropped else self.captions[index],
            "name": self.names[index],
        }


class DenoisingTask(Task):
    """Trains a latent diffusion model, or the adapter in it, to take the noise from noisy pictures.

    Args:
        model: the diffusion model, which says what is to be answered; its autoencoder stays frozen.
        palette: paints label maps, where ``paint`` is on.
        adapter: what is attached to ``model``, or None to train all of its ``parts``.
        paint: learn painted label maps (the profiles are never looked at); off: learn the images themselves.
        caption: words for every picture; None takes each sample's own.
        crop: side of the training square in pixels, a multiple of what the model can halve.
        bucketing: resize every picture to the rectangle of about ``crop`` x ``crop`` pixels nearest to its own aspect,
            and learn batches of one rectangle; off: learn random squares of pictures in their own size. See ``bucket``.
        upscale: with ``bucketing``, also enlarge pictures that are smaller than that.
        flip: also learn the mirror image of every picture.
        drop_caption: share of visits with empty words, in [0, 1).
        min_snr_gamma: caps the weight of easy timesteps (Hang et al. 2023 use 5); None weighs all alike.
        noise_offset: adds a constant per channel to the noise, so that overall brightness is learnt too.
        times: how noisy latents are made, see ``geoseg.diffusion.objectives.TIMES``.
        gradient_checkpointing: computes activations anew in the backward pass; less memory, about a third slower.
        seed: key of all randomness.
        task: what every task needs, see ``Task``.
    """

    def __init__(
        self,
        model: LatentDiffusion | FluxDiffusion,
        palette: Palette | None,
        adapter: Plan | None,
        seed: int,
        paint: bool = True,
        caption: str | None = None,
        crop: int = 512,
        bucketing: bool = False,
        upscale: bool = False,
        flip: bool = False,
        drop_caption: float = 0.0,
        min_snr_gamma: float | None = None,
        noise_offset: float = 0.0,
        gradient_checkpointing: bool = False,
        times: str = "uniform",
        **task: Any,
    ) -> None:
        parts = model.parts()
        if adapter is None:
            groups = {name: list(part.parameters()) for name, part in parts.items()}
        else:
            groups = lora.trainable(parts)
        super().__init__(groups=groups, seed=seed, **task)
        if crop % model.multiple:
            raise ValueError(f"crop must be a multiple of {model.multiple} for this model, got {crop}")
        if paint and palette is None:
            raise ValueError("paint=true needs a data set with classes; use paint=false to learn its images")
        if noise_offset < 0:
            raise ValueError(f"noise_offset must not be negative, got {noise_offset}; 0 switches it off")
        if not 0 <= drop_caption < 1:
            raise ValueError(f"drop_caption must lie in [0, 1), got {drop_caption}")
        if caption is not None:
            try:
                model.check_prompt(caption)
            except ValueError as error:
                raise ValueError(f"caption: {error}") from None
        self.model, self.palette, self.adapter = model, palette, adapter
        self.paint, self.caption, self.crop, self.flip = paint, caption, crop, flip
        self.bucketing, self.upscale = bucketing, upscale
        self.drop_caption, self.noise_offset = drop_caption, noise_offset
        self.objective = model.objective(times, min_snr_gamma)
        if gradient_checkpointing:
            model.checkpoint_activations()
        self._embeddings: dict[str, Tensor] = {}

    def view(self, split: Split, training: bool) -> Latents:
        moments, factor = self._encode(split), self.model.codec.factor
        captions = [self.caption if self.caption is not None else split[i]["caption"] for i in range(len(split))]
        return Latents(
            moments,
            captions,
            split.names,
            crop=[(high // factor, wide // factor) for high, wide in self.buckets(split)],
            times=self.objective.times,
            visits=None if training else self.fit.validation_visits,
            drop_caption=self.drop_caption,
            noise_offset=self.noise_offset,
            seed=self.seed,
        )

    def buckets(self, split: Split) -> list[Any]:
        """The rectangle (high, wide) in pixels that is cut out of each picture."""
        if not self.bucketing:  # without a look at any file
            return [(self.crop, self.crop)] * len(split)
        return [self._bucket(*split.source.shape(name)).cut for name in split.names]

    def shown(self, item: dict[str, Any]) -> Tensor:
        return super().shown(item) if self.paint else self._picture(item)

    def check_target(self, continuous: bool, per_image: bool = False) -> None:
        """Paints either; a class of a whole picture cannot be painted, but its picture can be learnt."""
        super().check_target(False, per_image and self.paint)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        return self._losses(batch["latent"], batch["noise"], batch["time"], self._condition(batch["caption"]))

    def rehearse(self, split: Split, count: int) -> Tensor:
        high, wide = max(self.buckets(split), key=math.prod)
        factor = self.model.codec.factor
        latent = torch.zeros(count, self.model.codec.channels, high // factor, wide // factor)
        with torch.set_grad_enabled("text" in self.groups):
            condition = self.model.embed_blank(count)
        return self._losses(latent, latent, self.objective.times.at(0.5).expand(count), condition).mean()

    def _losses(self, latent: Tensor, noise: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        noisy = self.objective.add_noise(latent, noise, time)
        predicted = self.model.denoise(noisy, time, condition)
        error = (predicted.float() - self.objective.target(latent, noise, time)).square().mean(dim=(1, 2, 3))
        return error * self.objective.weight(time) if self.training else error

    def save(self, folder: Path) -> list[Path]:
        if self.adapter is None:
            self.model.save(folder)
            return [folder]
        return [lora.save(self.model.parts(), folder, self.adapter.name)]

    def load(self, folder: Path) -> None:
        """Puts back what ``save`` wrote."""
        if self.adapter is None:
            self.model.load_state_dict(type(self.model).load(folder).state_dict())
            return
        lora.detach(self.model.parts())
        lora.load(self.model.parts(), folder, self.adapter.name)

    def _encode(self, split: Split) -> list[tuple[Tensor, Tensor]]:
        at_once = max(1, ENCODED // self.crop**2)
        return encoded(self.model.codec, split, self._picture, at_once, self.flip, self.device)

    def _picture(self, item: dict[str, Any]) -> Tensor:
        """What is to be learnt of a sample, [3, H, W] in [0, 1], large enough for what is cut out of it."""
        if self.paint:
            assert self.palette is not None
            picture = self.palette.paint(item["target"][None])[0]
        else:
            picture = item["image"].expand(3, -1, -1)
        resized, cut = self._bucket(*picture.shape[1:])
        if resized != tuple(picture.shape[1:]):
            picture = interpolate(picture[None], resized, mode="bilinear", antialias=True)[0]
        picture = pad_to(picture, *cut)
        if not self.bucketing:
            return pad_to_multiple(picture, self.model.multiple)
        height, width = (side - side % self.model.codec.factor for side in picture.shape[1:])
        return picture[:, :height, :width]  # loses a few pixels rather than learn mirrored ones

    def _bucket(self, height: int, width: int) -> Bucket:
        if not self.bucketing:
            return Bucket((height, width), (self.crop, self.crop))
        return bucket(height, width, self.crop, self.model.multiple, self.upscale)

    def _condition(self, captions: list[str]) -> Tensor:
        if "text" in self.groups:
            return self.model.embed(captions)
        unread = sorted({caption for caption in captions if caption not in self._embeddings})
        if unread:  # a frozen text encoder reads every caption once
            with torch.no_grad():
                # on the CPU: one of FLUX takes megabytes, and there may be as many as pictures
                self._embeddings.update(zip(unread, self.model.embed(unread).cpu(), strict=True))
        return torch.stack([self._embeddings[caption] for caption in captions]).to(self.device)
