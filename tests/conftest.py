"""What every test stands on: no network, one thread, and the program with checkpoints small enough for seconds."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
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


@pytest.fixture(scope="session")
def trained(tiny_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Finished runs of label LoRA, a U-Net and the input as is.

    ``runs`` is their folder; ``folders``, ``records`` and ``predictions`` are by title; a prediction is what the run
    said of each test profile, by its name.
    """
    from geoseg.cli import main
    from geoseg.tasks.evaluation import EvaluationTask

    folder = tmp_path_factory.mktemp("trained")
    unet = ["rivals.unet.model.depth=3", "rivals.unet.task.crop=32", "rivals.unet.task.fit.epochs=1"]
    unet += ["rivals.unet.task.fit.repeats=2", "rivals.unet.task.schedule.warmup=0"]
    words = ["run", "experiment=label_lora", *tiny_run, *unet, "data.batch_size=1", "sample_every=0", "figure_rows=0"]
    words += [f"rivals.{name}=null" for name in ("without_lora", "label_lora_tuned", "blinded")]
    said: dict[int, dict[str, Any]] = {}
    remember = EvaluationTask._remember

    def spied(self: EvaluationTask, batch: Any, prediction: Any, *rest: Any) -> None:
        said.setdefault(id(self), {})[batch["name"][0]] = prediction
        said[id(self)]["task"] = self  # so that no other one gets its id
        remember(self, batch, prediction, *rest)

    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr(EvaluationTask, "_remember", spied)
        assert main(words) == 0
    found = {
        record["method"]: (path.parent, record)
        for path in sorted(folder.rglob("record.json"))
        for record in [json.loads(path.read_text())]
    }
    titles = ("label LoRA", "input as is", "U-Net")  # as they were run
    assert found.keys() == set(titles)
    return SimpleNamespace(
        runs=folder / "runs",
        folders={title: place for title, (place, _) in found.items()},
        records={title: record for title, (_, record) in found.items()},
        predictions=dict(zip(titles, said.values(), strict=True)),
    )


@pytest.fixture
def run_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs one command in this process, inside a folder of its own, and gives its exit code."""
    from geoseg.cli import main

    monkeypatch.chdir(tmp_path)

    def called(*words: str) -> int:
        return main(list(words))

    return called
