"""One run: build the model, add the adapter, fit the task, wrap the predictor, evaluate, record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from geoseg import progress
from geoseg.assembly import Models
from geoseg.checkpoints import check_save
from geoseg.config import build, check_settings, check_targets, check_types, origin, plain
from geoseg.data.module import DataModule
from geoseg.job import Job
from geoseg.places import check_writable
from geoseg.record import loaded_code


def run(
    cfg: DictConfig, models: Models | None = None, judge: Callable[[float, int], bool] | None = None
) -> tuple[list[dict[str, Any]], Path]:
    """Runs the main method and every rival of a composed configuration.

    Finished runs are found by their identity and not repeated, unless ``force`` is set.

    Args:
        cfg: the composed configuration.
        models: what an earlier run of this process has left loaded, and where this one leaves what it loads.
        judge: see ``Job``; of the main method.

    Returns:
        The records, the main method's first, and the folder of the main method's run.

    Raises:
        ValueError: the configuration or the data cannot work; raised before any work starts.
        Busy: this is part of a sweep, and somebody else is at one of its runs.
        Pruned: the judge had the main method's training given up.
    """
    loaded_code()  # before hours of training, in which somebody may go on writing
    jobs = jobs_of(cfg)
    jobs[0].judge = judge
    models = models if models is not None else Models()
    records = []
    open_jobs = [job for job in jobs if job.finished() is None]
    for folder in {folder for job in open_jobs for folder in (job.folder, job.fit_folder)}:
        check_writable(folder, "runs")
    for job in open_jobs[1:]:  # the first is about to be assembled anyway
        try:
            with job.assembled(models):
                pass  # what is wrong with a rival is better found now than after the main method's training
        except ValueError:
            with open_jobs[0].assembled(models):
                raise  # unless both share what is wrong: then the main method's key tells it, as it was typed
    with progress.display(cfg.progress):
        for job in jobs:
            records.append(job.result(models))
    return records, jobs[0].folder


def jobs_of(cfg: DictConfig, prepared: dict[str, DataModule] | None = None, gpu: bool | None = None) -> list[Job]:
    """The jobs of a composed configuration, the main method's first: checked and named, but not begun.

    Args:
        cfg: the composed configuration.
        prepared: data sets by their settings, which several configurations may share; those that are missing are
            added.
        gpu: whether there is a GPU where they will be computed; None where that is here.

    Raises:
        ValueError: the configuration or the data cannot work.
    """
    check_targets(cfg, cfg.trust)
    settings = plain(cfg)
    check_targets(settings, cfg.trust)  # once more, since a resolver may make a node out of words
    if cfg.objective is not None and not str(cfg.objective).startswith("val/"):
        raise ValueError(
            f"objective={cfg.objective}: only val/... scores may be optimised; choosing by a test score spoils the test"
        )
    check_settings(settings)
    check_save(settings["save"])
    check_types(settings)
    rivals = {f"rivals.{name}": method for name, method in (settings["rivals"] or {}).items()}
    methods = {"method": settings["method"], **{key: method for key, method in rivals.items() if method is not None}}
    key = json.dumps(settings["data"], sort_keys=True, default=str)
    prepared = {} if prepared is None else prepared
    data: DataModule = prepared[key] if key in prepared else build(settings["data"], "data")
    data.prepare()
    prepared[key] = data
    scored = data.palette is not None and any(method["predictor"] is not None for method in methods.values())
    if scored and not data.names["test"]:
        raise ValueError(
            f"no sample is left to test on: {len(data.names['train'])} of {len(data.source.names)} are for training "
            f"and {len(data.names['val'])} for validation; lower data.num_train or data.num_val, or add samples"
        )
    try:
        main, *others = methods.items()
        beside = {**settings, "objective": None}  # it is the main method's
        return [
            Job(settings, main[1], data, main[0], gpu=gpu),
            *(Job(beside, method, data, where, gpu=gpu) for where, method in others),
        ]
    except ValueError as error:  # names a key of the method, which may have been typed as one of its checkpoints
        key, equals, rest = str(error).partition("=")
        raise ValueError(f"{origin(cfg, key)}{equals}{rest}") from None
