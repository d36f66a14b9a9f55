"""The mask diffusion task: teaching a diffusion model that sees a profile to draw its label map."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import max_pool2d
from torch.utils.data import Dataset

from geoseg import lora
from geoseg.crops import pad_to, pad_to_multiple, random_corner
from geoseg.data.module import Split
from geoseg.data.source import Source
from geoseg.diffusion.image_conditioned import ImageConditioned
from geoseg.diffusion.noise import multi_resolution
from geoseg.diffusion.objectives import Objective
from geoseg.lora import Plan
from geoseg.palette import without_gaps
from geoseg.randomness import stream
from geoseg.tasks.denoising import ENCODED, encoded
from geoseg.tasks.task import Task
from geoseg.types import ignored

FILE = "unet.safetensors"
"""What was trained of the denoising network itself; an adapter lies beside it in a file of its own."""

OWN_VISITS = 4
"""Noises and times per picture of the base's own data."""

log = logging.getLogger("geoseg")


class Pairs(Dataset[dict[str, Any]]):
    """Latents of profiles and painted label maps, encoded once, with noise and timestep looked up per visit.

    Item (index, visit) holds ``image``, ``latent`` and ``noise`` [4, h, w], ``time`` int64 [], ``labels`` [H, W] of the
    same square, int64 or float32 as targets are, and ``name``.

    Args:
        images: latents of every profile, [4, h, w], or [2, 4, h, w] with its mirror image.
        targets: the same of its painted label map.
        labels: every label map uint8 [H, W], or float32 where targets are continuous, ``factor`` times as large as its
            latent.
        names: sample ids.
        crop: side of the latent square that is cut out per visit.
        factor: pixels per latent cell and direction.
        timesteps: length of the noise schedule.
        visits: for validation, how many fixed timesteps are spread over the schedule; None draws them at random.
        noise_strength: see ``multi_resolution``; it falls with the time, to 0 where there is no noise.
        seed: key of all randomness.
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Tensor],
        labels: Sequence[Tensor],
        names: Sequence[str],
        crop: int,
        factor: int,
        timesteps: int,
        visits: int | None,
        noise_strength: float,
        seed: int,
    ) -> None:
        self.images, self.targets, self.labels, self.names = images, targets, labels, names
        self.crop, self.factor, self.timesteps, self.visits = crop, factor, timesteps, visits
        self.noise_strength, self.seed = noise_strength, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, where: tuple[int, int]) -> dict[str, Any]:
        index, visit = where
        phase = "train" if self.visits is None else "validation"
        generator = stream(self.seed, "mask diffusion", phase, index, visit)
        image, target, labels = self.images[index], self.targets[index], self.labels[index]
        if image.ndim == 4:  # the profile and its mirror image
            side = int(torch.randint(2, (), generator=generator))
            image, target, labels = image[side], target[side], labels.flip(-1) if side else labels
        top, left = random_corner(image.shape[-2], image.shape[-1], self.crop, generator)
        here = (..., slice(top, top + self.crop), slice(left, left + self.crop))
        if self.visits is None:
            time = torch.randint(self.timesteps, (), generator=generator)
        else:
            time = torch.tensor(int((visit + 0.5) / self.visits * self.timesteps))
        noise = torch.randn(target[here].shape, generator=generator)
        strength = self.noise_strength * float(time) / (self.timesteps - 1)
        kind = torch.float32 if labels.is_floating_point() else torch.int64
        pixels = [slice(self.factor * corner, self.factor * (corner + self.crop)) for corner in (top, left)]
        return {
            "image": image[here].float(),
            "latent": target[here].float(),
            "noise": multi_resolution(noise, strength, generator),
            "time": time,
            "labels": labels[..., pixels[0], pixels[1]].to(kind),
            "name": self.names[index],
        }


class MaskDiffusionTask(Task):
    """Trains an image-conditioned diffusion model to draw painted label maps.

    Args:
        model: the model; its autoencoder and text encoder stay frozen. What is trained of it says its ``finetune``.
        adapter: what is attached to ``model``, or None.
        crop: side of the training square in pixels, a multiple of what the model can halve.
        flip: also learn the mirror image of every profile.
        noise_strength: of multi-resolution noise at the noisiest time, annealed to 0; 0 is plain noise, Marigold's 0.9.
        criterion: None learns to denoise. A loss between logits [B, K, H, W] and labels [B, H, W], one number per
            sample, trains the whole way to them instead, in one step from the noisiest time without noise, through the
            frozen decoder (Martin Garcia et al. 2024, arXiv 2409.11355); predict with steps=1 and noise=false then.
        own: pictures of what the base was trained on, with captions: every validation also measures how well the
            network still denoises those that are held out (``val/own_loss``, before training ``val/own_loss/before``).
        gradient_checkpointing: computes activations anew in the backward pass; less memory, about a third slower.
        seed: key of all randomness.
        lr: learning rate, one number or one for each of "unet" and "conv_in"; what is not trained needs none.
        task: what every task needs, see ``Task``.
    """

    def __init__(
        self,
        model: ImageConditioned,
        adapter: Plan | None,
        seed: int,
        crop: int = 512,
        flip: bool = True,
        noise_strength: float = 0.0,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        own: Source | None = None,
        gradient_checkpointing: bool = False,
        *,
        lr: float | Mapping[str, float],
        **task: Any,
    ) -> None:
        groups = model.groups()
        if isinstance(lr, Mapping):
            lr = {name: rate for name, rate in lr.items() if name in groups or name != "unet"}
        super().__init__(groups=groups, seed=seed, lr=lr, **task)
        if crop % model.multiple:
            raise ValueError(f"crop must be a multiple of {model.multiple} for this model, got {crop}")
        if not 0 <= noise_strength <= 1:
            raise ValueError(f"noise_strength must lie between 0 and 1, got {noise_strength}; 0 is plain noise")
        if noise_strength and criterion is not None:
            raise ValueError(
                f"noise_strength={noise_strength}: with a criterion the network answers from no noise; set it to 0"
            )
        if own is not None and not any(own.split(name) == "val" for name in own.names):
            raise ValueError(
                f"own: {own.title} holds no picture out, and those that the base was trained on do not show what it "
                "forgets; give it pictures for validation, such as own.val=64"
            )
        self.objective = model.objective
        if criterion is not None and self.objective.prediction_type == "epsilon":
            raise ValueError(
                "criterion: one step from noise needs a network that predicts the velocity; set "
                "prediction_type=v_prediction of the model, or criterion=null"
            )
        if criterion is not None and model.palette.softness is None:
            raise ValueError(
                "criterion: a loss on the label map needs classes, and softness=null of the model reads mixtures of "
                "two colours; set criterion=null, or give the model a softness"
            )
        self.model, self.adapter, self.criterion, self.own = model, adapter, criterion, own
        self.crop, self.flip, self.noise_strength = crop, flip, noise_strength
        self._own_before: float | None = None
        self._own_data: tuple[Tensor, Tensor] | None = None
        if gradient_checkpointing:
            model.base.unet.enable_gradient_checkpointing()

    def view(self, split: Split, training: bool) -> Pairs:
        codec = self.model.codec
        images = self._latents(split, self._profile, training)
        # a criterion takes the label map as it is, and no latent of it
        targets = self._latents(split, self._painted, training) if self.criterion is None else images
        return Pairs(
            images,
            targets,
            [self._labels(split[i]["target"]) for i in range(len(split))],
            split.names,
            crop=self.crop // codec.factor,
            factor=codec.factor,
            timesteps=self.objective.num_times,
            visits=None if training else self.fit.validation_visits,
            noise_strength=self.noise_strength,
            seed=self.seed,
        )

    def check_target(self, continuous: bool, per_image: bool = False) -> None:
        super().check_target(False, per_image)
        if continuous and self.model.palette.softness is not None:
            raise ValueError(
                "the data set has mattes, and this model reads colours as classes; use method=mask_diffusion_matte, or "
                "softness=null of the model"
            )

    def loss(self, batch: dict[str, Any]) -> Tensor:
        image, labels, time = batch["image"], batch["labels"], batch["time"]
        if self.criterion is not None:
            return self.criterion(self._in_one_step(image), labels)
        latent, noise = batch["latent"], batch["noise"]
        answer = self.model.denoise(image, self.objective.add_noise(latent, noise, time), time)
        error = (answer - self.objective.target(latent, noise, time)).square()
        # a cell counts where all of its pixels do
        counts = 1 - max_pool2d(ignored(labels).to(error.dtype)[:, None], self.model.codec.factor)  # [B, 1, h, w]
        return (error * counts).sum((1, 2, 3)) / (counts.sum((1, 2, 3)) * error.shape[1]).clamp(min=1)

    def rehearse(self, split: Split, count: int) -> Tensor:
        cells = self.crop // self.model.codec.factor
        latent = torch.zeros(count, self.model.codec.channels, cells, cells)
        labels = torch.zeros(count, self.crop, self.crop, dtype=torch.int64)
        time = torch.zeros(count, dtype=torch.int64)
        return self.loss({"image": latent, "latent": latent, "noise": latent, "labels": labels, "time": time}).mean()

    def on_train_start(self) -> None:
        if self.own is not None and self._own_before is None:
            self._own_before = self._own_loss(trained=False)
        super().on_train_start()

    def on_validation_epoch_end(self) -> None:
        if self.own is not None:
            self.log("val/own_loss", self._own_loss(trained=True), sync_dist=True)
            if self._own_before is not None:
                self.log("val/own_loss/before", self._own_before, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["own_before"] = self._own_before

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._own_before = checkpoint["own_before"]

    def save(self, folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        files = [] if self.adapter is None else [lora.save(self.model.parts(), folder, self.adapter.name)]
        path, part = folder / FILE, folder / f".{FILE}.part"
        try:
            save_file({name: p.detach().cpu().contiguous() for name, p in self._weights().items()}, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return [*files, path]

    def load(self, folder: Path) -> None:
        """Puts back what ``save`` wrote.

        Raises:
            ValueError: a file is missing, or holds other weights than this model trains.
        """
        if not (folder / FILE).is_file():
            raise ValueError(
                f"{folder} holds no {FILE}, without which its adapter is of no use; train anew: force=true"
            )
        saved, wanted = load_file(folder / FILE), self._weights()
        wrong = sorted(saved.keys() ^ wanted.keys()) or [n for n, p in wanted.items() if saved[n].shape != p.shape]
        if wrong:
            raise ValueError(
                f"{folder / FILE} and this model differ in {len(wrong)} tensors, such as {wrong[0]}; other code or "
                "another base made it: force=true trains anew"
            )
        if self.adapter is not None:
            lora.detach(self.model.parts())
            lora.load(self.model.parts(), folder, self.adapter.name)
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(saved[name])

    def _weights(self) -> dict[str, Tensor]:
        """What is trained of the network itself, by name."""
        # an adapter of whatever kind is all of "unet", and lies in a file of its own
        groups = self.groups if self.adapter is None else {"conv_in": self.groups["conv_in"]}
        trained = {id(parameter) for parameters in groups.values() for parameter in parameters}
        return {name: p for name, p in self.model.unet.named_parameters() if id(p) in trained}

    def _in_one_step(self, image: Tensor) -> Tensor:
        """Logits [B, K, H, W] that one step from the noisiest time without noise comes to."""
        time = torch.full((len(image),), self.objective.num_times - 1, device=image.device)
        nothing = torch.zeros_like(image)
        answer = self.model.denoise(image, nothing, time)
        latent, _ = self.objective.estimates(nothing, answer, time)
        return self.model.palette.logits(self.model.codec.decode_for_loss(latent))

    def _latents(self, split: Split, picture: Callable[[dict[str, Any]], Tensor], training: bool) -> list[Tensor]:
        """Latents of what is to be seen of every sample, with those of its mirror image where these are learnt too."""
        at_once = max(1, ENCODED // self.crop**2)
        mirrored = self.flip and training
        return [mean for mean, _ in encoded(self.model.codec, split, picture, at_once, mirrored, self.device)]

    def _labels(self, target: Tensor) -> Tensor:
        """A target [H, W] as it is kept, an eighth of the memory where it holds classes."""
        fitted = self._fitted(target[None])[0]
        return fitted if fitted.is_floating_point() else fitted.byte()

    def _profile(self, item: dict[str, Any]) -> Tensor:
        return self._fitted(item["image"].expand(3, -1, -1))

    def _painted(self, item: dict[str, Any]) -> Tensor:
        return self._fitted(self.model.palette.paint(without_gaps(item["target"])[None])[0])

    def _fitted(self, picture: Tensor) -> Tensor:
        """[C, H, W], large enough for what is cut out of it."""
        return pad_to_multiple(pad_to(picture, self.crop, self.crop), self.model.multiple)

    @torch.no_grad()
    def _own_loss(self, trained: bool) -> float:
        """Mean squared error of the noise that the network sees in the base's own pictures, at fixed noises and times.

        Both halves of the widened convolution read the noisy picture: the network that nothing was changed in answers
        as the base does.

        Args:
            trained: whether the answer is what training makes of it, or still the base's.
        """
        base = self.model.base
        objective = Objective.of(base.scheduler.config).to(self.device)
        learnt = self.objective if trained else objective
        meaning = Objective(objective.alphas_cumprod, learnt.prediction_type).to(self.device)
        if self._own_data is None:
            self._own_data = self._own_latents()
        latents, conditions = (part.to(self.device) for part in self._own_data)
        training = base.unet.training
        base.unet.eval()
        errors = []
        for visit in range(OWN_VISITS):
            time = torch.tensor([int((visit + 0.5) / OWN_VISITS * objective.num_times)], device=self.device)
            for i, (latent, condition) in enumerate(zip(latents.split(8), conditions.split(8), strict=True)):
                generator = stream(0, "own data", visit, i)
                noise = torch.randn(latent.shape, generator=generator).to(latent)
                times = time.expand(len(latent))
                noisy = objective.add_noise(latent, noise, times)
                answer = base.denoise(torch.cat([noisy, noisy], 1), times, condition)
                errors.append((meaning.estimates(noisy, answer, times)[1] - noise).square().mean((1, 2, 3)))
        base.unet.train(training)
        return float(torch.cat(errors).mean())

    def _own_latents(self) -> tuple[Tensor, Tensor]:
        """Latents [N, 4, h, w] and conditions [N, L, D] of the base's own pictures that are held out."""
        assert self.own is not None
        split = Split(self.own, [name for name in self.own.names if self.own.split(name) == "val"])
        shown = self._latents(split, self._profile, training=False)
        cells = self.crop // self.model.codec.factor
        conditions = self.model.base.embed([split[i]["caption"] for i in range(len(split))])
        return torch.stack([latent[..., :cells, :cells] for latent in shown]).float(), conditions.float().cpu()
