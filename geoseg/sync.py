"""A run in Weights & Biases, made anew from the files it left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geoseg.data.profiles import natural
from geoseg.job import conclude, presented
from geoseg.loggers import WandbLogger
from geoseg.record import runs_of


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
    node = record["config"]["logger"]["wandb"] or {}
    where = {name: node[name] for name in ("project", "entity") if name in node}
    logger = WandbLogger(
        folder=folder,
        run_id=record["run_id"],
        **presented(record["run_id"], record["config"]),
        **where,
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
