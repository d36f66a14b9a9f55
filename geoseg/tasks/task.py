"""What every training task shares: how long to train, with which optimizer, and what must never go wrong silently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import Dataset

from geoseg.data.module import Split
from geoseg.randomness import key
from geoseg.tasks.autocast import ExactAttention, slow_attention


@dataclass(frozen=True)
class Fit:
    """How long and in what portions a task is trained.

    Attributes:
        epochs: times that every training sample is visited, times ``repeats``.
        steps: times that the optimizer moves, whatever ``epochs`` says, so that trainings on few and on many samples
            are equally long; None leaves it to ``epochs``.
        batch_size: samples per step, of all processes together where there are several.
        repeats: visits per sample and epoch (kohya's folder number).
        accumulate: steps whose gradients are added before the optimizer moves.
        clip: largest gradient norm, or null.
        validate_every: epochs between validations; 0 validates only at the end.
        validation_visits: fixed noises and timesteps, or fixed crops, per validation sample.
        patience: validations in a row without a lower loss after which the training ends; the weights of the lowest
            one are then what is kept, however it ends. None trains to the end and keeps the last.
    """

    epochs: int = 50
    steps: int | None = None
    batch_size: int = 1
    repeats: int = 1
    accumulate: int = 1
    clip: float | None = 1.0
    validate_every: int = 10
    validation_visits: int = 8
    patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "repeats", "accumulate", "validation_visits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be 1 or more, or null where epochs decides; got {self.steps}")
        if self.patience is not None and (self.patience < 1 or not self.validate_every):
            raise ValueError(
                f"patience counts validations: 1 or more, with validate_every of 1 or more; got "
                f"patience={self.patience}, validate_every={self.validate_every}"
            )
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip must be above 0, or null for no clipping; got {self.clip}")


class TrainingDiverged(RuntimeError):
    """The loss is not a number any more; the message names step and samples."""


class Task(pl.LightningModule):
    """A training task: what is learnt, from what view of the data, by what loss.

    A concrete task says ``view``, ``loss`` and ``save``; this class steps, logs and stops.

    Args:
        groups: parameters to train by group name, such as {"unet": [...], "text": [...]}.
        fit: length and portions.
        lr: learning rate, one number or one per group; a group at 0 is not trained.
        optimizer: called with a list of {"params", "lr", "name"}.
        schedule: called with (optimizer, total steps).
        seed: decides noise, crops and order together with step and sample.
        ema: decay of the running average of the weights that is kept and saved, or None.
    """

    strict_loading = False  # checkpoints hold only what is trained

    def __init__(
        self,
        groups: Mapping[str, Sequence[nn.Parameter]],
        fit: Fit,
        lr: float | Mapping[str, float],
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        schedule: Callable[..., torch.optim.lr_scheduler.LRScheduler],
        seed: int,
        ema: float | None = None,
    ) -> None:
        super().__init__()
        rates = dict(lr) if isinstance(lr, Mapping) else dict.fromkeys(groups, float(lr))
        if set(rates) != set(groups):
            raise ValueError(f"lr names the groups {sorted(rates)}, this model trains {sorted(groups)}")
        negative = {name: rate for name, rate in rates.items() if rate < 0}
        if negative:
            raise ValueError(f"a learning rate must not be negative, got {negative}; 0 leaves a group untrained")
        if not any(rates.values()):
            raise ValueError("every learning rate is 0, so nothing would be trained; use task=null to train nothing")
        if ema is not None and not 0 < ema < 1:
            raise ValueError(f"ema must lie between 0 and 1, or be null; got {ema}")
        self.groups = {name: list(params) for name, params in groups.items() if rates[name] > 0}
        for name, params in groups.items():
            for parameter in params:
                parameter.requires_grad_(rates[name] > 0)
        self.fit, self.rates, self.seed, self.ema = fit, rates, seed, ema
        self.losses: Tensor | None = None  # [B], of the latest batch
        self.told: dict[str, Tensor] = {}  # numbers about the latest batch that are logged, its loss first
        self._optimizer, self._schedule = optimizer, schedule

    def view(self, split: Split, training: bool) -> Dataset[Any]:
        """The split as this task needs it; item (i, visit) is a pure function of seed, sample and visit."""
        raise NotImplementedError

    def check_target(self, continuous: bool, per_image: bool = False) -> None:
        """Looks whether this can be learnt from: class indices, or shares of two classes where ``continuous``.

        Args:
            continuous: shares and no class indices.
            per_image: one class for a whole picture.

        Raises:
            ValueError: it cannot.
        """
        if continuous:
            raise ValueError(
                "the data set has mattes, and this task learns classes; methods that learn mattes are "
                "mask_diffusion_matte and unet_matte"
            )
        if per_image:
            raise ValueError(
                "the data set has one class per image, and this task learns one per pixel; methods that learn classes "
                "of images are vit, vit_lora and vit_scratch"
            )

    def buckets(self, split: Split) -> list[Any]:
        """Which samples may share a batch, known without reading any: those of one bucket."""
        return [None] * len(split)

    def shown(self, item: dict[str, Any]) -> Tensor:
        """The picture of a sample that pictures are drawn from while training, [C, H, W] in [0, 1]."""
        image: Tensor = item["image"]
        return image

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """The loss of every sample, [B]."""
        raise NotImplementedError

    def save(self, folder: Path) -> list[Path]:
        """Writes what was trained and names the files."""
        raise NotImplementedError

    def load(self, folder: Path) -> None:
        """Puts back what ``save`` wrote."""
        raise NotImplementedError

    def on_train_start(self) -> None:
        """Frozen models arrive in eval mode; dropout and gradient checkpointing need the other one."""
        self.train()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Dropout and whatever else draws from the global generator depend on seed and step, and on the process."""
        others = [self.trainer.global_rank] if self.trainer.global_rank else []
        torch.manual_seed(key(self.seed, "step", batch_idx, *others))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.told = {}
        with ExactAttention() if slow_attention(self, self.device) else nullcontext():
            losses = self.loss(batch)
        self.losses = losses.detach()
        loss = _mean(losses, batch)
        self.told = {"train/loss": loss.detach(), **self.told}
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._validated(self.loss(batch), batch)

    def _validated(self, losses: Tensor, batch: Mapping[str, Any]) -> None:
        """Logs the losses of a batch of validation samples."""
        size = int(batch["size"][0]) if "size" in batch else len(losses)
        self.log("val/loss", _mean(losses, batch), batch_size=size, sync_dist=True)

    def check(self, batches: int) -> None:
        """Looks whether the schedule fits a training of so many batches, before anything is started.

        Raises:
            ValueError: what the schedule said.
        """
        stand_in = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        self._schedule(stand_in, -(-batches // self.fit.accumulate))

    def optimizer(self) -> torch.optim.Optimizer:
        """A new optimizer for the groups that are trained."""
        return self._optimizer(
            [{"params": params, "lr": float(self.rates[name]), "name": name} for name, params in self.groups.items()]
        )

    def rehearse(self, split: Split, count: int) -> Tensor | None:
        """The loss of ``count`` of a split's largest samples without content, for ``geoseg.memory``; None: unknown."""
        return None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer()
        schedule = self._schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that the optimizer moves, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep = self.kept()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in keep}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Looks whether the checkpoint is one of this training.

        Raises:
            ValueError: it holds other weights than are trained.
        """
        wrong = sorted(set(checkpoint["state_dict"]) ^ self.kept())
        if wrong:
            raise ValueError(
                f"the checkpoint and this training differ in {len(wrong)} tensors, such as {wrong[0]}; other code or "
                "other libraries made it: force=true starts anew"
            )

    def kept(self) -> set[str]:
        """What a checkpoint holds: trained weights, and what layers count, such as the means of a BatchNorm."""
        frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        return set(self.state_dict()) - frozen


def _mean(losses: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Of the losses of a batch; of a process's part of one, that whose mean over the processes it is."""
    return (losses * batch["share"].to(losses.dtype)).sum() if "share" in batch else losses.mean()
