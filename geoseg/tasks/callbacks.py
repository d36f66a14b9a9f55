"""What watches a training: its progress, its rates, and the moment it goes wrong."""

from __future__ import annotations

import logging
import math
import time
from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from geoseg import progress
from geoseg.tasks.task import Task, TrainingDiverged

log = logging.getLogger("geoseg")

STREAK = 5
"""Steps in a row without a number that stop a training: one may be bad luck, so many are not."""


def largest(trainer: pl.Trainer, *numbers: float) -> list[float]:
    """The largest of each number over all processes of a training, so that all of them decide alike."""
    if trainer.world_size == 1:
        return list(numbers)
    own = torch.tensor(numbers, dtype=torch.float32, device=trainer.strategy.root_device)
    found: list[float] = trainer.strategy.reduce(own, reduce_op="max").tolist()
    return found


class Watch(pl.Callback):
    """Logs loss, learning rates, gradient norm and samples per second, moves the bar, and keeps out what is no number.

    Loggers are told directly: Lightning's own way, ``log``, takes a tenth of a small network's step.

    Losses and gradients are looked at before the optimizer moves. A step where they are no numbers is left out and
    counted; ``STREAK`` of them in a row stop the training, and its weights are then the last good ones.

    Attributes:
        skipped: steps that were left out.
    """

    def __init__(self) -> None:
        self.skipped = self._streak = 0
        self._names: list[str] = []
        self._seen: list[tuple[list[str], Tensor]] = []  # names and losses since the optimizer moved
        self._rates: dict[str, float] = {}
        self._norm: Tensor | None = None
        self._started = 0.0
        self._samples = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        progress.expect("training", trainer.num_training_batches, unit="step")
        if done := trainer.fit_loop.total_batch_idx + 1:
            progress.advance("training", done)
        self._started = time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._names = list(batch["name"])
        # the rates of this step; when it has ended, the schedule has moved on. Prodigy multiplies them by what it found
        groups = trainer.optimizers[0].param_groups
        self._rates = {f"lr/{group['name']}": float(group["lr"] * group.get("d", 1.0)) for group in groups}
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._seen = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        assert isinstance(pl_module, Task)
        assert pl_module.losses is not None
        self._seen.append((self._names, pl_module.losses))  # ``loss`` itself is scaled where precision is mixed

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        losses = torch.cat([losses for _, losses in self._seen])
        # where precision is mixed, gradients overflow now and then and the scaler leaves out that step by itself
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        bad = not torch.isfinite(losses if scaled else torch.cat([losses, norm[None]])).all()
        if largest(trainer, bool(bad))[0]:
            seen = self._seen_by_all(trainer)
            names = list(dict.fromkeys(name for name, _ in seen))
            wrong = list(dict.fromkeys(name for name, loss in seen if not math.isfinite(loss)))
            what = (
                f"loss became {sum(loss for _, loss in seen) / len(seen)}"
                if wrong
                else f"gradient became {float(norm)}"
            )
            what = f"the {what} at step {trainer.global_step} on {', '.join(wrong or names)}"
            self.skipped, self._streak = self.skipped + 1, self._streak + 1
            if self._streak == STREAK:
                raise TrainingDiverged(
                    f"{what}, and so it was {STREAK} steps in a row; lower the learning rate, or look at these samples"
                )
            log.warning("%s; this step is left out", what)
            if not scaled:
                optimizer.zero_grad()  # to None, which optimizers pass over; a scaler leaves the step out by itself
        else:
            self._streak = 0
        self._norm = norm

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Task)
        self._samples += len(self._names) * trainer.world_size
        progress.advance("training", 1)
        if batch_idx % 10 == 0:
            progress.note("training", f"loss {float(pl_module.told['train/loss']):.4f}")
        done, step = batch_idx + 1, trainer.global_step - 1
        if done % trainer.accumulate_grad_batches and done < trainer.num_training_batches:
            return  # gradients are being added up
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        told = pl_module.told
        if trainer.world_size > 1:
            mean = partial(trainer.strategy.reduce, reduce_op="mean")
            told = {name: cast(Tensor, mean(value)) for name, value in told.items()}
        assert self._norm is not None
        numbers = {name: float(value) for name, value in {**told, "train/grad_norm": self._norm}.items()}
        numbers |= {**self._rates, "train/samples_per_s": self._samples / (time.perf_counter() - self._started)}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step)

    def _seen_by_all(self, trainer: pl.Trainer) -> list[tuple[str, float]]:
        """Names and losses since the optimizer moved, of all processes."""
        own = [pair for names, losses in self._seen for pair in zip(names, losses.tolist(), strict=True)]
        if trainer.world_size == 1:
            return own
        every: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(every, own)
        return [pair for pairs in every for pair in pairs]

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "streak": self._streak}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self._streak = state_dict["skipped"], state_dict["streak"]


class Average(pl.Callback):
    """Keeps a running average of what is trained and puts it in place at the end of training and for validation.

    Args:
        decay: share of the old average that a step keeps; within the first steps less, so that a short run does not
            end near its initial weights.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        if not self.average:
            self.average = {name: p.detach().clone() for name, p in pl_module.trainable().items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Task)
        step = trainer.global_step
        keep = min(self.decay, (1 + step) / (10 + step))
        now = pl_module.trainable()
        torch._foreach_lerp_([self.average[name] for name in now], [p.detach() for p in now.values()], 1 - keep)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._own = self._swap(pl_module, self.average) if self.average else {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._own:
            self._swap(pl_module, self._own)
            self._own = {}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module, self.average)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average = state_dict["average"]

    @staticmethod
    @torch.no_grad()
    def _swap(pl_module: pl.LightningModule, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        assert isinstance(pl_module, Task)
        before = {}
        for name, parameter in pl_module.trainable().items():
            before[name] = parameter.detach().clone()
            parameter.copy_(weights[name])
        return before


class Patience(pl.Callback):
    """Ends a training that no longer gets better, and remembers the weights of its best validation.

    It stands before ``Average``, so that it sees the weights that were validated.

    Args:
        validations: in a row without a lower ``val/loss`` that are waited for.
    """

    def __init__(self, validations: int) -> None:
        self.validations = validations
        self.lowest = math.inf
        self.waited = 0
        self._best: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop(trainer)  # what was saved at the very end of its patience has none left

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        if trainer.state.fn != "fit":
            return
        loss = float(trainer.callback_metrics["val/loss"])
        self.waited += 1
        if loss < self.lowest:
            self.lowest, self.waited = loss, 0
            kept, state = pl_module.kept(), pl_module.state_dict()
            self._best = {name: value.detach().clone() for name, value in state.items() if name in kept}
        self._stop(trainer)

    def put_back(self, task: Task) -> None:
        """Puts the weights of the best validation in place; those that are there stay where none had a finite loss."""
        task.load_state_dict(self._best, strict=False)

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest, "waited": self.waited, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.lowest, self.waited, self._best = (state_dict[name] for name in ("lowest", "waited", "best"))

    def _stop(self, trainer: pl.Trainer) -> None:
        if self.waited >= self.validations:
            trainer.should_stop = True
