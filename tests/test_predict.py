"""A finished run's method from Python, against what the run itself said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import geoseg
from geoseg.data.synthetic import SyntheticEarth
from geoseg.predict import LoadedMethod

METHODS = ("label LoRA", "U-Net", "input as is")
TEST = ("test_0000", "test_0001")


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    """The test profiles, uint8 [H, W]."""
    source = SyntheticEarth(size=32, train=4, val=2, test=2)
    return {name: source.read(name).image for name in TEST}


@pytest.fixture(scope="module")
def loaded(trained: SimpleNamespace) -> dict[str, LoadedMethod]:
    return {title: geoseg.load(folder) for title, folder in trained.folders.items()}


def test_nothing_heavy_comes_with_the_package() -> None:
    program = "import sys, geoseg; sys.exit(str({'torch', 'numpy', 'hydra'} & set(sys.modules) or '') or 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("title", METHODS)
def test_a_profile_by_its_name_gets_what_the_run_said(
    title: str, loaded: dict[str, LoadedMethod], trained: SimpleNamespace, pictures: dict[str, np.ndarray]
) -> None:
    method, folder = loaded[title], trained.folders[title]
    for name, picture in pictures.items():
        now, then = method.predict(picture, name), trained.predictions[title][name]
        assert torch.equal(now.probs, then.probs)
        assert now.stages.keys() == then.stages.keys()
        assert all(torch.equal(now.stages[stage], then.stages[stage]) for stage in now.stages)
        assert (now.painted is None) == (then.painted is None)
        assert now.painted is None or torch.equal(now.painted, then.painted)
        assert all(torch.equal(now.facts[fact], then.facts[fact]) for fact in then.facts)
        with Image.open(folder / "predictions" / "labels" / f"{name}.png") as written:
            assert np.array_equal(np.asarray(written), now.labels[0].numpy())
    assert list(now.probs.shape) == [1, 6, 32, 32]
    assert method.class_names == trained.records[title]["data"]["class_names"]
    assert method.record == trained.records[title]
    assert (method.num_classes, method.palette.num_classes, method.folder) == (6, 6, folder)
    assert repr(method).startswith(f"<{title}, run {folder.name} on ")
    assert repr(method.palette) == f"Palette({list(method.palette.hex)})"


def test_the_seed_and_the_name_decide_a_drawing(
    loaded: dict[str, LoadedMethod], pictures: dict[str, np.ndarray]
) -> None:
    method, picture = loaded["label LoRA"], pictures["test_0000"]
    same, again = method.predict(picture), method.predict(picture)
    assert torch.equal(same.stages["pass 1"], again.stages["pass 1"])
    for other in (method.predict(picture, seed=5), method.predict(picture, "another")):
        assert not torch.equal(same.stages["pass 1"], other.stages["pass 1"])
    # without a name the content is the key, whatever stands beside it in the batch
    both = method.predict(np.stack([pictures["test_0001"], picture]))
    torch.testing.assert_close(both.stages["pass 1"][1:], same.stages["pass 1"], atol=1e-3, rtol=1e-3)


def test_what_a_picture_may_be(loaded: dict[str, LoadedMethod], pictures: dict[str, np.ndarray]) -> None:
    method, picture = loaded["U-Net"], pictures["test_0000"]
    wanted = method.predict(picture).probs
    colour = np.repeat(picture[..., None], 3, axis=-1)
    for one in (picture[None], picture[None, ..., None], colour, colour[None], picture.astype(np.float64) / 255):
        assert torch.equal(method.predict(one).probs, wanted)
    assert torch.equal(method.predict(torch.from_numpy(picture)).probs, wanted)
    both = method.predict(np.stack([picture, picture]), ["a", "b"])
    assert list(both.probs.shape) == [2, 6, 32, 32]
    torch.testing.assert_close(both.probs[1:], wanted)
    wanted.add_(1)  # an ordinary tensor
    other = method.predict(np.pad(picture, ((0, 5), (0, 9))))
    assert list(other.labels.shape) == [1, 37, 41]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros(5), r"shape \[5\]: \[H, W\] or"),
        (np.zeros((2, 4, 5, 6, 7)), "is wanted, or a batch"),
        (np.zeros((0, 4)), "is wanted, or a batch"),
        (np.full((4, 4), 2.0), "floats from 2 to 2; 0 .black. to 1 .white. is wanted"),
        (np.float32([[0.5, np.nan, np.inf, 1]]), "2 of 4 values are no numbers .*np.nan_to_num"),
        (np.full((4, 4), 300, np.uint16), "pixels are uint16, 300 to 300, and the run's profiles had 8 bits"),
        (np.zeros((4, 4), bool), "pixels are bool"),
        (np.zeros((4, 4), complex), "pixels are complex128"),
    ],
)
def test_what_it_may_not_be(wrong: np.ndarray, said: str, loaded: dict[str, LoadedMethod]) -> None:
    with pytest.raises(ValueError, match=said):
        loaded["input as is"].predict(wrong)
    with pytest.raises(ValueError, match="2 names for 1 pictures"):
        loaded["input as is"].predict(np.zeros((4, 4)), ["a", "b"])


def test_deep_greys_by_the_rule_of_the_run(run_cli: Callable[..., int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (tmp_path / "survey" / part).mkdir(parents=True)
    for i in range(3):
        values = rng.integers(0, 40000, (16, 20)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / "survey" / "images" / f"line{i}.png")
        label = rng.integers(0, 2, (16, 20), dtype=np.uint8)
        Image.fromarray(label).save(tmp_path / "survey" / "labels" / f"line{i}.png")
    words = ["run", "method=input_as_is", "data=profiles", "data.root=survey", "data.num_train=1", "logger=files"]
    assert run_cli(*words, "data.source.grey_range=[40000,0]", "progress=false", "trainer=cpu") == 0
    (folder,) = [path.parent for path in Path("runs").rglob("record.json")]
    record = json.loads((folder / "record.json").read_text())
    method = geoseg.load(folder)
    for name in record["data"]["test"]:
        with Image.open(tmp_path / "survey" / "images" / f"{name}.png") as picture:
            found = method.predict(np.asarray(picture))
        with Image.open(folder / "predictions" / "labels" / f"{name}.png") as written:
            assert np.array_equal(np.asarray(written), found.labels[0].numpy())


def test_runs_are_found(trained: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = trained.records["input as is"]["run_id"]
    for runs in (trained.runs, str(trained.runs)):
        assert geoseg.load(run_id[:8], runs).record["run_id"] == run_id
    monkeypatch.chdir(trained.folders["input as is"])
    assert geoseg.load(".").record["run_id"] == run_id
    monkeypatch.chdir(trained.runs.parent)
    assert geoseg.load(run_id).record["run_id"] == run_id
    for wrong, said in (
        ("xyz", "no run below runs is xyz; name one of runs/label_lora/"),
        ("", "no finished run, since it has no record.json"),
        ("runs/label_lora", "name one of those in it: runs/label_lora/"),
        ("runs/nothing/here", "there is no folder runs/nothing/here"),
    ):
        with pytest.raises(ValueError, match=said):
            geoseg.load(wrong)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="runs=FOLDER says where runs lie"):
        geoseg.load(run_id)


@pytest.fixture
def copied(trained: SimpleNamespace, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the runs whose record of one method was changed; the folder of that run."""

    def made(title: str, change: Callable[[dict[str, Any]], None] = lambda record: None) -> Path:
        shutil.copytree(trained.runs, tmp_path / "runs", dirs_exist_ok=True)
        folder = tmp_path / "runs" / trained.folders[title].relative_to(trained.runs)
        record = json.loads((folder / "record.json").read_text())
        change(record)
        (folder / "record.json").write_text(json.dumps(record))
        return folder

    return made


