"""Runs in Weights & Biases from their files, read back by wandb's own reader."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from geoseg.lora import FILE


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
