"""Training: what of a method is learnt, under which identity, and how it comes about, in one process or in several."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch

from geoseg import memory, progress
from geoseg.assembly import Models, assembled
from geoseg.checkpoints import Checkpoints, Pruning, Saved
from geoseg.config import build, identity, own_packages, redact, weights_of
from geoseg.data.module import DataModule
from geoseg.data.profiles import natural
from geoseg.loggers import JsonLines, Relay, WandbLogger
from geoseg.places import locked
from geoseg.ranks import Rank, alone, beside, gpu_there, joined, on_gpu, processes_of, relay, train_together
from geoseg.record import made_by, stale, write_atomically
from geoseg.samples import Samples
from geoseg.tasks.callbacks import Average, Patience, Watch
from geoseg.tasks.task import Task, TrainingDiverged
from geoseg.tasks.tuning import Tuning

log = logging.getLogger("geoseg")

WHERE_TO_COMPUTE = ("accelerator", "devices", "strategy", "log_every_n_steps")
"""Settings of the trainer that decide no number but for the last digits: however many processes divide a batch, its
mean is the same sum in another order."""


def precision_of(trainer: Mapping[str, Any], gpu: bool | None = None) -> str:
    """The precision to compute in: what "auto" stands for on a machine, or what was asked for.

    Args:
        trainer: settings of the trainer.
        gpu: whether the machine that computes has a GPU; None where it is this one.

    Raises:
        ValueError: fp16 without a GPU, or no GPU where one is asked for.
    """
    precision = str(trainer["precision"])
    if gpu is not None and trainer["devices"] != 1:
        raise ValueError(f"trainer.devices={trainer['devices']}: a job in a queue sees the GPU that it is given; use 1")
    if on_gpu(trainer, gpu) and not gpu_there(gpu):
        if gpu is not None:
            raise ValueError(
                f"trainer.accelerator={trainer['accelerator']}, but its job gets no GPU; ask for one with "
                "hydra.launcher.gpus_per_node=1, or use trainer=auto"
            )
        raise ValueError(
            f"trainer.accelerator={trainer['accelerator']}, but torch sees no GPU here; use trainer=auto, or look why: "
            "no driver, a CPU build of torch, or CUDA_VISIBLE_DEVICES"
        )
    if precision == "auto":
        return "16-mixed" if on_gpu(trainer, gpu) else "32-true"
    if not on_gpu(trainer, gpu) and "16" in precision and "bf16" not in precision:
        raise ValueError(
            f"trainer.precision={precision} needs a GPU, and this run is on the CPU; "
            "use trainer=auto, or trainer.precision=32-true"
        )
    return precision


def weights_at(method: Mapping[str, Any], where: str) -> dict[str, dict[str, str]]:
    """As ``weights_of``; what is missing is told by its key in the configuration, with ``where`` before it.

    Raises:
        ValueError: a file or folder is not there.
    """
    try:
        return weights_of(method)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None


def base_of(
    settings: Mapping[str, Any],
    method: Mapping[str, Any],
    data: DataModule,
    hashes: Mapping[str, str],
    precision: str,
) -> dict[str, Any]:
    """What decides the numbers of a training and of a run alike, and so is part of the identities of both.

    Args:
        settings: the whole configuration, as plain containers.
        method: the method's part of it.
        data: a prepared data module.
        hashes: fingerprints of the method's checkpoints.
        precision: that to compute in.
    """
    return {
        "seed": settings["seed"],
        "model": method["model"],
        # what its checkpoints hold, whatever their folders are called
        "weights": {name: value for name, value in hashes.items() if name.startswith("model")},
        "palette": None if data.palette is None else data.palette.hex,
        # whatever was added, such as limit_test_batches
        **{name: value for name, value in settings["trainer"].items() if name not in WHERE_TO_COMPUTE},
        "precision": precision,  # never "auto", which means one thing here and another there
    }


def fit_id_of(base: Mapping[str, Any], method: Mapping[str, Any], data: DataModule) -> str:
    """The identity of what a method is trained to; ``base`` as ``base_of`` gives it."""
    fitted = {"adapter": method["adapter"], "task": method["task"]}
    return identity(base, fitted, data.fingerprint("train", "val"))


def quiet_trainer(where: Mapping[str, Any], precision: str, loggers: Sequence[Any], **more: Any) -> pl.Trainer:
    """A trainer that shows and saves nothing by itself, and divides no batch.

    Args:
        where: settings of the trainer, as ``alone`` or ``beside`` gives them.
        precision: that to compute in.
        loggers: where numbers go.
        more: what else a trainer takes.
    """
    return pl.Trainer(
        **{**where, "precision": precision},
        **more,
        logger=list(loggers),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )


@dataclass
class Training:
    """What one method is to learn on one data set, and how it comes to be learnt.

    Attributes:
        settings: the whole configuration, as plain containers.
        method: the method's part of it.
        data: a prepared data module.
        where: the method's key in the configuration, for error messages.
        fit_id: what is trained, or None where nothing is.
        precision: that to compute in.
        processes: how many train together.
        borrowed: it is that of another run, which ``force`` does not make anew.
        folder: where all that is trained lies.
    """

    settings: Mapping[str, Any]
    method: Mapping[str, Any]
    data: DataModule
    where: str
    fit_id: str | None
    precision: str
    processes: int
    borrowed: bool = False
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = Path(self.settings["runs"]) / "fits" / (self.fit_id or "none")

    def done(self) -> bool:
        """Whether an earlier run with the same fit has trained it, and that is to be used."""
        return (self.folder / "fit.json").is_file() and (self.borrowed or not self.settings["force"])

    def check(self, task: Task | Tuning) -> None:
        """Looks at what is to be trained before any work.

        Raises:
            ValueError: it cannot be trained with these settings, or not on this data.
        """
        if not len(self.data.train):
            raise ValueError(
                f"{self.where} ({self.method['title']}) has to be trained, and there is no sample to train on; give "
                "data.num_train some, or another data set where it has none"
            )
        try:
            task.check_target(self.data.continuous, self.data.per_image)
        except ValueError as error:
            raise ValueError(f"{self.where} ({self.method['title']}): {error}") from None
        if isinstance(task, Tuning):
            if self.processes > 1:
                raise ValueError(
                    f"trainer.devices={self.settings['trainer']['devices']}: {self.where} ({self.method['title']}) is "
                    "tuned in one process; use trainer.devices=1"
                )
            return
        for key, look in (("optimizer", task.optimizer), ("schedule", lambda: task.check(len(self.data.visits(task))))):
            try:
                look()
            except ValueError as error:
                raise ValueError(f"{self.where}.task.{key}: {error}") from None
        if task.fit.patience is not None and not len(self.data.val):
            raise ValueError(
                f"{self.where}.task.fit.patience={task.fit.patience}: it waits for validations, and there are no "
                "validation profiles; give data.num_val some, or patience=null"
            )
        size, devices = task.fit.batch_size, self.settings["trainer"]["devices"]
        if size % self.processes:
            raise ValueError(
                f"{self.where}.task.fit.batch_size={size}: a batch is divided among the devices, and trainer.devices="
                f"{devices} is {self.processes} of them; take a multiple of {self.processes}, or trainer.devices=1"
            )
        normed = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in task.modules())
        if normed and self.processes > 1 and not on_gpu(self.settings["trainer"]):
            raise ValueError(
                f"trainer.devices={devices}: {self.where} ({self.method['title']}) normalises over the whole batch "
                "(BatchNorm), which processes can only do together on GPUs; use trainer.devices=1"
            )

    def fit(
        self,
        task: Task | Tuning,
        predictor: Any,
        wandb: list[WandbLogger],
        judge: Callable[[float, int], bool] | None = None,
    ) -> dict[str, Any]:
        """Trains, or loads what an earlier run with the same fit trained; other runs may want the same at once.

        Args:
            task: what is learnt.
            predictor: draws sample pictures, or None.
            wandb: where numbers go beside the fit's folder.
            judge: asked at every validation, with the objective and the step, whether to give the training up.

        Returns:
            What ``fit.json`` holds.

        Raises:
            TrainingDiverged: a loss was no number.
            Interrupted: a signal asked to stop.
            Pruned: the judge had it given up.
        """
        with locked(self.folder, f"{self.method['title']}, fit {self.fit_id},"):
            return self._trained(task, predictor, wandb, judge)

    def _trained(
        self,
        task: Task | Tuning,
        predictor: Any,
        wandb: list[WandbLogger],
        judge: Callable[[float, int], bool] | None,
    ) -> dict[str, Any]:
        file, adapter = self.folder / "fit.json", self.folder / "adapter"
        if self.done():
            fitted: dict[str, Any] = json.loads(file.read_text())
            task.load(adapter)
            note = stale(fitted["made_by"]) if "made_by" in fitted else ""
            log.info("%s: trained before as fit %s%s", self.method["title"], self.fit_id, note)
            return fitted
        file.unlink(missing_ok=True)
        if isinstance(task, Tuning):
            return self._tune(task)
        checkpoints = self._checkpoints()
        if self.settings["force"]:
            checkpoints.clear()
        start = checkpoints.latest()
        if start is not None:
            log.info("%s: goes on from step %d of fit %s", self.method["title"], start.step, self.fit_id)
        progress.section(self.method["title"])
        if self.processes == 1:
            return self.train(task, predictor, start, wandb, judge)

        def order(rank: Rank) -> Order:
            return Order(rank, self.settings, self.method, self.where, self.fit_id, start, bool(wandb))

        train_together(train_beside, order, self.processes, wandb)
        task.load(adapter)
        trained: dict[str, Any] = json.loads(file.read_text())
        return trained

    def _tune(self, task: Tuning) -> dict[str, Any]:
        """Tunes, and writes down what came of it; it takes seconds, so nothing is kept on the way."""
        progress.section(self.method["title"], len(task.trials))
        started = time.perf_counter()
        with memory.measured(gpu=False) as peak:
            task.tune(self.data.train)
        adapter = self.folder / "adapter"
        return self._written(
            minutes=(time.perf_counter() - started) / 60,
            files=[path.relative_to(adapter).as_posix() for path in task.save(adapter)],
            scores={},
            tuned=task.tuned,
            peak_bytes=peak.bytes,
        )

    def _written(self, **results: Any) -> dict[str, Any]:
        """What a training came to, once it is on disk; with it the fit is finished."""
        fitted = {
            **results,
            "made_by": self.made_by(),
            "config": redact({"adapter": self.method["adapter"], "task": self.method["task"]}),
        }
        write_atomically(self.folder / "fit.json", json.dumps(fitted, indent=1, default=str) + "\n")
        return fitted

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints", JsonLines(self.folder), **self.settings["save"])

    def train(
        self,
        task: Task,
        predictor: Any,
        start: Saved | None,
        wandb: Sequence[WandbLogger | Relay],
        judge: Callable[[float, int], bool] | None = None,
        rank: int | None = None,
    ) -> dict[str, Any]:
        """Trains in this process, and writes down what was trained.

        Args:
            task: what is learnt.
            predictor: draws sample pictures, or None.
            start: what to go on from, or None.
            wandb: where numbers go beside the fit's folder.
            judge: see ``fit``.
            rank: which of the processes this is that train together; None where it trains alone.
        """
        adapter = self.folder / "adapter"
        checkpoints = self._checkpoints()
        lines = checkpoints.lines
        self.data.first = 0
        plan, visits = task.fit, self.data.visits(task)
        steps, per_epoch = len(visits), visits.per_round * plan.repeats
        every = min(steps, plan.validate_every * per_epoch) if plan.validate_every else steps
        watch = Watch()
        callbacks: list[pl.Callback] = [watch]
        patience = None if plan.patience is None else Patience(plan.patience)
        if patience is not None:
            callbacks.append(patience)
        if task.ema is not None:
            callbacks.append(Average(task.ema))
        drawn = predictor is not None and not getattr(task, "per_image", False)  # one class of an image is no picture
        if drawn and self.settings["sample_every"] and self.settings["sample_images"] and not rank:
            callbacks.append(self._samples(predictor, per_epoch, wandb))
        if judge is not None:
            callbacks.append(Pruning(self.settings["objective"], judge, checkpoints))
        callbacks.append(checkpoints)  # the last, so that it saves what the others have done
        trainer = quiet_trainer(
            alone(self.settings["trainer"]) if rank is None else beside(self.settings["trainer"]),
            self.precision,
            [lines, *wandb],
            max_epochs=1,  # Lightning's one epoch is the whole run: see ``Visits``
            accumulate_grad_batches=plan.accumulate,
            gradient_clip_val=plan.clip,
            callbacks=callbacks,
            val_check_interval=every,
            check_val_every_n_epoch=None,
            limit_val_batches=1.0 if len(self.data.val) else 0,
            num_sanity_val_steps=0,
        )
        try:
            with memory.measured(on_gpu(self.settings["trainer"])) as peak:
                trainer.fit(task, datamodule=self.data, ckpt_path=start.path if start else None, weights_only=True)
                if patience is not None:
                    patience.put_back(task)
                # the score to choose by is that of the weights that are kept
                if len(self.data.val) and (steps % every or patience is not None):
                    trainer.validate(task, datamodule=self.data, verbose=False)
        except TrainingDiverged as error:
            if not rank:
                task.save(adapter)
            trainer.strategy.barrier()
            raise TrainingDiverged(f"{error}. The last good ones are in {adapter}") from None
        finally:
            lines.write_csv()
        if rank:  # the first one writes
            return {}
        fitted = self._written(
            minutes=checkpoints.seconds / 60,
            files=[path.relative_to(adapter).as_posix() for path in task.save(adapter)],
            scores={name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")},
            steps=trainer.global_step,
            skipped=watch.skipped,
            best=checkpoints.best,
            peak_bytes=peak.bytes,
        )
        checkpoints.clear(best=True)
        checkpoints.stop_if_asked(trainer.global_step)
        return fitted

    def _samples(self, predictor: Any, per_epoch: int, wandb: Sequence[WandbLogger | Relay]) -> pl.Callback:
        split = self.data.val if len(self.data.val) else self.data.train  # never the test set
        shape = split.source.shape(split.names[0])
        same = [i for i, name in enumerate(split.names) if split.source.shape(name) == shape]
        chosen = sorted(same[: self.settings["sample_images"]], key=lambda i: natural(split.names[i]))
        items = [split[i] for i in chosen]
        return Samples(predictor, items, self.settings["sample_every"], per_epoch, self.folder, self.data, wandb)

    def made_by(self) -> dict[str, Any]:
        """Which code, libraries and device are at work."""
        own = own_packages([self.method, self.settings["data"]])
        return made_by(self.precision, on_gpu(self.settings["trainer"]), self.processes, own)


class Order(NamedTuple):
    """What one of the processes that train together is to do.

    Attributes:
        rank: which of them it is.
        settings: the whole configuration, as plain containers.
        method: the method's part of it.
        where: the method's key in the configuration.
        fit_id: what is trained.
        start: what to go on from, or None.
        wandb: whether whoever started it passes numbers on to Weights & Biases.
    """

    rank: Rank
    settings: Mapping[str, Any]
    method: Mapping[str, Any]
    where: str
    fit_id: str | None
    start: Saved | None
    wandb: bool


def train_beside(order: Order) -> None:
    """Trains as one of several processes.

    Raises:
        RuntimeError: what is to be trained is no longer the same.
    """
    rank, settings, method = order.rank, order.settings, order.method
    with joined(rank, settings["trainer"]):
        data: DataModule = build(settings["data"], "data")
        precision = precision_of(settings["trainer"])
        hashes, seed = weights_at(method, order.where)["hashes"], settings["seed"]
        fit_id = fit_id_of(base_of(settings, method, data, hashes, precision), method, data)
        if fit_id != order.fit_id:
            raise RuntimeError(f"the training was fit {order.fit_id} and is now {fit_id}: its data or code changed")
        processes = processes_of(settings["trainer"])
        training = Training(settings, method, data, order.where, fit_id, precision, processes)
        first = rank.number == 0
        needed = {**method, "wrappers": {}, "predictor": method["predictor"] if first else None}
        with assembled(needed, order.where, Models(), data.palette, data.num_classes, seed, hashes) as made:
            assert isinstance(made.task, Task)
            told = [relay()] if first and order.wandb else []
            training.train(made.task, made.bare, order.start, told, rank=rank.number)
