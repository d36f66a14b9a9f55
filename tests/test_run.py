"""Whole runs through the command line, on models of the true classes with random weights."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from geoseg.cli import main
from geoseg.config import build, plain
from geoseg.job import Job
from geoseg.lora import FILE
from geoseg.record import finite
from geoseg.run import run
from geoseg.tasks.denoising import DenoisingTask

RIVALS = [
    "rivals.unet.model.depth=3",
    "rivals.unet.task.crop=32",
    "rivals.unet.task.fit.epochs=1",
    "rivals.unet.task.fit.repeats=2",
    "rivals.unet.task.schedule.warmup=0",
    "rivals.label_lora_tuned.task.fit.epochs=1",
    "rivals.label_lora_tuned.task.fit.repeats=1",
]
METHODS = {
    *("input as is", "without LoRA", "label LoRA", "U-Net", "label LoRA, tuned"),
    "label LoRA, tuned, blinded",
}
SECRETS = ["+my.api_key=SECRET-ONE", "+proxy='https://me:SECRET-TWO@host/x'", "+hub_token=SECRET-THREE"]


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Records below a folder by the title of their method."""
    found = [record_of(path.parent) for path in folder.rglob("record.json")]
    return {record["method"]: record for record in found}


@pytest.fixture(scope="module")
def finished(tiny_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The experiment of the main job: its folder, its command and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    command = ["run", "experiment=label_lora", *tiny_run, *RIVALS, *SECRETS]
    command += ["logger=wandb", "sample_every=1", "figure_rows=2", "progress=true", "tags=[MARKED]"]
    shown = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(shown):
        code = main(command)
    return SimpleNamespace(folder=folder, runs=folder / "runs", command=command, code=code, shown=shown.getvalue())


def test_every_file_is_there(finished: SimpleNamespace) -> None:
    assert finished.code == 0
    found = records(finished.runs)
    assert set(found) == METHODS
    assert {path.name for path in finished.runs.iterdir()} == {"label_lora", "fits"}
    for method, record in found.items():
        folder = finished.runs / "label_lora" / record["run_id"]
        for name in ("record.json", "config.yaml", "metrics.jsonl", "figures/stages.png"):
            assert (folder / name).is_file(), (method, name)
        assert (folder / "figures" / "training.png").is_file() == (record["fit_id"] is not None)
        drawn = ["stages", "training", "dice"] if record["fit_id"] is not None else ["stages", "dice"]
        assert record["figures"] == [f"figures/{name}.png" for name in drawn]
    fits = {path.name for path in (finished.runs / "fits").iterdir()}
    assert fits == {found[name]["fit_id"] for name in ("label LoRA", "U-Net", "label LoRA, tuned")}
    fit = finished.runs / "fits" / found["label LoRA"]["fit_id"]
    for name in ("fit.json", "metrics.jsonl", "metrics.csv", f"adapter/{FILE}", "samples/epoch_0001.png"):
        assert (fit / name).is_file(), name
    assert (finished.runs / "fits" / found["U-Net"]["fit_id"] / "adapter" / "model.safetensors").is_file()
    assert not list(finished.runs.rglob("*.part*"))


def test_the_record_holds_what_it_promises(finished: SimpleNamespace) -> None:
    for method, record in records(finished.runs).items():
        assert set(record) >= {
            *(
                "schema",
                "run_id",
                "fit_id",
                "experiment",
                "method",
                "data",
                "num_train",
                "checkpoints",
                "seed",
                "commit",
            ),
            *("dirty", "versions", "device", "precision", "minutes", "given", "scores", "per_unit", "stages"),
            *("stages_per_unit", "units", "facts", "status", "config", "adapter", "figures"),
        }, method
        assert (record["schema"], record["status"], record["experiment"]) == (1, "done", "label_lora")
        extra = {"continuous", "per_image"}
        assert set(record["data"]) == {"name", "fingerprint", "class_names", *extra, "train", "val", "test"}
        assert (len(record["data"]["train"]), record["data"]["val"], record["data"]["test"]) == (
            2,
            ["val_0000", "val_0001"],
            ["test_0000", "test_0001"],
        )
        assert record["num_train"] == 2
        assert set(record["minutes"]) == {"fit", "predict", "score"}
        assert all(minutes >= 0 for minutes in record["minutes"].values())
        assert record["versions"].keys() >= {"python", "torch", "geoseg", "diffusers", "peft"}
        assert record["units"] == {"names": record["data"]["test"], "unit": "section"}
        assert all(len(values) == 2 for values in record["per_unit"].values())
        assert record["config"]["rivals"] == {}
        assert record["config"] == OmegaConf.to_container(
            OmegaConf.load(finished.runs / "label_lora" / record["run_id"] / "config.yaml")
        )
    found = records(finished.runs)
    kinds = {method: (record["checkpoints"]["kind"], record["given"]) for method, record in found.items()}
    assert kinds["label LoRA"] == ("local", {"images": 0, "labels": 2, "pretraining": "checkpoints=local"})
    assert kinds["without LoRA"] == ("local", {"images": 0, "labels": 0, "pretraining": "checkpoints=local"})
    assert kinds["input as is"] == ("none", {"images": 0, "labels": 0, "pretraining": "none"})
    assert kinds["U-Net"] == ("none", {"images": 2, "labels": 2, "pretraining": "none"})
    lora = found["label LoRA"]
    assert list(lora["stages"]) == ["pass 1", "pass 2", "refined"]
    assert list(found["without LoRA"]["stages"]) == ["pass 1", "pass 2"]
    assert found["input as is"]["stages"] == found["U-Net"]["stages"] == {}
    assert set(lora["facts"]) == {"sam/masks", "sam/coverage", "sam/largest"}
    assert lora["scores"]["val/loss"] > 0
    # the answer is the last stage
    doubts = ("test/calibration/", "test/uncertainty/")  # of the answer alone
    answer = {k: v for k, v in lora["scores"].items() if k.startswith("test/") and not k.startswith(doubts)}
    assert answer == lora["stages"]["refined"]
    per_unit = {k: v for k, v in lora["per_unit"].items() if not k.startswith(doubts)}
    assert lora["stages_per_unit"]["refined"] == per_unit
    assert set(lora["checkpoints"]["ids"].values()) == {"stable-diffusion", "sam"}
    assert all(len(value) == 16 for value in lora["checkpoints"]["hashes"].values())


def test_the_input_as_is_scored_by_a_closed_form(finished: SimpleNamespace) -> None:
    """With nothing drawn, the picture compared with itself has the loss 1 - sum(g^2) / sum(g)."""
    from geoseg.data.synthetic import SyntheticEarth

    source = SyntheticEarth(size=32, train=4, val=2, test=2)
    grey = [source.read(name).image.astype(np.float64) / 255 for name in ("test_0000", "test_0001")]
    wanted = [1 - (g**2).sum() / g.sum() for g in grey]
    record = records(finished.runs)["input as is"]
    assert record["per_unit"]["test/dice_loss/original_generated"] == pytest.approx(wanted, rel=1e-5)
    assert record["scores"]["test/dice_loss/original_generated"] == pytest.approx(np.mean(wanted), rel=1e-5)
    # the loss between profile and label is a property of the data, whatever the method
    same = {r["scores"]["test/dice_loss/original_label"] for r in records(finished.runs).values()}
    assert len(same) == 1


def test_numbers_of_the_training_are_kept(finished: SimpleNamespace) -> None:
    record = records(finished.runs)["label LoRA"]
    fit = finished.runs / "fits" / record["fit_id"]
    lines = [json.loads(line) for line in (fit / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in steps] == [0, 1, 2, 3]  # two maps, two epochs, one at a time
    assert [line["lr/unet"] for line in steps] == pytest.approx([1e-4] * 4)
    assert [line["lr/text"] for line in steps] == pytest.approx([1e-5] * 4)
    assert [line["val/loss"] for line in lines if "val/loss" in line] == [pytest.approx(record["scores"]["val/loss"])]
    assert (finished.runs / "label_lora" / record["run_id"] / "metrics.csv").is_file()
    assert (record["precision"], record["fit"]["precision"]) == ("32-true", "32-true")
    columns = (fit / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "lr/unet", "lr/text", "train/grad_norm", "train/samples_per_s"} <= set(columns)
    run_lines = (finished.runs / "label_lora" / record["run_id"] / "metrics.jsonl").read_text().splitlines()
    assert json.loads(run_lines[-1])["test/iou/mean"] == pytest.approx(record["scores"]["test/iou/mean"])
    for epoch in (1, 2):
        with Image.open(fit / "samples" / f"epoch_{epoch:04d}.png") as picture:
            assert picture.width > 100


def test_the_terminal_shows_bars_with_rates_and_the_table(finished: SimpleNamespace) -> None:
    shown = finished.shown
    for words in (
        "label LoRA: training",
        "4/4 step",
        "label LoRA: generation",
        "label LoRA: refinement",
        "label LoRA: samples",
        "4/4 image",
    ):
        assert words in shown
    assert "step/s" in shown or "s/step" in shown
    assert "/?" not in shown
    assert "U-Net: prediction" in shown
    names = ("input as is", "without LoRA", "pass 1", "pass 2", "refined", "U-Net")
    table = shown[shown.index("label_lora on synthetic facies, seed 0: 2 test profiles, checkpoints=local") :]
    places = [table.index(f"\n  {name}") for name in names]
    assert places == sorted(places)
    assert "2 label maps" in table and "alone" in table
    fit = f"runs/fits/{records(finished.runs)['label LoRA']['fit_id']}"
    assert f"{fit}/adapter/{FILE}\n  samples          {fit}/samples\n" in table


def test_secrets_reach_no_file(finished: SimpleNamespace) -> None:
    files = [path for path in finished.folder.rglob("*") if path.is_file()]
    content = {path: path.read_bytes() for path in files}
    assert [path for path, text in content.items() if b"SECRET-" in text] == []
    # what is no secret does get there, into record, configuration and the log of Weights & Biases
    marked = {path.suffix for path, text in content.items() if b"MARKED" in text}
    assert {".json", ".yaml", ".wandb"} <= marked


def test_weights_and_biases_has_it_all(finished: SimpleNamespace) -> None:
    record = records(finished.runs)["label LoRA"]
    (log,) = (finished.runs / "label_lora" / record["run_id"]).rglob("*.wandb")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(log)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for words in (
        "train/loss",
        "lr/unet",
        "lr/text",
        "val/loss",
        "test/iou/mean",
        "samples/epoch_0001",
        "figures/stages",
    ):
        assert words in done.stdout
    for words in ("table-file", f"adapter-{record['fit_id']}", FILE, "MARKED", "checkpoints=local", "label_lora"):
        assert words in done.stdout


def times(folder: Path) -> dict[str, int]:
    names = ("record.json", "fit.json", FILE, "model.safetensors", "stages.png")
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.name in names}


def test_the_same_command_again_does_nothing(finished: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(self: Job, *args: Any) -> None:
        raise AssertionError("trained or predicted again")

    monkeypatch.setattr(Job, "_run", no)
    before = times(finished.folder)
    assert len(before) == 6 + 3 + 3 + 6
    shown = io.StringIO()
    with contextlib.chdir(finished.folder), contextlib.redirect_stdout(shown):
        # neither what is watched nor where it runs makes another run of it
        assert (
            main([*finished.command, "logger=files", "figure_rows=1", "progress=false", "trainer.accelerator=auto"])
            == 0
        )
    assert times(finished.folder) == before
    table = finished.shown[finished.shown.index("label_lora on synthetic facies, seed 0") :]
    assert shown.getvalue().strip() == table.strip()


def copy_of(finished: SimpleNamespace, folder: Path) -> Path:
    import shutil

    shutil.copytree(finished.runs, folder / "runs")
    return folder / "runs"


SMALL = ["name=label_lora", "logger=files"]


def test_another_strength_uses_the_same_training(
    finished: SimpleNamespace, tiny_run: list[str], run_cli: Callable[..., int], tmp_path: Path
) -> None:
    runs = copy_of(finished, tmp_path)
    before = times(runs / "fits")
    settings = [*SMALL, "method.predictor.strength=0.4", "method.wrappers.sam.points_per_side=8"]
    assert run_cli("run", *tiny_run, *settings) == 0
    assert times(runs / "fits") == before
    old = records(finished.runs)["label LoRA"]
    (new,) = [
        record
        for record in (record_of(path.parent) for path in runs.rglob("record.json"))
        if record["config"]["method"]["predictor"].get("strength") == 0.4
    ]
    assert new["fit_id"] == old["fit_id"]
    assert new["run_id"] != old["run_id"]
    assert new["config"]["method"]["wrappers"]["sam"]["points_per_side"] == 8
    assert new["adapter"] == [FILE]
    assert new["stages"]["pass 1"] != old["stages"]["pass 1"]
    # what was loaded is what was trained: scores of a run that trains anew are the same to the last bit
    assert run_cli("run", *tiny_run, *settings, "runs=elsewhere") == 0
    (fresh,) = records(tmp_path / "elsewhere").values()
    assert (fresh["run_id"], fresh["fit_id"]) == (new["run_id"], new["fit_id"])
    assert fresh["scores"] == new["scores"]
    assert fresh["per_unit"] == new["per_unit"]
    adapters = [
        load_file(folder / "fits" / old["fit_id"] / "adapter" / FILE) for folder in (runs, tmp_path / "elsewhere")
    ]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_force_runs_anew(
    finished: SimpleNamespace, tiny_run: list[str], run_cli: Callable[..., int], tmp_path: Path
) -> None:
    runs = copy_of(finished, tmp_path)
    old, before = records(runs)["label LoRA"], times(runs)
    assert run_cli("run", *tiny_run, *SMALL, "force=true") == 0
    after, new = times(runs), records(runs)["label LoRA"]
    mine = {path for path in before if old["run_id"] in path or old["fit_id"] in path}
    assert len(mine) == 4
    assert {path for path in before if after[path] != before[path]} == mine
    assert new["run_id"] == old["run_id"]
    assert new["scores"] == old["scores"]  # the same seed, the same numbers


def test_the_last_validation_is_of_the_weights_that_are_kept(
    tiny_run: list[str], run_cli: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit = ["method.task.fit.epochs=3", "method.task.fit.validate_every=2", "sample_every=0", "logger=files"]
    assert run_cli("run", *tiny_run, *fit) == 0
    (record,) = records(tmp_path / "runs").values()
    folder = tmp_path / "runs" / "fits" / record["fit_id"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["val/loss"] for line in lines if "val/loss" in line]
    assert len(losses) == 2
    assert record["scores"]["val/loss"] == pytest.approx(losses[-1])
    # what another commit has trained is used, and said to be so
    done = json.loads((folder / "fit.json").read_text())
    done["made_by"]["commit"] = "0ther"
    (folder / "fit.json").write_text(json.dumps(done))
    with caplog.at_level("INFO", logger="geoseg"):
        assert run_cli("run", *tiny_run, *fit, "method.predictor.strength=0.4") == 0
    assert f"trained before as fit {record['fit_id']}, made by commit 0ther" in caplog.text
    found = [record_of(path.parent) for path in (tmp_path / "runs").rglob("record.json")]
    assert {one["fit"]["commit"] for one in found} == {record["commit"], "0ther"}


def test_other_maps_to_train_on(tiny_run: list[str], run_cli: Callable[..., int], tmp_path: Path) -> None:
    assert run_cli("run", *tiny_run, "data.num_train=1", "sample_every=0", "figure_rows=0") == 0
    (record,) = records(tmp_path / "runs").values()
    assert record["num_train"] == 1
    assert len(record["data"]["train"]) == 1
    assert record["given"]["labels"] == 1
    assert record["figures"] == ["figures/training.png"]
    assert not (tmp_path / "runs" / "fits" / record["fit_id"] / "samples").exists()


def test_methods_of_one_command_leave_no_trace_on_each_other(
    finished: SimpleNamespace, tiny_run: list[str], run_cli: Callable[..., int], tmp_path: Path
) -> None:
    both = ["+method@rivals.second=label_lora", "rivals.second.title=second", "rivals.second.adapter.rank=2"]
    both += [f"rivals.second.{word.removeprefix('method.')}" for word in tiny_run if word.startswith("method.")]
    assert run_cli("run", *tiny_run, *both, "runs=together") == 0
    assert run_cli("run", *tiny_run, "method.adapter.rank=2", "runs=alone") == 0
    second, alone = records(tmp_path / "together")["second"], records(tmp_path / "alone")["label LoRA"]
    assert (second["run_id"], second["fit_id"]) == (alone["run_id"], alone["fit_id"])
    assert second["per_unit"] == alone["per_unit"]
    # and the control is that of the base model, though it came after a training
    control = [word for word in tiny_run if not word.startswith(("method.task", "method.wrappers"))]
    assert run_cli("run", "method=without_lora", *control, "runs=control") == 0
    (alone,) = records(tmp_path / "control").values()
    assert alone["per_unit"] == records(finished.runs)["without LoRA"]["per_unit"]


# identity


@pytest.fixture
def job(
    compose: Callable[[list[str]], DictConfig], tiny_run: list[str], tiny_checkpoints: list[str]
) -> Callable[..., Job]:
    """The main method's job of a configuration; nothing is run."""

    def made(*overrides: str) -> Job:
        base = tiny_checkpoints if any(word.startswith("method=") for word in overrides) else tiny_run
        settings = plain(compose([*base, *overrides]))
        data = build(settings["data"], "data")
        data.prepare()
        return Job(settings, settings["method"], data)

    return made


@pytest.mark.parametrize(
    "overrides",
    [
        ["runs=/somewhere/else"],
        ["logger=wandb"],
        ["trainer.accelerator=auto"],
        ["trainer.devices=[0]", "trainer.log_every_n_steps=5"],
        ["trainer.devices=2", "trainer.strategy=ddp_spawn"],
        ["data.workers=2"],
        ["data.batch_size=1"],
        ["progress=true", "figure_rows=1", "sample_every=3", "sample_images=1", "tags=[a]", "force=true"],
        ["name=other"],
        ["trust=[mine]"],
        ["method.title=renamed"],
        ["experiment=label_lora"],
        ["objective=val/loss"],
    ],
    ids=" ".join,
)
def test_what_changes_no_number_changes_no_identity(job: Callable[..., Job], overrides: list[str]) -> None:
    plain_job, changed = job(), job(*overrides)
    assert (changed.run_id, changed.fit_id) == (plain_job.run_id, plain_job.fit_id)


def test_identity_does_not_look_at_places(
    job: Callable[..., Job], tiny_checkpoints: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import shutil

    first = job()
    monkeypatch.chdir(tmp_path)
    assert (job().run_id, job().fit_id) == (first.run_id, first.fit_id)
    paths = [word.partition("=")[2] for word in tiny_checkpoints if "path" in word]
    for path, name in zip(paths, ("base", "segmenter"), strict=True):
        shutil.copytree(path, tmp_path / name)
    moved = ["checkpoints.stable_diffusion.path_or_id=base", "checkpoints.sam.path=segmenter"]
    assert (job(*moved).run_id, job(*moved).fit_id) == (first.run_id, first.fit_id)
    # other weights under the same name are another model
    weights = tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["conv_out.bias"][0] += 1
    save_file(state, weights)
    assert job(*moved).run_id != first.run_id
    assert job(*moved).fit_id != first.fit_id


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=1"],
        ["data.num_train=1"],
        ["data.source.seed=1"],
        ["data.source.kind=fault"],
        ["data.select=[train_0000,train_0001]"],
        ["data.num_val=1"],
        ["method.task.lr.unet=2e-4"],
        ["method.task.fit.epochs=3"],
        ["method.adapter.rank=8"],
        ["method.task.caption=other"],
        ["method.task.optimizer._target_=geoseg.optim.adamw"],
        ["trainer.precision=bf16-mixed"],
        ["+trainer.limit_test_batches=1"],
        ["data.palette=['#000000','#111111','#222222','#333333','#444444','#555555']"],
    ],
    ids=" ".join,
)
def test_what_changes_the_training_changes_both(job: Callable[..., Job], overrides: list[str]) -> None:
    plain_job, changed = job(), job(*overrides)
    assert changed.fit_id != plain_job.fit_id
    assert changed.run_id != plain_job.run_id


@pytest.mark.parametrize(
    "overrides",
    [
        ["method.predictor.strength=0.4"],
        ["method.predictor.negative_prompt=blur"],
        ["method.wrappers.sam.points_per_side=8"],
        ["~method.wrappers.sam"],
        ["data.num_test=1"],
    ],
    ids=" ".join,
)
def test_what_changes_the_prediction_changes_the_run_alone(job: Callable[..., Job], overrides: list[str]) -> None:
    plain_job, changed = job(), job(*overrides)
    assert changed.fit_id == plain_job.fit_id
    assert changed.run_id != plain_job.run_id


def test_a_method_without_training_has_no_fit(job: Callable[..., Job]) -> None:
    as_is = job("method=input_as_is")
    assert as_is.fit_id is None
    assert as_is.run_id == job("method=input_as_is", "checkpoints.sam.path=nowhere").run_id
    assert as_is.run_id != job("method=input_as_is", "trainer.precision=bf16-mixed").run_id


def write_pairs(root: Path) -> None:
    rng = np.random.default_rng(0)
    for part, high in (("images", 256), ("labels", 3)):
        (root / part).mkdir(parents=True)
        for i in range(4):
            array = rng.integers(0, high, (20, 28), dtype=np.uint8)
            array.flat[:3] = (0, 1, 2)
            Image.fromarray(array).save(root / part / f"line{i}.png")


def test_pictures_of_ones_own(run_cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(tmp_path / "survey")
    command = ["run", "method=input_as_is", "data=profiles", "data.num_train=2", "logger=files", "progress=false"]
    assert run_cli(*command, "data.root=survey") == 0
    (first,) = records(tmp_path / "runs").values()
    assert len(first["data"]["test"]) == 2
    (tmp_path / "survey").rename(tmp_path / "moved")
    assert run_cli(*command, "data.root=moved") == 0
    assert len(list((tmp_path / "runs").rglob("record.json"))) == 1  # the same data somewhere else
    label = tmp_path / "moved" / "labels" / f"{first['data']['test'][0]}.png"
    array = np.asarray(Image.open(label)).copy()
    array[5, 5] = (array[5, 5] + 1) % 3
    Image.fromarray(array).save(label)
    assert run_cli(*command, "data.root=moved") == 0
    assert len(list((tmp_path / "runs").rglob("record.json"))) == 2  # one pixel makes other data
    (tmp_path / "moved" / "images" / "line2.png").write_text("text")
    capsys.readouterr()
    assert run_cli(*command, "data.root=moved") == 2
    assert "line2.png: not a picture, whatever its name says" in capsys.readouterr().err


# what goes wrong


def test_a_failed_run_says_so_and_is_tried_again(
    tiny_run: list[str], run_cli: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Job, *args: Any) -> None:
        raise RuntimeError("the disk burns at https://me:SECRET-FOUR@host")

    with monkeypatch.context() as patch:
        patch.setattr(Job, "_evaluate", broken)
        assert run_cli("run", *tiny_run) == 1
    (failed,) = records(tmp_path / "runs").values()
    assert failed["status"] == "failed"
    assert failed["error"] == "RuntimeError: the disk burns at https://***@host"
    assert "scores" not in failed
    before = times(tmp_path / "runs" / "fits")
    assert run_cli("run", *tiny_run) == 0
    (done,) = records(tmp_path / "runs").values()
    assert (done["status"], done["run_id"]) == ("done", failed["run_id"])
    assert "error" not in done
    assert times(tmp_path / "runs" / "fits") == before  # what was trained before the failure is kept


@pytest.fixture
def diverging(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, torch.Tensor]]]:
    """A training whose third to seventh losses are no numbers; holds the weights before every step."""
    seen: list[dict[str, torch.Tensor]] = []
    loss = DenoisingTask.loss

    def spoilt(self: DenoisingTask, batch: dict[str, Any]) -> torch.Tensor:
        if self.training:
            seen.append({name: p.detach().clone() for name, p in self.trainable().items()})
        return loss(self, batch) * (math.nan if 3 <= len(seen) < 8 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(DenoisingTask, "loss", spoilt)
        yield seen


def test_a_loss_that_is_no_number(
    tiny_run: list[str],
    run_cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    diverging: list[dict[str, torch.Tensor]],
) -> None:
    assert run_cli("run", *tiny_run, "method.task.fit.epochs=4") == 3
    said = capsys.readouterr().err
    (record,) = records(tmp_path / "runs").values()
    assert "geoseg: the loss became nan at step 6 on train_000" in said
    assert record["status"] == "failed"
    assert record["error"].startswith("TrainingDiverged: the loss became nan at step 6 on ")
    name = record["error"].split(" on ")[1].split(",")[0]
    assert name in record["data"]["train"]
    folder = tmp_path / "runs" / "fits" / record["fit_id"]
    assert not (folder / "fit.json").exists()
    saved = load_file(folder / "adapter" / FILE)
    before = diverging[2]
    assert len(saved) == len(before)
    assert not all(torch.equal(before[name], diverging[0][name]) for name in before)
    # names differ between file and module; each saved matrix must be one of those before the third step
    kept = sorted(tensor.flatten().tolist() for tensor in saved.values())
    assert kept == sorted(tensor.flatten().tolist() for tensor in before.values())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [0, 1, 2, 3, 4, 5]


def test_it_is_trained_again_after_that(
    tiny_run: list[str], run_cli: Callable[..., int], tmp_path: Path, diverging: list[dict[str, torch.Tensor]]
) -> None:
    longer = [*tiny_run, "method.task.fit.epochs=4"]
    assert run_cli("run", *longer) == 3
    assert run_cli("run", *longer) == 0  # from here on the loss is a number
    (record,) = records(tmp_path / "runs").values()
    assert record["status"] == "done"


def test_wandb_that_does_not_start_stops_nothing(
    run_cli: Callable[..., int], tiny_checkpoints: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def dead(**options: Any) -> None:
        raise wandb.errors.CommError("no network")

    monkeypatch.setattr(wandb, "init", dead)
    assert run_cli("run", *tiny_checkpoints, "method=input_as_is", "logger=wandb") == 0
    assert records(tmp_path / "runs")["input as is"]["status"] == "done"


def test_a_failed_run_ends_its_wandb_run(
    run_cli: Callable[..., int], tiny_checkpoints: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    ended: list[int] = []
    fake = SimpleNamespace(
        log=lambda *a, **k: None, summary={}, finish=lambda exit_code=0: ended.append(exit_code), log_artifact=None
    )
    monkeypatch.setattr(wandb, "init", lambda **options: fake)
    assert run_cli("run", *tiny_checkpoints, "method=input_as_is", "logger=wandb") == 0
    assert ended == [0]

    def broken(self: Job, *args: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(Job, "_evaluate", broken)
    assert run_cli("run", *tiny_checkpoints, "method=input_as_is", "logger=wandb", "seed=1") == 1
    assert ended == [0, 1]


def test_a_resolver_cannot_smuggle_an_object_in(
    compose: Callable[[list[str]], DictConfig], tiny_checkpoints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no() -> None:
        raise AssertionError("called")

    monkeypatch.setattr(os, "abort", no)
    cfg = compose([*tiny_checkpoints, "method=input_as_is"])
    OmegaConf.set_struct(cfg, False)
    cfg.method.predictor = "${oc.decode:'{_target_: os.abort}'}"
    with pytest.raises(ValueError, match=r"method\.predictor names os\.abort"):
        run(cfg)


def test_numbers_that_json_cannot_hold_become_none() -> None:
    assert finite({"a": [1.0, math.nan, (math.inf, 2)], "b": "nan", "c": None, "d": True}) == {
        "a": [1.0, None, [None, 2]],
        "b": "nan",
        "c": None,
        "d": True,
    }
