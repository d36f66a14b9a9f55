"""Sweeps through the command line: what is left out, what is told, and what workers do to results."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from geoseg import sweep
from geoseg.assembly import Models
from geoseg.cli import main
from geoseg.places import SWEEP as SWEEP_VARIABLE
from geoseg.places import locked
from geoseg.workers import WorkerEnded
from tests.test_cli import AS_IS, HERE

ROOT = Path(__file__).resolve().parent.parent


def records(folder: Path) -> dict[int, Path]:
    """The record of each seed."""
    found = (folder / "runs").glob("*/*/record.json")
    return {json.loads(path.read_text())["seed"]: path for path in found}


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def states(text: str) -> list[dict[str, str]]:
    """The tables of a sweep: state to numbers of jobs and what is said of them."""
    tables: list[dict[str, str]] = []
    for line in text.splitlines():
        if re.match(r"\d+ jobs, ", line):
            tables.append({})
        elif tables and (row := re.match(r"  (\S.*?)  +\d+   (\S.*?) *$", line)):
            tables[-1][row[1]] = row[2]
    return tables


@contextlib.contextmanager
def held(folder: Path) -> Iterator[threading.Event]:
    """Somebody else is in this folder, until the event is set."""
    go, inside = threading.Event(), threading.Event()

    def stay() -> None:
        with locked(folder, "x"):
            inside.set()
            go.wait()

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait()
    try:
        yield go
    finally:
        go.set()
        thread.join()


SWEEP = ["run", "-m", *AS_IS, HERE, "seed=0,1,2"]


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished sweep over three seeds, and what it printed."""
    folder, said = tmp_path_factory.mktemp("swept"), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said):
        assert main(SWEEP) == 0
    return folder, said.getvalue()


@pytest.fixture
def swept(
    once: tuple[Path, str], run_cli: Callable[..., int], tmp_path: Path
) -> tuple[Callable[..., int], dict[int, Path]]:
    """The same command again, and the records that are there before."""
    shutil.copytree(once[0], tmp_path, dirs_exist_ok=True)
    return lambda *more: run_cli(*SWEEP, *more), records(tmp_path)


