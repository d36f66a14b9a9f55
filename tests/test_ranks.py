"""One training in several processes, through the command line, against the same training in one."""

from __future__ import annotations

import contextlib
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
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file

from geoseg import progress
from geoseg.cli import main
from geoseg.config import plain
from geoseg.data.sampling import Shares, Visits
from geoseg.loggers import WandbLogger
from geoseg.lora import FILE
from geoseg.ranks import processes_of
from geoseg.tasks.denoising import DenoisingTask
from tests.training import metrics

ROOT = Path(__file__).resolve().parent.parent
TWO = "trainer.devices=2"
HARD = [  # three samples, so that every second batch leaves one process without any
    "method.task.fit.batch_size=2",
    "method.task.fit.epochs=4",
    "method.task.fit.accumulate=2",
    "method.task.fit.validate_every=2",
    "method.task.ema=0.9",
    "data.num_train=3",
    "data.batch_size=1",  # fewer samples to validate on at a time than processes
    "sample_every=4",
    "sample_images=1",
    "figure_rows=0",
    "method.wrappers.sam=null",
]


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def children() -> set[int]:
    """Processes that this one has started, and theirs, but for the one by which multiprocessing cleans up."""
    found: set[int] = set()
    left = [os.getpid()]
    while left:
        for path in Path(f"/proc/{left.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                new = {int(word) for word in path.read_text().split()} - found
                found |= new
                left += new
    return {
        pid for pid in found if is_alive(pid) and b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    }


def ranks(parent: int) -> list[int]:
    """The processes that train for this one, the first of them first."""
    names = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    commands = {int(name): Path(f"/proc/{name}/cmdline").read_bytes() for name in names}
    return sorted(pid for pid, words in commands.items() if b"spawn_main" in words)


@contextlib.contextmanager
def once(ready: Callable[[], bool], act: Callable[[], None], seconds: float = 120) -> Iterator[None]:
    """Does something beside what goes on inside, as soon as it is time."""
    over = threading.Event()

    def look() -> None:
        until = time.monotonic() + seconds
        while not over.wait(0.02) and time.monotonic() < until:
            with contextlib.suppress(OSError):
                if ready():
                    act()
                    return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Overflowing(DenoisingTask):
    """The loss of one sample is infinite in the second step, and no gradient tells."""

    def view(self, split: Any, training: bool) -> Any:
        view = super().view(split, training)
        if training:
            self.bad = split.names[0]
        return view

    def loss(self, batch: dict[str, Any]) -> torch.Tensor:
        losses = super().loss(batch)
        bad = [self.training and self.trainer.global_step == 1 and name == self.bad for name in batch["name"]]
        return losses + torch.tensor([float("inf") if is_bad else 0.0 for is_bad in bad])


@pytest.fixture(scope="module")
def both(tiny_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The same run in one process and in two, and what reached this process from the two."""
    folder = tmp_path_factory.mktemp("ranks")
    before, heard = children(), {"log_metrics": [], "log_pictures": [], "advance": []}
    with contextlib.chdir(folder):
        assert main(["run", *tiny_run, *HARD, "runs=one"]) == 0
        with pytest.MonkeyPatch.context() as patch:
            for place, name in ((WandbLogger, "log_metrics"), (WandbLogger, "log_pictures"), (progress, "advance")):
                patch.setattr(place, name, lambda *given, name=name, **more: heard[name].append((given, more)))
            patch.setattr(WandbLogger, "_start", lambda *given: None)
            words = [word for word in tiny_run if word != "logger=files"]
            assert main(["run", *words, *HARD, "runs=two", "logger=wandb", TWO]) == 0
    left = children() - before
    [one], [two] = ([path.parent for path in (folder / runs).glob("fits/*/fit.json")] for runs in ("one", "two"))
    records = [
        json.loads(path.read_text()) for runs in ("one", "two") for path in folder.glob(f"{runs}/run/*/record.json")
    ]
    return SimpleNamespace(folder=folder, one=one, two=two, records=records, left=left, heard=heard)


def alike(first: Path, second: Path, rel: float = 2e-5, off: float = 1e-3) -> None:
    """The logs of two fits, and how what they learnt has moved from zero, but for rounding and the clock."""
    lines, others = metrics(first), metrics(second)
    for one, two in zip(lines, others, strict=True):
        told = [{name: x for name, x in line.items() if name != "train/samples_per_s"} for line in (one, two)]
        assert told[1] == pytest.approx(told[0], rel=rel)
    learnt, same = (load_file(fit / "adapter" / FILE) for fit in (first, second))
    assert same.keys() == learnt.keys()
    began_at_zero = [name for name in learnt if "lora_B" in name]
    moved, differs = (
        float(torch.cat([tensor.flatten() for tensor in tensors]).norm())
        for tensors in zip(*((learnt[name], learnt[name] - same[name]) for name in began_at_zero), strict=True)
    )
    assert moved > 1e-3
    assert differs <= off * moved


def test_two_processes_learn_what_one_learns(both: SimpleNamespace) -> None:
    assert both.one.name == both.two.name
    alike(both.one, both.two)
    lines = metrics(both.two)
    assert [line["step"] for line in lines if "val/loss" in line] == [1, 3]
    assert len({line["train/loss"] for line in lines if "train/loss" in line}) == 4
    first, second = both.records
    assert [record["run_id"] for record in both.records] == [first["run_id"]] * 2
    assert second["scores"]["val/loss"] == pytest.approx(first["scores"]["val/loss"], rel=1e-5)
    assert second["scores"].keys() == first["scores"].keys()


def test_only_the_first_process_writes(both: SimpleNamespace) -> None:
    files = [sorted(path.relative_to(fit).as_posix() for path in fit.rglob("*")) for fit in (both.one, both.two)]
    assert [re.sub(r"-[0-9a-f]{16}", "", name) for name in files[1]] == [
        re.sub(r"-[0-9a-f]{16}", "", name) for name in files[0]
    ]
    assert sum(name.endswith(".png") for name in files[1]) == 1
    first, second = both.records
    fits = [json.loads((fit / "fit.json").read_text()) for fit in (both.one, both.two)]
    assert [fit["steps"] for fit in fits] == [4, 4]
    assert fits[1].keys() == fits[0].keys()
    assert second["device"] == fits[1]["made_by"]["device"] == f"{first['device']}, 2 processes"


def test_whoever_started_them_hears_of_everything_once(both: SimpleNamespace) -> None:
    passed_on = [given for given, _ in both.heard["log_metrics"] if len(given) == 3]  # Lightning names what it gives
    trained = [(numbers, step) for _, numbers, step in passed_on if "train/loss" in numbers]
    lines = [line for line in metrics(both.two) if "train/loss" in line]
    assert [step for _, step in trained] == [line["step"] for line in lines]
    assert [numbers["train/loss"] for numbers, _ in trained] == [line["train/loss"] for line in lines]
    assert both.heard["log_pictures"][0][0][1] == "samples"
    assert sum(amount for (bar, amount), _ in both.heard["advance"] if bar == "training") == 8


def test_nothing_is_left_behind(both: SimpleNamespace) -> None:
    assert both.left == set()
    assert sorted(path.name for path in both.folder.iterdir()) == ["one", "two"]


def test_what_several_trained_one_finds(
    both: SimpleNamespace, tiny_run: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(both.folder)
    with caplog.at_level("INFO", logger="geoseg"):
        assert main(["run", *tiny_run, *HARD, "runs=two", "method.predictor.strength=0.5"]) == 0
    assert f"trained before as fit {both.two.name}" in caplog.text


@pytest.mark.parametrize(("samples", "size", "of"), [(5, 4, 2), (7, 4, 4), (3, 3, 2), (8, 8, 2)])
def test_shares_make_the_mean_of_the_batch(samples: int, size: int, of: int) -> None:
    whole = Visits(samples, size, 3, seed=1)
    losses = torch.rand(samples, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = [list(Shares(whole, rank, of)) for rank in range(of)]
    assert {len(part) for part in parts} == {len(whole)}
    for number, batch in enumerate(whole):
        mine = [part[number] for part in parts]
        mean = sum(share * losses[i, visit] for part in mine for i, visit, share, _ in part) / of
        assert mean == pytest.approx(float(torch.stack([losses[where] for where in batch]).mean()))
        counted = [(i, visit) for part in mine for i, visit, share, _ in part if share]
        assert sorted(counted) == sorted(batch)
        assert {count for part in mine for *_, count in part} == {len(batch)}


def test_processes_are_started_by_geoseg_alone(
    compose: Callable[[list[str]], DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = plain(compose(["trainer=cpu", TWO, "trainer.strategy=ddp_spawn"]))["trainer"]
    assert processes_of(trainer) == 2
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(ValueError, match="--ntasks=1 where SLURM starts it"):
        processes_of(trainer)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ValueError, match="start it once, without torchrun"):
        processes_of(trainer)
    assert processes_of({**trainer, "devices": 1}) == 1


LONG = [*HARD, "method.task.fit.batch_size=2", "sample_every=0", "save.minutes=0"]


def saved() -> list[Path]:
    return sorted(Path("runs").glob("fits/*/checkpoints/step_*.ckpt"))


@pytest.mark.slow
def test_a_training_that_is_asked_to_stop_goes_on(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", *tiny_run, *LONG, "method.task.fit.epochs=20", TWO]
    assert main([*words, "runs=whole"]) == 0
    with once(lambda: len(saved()) > 1, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert main(words) == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert "as asked; the same command goes on from there (SIGTERM)" in said
    assert 0 < int(saved()[-1].name[5:13]) < 20
    assert not list(Path("runs").glob("fits/*/fit.json"))
    shutil.copytree("runs", "other")
    assert main(words) == 0
    [whole], [stopped] = Path("whole").glob("fits/*"), Path("runs").glob("fits/*")
    alike(whole, stopped, rel=0, off=0)
    assert main([*words, "runs=other", "trainer.devices=1"]) == 0  # and in one process too
    [other] = Path("other").glob("fits/*")
    alike(whole, other, rel=1e-2, off=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_process_that_dies_ends_all(
    which: int, tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before, at = children(), [0.0]

    def kill() -> None:
        at[0] = time.monotonic()
        os.kill(ranks(os.getpid())[which], signal.SIGKILL)

    with once(lambda: len(saved()) > 1, kill):
        assert main(["run", *tiny_run, *LONG, "method.task.fit.epochs=4000", TWO]) == 1
    assert 0 < time.monotonic() - at[0] < 60
    said = capsys.readouterr().err
    assert f"geoseg: process {which + 1} of 2: its process was ended by signal 9 (SIGKILL)" in said
    assert "the same command goes on from the last checkpoint" in said
    [record] = Path("runs").glob("run/*/record.json")
    assert json.loads(record.read_text())["status"] == "failed"
    assert children() == before
    assert saved()


@pytest.mark.slow
def test_processes_end_with_whoever_started_them(tiny_run: list[str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "geoseg.cli", "run", *tiny_run, *LONG, "method.task.fit.epochs=4000", TWO]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with contextlib.chdir(tmp_path), subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as started:
        with once(lambda: len(saved()) > 1, lambda: None, 200):
            until = time.monotonic() + 200
            while len(saved()) < 2 and time.monotonic() < until:
                time.sleep(0.1)
        theirs = ranks(started.pid)
        started.kill()
        started.wait()
    assert len(theirs) == 2
    until = time.monotonic() + 20
    while any(map(is_alive, theirs)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_alive, theirs))


@pytest.mark.slow
def test_all_leave_out_a_step_that_goes_wrong_in_one(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", *tiny_run, *LONG, "method.task._target_=tests.test_ranks.Overflowing", "trust=[tests]"]
    assert main([*words, "runs=one"]) == 0
    assert main([*words, "runs=two", TWO]) == 0
    fits = [next(Path(runs).glob("fits/*")) for runs in ("one", "two")]
    found = [json.loads((fit / "fit.json").read_text()) for fit in fits]
    assert [(fit["skipped"], fit["steps"]) for fit in found] == [(1, 4), (1, 4)]
    alike(*fits)
    told = [record.getMessage() for record in caplog.records if "this step is left out" in record.getMessage()]
    assert len(told) == 2
    assert told[0] == told[1]


@pytest.mark.slow
def test_one_that_diverges_says_so_once(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", *tiny_run, *LONG, "method.task.lr.unet=1e30", "method.task.lr.text=1e30", TWO]
    assert main([*words, "method.task.fit.epochs=20", "method.task.fit.clip=null"]) == 3
    said = capsys.readouterr().err
    assert said.count("steps in a row; lower the learning rate") == 1
    assert len(list(Path("runs").glob(f"fits/*/adapter/{FILE}"))) == 1


@pytest.mark.slow
def test_a_sweep_of_such_trainings_leaves_nothing_behind(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = children()
    assert main(["run", "-m", *tiny_run, *HARD, TWO, "seed=0,1", "workers=2"]) == 0
    records = [json.loads(path.read_text()) for path in Path("runs").glob("run/*/record.json")]
    assert sorted((record["seed"], record["status"]) for record in records) == [(0, "done"), (1, "done")]
    assert all(record["fit"]["device"].endswith("2 processes") for record in records)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert children() == before
