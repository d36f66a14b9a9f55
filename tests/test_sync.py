"""Runs in Weights & Biases from their files, read back by wandb's own reader."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest

from geoseg.config import identity
from geoseg.lora import FILE
from geoseg.summary import summary_cells
from geoseg.sync import SUMMARY


def told(folder: Path) -> list[dict[str, Any]]:
    """What the one offline run below a folder holds."""
    (log,) = folder.rglob("*.wandb")
    wandb = Path(sys.executable).with_name("wandb")
    done = subprocess.run(
        [str(wandb), "leet", "inspect", "--json", str(log)], capture_output=True, text=True, timeout=60, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The numbers that were logged, in their order, without what wandb adds to them."""
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [{name: value for name, value in item.items() if not name.startswith("_")} for item in items]


def test_a_run_that_wandb_never_saw(
    trained: SimpleNamespace, run_cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained.runs, tmp_path / "runs")
    record = trained.records["label LoRA"]
    folder = tmp_path / "runs" / "label_lora" / record["run_id"]
    assert run_cli("sync", record["run_id"][:8]) == 0
    said = capsys.readouterr().out
    (log,) = folder.rglob("*.wandb")
    assert f"{record['run_id'][:8]}: written; wandb sync " in said and log.parent.name in said
    records = told(folder)
    run = next(json.dumps(one) for one in records if one["type"] == "run")
    for word in (record["run_id"], "label_lora", f"label LoRA {record['run_id']}", "checkpoints=local", "strength"):
        assert word in run
    # each number once, in its order: those of the training, then those of the test
    wanted = []
    for path in (tmp_path / "runs" / "fits" / record["fit_id"], folder):
        wanted += [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    numbers = history(records)
    assert len(wanted) > 5
    for line, now in zip(wanted, numbers, strict=False):
        assert now.keys() == line.keys()  # and what JSON cannot hold is no number there either
        assert {name: now[name] for name, x in line.items() if x is not None} == pytest.approx(
            {name: x for name, x in line.items() if x is not None}, rel=1e-6
        )
    assert all(not {"train/loss", "test/iou/mean"} & line.keys() for line in numbers[len(wanted) :])
    rest = str(records)
    for words in ("table-file", f"adapter-{record['fit_id']}", FILE, "figures/training"):
        assert words in rest
    assert trained.records["label LoRA"] == json.loads((folder / "record.json").read_text())


def test_what_cannot_be_told(
    trained: SimpleNamespace,
    run_cli: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import wandb

    shutil.copytree(trained.runs, tmp_path / "runs")
    assert run_cli("sync", "xyz", "nothing/here") == 2
    said = capsys.readouterr().err
    assert "geoseg sync: no run below runs is xyz" in said and "there is no folder nothing/here" in said

    def dead(**options: Any) -> None:
        assert options["resume"] is None  # what was there is replaced
        raise wandb.errors.CommError("no disk")

    monkeypatch.setattr(wandb, "init", dead)
    assert run_cli("sync", trained.records["input as is"]["run_id"]) == 2
    assert "could not be told to Weights & Biases" in capsys.readouterr().err


def tables(folder: Path) -> dict[str, dict[str, Any]]:
    """The tables that a run's wandb folder holds, by name."""
    found = folder.rglob("*.table.json")
    return {path.relative_to(folder).as_posix(): json.loads(path.read_text()) for path in found}


SWEEP = ("run", "-m", "method=input_as_is", "data.source.size=32", "data.source.train=4", "data.source.val=2")
SWEEP += ("data.source.test=2", "progress=false", "trainer=cpu", "hydra/launcher=basic", "name=how_many")


def test_a_sweep_leaves_one_summary(
    run_cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = tmp_path / "runs" / "how_many"
    assert run_cli(*SWEEP, "data.num_train=1,2", "seed=0,1", "logger=files") == 0
    assert not (group / SUMMARY).exists()  # logging is off
    assert run_cli(*SWEEP, "data.num_train=1,3", "seed=0,1") == 0
    records = told(group / SUMMARY)
    (run,) = (one["run"] for one in records if one["type"] == "run")
    assert (run["run_id"], run["run_group"], run["job_type"]) == (
        identity("summary", "how_many"),
        "how_many",
        "summary",
    )
    assert "offline" in next((group / SUMMARY).rglob("*.wandb")).parent.name
    wanted = [json.loads(path.read_text()) for path in group.glob("*/record.json")]
    assert len(wanted) == 6  # two of them from before
    found = tables(group / SUMMARY)
    (summary,) = (table for name, table in found.items() if "/summary_" in name)
    assert summary == dict(zip(("columns", "data"), map(list, summary_cells(wanted)), strict=True))
    (over,) = (table for name, table in found.items() if "num_train" in name)
    assert over["columns"][:5] == ["data", "method", "stage", "data.num_train", "runs"]
    score = over["columns"].index("matched mean IoU ↑")
    for row in over["data"]:
        scores = [one["scores"]["test/matched/iou/mean"] for one in wanted if one["num_train"] == row[3]]
        assert (row[4], row[score]) == (2, pytest.approx(fmean(scores)))
    assert [row[3] for row in over["data"]] == [1, 2, 3]
    shown = json.dumps([one for one in records if one["type"] == "history"])
    for words in ("over/data.num_train", "figures/over_data_num_train", "figures/cost", "table-file", "image-file"):
        assert words in shown
    assert "over/seed" not in shown
    again = {path.stem: path.read_bytes() for path in (group / SUMMARY).glob("*.png")}
    assert again.keys() == {"over_data_num_train", "cost"}

    # from files alone it is the same run, with the same in it, and in the place of the other
    capsys.readouterr()
    assert run_cli("sync", "runs/how_many") == 0
    assert "runs/how_many: written; wandb sync " in capsys.readouterr().out
    (anew,) = (one["run"] for one in told(group / SUMMARY) if one["type"] == "run")
    assert (anew["run_id"], anew["run_group"]) == (run["run_id"], run["run_group"])
    assert list(tables(group / SUMMARY).values()) == list(found.values())
    assert {path.stem: path.read_bytes() for path in (group / SUMMARY).glob("*.png")} == again


def test_wandb_cannot_stop_a_sweep_at_its_end(
    run_cli: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    start = wandb.init

    def init(**options: Any) -> Any:
        if options["job_type"] == "summary":
            raise OSError("no space left on device")
        return start(**options)

    monkeypatch.setattr(wandb, "init", init)
    assert run_cli(*SWEEP, "seed=0,1", "data.num_train=1") == 0
    assert "no summary of runs/how_many in Weights & Biases" in caplog.text
    assert run_cli("sync", "runs/how_many") == 2
    for path in tmp_path.rglob("record.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "status": "failed"}))
    assert run_cli("sync", "runs/how_many") == 2
