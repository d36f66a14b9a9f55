"""Methods that find regions, through the program: what their records and tables hold."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import geoseg
from geoseg.cli import main
from geoseg.data.synthetic import SyntheticScenes
from geoseg.metrics.regions import RegionScore

OTHERS = [
    "kmeans_attention_constant",
    "kmeans_attention_told",
    "kmeans_pixels",
    "kmeans_pixels_told",
    "kmeans_places",
]


@pytest.fixture(scope="module")
def tiny(tiny_checkpoints: list[str]) -> list[str]:
    words = [word for word in tiny_checkpoints if not word.startswith(("data.num_train", "data.source.train"))]
    return [*words, "data.source.test=5", "data.source.materials=3", "figure_rows=2"]


@pytest.fixture(scope="module")
def finished(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """All methods on the same flat scenes."""
    folder = tmp_path_factory.mktemp("finished")
    rivals = [f"+method@rivals.{name}={name}" for name in OTHERS]
    words = ["data=flat_scenes", "method=attention_segmentation", "method.predictor.threshold=1e-3", *rivals]
    with contextlib.chdir(folder):
        assert main(["run", *tiny, *words, "foresee=true", "objective=val/regions/per_image/iou"]) == 0
    records = {}
    for path in (folder / "runs").glob("*/*/record.json"):
        record = json.loads(path.read_text())
        records[record["method"]] = record | {"folder": path.parent}
    return SimpleNamespace(folder=folder, records=records)


def truth() -> torch.Tensor:
    source = SyntheticScenes("flat", 3, size=32, test=5)
    return torch.stack([torch.from_numpy(source.read(f"test_{i:04d}").target).long() for i in range(5)])


def test_records_hold_what_regions_are_worth(finished: SimpleNamespace) -> None:
    titles = {"attention segmentation", "K-Means-C", "K-Means-S", "K-means on pixels", "K-means on places"}
    assert {*titles, "K-means on pixels, told the number"} == finished.records.keys()
    for record in finished.records.values():
        scores = {name: value for name, value in record["scores"].items() if name.startswith("test/regions/")}
        matched = {f"{how}/{what}" for how in ("per_image", "once") for what in ("accuracy", "iou")}
        assert {name.removeprefix("test/regions/") for name in scores} == {
            *matched,
            "boundary_f1",
            "count",
            "true_count",
        }
        assert scores["test/regions/once/accuracy"] <= scores["test/regions/per_image/accuracy"] <= 1
        assert len(record["per_unit"]["test/regions/per_image/iou"]) == 5
        assert scores["test/regions/true_count"] == np.mean([len(one.unique()) for one in truth()])
        assert record["fit_id"] is None and record["data"]["train"] == []
    pixels = finished.records["K-means on pixels, told the number"]["scores"]
    assert pixels["test/regions/per_image/iou"] == pixels["test/regions/boundary_f1"] == 1
    assert "val/regions/per_image/iou" in finished.records["attention segmentation"]["scores"]
    told = finished.records["K-Means-S"]["scores"]
    assert told["test/regions/count"] <= told["test/regions/true_count"]


def test_few_regions_are_the_label_maps_on_disk(finished: SimpleNamespace) -> None:
    record: dict[str, Any] = finished.records["K-Means-S"]
    files = [Path(record["folder"]) / "predictions" / "labels" / f"test_{i:04d}.png" for i in range(5)]
    found = torch.stack([torch.from_numpy(np.array(Image.open(file))).long() for file in files])
    score = RegionScore(3)
    score.update(found, truth())
    expected = {f"test/regions/{name}": float(value) for name, value in score.compute().items()}
    assert expected == {name: record["scores"][name] for name in expected}


def test_regions_from_python_are_those_of_the_label_maps(finished: SimpleNamespace) -> None:
    folder = finished.records["attention segmentation"]["folder"]
    source = SyntheticScenes("flat", 3, size=32, test=5)
    found = geoseg.load(folder).predict(source.read("test_0000").image, "test_0000")
    assert found.regions is not None
    assert torch.equal(found.regions.clamp(max=found.probs.shape[1] - 1), found.labels)


def test_the_table_of_regions(finished: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    to = finished.folder / "results"
    to.mkdir(exist_ok=True)
    marks = [f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in ("table", "regions", "comparisons")]
    (to / "README.md").write_text("\n".join(marks))
    pair = ["--compare", "K-Means-S", "K-means on pixels, told the number"]
    with contextlib.chdir(finished.folder):
        assert main(["report", "runs", "--to", "results", *pair]) == 0
    text = (to / "README.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    head = next(row for row in rows if "regions per image" in row)
    found = {row[1]: dict(zip(head, row, strict=True)) for row in rows[rows.index(head) + 2 :] if len(row) == len(head)}
    assert found.keys() == finished.records.keys()
    for title, row in found.items():
        assert row["mean IoU ↑"] == f"{finished.records[title]['scores']['test/regions/per_image/iou']:.3f}"
        assert row["validation: mean IoU ↑"] == (
            "-" if title != "attention segmentation" else row["validation: mean IoU ↑"]
        )
    compared = next(row for row in rows if row[1].startswith("K-Means-S − "))
    assert "n = 5" in compared[-2] and compared[-2].startswith("-")
    assert main(["report", str(finished.folder / "runs"), "--to", str(finished.folder / "elsewhere")]) == 0
    assert "regions per image" in capsys.readouterr().out


def test_the_threshold_is_that_of_the_data(compose) -> None:
    def threshold(*words: str) -> float:
        return compose(["method=attention_segmentation", *words]).method.predictor.threshold

    assert threshold("data=coco_stuff27") == 1.1
    assert threshold("data=cityscapes") == 0.9
    assert threshold("data=profiles") == 0.9  # says nothing
    assert threshold("data=cityscapes", "data.merge_threshold=0.7") == 0.7
    assert threshold("data=cityscapes", "method.predictor.threshold=0.5") == 0.5


def test_what_has_to_be_trained_needs_samples(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", *tiny, "data=scenes", "method=unet"]) == 2
    assert "method (U-Net) has to be trained, and there is no sample to train on" in capsys.readouterr().err


def test_a_told_method_predicts_nothing_without_truth(
    finished: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((32, 32), np.uint8)).save("one.png")
    runs = {title: record["folder"] for title, record in finished.records.items()}
    assert main(["predict", f"run={runs['K-means on pixels']}", "input=one.png", "output=labelled"]) == 0
    assert main(["predict", f"run={runs['K-Means-S']}", "input=one.png", "output=other"]) == 2
    assert "only an evaluation knows" in capsys.readouterr().err
