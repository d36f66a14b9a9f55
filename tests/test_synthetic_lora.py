"""One adapter for pictures of all classes, on FLUX and on Stable Diffusion, through the command line."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from geoseg import lora
from geoseg.adapters import KIN_FILE
from geoseg.cli import main
from geoseg.diffusion.flux import FluxDiffusion
from geoseg.lora import FILE, FLUX_TARGETS, LoRA, trainable
from tests.tiny import flux_pipeline_of, flux_transformer, tiny_flux

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")  # as the program is told

COLOURS = {"river": (30, 60, 200), "forest": (20, 120, 40), "beach": (230, 210, 150), "runway": (90, 90, 90)}
STEPS = 160


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures, each of its own class, in kohya's folders: met once per epoch, the class as caption."""
    root = tmp_path_factory.mktemp("pictures")
    for word, colour in COLOURS.items():
        (root / f"1_a {word}").mkdir()
        Image.new("RGB", (32, 32), colour).save(root / f"1_a {word}" / "0.png")
    return root


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "flux"
    tiny_flux().save(folder)
    return folder


def settings(pictures: Path, flux: Path) -> list[str]:
    own = ["checkpoints=hub_flux", f"checkpoints.flux.path_or_id={flux}", "checkpoints.flux.dtype=float32"]
    own += ["checkpoints.flux.tokens=24", "checkpoints.size=32", "method=synthetic_lora_flux"]
    return [*own, "data=kohya", f"data.root={pictures}", "trainer=cpu", "logger=files", "progress=false"]


