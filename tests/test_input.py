"""What people give by mistake or in good faith, through the command line: names, prompts, disks, two runs at once."""

from __future__ import annotations

import errno
import os
import re
import shlex
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from omegaconf import DictConfig
from PIL import Image

from geoseg.assembly import Models
from geoseg.config import build, plain
from geoseg.diffusion.codec import Codec
from geoseg.job import Job
from geoseg.loggers import JsonLines
from geoseg.quiet import quieten
from geoseg.quoting import typed
from tests.data.test_pictures import NAMES
from tests.data.test_profiles import folder
from tests.test_cli import AS_IS
from tests.test_quoting import AWKWARD
from tests.test_run import records

PROFILES = ["run", "data=profiles", "data.source.num_classes=3", "logger=files", "progress=false", "trainer=cpu"]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*args: Any, **options: Any) -> None:
        raise AssertionError("work was begun")

    for work in ("fit", "test"):
        monkeypatch.setattr(pl.Trainer, work, no)


# names


def test_names_of_any_kind_come_through_a_run(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = folder(tmp_path / "données 地層 (2)", count=len(NAMES))
    for i, name in enumerate(NAMES):
        for part in ("images", "labels"):
            (root / part / f"line{i}.png").rename(root / part / f"{name}.png")
    command = [*PROFILES, "method=input_as_is", "figure_rows=99"]
    assert run_cli(*command, f"data.root={root}") == 2
    said = capsys.readouterr().err
    assert said.startswith("geoseg: put quotes around the value: ")
    (right,) = shlex.split(said.splitlines()[0].partition("put quotes around the value: ")[2])
    chosen = [name for name in NAMES if "," not in name][:6]
    (select,) = shlex.split(typed(f"data.select=[{', '.join(chosen)}]"))
    assert run_cli(*command, right, select) == 0
    (record,) = records(tmp_path / "runs").values()
    assert record["data"]["name"] == "données 地層 (2)"
    assert record["data"]["train"] == chosen
    assert sorted(record["data"]["test"]) == sorted(set(NAMES) - set(chosen))
    labels = tmp_path / "runs" / "run" / record["run_id"] / "predictions" / "labels"
    assert sorted(path.name for path in labels.iterdir()) == sorted(f"{name}.png" for name in record["data"]["test"])


def test_names_that_are_numbers_and_names_that_are_not_there(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = folder(tmp_path / "survey")
    for i in range(3):
        for part in ("images", "labels"):
            (root / part / f"line{i}.png").rename(root / part / f"{i}.png")
    command = [*PROFILES, "method=input_as_is", "data.root=survey", "figure_rows=0"]
    assert run_cli(*command, "data.select=[1]") == 0
    assert next(iter(records(tmp_path / "runs").values()))["data"]["train"] == ["1"]
    assert run_cli(*command, "data.select=[1.0]") == 2
    said = capsys.readouterr().err
    assert "data.select names ['1.0'], which the data set does not have" in said
    assert """in quotes a name is taken as it stands: 'data.select=["0","1"]'""" in said


@pytest.mark.parametrize("shape", [(1, 1), (10, 3000)])
def test_the_smallest_and_the_thinnest_profile(
    run_cli: Callable[..., int], tmp_path: Path, tiny_run: list[str], shape: tuple[int, int]
) -> None:
    folder(tmp_path / "survey", count=2, size=shape, classes=1)
    words = [word for word in tiny_run if not word.startswith("data.")]
    assert run_cli(*PROFILES, *words, "data.root=survey", "data.num_train=1", "method.task.fit.epochs=1") == 0
    (record,) = records(tmp_path / "runs").values()
    with Image.open(next((tmp_path / "runs").rglob("predictions/refined/*.png"))) as picture:
        assert (picture.height, picture.width) == shape
    assert record["status"] == "done"


# prompts


@pytest.mark.parametrize("text", [text for text in AWKWARD if text.strip() not in ("", "null", "7")])
def test_a_prompt_works_or_the_line_to_type_is_shown(
    compose: Callable[[list[str]], DictConfig],
    run_cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
) -> None:
    seen: list[DictConfig] = []

    def looked(cfg: DictConfig, models: object = None, judge: object = None) -> None:
        seen.append(cfg)
        raise ValueError("looked")

    monkeypatch.setattr("geoseg.run.run", looked)
    word = f"prompt.text={text}"
    assert run_cli("run", word) == 2
    said = capsys.readouterr().err
    if not seen:
        (word,) = shlex.split(re.split(r"put quotes around the value: |one value is typed ", said.splitlines()[0])[1])
        assert run_cli("run", word) == 2
    assert [plain(cfg)["method"]["predictor"]["prompt"] for cfg in seen] == [text]


def test_a_prompt_from_a_file_is_its_content(
    compose: Callable[[list[str]], DictConfig], tiny_run: list[str], tmp_path: Path
) -> None:
    def job(*words: str) -> Job:
        settings = plain(compose([*tiny_run, *words]))
        data = build(settings["data"], "data")
        data.prepare()
        return Job(settings, settings["method"], data)

    one, two = tmp_path / "one.txt", tmp_path / "my prompts, all" / "二.txt"
    two.parent.mkdir()
    one.write_text("﻿8 k, <lora:vai1:1>,\r\n  Tile: 'a' \"b\" {c} = [d]\n", encoding="utf-8")
    two.write_text("8 k, <lora:vai1:1>, Tile: 'a' \"b\" {c} = [d]", encoding="utf-8")
    jobs = [
        job("prompt=text_file", shlex.split(typed(f"prompt.path={path}"))[0] if path == two else f"prompt.path={path}")
        for path in (one, two)
    ]
    for found in jobs:
        assert found.method["predictor"]["prompt"] == two.read_text()
        assert found.method["task"]["caption"] == "8 k, Tile: 'a' \"b\" {c} = [d]"
    assert jobs[0].run_id == jobs[1].run_id
    assert jobs[0].fit_id == jobs[1].fit_id
    line = shlex.split(typed(f"prompt.text={two.read_text()}"))[0]
    words = shlex.split(typed("prompt.words=8 k, Tile: 'a' \"b\" {c} = [d]"))[0]
    assert job(line, words).run_id == jobs[0].run_id  # the same as typed on the command line
    one.write_text("8 k, <lora:vai1:1>, Tile")
    assert job("prompt=text_file", f"prompt.path={one}").run_id != jobs[0].run_id


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "prompt.path=prompt.txt cannot be read: No such file or directory; give a text file"),
        (b"", "prompt.path=prompt.txt is empty; write the prompt into it"),
        (b" \n\t\n", "prompt.path=prompt.txt is empty"),
        ("línea".encode("latin-1"), "prompt.path=prompt.txt is no text in UTF-8"),
        (b"a ${seed}", "prompt.path=prompt.txt holds '${', which calls another setting"),
        (b"a <lora:vai2:1>", "calls an adapter that is not attached; write <lora:vai1:1>"),
        (
            b"<lora:vai1:1> " + 30 * b"q z ",
            "method.predictor: prompt: the text encoder reads 22 tokens and this prompt has",
        ),
    ],
)
def test_a_prompt_file_that_cannot_be_used(
    run_cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_run: list[str],
    no_work: None,
    content: bytes | None,
    message: str,
) -> None:
    if content is not None:
        (tmp_path / "prompt.txt").write_bytes(content)
    words = ["prompt=text_file", "prompt.path=prompt.txt", "prompt.words=a"]
    assert run_cli("run", *tiny_run, *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("method.predictor.negative_prompt", "method.predictor: negative_prompt: the text encoder reads 22 tokens"),
        ("prompt.words", "method.task: caption: the text encoder reads 22 tokens"),
        ("prompt=text_file", "needs a value for prompt.path"),
    ],
)
def test_words_that_would_be_cut(
    run_cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tiny_run: list[str],
    no_work: None,
    word: str,
    message: str,
) -> None:
    value = "" if "=" in word else "=" + 30 * "q z "
    assert run_cli("run", *tiny_run, f"{word}{value}") == 2
    assert message in capsys.readouterr().err


