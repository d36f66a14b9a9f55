"""A run in Weights & Biases, or the summary of an experiment, made anew from the files that runs left."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from geoseg.ablation import Ablation, ablation_cells, ablations
from geoseg.charts import costs, draw_ablations, draw_costs
from geoseg.config import identity
from geoseg.data.profiles import natural
from geoseg.job import conclude, presented
from geoseg.loggers import WandbLogger, address
from geoseg.losses import final_losses, read_curves
from geoseg.record import runs_of, write_atomically
from geoseg.report import find
from geoseg.summary import summary_cells

SUMMARY = "summary"
"""The folder beside an experiment's runs in which its summary lies."""

SWEPT = "swept.json"
"""The file in it that holds the settings which sweeps have varied."""


def sync(folder: Path, record: Mapping[str, Any]) -> Path:
    """Tells wandb a finished run from the beginning, under its own id and in place of what was there before.

    What wandb keeps of a run that was interrupted and went on lies in several parts, which do not become one history;
    the run's own files hold each number once. Goes to wandb's server where WANDB_MODE=online.

    Args:
        folder: the run's.
        record: the run's.

    Returns:
        The folder that wandb wrote; ``wandb sync`` sends an offline one.

    Raises:
        ValueError: wandb does not work, or what the run trained is not there.
    """
    fit_folder = runs_of(folder, record) / "fits" / (record["fit_id"] or "none")
    logger = WandbLogger(
        folder=folder,
        run_id=record["run_id"],
        **presented(record["run_id"], record["config"]),
        **address(record["config"]["logger"]["wandb"]),
        anew=True,
    )
    for path in (fit_folder / "metrics.jsonl", folder / "metrics.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            numbers = json.loads(line)
            step = numbers.pop("step")
            logger.log_metrics({name: float("nan") if x is None else x for name, x in numbers.items()}, step)
    pictures = sorted((fit_folder / "samples").glob("*.png"), key=lambda path: natural(path.name))
    logger.log_pictures("samples", pictures)
    files = logger.files
    conclude(logger, record, folder, fit_folder)
    if files is None or logger.failed:
        raise ValueError(f"the run in {folder} could not be told to Weights & Biases; why stands above")
    return files


def summarize(folder: Path, varied: Collection[str] = (), node: Mapping[str, Any] | None = None) -> Path:
    """Tells wandb the table and figures over all finished runs of an experiment, as one run in the group of theirs.

    It has an id that depends on the experiment's name alone and replaces what was there before. Figures are also left
    in ``FOLDER/summary``: scores over each setting that this or an earlier sweep has varied, and cost against score.

    Args:
        folder: the experiment's, runs/NAME.
        varied: the settings that a sweep has varied.
        node: the configuration of the logger; None takes that of the runs.

    Returns:
        The folder that wandb wrote; ``wandb sync`` sends an offline one.

    Raises:
        ValueError: no run is finished, or wandb does not work.
    """
    runs = find([folder])
    records = [run.record for run in runs]
    trainings = {run.record["fit_id"]: run for run in runs if run.record["status"] == "done"}
    done = [record for record in records if record["status"] == "done"]
    if not done:
        raise ValueError(f"no run in {folder} is finished, so there is nothing to sum up")
    place, name = folder / SUMMARY, done[0]["experiment"]
    swept = place / SWEPT
    before = json.loads(swept.read_text(encoding="utf-8")) if swept.is_file() else []
    over = sorted({*before, *(key.lstrip("+") for key in varied)} - {"seed"})  # means are over seeds
    write_atomically(swept, json.dumps(over) + "\n")
    curves = {fit: read_curves(run.fit / "metrics.jsonl") for fit, run in trainings.items()}
    losses = {fit: final_losses(logged) for fit, logged in curves.items() if logged}
    made: dict[str, list[Ablation]] = {}
    for key in over:
        with contextlib.suppress(ValueError):  # a group, a setting of rivals alone, or one with a single value
            made[key] = ablations(done, losses, key)
    drawings = [one for key, scores in made.items() for one in draw_ablations(scores, place, key.replace(".", "_"))]
    if found := costs(done):
        drawings.append(("Cost and score", draw_costs(found, place / "cost")))
    shutil.rmtree(place / "wandb", ignore_errors=True)  # an earlier summary, which this one replaces
    logger = WandbLogger(
        folder=place,
        run_id=identity("summary", name),
        group=name,
        title=f"{name}: summary",
        tags=["summary"],
        config={"experiment": name, "over": over},
        **address(node if node is not None else done[-1]["config"]["logger"]["wandb"]),
        job_type="summary",
        anew=True,
    )
    logger.log_table("summary", *summary_cells(records))
    for key, scores in made.items():
        logger.log_table(f"over/{key}", *ablation_cells(scores))
    logger.log_pictures("figures", [files[0] for _, files in drawings])
    files = logger.files
    logger.close({"runs": len(done), "failed": sum(record["status"] == "failed" for record in records)})
    if files is None or logger.failed:
        raise ValueError(f"the summary of {folder} could not be told to Weights & Biases; why stands above")
    return files
