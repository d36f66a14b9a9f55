"""One method on one data set with one seed: its identity, and how its record comes about."""

from __future__ import annotations

import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from geoseg import lora, memory, progress
from geoseg.checkpoints import Checkpoints, Interrupted, Pruned, Pruning, Saved
from geoseg.config import build, identity, own_packages, redact, weights_of
from geoseg.data.module import DataModule
from geoseg.data.profiles import natural
from geoseg.figures import (
    ACROSS,
    draw_answers,
    draw_confusion,
    draw_dice,
    draw_members,
    draw_stages,
    draw_training,
    draw_uncertainty,
)
from geoseg.loggers import JsonLines, Relay, WandbLogger
from geoseg.metrics.intensity import IntensityDice
from geoseg.metrics.score import SegmentationScore
from geoseg.palette import Palette
from geoseg.places import SWEEP, full_disk_told, locked
from geoseg.randomness import seeded
from geoseg.ranks import Rank, alone, beside, gpu_there, joined, on_gpu, processes_of, relay, train_together
from geoseg.record import (
    device,
    loaded_code,
    read_record,
    source_digest,
    versions,
    write_atomically,
    write_record,
)
from geoseg.report import stage_table
from geoseg.samples import Samples
from geoseg.tasks.callbacks import Average, Patience, Watch
from geoseg.tasks.evaluation import Evaluation, EvaluationTask, Published
from geoseg.tasks.image_evaluation import ImageEvaluation
from geoseg.tasks.task import Task, TrainingDiverged
from geoseg.tasks.tuning import Tuning

log = logging.getLogger("geoseg")

WHERE_TO_COMPUTE = ("accelerator", "devices", "strategy", "log_every_n_steps")
"""Settings of the trainer that decide no number but for the last digits: however many processes divide a batch, its
mean is the same sum in another order."""


class Models:
    """Keeps the last frozen model loaded, so that methods and runs that share one do not read it twice."""

    def __init__(self) -> None:
        self._key, self._model = "", None
        self._state: list[tuple[Any, ...]] = []

    def get(
        self, method: Mapping[str, Any], where: str, available: Mapping[str, Any], weights: Mapping[str, str]
    ) -> Any:
        """The model of a method; a model that training changes is always built anew.

        Args:
            method: its settings.
            where: its key in the configuration, for error messages.
            available: what the model may ask for.
            weights: digests of what the checkpoints hold, since a file may be replaced between two runs.
        """
        if method["model"] is None:
            return None
        palette = available["palette"]
        parts = [method["model"], weights, None if palette is None else palette.hex, available["num_classes"]]
        wanted = json.dumps(parts, sort_keys=True, default=str)
        by_seed = f"{wanted}, seed {available['seed']}"
        if self._key in (wanted, by_seed) and not _changes(method, self._model) and self._restored():
            return self._model
        if method["task"] is None or method["adapter"] is not None:  # it may be kept
            self._key, self._model = "", None  # room for the next one
        with seeded(available["seed"], "model"):
            before = torch.get_rng_state()
            model = build(method["model"], f"{where}.model", **available)
            drawn = not torch.equal(before, torch.get_rng_state())
        if not _changes(method, model):
            self._key, self._model = by_seed if drawn else wanted, model
            self._state = _state(model)
        return model

    def _restored(self) -> bool:
        """Puts the model back into the modes it arrived in; False where its weights were converted meanwhile."""
        now = _state(self._model)
        if [entry[:2] for entry in now] != [entry[:2] for entry in self._state]:
            return False
        for module, (*_, training, checkpointing) in zip(_modules(self._model), self._state, strict=True):
            module.training = training
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = checkpointing
        return True


def _changes(method: Mapping[str, Any], model: Any) -> bool:
    """Whether training changes the model itself: there is no adapter, or beside it something that wants gradients."""
    if method["task"] is None:
        return False
    whole = [weight for module in _modules(model)[:1] for weight in module.parameters()]
    return method["adapter"] is None or any(weight.requires_grad for weight in whole)


def _modules(model: Any) -> list[torch.nn.Module]:
    return list(model.modules()) if isinstance(model, torch.nn.Module) else []


