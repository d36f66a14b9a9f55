"""Classes of whole images, through the program: data, training, scores, record, figures, reports."""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import shutil
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import geoseg
from geoseg.cli import main
from geoseg.data.scene_classes import SceneClasses
from geoseg.losses import read_curves
from geoseg.mixtures import by_epoch, mixture_cells, mixtures
from geoseg.report import collect
from tests.tiny import tiny_dinov2

SCENES = {"size": 16, "train": 60, "val": 10, "test": 20}
EPOCHS = 3


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a tiny vision transformer and a training of some steps."""
    folder = tmp_path_factory.mktemp("encoder") / "vit"
    tiny_dinov2(patch=8).save_pretrained(folder)
    words = [f"checkpoints.vit.path_or_id={folder}", "checkpoints.vit.side=16", "trainer=cpu"]
    words += ["logger=files", "progress=false", "foresee=false", "method.task.schedule.warmup=0"]
    return [*words, f"method.task.fit.epochs={EPOCHS}", "method.task.fit.batch_size=8", "figure_rows=2"]


def scenes(key: str = "data.source") -> list[str]:
    return [f"{key}.{name}={value}" for name, value in SCENES.items()]


@pytest.fixture(scope="session")
def finished(vit: list[str], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("classified")
    words = ["run", "method=vit", "data=scene_classes", *scenes(), "data.num_train=20", *vit]
    with contextlib.chdir(folder):
        assert main([*words, "objective=val/f1/mean"]) == 0
    (record,) = collect([folder / "runs"])
    return SimpleNamespace(record=record, words=words, runs=folder / "runs", folder=folder / "runs" / "run")


def test_the_record_has_the_scores_of_whole_images_and_no_others(finished: SimpleNamespace) -> None:
    record = finished.record
    names = {name for name in record["scores"] if "class_" not in name and name.startswith("test/")}
    scored = ("accuracy/image", "accuracy/mean", "f1/mean", "cross_entropy", "calibration/error")
    assert names == {f"test/{name}" for name in scored}
    assert {"val/loss", "val/accuracy/image", "val/f1/mean"} <= record["scores"].keys()
    assert record["data"]["per_image"] is True
    confusion = np.array(record["confusion"])
    assert confusion.shape == (10, 10) and (confusion.sum(1) == 2).all()
    assert record["scores"]["test/accuracy/image"] == pytest.approx(np.trace(confusion) / 20)
    right = record["per_unit"]["test/accuracy/image"]
    assert len(right) == 20 and np.mean(right) == pytest.approx(record["scores"]["test/accuracy/image"])
    assert np.mean(record["per_unit"]["test/cross_entropy"]) == pytest.approx(record["scores"]["test/cross_entropy"])


def test_answers_and_figures_are_written(finished: SimpleNamespace) -> None:
    record, folder = finished.record, finished.folder / finished.record["run_id"]
    assert record["figures"] == [f"figures/{name}.png" for name in ("answers", "training", "confusion")]
    for figure in record["figures"]:
        with Image.open(folder / figure) as picture:
            assert min(picture.size) > 200
    with (folder / "predictions" / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == record["data"]["test"]
    source = SceneClasses(**SCENES)
    assert [row["class"] for row in rows] == [source.class_names[source.label(row["name"])] for row in rows]
    assert [float(row["class"] == row["answer"]) for row in rows] == record["per_unit"]["test/accuracy/image"]


def test_the_method_comes_back_and_gives_an_image_one_class(finished: SimpleNamespace) -> None:
    method = geoseg.load(finished.folder / finished.record["run_id"])
    source = SceneClasses(**SCENES)
    pictures = np.stack([source.read(name).image for name in finished.record["data"]["test"]])
    found = method.predict(pictures, name=finished.record["data"]["test"])
    assert found.probs.shape == (20, 10)
    truth = torch.tensor([source.label(name) for name in finished.record["data"]["test"]])
    right = (found.labels == truth).double().mean()
    assert float(right) == pytest.approx(finished.record["scores"]["test/accuracy/image"])


def test_accuracies_are_logged_epoch_by_epoch(finished: SimpleNamespace) -> None:
    record = finished.record
    curves = read_curves(finished.runs / "fits" / record["fit_id"] / "metrics.jsonl")
    epochs = by_epoch(record, curves)
    for name in ("train/loss", "val/loss", "train/accuracy/image", "val/accuracy/image"):
        assert epochs[name].steps.tolist() == [1, 2, 3], name
    assert (epochs["train/accuracy/image"].values <= 1).all()
    assert epochs["val/accuracy/image"].values[-1] == pytest.approx(record["scores"]["val/accuracy/image"], abs=1e-6)
    assert curves["train/loss"].values[:3].mean() == pytest.approx(epochs["train/loss"].values[0])


def test_the_same_command_finds_the_run(finished: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.chdir(finished.runs.parent), caplog.at_level("INFO", logger="geoseg"):
        assert main([*finished.words, "objective=val/f1/mean"]) == 0
    assert "found finished run" in caplog.text


def test_reports_tell_scores_of_images_alone(
    finished: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(finished.runs), "--to", str(tmp_path), "--figures", "--html", "--csv", "--tex"]) == 0
    printed = capsys.readouterr().out
    assert "macro F1 ↑" in printed and "IoU" not in printed and "20 images and their classes" in printed
    assert (tmp_path / "report.html").is_file() and (tmp_path / "losses.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=unet", "data=scene_classes"], "one class per image, and this network gives one per pixel"),
        (["method=vit", "data.source.size=32"], "a class per pixel, and this network gives one per image"),
        (["method=kmeans_pixels", "data=scene_classes"], "labels pixels, and the data set has classes of images"),
        (["method=otsu", "data=scene_classes"], "one class per image, and a rule is tuned for pixels"),
        (["method=vit", "data=scene_classes", "method.task.crop=8"], "crop=8: a square need not show what"),
        (["method=vit", "data=scene_classes", "method.model.finetune=lora"], "finetune=lora, but no adapter is"),
        (["method=vit", "data=scene_classes", "checkpoints.vit.path_or_id=null"], "no vision transformer is chosen"),
    ],
)
def test_what_does_not_go_together_is_told(
    vit: list[str],
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    general = [word for word in vit if not word.startswith("method.") or words[0] == "method=vit"]
    size = [*scenes(), "data.num_train=20"] if "data=scene_classes" in words else []
    assert main(["run", *general, *size, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("method", ["vit_scratch", "vit_lora"])
def test_the_other_ways_of_training_run(vit: list[str], method: str, tmp_path: Path) -> None:
    words = ["data=scene_classes", *scenes(), "data.num_train=10", *vit, f"method={method}", f"runs={tmp_path}"]
    assert main(["run", *words, "method.task.fit.epochs=1"]) == 0
    (record,) = collect([tmp_path])
    assert record["costs"]["trainable_parameters"] > 600
    assert (record["given"]["pretraining"] == "none") == (method == "vit_scratch")


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of another seed in the place of generated ones."""
    folder = tmp_path_factory.mktemp("generated")
    real, other = SceneClasses(**SCENES), SceneClasses(**{**SCENES, "seed": 9})
    images = []
    for name in other.names[:40]:
        kind = other.class_names[other.label(name)]
        (folder / kind).mkdir(exist_ok=True)
        Image.fromarray(other.read(name).image).save(folder / kind / f"{kind}_{name[-5:]}.png")
        images.append({"file": f"{kind}/{kind}_{name[-5:]}.png", "near": {"name": "train_0000", "distance": 0.4}})
    learnt = real.names[:20]
    trained_on = {"names": learnt, "digest": real.fingerprint(learnt)}
    (folder / "manifest.json").write_text(json.dumps({"images": images, "trained_on": trained_on}))
    return folder


