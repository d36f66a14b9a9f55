"""What travels in the wheel, and whether that is enough to run anywhere."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(iter(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))))


def files(folder, *suffixes):
    """Files below a folder, relative to it, but for what Python leaves there."""
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT / folder).as_posix() for path in found if not suffixes or path.suffix in suffixes}


def test_wheel_carries_code_configuration_and_checkpoints(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"geoseg/{name}" for name in files("geoseg", ".py")} <= names
    assert {f"geoseg/conf/{name}" for name in files("conf")} <= names
    assert {f"geoseg/assets/{name}" for name in files("geoseg/assets")} <= names
    assert {
        "geoseg/conf/run.yaml",
        "geoseg/assets/stable-diffusion/model_index.json",
        "geoseg/assets/stable-diffusion/unet/diffusion_pytorch_model.safetensors",
        "geoseg/assets/sam/config.json",
        "geoseg/assets/sam/model.safetensors",
    } <= names


def test_wheel_carries_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"geoseg", "geoseg-0.1.0.dist-info"}
    assert {Path(name).suffix for name in names if name.startswith("geoseg/")} <= {
        ".py",
        ".yaml",
        ".json",
        ".md",
        ".txt",
        ".safetensors",
    }


@pytest.mark.slow
def test_installed_wheel_runs_outside_the_checkout(wheel, tmp_path):
    venv, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    there = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    install = ["-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, *install], check=True)
    # the heavy libraries are borrowed; .pth files inside a borrowed folder are not read, so the checkout stays out
    (there / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "HOME": str(tmp_path)}

    def run(*words):
        return subprocess.run(words, cwd=elsewhere, env=environment, capture_output=True, text=True)

    where = run(python, "-c", "import geoseg; print(geoseg.__file__)")
    assert Path(where.stdout.strip()) == there / "geoseg" / "__init__.py"
    small = [
        "data.source.test=2",
        "method.task.fit.epochs=1",
        "method.predictor.steps=6",
        "method.wrappers.sam.points_per_side=4",
        "rivals.unet.task.fit.epochs=3",
        "sample_every=0",
    ]
    demo = run(venv / "bin" / "geoseg", "demo", *small)
    assert demo.returncode == 0, demo.stderr[-3000:]
    assert all(row in demo.stdout for row in ("input as is", "pass 1", "pass 2", "refined", "U-Net"))
    records = [json.loads(path.read_text()) for path in elsewhere.glob("runs/label_lora/*/record.json")]
    tuned = {"label LoRA, tuned", "label LoRA, tuned, blinded"}
    assert {record["method"] for record in records} == {"label LoRA", "without LoRA", "input as is", "U-Net", *tuned}
    assert {record["status"] for record in records} == {"done"}
    assert {record["commit"] for record in records} == {None}
    assert not [path for path in elsewhere.iterdir() if path.name != "runs"]
