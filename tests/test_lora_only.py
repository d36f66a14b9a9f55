"""A LoRA from kohya's training folders, through the command line: trained, sampled, recorded and exported."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image
from safetensors.torch import load_file

from geoseg.cli import main
from geoseg.config import build, plain
from geoseg.data.module import DataModule
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.lora import FILE
from geoseg.tasks.denoising import DenoisingTask
from tests.training import fit, label_lora

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")  # as the program is told

SHAPES = {"3_label map": [(64, 64), (64, 64), (40, 90)], "1_tall": [(90, 40), (20, 30)]}
"""Height and width of the pictures in each folder; the model's square has 32 pixels, its sides are multiples of 4."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name, shapes in SHAPES.items():
        (root / name).mkdir()
        for i, shape in enumerate(shapes):
            Image.fromarray(generator.integers(0, 255, (*shape, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    (root / "1_tall" / "0.txt").write_text("seismic profile")
    return root


@pytest.fixture(scope="module")
def settings(tiny_checkpoints: list[str], folder: Path) -> list[str]:
    words = [word for word in tiny_checkpoints if not word.startswith(("data.", "checkpoints.sam"))]
    words += ["experiment=lora_only", f"data.root={folder}", "method.adapter.rank=2", "method.predictor.steps=2"]
    return [*words, "method.task.fit.epochs=2", "method.task.fit.batch_size=2", "sample_every=1"]


@pytest.fixture(scope="module")
def finished(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    where, words = tmp_path_factory.mktemp("finished"), set[str]()
    embed = LatentDiffusion.embed

    def listen(self: LatentDiffusion, prompts: list[str]) -> Any:
        words.update(prompts)
        return embed(self, prompts)

    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(where):
        patch.setattr(LatentDiffusion, "embed", listen)
        assert main(["run", *settings]) == 0
        (path,) = Path("runs/lora_only").rglob("record.json")
        return SimpleNamespace(where=where, run=path.parent, record=json.loads(path.read_text()), words=words)


def test_it_is_trained_sampled_and_recorded_without_scores(finished: SimpleNamespace) -> None:
    record, fit_folder = finished.record, finished.where / "runs" / "fits" / finished.record["fit_id"]
    assert (record["status"], record["experiment"], record["scores"], record["stages"]) == ("done", "lora_only", {}, {})
    assert record["given"] == {"images": 5, "labels": 0, "pretraining": "checkpoints=local"}
    assert (len(record["data"]["train"]), record["data"]["val"], record["data"]["test"]) == (5, [], [])
    assert record["adapter"] == [FILE]
    assert {path.name for path in (fit_folder / "samples").iterdir()} == {"epoch_0001.png", "epoch_0002.png"}
    # 64 x 64 comes to 32 x 32: six visits; 40 x 90 three; 90 x 40 one; 20 x 30 one; in twos 3 + 2 + 1 + 1, twice
    lines = [json.loads(line) for line in (fit_folder / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "train/loss" in line]) == 2 * 7


def test_captions_reach_the_text_encoder(finished: SimpleNamespace) -> None:
    sampled = {"", "8k, Ultra-high resolution, Tile, Smooth Edges"}
    assert finished.words == {"label map", "seismic profile", "tall"} | sampled


def test_it_is_exported(
    finished: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished.where)
    assert main(["export", str(finished.run), "--to", "mine.safetensors"]) == 0
    assert "<lora:mine:1>" in capsys.readouterr().out
    state = load_file("mine.safetensors")
    assert any(name.startswith("lora_unet_") for name in state) and any(name.startswith("lora_te_") for name in state)


def prepared(compose: Callable[[list[str]], DictConfig], settings: list[str]) -> DataModule:
    data: DataModule = build(plain(compose(settings))["data"], "data")
    data.prepare()
    return data


def task_of(**options: Any) -> DenoisingTask:
    return label_lora(None, paint=False, caption=None, crop=32, bucketing=True, **options)


def test_batches_of_one_size_each_picture_as_often_as_its_folder_says(
    compose: Callable[[list[str]], DictConfig], settings: list[str]
) -> None:
    data = prepared(compose, settings)
    met: list[tuple[tuple[int, ...], list[str]]] = []

    class Listening(DenoisingTask):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
            met.append((tuple(batch["latent"].shape[1:]), batch["name"]))
            return super().training_step(batch, batch_idx)

    task = task_of(batch_size=2)
    task.__class__ = Listening
    trained: list[Any] = []
    for _ in range(2):
        met.clear()
        fit(task, data, val_check_interval=None)
        trained.append(list(met))
    assert trained[0] == trained[1]  # the order is that of the seed, whatever came before
    epochs = [trained[0][:7], trained[0][7:]]
    for epoch in epochs:
        assert Counter(name for _, names in epoch for name in names) == {
            **{f"3_label map/{i}.png": 3 for i in range(3)},
            **{f"1_tall/{i}.png": 1 for i in range(2)},
        }
        assert [len(names) for _, names in epoch[-3:]] == [1, 1, 1]  # what fills no batch is met last
    assert epochs[0] != epochs[1]
    # latents have half the sides of 32 x 32, 20 x 44 (2.2 for 2.25), 44 x 20, and 20 x 28 cut out of 20 x 30
    sizes = {name: shape for shape, names in trained[0] for name in names}
    assert sizes == {
        "3_label map/0.png": (4, 16, 16),
        "3_label map/1.png": (4, 16, 16),
        "3_label map/2.png": (4, 10, 22),
        "1_tall/0.png": (4, 22, 10),
        "1_tall/1.png": (4, 10, 14),
    }


def test_a_picture_is_made_smaller_and_cut(compose: Callable[[list[str]], DictConfig], settings: list[str]) -> None:
    data, task = prepared(compose, settings), task_of()
    view = task.view(data.train, training=True)
    index = data.train.names.index("3_label map/2.png")
    assert tuple(view.moments[index][0].shape) == (4, 10, 22)  # 40 x 90 to 20 x 45; the last column is lost
    seen = {tuple(view[index, visit]["latent"].shape) for visit in range(20)}
    assert seen == {(4, 10, 22)}
    item = data.train[index]
    shown = task.shown(item)
    assert shown.shape == (3, 20, 44)
    blocks = item["image"][:, :, :88].reshape(3, 20, 2, 44, 2).mean((2, 4))  # half as large, each pixel of four
    assert float((shown - blocks).abs().mean()) < 0.08  # of unrelated ones it would be 0.16
    # in its own size, with what exceeds a multiple of 4 left for the random place of the cut
    small = data.train.names.index("1_tall/1.png")
    assert tuple(view.moments[small][0].shape) == (4, 10, 15)


def test_pictures_without_classes_need_no_test_set_but_label_lora_does(
    run_cli: Callable[..., int], settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("run", *settings, "method.task.paint=true") == 2
    assert "paint=true needs a data set with classes" in capsys.readouterr().err
    assert run_cli("run", *settings, "data.root=nowhere") == 2
    assert "data.root=nowhere is no folder" in capsys.readouterr().err
