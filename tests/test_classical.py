"""Methods without a network through the program: tuned, recorded, evaluated elsewhere, tabulated, compared."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image

import geoseg
from geoseg.cli import main
from geoseg.config import plain
from geoseg.data.synthetic import SyntheticEarth

CLASSICAL = ["otsu", "maximum_entropy", "balanced_histogram", "adaptive_threshold", "canny_watershed"]
CLASSICAL += ["sobel_watershed", "kmeans", "mean_shift", "active_contours"]
SIZES = {"size": 32, "train": 4, "val": 1, "test": 3}
SMALL = [f"data.source.{key}={value}" for key, value in SIZES.items()]
QUIET = ["trainer=cpu", "logger=files", "progress=false", "foresee=false", "figure_rows=0"]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("record.json"))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """All methods on one kind of ground, two of them evaluated on a larger picture, and one without labels."""
    folder = tmp_path_factory.mktemp("classical")
    rivals = [f"+method@rivals.{name}={name}" for name in CLASSICAL if name != "otsu"]
    with contextlib.chdir(folder):
        assert main(["run", "experiment=classical", "data=salt", *SMALL, *QUIET, *rivals]) == 0
        made = {record["method"]: record for record in records(Path("runs"))}
        for title in ("Otsu", "mean shift"):
            words = [f"run={made[title]['run_id']}", "name=classical", "data=salt", "data.source.size=48", *SMALL[1:]]
            assert main(["evaluate", *words, *QUIET]) == 0
        untold = ["method=otsu", "method.task=null", "data=salt", "name=untold"]
        assert main(["run", *untold, *SMALL, *QUIET]) == 0
    return SimpleNamespace(folder=folder, made=made)


def test_every_method_is_tuned_and_recorded(place: SimpleNamespace) -> None:
    assert len(place.made) == len(CLASSICAL)
    for record in place.made.values():
        grid = record["config"]["method"]["task"]["grid"]
        assert record["given"] == {"images": 4, "labels": 4, "pretraining": "none"}
        assert record["tuned"]["settings"].keys() == grid.keys()
        assert all(record["tuned"]["settings"][name] in values for name, values in grid.items())
        assert sorted(record["tuned"]["names"]) == [0, 1]
        costs = record["costs"]
        assert costs["trials"] == np.prod([len(values) for values in grid.values()]) == 8
        assert costs["tuned_parameters"] == len(grid) and costs["trainable_parameters"] == 0
        assert costs["ms_per_image"] > 0 and record["minutes"]["fit"] > 0
        assert 0 <= record["scores"]["test/iou/mean"] <= record["scores"]["test/matched/iou/mean"] <= 1
        assert record["adapter"] == ["tuned.json"]


def test_without_labels_the_rule_is_as_it_was_set(place: SimpleNamespace) -> None:
    (record,) = records(place.folder / "runs" / "untold")
    assert record["given"]["labels"] == record["given"]["images"] == 0 and record["fit_id"] is None
    assert "tuned" not in record and record["costs"]["trials"] is None
    profile = SyntheticEarth("salt", **SIZES).read("test_0000").image
    method = geoseg.load(place.folder / "runs" / "untold" / record["run_id"])
    labels = method.predict(profile).labels[0].numpy()
    assert profile[labels == 1].mean() > profile[labels == 0].mean()  # by number: dark is 0


def test_a_finished_run_labels_as_it_was_scored(place: SimpleNamespace) -> None:
    record = place.made["K-means"]
    folder = place.folder / "runs" / "classical" / record["run_id"]
    method = geoseg.load(folder)
    sample = SyntheticEarth("salt", **SIZES).read("test_0001")
    right = (method.predict(sample.image).labels[0].numpy() == sample.target).mean()
    assert right == pytest.approx(record["per_unit"]["test/accuracy/pixel"][1], abs=1e-6)
    # colour of three equal channels is the same picture
    colour = np.repeat(sample.image[..., None], 3, axis=2)
    assert (method.predict(colour).labels == method.predict(sample.image).labels).all()


def test_the_table_of_domains(
    place: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    assert main(["report", "runs/classical", "--to", "told", "--domains"]) == 0
    said = capsys.readouterr().out
    start = next(i for i, line in enumerate(said.splitlines()) if "tuned parameters" in line)
    lines = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in said.splitlines()[start:]
        if line.startswith("|")
    ]
    head, _, *rows = lines
    table = [dict(zip([cell.strip() for cell in head], row, strict=True)) for row in rows]
    assert len(table) == len(CLASSICAL)  # evaluations have no row of their own
    there = {row["method"]: row for row in table}
    evaluated = {r["method"]: r for r in records(place.folder / "runs" / "classical") if "evaluates" in r}
    assert set(evaluated) == {"Otsu", "mean shift"}
    for title, row in there.items():
        own = place.made[title]
        assert row["mean IoU ↑"] == f"{own['scores']['test/iou/mean']:.3f}"
        assert (row["trials"], row["tuned parameters"]) == ("8", str(own["costs"]["tuned_parameters"]))
        if title in evaluated:
            assert row["out of domain"].startswith("synthetic salt (") and "size=48)" in row["out of domain"]
            assert row["mean IoU there ↑"] == f"{evaluated[title]['scores']['test/iou/mean']:.3f}"
            assert evaluated[title]["tuned"] == own["tuned"]
        else:
            assert (row["out of domain"], row["mean IoU there ↑"]) == ("-", "-")


def test_colours_and_ignored_pixels_of_files(tmp_path: Path, run_cli: Callable[..., int]) -> None:
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / "profiles" / folder).mkdir(parents=True)
    for i in range(4):
        target = (np.arange(24)[:, None] * np.ones((1, 30)) > 8 + i).astype(np.uint8)
        picture = np.where(target[..., None] == 1, [200, 150, 100], [40, 30, 20]) + rng.integers(0, 9, (24, 30, 3))
        target[:, :5] = 255
        picture[:, :5] = 255 - picture[:, :5]
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "profiles" / "images" / f"{i}.png")
        Image.fromarray(target).save(tmp_path / "profiles" / "labels" / f"{i}.png")
    words = ["data=profiles", "data.root=profiles", "data.num_train=2", "method=otsu", "data.source.num_classes=2"]
    assert run_cli("run", *words, *QUIET) == 0
    (record,) = records(tmp_path / "runs")
    assert record["scores"]["test/iou/mean"] > 0.85 and record["tuned"]["names"] == [0, 1]


def test_they_join_a_comparison(
    tmp_path: Path, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    # the length is that of methods trained in steps, which tuned ones do not know
    words = ["methods=input_as_is,otsu", "num_train=1,2", "seeds=1", "method.task.fit.steps=2"]
    assert run_cli("compare", *words, *SMALL, *QUIET) == 0
    said = capsys.readouterr().out
    assert "otsu: Otsu" in said
    with (tmp_path / "runs" / "comparison" / "report" / "synthetic_facies" / "results.csv").open(newline="") as file:
        found = sorted((row["method"], row["num_train"]) for row in csv.DictReader(file))
    assert found == [("Otsu", "1"), ("Otsu", "2"), ("input as is", "1")]


def test_what_cannot_be_is_told_before_any_work(
    tmp_path: Path, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for word, told in (
        ("+method.task.grid.zones=[2]", "method.task: grid.zones: Thresholds has no such setting"),
        ("method.task.grid.sigma=[-1]", "method.task: sigma must be 0 or more"),
        ("method.model.rule.sigma=-1", "method.model.rule: sigma must be 0 or more"),
        ("trainer.devices=2", "trainer.devices=2: method (Otsu) is tuned in one process"),
    ):
        assert run_cli("run", "method=otsu", *SMALL, *QUIET, word) == 2
        assert told in capsys.readouterr().err
    assert not list(tmp_path.rglob("record.json"))


def test_the_experiment_and_the_comparison_name_them_all(compose: Callable[[list[str]], DictConfig]) -> None:
    for name in CLASSICAL:
        settings = plain(compose([f"method={name}"]))["method"]
        rule, grid = settings["model"]["rule"], settings["task"]["grid"]
        assert grid.keys() <= rule.keys()
        assert all(values == sorted(values) for values in grid.values())
    from geoseg.config import conf_folder

    for name in ("classical", "comparison"):
        text = (conf_folder() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
        assert all(f"        {method},\n" in text for method in CLASSICAL)
