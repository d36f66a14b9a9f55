"""Where numbers go: JSON lines that anybody can read, and a Weights & Biases that can never stop a run."""

from __future__ import annotations

import builtins
import csv
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from geoseg.loggers import JsonLines, WandbLogger


def strict(line: str) -> dict[str, Any]:
    """A line of JSON as the standard has it, without NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(line, parse_constant=refuse)


def test_json_lines(tmp_path: Path) -> None:
    logger = JsonLines(tmp_path / "run")
    logger.log_metrics({"train/loss": 0.25, "epoch": 0}, step=3)
    logger.log_metrics({"epoch": 0}, step=4)
    logger.log_metrics({"train/loss": math.nan, "lr/unet": 1e-4, "x": -math.inf}, step=5)
    logger.log_hyperparams({"a": 1})
    # written at once, not when the logger is closed
    lines = [strict(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 3, "train/loss": 0.25},
        {"step": 5, "train/loss": None, "lr/unet": 1e-4, "x": None},
    ]


def test_a_new_logger_begins_a_new_file(tmp_path: Path) -> None:
    for _ in range(2):
        JsonLines(tmp_path).log_metrics({"a": 1.0}, step=0)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_the_same_numbers_as_a_table(tmp_path: Path) -> None:
    logger = JsonLines(tmp_path)
    assert logger.write_csv() is None
    logger.log_metrics({"train/loss": 0.5, "lr/unet": 0.125}, step=0)
    logger.log_metrics({"train/loss": math.nan, "lr/unet": 0.25}, step=1)
    logger.log_metrics({"val/loss": 0.75}, step=1)
    path = logger.write_csv()
    assert path is not None
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"step": "0", "lr/unet": "0.125", "train/loss": "0.5", "val/loss": ""},
        {"step": "1", "lr/unet": "0.25", "train/loss": "", "val/loss": "0.75"},
    ]


@pytest.fixture
def wandb_logger(tmp_path: Path) -> Iterator[Callable[[], WandbLogger]]:
    made: list[WandbLogger] = []

    def start() -> WandbLogger:
        logger = WandbLogger(
            folder=tmp_path / "run",
            run_id="abc123",
            group="label_lora",
            title="label LoRA abc123",
            tags=["label LoRA", "checkpoints=demo"],
            config={"method": {"predictor": {"strength": 0.53}}, "seed": 4},
        )
        made.append(logger)
        return logger

    yield start
    for logger in made:
        logger.close({})


def inspect(folder: Path) -> str:
    """The records of the one offline run below a folder, as wandb's own reader gives them."""
    (log,) = folder.rglob("*.wandb")
    wandb = Path(sys.executable).with_name("wandb")
    done = subprocess.run(
        [str(wandb), "leet", "inspect", "--json", str(log)], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_what_wandb_was_told_can_be_read_back(tmp_path: Path, wandb_logger: Callable[[], WandbLogger]) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "stages.png")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights.safetensors").write_bytes(b"weights")
    logger = wandb_logger()
    logger.log_metrics({"train/loss": 0.4321, "lr/unet": 1.5e-4}, step=7)
    logger.log_metrics({"test/iou/mean": 0.8765}, step=0)  # testing begins at 0 again
    logger.log_pictures("figures", [tmp_path / "stages.png"])
    logger.log_table("scores", ["stage", "iou"], [["pass 1", 0.5], ["refined", 0.625]])
    logger.log_files("adapter-f1", "adapter", [tmp_path / "adapter", tmp_path / "stages.png"])
    logger.close({"test/iou/mean": 0.8765})
    logger.log_metrics({"train/loss": 1.0}, step=8)  # after the end, nothing happens
    text = inspect(tmp_path / "run")
    records = [json.loads(line) for line in text.splitlines()]
    assert {record["type"] for record in records} >= {"run", "history", "artifact", "summary"}
    run = next(json.dumps(record) for record in records if record["type"] == "run")
    for word in ("abc123", "label_lora", "label LoRA abc123", "checkpoints=demo", "geoseg", "strength", "0.53"):
        assert word in run
    history = [json.dumps(record) for record in records if record["type"] == "history"]
    assert any("train/loss" in line and "0.4321" in line and "lr/unet" in line for line in history)
    assert any("test/iou/mean" in line and "0.8765" in line for line in history)
    assert any("figures/stages" in line and "image-file" in line for line in history)
    assert any("scores" in line and "table-file" in line for line in history)
    artifact = next(
        json.dumps(record) for record in records if record["type"] == "artifact" and "adapter-f1" in str(record)
    )
    assert "weights.safetensors" in artifact
    table = next((tmp_path / "run").rglob("*.table.json"))
    assert json.loads(table.read_text()) == {"columns": ["stage", "iou"], "data": [["pass 1", 0.5], ["refined", 0.625]]}


