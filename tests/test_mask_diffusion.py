"""Mask diffusion as a user runs it: trained, interrupted, scored, come back, and judged on other pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import geoseg
from geoseg.data.elsewhere import Elsewhere
from geoseg.data.profiles import ProfileFolder
from geoseg.data.synthetic import SyntheticEarth, SyntheticMattes
from geoseg.export import export
from tests.test_run import records

SHORT = [
    "method=mask_diffusion",
    "method.adapter.rank=2",
    "method.task.fit.steps=6",
    "method.task.fit.batch_size=2",
    "method.task.fit.validation_visits=1",
    "method.task.schedule.warmup=2",
    "method.predictor.steps=2",
    "method.wrappers.ensemble.members=3",
    "sample_every=0",
]


@pytest.fixture(scope="module")
def tiny(tiny_checkpoints: list[str]) -> list[str]:
    return [word for word in tiny_checkpoints if "sam.path" not in word] + ["checkpoints.sam=null", *SHORT]


def test_a_run_has_its_scores_members_and_figures(tiny: list[str], run_cli: Callable[..., int], tmp_path: Path) -> None:
    assert run_cli("run", "name=masks", *tiny) == 0
    (record,) = records(tmp_path / "runs").values()
    scores = record["scores"]
    for name in ("entropy", "own", "votes", "one_member"):
        assert 0 <= scores[f"test/uncertainty/{name}/auroc"] <= 1
        curve = record["risk_coverage"][name]
        assert curve[-1] == pytest.approx(1 - scores["test/accuracy/pixel"])
        assert len(curve) == len(record["risk_coverage"]["coverage"])
        assert len(record["per_unit"][f"test/uncertainty/{name}/auroc"]) == 2
    assert 0 <= scores["test/calibration/error"] <= 1
    members = record["members"]
    assert [len(values) for values in members.values()] == [3] * 6
    assert members["iou/mean"][-1] == pytest.approx(scores["test/iou/mean"])
    assert members["accuracy/pixel"][0] == members["alone/accuracy/pixel"][0]
    folder = tmp_path / "runs" / "masks" / record["run_id"]
    for name in ("uncertainty", "members", "stages", "training"):
        assert (folder / "figures" / f"{name}.png").is_file()
    assert record["adapter"] == ["pytorch_lora_weights.safetensors", "unet.safetensors"]
    assert set(load_file(tmp_path / f"runs/fits/{record['fit_id']}/adapter/unet.safetensors")) == {
        "conv_in.weight",
        "conv_in.bias",
    }
    with pytest.raises(ValueError, match="is of no use without"):
        export(folder, tmp_path / "out.safetensors")

    method = geoseg.load(str(folder))
    profile = np.array(Image.fromarray(SyntheticEarth(size=32, train=4, val=2, test=2).read("test_0001").image))
    found = method.predict(profile, name="test_0001")
    labels = np.array(Image.open(folder / "predictions" / "labels" / "test_0001.png"))
    assert (found.labels[0].numpy() == labels).mean() > 0.99
    assert found.members is not None and found.members.shape[:2] == (1, 3)
    (tmp_path / "lines").mkdir()
    Image.fromarray(profile).save(tmp_path / "lines" / "one.png")
    given = (f"run={folder}", f"input={tmp_path}/lines", f"output={tmp_path}/labelled", "uncertainty=true")
    assert run_cli("predict", *given) == 0
    variance = np.load(tmp_path / "labelled" / "uncertainty" / "one.npy")
    seen = np.array(Image.open(tmp_path / "labelled" / "uncertainty" / "one.png"))
    np.testing.assert_allclose(seen / 255, np.sqrt(variance), atol=0.003)  # as a deviation, which is not next to black

    # it is scored anew with another number of members without another training, and the first ones stay the same
    assert run_cli("run", "name=masks", *tiny, "method.wrappers.ensemble.members=2") == 0
    both = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "masks").rglob("record.json")]
    assert len(both) == 2 and len({one["fit_id"] for one in both}) == 1
    fewer = next(one for one in both if one["run_id"] != record["run_id"])
    assert fewer["members"]["alone/iou/mean"] == pytest.approx(members["alone/iou/mean"][:2], abs=1e-3)


def test_a_training_that_was_interrupted_ends_the_same(
    tiny: list[str], run_cli: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geoseg.tasks.mask_diffusion import MaskDiffusionTask

    words = ["run", "name=masks", *tiny, "save.minutes=0", "figure_rows=0"]
    words += ["method.task.own={_target_: geoseg.data.synthetic.Corpus, count: 1, size: 32, val: 2}"]
    assert run_cli(*words, "runs=whole") == 0
    loss, steps = MaskDiffusionTask.loss, []

    def dies(self: MaskDiffusionTask, batch: Any) -> torch.Tensor:
        steps.append(0)
        if len(steps) == 5:
            raise RuntimeError("gone")
        return loss(self, batch)

    monkeypatch.setattr(MaskDiffusionTask, "loss", dies)
    assert run_cli(*words, "runs=cut") != 0
    monkeypatch.setattr(MaskDiffusionTask, "loss", loss)
    assert run_cli(*words, "runs=cut") == 0
    (whole,), (cut,) = (list(records(tmp_path / place).values()) for place in ("whole", "cut"))
    assert whole["fit_id"] == cut["fit_id"] and whole["scores"] == cut["scores"]
    assert whole["scores"]["val/own_loss"] > 0
    for name in whole["adapter"]:
        first, second = (load_file(tmp_path / f"{p}/fits/{whole['fit_id']}/adapter/{name}") for p in ("whole", "cut"))
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "words",
    [
        ["method=mask_diffusion_full"],
        ["method=mask_diffusion_conv_in", "method.model.prediction_type=epsilon", "method.model.zero_snr=false"],
        ["method=mask_diffusion_one_step"],
    ],
    ids=["full", "conv_in", "one step"],
)
def test_variants_run(words: list[str], tiny: list[str], run_cli: Callable[..., int], tmp_path: Path) -> None:
    short = [word for word in tiny if word != "method=mask_diffusion" and "adapter" not in word]
    if words[0].endswith("one_step"):
        short = [word for word in short if "predictor.steps" not in word and "ensemble" not in word]
    assert run_cli("run", "name=masks", *short, *words) == 0
    (record,) = records(tmp_path / "runs").values()
    assert record["status"] == "done" and record["scores"]["test/iou/mean"] >= 0
    assert ("pytorch_lora_weights.safetensors" in record["adapter"]) == words[0].endswith("one_step")


def pairs(root: Path, kind: str = "facies", count: int = 2) -> Path:
    source = SyntheticEarth(kind=kind, size=48, train=count, val=0, test=0, seed=9)
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for i, name in enumerate(source.names):
        sample = source.read(name)
        sample.target[0, :6] = range(6)  # all classes occur
        Image.fromarray(sample.image).save(root / "images" / f"line{i}.png")
        Image.fromarray(sample.target).save(root / "labels" / f"line{i}.png")
    return root


def test_trained_on_synthetic_ground_and_tested_on_a_folder(
    tiny: list[str], run_cli: Callable[..., int], tmp_path: Path
) -> None:
    root = pairs(tmp_path / "real")
    words = [word for word in tiny if not word.startswith("data.") and word != "method=mask_diffusion"]
    source = [f"data.source.train.{name}" for name in ("size=32", "train=4", "val=2")]
    assert (
        run_cli(
            *("run", "experiment=mask_diffusion_real", *words, *source, f"data.root={root}", "data.num_train=2"),
            *("rivals=null", "method.wrappers.ensemble.members=2"),
        )
        == 0
    )
    (record,) = records(tmp_path / "runs").values()
    assert record["data"]["test"] == ["line0", "line1"] and record["data"]["train"][0].startswith("train_")
    assert len(record["data"]["val"]) == 2 and record["scores"]["test/iou/mean"] >= 0


def test_what_cannot_be_tested_elsewhere_is_told(tmp_path: Path) -> None:
    root = pairs(tmp_path / "real")
    real = ProfileFolder(str(root))
    with pytest.raises(ValueError, match=r"has 2 classes \(sediment, salt\) and .* has 6"):
        Elsewhere(SyntheticEarth(kind="salt", size=32, train=2, val=0, test=0), real)
    with pytest.raises(ValueError, match="both sources have a sample called line0"):
        Elsewhere(ProfileFolder(str(root)), real)
    joined = Elsewhere(SyntheticEarth(size=32, train=2, val=1, test=4), real)
    assert [joined.split(name) for name in joined.names] == ["train", "train", "val", "test", "test"]
    assert joined.shape("line1") == (48, 48) and joined.block("line1") == "line1"
    before = joined.fingerprint(joined.names)
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(root / "images" / "line1.png")
    changed = Elsewhere(SyntheticEarth(size=32, train=2, val=1, test=4), ProfileFolder(str(root)))
    assert changed.fingerprint(changed.names) != before
    assert changed.fingerprint(["train_0000"]) == joined.fingerprint(["train_0000"])


MATTES = ["data.source.size=32", "data.source.train=4", "data.source.val=2", "data.source.test=2", "data.num_train=2"]


def test_mattes_end_to_end(tiny: list[str], run_cli: Callable[..., int], tmp_path: Path) -> None:
    """Trained on drawn mattes: every rival has its errors, and the autoencoder's own are what drawing cannot beat."""
    words = [word for word in tiny if not word.startswith(("data.", "method="))]
    unet = ["rivals.unet.model.depth=3", "rivals.unet.task.crop=32", "rivals.unet.task.fit.steps=2"]
    unet += ["rivals.unet.task.fit.batch_size=2", "rivals.unet.task.schedule.warmup=0"]
    assert run_cli("run", "experiment=mask_diffusion_matte", *words, *MATTES, *unet) == 0
    found = {record["method"]: record for record in records(tmp_path / "runs").values()}
    assert set(found) == {
        "mask diffusion, matte",
        "input as is",
        "constant",
        "the label through the autoencoder",
        "U-Net, matte",
    }
    source = SyntheticMattes(size=32, train=4, val=2, test=2)
    samples = [source.read(f"test_000{i}") for i in range(2)]
    halves = [np.abs(sample.target - 0.5).sum() / 1000 for sample in samples]
    as_is = [1000 * ((sample.image.mean(2) / 255 - sample.target) ** 2).mean() for sample in samples]
    assert found["constant"]["scores"]["test/matte/sad"] == pytest.approx(np.mean(halves), rel=1e-4)
    assert found["input as is"]["per_unit"]["test/matte/mse"] == pytest.approx(as_is, rel=1e-4)
    record = found["mask diffusion, matte"]
    assert record["members"]["matte/mse"][-1] == pytest.approx(record["scores"]["test/matte/mse"], rel=1e-4)
    assert record["given"]["labels"] == 2 and found["the label through the autoencoder"]["given"]["labels"] == 0
    folder = tmp_path / "runs" / "mask_diffusion_matte" / record["run_id"]
    for name in ("uncertainty", "members", "stages", "training"):
        assert (folder / "figures" / f"{name}.png").is_file()
    with Image.open(folder / "predictions" / "mattes" / "test_0001.png") as picture:
        said = np.asarray(picture) / 255
    error = 1000 * ((said - samples[1].target) ** 2).mean()
    assert error == pytest.approx(record["per_unit"]["test/matte/mse"][1], rel=2e-2)