def _state(model: Any) -> list[tuple[Any, ...]]:
    """What a run may change in a model and leave behind, for each of its modules."""
    return [
        (
            type(module),
            [weight.dtype for weight in module.parameters(recurse=False)],
            module.training,
            getattr(module, "gradient_checkpointing", False),
        )
        for module in _modules(model)
    ]


class Assembled(NamedTuple):
    """A method as objects.

    Attributes:
        model: the network or diffusion model, or None.
        task: what is learnt, or None.
        bare: the predictor without its wrappers, or None.
        predictor: the same with its wrappers.
    """

    model: Any
    task: Task | Tuning | None
    bare: Any
    predictor: Any


def presented(run_id: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """How Weights & Biases shows a run: group, title, tags and configuration, from the configuration it keeps."""
    title = config["method"]["title"]
    return {
        "group": config["name"],
        "title": f"{title} {run_id}",
        "tags": [*config["tags"], title, f"checkpoints={config['checkpoints']['kind']}"],
        "config": config,
    }


def conclude(logger: WandbLogger, record: Mapping[str, Any], folder: Path, fit_folder: Path) -> None:
    """Tells Weights & Biases what a finished run leaves behind: figures, table, adapter, scores."""
    logger.log_pictures("figures", [folder / figure for figure in record["figures"]])
    logger.log_table("scores", *stage_table(record))
    files = [fit_folder / "adapter" / file for file in record["adapter"]]
    if files:
        logger.log_files(f"adapter-{record['fit_id']}", "adapter", files)
    logger.close({name: value for name, value in record["scores"].items() if value is not None})


@contextmanager
def assembled(
    method: Mapping[str, Any],
    where: str,
    models: Models,
    palette: Palette | None,
    num_classes: int,
    seed: int,
    hashes: Mapping[str, str],
) -> Iterator[Assembled]:
    """A method's objects, its adapter attached to the model only inside.

    Args:
        method: its keys, as plain containers.
        where: its key in the configuration, for error messages.
        models: the model that is loaded already, where there is one.
        palette: which colour means which class, or None where there are none.
        num_classes: K.
        seed: of first weights and of the task.
        hashes: fingerprints of its checkpoints.

    Raises:
        ValueError: the configuration names something that cannot work.
    """
    available = {"palette": palette, "num_classes": num_classes, "seed": seed}
    of_model = {name: value for name, value in hashes.items() if name.startswith("model")}
    model = models.get(method, where, available, of_model)
    adapter = build(method["adapter"], f"{where}.adapter")
    try:
        if adapter is not None:
            adapter.attach(model.parts())
        bare = predictor = build(method["predictor"], f"{where}.predictor", model=model, **available)
        for name, wrapper in method["wrappers"].items():
            if wrapper is not None:  # method.wrappers.NAME=null leaves one out
                predictor = build(wrapper, f"{where}.wrappers.{name}", predictor=predictor, **available)
        task = build(method["task"], f"{where}.task", model=model, adapter=adapter, **available)
        yield Assembled(model, task, bare, predictor)
    finally:
        if adapter is not None:
            lora.detach(model.parts())


@dataclass
class Job:
    """One method on one data set with one seed: its identity, and how its record comes about.

    Attributes:
        settings: the whole configuration, as plain containers.
        method: the method's part of it.
        data: a prepared data module.
        where: the method's key in the configuration, for error messages.
        trained_by: the record of the run whose training is used, so that nothing is trained; None trains.
        judge: asked at every validation of the training, with the objective and the step, whether to give it up.
        gpu: whether there is a GPU where it will be computed; None where that is here.
        fit_id: what is trained, or None where nothing is.
        run_id: what is scored.
    """

    settings: Mapping[str, Any]
    method: Mapping[str, Any]
    data: DataModule
    where: str = "method"
    trained_by: Mapping[str, Any] | None = None
    judge: Callable[[float, int], bool] | None = None
    gpu: bool | None = None
    fit_id: str | None = field(init=False)
    run_id: str = field(init=False)

    def __post_init__(self) -> None:
        method, data = self.method, self.data
        self.precision = precision_of(self.settings["trainer"], self.gpu)
        trains = method["task"] is not None and self.trained_by is None
        processes = processes_of(self.settings["trainer"])
        self.processes = processes if trains else 1  # prediction takes one
        try:
            self.weights = weights_of(method)
        except ValueError as error:
            raise ValueError(f"{self.where}.{error}") from None
        base = {
            "seed": self.settings["seed"],
            "model": method["model"],
            # what its checkpoints hold, whatever their folders are called
            "weights": {name: value for name, value in self.weights["hashes"].items() if name.startswith("model")},
            "palette": None if data.palette is None else data.palette.hex,
            # whatever was added, such as limit_test_batches
            **{name: value for name, value in self.settings["trainer"].items() if name not in WHERE_TO_COMPUTE},
            "precision": self.precision,  # never "auto", which means one thing here and another there
        }
        self.fit_id = None if self.trained_by is None else self.trained_by["fit_id"]
        if trains:
            fitted = {"adapter": method["adapter"], "task": method["task"]}
            self.fit_id = identity(base, fitted, data.fingerprint("train", "val"))
        scored = {"predictor": method["predictor"], "wrappers": method["wrappers"], "weights": self.weights["hashes"]}
        self.run_id = identity(
            base, scored, self.settings["dice"], self.fit_id, data.fingerprint("train", "val", "test"), *self._asked()
        )
        self.folder = Path(self.settings["runs"]) / self.settings["name"] / self.run_id
        self.fit_folder = Path(self.settings["runs"]) / "fits" / (self.fit_id or "none")

    def _asked(self) -> list[Any]:
        """Scores that a data set asks for beside the usual ones, where it does."""
        data = self.data
        published = [data.published_batch, data.published_flips] if data.published_batch else None
        return [{"tolerances": data.thin, "published": published}] if data.thin or published else []

    def result(self, models: Models) -> dict[str, Any]:
        """The record: read where the run is finished, else made now.

        Raises:
            Busy: this is part of a sweep, and the run is being computed by somebody else.
            Pruned: the training was given up.
        """
        found = self.finished()
        if found is not None:
            log.info("%s: found finished run %s%s", self.method["title"], self.run_id, stale(found))
            return found
        name = f"{self.method['title']}, run {self.run_id},"
        with (
            self.assembled(models) as method,  # what cannot be assembled leaves no record: no work has started
            full_disk_told(Path(self.settings["runs"])),
            locked(self.folder, name, wait=SWEEP not in os.environ),  # a sweep has other things to do meanwhile
        ):
            try:
                return self.finished() or self._run(method)  # somebody else may just have finished it
            except BaseException as error:
                earlier = read_record(self.folder)
                # Lightning turns the second into the third; whatever else calls exit() has failed
                interrupted = isinstance(error, Interrupted | KeyboardInterrupt | SystemExit)
                if type(error) is SystemExit and not isinstance(error.__context__, KeyboardInterrupt):
                    interrupted = False
                if interrupted and not isinstance(error, Interrupted):
                    log.warning("interrupted; the same command goes on with this run, and what is finished is kept")
                if earlier is None or earlier["status"] != "done":  # a forced run that fails leaves the good record
                    if isinstance(error, Pruned):
                        self._record(status="pruned", error=str(error))
                        raise
                    trace = "".join(traceback.format_exception(error))
                    status = "interrupted" if interrupted else "failed"
                    self._record(status=status, error=f"{type(error).__name__}: {error}", traceback=trace)
                raise

    def finished(self) -> dict[str, Any] | None:
        """The record of an earlier run with this identity that came to its end, or None.

        It is not at its end as long as the objective is a score that it can have and does not have yet.
        """
        found = None if self.settings["force"] else read_record(self.folder)
        if found is None or found["status"] != "done":
            return None
        return None if self._validates(found["scores"]) else found

    def _validates(self, scores: Mapping[str, Any]) -> bool:
        """Whether the objective is a score of the answers, and these scores have it of the test set alone."""
        objective = str(self.settings["objective"])
        of_test = objective.replace("val/", "test/", 1)
        return bool(self.data.names["val"]) and objective not in scores and of_test != objective and of_test in scores

    @contextmanager
    def assembled(self, models: Models) -> Iterator[Assembled]:
        """As the function ``assembled``, and what is to be trained has been looked at.

        Raises:
            ValueError: the configuration names something that cannot work.
        """
        data, seed, hashes = self.data, self.settings["seed"], self.weights["hashes"]
        with assembled(self.method, self.where, models, data.palette, data.num_classes, seed, hashes) as made:
            if made.task is not None and not self._fitted():
                self._check(made.task)
            yield made

    def _check(self, task: Task | Tuning) -> None:
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

    def _run(self, method: Assembled) -> dict[str, Any]:
        """Trains the method and scores it where it can be, and writes everything down."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self._config())))
        wandb = self._wandb()
        try:
            record = self._work(method, wandb)
            for logger in wandb:
                conclude(logger, record, self.folder, self.fit_folder)
            return record
        finally:
            for logger in wandb:
                logger.close({}, failed=True)  # unless it was closed above

    def _work(self, method: Assembled, wandb: list[WandbLogger]) -> dict[str, Any]:
        """Fit and evaluation, and the record and figures of both."""
        fitted: dict[str, Any] = {"minutes": 0.0, "files": [], "scores": {}}
        figures = []
        needs = self._foresee(method) if self.settings["foresee"] else {}
        if method.task is not None:
            fitted = self._fit(method.task, method.bare, wandb)
        if isinstance(method.task, Task):
            training = self.folder / "figures" / "training.png"
            figures.append(draw_training(self.fit_folder / "metrics.jsonl", training))
        results: dict[str, Any] = {
            "scores": fitted["scores"],
            "stages": {},
            "memory": needs,
            "minutes": {"fit": fitted["minutes"], "predict": 0.0, "score": 0.0},
            "costs": self._costs(method, fitted),
            "adapter": fitted["files"],
            "fit": fitted.get("made_by"),  # the run may have found what another commit or device trained
        }
        if "tuned" in fitted:
            results["tuned"] = fitted["tuned"]
        if self.trained_by is not None:
            results["scores"] = {}  # of a validation on other data
            source = {name: self.trained_by[name] for name in ("run_id", "experiment", "commit", "dirty")}
            results["evaluates"] = {**source, "data": self.trained_by["data"]}
        if method.predictor is not None and self.data.palette is not None:  # without classes there is nothing to score
            with memory.measured(on_gpu(self.settings["trainer"])) as peak:
                evaluation, minutes = self._evaluate(method.predictor, wandb)
            results["costs"] |= {"ms_per_image": evaluation.ms_per_image, "predict_bytes": peak.bytes}
            scores = results["scores"] | evaluation.scores
            if self._validates(scores):
                scores |= self._validated(method.predictor)
            results |= {
                "scores": scores,
                "per_unit": evaluation.per_unit,
                "stages": evaluation.stages,
                "stages_per_unit": evaluation.stages_per_unit,
                "facts": evaluation.facts,
                "risk_coverage": evaluation.risk_coverage,
                **({"members": evaluation.members} if evaluation.members else {}),
                "units": self._units(evaluation.names),
                "minutes": results["minutes"] | minutes,
            }
            if isinstance(evaluation, ImageEvaluation):
                results["confusion"] = evaluation.confusion
            drawn = self._figures(evaluation)
            figures = [*drawn[:1], *figures, *drawn[1:]]
            if evaluation.members:
                path = self.folder / "figures" / "members.png"
                note = f"{self.method['title']}, run {self.run_id}"
                figures.append(draw_members(evaluation.members, evaluation.risk_coverage, path, note))
        results["figures"] = [path.relative_to(self.folder).as_posix() for path in figures]
        return self._record(status="done", **results)

    def _figures(self, evaluation: Evaluation) -> list[Path]:
        """What the first few test images came to, as pictures."""
        if not evaluation.pictures:
            return []
        seed, folder, data = self.settings["seed"], self.folder / "figures", self.data
        note = f"{self.method['title']}, checkpoints={self._kind()}, seed {seed}, run {self.run_id}"
        names, palette = data.source.class_names, data.palette
        if isinstance(evaluation, ImageEvaluation):
            drawn = draw_answers(evaluation.pictures, folder / "answers.png", note)
            return [drawn, draw_confusion(evaluation.confusion, names, folder / "confusion.png", note)]
        assert palette is not None
        classes = dict(zip(names, palette.hex, strict=True))
        made = [draw_stages(evaluation.pictures, classes, folder / "stages.png", note)]
        if "members" in evaluation.pictures[0]:
            made.append(draw_uncertainty(evaluation.pictures, palette, names, folder / "uncertainty.png", note))
        return [*made, draw_dice(evaluation.pictures, folder / "dice.png", note, **self.settings["dice"])]

    def _costs(self, method: Assembled, fitted: Mapping[str, Any]) -> dict[str, float | None]:
        """What the method takes, as far as that is known before it predicts."""
        decoder = getattr(method.model, "decoder", None)
        trained = method.task.trainable() if isinstance(method.task, Task) else {}
        tuned = fitted.get("tuned", {})
        return {
            "tuned_parameters": tuned.get("parameters"),
            "trials": tuned.get("trials"),
            "trainable_parameters": sum(parameter.numel() for parameter in trained.values()),
            "decoder_parameters": memory.parameters(decoder) if isinstance(decoder, torch.nn.Module) else None,
            "parameters": memory.parameters(method.task, method.predictor),
            "fit_bytes": fitted.get("peak_bytes"),  # a fit of an earlier geoseg does not say
        }

    def _units(self, names: list[str]) -> dict[str, Any]:
        """What was scored, and what of it is independent of the rest where samples are not."""
        block = getattr(self.data.source, "block", None)
        blocks = {} if block is None else {"blocks": [block(name) for name in names]}
        return {"names": names, "unit": self.data.source.unit, **blocks}

    def _evaluate(self, predictor: Any, wandb: list[WandbLogger]) -> tuple[Evaluation, dict[str, float]]:
        batch, flips = self.data.published_batch, self.data.published_flips
        published = None if batch is None else Published(batch, flips)
        folder = self.folder / "predictions"
        evaluation = self._evaluation(predictor, self.settings["figure_rows"], folder, published)
        started = time.perf_counter()
        lines = JsonLines(self.folder)
        trainer = self._trainer([lines, *wandb], alone(self.settings["trainer"]))
        progress.section(self.method["title"], len(self.data.test) * (2 if batch and flips else 1))
        trainer.test(evaluation, datamodule=self.data, verbose=False)
        lines.write_csv()
        total = time.perf_counter() - started
        return evaluation, {"predict": evaluation.seconds / 60, "score": (total - evaluation.seconds) / 60}

    def _evaluation(
        self, predictor: Any, rows: int = 0, folder: Path | None = None, published: Published | None = None
    ) -> Evaluation:
        """What scores the answers: by their label maps, or by the classes of whole images."""
        data, seed = self.data, self.settings["seed"]
        if data.per_image:
            return ImageEvaluation(predictor, data.source.class_names, seed, rows * ACROSS, folder)
        assert data.palette is not None
        score = partial(SegmentationScore, tolerances=data.thin)
        intensity = partial(IntensityDice, **self.settings["dice"])
        return EvaluationTask(predictor, data.palette, seed, rows, folder, score, intensity, published)

    def _validated(self, predictor: Any) -> dict[str, float]:
        """Scores of the answers on the validation set."""
        evaluation = self._evaluation(predictor)
        progress.section(f"{self.method['title']}, validation", len(self.data.val))
        trainer = self._trainer([], alone(self.settings["trainer"]))
        trainer.test(evaluation, dataloaders=self.data.whole(self.data.val), verbose=False)
        return {name.replace("test/", "val/", 1): value for name, value in evaluation.scores.items()}

    def _foresee(self, method: Assembled) -> dict[str, int]:
        """What the work that is left to do takes of memory, told before it starts."""
        task = method.task if isinstance(method.task, Task) and not self._fitted() else None
        how = {"sample_images": self.settings["sample_images"], "precision": self.precision}
        where = {"gpu": on_gpu(self.settings["trainer"]), "processes": self.processes}
        return memory.foresee(self.method["title"], task, method.bare, method.predictor, self.data, **where, **how)

    def _fitted(self) -> bool:
        """Whether an earlier run with the same fit has trained it, and that is to be used."""
        return (self.fit_folder / "fit.json").is_file() and (self.trained_by is not None or not self.settings["force"])

    def _fit(self, task: Task | Tuning, predictor: Any, wandb: list[WandbLogger]) -> dict[str, Any]:
        """Trains, or loads what an earlier run with the same fit trained; other runs may want the same at once."""
        with locked(self.fit_folder, f"{self.method['title']}, fit {self.fit_id},"):
            return self._trained(task, predictor, wandb)

    def _trained(self, task: Task | Tuning, predictor: Any, wandb: list[WandbLogger]) -> dict[str, Any]:
        done, adapter = self.fit_folder / "fit.json", self.fit_folder / "adapter"
        if self._fitted():
            fitted: dict[str, Any] = json.loads(done.read_text())
            task.load(adapter)
            note = stale(fitted["made_by"]) if "made_by" in fitted else ""
            log.info("%s: trained before as fit %s%s", self.method["title"], self.fit_id, note)
            return fitted
        done.unlink(missing_ok=True)
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
            return self._train(task, predictor, start, wandb)

        def order(rank: Rank) -> Order:
            return Order(rank, self.settings, self.method, self.where, self.fit_id, start, bool(wandb))

        train_together(train_beside, order, self.processes, wandb)
        task.load(adapter)
        trained: dict[str, Any] = json.loads(done.read_text())
        return trained

    def _tune(self, task: Tuning) -> dict[str, Any]:
        """Tunes, and writes down what came of it; it takes seconds, so nothing is kept on the way."""
        progress.section(self.method["title"], len(task.trials))
        started = time.perf_counter()
        with memory.measured(gpu=False) as peak:
            task.tune(self.data.train)
        adapter = self.fit_folder / "adapter"
        return self._fit_written(
            minutes=(time.perf_counter() - started) / 60,
            files=[path.relative_to(adapter).as_posix() for path in task.save(adapter)],
            scores={},
            tuned=task.tuned,
            peak_bytes=peak.bytes,
        )

    def _fit_written(self, **results: Any) -> dict[str, Any]:
        """What a training came to, once it is on disk; with it the fit is finished."""
        fitted = {
            **results,
            "made_by": self._made_by(),
            "config": redact({"adapter": self.method["adapter"], "task": self.method["task"]}),
        }
        write_atomically(self.fit_folder / "fit.json", json.dumps(fitted, indent=1, default=str) + "\n")
        return fitted

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.fit_folder / "checkpoints", JsonLines(self.fit_folder), **self.settings["save"])

    def _train(
        self,
        task: Task,
        predictor: Any,
        start: Saved | None,
        wandb: Sequence[WandbLogger | Relay],
        rank: int | None = None,
    ) -> dict[str, Any]:
        """Trains in this process, and writes down what was trained.

        Args:
            task: what is learnt.
            predictor: draws sample pictures, or None.
            start: what to go on from, or None.
            wandb: where numbers go beside the fit's folder.
            rank: which of the processes this is that train together; None where it trains alone.
        """
        adapter = self.fit_folder / "adapter"
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
        if self.judge is not None:
            callbacks.append(Pruning(self.settings["objective"], self.judge, checkpoints))
        callbacks.append(checkpoints)  # the last, so that it saves what the others have done
        trainer = self._trainer(
            [lines, *wandb],
            alone(self.settings["trainer"]) if rank is None else beside(self.settings["trainer"]),
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
        fitted = self._fit_written(
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
        return Samples(predictor, items, self.settings["sample_every"], per_epoch, self.fit_folder, self.data, wandb)

    def _trainer(self, loggers: list[Any], where: Mapping[str, Any], **more: Any) -> pl.Trainer:
        return pl.Trainer(
            **{**where, "precision": self.precision},
            **more,
            logger=loggers,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
        )

    def _wandb(self) -> list[WandbLogger]:
        node = self.settings["logger"]["wandb"]
        if node is None:
            return []
        return [
            build(
                node,
                "logger.wandb",
                folder=self.folder,
                run_id=self.run_id,
                **presented(self.run_id, self._config()),
            )
        ]

    def _config(self) -> dict[str, Any]:
        """This job's settings without its rivals and without secrets."""
        settings: dict[str, Any] = redact({**self.settings, "method": self.method, "rivals": {}})
        return settings

    def _record(self, status: str, **results: Any) -> dict[str, Any]:
        data, source = self.data, self.trained_by
        learns = self.method["task"] is not None  # what learns nothing makes no use of what it could be given
        given = {
            "images": len(data.train) if learns and self.method["given"]["images"] else 0,
            "labels": len(data.train) if learns and self.method["given"]["labels"] else 0,
            "pretraining": self.method["given"]["pretraining"] or "none",
        }
        if "trials" in self.method["given"]:
            given["trials"] = self.method["given"]["trials"]
        record = {
            "run_id": self.run_id,
            "fit_id": self.fit_id,
            "experiment": self.settings["name"],
            "method": self.method["title"],
            "data": {
                "name": data.source.title,
                "fingerprint": data.fingerprint("train", "val", "test"),
                "class_names": data.source.class_names,
                "continuous": data.continuous,
                "per_image": data.per_image,
                **data.names,
            },
            "num_train": len(data.train) if source is None else source["num_train"],
            "checkpoints": {"kind": self._kind(), **self.weights},
            "seed": self.settings["seed"],
            **self._made_by(),
            "given": given if source is None else source["given"],
            "status": status,
            "config": self._config(),
            **results,
        }
        write_record(self.folder, redact(record))
        found = read_record(self.folder)
        assert found is not None
        return found

    def _made_by(self) -> dict[str, Any]:
        """Which code, libraries and device are at work."""
        code, dirty = loaded_code()
        on = device(gpu=on_gpu(self.settings["trainer"]))
        if self.processes > 1:  # the training; the rest is done in one
            on += f", {self.processes} processes"
        made = {"commit": code, "dirty": dirty, "versions": versions(), "device": on, "precision": self.precision}
        own = own_code(self.method, self.settings["data"])
        return {**made, "own": own} if own else made

    def _kind(self) -> str:
        return str(self.settings["checkpoints"]["kind"]) if self.weights["ids"] else "none"


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
    rank, trainer = order.rank, order.settings["trainer"]
    with joined(rank, trainer):
        data: DataModule = build(order.settings["data"], "data")
        job = Job(order.settings, order.method, data, order.where)
        if job.fit_id != order.fit_id:
            raise RuntimeError(f"the training was fit {order.fit_id} and is now {job.fit_id}: its data or code changed")
        first = rank.number == 0
        needed = {**order.method, "wrappers": {}, "predictor": order.method["predictor"] if first else None}
        hashes, seed = job.weights["hashes"], order.settings["seed"]
        with assembled(needed, order.where, Models(), data.palette, data.num_classes, seed, hashes) as made:
            assert isinstance(made.task, Task)
            job._train(made.task, made.bare, order.start, [relay()] if first and order.wandb else [], rank.number)


def own_code(*nodes: Mapping[str, Any]) -> dict[str, str]:
    """Packages outside geoseg whose objects these parts of a configuration name, with a fingerprint of their code."""
    return {package: source_digest(package) for package in own_packages(list(nodes))}


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


def stale(found: Mapping[str, Any]) -> str:
    """What to say of a record or fit that other code may have made, "" where the code is the same."""
    now, dirty = loaded_code()
    own = sorted(package for package, digest in found.get("own", {}).items() if source_digest(package) != digest)
    if found["commit"] != now or found["dirty"] or dirty:
        changed = " with uncommitted changes"
        told = f", made by commit {found['commit']}{changed * found['dirty']}, the code is now {now}{changed * dirty}"
        told += f"; {', '.join(own)} changed too" * bool(own)
    elif own:
        told = f", made by other code of {', '.join(own)}"
    else:
        return ""
    return f"{told}; force=true runs it anew"