def use(logger: WandbLogger, tmp_path: Path) -> None:
    """Everything that a run does with the logger."""
    logger.log_metrics({"train/loss": 0.5}, step=0)
    logger.log_hyperparams({})
    logger.log_pictures("figures", [tmp_path / "nothing.png"])
    logger.log_table("scores", ["a"], [[1]])
    logger.log_files("adapter", "adapter", [tmp_path / "nothing"])
    logger.close({"a": 1.0})


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "geoseg"]


def test_wandb_that_does_not_start(
    tmp_path: Path,
    wandb_logger: Callable[[], WandbLogger],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import wandb

    def dead(**options: Any) -> None:
        raise wandb.errors.CommError("no network")

    monkeypatch.setattr(wandb, "init", dead)
    with caplog.at_level(logging.WARNING, "geoseg"):
        use(wandb_logger(), tmp_path)
    assert said(caplog) == ["Weights & Biases is off for the rest of this run: no network"]


def test_a_dead_network_is_waited_for_once(
    tmp_path: Path,
    wandb_logger: Callable[[], WandbLogger],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import wandb

    asked = []
    start = wandb.init

    def init(**options: Any) -> Any:
        asked.append(options["mode"])
        if options["mode"] == "online":
            raise wandb.errors.CommError("no route")
        return start(**options)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(WandbLogger, "_unreachable", False)
    monkeypatch.setenv("WANDB_MODE", "online")
    with caplog.at_level(logging.WARNING, "geoseg"):
        first = wandb_logger()
        first.log_metrics({"train/loss": 0.5}, step=0)
        first.close({})
        wandb_logger().close({})
    assert asked == ["online", "offline", "offline"]
    assert len(said(caplog)) == 1 and "stay offline (no route)" in said(caplog)[0]
    assert list((tmp_path / "run").rglob("*.wandb"))


def test_wandb_that_is_not_installed(
    tmp_path: Path,
    wandb_logger: Callable[[], WandbLogger],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "wandb":
            raise ImportError("No module named 'wandb'")
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with caplog.at_level(logging.WARNING, "geoseg"):
        use(wandb_logger(), tmp_path)
    assert said(caplog) == ["Weights & Biases is off for the rest of this run: No module named 'wandb'"]


class Broken:
    """A wandb run that fails at one kind of call."""

    def __init__(self, at: str) -> None:
        self.at, self.calls = at, 0
        self.summary: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> None:
            self.calls += 1
            if name == self.at:
                raise OSError("no space left on device")

        return call


@pytest.mark.parametrize("at", ["log", "log_artifact", "finish"])
def test_wandb_that_breaks_on_the_way(
    tmp_path: Path,
    wandb_logger: Callable[[], WandbLogger],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at: str,
) -> None:
    import wandb

    run = Broken(at)
    monkeypatch.setattr(wandb, "init", lambda **options: run)
    (tmp_path / "nothing").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "nothing.png")
    logger = wandb_logger()
    with caplog.at_level(logging.WARNING, "geoseg"):
        use(logger, tmp_path)
        before = run.calls
        use(logger, tmp_path)
    assert said(caplog) == ["Weights & Biases is off for the rest of this run: no space left on device"]
    assert run.calls == before  # once is enough
