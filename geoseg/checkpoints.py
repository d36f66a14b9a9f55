"""Checkpoints of a training, so that one that was interrupted goes on as if nothing had happened."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytorch_lightning as pl

from geoseg.config import check_type
from geoseg.loggers import JsonLines
from geoseg.tasks.callbacks import largest

log = logging.getLogger("geoseg")

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
"""SLURM's warning ahead of a time limit or a preemption; the second is what submitit asks for."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, *WARNINGS)
"""What asks a training to stop: a scheduler, Ctrl-C, or a warning."""

STEP = re.compile(r"step_(\d+)-([0-9a-f]{16})\.ckpt")


def check_save(settings: Mapping[str, Any]) -> None:
    """Looks at the settings of ``Checkpoints`` before any work.

    Raises:
        ValueError: an impossible value, or another key than ``minutes`` and ``keep``.
    """
    if not isinstance(settings, Mapping) or set(settings) != {"minutes", "keep"}:
        given = "null" if settings is None else settings
        raise ValueError(f"save={given}: minutes and keep are wanted; save.minutes=1e9 saves only when asked to stop")
    check_type("save.minutes", settings["minutes"], float)
    check_type("save.keep", settings["keep"], int)
    if settings["minutes"] < 0:
        raise ValueError(f"save.minutes={settings['minutes']}: 0 or more is wanted; 0 saves after every step")
    if settings["keep"] < 1:
        raise ValueError(f"save.keep={settings['keep']}: at least one checkpoint has to be kept")


class Interrupted(Exception):
    """A training was asked to stop, and did so after saving itself.

    Attributes:
        signum: the signal that asked.
        what: what became of the training.
    """

    def __init__(self, signum: int, what: str) -> None:
        super().__init__(signum, what)  # as it was made, so that it can come from another process
        self.signum, self.what = signum, what

    def __str__(self) -> str:
        return f"{self.what} ({signal.Signals(self.signum).name})"


class Pruned(Exception):
    """A training was given up for better ones of the same search, after saving itself."""


class Saved(NamedTuple):
    """A checkpoint on disk.

    Attributes:
        path: its file, ``step_<step>-<start of the content's SHA-256>.ckpt``.
        step: optimizer steps taken.
    """

    path: Path
    step: int