@pytest.fixture(scope="module")
def finished(pictures: Path, flux: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    where, spoken = tmp_path_factory.mktemp("finished"), list[str]()
    embed = FluxDiffusion.embed

    def listen(self: FluxDiffusion, prompts: list[str]) -> Tensor:
        spoken.extend(prompts)
        return embed(self, prompts)

    words = [*settings(pictures, flux), f"method.task.fit.epochs={STEPS // 5}", "method.task.fit.batch_size=4"]
    words += ["method.task.fit.accumulate=1", "method.task.optimizer.d0=1e-4"]
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(where):
        patch.setattr(FluxDiffusion, "embed", listen)
        assert main(["run", *words]) == 0
        (path,) = Path("runs").rglob("record.json")
        record = json.loads(path.read_text())
    fit = where / "runs" / "fits" / record["fit_id"]
    lines = [json.loads(line) for line in (fit / "metrics.jsonl").read_text().splitlines()]
    return SimpleNamespace(where=where, run=where / path.parent, record=record, fit=fit, lines=lines, spoken=spoken)


def test_four_pictures_are_overfitted(finished: SimpleNamespace) -> None:
    assert (finished.record["status"], finished.record["adapter"]) == ("done", [FILE])
    losses = [line["train/loss"] for line in finished.lines]
    assert len(losses) == STEPS
    assert sum(losses[-20:]) / 20 < 0.5 * sum(losses[:10]) / 10


def test_a_caption_is_read_once(finished: SimpleNamespace) -> None:
    assert Counter(finished.spoken) == dict.fromkeys([f"a {word}" for word in COLOURS], 1)


def test_the_rate_that_is_logged_is_what_prodigy_found_times_its_cosine(finished: SimpleNamespace) -> None:
    rates = [line["lr/transformer"] for line in finished.lines]
    assert rates[0] == pytest.approx(1e-4)  # d0
    assert max(rates) > 1e-3  # it grew
    assert rates[-1] < 0.01 * max(rates)  # and the schedule ended


def test_the_record_says_what_it_stands_on(finished: SimpleNamespace) -> None:
    record = finished.record
    assert record["checkpoints"]["kind"] == "hub_flux"
    licence = record["config"]["checkpoints"]["licence"]
    assert licence["name"] == "FLUX.1 [dev] Non-Commercial License" and licence["commercial"] is False
    assert record["memory"]["step"] > 0 and record["memory"]["optimizer"] > 0


def drawn(draw: Callable[..., Any]) -> Tensor:
    """The picture of a pipeline of diffusers."""
    options = {"height": 32, "width": 32, "num_inference_steps": 3, "max_sequence_length": 24, "output_type": "pt"}
    generator = [torch.Generator().manual_seed(5)]
    return draw(["a river"], guidance_scale=3.5, generator=generator, **options).images


def test_diffusers_loads_every_key_and_draws_the_same(finished: SimpleNamespace, flux: Path) -> None:
    adapter = finished.fit / "adapter"
    state = load_file(adapter / FILE)
    assert len(state) == 2 * (12 + 3) and all(key.startswith("transformer.") for key in state)
    pipeline = flux_pipeline_of(FluxDiffusion.load(flux, tokens=24))
    pipeline.set_progress_bar_config(disable=True)
    before = drawn(pipeline)
    pipeline.load_lora_weights(adapter, adapter_name="synthetic")
    there = {
        "transformer." + name.replace(".synthetic.", "."): value
        for name, value in pipeline.transformer.state_dict().items()
        if ".lora_" in name
    }
    assert there.keys() == state.keys()
    assert all(torch.equal(there[key], state[key]) for key in state)
    after = drawn(pipeline)
    assert (after - before).abs().max() > 0.01
    own = FluxDiffusion.load(flux, tokens=24)
    lora.load(own.parts(), adapter, "synthetic")
    ours = own.draw(["a river"], [torch.Generator().manual_seed(5)], (32, 32), steps=3)
    torch.testing.assert_close(ours, after, atol=1e-5, rtol=0)
    lora.detach(own.parts())
    ours = own.draw(["a river"], [torch.Generator().manual_seed(5)], (32, 32), steps=3)
    torch.testing.assert_close(ours, before, atol=1e-6, rtol=0)


def test_it_is_exported_in_the_layout_that_has_its_names(
    finished: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished.where)
    assert main(["export", str(finished.run), "--to", "mine.safetensors"]) == 2
    assert "--format diffusers" in capsys.readouterr().err
    assert main(["export", str(finished.run), "--to", "mine.safetensors", "--format", "diffusers"]) == 0
    written, saved = load_file("mine.safetensors"), load_file(finished.fit / "adapter" / FILE)
    assert written.keys() == saved.keys() and all(torch.equal(written[key], saved[key]) for key in saved)


@pytest.mark.parametrize(("kind", "given"), [("LoHa", 4), ("LoKr", 2)])
def test_other_kinds_by_one_setting(
    kind: str,
    given: int,
    tiny_checkpoints: list[str],
    pictures: Path,
    run_cli: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word for word in tiny_checkpoints if not word.startswith("data.")]
    words += ["method=synthetic_lora", "data=kohya", f"data.root={pictures}", "method.task.fit.steps=3"]
    assert run_cli("run", *words, f"method.adapter._target_=geoseg.lora.{kind}", "method.adapter.rank=2") == 0
    (path,) = (tmp_path / "runs" / "run").rglob("record.json")
    record = json.loads(path.read_text())
    assert record["adapter"] == [KIN_FILE]
    state = load_file(tmp_path / "runs" / "fits" / record["fit_id"] / "adapter" / KIN_FILE)
    assert all(key.startswith("lora_unet_") for key in state)  # the text encoder is left alone
    matrices = Counter(key.partition(".")[0] for key in state if not key.endswith(".alpha"))
    assert max(matrices.values()) >= given
    assert run_cli("export", str(path.parent), "--to", "mine.safetensors") == 2
    assert "has LyCORIS's names already" in capsys.readouterr().err


def test_layers_of_flux_dev_are_those_of_diffusers_script() -> None:
    transformer = flux_transformer()
    LoRA(rank=16, unet_targets=[], text_targets=[], transformer_targets=FLUX_TARGETS).attach(
        {"transformer": transformer}
    )
    trained = trainable({"transformer": transformer})["transformer"]
    # 19 blocks with two streams: query, key, value and output of each, and two layers of feed-forward of each;
    # 38 blocks with one: query, key and value
    assert len(trained) == 2 * (19 * (4 + 4 + 2 + 2) + 38 * 3) == 2 * 342
    # rank (in + out): 3072 to 3072, and 3072 to 12288 or back
    double, single = 8 * 2 * 3072 + 4 * (3072 + 4 * 3072), 3 * 2 * 3072
    assert sum(p.numel() for p in trained) == 16 * (19 * double + 38 * single) == 44_826_624


def test_the_settings_of_the_paper(compose: Callable[[list[str]], Any]) -> None:
    from geoseg.config import plain

    settings = plain(compose(["experiment=paper/khrulev", "data.root=."]))
    task = settings["method"]["task"]
    assert (task["fit"]["epochs"], task["fit"]["repeats"], settings["data"]["num_train"]) == (6, 5, 780)
    assert (task["optimizer"]["_target_"], task["lr"]) == ("geoseg.optim.prodigy", 1.0)
    assert task["schedule"]["_target_"] == "geoseg.optim.cosine"
    assert settings["checkpoints"]["flux"]["path_or_id"] == "black-forest-labs/FLUX.1-dev"
    assert tuple(settings["method"]["adapter"]["transformer_targets"]) == FLUX_TARGETS
