"""What every test stands on: no network, one thread, and the program with checkpoints small enough for seconds."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# before the libraries that read them are imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
_SCRATCH = tempfile.TemporaryDirectory(prefix="geoseg-tests-")
for _name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR", "ARTIFACT_DIR"):
    os.environ[f"WANDB_{_name}"] = _SCRATCH.name

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from geoseg.config import conf_folder, register_resolvers
from tests.tiny import TINY_SAM


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_no_network() -> Iterator[None]:
    torch.set_num_threads(1)
    connect = socket.socket.connect

    def here_only(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test wants the network: {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", here_only)
        yield


@pytest.fixture(autouse=True)
def _no_hydra_left_over() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="session")
def compose() -> Callable[[list[str]], DictConfig]:
    """Composes the program's own configuration, as the command line does."""
    register_resolvers()

    def composed(overrides: list[str]) -> DictConfig:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return hydra_compose("run", overrides=overrides)

    return composed


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings that put random models of the true classes in the place of the checkpoints."""
    from geoseg.models.sam import build_sam, save_sam
    from tests.tiny import tiny_latent_diffusion

    folder = tmp_path_factory.mktemp("checkpoints")
    tiny_latent_diffusion().save(folder / "stable-diffusion")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_sam(build_sam(TINY_SAM), TINY_SAM, folder / "sam")
    return [
        "checkpoints=local",
        "checkpoints.size=32",
        f"checkpoints.stable_diffusion.path_or_id={folder / 'stable-diffusion'}",
        f"checkpoints.sam.path={folder / 'sam'}",
        "data.source.size=32",
        "data.source.train=4",
        "data.source.val=2",
        "data.source.test=2",
        "data.num_train=2",
        "trainer=cpu",
        "logger=files",
        "progress=false",
        "foresee=false",
    ]


@pytest.fixture(scope="session")
def tiny_run(tiny_checkpoints: list[str]) -> list[str]:
    """The settings of ``tiny_checkpoints`` and a main method of a few seconds, without rivals."""
    return [
        *tiny_checkpoints,
        "method.task.fit.epochs=2",
        "method.task.fit.validation_visits=2",
        "method.predictor.steps=4",
        "method.wrappers.sam.points_per_side=4",
    ]


@pytest.fixture
def run_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs one command in this process, inside a folder of its own, and gives its exit code."""
    from geoseg.cli import main

    monkeypatch.chdir(tmp_path)

    def called(*words: str) -> int:
        return main(list(words))

    return called
