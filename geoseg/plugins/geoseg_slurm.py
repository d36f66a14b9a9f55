"""Launchers that hand a sweep to SLURM; thin like their neighbour."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from geoseg import sweep
from geoseg.plugins.geoseg_sweep import parsed, varied

if TYPE_CHECKING:
    from geoseg.slurm import Queue


class SlurmLocal(Launcher):
    """Starts the runs of a sweep on this machine as SLURM would start them."""

    def __init__(self, **settings: Any) -> None:
        self.settings = {
            name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for name, value in settings.items()
        }

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        self.loader, self.task, self.config = hydra_context.config_loader, task_function, config
        self.together = self.settings.get("array_parallelism", 1)  # trials of a search that are submitted at once
        try:
            self.queue = self._queue(Path(config.runs))
            self.queue.check()
            for key, instead in (("workers", "array_parallelism"), ("timeout", "timeout_min")):
                if config[key] not in (1, None):
                    raise ValueError(f"{key}={config[key]} is for hydra/launcher=workers; see hydra.launcher.{instead}")
        except ValueError as error:
            print(f"geoseg: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        keys = varied(parsed(self.config, self.loader))
        return sweep.launch(self.task, job_overrides, keys, self._composed, initial_job_idx, 1, None, queue=self.queue)

    def _queue(self, runs: Path) -> Queue:
        from geoseg.slurm import Local  # which loads what runs need

        return Local(self.settings, runs)

    def _composed(self, words: Sequence[str]) -> DictConfig:
        config: DictConfig = self.loader.load_sweep_config(self.config, list(words))
        with open_dict(config):
            config.hydra.sweep.dir = str(Path(config.runs))  # the scratch folder of this process is not there
            if self.queue.gpu is not None and config.trainer.accelerator == "auto":
                # a job without the GPU that it asked for shall fail, and not compute for days on a CPU
                config.trainer.accelerator = "gpu" if self.queue.gpu else "cpu"
        return config


class Slurm(SlurmLocal):
    """Hands the runs of a sweep to a SLURM cluster: a job array, one GPU for each."""

    def _queue(self, runs: Path) -> Queue:
        from geoseg.slurm import Slurm

        return Slurm(self.settings, runs)