@pytest.fixture(scope="session")
def mixed(vit: list[str], generated: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Shares and controls with three seeds, as experiment=synthetic_data sweeps over them, in this process."""
    folder = tmp_path_factory.mktemp("mixed")
    words = ["experiment=synthetic_data", *scenes("data.source.source"), *vit, f"data.source.synthetic={generated}"]
    words += ["data.source.total=20", "method.task.fit.epochs=2", "figure_rows=0", f"runs={folder / 'runs'}"]
    mixtures = [(share, "generated") for share in (1.0, 0.5, 0.0)] + [(0.5, "nothing"), (0.5, "noised")]
    for seed, (share, rest) in product(range(3), mixtures):
        one = [f"data.source.real={share}", f"data.source.rest={rest}", f"seed={seed}"]
        assert main(["run", *words, *one]) == 0
    seen = ["data.source.seen=true", "data.source.total=null", "method.title=seen", "data.source.real=1.0", "seed=0"]
    assert main(["run", *words, *seen]) == 0
    return SimpleNamespace(runs=folder / "runs", records=collect([folder / "runs"]))


def test_a_sweep_over_mixtures_tests_on_the_same_real_pictures(mixed: SimpleNamespace) -> None:
    assert len(mixed.records) == 16 and {record["status"] for record in mixed.records} == {"done"}
    assert len({tuple(record["data"]["test"]) for record in mixed.records}) == 1
    assert {record["data"]["name"] for record in mixed.records} == {"scene classes"}
    counts = {(record["method"], record["num_train"]) for record in mixed.records}
    titles = ["1.0 real, rest generated", "0.5 real, rest generated", "0.0 real, rest generated"]
    assert counts == {
        *((title, 20) for title in titles),
        ("0.5 real, rest nothing", 10),
        ("0.5 real, rest noised", 20),
        ("seen", 20),
    }


def test_the_report_of_mixtures(mixed: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text(
        "".join(f"<!-- {marks} -->\n<!-- end of {marks} -->\n" for marks in ("table", "mixtures", "comparisons"))
    )
    pair = ["0.5 real, rest generated", "1.0 real, rest generated"]
    assert main(["report", str(mixed.runs), "--to", str(tmp_path), "--mixtures", "--compare", *pair]) == 0
    text = (tmp_path / "README.md").read_text()
    assert "Scores are those of all pictures" in text and "pixels" not in text
    rows = [line.split(" | ") for line in text.split("mixtures -->")[1].splitlines() if line.startswith("| scene")]
    assert [row[1] for row in rows] == [
        "10:0",
        "5:5",
        "0:10",
        "5:5, real part alone",
        "5:5, noised copies (0.1)",
        "what the generator saw",
    ]
    scores: dict[str, dict[int, float]] = {}
    for record in mixed.records:
        scores.setdefault(record["method"], {})[record["seed"]] = record["scores"]["test/accuracy/image"]
    means = {method: np.mean(list(values.values())) for method, values in scores.items()}
    assert rows[1][4].startswith(f"{means[pair[0]]:.3f} [")
    assert rows[1][9].startswith(f"{means[pair[0]] - means[pair[1]]:+.3f} [") and "20" not in rows[1][3]
    assert "3 seeds" in rows[1][9]
    alone = means["0.5 real, rest nothing"]
    assert rows[1][10].startswith(f"{means[pair[0]] - alone:+.3f} [")
    assert rows[1][11].startswith(f"{means[pair[0]] - means['0.5 real, rest noised']:+.3f} [")
    assert [number for number, row in enumerate(rows) if row[11].strip(" |")] == [1]
    assert rows[0][9].strip() == rows[2][10].strip(" |") == ""
    assert f"{means[pair[0]] - means[pair[1]]:+.3f}" in text.split("<!-- comparisons -->")[1]
    for name in ("mixtures", "mixture_curves"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 500
    capsys.readouterr()


def changed(records: list[dict[str, Any]], key: str, value: Any) -> list[dict[str, Any]]:
    """Copies of records as if another setting had made them, from other data."""
    copies = copy.deepcopy(records)
    for record in copies:
        *above, last = key.split(".")
        node = record["config"]
        for part in above:
            node = node[part]
        node[last] = value
        record["run_id"], record["data"]["fingerprint"] = f"other {record['run_id']}", f"{record['run_id']} {value}"
    return copies


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("method.task.fit.epochs", 9, {"10:0, epochs=2", "5:5, epochs=2", "10:0, epochs=9", "5:5, epochs=9"}),
        ("data.source.total", 30, {"10:0, total=20", "5:5, total=20", "10:0, total=30", "5:5, total=30"}),
        ("data.source.synthetic", "elsewhere/better", {"10:0", "5:5, {here}", "5:5, better"}),
        ("data.source.source.seed", 7, {"10:0", "5:5"}),
        ("data.source.choice_seed", 7, {"10:0", "5:5"}),
    ],
)
def test_runs_that_were_set_differently_are_kept_apart(
    mixed: SimpleNamespace, generated: Path, key: str, value: Any, names: set[str]
) -> None:
    kept = ("1.0 real, rest generated", "0.5 real, rest generated")
    mine = [record for record in mixed.records if record["method"] in kept]
    found = mixtures([*mine, *changed(mine, key, value)])
    assert {one.share.name for one in found} == {name.format(here=generated.name) for name in names}
    pooled = key.endswith("choice_seed")
    whole_pooled = pooled or key.endswith("synthetic")  # all real ones are the same, whatever lies in that folder
    assert {len(one.runs) for one in found if one.share.rest} == {6 if pooled else 3}
    assert {len(one.runs) for one in found if not one.share.rest} == {6 if whole_pooled else 3}
    assert len({one.share.data for one in found}) == 1 + key.endswith("source.seed")
    head, rows = mixture_cells(found)
    against = {row[1]: row[head.index("− 10:0 ↑")] for row in rows}
    assert all(bool(cell) == name.startswith("5:5") for name, cell in against.items())
    once = mixtures([*mine, *({**record, "run_id": "again", "method": "other name"} for record in mine)])
    assert {len(one.runs) for one in once} == {3}


def test_plain_copies_stand_beside_noised_ones(mixed: SimpleNamespace) -> None:
    noised = [record for record in mixed.records if record["method"] == "0.5 real, rest noised"]
    plain = changed(noised, "data.source.noise", 0)
    for record in plain:
        record["scores"]["test/accuracy/image"] = 0.99
    found = mixtures([*mixed.records, *plain])
    copies = [one for one in found if one.share.rest == "noised"]
    assert [one.share.name for one in copies] == ["5:5, noised copies (0.1)", "5:5, plain copies"]
    head, rows = mixture_cells(found)
    alone = mixture_cells(mixtures(mixed.records))[1]
    column = head.index("− noised copies ↑")
    assert [row[column] for row in rows if row[column]] == [row[column] for row in alone if row[column]]


def test_runs_without_mixtures_are_told(
    finished: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(finished.runs), "--to", str(tmp_path), "--mixtures"]) == 2
    assert "no finished run has learnt from a mixture" in capsys.readouterr().err


def test_scores_over_a_share(mixed: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--over", "data.source.real", "--by", "data.source.rest"]
    assert main(["report", str(mixed.runs), "--to", str(tmp_path), *words]) == 0
    assert (tmp_path / "over_real.png").is_file()
    capsys.readouterr()


def test_the_experiment_asks_for_the_folder(vit: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "experiment=synthetic_data", *vit, f"runs={tmp_path}"]) == 2
    assert "needs a value for data.source.synthetic" in capsys.readouterr().err
    words = ["data.source.synthetic=null", "data.source.real=0.5", *scenes("data.source.source")]
    assert main(["run", "experiment=synthetic_data", *vit, f"runs={tmp_path}", "data.source.total=20", *words]) == 2
    assert "name a folder that geoseg synthesize has filled" in capsys.readouterr().err


def test_a_classifier_can_learn(vit: list[str], tmp_path: Path) -> None:
    """Two kinds that differ in brightness alone are told apart."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.normal(level, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    words = ["method=vit", "data=image_folder", f"data.root={tmp_path / 'pictures'}", "data.source.test=8"]
    words += [
        "data.source.val=0",
        *vit,
        "method.task.fit.steps=40",
        "method.task.fit.epochs=40",
        f"runs={tmp_path}/runs",
    ]
    assert main(["run", *words]) == 0
    (record,) = collect([tmp_path / "runs"])
    assert record["scores"]["test/accuracy/image"] == 1
    assert record["data"]["name"] == "pictures"


def test_generated_pictures_are_judged_by_a_classifier_of_real_ones(finished: SimpleNamespace, generated: Path) -> None:
    run = finished.folder / finished.record["run_id"]
    words = [f"run={run}", "data=image_folder", f"data.root={generated}", "data.source.val=null", "name=generated"]
    words += ["data.source.test=null", "trainer=cpu", "logger=files", "progress=false", "figure_rows=0"]
    assert main(["evaluate", *words]) == 0
    (record,) = collect([finished.runs / "generated"])
    assert record["data"]["class_names"] == finished.record["data"]["class_names"]  # not in the order of the folders
    assert len(record["data"]["test"]) == 40 and np.sum(record["confusion"]) == 40
    other = SceneClasses(**{**SCENES, "seed": 9})
    pictures = np.stack([other.read(name).image for name in other.names[:40]])
    labels = geoseg.load(run).predict(pictures).labels
    right = float(np.mean([int(labels[i]) == other.label(name) for i, name in enumerate(other.names[:40])]))
    assert record["scores"]["test/accuracy/image"] == pytest.approx(right)


def test_a_classifier_is_not_judged_by_pictures_that_it_has_learnt_from(
    mixed: SimpleNamespace, generated: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run,) = (one for one in mixed.records if (one["method"], one["seed"]) == ("0.5 real, rest generated", 0))
    known = {name.removeprefix("generated/") for name in run["data"]["train"]}
    folder = mixed.runs / "synthetic_data" / run["run_id"]
    words = [f"run={folder}", "data=image_folder", f"data.root={generated}"]
    words += ["data.source.val=null", "data.source.test=null", "name=known", "trainer=cpu", "logger=files"]
    assert main(["evaluate", *words, "progress=false", "figure_rows=0"]) == 0
    (record,) = collect([mixed.runs / "known"])
    shutil.rmtree(mixed.runs / "known")  # other tests report what lies in runs
    assert len(record["data"]["test"]) == 30 and not known & set(record["data"]["test"])
    assert "left out, since the run was trained or validated on them" in caplog.text
