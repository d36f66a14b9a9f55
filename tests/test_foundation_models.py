"""DINOv2 with its decoders and the networks beside it, through the program."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from safetensors.torch import load_file

import geoseg
from geoseg.assembly import Models
from geoseg.cli import main
from geoseg.config import conf_folder, plain
from geoseg.data.synthetic import SyntheticEarth
from geoseg.models.dinov2 import DINOv2
from tests.tiny import tiny_dinov2

DINO = [f"dinov2_{decoder}" for decoder in ("linear", "pup", "mla", "dpt")]
NETWORKS = ["unet_published", "deeplabv3plus", "pspnet", "segnet", "fcn", "mask_rcnn"]
TITLES = ["DINOv2, Linear", "DINOv2, PUP", "DINOv2, MLA", "DINOv2, DPT"]
TITLES += ["U-Net, published", "DeepLabV3+", "PSPNet", "SegNet", "FCN", "Mask R-CNN"]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder") / "dinov2"
    tiny_dinov2().save_pretrained(folder)
    return str(folder)


def short(key: str = "method") -> list[str]:
    """A training of two steps."""
    words = ["task.crop=32", "task.fit.steps=2", "task.fit.batch_size=2", "task.schedule.warmup=0"]
    return [f"{key}.{word}" for word in words]


@pytest.fixture(scope="session")
def tiny(tiny_checkpoints: list[str], encoder: str) -> list[str]:
    return [*tiny_checkpoints, f"checkpoints.dinov2.path_or_id={encoder}", "sample_every=0", "figure_rows=0"]


@pytest.fixture(scope="session")
def finished(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of every method on the same two profiles, and of the first alone."""
    folder = tmp_path_factory.mktemp("finished")
    first, *others = [*DINO, *NETWORKS]
    words = [f"method={first}", *short(), *(f"+method@rivals.{name}={name}" for name in others)]
    words += [word for name in others for word in short(f"rivals.{name}")]
    with contextlib.chdir(folder):
        assert main(["run", *tiny, *words]) == 0
        assert main(["run", *tiny, f"method={DINO[2]}", *short(), "runs=alone"]) == 0
    return SimpleNamespace(folder=folder, records=records(folder / "runs"), alone=records(folder / "alone"))


def records(folder: Path) -> dict[str, Any]:
    found = [json.loads(path.read_text()) for path in sorted(folder.rglob("record.json"))]
    return {record["method"]: record for record in found}


def test_every_method_trains_and_is_scored(finished: SimpleNamespace) -> None:
    assert sorted(finished.records) == sorted(TITLES)
    for record in finished.records.values():
        assert record["status"] == "done"
        assert 0 <= record["scores"]["test/iou/mean"] <= 1
        assert record["given"]["images"] == record["given"]["labels"] == 2
    mla = finished.records["DINOv2, MLA"]
    assert mla["given"]["pretraining"] == "checkpoints=local, finetune=lora"
    assert mla["checkpoints"]["ids"] == {"model.encoder": "dinov2"}
    assert finished.records["SegNet"]["given"]["pretraining"] == "none"


def test_a_method_before_it_leaves_no_trace(finished: SimpleNamespace) -> None:
    together, (alone,) = finished.records["DINOv2, MLA"], finished.alone.values()
    assert (together["run_id"], together["fit_id"]) == (alone["run_id"], alone["fit_id"])
    assert together["scores"]["val/loss"] == alone["scores"]["val/loss"]
    assert together["per_unit"] == alone["per_unit"]


def test_the_file_holds_what_was_trained_and_the_method_comes_back(finished: SimpleNamespace) -> None:
    record = finished.records["DINOv2, DPT"]
    runs = finished.folder / "runs"
    saved = load_file(runs / "fits" / record["fit_id"] / "adapter" / "model.safetensors")
    assert {key.split(".")[0] for key in saved} == {"encoder", "decoder"}
    assert all("lora_" in key for key in saved if key.startswith("encoder."))
    method = geoseg.load(runs / "run" / record["run_id"])
    profile = SyntheticEarth(size=32, train=4, val=2, test=2).read("test_0001").image
    found = method.predict(profile, name="test_0001")
    assert found.probs.shape[0] == 1
    assert torch.equal(method.predict(profile, name="test_0001").probs, found.probs)


