"""What the machine has and lacks, told without network and within seconds."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from geoseg import doctor
from geoseg.doctor import Finding, diagnose, memory_here, print_findings

ROOT = Path(__file__).resolve().parent.parent


def find(what: str) -> Finding:
    return next(finding for finding in diagnose() if finding.what == what)


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in modules else real(name, *rest))


def test_a_machine_that_can_run_the_demo(run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("doctor") == 0
    said = capsys.readouterr().out
    assert "geoseg demo can run here." in said
    assert "problem" not in said
    for words in ("Python", "GiB", "torch", "embedded checkpoints", f"{len(doctor.EMBEDDED)} files"):
        assert words in said


def test_it_is_fast_and_asks_nobody(tmp_path: Path) -> None:
    program = (
        "import socket, sys\n"
        "def no(*words): raise SystemExit('asked the network')\n"
        "socket.socket.connect = socket.getaddrinfo = no\n"
        "from geoseg.cli import main\n"
        "code = main(['doctor'])\n"
        "sys.exit('heavy' if {'diffusers', 'transformers', 'pytorch_lightning', 'hydra'} & set(sys.modules) else code)"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - begun < 30  # three seconds where nothing else runs
    assert list(tmp_path.iterdir()) == []


def test_it_knows_every_library_that_the_project_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(doctor.NEEDED) == {Requirement(line).name for line in project["dependencies"]}
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    assert set(doctor.OPTIONAL) == {Requirement(line).name for line in extras}
    assert project["requires-python"] == ">=" + ".".join(map(str, doctor.PYTHON))


def test_missing_libraries(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "bitsandbytes", "cv2", "wandb", "open_clip", "rich")
    assert run_cli("doctor") == 1
    said = capsys.readouterr().out
    for name in ("bitsandbytes", "opencv-python-headless", "wandb"):
        assert re.search(rf"^problem  {name} +missing\n +repair: pip install {name}\n", said, re.MULTILINE)
    assert "note     open_clip_torch" in said  # no reason to refuse
    assert "geoseg demo cannot run here: 4 of these first." in said  # with rich


def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def load(name: str, *rest: Any) -> Any:
        if name == "torchvision":
            raise RuntimeError("\noperator torchvision::nms does not exist")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", load)
    finding = find("torchvision")
    assert finding.state == "problem"
    assert "nms does not exist" in finding.found
    assert finding.repair == "pip install --force-reinstall torch torchvision"


@pytest.mark.parametrize("harm", ["gone", "cut", "pointer"])
def test_embedded_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    for name in doctor.EMBEDDED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((doctor.ASSETS / name).read_bytes())
    monkeypatch.setattr(doctor, "ASSETS", tmp_path)
    assert find("embedded checkpoints").state == "ok"
    path = tmp_path / "sam" / "model.safetensors"
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if harm == "cut" else b"version https://git-lfs.github.com/spec/v1\n")
    finding = find("embedded checkpoints")
    assert (finding.state, finding.found) == ("problem", "missing or broken: sam/model.safetensors")
    assert "pip install --force-reinstall" in finding.repair


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk(runs: Path) -> Finding:
        return next(finding for finding in diagnose(runs) if finding.what == "disk")

    assert disk(tmp_path / "not" / "yet").state == "ok"
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").write_text("")
    assert "cannot be written" in disk(tmp_path / "file").found
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    assert disk(tmp_path).state == "problem"
    assert "geoseg demo runs=FOLDER" in disk(tmp_path).repair


def test_memory_and_old_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_here()
    assert memory is None or memory > 1 << 28
    monkeypatch.setattr(doctor, "memory_here", lambda: 1 << 30)
    assert find("memory").state == "note"
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert find("Python").state == "problem"


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").write_text("")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "DRIVER", tmp_path / "none")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert find("GPU") == Finding("GPU", "none; geoseg runs on the CPU")
    monkeypatch.setattr(doctor, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built for CPUs" in find("GPU").found
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    assert find("GPU").repair.startswith("update the NVIDIA driver to one for CUDA 13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(name="NVIDIA H200"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (100 << 30, 140 << 30))
    assert find("GPU").found == "NVIDIA H200, 100.0 of 140.0 GiB free"


@pytest.mark.parametrize("columns", [80, 120])
def test_no_line_is_wider_than_the_terminal(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")  # a long path is not cut
    assert run_cli("doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    # no library is parted from its version, nor cut
    words = {word.strip(",") for line in lines for word in line.split()}
    installed = {f"{name}=={doctor._version(name)}" for name in doctor.NEEDED if doctor._version(name)}
    assert installed <= words
    (first,) = [i for i, line in enumerate(lines) if " libraries " in line]
    assert lines[first + 1].startswith(" " * lines[first].index("torch=="))


def test_repairs_are_printed_below_what_they_repair(capsys: pytest.CaptureFixture[str]) -> None:
    assert not print_findings(iter([Finding("x", "broken [red]", "problem", "pip install x[y]")]))
    said = capsys.readouterr().out
    assert said.splitlines()[:2] == ["problem  x  broken [red]", "         repair: pip install x[y]"]
