"""One run: build the model, add the adapter, fit the task, wrap the predictor, evaluate, record."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from geoseg import lora, progress
from geoseg.config import build, check_targets, identity, plain, redact
from geoseg.data.module import DataModule
from geoseg.figures import draw_samples, draw_stages, draw_training
from geoseg.loggers import JsonLines, WandbLogger
from geoseg.randomness import key, stream
from geoseg.record import commit, read_record, versions, write_atomically, write_record
from geoseg.tasks.callbacks import Average, Watch
from geoseg.tasks.evaluation import EvaluationTask
from geoseg.tasks.task import Task, TrainingDiverged

log = logging.getLogger("geoseg")


def run(cfg: DictConfig) -> tuple[list[dict[str, Any]], Path]:
    """Runs the main method and every rival of a composed configuration.

    Finished runs are found by their identity and not repeated, unless ``force`` is set.

    Returns:
        The records, the main method's first, and the folder of the main method's run.

    Raises:
        ValueError: the configuration or the data cannot work; raised before any work starts.
    """
    check_targets(cfg, cfg.trust)
    if cfg.objective is not None and not str(cfg.objective).startswith("val/"):
        raise ValueError(
            f"objective={cfg.objective}: only val/... scores may be optimised; choosing by a test score spoils the test"
        )
    settings = plain(cfg)
    data: DataModule = build(settings["data"])
    data.prepare()
    methods = {"": settings["method"], **settings["rivals"]}
    jobs = [Job(settings, method, data) for method in methods.values()]
    models = Models()
    records = []
    with progress.display(settings["progress"]):
        for job in jobs:
            records.append(job.result(models))
    return records, jobs[0].folder


class Models:
    """Keeps the last frozen model loaded, so that methods that share one do not read it twice."""

    def __init__(self) -> None:
        self._key, self._model = "", None

    def get(self, method: Mapping[str, Any], available: Mapping[str, Any]) -> Any:
        """The model of a method; a model that training changes is always built anew."""
        if method["model"] is None:
            return None
        changed = method["adapter"] is None and method["task"] is not None
        wanted = json.dumps(method["model"], sort_keys=True, default=str)
        if changed or wanted != self._key:
            with seeded(available["seed"], "model"):
                model = build(method["model"], **available)
            if changed:
                return model
            self._key, self._model = wanted, model
        return self._model


@dataclass
class Job:
    """One method on one data set with one seed: its identity, and how its record comes about."""

    settings: Mapping[str, Any]
    method: Mapping[str, Any]
    data: DataModule
    fit_id: str | None = field(init=False)
    run_id: str = field(init=False)

    def __post_init__(self) -> None:
        method, data = self.method, self.data
        self.weights = weights_of(method)
        base = {
            "seed": self.settings["seed"],
            "model": method["model"],
            "weights": self.weights,
            "palette": data.palette.hex,
        }
        self.fit_id = None
        if method["task"] is not None:
            fitted = {"adapter": method["adapter"], "task": method["task"]}
            precision = self.settings["trainer"]["precision"]
            self.fit_id = identity(base, fitted, precision, data.fingerprint("train", "val"))
        scored = {"predictor": method["predictor"], "wrappers": method["wrappers"]}
        self.run_id = identity(base, scored, self.fit_id, data.fingerprint("train", "val", "test"))
        self.folder = Path(self.settings["runs"]) / self.settings["name"] / self.run_id
        self.fit_folder = Path(self.settings["runs"]) / "fits" / (self.fit_id or "none")

    def result(self, models: Models) -> dict[str, Any]:
        """The record: read where the run is finished, else made now."""
        found = None if self.settings["force"] else read_record(self.folder)
        if found is not None and found["status"] == "done":
            now, _ = commit()
            stale = found["commit"] != now
            log.info(
                "%s: found finished run %s%s",
                self.method["title"],
                self.run_id,
                f", made by commit {found['commit']}, the code is now {now}; force=true runs it anew" if stale else "",
            )
            return found
        try:
            return self._run(models)
        except BaseException as error:
            self._record(status="failed", error=f"{type(error).__name__}: {error}")
            raise

    def _run(self, models: Models) -> dict[str, Any]:
        method, seed = self.method, self.settings["seed"]
        self.folder.mkdir(parents=True, exist_ok=True)
        config = {**self.settings, "method": method, "rivals": {}}
        write_atomically(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(redact(config))))
        available = {"palette": self.data.palette, "num_classes": self.data.num_classes, "seed": seed}
        model = models.get(method, available)
        adapter = build(method["adapter"]) if method["adapter"] is not None else None
        try:
            if adapter is not None:
                with seeded(seed, "adapter"):
                    adapter.attach(model.parts())
            bare = build(method["predictor"], model=model, **available)
            predictor = bare
            for wrapper in method["wrappers"].values():
                predictor = build(wrapper, predictor=predictor, **available)
            fitted: dict[str, Any] = {"minutes": 0.0, "files": [], "scores": {}}
            wandb = self._wandb()
            if method["task"] is not None:
                task = build(method["task"], model=model, adapter=adapter, **available)
                fitted = self._fit(task, bare, wandb)
            started = time.perf_counter()
            evaluation = EvaluationTask(predictor, self.data.palette, seed, keep=self.settings["figure_rows"])
            trainer = self._trainer([JsonLines(self.folder), *wandb])
            progress.section(method["title"], len(self.data.test))
            trainer.test(evaluation, datamodule=self.data, verbose=False)
            total = time.perf_counter() - started
            figures = self._figures(evaluation, fitted)
            record = self._record(
                status="done",
                scores={**fitted["scores"], **evaluation.scores},
                per_unit=evaluation.per_unit,
                stages=evaluation.stages,
                stages_per_unit=evaluation.stages_per_unit,
                facts=evaluation.facts,
                units={"names": evaluation.names, "unit": self.data.source.unit},
                minutes={
                    "fit": fitted["minutes"],
                    "predict": evaluation.seconds / 60,
                    "score": (total - evaluation.seconds) / 60,
                },
                adapter=fitted["files"],
                figures=[path.relative_to(self.folder).as_posix() for path in figures],
            )
            for logger in wandb:
                self._publish(logger, record, figures, fitted)
            return record
        finally:
            if adapter is not None:
                lora.detach(model.parts())

    def _fit(self, task: Task, predictor: Any, wandb: list[WandbLogger]) -> dict[str, Any]:
        """Trains, or loads what an earlier run with the same fit trained."""
        done = self.fit_folder / "fit.json"
        if done.is_file() and not self.settings["force"]:
            fitted: dict[str, Any] = json.loads(done.read_text())
            task.load(self.fit_folder / "adapter")
            log.info("%s: trained before as fit %s", self.method["title"], self.fit_id)
            return fitted
        done.unlink(missing_ok=True)
        loggers = [JsonLines(self.fit_folder), CSVLogger(str(self.fit_folder), name="", version=""), *wandb]
        plan = task.fit
        steps = -(-len(self.data.train) // plan.batch_size) * plan.epochs * plan.repeats
        per_epoch = max(1, steps // plan.epochs)
        every = min(steps, plan.validate_every * per_epoch) if plan.validate_every else steps
        callbacks: list[pl.Callback] = [Watch()]
        if task.ema is not None:
            callbacks.append(Average(task.ema))
        if self.settings["sample_every"]:
            callbacks.append(self._samples(predictor, per_epoch, wandb))
        trainer = self._trainer(
            loggers,
            max_epochs=1,  # Lightning's one epoch is the whole run: see ``Visits``
            accumulate_grad_batches=plan.accumulate,
            gradient_clip_val=plan.clip,
            callbacks=callbacks,
            val_check_interval=every,
            check_val_every_n_epoch=None,
            limit_val_batches=1.0 if len(self.data.val) else 0,
            num_sanity_val_steps=0,
        )
        progress.section(self.method["title"])
        started = time.perf_counter()
        try:
            trainer.fit(task, datamodule=self.data)
        except TrainingDiverged:
            task.save(self.fit_folder / "adapter")
            raise
        fitted = {
            "minutes": (time.perf_counter() - started) / 60,
            "files": [str(path.relative_to(self.fit_folder)) for path in task.save(self.fit_folder / "adapter")],
            "scores": {
                name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
            },
            "steps": trainer.global_step,
            "config": redact({"adapter": self.method["adapter"], "task": self.method["task"]}),
        }
        write_atomically(done, json.dumps(fitted, indent=1, default=str) + "\n")
        return fitted

    def _samples(self, predictor: Any, per_epoch: int, wandb: list[WandbLogger]) -> pl.Callback:
        split = self.data.val if len(self.data.val) else self.data.test
        shape = split.source.shape(split.names[0])
        same = [i for i, name in enumerate(split.names) if split.source.shape(name) == shape]
        items = [split[i] for i in same[: self.settings["sample_images"]]]
        return Samples(predictor, items, self.settings["sample_every"], per_epoch, self.fit_folder, self.data, wandb)

    def _trainer(self, loggers: list[Any], **more: Any) -> pl.Trainer:
        options = dict(self.settings["trainer"])
        gpu = options["accelerator"] in ("gpu", "cuda") or (
            options["accelerator"] == "auto" and torch.cuda.is_available()
        )
        if options["precision"] == "auto":
            options["precision"] = "16-mixed" if gpu else "32-true"
        if not gpu and "16" in str(options["precision"]) and "bf16" not in str(options["precision"]):
            raise ValueError(
                f"trainer.precision={options['precision']} needs a GPU, and this run is on the CPU; "
                "use trainer=auto, or trainer.precision=32-true"
            )
        return pl.Trainer(
            **options,
            **more,
            logger=loggers,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
        )

    def _wandb(self) -> list[WandbLogger]:
        partial = self.settings["logger"]["wandb"]
        if partial is None:
            return []
        config = redact({**self.settings, "method": self.method, "rivals": {}})
        return [
            build(
                partial,
                folder=self.folder,
                run_id=self.run_id,
                group=self.settings["name"],
                title=f"{self.method['title']} {self.run_id}",
                tags=[*self.settings["tags"], self.method["title"], f"checkpoints={self.settings['checkpoints']['kind']}"],
                config=config,
            )
        ]

    def _figures(self, evaluation: EvaluationTask, fitted: Mapping[str, Any]) -> list[Path]:
        kind = self.settings["checkpoints"]["kind"]
        paths = [draw_stages(evaluation.pictures, self.folder / "figures" / "stages.png", f"checkpoints={kind}")]
        if self.fit_id is not None:
            metrics = self.fit_folder / "metrics.jsonl"
            paths.append(draw_training(metrics, self.folder / "figures" / "training.png"))
        return paths

    def _publish(
        self, logger: WandbLogger, record: Mapping[str, Any], figures: list[Path], fitted: Mapping[str, Any]
    ) -> None:
        logger.log_pictures("figures", figures)
        rows = [(stage, *scores.values()) for stage, scores in {**record["stages"], "answer": record["scores"]}.items()]
        columns = ["stage", *evaluation_columns(record)]
        logger.log_table("scores", columns, [row[: len(columns)] for row in rows if len(row) >= len(columns)])
        files = [self.fit_folder / file for file in fitted["files"]]
        if files:
            logger.log_files(f"adapter-{self.fit_id}", "adapter", files)
        logger.close({name: value for name, value in record["scores"].items() if value is not None})

    def _record(self, status: str, **results: Any) -> dict[str, Any]:
        data, made_by = self.data, commit()
        record = {
            "run_id": self.run_id,
            "fit_id": self.fit_id,
            "experiment": self.settings["name"],
            "method": self.method["title"],
            "data": {
                "name": type(data.source).__name__,
                "fingerprint": data.fingerprint("train", "val", "test"),
                "class_names": data.source.class_names,
                **data.names,
            },
            "num_train": len(data.train),
            "checkpoints": {"kind": self._kind(), **self.weights},
            "seed": self.settings["seed"],
            "commit": made_by[0],
            "dirty": made_by[1],
            "versions": versions(),
            "device": device(),
            "precision": self.settings["trainer"]["precision"],
            "given": {
                "images": len(data.train) if self.method["given"]["images"] else 0,
                "labels": len(data.train) if self.method["given"]["labels"] else 0,
                "pretraining": self.method["given"]["pretraining"],
            },
            "status": status,
            "config": redact({**self.settings, "method": self.method, "rivals": {}}),
            **results,
        }
        write_record(self.folder, finite(record))
        found = read_record(self.folder)
        assert found is not None
        return found

    def _kind(self) -> str:
        return str(self.settings["checkpoints"]["kind"]) if self.weights["ids"] else "none"


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
        wandb: list[WandbLogger],
    ) -> None:
        self.predictor, self.items, self.every, self.per_epoch = predictor, items, every, per_epoch
        self.folder, self.data, self.wandb = folder, data, wandb

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        epoch, step = divmod(batch_idx + 1, self.per_epoch)
        if step or epoch % self.every:
            return
        training = [(module, module.training) for module in pl_module.modules()]
        pl_module.eval()
        image = torch.stack([item["image"] for item in self.items]).to(pl_module.device)
        generators = [stream(0, "sample", item["name"]) for item in self.items]
        prediction = self.predictor.predict(image, generators)
        for module, was in training:
            module.training = was
        answer = prediction.painted
        if answer is None:
            answer = self.data.palette.paint(prediction.labels)
        labels = self.data.palette.paint(torch.stack([item["target"] for item in self.items]))
        path = draw_samples(image.cpu(), answer.float().cpu(), labels, self.folder / "samples" / f"epoch_{epoch:04d}.png")
        for logger in self.wandb:
            logger.log_pictures("samples", [path])


def evaluation_columns(record: Mapping[str, Any]) -> list[str]:
    """Names of the scores that every stage of a record has."""
    stages = list(record["stages"].values())
    return list(stages[0]) if stages else [name for name in record["scores"] if name.startswith("test/")]


@contextmanager
def seeded(seed: int, what: str) -> Iterator[None]:
    """First weights depend on the run's seed alone, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, what))
        yield