def test_mattes_learnt_from_drawings_are_tested_on_a_folder(
    tiny: list[str], run_cli: Callable[..., int], tmp_path: Path
) -> None:
    source = SyntheticMattes(size=48, train=2, val=0, test=0, seed=3)
    for part in ("images", "labels"):
        (tmp_path / "real" / part).mkdir(parents=True)
    for i, name in enumerate(source.names):
        sample = source.read(name)
        Image.fromarray(sample.image).save(tmp_path / "real" / "images" / f"photo{i}.png")
        Image.fromarray(np.rint(255 * sample.target).astype(np.uint8)).save(tmp_path / f"real/labels/photo{i}.png")
    words = [word for word in tiny if not word.startswith(("data.", "method="))]
    drawn = [f"data.source.train.{name}" for name in ("size=32", "train=4", "val=2")]
    real = ["data=mattes_elsewhere", f"data.root={tmp_path / 'real'}", "data.num_train=2"]
    assert run_cli("run", "experiment=mask_diffusion_matte", *words, *real, *drawn, "rivals=null") == 0
    (record,) = records(tmp_path / "runs").values()
    assert record["data"]["test"] == ["photo0", "photo1"] and record["data"]["train"][0].startswith("train_")
    assert record["scores"]["test/matte/sad"] > 0 and len(record["per_unit"]["test/matte/sad"]) == 2


def test_methods_that_learn_classes_refuse_mattes(
    tiny: list[str], run_cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in tiny if not word.startswith(("data.", "method"))]
    assert run_cli("run", "data=mattes", "method=unet", *words, *MATTES) == 2
    assert "method (U-Net): the data set has mattes, and this task learns classes" in capsys.readouterr().err
    own = [word for word in tiny if not word.startswith("data.")]
    assert run_cli("run", "data=mattes", *own, *MATTES) == 2
    assert "this model reads colours as classes; use method=mask_diffusion_matte" in capsys.readouterr().err
    assert not list(tmp_path.rglob("record.json"))
