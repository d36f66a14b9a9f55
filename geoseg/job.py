"""One method on one data set with one seed: its identity, and how its record comes about."""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from geoseg import memory, progress
from geoseg.assembly import Assembled, Models, assembled
from geoseg.checkpoints import Interrupted, Pruned
from geoseg.config import build, identity, redact
from geoseg.data.module import DataModule
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
from geoseg.loggers import JsonLines, WandbLogger
from geoseg.metrics.intensity import IntensityDice
from geoseg.metrics.score import SegmentationScore
from geoseg.places import SWEEP, full_disk_told, locked
from geoseg.ranks import alone, on_gpu, processes_of
from geoseg.record import read_record, stale, write_atomically, write_record
from geoseg.report import stage_table
from geoseg.tasks.evaluation import Evaluation, EvaluationTask, Published
from geoseg.tasks.image_evaluation import ImageEvaluation
from geoseg.tasks.task import Task
from geoseg.training import Training, base_of, fit_id_of, precision_of, quiet_trainer, weights_at

log = logging.getLogger("geoseg")


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
        self.weights = weights_at(method, self.where)
        base = base_of(self.settings, method, data, self.weights["hashes"], self.precision)
        self.fit_id = None if self.trained_by is None else self.trained_by["fit_id"]
        if trains:
            self.fit_id = fit_id_of(base, method, data)
        scored = {"predictor": method["predictor"], "wrappers": method["wrappers"], "weights": self.weights["hashes"]}
        self.run_id = identity(
            base, scored, self.settings["dice"], self.fit_id, data.fingerprint("train", "val", "test"), *self._asked()
        )
        self.folder = Path(self.settings["runs"]) / self.settings["name"] / self.run_id
        self.training = Training(
            self.settings,
            method,
            data,
            self.where,
            self.fit_id,
            self.precision,
            self.processes,
            borrowed=self.trained_by is not None,
        )
        self.fit_folder = self.training.folder

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
            if made.task is not None and not self.training.done():
                self.training.check(made.task)
            yield made

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
            fitted = self.training.fit(method.task, method.bare, wandb, self.judge)
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
        if "test/regions/count" in evaluation.scores:
            note = (
                f"{note}. Regions have no names: their colours are in the order of their size, whatever the legend says"
            )
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
        trainer = quiet_trainer(alone(self.settings["trainer"]), self.precision, [lines, *wandb])
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
        trainer = quiet_trainer(alone(self.settings["trainer"]), self.precision, [])
        trainer.test(evaluation, dataloaders=self.data.whole(self.data.val), verbose=False)
        return {name.replace("test/", "val/", 1): value for name, value in evaluation.scores.items()}

    def _foresee(self, method: Assembled) -> dict[str, int]:
        """What the work that is left to do takes of memory, told before it starts."""
        task = method.task if isinstance(method.task, Task) and not self.training.done() else None
        how = {"sample_images": self.settings["sample_images"], "precision": self.precision}
        where = {"gpu": on_gpu(self.settings["trainer"]), "processes": self.processes}
        return memory.foresee(self.method["title"], task, method.bare, method.predictor, self.data, **where, **how)

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
            **self.training.made_by(),
            "given": given if source is None else source["given"],
            "status": status,
            "config": self._config(),
            **results,
        }
        write_record(self.folder, redact(record))
        found = read_record(self.folder)
        assert found is not None
        return found

    def _kind(self) -> str:
        return str(self.settings["checkpoints"]["kind"]) if self.weights["ids"] else "none"
