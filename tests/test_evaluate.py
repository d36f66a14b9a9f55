"""Finished runs scored on other data, through the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
from PIL import Image

import geoseg
from geoseg.data.synthetic import SyntheticEarth

METHODS = ("label LoRA", "U-Net", "input as is")
OTHER = ["data=synthetic", "data.source.size=32", "data.source.seed=7", "data.source.test=3", "data.source.train=1"]
OTHER += ["data.source.val=1", "data.batch_size=1"]
HERE = ["trainer=cpu", "logger=files", "progress=false", "figure_rows=1"]


@pytest.fixture
def runs(trained: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of finished runs, in which nothing may be trained."""
    shutil.copytree(trained.runs, tmp_path / "runs")

    def no(*args: Any, **options: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(pl.Trainer, "fit", no)
    return tmp_path / "runs"


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def evaluated(runs: Path, name: str = "evaluate") -> list[dict[str, Any]]:
    return [record_of(path.parent) for path in sorted((runs / name).glob("*/record.json"))]


@pytest.mark.parametrize("title", METHODS)
def test_its_own_data_gives_the_recorded_scores(
    title: str, trained: SimpleNamespace, runs: Path, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    old = trained.records[title]
    files = sorted(runs.rglob("*"))
    assert run_cli("evaluate", f"run={old['run_id']}") == 0
    assert f"{old['scores']['test/iou/mean']:.3f}" in capsys.readouterr().out
    assert sorted(runs.rglob("*")) == files  # nothing was written
    # and what was trained still gives them
    assert run_cli("evaluate", f"run=runs/label_lora/{old['run_id']}", "force=true", *HERE) == 0
    (new,) = evaluated(runs)
    for name in ("per_unit", "stages", "stages_per_unit", "facts", "units", "data", "num_train", "given", "fit_id"):
        assert new[name] == old[name], name
    assert new["scores"] == {name: value for name, value in old["scores"].items() if name.startswith("test/")}
    assert record_of(runs / "label_lora" / old["run_id"]) == old


@pytest.mark.parametrize("title", METHODS)
def test_other_data(
    title: str, trained: SimpleNamespace, runs: Path, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    old = trained.records[title]
    assert run_cli("evaluate", f"run={old['run_id'][:7]}", *OTHER, *HERE) == 0
    (new,) = evaluated(runs)
    folder = runs / "evaluate" / new["run_id"]
    assert new["run_id"] != old["run_id"]
    for name in ("fit_id", "method", "num_train", "given", "seed", "adapter"):
        assert new[name] == old[name], name
    assert (new["experiment"], new["status"]) == ("evaluate", "done")
    assert new["evaluates"]["run_id"] == old["run_id"]
    assert new["evaluates"]["data"] == old["data"]
    assert new["data"]["test"] == ["test_0000", "test_0001", "test_0002"]
    assert new["data"]["train"] == new["data"]["val"] == []
    assert new["data"]["fingerprint"] != old["data"]["fingerprint"]
    assert new["config"]["data"]["source"]["seed"] == 7
    assert "val/loss" not in new["scores"]
    assert new["stages"].keys() == old["stages"].keys()
    # its accuracy by counting pixels of what the loaded method says
    source = SyntheticEarth(size=32, train=1, val=1, test=3, seed=7)
    method = geoseg.load(runs / "label_lora" / old["run_id"])
    right = [
        method.predict(source.read(n).image, n).labels[0].numpy() == source.read(n).target for n in source.names[-3:]
    ]
    assert new["scores"]["test/accuracy/pixel"] == pytest.approx(np.mean(right), rel=1e-6)
    assert (folder / "predictions" / "labels" / "test_0002.png").is_file()
    assert (folder / "figures" / "stages.png").is_file()
    capsys.readouterr()
    # it is found again, and can be reported beside what it evaluates
    before = (folder / "record.json").stat().st_mtime_ns
    assert run_cli("evaluate", f"run={old['run_id']}", *OTHER, *HERE) == 0
    assert (folder / "record.json").stat().st_mtime_ns == before
    assert "evaluate on synthetic facies, seed 0: 3 test profiles" in capsys.readouterr().out
    assert run_cli("report", "runs", "--to", "out") == 0
    assert "4 records" in capsys.readouterr().out
    assert run_cli("evaluate", f"run={folder}", *OTHER, *HERE) == 2
    assert f"is itself an evaluation, of run {old['run_id']}" in capsys.readouterr().err


def write_survey(root: Path, names: list[str], **options: Any) -> None:
    source = SyntheticEarth(size=32, train=4, val=2, test=2, **options)
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for i, name in enumerate(names):
        sample = source.read(name)
        Image.fromarray(sample.image).save(root / "images" / f"line{i}.png")
        Image.fromarray(sample.target).save(root / "labels" / f"line{i}.png")


def test_pictures_it_was_trained_on_are_left_out(
    trained: SimpleNamespace,
    runs: Path,
    run_cli: Callable[..., int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = trained.records["U-Net"]
    known = [*old["data"]["train"], *old["data"]["val"]]
    write_survey(tmp_path / "survey", [*known, "test_0000", "test_0001"])
    here = ["data=profiles", "data.root=survey", "data.source.num_classes=6", *HERE]
    with caplog.at_level("WARNING", logger="geoseg"):
        assert run_cli("evaluate", f"run={old['run_id']}", *here, "name=survey") == 0
    assert "left out, since the run was trained or validated on them: line0, line1, line2, line3" in caplog.text
    assert "does not name its classes; taken as those of the run in their order: 0 upper north sea, 1 " in caplog.text
    (new,) = evaluated(runs, "survey")
    assert new["data"]["test"] == ["line4", "line5"]
    assert new["data"]["class_names"] == old["data"]["class_names"]  # nobody had named them
    # the same pictures under other names, by a method that draws nothing at random
    assert new["per_unit"] == old["per_unit"]
    write_survey(tmp_path / "known", known)
    assert run_cli("evaluate", f"run={old['run_id']}", *here, "data.root=known") == 2
    assert "known has no sample that the run in runs/label_lora" in capsys.readouterr().err


def test_classes_have_to_match(
    trained: SimpleNamespace,
    runs: Path,
    run_cli: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = f"run={trained.records['U-Net']['run_id']}"
    write_survey(tmp_path / "faults", ["test_0000", "test_0001"], kind="fault")
    here = ["data=profiles", "data.root=faults", *HERE]
    assert run_cli("evaluate", run, *here) == 2
    assert "(6 classes against 2); they have to be the same" in capsys.readouterr().err
    names = [*trained.records["U-Net"]["data"]["class_names"][:5], "granite"]
    named = "data.source.class_names=[" + ",".join(f"'{name}'" for name in names) + "]"
    assert run_cli("evaluate", run, *here, "data.source.num_classes=6", named) == 2
    assert "or granite); they have to be the same" in capsys.readouterr().err
    assert run_cli("evaluate", run, *OTHER, *HERE, "data.palette=['#000000','#ffffff']") == 2
    assert "the colours are those that the run was trained with" in capsys.readouterr().err
    assert not (runs / "evaluate").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which run? run=RUN names its folder"),
        (["run=xyz"], "no run below runs is xyz; name one of runs/label_lora/"),
        (["run=RUN", "data.root=x"], "name the data in full, its group too, such as data=profiles data.root="),
        (["run=RUN", "seed=1"], "seed: an evaluation takes that from the run"),
        (["run=RUN", "method.predictor.strength=0.4"], "method.predictor.strength: an evaluation takes that from the"),
        (["run=RUN", "data=synthetic", "method.nothing.path=x"], "method.nothing.path=x: this run has no such file"),
        (["run=RUN", "data=synthetik"], "there is no data=synthetik; did you mean data=synthetic?"),
        (["run=RUN", "data=synthetic", "data.sorce.size=3"], "did you mean data.source.size?"),
        (["run=RUN", "data=profiles"], "the configuration needs a value for data.root"),
        (["run=RUN", "data=profiles", "data.root=nowhere"], "data.root=nowhere is no folder"),
        (
            ["run=RUN", "data=synthetic", "data.source._target_=os.abort"],
            "data.source names os.abort, which is outside",
        ),
        (["run=RUN", "data=kohya", "data.root=runs"], "geoseg evaluate: "),
    ],
)
def test_what_cannot_be_evaluated(
    words: list[str],
    message: str,
    trained: SimpleNamespace,
    runs: Path,
    run_cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word.replace("RUN", trained.records["label LoRA"]["run_id"]) for word in words]
    assert run_cli("evaluate", *words) == 2
    assert message in capsys.readouterr().err
    assert not (runs / "evaluate").exists()


def test_its_help(run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("evaluate", "--help") == 0
    assert "Pictures that the run was trained on are left out" in capsys.readouterr().out
