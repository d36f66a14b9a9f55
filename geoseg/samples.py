"""Pictures of what a method makes of a few images while it is being trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from geoseg import progress
from geoseg.data.module import DataModule
from geoseg.figures import draw_samples
from geoseg.loggers import Relay, WandbLogger
from geoseg.randomness import stream
from geoseg.tasks.task import Task

log = logging.getLogger("geoseg")


class Samples(pl.Callback):
    """Draws what the method makes of a few images while it is being trained."""

    def __init__(
        self,
        predictor: Any,
        items: list[dict[str, Any]],
        every: int,
        per_epoch: int,
        folder: Path,
        data: DataModule,
        wandb: Sequence[WandbLogger | Relay],
    ) -> None:
        self.predictor, self.items, self.every, self.per_epoch = predictor, items, every, per_epoch
        self.folder, self.data, self.wandb = folder, data, wandb
        self.digits = 4

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs, done = (int(batches) // self.per_epoch for batches in (trainer.num_training_batches, _done(trainer)))
        self.digits = max(4, len(str(epochs)))  # so that names sort as epochs do, however many there are
        times = epochs // self.every - done // self.every
        if times:
            progress.expect("samples", times * len(self.items))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        epoch, step = divmod(batch_idx + 1, self.per_epoch)
        if step or epoch % self.every:
            return
        training = [(module, module.training) for module in pl_module.modules()]
        pl_module.eval()
        assert isinstance(pl_module, Task)
        image = torch.stack([pl_module.shown(item) for item in self.items]).to(pl_module.device)
        generators = [stream(0, "sample", item["name"]) for item in self.items]
        try:
            with progress.silent():  # its own bars would look like those of the test
                prediction = self.predictor.predict(image, generators)
        except OverflowError as error:  # what is being trained may yet come right
            log.warning("no sample pictures after epoch %d: %s", epoch, error)
            return
        finally:
            progress.advance("samples", len(self.items))
            for module, was in training:
                module.training = was
        palette = self.data.palette
        answer, labels = prediction.painted, None
        if palette is not None and not self.data.per_image:
            answer = palette.paint(prediction.labels) if answer is None else answer
            labels = palette.paint(torch.stack([item["target"] for item in self.items]))
        assert answer is not None
        path = draw_samples(
            image.cpu(), answer.float().cpu(), labels, self.folder / "samples" / f"epoch_{epoch:0{self.digits}d}.png"
        )
        for logger in self.wandb:
            logger.log_pictures("samples", [path])


def _done(trainer: pl.Trainer) -> int:
    """Batches before this start, where the training goes on."""
    return trainer.fit_loop.total_batch_idx + 1
