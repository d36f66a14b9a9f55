"""A comparison through the command line: what is planned, run once, ranked and drawn."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image

from geoseg import compare
from geoseg.cli import main
from geoseg.compare import Entry, Room, Speed, entries, minutes_of, print_plan
from tests.test_cli import HERE

DATA = [f"data.source.{key}={value}" for key, value in {"size": 32, "train": 4, "val": 2, "test": 6}.items()]
QUIET = ["trainer=cpu", "logger=files", "progress=false", "foresee=false", "figure_rows=0", HERE]
SHORT = ["task.crop=32", "task.fit.epochs=2", "task.fit.repeats=2", "task.schedule.warmup=0", "model.depth=3"]
WORDS = [*DATA, *QUIET, *(f"method.{word}" for word in SHORT), "methods=input_as_is,unet", "num_train=1,2,9"]
LINE = ["compare", *WORDS, "seeds=2"]


class Compared(NamedTuple):
    """A finished comparison: its folder, what it printed, and its records."""

    folder: Path
    said: str
    records: list[dict[str, Any]]

    @property
    def report(self) -> Path:
        return self.folder / "runs" / "comparison" / "report" / "synthetic_facies"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder, said = tmp_path_factory.mktemp("compared"), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said):
        assert main(LINE) == 0
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("runs/comparison/*/record.json"))]
    return Compared(folder, said.getvalue(), records)


def test_help_is_short(run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("compare", "--help") == 0
    assert "geoseg compare [data=" in capsys.readouterr().out


def test_the_plan_alone_leaves_nothing_behind(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_cli(*LINE, "--dry") == 0
    said = capsys.readouterr().out
    assert "left out: 9 labelled images, since synthetic facies has 4 labelled images to train on" in said
    assert re.search(r"input_as_is: input as is +learns nothing +2 +2 +0 .* a few steps, one profile", said)
    assert "input_as_is: no earlier run of these data; measuring a few steps" in said
    assert re.search(r"unet: U-Net +1 2 +2 +4 +0 ", said)
    assert "6 of 6 runs are left: about " in said
    assert not (tmp_path / "runs").exists()


def test_what_learns_nothing_is_run_once_per_seed(compared: Compared) -> None:
    runs = sorted((one["method"], one["num_train"], one["seed"]) for one in compared.records)
    assert runs == [
        *(("U-Net", size, seed) for size in (1, 2) for seed in (0, 1)),
        *(("input as is", 1, seed) for seed in (0, 1)),
    ]
    assert len({tuple(one["data"]["test"]) for one in compared.records}) == 1


def test_the_ranking_is_that_of_the_records(compared: Compared) -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in (compared.report / "ranking.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    head, *body = rows
    found = {(row[3], int(row[1])): dict(zip(head, row, strict=True)) for row in body}
    assert found.keys() == {(method, size) for method in ("input as is", "U-Net") for size in (1, 2)}
    for size in (1, 2):
        means = {}
        for method in ("input as is", "U-Net"):
            runs = [
                r for r in compared.records if r["method"] == method and (r["num_train"] == size or not r["fit_id"])
            ]
            means[method] = fmean(r["scores"]["test/matched/iou/mean"] for r in runs)
            row = found[method, size]
            assert row["runs"] == "2"
            assert row["matched mean IoU ↑"] == f"{means[method]:.3f}"
            assert row["labels"] == (str(size) if method == "U-Net" else "0")
        last, first = sorted(means, key=means.__getitem__)
        assert [found[method, size]["rank"] for method in (first, last)] == ["1", "2"]
        said = found[last, size]["matched mean IoU − best ↑"]
        pairs = {method: by_profile(compared.records, method, size) for method in means}
        gap = fmean(pairs[last][name] - pairs[first][name] for name in pairs[last])
        assert float(said.split()[0]) == pytest.approx(gap, abs=6e-4)
        assert said.endswith("n = 6")


def by_profile(records: list[dict[str, Any]], method: str, size: int) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for one in records:
        if one["method"] == method and (one["num_train"] == size or not one["fit_id"]):
            for name, value in zip(one["units"]["names"], one["per_unit"]["test/matched/iou/mean"], strict=True):
                scores.setdefault(name, []).append(value)
    return {name: fmean(values) for name, values in scores.items()}


def test_figures_sheet_and_page_are_there(compared: Compared) -> None:
    names = {path.name for path in compared.report.iterdir()}
    figures = {f"{stem}.{suffix}" for stem in ("over_num_train", "cost") for suffix in ("png", "pdf")}
    assert names == {"ranking.md", "results.csv", "results.png", "report.html", *figures}
    with (compared.report / "results.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    assert "<h2>Ranking</h2>" in (compared.report / "report.html").read_text()
    assert re.search(r"U-Net +0\.\d+.*0\.\d+", compared.said.split("which method with how many")[1])
    assert f"page -> {Path('runs/comparison/report/synthetic_facies/report.html')}" in compared.said


def test_the_same_command_repeats_nothing_and_estimates_by_what_was_run(
    compared: Compared, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(compared.folder, tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/comparison/*/record.json")}
    assert run_cli(*LINE, "baseline=input_as_is", "to=answers") == 0
    said = capsys.readouterr().out
    assert "all 6 runs are finished" in said
    assert "begins" not in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "matched mean IoU − input as is ↑" in (tmp_path / "answers" / "ranking.md").read_text()
    assert run_cli("compare", *WORDS, "seeds=3", "--dry") == 0
    said = capsys.readouterr().out
    assert re.search(r"unet: U-Net +1 2 +3 +6 +4 .*4 earlier runs of these data", said)
    assert re.search(r"input_as_is: input as is .* 2 earlier runs of these data", said)
    assert "3 of 9 runs are left" in said


def test_steps_are_counted_as_they_are_made(
    compared: Compared, compose: Callable[[list[str]], DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(compared.folder)
    base = [*DATA, *QUIET, *(f"method.{word}" for word in SHORT), "method=unet", "name=comparison", "sample_every=0"]
    planned = entries({"unet": compose(base)}, [1, 2], [0, 1])
    assert all(entry.finished for entry in planned)
    for entry in planned:
        record = json.loads((entry.folder / "record.json").read_text())
        fit = json.loads((compared.folder / "runs" / "fits" / record["fit_id"] / "fit.json").read_text())
        assert entry.steps == fit["steps"] == 4
        assert (entry.pictures, entry.size) == (6, record["num_train"])


def test_the_estimate_by_hand() -> None:
    def entry(seed: int, steps: int, finished: bool) -> Entry:
        return Entry("unet", "U-Net", True, steps // 100, seed, Path(), finished, steps, 8)

    fast = {"unet": Speed(0.01, 0.25, "two earlier runs")}
    assert minutes_of(entry(0, 100, False), fast["unet"]) == pytest.approx(3)
    planned = [entry(seed, steps, seed == 0) for seed in (0, 1, 2) for steps in (100, 20000)]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        print_plan(planned, fast, workers=2)
    # 2 x (1 + 2) and 2 x (200 + 2) minutes, shared by two
    assert re.search(r"unet: U-Net +1 200 +3 +6 +2 +3 to 202 +410 +two earlier runs", said.getvalue())
    assert "4 of 6 runs are left: about 3.4 hours with 2 workers" in said.getvalue()


def test_a_test_set_is_kept_where_none_is_prescribed(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("images", "labels"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(8):
            values = np.random.default_rng(i).integers(0, 2, (32, 32), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / "mine" / name / f"line{i}.png")
    words = ["data=profiles", "data.root=mine", *QUIET, "methods=input_as_is", "seeds=1"]
    assert run_cli("compare", *words, "num_train=1,6,7", "--dry") == 0
    said = capsys.readouterr().out
    assert "prescribes no split: 2 profiles are kept for the test" in said
    assert "left out: 7 labelled images, since mine has 6 labelled images to train on" in said
    assert run_cli("compare", *words, "num_train=7", "data.num_test=3") == 2
    assert "num_train=7: mine has 5 labelled images to train on; ask for 1 to 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--try"], "there is no option --try; --dry shows"),
        (["method=unet"], "method=unet: a comparison has several; type methods=..."),
        (["seeds=few"], "seeds=few: whole numbers from 1 on are wanted"),
        (["num_train=0,1"], "num_train=0,1: whole numbers from 1 on are wanted"),
        (["methods=unett"], "did you mean method=unet?"),
        (["methods=input_as_is", "data.select=[train_0000]"], "data.select names samples"),
        (["methods=input_as_is", "baseline=unet"], "baseline=unet is none of the methods that are compared: input_as"),
        (["methods=unet", "method.task.fit.stepps=3"], "there is no setting method.task.fit.stepps"),
        (
            ["methods=dinov2_linear", "checkpoints.dinov2.path_or_id=./nothing"],
            "there is no folder './nothing'",
        ),
        (["methods=unet", "method.task.lr=-0.001"], "method=unet cannot be run: method.task: a learning rate"),
    ],
)
def test_what_cannot_be_compared_is_told(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run_cli("compare", *DATA, *QUIET, "num_train=1", "seeds=1", *words) == 2
    assert message in capsys.readouterr().err


def test_the_experiment_lists_what_is_compared(
    run_cli: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}

    def spied(configs: dict[str, Any], sizes: list[int], seeds: list[int]) -> list[Entry]:
        asked.update(titles={name: one.method.title for name, one in configs.items()}, sizes=sizes, seeds=seeds)
        return []

    monkeypatch.setattr(compare, "entries", spied)
    monkeypatch.setattr(compare, "room", lambda config: Room(20, None, "earth"))
    assert run_cli("compare", "--dry") == 0
    assert (asked["sizes"], asked["seeds"]) == ([1, 2, 4, 8, 16], [0, 1, 2, 3, 4])
    assert list(asked["titles"]) == [
        *("input_as_is", "otsu", "maximum_entropy", "balanced_histogram", "adaptive_threshold", "canny_watershed"),
        *("sobel_watershed", "kmeans", "mean_shift", "active_contours"),
        *("without_lora", "label_lora", "label_lora_tuned", "unet"),
        *("dinov2_linear", "dinov2_pup", "dinov2_mla", "dinov2_dpt", "mask_diffusion"),
    ]
    assert len(set(asked["titles"].values())) == 19