def weights_of(method: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Names and digests of every checkpoint that a method reads."""
    ids: dict[str, str] = {}
    hashes: dict[str, str] = {}

    def walk(node: Any, where: str) -> None:
        if isinstance(node, Mapping):
            for name, value in node.items():
                if name in ("path", "path_or_id") and isinstance(value, str):
                    path = Path(value).expanduser()
                    ids[where] = path.name if path.exists() else value
                    hashes[where] = digest(path) if path.exists() else f"revision {node.get('revision')}"
                else:
                    walk(value, f"{where}.{name}" if where else str(name))

    for part in ("model", "predictor", "wrappers"):
        walk(method[part], part)
    return {"ids": ids, "hashes": hashes}


def digest(path: Path, edge: int = 8 << 20) -> str:
    """A fingerprint of a checkpoint: names, sizes and, of files beyond 16 MiB, the first and last 8 MiB."""
    total = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.relative_to(path) if path.is_dir() else file.name}:{size};".encode())
        with file.open("rb") as handle:
            if size <= 2 * edge:
                total.update(handle.read())
            else:
                total.update(handle.read(edge))
                handle.seek(-edge, 2)
                total.update(handle.read(edge))
    return total.hexdigest()[:16]


def device() -> str:
    """The device in words, such as "NVIDIA H100" or "CPU x86_64, 2 threads"."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def finite(value: Any) -> Any:
    """The same containers with numbers that JSON cannot hold (nan, infinity) as None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return None
    return value
