"""What Hydra starts for a multirun: thin, since Hydra imports every plugin on every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from geoseg import sweep


class Workers(Launcher):
    """Hands the runs of a sweep to long-lived worker processes: ``workers`` of them, stopped after ``timeout``."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        self.loader, self.task, self.config = hydra_context.config_loader, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        return sweep.launch(
            self.task,
            job_overrides,
            _varied(_parsed(self.config, self.loader)),
            lambda words: self.loader.load_sweep_config(self.config, list(words)),
            initial_job_idx,
            self.config.workers,
            self.config.timeout,
        )


class Resumed(BasicSweeper):
    """Expands a sweep as Hydra's own sweeper does, and leaves out what is finished or at work elsewhere."""

    def sweep(self, arguments: list[str]) -> None:
        assert self.hydra_context is not None
        assert self.config is not None
        assert self.launcher is not None
        loader, config, launcher = self.hydra_context.config_loader, self.config, self.launcher
        parsed = _parsed(config, loader)
        sweep.sweep(
            [words for batch in self.split_arguments(parsed, None) for words in batch],
            _varied(parsed),
            config,
            lambda words: loader.load_sweep_config(config, list(words)),
            lambda jobs: launcher.launch(jobs, initial_job_idx=0),
            self.max_batch_size,
        )


def _parsed(config: DictConfig, loader: Any) -> list[Override]:
    """The words of the command line, those that an experiment gives its sweep before them."""
    params = config.hydra.sweeper.get("params") or {}
    words = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    return OverridesParser.create(config_loader=loader).parse_overrides(words)


def _varied(parsed: Sequence[Override]) -> set[str]:
    return {override.get_key_element() for override in parsed if override.is_sweep_override()}
