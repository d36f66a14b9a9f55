"""``geoseg synthesize``: pictures of classes by what a run has trained, through the command line."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from geoseg import places
from geoseg.cli import main
from geoseg.data.likeness import Likeness
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.synthesize import _prompts
from tests.land import Land
from tests.tiny import pipeline_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*in eval mode at the start of training",  # as the program is told
    "ignore:.*use of fork:DeprecationWarning",  # of a process that computes in one thread
    "ignore:.*multi-threaded, use of fork:DeprecationWarning",
)

ALWAYS = ["accelerator=cpu", "progress=false", "trust=[tests]"]
ASKED = ["steps=3", "guidance=4", "batch=2", "seed=7"]


def run(words: list[str], where: Path) -> Path:
    """The folder of a run of these settings."""
    with contextlib.chdir(where):
        assert main(["run", *words]) == 0
    (path,) = (where / "runs").rglob("record.json")
    return path.parent


@pytest.fixture(scope="module")
def settings(tiny_checkpoints: list[str]) -> list[str]:
    """Settings of a LoRA on pictures of land, whose 16 pixels it learns at 32."""
    kept = [word for word in tiny_checkpoints if not word.startswith(("data.", "checkpoints.sam"))]
    data = ["data.root=none", "~data.source.root", "~data.source.captions", "data.source._target_=tests.land.Land"]
    task = ["method.task.upscale=true", "method.task.fit.epochs=1", "method.task.fit.batch_size=3"]
    rest = ["method.predictor=null", "method.adapter.rank=2", "sample_every=0", "trust=[tests]"]
    return ["experiment=lora_only", *kept, *data, *task, "method.task.lr={unet:0.05,text:0.05}", *rest]


@pytest.fixture(scope="module")
def trained(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    licence = ["checkpoints.licence={name:a licence,commercial:false,note:null}"]
    return run([*settings, *licence], tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Eight pictures in one go: their folder and its manifest."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(["synthesize", f"run={trained}", "total=8", f"out={out}", *ALWAYS, *ASKED]) == 0
    return SimpleNamespace(out=out, manifest=manifest_of(out))


@pytest.fixture
def synthesize(trained: Path, run_cli: Callable[..., int]) -> Callable[..., int]:
    return lambda *words: run_cli("synthesize", f"run={trained}", *ALWAYS, *words)


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def pictures(folder: Path) -> dict[str, bytes]:
    """The content of every picture by its place, half-written ones left out."""
    found = (path for path in sorted(folder.glob("*/*.png")) if path.name[0] != ".")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_folder_of_equally_many_pictures(whole: SimpleNamespace) -> None:
    assert list(pictures(whole.out)) == [
        *(f"dry bed/dry bed_0000{i}.png" for i in range(3)),
        *(f"map/map_0000{i}.png" for i in range(2)),
        *(f"sea/sea_0000{i}.png" for i in range(3)),
    ]
    assert {path.name for path in whole.out.iterdir() if path.is_file()} == {".lock", "manifest.json", "sheet.png"}
    assert {pixels(whole.out / file).shape for file in pictures(whole.out)} == {(16, 16, 3)}
    assert pixels(whole.out / "sheet.png").shape[0] > 300


def test_the_manifest_says_from_what_each_was_drawn(whole: SimpleNamespace, trained: Path) -> None:
    said, record = whole.manifest, json.loads((trained / "record.json").read_text())
    file = trained.parents[1] / said["adapter"]["path"] / "pytorch_lora_weights.safetensors"
    assert said["adapter"]["sha256"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    assert (said["status"], said["seed"], said["run"]["run_id"]) == ("done", 7, trained.name)
    assert said["licence"] == {"name": "a licence", "commercial": False, "note": None}
    assert said["base"]["id"] == "stable-diffusion" and said["base"]["kind"] == "local"
    drawn = {"steps": 3, "guidance": 4, "negative": "", "scheduler": "DDIMScheduler", "drawn": [32, 32]}
    assert said["settings"] == {**drawn, "size": [16, 16], "batch": 2}
    source, names = Land(), record["data"]["train"]
    assert said["trained_on"] == {"names": names, "digest": source.fingerprint(names)} and len(names) == 6
    assert [entry["prompt"] for entry in said["images"][:4]] == ["tile sea", "tile dry bed", "tile map", "tile sea"]
    assert len({entry["seed"] for entry in said["images"]}) == 8
    likeness = Likeness(names, [source.read(name).image for name in names])
    assert said["near_duplicates"]["threshold"] == likeness.threshold
    for entry in said["images"]:
        (nearest,) = likeness.nearest([pixels(whole.out / entry["file"])])
        assert entry["near"] == {"name": nearest.name, "distance": nearest.distance}
        assert entry["flagged"] == (nearest.distance < likeness.threshold)
        assert entry["file"].startswith(f"{entry['class']}/{entry['class']}_0000") and entry["seconds"] > 0


def test_they_are_what_the_pipeline_of_diffusers_draws(whole: SimpleNamespace, trained: Path) -> None:
    record = json.loads((trained / "record.json").read_text())
    pipeline = pipeline_of(LatentDiffusion.load(record["config"]["method"]["model"]["path_or_id"]))
    pipeline.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "pt"}

    def apart() -> float:
        """The largest difference of any of three pictures, in grey values."""
        most = 0.0
        for entry in whole.manifest["images"][::3]:
            noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(entry["seed"]))
            found = pipeline(entry["prompt"], latents=noise, **asked).images
            wanted = interpolate(found, (16, 16), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
            most = max(most, float(np.abs(pixels(whole.out / entry["file"]) - 255 * wanted).max()))
        return most

    assert apart() > 10  # without the LoRA
    pipeline.load_lora_weights(trained.parents[1] / whole.manifest["adapter"]["path"])
    assert apart() < 1.5  # rounding to whole greys, and what a random network makes of rounding elsewhere


def test_the_terminal_says_what_came_of_it(whole: SimpleNamespace, synthesize: Callable[..., int], capsys: Any) -> None:
    assert synthesize("total=8", f"out={whole.out}", *ASKED) == 0  # nothing is left
    said = capsys.readouterr().out
    assert "near-duplicates" in said and "8 pictures by LoRA ->" in said and "sheet.png" in said
    assert re.search(r"dry bed +3 .*map +2 .*all +8 ", said, re.DOTALL)


def test_it_goes_on_where_it_was_stopped(
    synthesize: Callable[..., int],
    whole: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn: list[list[str]] = []
    draw = LatentDiffusion.draw

    @functools.wraps(draw)  # whose own numbers are looked up
    def spied(self: LatentDiffusion, prompts: list[str], *rest: Any, **more: Any) -> Any:
        drawn.append(prompts)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(self, prompts, *rest, **more)

    monkeypatch.setattr(LatentDiffusion, "draw", spied)
    out, asked = tmp_path / "out", ["out=out", *ASKED]
    assert synthesize("total=8", *asked) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    left = manifest_of(out)
    assert left["status"] == "unfinished" and len(left["images"]) == 4
    # as a kill leaves it: a picture that the manifest had no time to name, half a file, and one that is gone
    (out / "manifest.json").write_text(json.dumps({**left, "images": left["images"][:3]}))
    (out / "map" / ".map_00001.part.png").write_bytes(b"torn")
    (out / "dry bed" / "dry bed_00000.png").unlink()
    assert not (out / "sheet.png").exists()
    assert synthesize("total=8", *asked) == 0
    assert drawn[3:] == [["tile sea", "tile dry bed"], ["tile dry bed", "tile map"], ["tile sea", "tile dry bed"]]
    assert pictures(out) == pictures(whole.out) and not list(out.rglob("*part*")) and (out / "sheet.png").exists()
    kept = {key: value for key, value in manifest_of(out).items() if key not in ("minutes", "images")}
    assert kept == {key: value for key, value in whole.manifest.items() if key not in ("minutes", "images")}
    for one, other in zip(manifest_of(out)["images"], whole.manifest["images"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    del drawn[:]
    assert synthesize("total=8", *asked) == 0 and drawn == []
    assert synthesize("total=10", *asked) == 0 and drawn == [["tile map", "tile sea"]]
    assert pictures(out).items() > pictures(whole.out).items() and len(manifest_of(out)["images"]) == 10
    for words, said in (
        (["total=8", *asked], "2 of which total=8 would not draw"),
        (["total=10", *asked, "steps=4"], "made otherwise: steps was 3, is 4"),
        (["total=10", *asked, "template=a {}"], 'made otherwise: prompts.sea was "tile sea", is "a sea"'),
        (["total=10", *asked, "seed=8"], "seed was 7, is 8"),
        (["total=10", *asked, "size=8"], "size was [16, 16], is [8, 8]"),
    ):
        assert synthesize(*words) == 2
        assert said in capsys.readouterr().err


def test_a_kill_loses_the_batch_in_hand_and_no_other(
    synthesize: Callable[..., int],
    whole: SimpleNamespace,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    words = ["total=8", f"out={out}", *ASKED]
    child = os.fork()
    if not child:  # the command, which never comes to the end of its third batch
        draw, calls = LatentDiffusion.draw, []

        @functools.wraps(draw)
        def stuck(self: LatentDiffusion, *args: Any, **more: Any) -> Any:
            calls.append(args)
            if len(calls) == 3:
                time.sleep(600)
            return draw(self, *args, **more)

        monkeypatch.setattr(LatentDiffusion, "draw", stuck)
        os._exit(main(["synthesize", f"run={trained}", *ALWAYS, *words]))
    try:
        deadline = time.monotonic() + 300
        while len(pictures(out)) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    there = {out / file: (out / file).stat().st_ino for file in pictures(out)}
    assert os.WIFSIGNALED(status) and len(there) == 4
    assert manifest_of(out)["status"] == "unfinished"
    assert synthesize(*words) == 0
    assert {path: path.stat().st_ino for path in there} == there  # none was drawn again
    assert pictures(out) == pictures(whole.out) and manifest_of(out)["status"] == "done"


def test_near_duplicates_are_flagged(
    synthesize: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    source = Land()

    @functools.wraps(LatentDiffusion.draw)
    def remembered(self: LatentDiffusion, prompts: list[str], generators: Any, size: Any, **more: Any) -> torch.Tensor:
        """The training picture map/2, mirrored, for a map; something else otherwise."""
        picture = torch.from_numpy(source.read("map/2").image[:, ::-1].copy()).permute(2, 0, 1) / 255
        new = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(5))
        made = torch.stack([picture if prompt == "tile map" else new for prompt in prompts])
        return interpolate(made, size, mode="nearest")

    monkeypatch.setattr(LatentDiffusion, "draw", remembered)
    assert synthesize("total=6", "out=out") == 0
    images = manifest_of(tmp_path / "out")["images"]
    flagged = {entry["file"]: entry["near"]["name"] for entry in images if entry["flagged"]}
    assert flagged == {"map/map_00000.png": "map/2", "map/map_00001.png": "map/2"}
    said = capsys.readouterr().out
    assert re.search(r"sea +2 +0 .*dry bed +2 +0 .*map +2 +2 .*all +6 +2 ", said, re.DOTALL)


def test_some_classes_in_other_words_and_another_size(
    synthesize: Callable[..., int], tmp_path: Path, caplog: Any
) -> None:
    assert synthesize("total=2", "out=out", "classes=[map,dry bed]", "template={} 8 k", "size=40", "steps=1") == 0
    said = manifest_of(tmp_path / "out")
    assert said["asked"]["prompts"] == {"map": "map 8 k", "dry bed": "dry bed 8 k"}
    assert pixels(tmp_path / "out" / "map" / "map_00000.png").shape == (40, 40, 3)
    assert "drawn in 32 x 32, as learnt, and enlarged to 40 x 40" in caplog.text
    assert (said["settings"]["guidance"], said["asked"]["guidance"]) == (7.0, None)  # the model's own


def test_a_model_that_was_trained_whole(settings: list[str], tmp_path: Path) -> None:
    folder = run([*settings, "method.adapter=null", "method.task.lr={unet:1e-3,text:0}"], tmp_path)
    out = tmp_path / "out"
    assert main(["synthesize", f"run={folder}", "total=3", f"out={out}", *ALWAYS, *ASKED[:-1]]) == 0
    said = manifest_of(out)
    assert "unet/diffusion_pytorch_model.safetensors" in said["adapter"]["sha256"] and said["seed"] == 0
    assert said["licence"]["name"] == "unknown"
    model = LatentDiffusion.load(tmp_path / "runs" / said["adapter"]["path"])
    entry = said["images"][0]
    drawn = model.draw(["tile sea"], [torch.Generator().manual_seed(entry["seed"])], (32, 32), 3, 4.0)
    wanted = 255 * interpolate(drawn, (16, 16), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(pixels(out / entry["file"]), wanted, atol=1.01)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out=out"], "how many pictures? total="),
        (["total=8"], "where to? out="),
        (["total=8", "out=out", "stps=3"], "there is no setting stps; did you mean steps?"),
        (["total=many", "out=out"], "total=many: a whole number is wanted"),
        (["total=8", "out=out", "batch=0"], "batch=0: whole numbers from 1 on"),
        (["total=2", "out=out"], "total=2: there are 3 classes"),
        (["total=8", "out=out", "classes=[see]"], "'see' is no class of land; did you mean sea?"),
        (["total=8", "out=out", "classes=[]"], "names of folders are wanted"),
        (["total=8", "out=out", "classes=[sea,sea]"], "each once"),
        (["total=8", "out=out", "template=sea"], "template=sea: wanted is {} once"),
        (["total=8", "out=out", "template={} 1 2 3 4 5 6 7 8 9 1 2 3 4 5 6 7 8 9 1 2 3 4 5 6 7"], "reads 22 tokens"),
        (["total=8", "out=here"], "out=here holds other files (notes.txt)"),
        (["total=8", "out=out", "run=xyz"], "no run below runs is xyz"),
        (["total=8", "out=out", "trust=[]"], "names tests.land.Land, which is outside geoseg"),
        (["total=1000000000", "out=out"], "are needed at least; make room"),
    ],
)
def test_what_cannot_be_drawn(
    words: list[str],
    said: str,
    synthesize: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    if "total=1000000000" in words:
        words[0] = "total=1000"
        monkeypatch.setattr(places.shutil, "disk_usage", lambda place: SimpleNamespace(free=(64 << 20) + 1000 * 767))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "notes.txt").write_text("x")
    assert synthesize(*words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda method: method.update(task=None), "has not learnt to draw pictures"),
        (
            lambda method: method["task"].update(_target_="geoseg.tasks.labelling.LabellingTask"),
            "has not learnt to draw",
        ),
        (lambda method: method["task"].update(paint=True), "has learnt to paint label maps"),
        (lambda method: method["task"].update(caption="Tile"), "one caption for all pictures, 'Tile'"),
    ],
)
def test_runs_that_draw_no_classes(
    change: Callable[[dict[str, Any]], None],
    said: str,
    trained: Path,
    run_cli: Callable[..., int],
    tmp_path: Path,
    capsys: Any,
) -> None:
    record = json.loads((trained / "record.json").read_text())
    change(record["config"]["method"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    assert run_cli("synthesize", "run=run", "total=8", "out=out", *ALWAYS) == 2
    assert said in capsys.readouterr().err


def test_what_does_not_fit_into_memory(
    synthesize: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    @functools.wraps(LatentDiffusion.draw)
    def full(*args: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(LatentDiffusion, "draw", full)
    assert synthesize("total=8", "out=out", "batch=3") == 2
    assert "batch=3: so many pictures of 32 x 32 do not fit into memory" in capsys.readouterr().err


def test_data_without_classes_or_words() -> None:
    record = {"config": {"method": {"task": {"caption": None}}}}
    bare = SimpleNamespace(title="pictures", class_names=[])
    assert _prompts(record, bare, ["salt_lake"], "a {} from above") == {"salt_lake": "a salt lake from above"}
    for classes, template, said in ((None, "", "has no classes; say which"), (["a"], "", "no words for its classes")):
        with pytest.raises(ValueError, match=said):
            _prompts(record, bare, classes, template)
    for wrong in (["../a"], ["a/b"], [""]):
        with pytest.raises(ValueError, match="names of folders"):
            _prompts(record, bare, wrong, "a {}")


def test_its_help(run_cli: Callable[..., int], capsys: Any) -> None:
    assert run_cli("synthesize", "--help") == 0
    told = capsys.readouterr().out
    for key in ("classes", "template", "size", "steps", "guidance", "negative", "batch", "seed", "runs", "trust"):
        assert f"{key}=" in told
    assert run_cli("--help") == 0
    assert "geoseg synthesize run=RUN" in capsys.readouterr().out
