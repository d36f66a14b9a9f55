"""What became of the runs in a folder, from their records and locks alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from geoseg.places import LOCK, holder

STATES = ("done", "failed", "pruned", "running", "interrupted")
"""What a run can be: with a finished record; with that of a failure; given up by a search; held by a live process; none
of these."""

FITS = "fits"
"""The folder of trainings, which runs of several experiments may share."""


class Found(NamedTuple):
    """One run, or one training.

    Attributes:
        experiment: the folder it lies in.
        name: its id.
        state: one of ``STATES``.
        note: the error of a failed one; why one was pruned; who is at a running one, and since when.
        method: its title, "" where no record says it.
    """

    experiment: str
    name: str
    state: str
    note: str
    method: str


def look(folder: Path) -> list[Found]:
    """Every run below a folder of runs, or in that of one experiment; trainings last.

    Args:
        folder: holds experiments, each with a folder per run; or is one of them.
    """
    groups = [folder] if any(_is_run(place) for place in _folders(folder)) else list(_folders(folder))
    found: list[Found] = []
    told: dict[str, tuple[str, str]] = {}  # of trainings: how they ended and why, from the runs that wanted them
    for group in sorted(groups, key=lambda group: group.name):
        if group.name == FITS:
            continue
        for place in _folders(group):
            if _is_run(place):
                run, fit = _run(group.name, place)
                found.append(run)
                if run.state in ("failed", "pruned") and fit:
                    told[fit] = run.state, run.note
    for group in groups:
        if group.name == FITS:
            found += [_fit(place, told) for place in _folders(group)]
    return found


def print_status(found: Sequence[Found], console: Console | None = None) -> None:
    """Prints how many are in which state, and what there is to say of those that are not done."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=max(120, console.width), file=console.file)
    table = Table(box=box.SIMPLE)
    table.add_column("experiment", no_wrap=True)
    for state in STATES:
        table.add_column(state, justify="right")
    runs = [run for run in found if run.experiment != FITS]
    groups = {
        name: [run for run in runs if run.experiment == name] for name in dict.fromkeys(r.experiment for r in runs)
    }
    for name, those in groups.items():
        table.add_row(name, *_counts(those))
    table.add_section()
    # a run that stands in several experiments counts once, done where it is done in one
    each = {run.name: run for run in sorted(runs, key=lambda run: run.state == "done")}
    table.add_row("all runs", *_counts(list(each.values())), style="bold")
    if fits := [fit for fit in found if fit.experiment == FITS]:
        table.add_row("trainings, shared by runs", *_counts(fits))
    console.print(table)
    told = [run for run in found if run.state != "done"]
    if not told:
        return
    rest = Table("state", "run", "method", "", box=box.SIMPLE)
    for state in STATES:
        for run in told:
            if run.state == state:
                place = f"{run.experiment}/{run.name}"
                rest.add_row(state, Text(place, no_wrap=True), Text(run.method), Text(run.note))
    console.print(rest)
    if any(run.state in ("failed", "interrupted") for run in told):
        console.print("The command that started them does what failed or was interrupted again, and nothing else.")


def _run(experiment: str, place: Path) -> tuple[Found, str | None]:
    record = _read(place / "record.json")
    method, fit = record.get("method", ""), record.get("fit_id")
    if who := holder(place):
        return Found(experiment, place.name, "running", who, method), fit
    if record.get("status") == "done":
        return Found(experiment, place.name, "done", "", method), fit
    if (status := record.get("status")) in ("failed", "pruned"):
        return Found(experiment, place.name, status, " ".join(str(record.get("error")).split()), method), fit
    return Found(experiment, place.name, "interrupted", "", method), fit


def _fit(place: Path, told: Mapping[str, tuple[str, str]]) -> Found:
    if who := holder(place):
        return Found(FITS, place.name, "running", who, "")
    if (place / "fit.json").is_file():
        return Found(FITS, place.name, "done", "", "")
    state, note = told.get(place.name, ("interrupted", ""))
    return Found(FITS, place.name, state, note, "")


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record


def _folders(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        yield from (Path(entry.path) for entry in entries if entry.is_dir())


def _is_run(place: Path) -> bool:
    return any((place / name).is_file() for name in ("record.json", LOCK, "config.yaml", "fit.json"))


def _counts(those: Sequence[Found]) -> list[str]:
    return [str(sum(run.state == state for run in those) or "") for state in STATES]