class Checkpoints(pl.Callback):
    """Saves a training every few minutes and when it is asked to stop; has to be the last of the callbacks.

    A checkpoint is taken after an optimizer step, never within accumulated gradients, and where a validation is due
    after that: what goes on from it does exactly what this training would have done. Of several processes all decide
    alike, and the first one writes.

    Args:
        folder: where checkpoints are written.
        lines: the training's log, which goes on from a checkpoint as well.
        minutes: time between two of them; an interruption without warning costs at most as much.
        keep: how many of the latest stay; beside them the one with the lowest ``val/loss`` so far, of the validations
            that do not fall within accumulated gradients.
    """

    def __init__(self, folder: Path, lines: JsonLines, minutes: float = 10.0, keep: int = 2) -> None:
        self.folder, self.lines, self.minutes, self.keep = folder, lines, minutes, keep
        self.asked: int | None = None  # the signal that asked to stop
        self.hopeless = ""  # why the training is given up
        self.best: dict[str, Any] = {}
        self._before = 0.0  # seconds of trainings that this one goes on from
        self._started = self._latest = time.monotonic()
        self._step = -1
        self._postponed = False
        self._alone = True
        self._handlers: dict[int, Any] = {}

    @property
    def seconds(self) -> float:
        """How long the training has taken, that before an interruption included."""
        return self._before + time.monotonic() - self._started

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = self._latest = time.monotonic()
        self._step = trainer.global_step
        self._alone = trainer.world_size == 1
        if threading.current_thread() is threading.main_thread():  # signals go nowhere else
            self._handlers = {signum: signal.signal(signum, self._ask) for signum in SIGNALS}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._release()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._step == trainer.global_step and self._latest > self._started:  # it has been saved
            [asked] = largest(trainer, self.asked or 0)  # since then, whichever process was asked
            self.asked = int(asked) or None
            self.stop_if_asked(self._step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done % trainer.accumulate_grad_batches or done == trainer.num_training_batches:
            return  # gradients are being added up, or all is done
        # as soon as one of the processes is asked, or finds it due
        due = any(largest(trainer, self.asked or 0, time.monotonic() - self._latest >= 60 * self.minutes))
        due = due or bool(self.hopeless)
        validated = bool(trainer.num_val_batches) and done % int(trainer.val_check_batch or done) == 0
        self._postponed = due and validated  # what is saved before a validation would lose it
        if due and not validated:
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        done = trainer.fit_loop.total_batch_idx + 1
        if trainer.state.fn != "fit" or done == trainer.num_training_batches or done % trainer.accumulate_grad_batches:
            return
        loss = trainer.callback_metrics.get("val/loss")
        better = loss is not None and float(loss) < self.best.get("val/loss", float("inf"))
        if better:
            assert loss is not None
            self.best = {"step": trainer.global_step, "val/loss": float(loss)}
        if self._postponed or better or self.hopeless:
            self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "best": self.best, "lines": self.lines.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before, self.best = state_dict["seconds"], state_dict["best"]
        self.lines.rewind(state_dict["lines"])

    def stop_if_asked(self, step: int) -> None:
        """Ends the training here where a signal asked for it, or where it is given up.

        Raises:
            Interrupted: a signal did.
            Pruned: it is given up.
        """
        if self.asked is not None:
            raise Interrupted(self.asked, f"stopped after step {step} as asked; the same command goes on from there")
        if self.hopeless:
            raise Pruned(self.hopeless)

    def latest(self) -> Saved | None:
        """The newest checkpoint that is whole, or None; those that are not are told and left behind."""
        for path, step in sorted(self._all(), key=lambda saved: -saved.step):
            if STEP.fullmatch(path.name)[2] == _digest(path):  # type: ignore[index]
                return Saved(path, step)
            log.warning("%s is damaged and not used; the training goes on from the checkpoint before it", path)
        return None

    def clear(self, best: bool = False) -> None:
        """Removes all checkpoints; ``best`` spares the one with the lowest validation loss."""
        for path, step in self._all():
            if not (best and step == self.best.get("step")):
                path.unlink()

    def _save(self, trainer: pl.Trainer) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        step = self._step = trainer.global_step
        part = self.folder / f".step_{step:08d}.part"
        try:
            trainer.save_checkpoint(part, weights_only=False)  # all take part, and the first writes
            if trainer.is_global_zero:
                self._keep(part, step)
        finally:
            if trainer.is_global_zero:
                part.unlink(missing_ok=True)
        trainer.strategy.barrier()  # nobody goes on, or ends, before it is whole
        self._postponed, self._latest = False, time.monotonic()

    def _keep(self, part: Path, step: int) -> None:
        """Makes a finished file the newest checkpoint, and removes those that are not to be kept."""
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(self.folder / f"step_{step:08d}-{_digest(part)}.ckpt")
        # a damaged one that was passed over lies ahead, and must not stand in the place of a whole one
        steps = sorted({saved.step for saved in self._all() if saved.step <= step})[-self.keep :]
        for path, old in self._all():
            if old not in steps and old != self.best.get("step"):
                path.unlink()

    def _all(self) -> list[Saved]:
        found = self.folder.glob("step_*.ckpt") if self.folder.is_dir() else []
        names = ((path, STEP.fullmatch(path.name)) for path in found)
        return [Saved(path, int(match[1])) for path, match in names if match]

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self.asked is not None and signum == signal.SIGINT:
            self._release()
            raise KeyboardInterrupt  # whoever asks twice does not want to wait
        if self.asked not in WARNINGS:  # SIGTERM often comes on its heels, and must not hide it
            self.asked = signum
        if self._alone:  # else whoever started the processes says so
            log.warning("%s: stops after this step, once it is saved", signal.Signals(signum).name)

    def _release(self) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}


class Pruning(pl.Callback):
    """Has a training that is a trial of a search judged at every validation but the last; before ``Checkpoints``.

    Args:
        score: what is judged; nothing is where a validation does not give it.
        judge: given the score and the optimizer steps taken, whether to give the training up.
        checkpoints: what saves and ends it.
    """

    def __init__(self, score: str, judge: Callable[[float, int], bool], checkpoints: Checkpoints) -> None:
        self.score, self.judge, self.checkpoints = score, judge, checkpoints

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.score)
        if value is None or trainer.state.fn != "fit":
            return
        score, step = float(value), trainer.global_step
        if self.judge(score, step) and trainer.fit_loop.total_batch_idx + 1 < trainer.num_training_batches:
            self.checkpoints.hopeless = f"pruned after step {step}: other trials were better than {score:.4g} there"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
