"""A finished run scored on other data: what it trained, its predictor and its wrappers, and no training."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from geoseg import progress
from geoseg.assembly import Models
from geoseg.config import build, check_targets, check_types, plain
from geoseg.data.module import DataModule
from geoseg.data.profiles import natural
from geoseg.job import Job
from geoseg.places import check_writable
from geoseg.predict import method_of
from geoseg.record import loaded_code, runs_of

log = logging.getLogger("geoseg")


def evaluate(
    folder: Path,
    record: Mapping[str, Any],
    cfg: DictConfig,
    other: bool = True,
    moved: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], Path]:
    """Scores what a run has trained, and leaves a record of its own beside those of other runs.

    Args:
        folder: the finished run's.
        record: the finished run's.
        cfg: a composed configuration; its data, trainer, logger and name count, its method does not.
        other: score on the data of ``cfg``: on its test set where it prescribes one, else on all of it, but for the
            pictures that the run was trained or chosen on. False takes the run's own data and splits, and gives its
            record as it is unless ``cfg.force`` is set.
        moved: where files of the method lie now, see ``geoseg.predict.load``.

    Returns:
        The record, and the folder it lies in.

    Raises:
        ValueError: data and run have other classes, or something that the run needs is missing or has changed.
    """
    loaded_code()
    check_targets(cfg, cfg.trust)
    settings = plain(cfg)
    check_targets(settings, cfg.trust)
    if not other and not settings["force"]:
        return dict(record), folder
    if "evaluates" in record:
        raise ValueError(
            f"{folder} is itself an evaluation, of run {record['evaluates']['run_id']} in "
            f"{record['evaluates']['experiment']}; name that run"
        )
    check_types({name: settings[name] for name in ("data", "logger", "trainer")})
    method = method_of(folder, record, cfg.trust, moved)
    recorded = record["config"]
    if other and settings["data"]["palette"] not in (None, recorded["data"]["palette"]):
        raise ValueError("data.palette: the colours are those that the run was trained with; leave it away")
    used = {**(settings["data"] if other else recorded["data"]), "palette": recorded["data"]["palette"]}
    check_targets({"data": used}, cfg.trust)
    data: DataModule = _with_classes(used, record)
    data.prepare(train=not other)
    if other:
        _leave_out_what_it_knows(data, record, cfg.trust)
    if not data.names["test"]:
        raise ValueError(f"{data.source.title} has no sample that the run in {folder} was not trained on")
    runs = runs_of(folder, record)
    kept = {name: recorded[name] for name in ("seed", "checkpoints", "dice")}
    job = Job(
        {**settings, **kept, "runs": str(runs), "data": used, "rivals": {}, "objective": None},
        method,
        data,
        trained_by=record,
    )
    check_writable(job.folder, "runs")
    with progress.display(settings["progress"]):
        return job.result(Models()), job.folder


def _with_classes(node: Mapping[str, Any], record: Mapping[str, Any]) -> DataModule:
    """The data module, its classes called as the run calls them.

    Raises:
        ValueError: it has other classes than the run.
    """
    wanted = record["data"]["class_names"]
    source = build(node["source"], "data.source")
    if node["source"].get("class_names", ()) is None and set(source.class_names) == set(wanted):
        source = build({**node["source"], "class_names": wanted}, "data.source")  # nobody asked for another order
    found = source.class_names
    named = not (_numbered(found) or _numbered(wanted))
    if len(found) != len(wanted) or (named and list(found) != list(wanted)):
        differ = [f"{i}: {a} or {b}" for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b]
        what = (
            f"{len(wanted)} classes against {len(found)}"
            if len(found) != len(wanted)
            else f"class {', '.join(differ[:5])}"
        )
        raise ValueError(
            f"{source.title} has the classes {', '.join(found)}, and the run was trained to tell "
            f"{', '.join(wanted)} ({what}); they have to be the same in the same order: data.source.num_classes="
            f"{len(wanted)} where some do not occur, data.source.class_names and data.source.label_values say which is "
            "which"
        )
    if _numbered(found):
        source.class_names = list(wanted)
        if not _numbered(wanted):
            told = ", ".join(f"{i} {name}" for i, name in enumerate(wanted))
            log.warning(
                "%s does not name its classes; taken as those of the run in their order: %s", source.title, told
            )
    data: DataModule = build({**node, "source": source}, "data")
    return data


def _numbered(names: Sequence[str]) -> bool:
    """Whether nobody gave the classes names."""
    return all(re.fullmatch(r"class \d+", name) for name in names)


def _leave_out_what_it_knows(data: DataModule, record: Mapping[str, Any], trust: Sequence[str]) -> None:
    """Takes pictures out of the test set that the run was trained or its settings chosen on."""
    known = [*record["data"]["train"], *record["data"]["val"]]
    if record["fit_id"] is None or not known:
        return
    try:
        before = record["config"]["data"]["source"]
        check_targets({"data": {"source": before}}, trust)
        source = build(before, "data.source")
        seen = {_content(source.read(name).image) for name in known}
        cut = {_content(_whole(source, name)) for name in known}
    except (ValueError, OSError, KeyError) as error:
        log.warning(
            "whether the run was trained on some of these pictures cannot be looked up, and none is left out: its own "
            "data cannot be read as it was (%s)",
            error,
        )
        return
    again = [
        name
        for name in data.names["test"]
        if _content(data.source.read(name).image) in seen | cut or _content(_whole(data.source, name)) in seen
    ]
    if again:
        shown = ", ".join(sorted(again, key=natural)[:10])
        log.warning("left out, since the run was trained or validated on them: %s%s", shown, " ..." * (len(again) > 10))
        data.leave_out(again)


def _whole(source: Any, name: str) -> Any:
    """The picture that a sample is, or is a piece of."""
    return source.whole(name) if hasattr(source, "whole") else source.read(name).image


def _content(image: Any) -> str:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
