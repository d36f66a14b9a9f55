"""Fitting a task without the program around it."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from geoseg.data.module import DataModule
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.loggers import JsonLines
from geoseg.lora import LoRA
from geoseg.optim import adamw, constant
from geoseg.palette import Palette
from geoseg.tasks.callbacks import Watch
from geoseg.tasks.denoising import DenoisingTask
from geoseg.tasks.task import Fit, Task
from tests.tiny import tiny_latent_diffusion


def label_lora(
    palette: Palette | None,
    model: LatentDiffusion | None = None,
    seed: int = 0,
    epochs: int = 2,
    batch_size: int = 1,
    lr: Any = None,
    **options: Any,
) -> DenoisingTask:
    """The task of the main method around a tiny model with a fresh adapter of rank 4."""
    model = model or tiny_latent_diffusion()
    adapter = LoRA(rank=4, alpha=4)
    adapter.attach(model.parts())
    fit = {name: options.pop(name) for name in ("accumulate", "repeats", "validation_visits") if name in options}
    defaults = {"caption": "Tile", "crop": 16, "optimizer": functools.partial(adamw, weight_decay=0.0)}
    return DenoisingTask(
        model,
        palette,
        adapter,
        seed,
        fit=Fit(epochs=epochs, batch_size=batch_size, **fit),
        lr={"unet": 1e-3, "text": 1e-4} if lr is None else lr,
        **{"schedule": constant, **defaults, **options},
    )


def fit(
    task: Task,
    data: DataModule,
    folder: Path | None = None,
    callbacks: Sequence[pl.Callback] = (),
    watch: Watch | None = None,
    **more: Any,
) -> Task:
    """Trains as a run does; numbers go to ``folder/metrics.jsonl``."""
    data.prepare()
    steps = len(data.visits(task))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=task.fit.accumulate,
        gradient_clip_val=task.fit.clip,
        logger=[JsonLines(folder)] if folder is not None else False,
        log_every_n_steps=1,
        callbacks=[watch or Watch(), *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if len(data.val) else 0,
        **{"val_check_interval": steps, **more},
    )
    trainer.fit(task, datamodule=data)
    return task


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What a training logged."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
