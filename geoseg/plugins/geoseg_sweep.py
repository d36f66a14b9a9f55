"""What Hydra starts for a multirun: thin, since Hydra imports every plugin on every call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from geoseg import search, sweep


class Workers(Launcher):
    """Hands the runs of a sweep to long-lived worker processes: ``workers`` of them, stopped after ``timeout``."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        self.loader, self.task, self.config = hydra_context.config_loader, task_function, config

    def launch(
        self,
        job_overrides: Iterable[Sequence[str]],
        initial_job_idx: int,
        ended: Callable[[int, JobReturn], None] = lambda index, ended: None,
    ) -> list[JobReturn]:
        return sweep.launch(
            self.task,
            job_overrides,
            varied(parsed(self.config, self.loader)),
            lambda words: self.loader.load_sweep_config(self.config, list(words)),
            initial_job_idx,
            self.config.workers,
            self.config.timeout,
            ended,
        )


class Resumed(BasicSweeper):
    """Expands a sweep as Hydra's own sweeper does, and leaves out what is finished or at work elsewhere."""

    def sweep(self, arguments: list[str]) -> None:
        assert self.hydra_context is not None
        assert self.config is not None
        assert self.launcher is not None
        loader, config, launcher = self.hydra_context.config_loader, self.config, self.launcher
        given = parsed(config, loader)
        if endless := [override.input_line for override in given if override.is_interval_sweep()]:
            cure = "hparams_search=optuna tries some of them; or list values, as key=1,2,3"
            print(f"geoseg: there is no end of values in {', '.join(map(str, endless))}: {cure}", file=sys.stderr)
            raise SystemExit(2)
        sweep.sweep(
            [words for batch in self.split_arguments(given, None) for words in batch],
            varied(given),
            config,
            lambda words: loader.load_sweep_config(config, list(words)),
            lambda jobs: launcher.launch(jobs, initial_job_idx=0),
            self.max_batch_size,
            getattr(launcher, "queue", None),
        )


class Search(BasicSweeper):
    """Chooses values by how those before them scored, and leaves the runs to the launcher: see ``geoseg.search``."""

    def __init__(self, max_batch_size: int | None, params: Any = None, **settings: Any) -> None:
        super().__init__(max_batch_size, params)
        self.settings = settings

    def sweep(self, arguments: list[str]) -> None:
        assert self.hydra_context is not None
        assert self.config is not None
        assert self.launcher is not None
        loader, config, launcher = self.hydra_context.config_loader, self.config, self.launcher

        def launch(jobs: Iterator[list[str]], ended: Callable[[int, JobReturn], None]) -> None:
            if isinstance(launcher, Workers):
                launcher.launch(jobs, 0, ended)
                return
            numbers, together = count(), getattr(launcher, "together", config.workers)
            while batch := list(islice(jobs, together)):
                for returned in launcher.launch(batch, initial_job_idx=0):
                    ended(next(numbers), returned)

        search.search(
            parsed(config, loader),
            self.settings,
            config,
            lambda words: loader.load_sweep_config(config, list(words)),
            launch,
            getattr(getattr(launcher, "queue", None), "gpu", None),
        )


def parsed(config: DictConfig, loader: Any) -> list[Override]:
    """The words of the command line, those that an experiment gives its sweep before them.

    What refers to another setting, as ``a=${b}``, is left for every job to resolve: here b may be one of many values.
    """
    settings: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
    given: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    params = settings.get("params") or {}
    words = [*(f"{key}={value}" for key, value in params.items()), *given]
    return OverridesParser.create(config_loader=loader).parse_overrides(words)


def varied(words: Sequence[Override]) -> set[str]:
    """The keys that vary among them."""
    return {override.get_key_element() for override in words if override.is_sweep_override()}