# numbers beyond half precision


@pytest.mark.parametrize(("direction", "names"), [("_encode", "train_"), ("_decode", "test_")])
def test_an_overflow_names_the_profiles(
    run_cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_run: list[str],
    caplog: pytest.LogCaptureFixture,
    direction: str,
    names: str,
) -> None:
    honest = getattr(Codec, direction)
    monkeypatch.setattr(Codec, direction, lambda self, x: honest(self, x) * float("inf"))
    assert run_cli("run", *tiny_run, "sample_every=1") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"geoseg: {names}00")
    assert "the autoencoder gives inf or nan in torch.float32" in said
    (record,) = records(tmp_path / "runs").values()
    assert record["status"] == "failed"
    if direction == "_decode":  # pictures on the way are not worth a training
        assert "no sample pictures after epoch 1: the autoencoder gives inf or nan" in caplog.text


# places


def test_results_cannot_go_into_a_file(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, no_work: None
) -> None:
    (tmp_path / "notes").write_text("mine")
    assert run_cli("run", *AS_IS, "runs=notes/runs") == 2
    assert "notes is no folder; choose another one with runs=FOLDER" in capsys.readouterr().err
    assert (tmp_path / "notes").read_text() == "mine"


def test_results_in_a_folder_that_is_read_only(
    run_cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_work: None,
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert run_cli("run", *AS_IS) == 2
    assert f"{tmp_path} is read-only; choose another one with runs=FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_finished_results_are_read_from_a_read_only_folder(
    run_cli: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_cli("run", *AS_IS) == 0
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert run_cli("run", *AS_IS) == 0
    assert run_cli("run", *AS_IS, "force=true") == 2


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
def test_a_disk_that_fills_up(
    run_cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_run: list[str],
    after: int,
) -> None:
    """The first writes are the configuration, the numbers, the adapter, the fit and the record of the run."""
    sync, left = os.fsync, [after]

    def filling(handle: int) -> None:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        sync(handle)

    words = [*tiny_run, "method.wrappers.sam=null", "method.task.fit.epochs=1", "figure_rows=0", "sample_every=0"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", filling)
        assert run_cli("run", *words) == 4
    assert "geoseg: no room is left for results in runs; mend that and give the same" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]
    assert not list(tmp_path.rglob("record.json"))
    assert bool(list(tmp_path.rglob("adapter/*"))) == (after >= 3)
    assert bool(list(tmp_path.rglob("fit.json"))) == (after >= 4)
    if after in (2, 4):
        assert run_cli("run", *words) == 0
        assert {record["status"] for record in records(tmp_path / "runs").values()} == {"done"}


def test_half_a_line_of_numbers_is_taken_back(tmp_path: Path) -> None:
    import resource

    lines = JsonLines(tmp_path)
    lines.log_metrics({"loss": 0.5}, step=0)
    before = lines.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, hard))  # a file system would do the same
        with pytest.raises(OSError, match=r"No space left|File too large"):
            lines.log_metrics({"loss": 0.25}, step=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert lines.path.read_bytes() == before
    assert lines.write_csv() is not None


# two at once


@pytest.fixture
def at_once(
    compose: Callable[[list[str]], DictConfig], tmp_path: Path
) -> Callable[[list[list[str]]], list[dict[str, Any]]]:
    """Starts one job per command in threads at the same moment, each with data and models of its own."""

    def started(commands: list[list[str]]) -> list[dict[str, Any]]:
        quieten()
        together = threading.Barrier(len(commands))
        jobs = []
        for words in commands:
            settings = plain(compose([*words, f"runs={tmp_path / 'runs'}"]))
            data = build(settings["data"], "data")
            data.prepare()
            job, models = Job(settings, settings["method"], data), Models()
            with job.assembled(models):
                pass  # transformers loads one model at a time
            jobs.append((job, models))

        def one(pair: tuple[Job, Models]) -> dict[str, Any]:
            together.wait()
            return pair[0].result(pair[1])

        with ThreadPoolExecutor(len(jobs)) as pool:
            return list(pool.map(one, jobs))

    return started


def test_the_same_run_twice_at_once_is_computed_once(
    at_once: Callable[[list[list[str]]], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    work, begun = Job._run, []

    def slow(self: Job, method: Any) -> dict[str, Any]:
        begun.append(self.run_id)
        threading.Event().wait(0.5)
        return work(self, method)

    monkeypatch.setattr(Job, "_run", slow)
    first, second = at_once([list(AS_IS), list(AS_IS)])
    assert begun == [first["run_id"]]
    assert first == second
    assert first["status"] == "done"
    assert f"input as is, run {first['run_id']}, is being computed by process {os.getpid()} on" in caplog.text


def test_two_runs_that_share_a_training_train_once(
    at_once: Callable[[list[list[str]]], list[dict[str, Any]]],
    tiny_run: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit, fitted = pl.Trainer.fit, []

    def counted(self: pl.Trainer, *args: Any, **options: Any) -> None:
        fitted.append(1)
        fit(self, *args, **options)

    monkeypatch.setattr(pl.Trainer, "fit", counted)
    words = [*tiny_run, "method.wrappers.sam=null", "method.predictor.second_strength=null", "sample_every=0"]
    both = at_once([[*words, f"method.predictor.strength={strength}"] for strength in (0.5, 0.8)])
    assert fitted == [1]
    assert {record["status"] for record in both} == {"done"}
    assert both[0]["fit_id"] == both[1]["fit_id"]
    assert len(list((tmp_path / "runs").rglob("record.json"))) == 2
    assert len(list((tmp_path / "runs" / "fits").iterdir())) == 1


def test_different_runs_of_one_moment_have_folders_of_their_own(
    at_once: Callable[[list[list[str]]], list[dict[str, Any]]], tmp_path: Path
) -> None:
    found = at_once([[*AS_IS, f"seed={seed}"] for seed in range(3)])
    assert len({record["run_id"] for record in found}) == 3
    assert len(list((tmp_path / "runs").rglob("record.json"))) == 3
