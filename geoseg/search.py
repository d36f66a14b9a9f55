"""A search: settings of a method whose values are chosen by how the runs before them scored on the validation set.

Every trial is an ordinary run of the main method alone, found again by its identity like any other. Which trials there
are, the study knows (``geoseg.study``); who does them, the launcher. Nothing heavy is imported before it is needed,
since Hydra imports its plugins on every call.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, open_dict

from geoseg import sweep
from geoseg.record import stale

if TYPE_CHECKING:
    from geoseg.job import Job
    from geoseg.study import Choice, Number, Study, Trial

SEARCHED = ("method", "prompt", "checkpoints", "trainer")
"""Groups whose settings may be searched; others decide what is validated on, or no score."""

NOT_REPEATED = ("hparams_search", "objective", "workers", "timeout")
"""Settings of a search that are none of the best run's."""

SHOWN = 10
"""Trials of each kind that the table at the end shows."""


def search(
    parsed: Sequence[Override],
    settings: Mapping[str, Any],
    config: DictConfig,
    compose: Callable[[Sequence[str]], DictConfig],
    launch: Callable[[Iterator[list[str]], Callable[[int, JobReturn], None]], None],
    gpu: bool | None = None,
) -> None:
    """Does what is left of a search, and tells what came of it.

    Args:
        parsed: the words of the command line and of the experiment's own sweep.
        settings: those of ``conf/hparams_search``.
        config: the configuration that all trials share.
        compose: makes a trial's configuration of its words.
        launch: does jobs, whose words it asks for one after the other, and says of each how it ended.
        gpu: whether there is a GPU where they are done; None where that is here.

    Raises:
        SystemExit: the search cannot work, with 2; a trial failed, with the largest of their exit codes; or 128 +
            signal.
    """
    sweep.quieten()
    try:
        with sweep.resumable():
            ongoing = begun(parsed, settings, config, compose, gpu)
            with ongoing.study.opened():
                ongoing.go(launch)
    except ValueError as error:
        print(f"geoseg: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    ongoing.print_end()
    if ongoing.codes:
        raise SystemExit(max(ongoing.codes))


def begun(
    parsed: Sequence[Override],
    settings: Mapping[str, Any],
    config: DictConfig,
    compose: Callable[[Sequence[str]], DictConfig],
    gpu: bool | None = None,
) -> Search:
    """A search whose settings can work, before any work.

    Raises:
        ValueError: what cannot work.
    """
    from geoseg.config import check_type, identity
    from geoseg.study import Choice, Study, study_folder

    latest = {override.get_key_element(): override for override in parsed}
    varied = {name: override for name, override in latest.items() if override.is_sweep_override()}
    sweep.check_workers(config, varied)
    space = {name: parameter(override) for name, override in varied.items()}
    if not space:
        raise ValueError(
            "a search varies at least one setting, such as 'method.task.lr.unet=tag(log,interval(1e-5,1e-3))'; without "
            "one leave hparams_search away"
        )
    direction = settings["direction"]
    if config.objective is None:
        raise ValueError(
            "which score decides? objective=val/loss hydra.sweeper.direction=minimize, or objective=val/iou/mean "
            "hydra.sweeper.direction=maximize"
        )
    if direction not in ("minimize", "maximize"):
        raise ValueError(
            f"hydra.sweeper.direction={'null' if direction is None else direction}: minimize or maximize is wanted, as "
            f"{config.objective} is better when it is smaller or larger"
        )
    for name, least in (("n_trials", 1), ("n_startup_trials", 0), ("seed", 0)):
        check_type(f"hydra.sweeper.{name}", settings[name], int)
        if settings[name] < least:
            raise ValueError(f"hydra.sweeper.{name}={settings[name]}: {least} or more is wanted")
    _check_pruner(settings["pruner"])
    # Hydra's order is kept, since group options come before what is set inside them
    words = [(name, None if name in space else override.input_line) for name, override in latest.items()]
    ongoing = Search(words, config, compose, gpu)
    corner = {name: one.words[0] if isinstance(one, Choice) else one.word(one.low) for name, one in space.items()}
    base = ongoing.job(corner)
    if not base.data.names["val"]:
        raise ValueError(
            f"objective={config.objective} is a score of validation profiles, and none are set apart; data.num_val=4 "
            "takes four from the pool"
        )
    if base.processes > 1 and settings["pruner"] is not None:
        raise ValueError(
            f"trainer.devices={base.settings['trainer']['devices']}: trainings are pruned on one device alone; "
            "hydra.sweeper.pruner=null trains all of them to their end"
        )
    # what is the same for all trials, the data included: another base is another study
    name = identity(config.objective, direction, {key: repr(one) for key, one in space.items()}, base.run_id)
    ongoing.study = Study(
        study_folder(config.runs, config.name, name),
        space,
        config.objective,
        direction,
        settings["n_trials"],
        settings["n_startup_trials"],
        settings["seed"],
    )
    return ongoing


@dataclass
class Search:
    """One command's work at a study.

    Attributes:
        words: key and word of every setting, None where it is varied.
        config: what all trials share.
        compose: makes a configuration of words.
        gpu: whether there is a GPU where trials are done; None where that is here.
        study: what is tried.
        codes: exit codes of the trials that failed.
    """

    words: Sequence[tuple[str, str | None]]
    config: DictConfig
    compose: Callable[[Sequence[str]], DictConfig]
    gpu: bool | None
    study: Study = field(init=False)
    codes: list[int] = field(default_factory=list, init=False)
    _prepared: dict[str, Any] = field(default_factory=dict, init=False)
    _taken: list[Trial] = field(default_factory=list, init=False)
    _jobs: dict[int, Job] = field(default_factory=dict, init=False)

    def line(self, values: Mapping[str, str]) -> list[str]:
        """The words of a trial, as they would be typed for it alone."""
        return [word if word is not None else f"{name}={values[name]}" for name, word in self.words]

    def job(self, values: Mapping[str, str]) -> Job:
        """The run of a trial, not begun.

        Raises:
            ValueError: it cannot work.
        """
        from geoseg.run import jobs_of

        cfg = self.compose([*self.line(values), "rivals=null"])
        with open_dict(cfg):
            del cfg["hydra"]
        return jobs_of(cfg, self._prepared, self.gpu)[0]

    def go(self, launch: Callable[[Iterator[list[str]], Callable[[int, JobReturn], None]], None]) -> None:
        """Tries what is left."""
        known = self.study.all()
        done = sum(trial.state in ("done", "pruned") for trial in known)
        print(f"{done} of {self.study.trials} trials are finished; study {self.study.folder}", flush=True)
        self._taken = []
        launch(self._upcoming(), self._ended)
        while self._taken:  # what was stopped may have to be tried again, after all workers have ended
            self._taken = []
            launch(self._upcoming(), self._ended)

    def _upcoming(self) -> Iterator[list[str]]:
        """The words of the next trials; those whose runs are finished are told at once."""
        while (trial := self.study.ask()) is not None:
            try:
                job = self.job(trial.words)
            except Exception as error:
                self._failed(trial.number, sweep.describe(error))
                continue
            self.study.name(trial.number, job.run_id)
            record = job.finished()
            score = record["scores"].get(self.study.objective) if record else None
            if record and score is not None:
                note = f"found{stale(record)}"
                print(f"[{trial.number}] {self._shown(trial)}: {note}, run {job.run_id}", flush=True)
                self.study.tell(trial.number, score, note)
                continue
            self._taken.append(trial)
            self._jobs[trial.number] = job
            own = [f"hydra.sweeper.study='{self.study.folder.name}'", f"hydra.sweeper.trial={trial.number}"]
            yield [*self.line(trial.words), "rivals=null", *own, f"hydra.job.num={trial.number}"]

    def _ended(self, index: int, ended: JobReturn) -> None:
        """Tells the study how a job ended.

        Raises:
            ValueError: no trial can have the objective.
        """
        from geoseg.checkpoints import Pruned

        number, answer = self._taken[index].number, ended._return_value
        job = self._jobs.pop(number)
        if isinstance(answer, Pruned):
            self.study.prune(number, str(answer))
        elif ended.status is JobStatus.COMPLETED:
            self.study.tell(number, answer)
        elif sweep.no_failure(answer):
            self.study.fail(number, str(answer))
        else:
            failed = sweep.describe(answer)
            self._failed(number, failed)
            record = job.finished()
            if record is not None and self.study.objective not in record["scores"]:
                raise ValueError(failed.text)  # and so it would be with all others

    def _failed(self, number: int, failed: sweep.JobFailed) -> None:
        self.codes.append(failed.code)
        self.study.fail(number, sweep.in_a_line(failed.text), again=failed.code > 128)

    def _shown(self, trial: Trial) -> str:
        return " ".join(sweep.shown([f"{name}={word}" for name, word in trial.words.items()], trial.words))

    def print_end(self) -> None:
        """The best trials, what became of the others, and how to repeat the best."""
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        study, found = self.study, self.study.all()
        console = Console()
        if not console.is_terminal:
            console = Console(width=max(120, console.width))
        states = {state: [trial for trial in found if trial.state == state] for state in _STATES}
        states["done"] = study.best()
        counts = ", ".join(f"{len(those)} {state}" for state, those in states.items() if those)
        table = Table(title=f"Trials: {counts}", title_justify="left", box=box.SIMPLE)
        arrow = "↓" if study.direction == "minimize" else "↑"
        for column in ("trial", "state", f"{study.objective} {arrow}", *study.space, "run"):
            table.add_column(column, no_wrap=column == "run")
        for trial in [trial for those in states.values() for trial in those[:SHOWN]]:
            score = "" if trial.score is None else f"{trial.score:.5g}"
            table.add_row(
                str(trial.number), trial.state, score, *(Text(word) for word in trial.words.values()), trial.run
            )
        console.print(table)
        if importances := study.importances():
            told = ", ".join(f"{name} {share:.0%}" for name, share in importances.items())
            print(f"what the good trials have in common (PED-ANOVA): {told}")
        if states["done"]:
            first = states["done"][0]
            print(
                f"best: trial {first.number}, {study.objective} {first.score:.5g}, run {first.run}; as an ordinary run:"
            )
            print(f"  {shlex.join(['geoseg', 'run', *self._own_folders(), *self._repeated(first.words)])}")
        print(f"study: {study.folder}")
        here = [trial for trial in found if trial.number in study.failed and trial.state == "failed"]
        if here:
            why = f"[{here[0].number}] {self._shown(here[0])}: {here[0].note}"
            print(f"geoseg: {len(here)} trials failed, the first: {why}", file=sys.stderr)

    def _repeated(self, values: Mapping[str, str]) -> list[str]:
        return [word for word in self.line(values) if word.partition("=")[0].split(".")[0] not in NOT_REPEATED]

    def _own_folders(self) -> list[str]:
        sources = self.config.hydra.runtime.config_sources
        return [
            word for source in sources if source.provider == "command-line" for word in ("--config-dir", source.path)
        ]


_STATES = ("done", "pruned", "running", "failed", "interrupted")
"""What the table says of trials, in its order; of those whose values came twice nothing."""


def parameter(override: Override) -> Choice | Number:
    """What a word of the command line lets a setting be.

    Raises:
        ValueError: it cannot be searched.
    """
    from geoseg.study import Choice

    key, line = override.get_key_element(), override.input_line
    if key.lstrip("+").replace("/", ".").replace("@", ".").split(".")[0] not in SEARCHED:
        raise ValueError(
            f"{line}: a search varies settings of {', '.join(SEARCHED)}. Others decide which profiles a score is of, "
            "or have no part in it; geoseg run -m without hparams_search does a run for each of their values"
        )
    value = override.value()
    tags = set(getattr(value, "tags", ()))
    if tags - {"log"}:
        raise ValueError(f"{line}: tag {', '.join(sorted(tags - {'log'}))} means nothing here; tag(log,...) does")
    if getattr(value, "shuffle", False):
        raise ValueError(f"{line}: the search chooses the order; leave shuffle away")
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if low is None or high is None or low >= high:
            raise ValueError(f"{line}: an interval goes from a smaller number to a larger one")
        return _number(line, low, high, isinstance(low, int) and isinstance(high, int), "log" in tags, None)
    if isinstance(value, RangeSweep):
        numbers = list(value.range())
        if not numbers:
            raise ValueError(f"{line}: there is no number in it; its end is left out, as Python has it")
        step = abs(value.step)
        if "log" in tags and (step != 1 or not isinstance(numbers[0], int)):
            raise ValueError(f"{line}: steps of one size and tag(log,...) exclude each other; use interval(...)")
        whole = isinstance(numbers[0], int)
        return _number(line, min(numbers), max(numbers), whole, "log" in tags, None if step == 1 and whole else step)
    if tags:
        raise ValueError(f"{line}: a list has no order that tag(log,...) could mean; use tag(log,interval(...))")
    return Choice(tuple(dict.fromkeys(override.sweep_string_iterator())))


def _number(line: str | None, low: float, high: float, whole: bool, log: bool, step: float | None) -> Number:
    from geoseg.study import Number

    if log and low <= 0:
        raise ValueError(f"{line}: tag(log,...) wants numbers above 0")
    return Number(low, high, whole, log, step)


def _check_pruner(pruner: Any) -> None:
    """Looks at the settings of pruning.

    Raises:
        ValueError: an impossible value.
    """
    from geoseg.config import check_type

    if pruner is None:
        return
    if not isinstance(pruner, Mapping) or set(pruner) != {"min_steps", "reduction"}:
        raise ValueError(f"hydra.sweeper.pruner={pruner}: min_steps and reduction are wanted, or null for no pruning")
    check_type("hydra.sweeper.pruner.min_steps", pruner["min_steps"], int, type(None))
    check_type("hydra.sweeper.pruner.reduction", pruner["reduction"], int)
    if pruner["min_steps"] is not None and pruner["min_steps"] < 1:
        raise ValueError(f"hydra.sweeper.pruner.min_steps={pruner['min_steps']}: 1 or more is wanted, or null")
    if pruner["reduction"] < 2:
        raise ValueError(f"hydra.sweeper.pruner.reduction={pruner['reduction']}: 2 or more is wanted")
