"""What became of runs, told from their records and locks."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from geoseg.places import locked
from geoseg.record import write_record
from geoseg.status import look, print_status
from tests.made_records import failed, record

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two experiments with a run of every kind, and their trainings."""
    runs = tmp_path / "runs"
    for i in range(3):
        write_record(runs / "first" / f"done{i}", record(seed=i))
    write_record(runs / "first" / "bad", {**failed(), "fit_id": "f2", "error": "RuntimeError: no\nluck"})
    for place in ("first/left", "first/busy", "second/busy", "fits/f1", "fits/f2", "fits/f3", "fits/f4"):
        with locked(runs / place, "x"):
            pass
    (runs / "second" / "busy" / "config.yaml").write_text("a: 1\n")
    (runs / "fits" / "f1" / "fit.json").write_text("{}")
    write_record(runs / "second" / "again", record(seed=5))
    (runs / "notes").mkdir()
    return runs


def test_every_state(runs: Path) -> None:
    with (
        locked(runs / "first" / "busy", "x"),
        locked(runs / "second" / "again", "x"),  # a finished one that is forced
        locked(runs / "fits" / "f3", "x"),
    ):
        found = {f"{run.experiment}/{run.name}": run for run in look(runs)}
    assert {name: run.state for name, run in found.items()} == {
        **{f"first/done{i}": "done" for i in range(3)},
        **{"first/bad": "failed", "first/left": "interrupted", "first/busy": "running"},
        **{"second/busy": "interrupted", "second/again": "running"},
        **{"fits/f1": "done", "fits/f2": "failed", "fits/f3": "running", "fits/f4": "interrupted"},
    }
    assert found["first/bad"].note == found["fits/f2"].note == "RuntimeError: no luck"
    assert found["first/busy"].note.startswith(f"process {os.getpid()} on ")
    assert " since " in found["first/busy"].note
    assert {run.name for run in look(runs / "second")} == {"busy", "again"}


def test_a_run_in_two_experiments_counts_once(runs: Path) -> None:
    write_record(runs / "third" / "done0", record(experiment="third"))
    (runs / "third" / "left").mkdir()
    (runs / "third" / "left" / "config.yaml").write_text("a: 1\n")
    (runs / "third" / "busy").mkdir()
    write_record(runs / "third" / "busy", record(experiment="third"))
    told = io.StringIO()
    print_status(look(runs), Console(file=told, width=120))
    counts = {line.split()[0]: line.split()[-4:] for line in told.getvalue().splitlines() if line.split()}
    assert counts["third"][-3:] == ["third", "2", "1"]
    assert [line.split() for line in told.getvalue().splitlines() if "all runs" in line] == [
        ["all", "runs", "5", "1", "1"]  # done0 to done2, again and busy; bad; left
    ]


def test_looking_leaves_no_trace(runs: Path) -> None:
    def files() -> dict[str, float]:
        return {str(path): path.stat().st_mtime for path in runs.rglob("*")}

    before = files()
    look(runs)
    assert files() == before


def test_the_table(run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    assert run_cli("status") == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.split()}
    assert lines["first"] == ["3", "1", "2"]
    assert lines["second"] == ["1", "1"]
    assert lines["all"] == ["runs", "4", "1", "2"]  # busy stands in both
    assert "failed        first/bad" in said
    assert "RuntimeError: no luck" in said
    assert run_cli("status", "nowhere") == 2
    assert "there is no folder nowhere" in capsys.readouterr().err
    (runs / "empty").mkdir()
    assert run_cli("status", "runs/empty") == 0


def test_it_is_fast_because_nothing_heavy_is_imported(runs: Path) -> None:
    for i in range(2000):
        place = runs / "third" / f"run{i}"
        place.mkdir(parents=True)
        (place / "record.json").write_text(json.dumps(record(seed=i, units=20)))
        (place / ".lock").touch()
    program = (
        "import sys, time; started = time.perf_counter(); from geoseg.cli import main; code = main(['status']);"
        "heavy = {'torch', 'hydra', 'omegaconf', 'numpy', 'diffusers', 'wandb', 'PIL'} & set(sys.modules);"
        "print(time.perf_counter() - started, file=sys.stderr); sys.exit(f'imported {heavy}' if heavy else code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=runs.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "2004" in done.stdout
    assert float(done.stderr) < 10  # a second on a machine that does nothing else