def test_what_cannot_be_loaded(copied: Callable[..., Path], trained: SimpleNamespace, tmp_path: Path) -> None:
    def smuggled(record: dict[str, Any]) -> None:
        record["config"]["method"]["predictor"]["_target_"] = "os.system"
        record["config"]["trust"] = ["os"]  # what a run says itself does not count

    with pytest.raises(ValueError, match=r"method\.predictor names os\.system, .*add trust=\[os\]"):
        geoseg.load(copied("U-Net", smuggled))
    with pytest.raises(ValueError, match="is not finished \\(Error: x\\); repeat it"):
        geoseg.load(copied("U-Net", lambda record: record.update(status="failed", error="Error: x")))
    with pytest.raises(ValueError, match="knows no classes"):
        geoseg.load(copied("U-Net", lambda record: record["data"].update(class_names=[])))
    with pytest.raises(ValueError, match="schema 99"):
        geoseg.load(copied("U-Net", lambda record: record.update(schema=99)))
    folder = copied("U-Net")
    shutil.rmtree(tmp_path / "runs" / "fits" / trained.records["U-Net"]["fit_id"])
    with pytest.raises(ValueError, match=r"fits/\w+, is in no folder above it.*force=true"):
        geoseg.load(folder)


def test_checkpoints_that_moved_or_changed(
    copied: Callable[..., Path], tmp_path: Path, pictures: dict[str, np.ndarray], trained: SimpleNamespace
) -> None:
    base = Path(trained.records["label LoRA"]["config"]["method"]["model"]["path_or_id"])
    shutil.copytree(base, tmp_path / "there")

    def gone(record: dict[str, Any]) -> None:
        record["config"]["method"]["model"]["path_or_id"] = "./gone"

    folder = copied("label LoRA", gone)
    with pytest.raises(ValueError, match="fingerprint"):
        geoseg.load(folder)
    moved = {"method.model.path_or_id": str(tmp_path / "there")}
    prediction = geoseg.load(folder, moved=moved).predict(pictures["test_0000"], "test_0000")
    assert torch.equal(prediction.probs, trained.predictions["label LoRA"]["test_0000"].probs)
    for key in ("method.model.revision", "method.nothing.path", "model.path_or_id"):
        with pytest.raises(ValueError, match=f"{key}=x: this run has no such file"):
            geoseg.load(folder, moved={key: "x"})
    with (tmp_path / "there" / "unet" / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"method\.model of the run .* put the old one back"):
        geoseg.load(folder, moved=moved)


