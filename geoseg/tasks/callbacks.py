"""What watches a training: its progress, its rates, and the moment it goes wrong."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from geoseg import progress
from geoseg.tasks.task import Task, TrainingDiverged


class Watch(pl.Callback):
    """Logs learning rates, gradient norm and samples per second, moves the bar, and stops at a loss that is no number.

    The loss is looked at before the optimizer moves, so the weights at the stop are the last good ones.
    """

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self._names: list[str] = []
        self._started = 0.0
        self._samples = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        progress.expect("training", trainer.num_training_batches, unit="step")
        self._started = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self._names = list(batch["name"])

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert self._loss is not None
        if not torch.isfinite(self._loss):
            raise TrainingDiverged(
                f"the loss became {float(self._loss)} at step {trainer.global_step} on {', '.join(self._names)}; "
                "the weights before that step are kept. Lower the learning rate, or look at these samples"
            )
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = torch._foreach_norm(gradients)
        pl_module.log("train/grad_norm", torch.linalg.vector_norm(torch.stack(norms)))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += len(self._names)
        speed = self._samples / max(1e-9, time.perf_counter() - self._started)
        rates = {f"lr/{group['name']}": float(group["lr"]) for group in trainer.optimizers[0].param_groups}
        pl_module.log_dict({**rates, "train/samples_per_s": speed})
        progress.advance("training", 1)
        if self._loss is not None and batch_idx % 10 == 0:
            progress.note("training", f"loss {float(self._loss):.4f}")


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
        torch._foreach_lerp_(
            [self.average[name] for name in now], [p.detach() for p in now.values()], 1 - keep
        )

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