def test_what_is_finished_is_left_out(
    once: tuple[Path, str], swept: tuple[Callable[..., int], dict[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    again, made = swept
    assert states(once[1]) == [{"to do": "0-2"}, {"done": "0-2"}]
    change(made[0], commit="0ther", dirty=False)
    change(made[1], status="failed", error="RuntimeError: of yesterday")
    untouched = {seed: made[seed].read_text() for seed in (0, 2)}
    assert again("data.num_train=9,2") == 2
    said = capsys.readouterr()
    before, after = states(said.out)
    stale = [words for words in before if words.startswith("stale")]
    failed = "[0] data.num_train=9 seed=0: data.num_train=9, but 4 labelled samples are there to choose from; ask for"
    assert before["failed"].startswith(failed[:60])
    assert before["to do again, failed before"] == "4"
    # what was made with changes that nobody has committed counts as made by other code
    dirty = json.loads(untouched[2])["dirty"]
    assert [before[words] for words in stale] == ["3, 5" if dirty else "3"]
    assert before.get("skipped, was finished") == (None if dirty else "5")
    assert after["done"] == "4"
    assert after["failed"] == before["failed"]
    assert f"3 of 6 jobs failed, the first: {failed}" in said.err
    assert {seed: made[seed].read_text() for seed in (0, 2)} == untouched
    assert json.loads(made[1].read_text())["status"] == "done"


@pytest.mark.parametrize("params", [False, True])
def test_a_setting_that_refers_to_another_follows_it_in_every_job(
    params: bool, run_cli: Callable[..., int], tmp_path: Path
) -> None:
    words = ["data.num_train=1,2", "data.source.val=${data.num_train}"]
    if params:  # as an experiment gives them
        words = [words[0], "+hydra.sweeper.params={data.source.val: '${data.num_train}'}"]
    without = [word for word in AS_IS if not word.startswith(("data.num_train", "data.source.val"))]
    assert run_cli("run", "-m", *without, HERE, *words) == 0
    made = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/*/record.json")]
    assert sorted((record["num_train"], len(record["data"]["val"])) for record in made) == [(1, 1), (2, 2)]


def test_what_runs_elsewhere_is_left_to_whoever_is_at_it(
    swept: tuple[Callable[..., int], dict[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    again, made = swept
    for path in made.values():
        path.unlink()
    capsys.readouterr()
    with held(made[1].parent):
        assert again() == 0
    before, after = states(capsys.readouterr().out)
    assert before["to do"] == "0, 2"
    assert re.match(rf"\[1\] seed=1: process {os.getpid()} on \S+ since \d\d:\d\d$", before["running elsewhere"])
    assert after["done"] == "0, 2"
    assert after["running elsewhere"] == before["running elsewhere"]
    assert not made[1].is_file()
    assert made[0].is_file()


def test_what_has_become_free_is_picked_up_after_the_others(
    swept: tuple[Callable[..., int], dict[int, Path]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again, made = swept
    finished = made[2].read_text()
    for path in made.values():
        path.unlink()
    launch = sweep._launch
    with held(made[1].parent) as go, held(made[2].parent):

        def launched(*arguments: Any) -> None:
            launch(*arguments)
            made[2].write_text(finished)  # the other one has come to its end
            go.set()

        monkeypatch.setattr(sweep, "_launch", launched)
        capsys.readouterr()
        assert again() == 0
    before, after = states(capsys.readouterr().out)
    assert before["to do"] == "0"
    assert after["done"] == "0-1"
    assert "running elsewhere" not in after


def test_who_comes_to_a_run_at_the_same_moment_goes_on(
    swept: tuple[Callable[..., int], dict[int, Path]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again, made = swept
    for path in made.values():
        path.unlink()
    monkeypatch.setattr(sweep, "holder", lambda folder: None)  # they have not been there when it was looked
    capsys.readouterr()
    with held(made[0].parent):
        assert again() == 0
    after = states(capsys.readouterr().out)[-1]
    assert "input as is, run" in after["running elsewhere"]
    assert after["done"] == "1-2"
    assert not made[0].is_file()  # not even as failed


def test_ctrl_c_is_no_traceback(
    swept: tuple[Callable[..., int], dict[int, Path]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "_launch", stopped)
    assert swept[0]() == 130
    assert capsys.readouterr().err == "geoseg: interrupted; the same command goes on with what is left\n"
    assert SWEEP_VARIABLE not in os.environ


def test_numbers_of_workers_that_make_no_sense(run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["workers=0"], "workers=0: 1 or more processes are wanted"),
        (["workers=1,2"], "workers takes one number for the whole sweep, and not several; give workers="),
        (["timeout=-1"], "timeout=-1: seconds above 0 are wanted, or null"),
    ):
        assert run_cli("run", "-m", *AS_IS, "seed=0,1", *words) == 2
        assert message in capsys.readouterr().err


def test_errors_have_exit_codes() -> None:
    from geoseg.checkpoints import Interrupted
    from geoseg.places import DiskFull
    from geoseg.tasks.task import TrainingDiverged

    for error, code, text in (
        (ValueError("no"), 2, "no"),
        (DiskFull("full"), 4, "full"),
        (Interrupted(15, "told"), 143, "told (SIGTERM)"),
        (TrainingDiverged("nan"), 3, "nan"),
        (RuntimeError("odd"), 1, "RuntimeError: odd"),
        (WorkerEnded("gone"), 1, "gone"),
        (sweep.JobFailed("told", 3), 3, "told"),
    ):
        assert (sweep.describe(error).code, sweep.describe(error).text) == (code, text)


def test_a_model_stays_loaded_for_all_that_share_it(
    compose: Callable[[list[str]], Any], tiny_checkpoints: list[str]
) -> None:
    import torch

    from geoseg.config import plain
    from geoseg.palette import Palette

    models, method = Models(), plain(compose([*tiny_checkpoints, "method=label_lora"]).method)
    colours = Palette(["#000000", "#FFFFFF"])

    def get(seed: int = 0, palette: Palette = colours, weights: str = "a") -> Any:
        available = {"palette": palette, "num_classes": palette.num_classes, "seed": seed}
        return models.get(method, "method", available, {"model": weights})

    model = get()
    assert get() is model
    assert get(seed=1) is model  # no weight of it was drawn
    model.unet.enable_gradient_checkpointing()
    model.train()
    assert get() is model
    assert not model.training
    assert not model.unet.is_gradient_checkpointing
    replaced = get(weights="b")  # other content under the same name
    assert replaced is not model
    replaced.to(torch.float16)
    assert get(weights="b") is not replaced
    trained = {**method, "adapter": None}
    available = {"palette": colours, "num_classes": 2, "seed": 0}
    kept = get()
    assert models.get(trained, "method", available, {}) is not kept
    assert get() is kept


TOLD = ("scores", "per_unit", "stages", "stages_per_unit", "facts", "run_id", "fit_id")


def test_a_warm_worker_makes_what_a_fresh_process_makes(
    run_cli: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_run: list[str],
) -> None:
    """The second job of a worker against the same in this process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = [*tiny_run, "experiment=label_lora", "rivals=null"]
    assert run_cli("run", "-m", *words, "seed=0,1") == 0
    said = capfd.readouterr().out
    assert states(said) == [{"to do": "0-1"}, {"done": "0-1"}]
    assert "[1] begins: seed=1\n" in said
    assert run_cli("run", *words, "seed=1", "runs=alone/runs") == 0
    warm, fresh = (records(folder)[1] for folder in (tmp_path, tmp_path / "alone"))
    a, b = (json.loads(path.read_text()) for path in (warm, fresh))
    assert {key: a[key] for key in TOLD} == {key: b[key] for key in TOLD}
    files = [path.relative_to(warm.parent) for path in (warm.parent / "predictions").rglob("*.png")]
    assert len(files) > 5
    assert all((warm.parent / file).read_bytes() == (fresh.parent / file).read_bytes() for file in files)
    adapters = [path.parents[2] / "fits" / a["fit_id"] / "adapter" / a["adapter"][0] for path in (warm, fresh)]
    one, other = (load_file(path) for path in adapters)  # the order of a file's header is left to chance
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


ODD = '''
import os, sys, time
from geoseg.predictors.unchanged import InputAsIs


class Odd(InputAsIs):
    """Answers, or does something else, as the seed says."""

    def __init__(self, palette, seed, how):
        super().__init__(palette)
        self.how = how[seed]

    def predict(self, image, generator):
        if self.how == "raise":
            raise RuntimeError("of bad luck")
        if self.how == "exit":
            sys.exit(4)
        if self.how == "kill":
            os.kill(os.getpid(), 9)
        while self.how == "hang":
            time.sleep(1)
        return super().predict(image, generator)
'''


@pytest.mark.slow
def test_jobs_that_fail_in_every_way(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    how = "+method.predictor.how=[well,raise,exit,kill,hang,well]"
    words = ["method.predictor._target_=odd.Odd", how, "trust=[odd]", "seed=0,1,2,3,4,5", "workers=2", "timeout=20"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "geoseg.cli", "run", "-m", *AS_IS, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 1
    after = states(done.stdout)[-1]
    assert after["done"] == "0, 5"
    for line in (
        "[1] seed=1: RuntimeError: of bad luck",
        "[2] seed=2: it called exit(4)",
        "[3] seed=3: its process was ended by signal 9 (SIGKILL)",
        "[4] seed=4: stopped after 20 seconds, as timeout=20 says",
    ):
        assert line in done.stdout.rpartition("at the end")[2]
    assert "4 of 6 jobs failed, the first: [1] seed=1: RuntimeError: of bad luck" in done.stderr
    assert "of bad luck" in done.stdout.partition("at the end")[0]
    ended = {seed: json.loads(path.read_text())["status"] for seed, path in records(tmp_path).items()}
    assert ended == {0: "done", 1: "failed", 2: "failed", 5: "done"}


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_whose_controller_was_stopped_is_resumed_by_the_same_command(
    signum: signal.Signals, run_cli: Callable[..., int], tmp_path: Path, tiny_run: list[str]
) -> None:
    words = ["run", "-m", *tiny_run, "experiment=label_lora", "rivals=null", "seed=0,1", "method.task.fit.epochs=40"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "geoseg.cli", *words]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)

    with run() as process:
        while not list((tmp_path / "runs").glob("fits/*/metrics.jsonl")):  # in the middle of the first training
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signum)
    assert process.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM}[signum]
    # a kill leaves no word; whoever is asked to stop saves where it is
    saved = list((tmp_path / "runs").glob("fits/*/checkpoints/step_*.ckpt"))
    assert [json.loads(path.read_text())["status"] for path in records(tmp_path).values()] == ["interrupted"] * len(
        saved
    )
    assert len(saved) == (signum == signal.SIGTERM)
    with run() as process:
        said = process.communicate()[0]
    assert process.returncode == 0
    assert states(said) == [{"to do": "0-1"}, {"done": "0-1"}]
    assert run_cli(*words, HERE, "runs=alone/runs") == 0
    for seed, path in records(tmp_path).items():
        resumed, whole = (json.loads(p.read_text()) for p in (path, records(tmp_path / "alone")[seed]))
        assert {key: resumed[key] for key in TOLD} == {key: whole[key] for key in TOLD}