def test_embedded_checkpoints_are_those_of_this_machine(tmp_path: Path) -> None:
    from geoseg.config import PACKAGE, embedded_here

    before = {
        "model": {"path_or_id": "/elsewhere/geoseg/assets/stable-diffusion"},
        "x": [{"path": "/a/geoseg/assets/no"}],
    }
    found = embedded_here(before)
    assert found["model"]["path_or_id"] == str(PACKAGE / "assets" / "stable-diffusion")
    assert found["x"] == before["x"]


def test_it_computes_in_the_precision_of_the_run(
    tiny_checkpoints: list[str], run_cli: Callable[..., int], pictures: dict[str, np.ndarray]
) -> None:
    words = [
        *tiny_checkpoints,
        "method=unet",
        "method.model.depth=3",
        "method.task.crop=32",
        "method.task.fit.epochs=1",
    ]
    words += ["method.task.schedule.warmup=0", "trainer.precision=bf16-mixed", "data.batch_size=1", "sample_every=0"]
    assert run_cli("run", *words) == 0
    (folder,) = [path.parent for path in Path("runs").rglob("record.json")]
    half, full = geoseg.load(folder), geoseg.load(folder, accelerator="cpu")
    for name, picture in pictures.items():
        found = half.predict(picture, name)
        with Image.open(folder / "predictions" / "labels" / f"{name}.png") as written:
            assert np.array_equal(np.asarray(written), found.labels[0].numpy())
        assert not torch.equal(found.probs, full.predict(picture, name).probs)
        torch.testing.assert_close(found.probs, full.predict(picture, name).probs, atol=0.05, rtol=0.2)
