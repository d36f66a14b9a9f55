"""From a run to a file that other programs load, through the command line."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from geoseg.cli import main
from geoseg.lora import FILE, load
from tests.tiny import tiny_latent_diffusion

UNET = ("method=unet", "method.model.depth=3", "method.task.crop=32", "method.task.fit.epochs=1")
UNET += ("method.task.fit.repeats=1", "method.task.schedule.warmup=0")


@pytest.fixture(scope="module")
def made(tiny_checkpoints: list[str], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Runs of a LoRA with alpha beside its rank, of a U-Net and of a method that learns nothing."""
    folder = tmp_path_factory.mktemp("made")
    lora = ("method.adapter.rank=2", "method.adapter.alpha=3", "method.task.fit.epochs=1", "method.wrappers.sam=null")
    lora += ("method.predictor.steps=2", "method.predictor.second_strength=null")
    with contextlib.chdir(folder):
        assert main(["run", *tiny_checkpoints, "name=lora", *lora]) == 0
        assert main(["run", *tiny_checkpoints, "name=unet", *UNET]) == 0
        assert main(["run", *tiny_checkpoints, "name=as_is", "method=input_as_is"]) == 0
    return SimpleNamespace(folder=folder)


@pytest.fixture
def runs(made: SimpleNamespace, tmp_path: Path) -> Path:
    shutil.copytree(made.folder / "runs", tmp_path / "runs")
    return tmp_path / "runs"


def run_of(runs: Path, name: str) -> Path:
    (record,) = (runs / name).glob("*/record.json")
    return record.parent


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_a_run_becomes_a_kohya_file(
    runs: Path, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = run_of(runs, "lora").relative_to(tmp_path)  # as a user types it
    assert run_cli("export", run.name[:8], "--to", "out/my-maps.safetensors") == 0
    capsys.readouterr()
    by_id = load_file("out/my-maps.safetensors")
    assert run_cli("export", str(run), "--to", "out/my-maps.safetensors", "--force") == 0
    assert load_file("out/my-maps.safetensors").keys() == by_id.keys()
    said = capsys.readouterr().out.splitlines()
    model = tiny_latent_diffusion()
    record = json.loads((run / "record.json").read_text())
    fit = runs / "fits" / record["fit_id"] / "adapter"
    load(model.parts(), fit, "vai1")
    count = sum(name.endswith("lora_A.vai1.weight") for name, _ in model.named_parameters())
    assert said[0] == "out/my-maps.safetensors"
    assert said[1] == f"  {count} modules, rank 2, alpha 3"
    assert said[2].startswith("  trained on stable-diffusion (checkpoints=local); other programs need that very model")
    assert said[3] == "  in a prompt: <lora:my-maps:1>"
    state, notes = load_file("out/my-maps.safetensors"), header(Path("out/my-maps.safetensors"))
    assert len(state) == 3 * count
    assert {value.item() for key, value in state.items() if key.endswith(".alpha")} == {3}
    assert (notes["ss_network_dim"], notes["ss_network_alpha"]) == ("2", "3.0")
    assert notes["ss_output_name"] == "my-maps"
    assert notes["geoseg.version"] == importlib.metadata.version("geoseg")
    assert notes["geoseg.base"] == notes["ss_sd_model_name"] == "stable-diffusion (checkpoints=local)"
    assert (notes["geoseg.run_id"], notes["geoseg.fit_id"]) == (record["run_id"], record["fit_id"])
    assert not any(str(tmp_path) in value for value in notes.values())
    # the numbers are those of the run
    other = tiny_latent_diffusion()
    load(other.parts(), "out/my-maps.safetensors", "vai1")
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_an_adapter_folder_or_file_and_half_precision(
    runs: Path, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    (adapter,) = (runs / "fits").glob(f"*/adapter/{FILE}")
    words = ("--format", layout, "--dtype", "float16")
    assert run_cli("export", str(adapter.parent), "--to", "a.safetensors", *words) == 0
    assert "trained on unknown" in capsys.readouterr().out
    assert run_cli("export", str(adapter), "--to", "b.safetensors", *words) == 0
    first, second = load_file("a.safetensors"), load_file("b.safetensors")
    assert first.keys() == second.keys()
    assert {value.dtype for key, value in first.items() if not key.endswith(".alpha")} == {torch.float16}
    model, exact = tiny_latent_diffusion(), tiny_latent_diffusion()
    load(model.parts(), "a.safetensors", "vai1")
    load(exact.parts(), adapter, "vai1")
    for a, b in zip(model.state_dict().values(), exact.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_what_cannot_be_exported_is_said(
    runs: Path, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refused(source: Path | str, to: str = "x.safetensors", *words: str) -> str:
        assert run_cli("export", str(source), "--to", to, *words) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("geoseg export: ")
        return said.err

    assert "'U-Net', which trains a network and no LoRA to export" in refused(run_of(runs, "unet"))
    assert "'input as is', which trains nothing" in refused(run_of(runs, "as_is"))
    run = run_of(runs, "lora")
    assert f"is no run; name one of those in it: {run}" in refused(run.parent)
    assert "no file or folder no/where" in refused("no/where")
    assert "no file or folder vai1.safetensors" in refused("vai1.safetensors")
    assert "no run below runs is nowhere; name one of runs/" in refused("nowhere")
    assert "neither a run's record.json" in refused(tmp_path)
    assert "no .safetensors file" in refused(run / "record.json")
    assert "vai1.safetensors" in refused(run, "vai1")
    assert "vai1.safetensors" in refused(run, "vai1.ckpt")

    (tmp_path / "kept.safetensors").write_text("mine")
    assert "kept.safetensors is there already; choose another name, or add --force" in refused(run, "kept.safetensors")
    assert (tmp_path / "kept.safetensors").read_text() == "mine"
    assert run_cli("export", str(run), "--to", "kept.safetensors", "--force") == 0
    assert len(load_file(tmp_path / "kept.safetensors")) > 0
    capsys.readouterr()
    assert "cannot be turned back" in refused("kept.safetensors", "x.safetensors", "--format", "diffusers")

    record = json.loads((run / "record.json").read_text())
    fit = runs / "fits" / record["fit_id"]
    assert "the very file to export" in refused(run, str(fit / "adapter" / FILE), "--force")
    failed = {**record, "status": "failed", "error": "RuntimeError: no memory"}
    (run / "record.json").write_text(json.dumps(failed))
    said = refused(run)
    assert "is not finished (RuntimeError: no memory)" in said
    assert f"{fit / 'adapter'} can be exported" in said
    (run / "record.json").unlink()
    assert "is not finished: it has no record.json" in refused(run)
    (run / "record.json").write_text(json.dumps(record))
    (fit / "fit.json").unlink()  # as while it is trained anew
    assert "is just being trained anew" in refused(run)
    assert not (tmp_path / "x.safetensors").exists()


def test_no_model_is_loaded(made: SimpleNamespace, tmp_path: Path) -> None:
    """Nor peft or Lightning imported, and nothing is said on the error stream."""
    program = (
        "import sys; from geoseg.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'peft', 'diffusers', 'pytorch_lightning', 'hydra', 'wandb', 'geoseg.diffusion'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    words = ["export", str(run_of(made.folder / "runs", "lora")), "--to", str(tmp_path / "a.safetensors")]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "<lora:a:1>" in done.stdout