def test_features_before_and_after(
    finished: SimpleNamespace, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SyntheticEarth(size=32, train=4, val=2, test=2)
    profiles = np.stack([source.read(name).image for name in ("test_0000", "test_0001")])
    runs = finished.folder / "runs"
    where = runs / "run" / finished.records["DINOv2, MLA"]["run_id"]
    before, after = (geoseg.load(where, trained=trained).features(profiles) for trained in (False, True))
    with torch.no_grad():
        pretrained = DINOv2.load(encoder).eval()(torch.from_numpy(profiles)[:, None] / 255)[-1]
    assert torch.equal(before, pretrained.permute(0, 2, 3, 1))
    assert after.shape == before.shape == (2, 4, 4, 32)
    assert not torch.equal(after, before)
    unet = geoseg.load(runs / "run" / finished.records["U-Net, published"]["run_id"])
    with pytest.raises(ValueError, match="U-Net, published has no encoder of its own; the methods dinov2_"):
        unet.features(profiles)

    assert main(["report", str(where), "--to", str(tmp_path / "one"), "--features"]) == 0
    with Image.open(tmp_path / "one" / "features.png") as picture:
        assert picture.width > picture.height > 300
    assert main(["report", str(runs), "--to", str(tmp_path / "all"), "--features"]) == 0  # networks have no encoder
    assert sorted(path.name for path in (tmp_path / "all").glob("*.png")) == [f"features_{i}.png" for i in range(1, 5)]
    capsys.readouterr()
    assert main(["report", str(unet.folder), "--to", str(tmp_path / "none"), "--features"]) == 2
    assert "--features: no finished run trained an encoder" in capsys.readouterr().err


def test_controls_without_pretraining(tiny: list[str], run_cli: Callable[..., int], tmp_path: Path) -> None:
    profile = np.full((32, 32), 90, np.uint8)
    for name, stays in (("dinov2_mla_random", True), ("dinov2_mla_scratch", False)):
        assert run_cli("run", *tiny, f"method={name}", *short(), f"name={name}") == 0
        (record,) = records(tmp_path / "runs" / name).values()
        assert record["given"]["pretraining"] == "none"
        decoder, trained = (record["costs"][key] for key in ("decoder_parameters", "trainable_parameters"))
        assert (trained == decoder) == stays
        where = tmp_path / "runs" / name / record["run_id"]
        before, after = (geoseg.load(where, trained=trained).features(profile) for trained in (False, True))
        assert torch.equal(before, after) == stays
        # a frozen encoder has nothing to show
        assert run_cli("report", f"runs/{name}", "--to", name, "--features") == (2 if stays else 0)
        assert (tmp_path / name / "features.png").is_file() != stays


def test_a_model_whose_decoder_is_trained_is_never_kept(
    tiny: list[str], compose: Callable[[list[str]], DictConfig]
) -> None:
    models = Models()

    def given(*words: str) -> Any:
        method = plain(compose([*tiny, "method=dinov2_pup", *words]))["method"]
        return models.get(method, "method", {"palette": None, "num_classes": 2, "seed": 0}, {})

    first, second = given(), given()
    assert first is not second
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    untrained = given("method.task=null", "method.adapter=null")
    assert given("method.task=null", "method.adapter=null") is untrained
    assert given() is not untrained


@pytest.mark.parametrize("finetune", ["full", "frozen", "scratch"])
def test_other_ways_to_train_the_encoder(
    finetune: str, tiny: list[str], encoder: str, run_cli: Callable[..., int], tmp_path: Path
) -> None:
    words = ["method=dinov2_linear", f"method.model.finetune={finetune}", "method.adapter=null", *short()]
    assert run_cli("run", *tiny, *words) == 0
    (record,) = records(tmp_path / "runs").values()
    saved = load_file(tmp_path / "runs" / "fits" / record["fit_id"] / "adapter" / "model.safetensors")
    assert any(key.startswith("encoder.") for key in saved) == (finetune != "frozen")
    profile = np.full((32, 32), 90, np.uint8)
    where = tmp_path / "runs" / "run" / record["run_id"]
    before = geoseg.load(where, trained=False).features(profile)
    with torch.no_grad():
        pretrained = DINOv2.load(encoder).eval()(torch.full((1, 1, 32, 32), 90 / 255))[-1].permute(0, 2, 3, 1)
    assert torch.equal(before, pretrained) == (finetune != "scratch")


def test_what_cannot_work_is_told(
    tiny: list[str], run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in [
        (["checkpoints.dinov2.path_or_id=/nowhere/dinov2"], "there is no folder '/nowhere/dinov2' with a DINOv2"),
        (["checkpoints.dinov2.path_or_id=null"], "no DINOv2 is chosen; give checkpoints.dinov2.path_or_id=FOLDER"),
        (
            ["method.model.finetune=full"],
            "there is no part 'encoder' to adapt, as with finetune=full; set method.adapter=null, or",
        ),
        (["method.adapter=null"], "finetune=lora, but no adapter is attached"),
        (["method.task.fit.patience=3", "data.num_val=0"], "method.task.fit.patience=3: it waits for validations"),
        (["method.task.fit.patience=0"], "patience counts validations: 1 or more"),
    ]:
        assert run_cli("run", *tiny, "method=dinov2_linear", *short(), *words) == 2
        error = capsys.readouterr().err
        assert said in error
        assert "Traceback" not in error


def test_patience_in_a_run(tiny: list[str], run_cli: Callable[..., int], tmp_path: Path) -> None:
    words = ["method=dinov2_linear", *short(), "method.task.fit.steps=40", "method.task.fit.validate_every=1"]
    words += ["method.task.fit.repeats=2", "method.task.fit.patience=2", "method.task.lr={encoder: 0, decoder: 3.0}"]
    assert run_cli("run", *tiny, *words) == 0
    (record,) = records(tmp_path / "runs").values()
    fit = json.loads((tmp_path / "runs" / "fits" / record["fit_id"] / "fit.json").read_text())
    log = (tmp_path / "runs" / "fits" / record["fit_id"] / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["val/loss"] for line in log if "val/loss" in line]
    *validated, last = losses  # the last is of the weights that are kept
    assert fit["steps"] == 2 * len(validated) < 40
    assert min(validated) == validated[-3] == last == record["scores"]["val/loss"]


def test_the_four_differ_in_their_decoder_and_rate_alone(compose: Callable[[list[str]], DictConfig]) -> None:
    first, *others = [plain(compose([f"method={name}"]))["method"] for name in DINO]
    for other in others:
        for one in (first, other):
            one["task"].pop("lr", None)
        differing = {key for key in first if first[key] != other[key]}
        assert differing == {"title", "model"}
        assert {key for key in first["model"] if first["model"][key] != other["model"][key]} == {"decoder"}


def test_networks_are_trained_alike(compose: Callable[[list[str]], DictConfig]) -> None:
    wanted = plain(compose(["method=unet"]))["method"]["task"]
    for name in [*NETWORKS, *DINO]:
        task = plain(compose([f"method={name}"]))["method"]["task"]
        assert task["fit"].pop("patience") is None
        rates = task.pop("lr")
        assert len(set(rates.values() if isinstance(rates, dict) else [rates])) == 1  # encoder and decoder alike
        if name == "mask_rcnn":  # whose losses are its own
            assert task.pop("_target_") != wanted["_target_"]
        assert task.items() <= wanted.items() and wanted.keys() - task.keys() <= {"lr", "_target_"}


def test_dpt_is_as_wide_as_its_encoder_allows(compose: Callable[[list[str]], DictConfig]) -> None:
    for words, channels in (([], 128), (["checkpoints=hub", "checkpoints.sam=null"], 256)):
        settings = plain(compose(["method=dinov2_dpt", *words]))
        assert settings["method"]["model"]["decoder"]["channels"] == channels
    settings = plain(compose(["experiment=paper/guo2024", "method=dinov2_dpt", "data.root=."]))
    assert settings["method"]["model"]["decoder"]["channels"] == 256


def test_thin_classes_and_published_batches_are_set(compose: Callable[[list[str]], DictConfig]) -> None:
    for name, tolerances, batch in (
        *(("fault", {"fault": 2}, None), ("f3_faults", {"fault": 3}, None), ("s3_fault", {"fault": 3}, 6)),
        *(("facies", None, None), ("s3_facies", None, 3), ("s3_salt_parquet", None, 32), ("s3_das", None, 6)),
    ):
        data = plain(compose([f"data={name}", *["data.root=."] * ("_" in name)]))["data"]
        assert (data["tolerances"], data["published_batch"]) == (tolerances, batch)
        assert data["published_flips"] == (batch is not None)


def test_published_settings(compose: Callable[[list[str]], DictConfig]) -> None:
    settings = plain(compose(["experiment=paper/guo2024", "data.root=."]))
    method = settings["method"]
    assert method["adapter"]["alpha"] / method["adapter"]["rank"] == 0.125
    assert method["model"]["encoder"]["normalise"] is False
    assert method["task"]["optimizer"]["betas"] == [0.7, 0.999]
    assert method["task"]["criterion"]["_target_"].endswith("weighted_dice")
    assert method["task"]["fit"]["epochs"] == 100


@pytest.mark.skipif(not (conf_folder().parent / "geoseg" / "assets" / "dinov2").is_dir(), reason="none is embedded")
def test_the_embedded_one_is_read() -> None:
    found = DINOv2.load(conf_folder().parent / "geoseg" / "assets" / "dinov2").eval()
    features = found(torch.rand(1, 1, 50, 70))
    assert len(features) == 4
    assert all(feature.isfinite().all() for feature in features)
