"""A sweep: which of its runs are left to do, who does them, and what became of each.

Nothing heavy is imported before it is needed, since Hydra imports its plugins on every call.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from omegaconf import DictConfig, open_dict

from geoseg import progress
from geoseg.places import SWEEP, Busy, holder, me
from geoseg.quiet import quieten
from geoseg.workers import Outcome, WorkerEnded, run_tasks, threads_for

log = logging.getLogger("geoseg")

STATES = {
    "done": "done",
    "failed": "failed",
    "skipped": "skipped, was finished",
    "stale": "stale: was finished, by other code",
    "elsewhere": "running elsewhere",
    "queued": "submitted before",
    "open": "to do",
    "again": "to do again, failed before",
}
"""What can be said of a job of a sweep, and how tables say it."""

LEFT = ("open", "again", "queued")
"""Those of them that are launched."""

LONGEST = 300
"""Letters that a table takes of an error."""


class JobFailed(RuntimeError):
    """A job of a sweep failed, in one process or another.

    Attributes:
        code: the exit code that goes with it: 2 for what cannot work, 3 for a training that diverged, 4 where nothing
            can be written, 128 + signal for one that was asked to stop, 1 otherwise.
    """

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text, code)
        self.text, self.code = text, code


class Queue(Protocol):
    """Takes the jobs of a sweep to do them somewhere else, such as ``geoseg.slurm.Slurm``.

    Attributes:
        gpu: whether they have a GPU there; None where they see what this process sees.
    """

    gpu: bool | None

    def known(self, number: int, runs: Collection[str]) -> str | None:
        """What to say of a job, by its number and the runs that it has to do, that was submitted before; or None."""

    def run(
        self,
        work: Callable[[Any], Any],
        numbers: Sequence[int],
        task: Callable[[int], Any],
        prepare: Callable[[], None],
        begins: Callable[[int], None],
        ends: Callable[[int, Outcome], None],
    ) -> list[Outcome]:
        """Does tasks, as ``run_tasks`` does."""


@dataclass
class Planned:
    """One combination of a sweep's values.

    Attributes:
        number: its place in the sweep, from 0.
        overrides: its words on the command line.
        called: those of them that vary in this sweep.
        state: a key of ``STATES``.
        note: why, in one line.
        code: its exit code.
        settings: its configuration, where it could be composed.
    """

    number: int
    overrides: list[str]
    called: str
    state: str = "open"
    note: str = ""
    code: int = 0
    settings: Mapping[str, Any] | None = None


def register() -> None:
    """Makes the launcher and the sweeper known to Hydra, which must not have looked for plugins itself before."""
    folder = str(Path(__file__).resolve().parent / "plugins")
    try:
        package: Any = importlib.import_module("hydra_plugins")
    except ImportError:  # no plugin is installed
        package = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
        package.__path__ = []
    if folder not in package.__path__:
        package.__path__ = [*package.__path__, folder]  # a plain list: that of a namespace is made anew by sys.path
    from hydra.core.plugins import Plugins

    plugins = Plugins.instance()
    sweeps, slurm = (importlib.import_module(f"hydra_plugins.geoseg_{name}") for name in ("sweep", "slurm"))
    for plugin in (sweeps.Workers, sweeps.Resumed, sweeps.Search, slurm.Slurm, slurm.SlurmLocal):
        plugins.register(plugin)  # it may have looked before


def job(cfg: DictConfig, models: Any = None, brief: bool = False) -> float | None:
    """One run of the command line: does it, prints it, and gives the score to optimise, if any.

    Args:
        cfg: the composed configuration.
        models: what stays loaded between the runs of one process.
        brief: print a line per method instead of a table.

    Raises:
        ValueError: it cannot work; or the objective is no score of it.
    """
    from geoseg.report import print_run
    from geoseg.run import run

    quieten()  # only now, since Lightning sets its level when it is imported
    records, folder = run(cfg, models, _judge(cfg))
    if brief:
        for record in records:
            score = record["scores"].get("test/iou/mean")
            said = "" if score is None else f", mean IoU {score:.4f}"
            print(f"{record['method']}: run {record['run_id']}{said}", flush=True)
    else:
        print_run(records, folder)
    if cfg.objective is None:
        return None
    scores = {name: value for name, value in records[0]["scores"].items() if name.startswith("val/")}
    if scores.get(cfg.objective) is None:
        there = f"there are {', '.join(scores)}" if scores else "it has none of validation; see data.num_val"
        raise ValueError(f"objective={cfg.objective} is no score of this run; {there}")
    return float(scores[cfg.objective])


def describe(error: BaseException) -> JobFailed:
    """What to tell of an error, and the exit code that goes with it."""
    from geoseg.checkpoints import Interrupted
    from geoseg.places import DiskFull
    from geoseg.tasks.task import TrainingDiverged

    if isinstance(error, JobFailed):
        return error
    if isinstance(error, WorkerEnded):
        return JobFailed(str(error))
    if isinstance(error, ValueError):
        return JobFailed(str(error), 2)
    if isinstance(error, TrainingDiverged):
        return JobFailed(str(error), 3)
    if isinstance(error, DiskFull):
        return JobFailed(str(error), 4)
    if isinstance(error, Interrupted):
        return JobFailed(str(error), 128 + error.signum)
    return JobFailed(f"{type(error).__name__}: {error}")


def launch(
    task: Callable[[DictConfig], Any],
    jobs: Iterable[Sequence[str]],
    varied: Collection[str],
    compose: Callable[[Sequence[str]], DictConfig],
    first: int,
    workers: int,
    timeout: float | None,
    ended: Callable[[int, JobReturn], None] = lambda index, ended: None,
    queue: Queue | None = None,
) -> list[JobReturn]:
    """Does jobs in worker processes, or hands them to a queue.

    Args:
        task: what to do with a configuration; a function of a module.
        jobs: the words of each job; asked for the next one when a worker is free for it.
        varied: the keys that vary among them.
        compose: makes a job's configuration of its words, with Hydra's own node.
        first: the number of the first job, where they do not bring their own.
        workers: how many processes.
        timeout: seconds for one job, or None.
        ended: called with a job's place among the jobs and how it ended, before the next one is asked for.
        queue: takes the jobs, all at once, instead of processes of this machine.
    """
    several = workers > 1 or queue is not None
    taken: list[Sequence[str]] = []
    numbers: list[int] = []

    def take(words: Sequence[str]) -> None:
        numbers.append(_number(words, first + len(taken)))
        taken.append(words)

    def composed(index: int) -> DictConfig:
        config = compose(taken[index])
        with open_dict(config):
            config.hydra.job.num = numbers[index]
            config.hydra.job.id = str(numbers[index])
        return config

    def upcoming() -> Iterator[DictConfig]:
        for index, words in enumerate(jobs):
            take(words)
            yield composed(index)

    def begins(index: int) -> None:
        print(f"[{numbers[index]}] begins: {' '.join(shown(taken[index], varied))}", flush=True)

    def ends(index: int, outcome: Outcome) -> None:
        returned = _returned(taken[index], outcome)
        print(f"[{numbers[index]}] {_ending(returned)} after {_time(outcome.seconds)}", flush=True)
        ended(index, returned)

    def says(index: int, line: str) -> None:
        print(f"[{numbers[index]}] {line}", flush=True)

    work = functools.partial(_work, task, several)
    if queue is not None:
        for words in jobs:
            take(words)
        outcomes = queue.run(work, numbers, composed, _prepare, begins, ends)
    else:
        outcomes = run_tasks(
            work,
            upcoming(),
            workers=workers,
            timeout=timeout,
            environment={SWEEP: os.environ.get(SWEEP, me()), **threads_for(workers)},
            prepare=_prepare,
            begins=begins,
            ends=ends,
            says=says if several else None,
        )
    return [_returned(words, outcome) for words, outcome in zip(taken, outcomes, strict=True)]


def sweep(
    jobs: Sequence[Sequence[str]],
    varied: Collection[str],
    config: DictConfig,
    compose: Callable[[Sequence[str]], DictConfig],
    launch: Callable[[Sequence[Sequence[str]]], Sequence[JobReturn]],
    most: int | None = None,
    queue: Queue | None = None,
) -> None:
    """Does what is left of a sweep, and tells what became of every job.

    Args:
        jobs: the words of each combination.
        varied: the keys that vary among them.
        config: the configuration that they share.
        compose: makes a job's configuration of its words.
        launch: does jobs and says how they ended.
        most: jobs that are launched at a time; None all of them.
        queue: where ``launch`` submits jobs, if it does.

    Raises:
        SystemExit: a job failed, with the largest of their exit codes; or Ctrl-C, with 130.
    """
    try:
        check_workers(config, varied)
    except ValueError as error:
        print(f"geoseg: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    quieten()
    plan = [Planned(i, list(words), " ".join(shown(words, varied))) for i, words in enumerate(jobs)]
    with resumable():
        _look(plan, compose, queue)
        print_states(plan, "to begin with")
        _launch([planned for planned in plan if planned.state in LEFT], launch, most)
        if others := [planned for planned in plan if planned.state == "elsewhere"]:
            _look(others, compose, queue)  # they may be finished by now, or given up
            _launch([planned for planned in others if planned.state in LEFT], launch, most)
    print_states(plan, "at the end")
    _summarize(plan, varied)
    failed = [planned for planned in plan if planned.state == "failed"]
    if failed:
        first = f"[{failed[0].number}] {failed[0].called}: {failed[0].note}"
        print(f"geoseg: {len(failed)} of {len(plan)} jobs failed, the first: {first}", file=sys.stderr)
        raise SystemExit(max(planned.code for planned in failed))
    print(f"{len(plan)} runs; geoseg report {config.runs}/{config.name} --to FOLDER puts them into one table")


def print_states(plan: Sequence[Planned], when: str) -> None:
    """A table of what is known of a sweep's jobs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(120, console.width))
    table = Table(title=f"{len(plan)} jobs, {when}", title_justify="left", box=box.SIMPLE)
    table.add_column("state", no_wrap=True)
    table.add_column("jobs", justify="right")
    table.add_column("which")
    for state, words in STATES.items():
        those = [planned for planned in plan if planned.state == state]
        if not those:
            continue
        told = [planned for planned in those if planned.note]
        which = [f"[{planned.number}] {planned.called}: {planned.note}".strip() for planned in told]
        if silent := [planned.number for planned in those if not planned.note]:
            which.insert(0, _ranges(silent))
        table.add_row(words, str(len(those)), Text("\n".join(which)))
    console.print(table)


class Stopped(BaseException):
    """A scheduler asked the whole sweep to stop.

    Attributes:
        signum: the signal that asked.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def resumable() -> Iterator[None]:
    """Says how to go on where somebody stops what is inside, once its workers have saved their trainings.

    Raises:
        SystemExit: with 128 + signal.
    """
    try:
        with _own(), _stoppable():
            yield
    except Stopped as stopped:
        print("geoseg: stopped; the same command goes on with what is left", file=sys.stderr)
        raise SystemExit(128 + stopped.signum) from None  # as shells have it
    except KeyboardInterrupt:
        print("geoseg: interrupted; the same command goes on with what is left", file=sys.stderr)
        raise SystemExit(130) from None


@contextmanager
def _stoppable() -> Iterator[None]:
    """Lets workers save their trainings where SIGTERM or SIGUSR1 would end this process at once."""

    def stop(signum: int, frame: Any) -> None:
        raise Stopped(signum)

    if threading.current_thread() is not threading.main_thread():  # signals go nowhere else
        yield
        return
    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def _own() -> Iterator[None]:
    """Tells whoever starts inside that it works for this sweep."""
    os.environ[SWEEP] = me()
    try:
        yield
    finally:
        del os.environ[SWEEP]


def check_workers(config: DictConfig, varied: Collection[str]) -> None:
    """Looks at what a sweep has one number of.

    Raises:
        ValueError: an impossible number, or several.
    """
    for key in ("workers", "timeout"):
        if key in varied:
            raise ValueError(f"{key} takes one number for the whole sweep, and not several; give {key}={config[key]}")
    workers, timeout = config.workers, config.timeout
    if type(workers) is not int or workers < 1:
        raise ValueError(f"workers={workers}: 1 or more processes are wanted")
    if timeout is not None and (type(timeout) not in (int, float) or timeout <= 0):
        raise ValueError(f"timeout={timeout}: seconds above 0 are wanted, or null for no limit")


def _look(plan: Sequence[Planned], compose: Callable[[Sequence[str]], DictConfig], queue: Queue | None = None) -> None:
    """Finds out what is left to do of each job: by its records, and by who is at it."""
    from geoseg.record import read_record, stale
    from geoseg.run import jobs_of

    prepared: dict[str, Any] = {}
    for planned in plan:
        planned.state, planned.note = "open", ""
        try:
            cfg = compose(planned.overrides)
            with open_dict(cfg):
                del cfg["hydra"]
            runs = jobs_of(cfg, prepared, None if queue is None else queue.gpu)
        except Exception as error:
            planned.state, planned.note, planned.code = _failure(describe(error))
            continue
        planned.settings = runs[0].settings
        found = [run.finished() for run in runs]
        open_runs = [run for run, record in zip(runs, found, strict=True) if record is None]
        if not open_runs:
            planned.state = "stale" if any(stale(record) for record in found if record) else "skipped"
        elif queue is not None and (note := queue.known(planned.number, [run.run_id for run in open_runs])):
            planned.state, planned.note = "queued", note
        elif who := next(filter(None, (holder(run.folder) for run in open_runs)), None):
            planned.state, planned.note = "elsewhere", who
        elif any((read_record(run.folder) or {}).get("status") == "failed" for run in open_runs):
            planned.state = "again"


def _launch(todo: Sequence[Planned], launch: Callable[..., Sequence[JobReturn]], most: int | None) -> None:
    """Does jobs and writes down how they ended."""
    for first in range(0, len(todo), most or len(todo) or 1):
        batch = todo[first : first + (most or len(todo))]
        # a job keeps its number when the sweep is resumed
        words = [[*planned.overrides, f"hydra.job.num={planned.number}"] for planned in batch]
        for planned, ended in zip(batch, launch(words), strict=True):
            if ended.status is JobStatus.COMPLETED:
                planned.state, planned.note, planned.code = "done", "", 0
            elif isinstance(ended._return_value, Busy):
                planned.state, planned.note = "elsewhere", str(ended._return_value)
            else:
                planned.state, planned.note, planned.code = _failure(describe(ended._return_value))


def _summarize(plan: Sequence[Planned], varied: Collection[str]) -> None:
    """Tells Weights & Biases the table and figures over every experiment that something was done for."""
    done = [planned.settings for planned in plan if planned.state == "done" and planned.settings]
    for folder, node in {Path(one["runs"]) / one["name"]: one["logger"]["wandb"] for one in done}.items():
        if node is None:
            continue
        from geoseg.sync import summarize

        try:
            summarize(folder, varied, node)
        except (ValueError, OSError) as error:  # the runs are done, and told one by one
            log.warning("no summary of %s in Weights & Biases: %s", folder, error)


def _failure(error: JobFailed) -> tuple[str, str, int]:
    return "failed", in_a_line(error.text), error.code


def in_a_line(text: str, most: int = LONGEST) -> str:
    """What fits into a table."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _judge(cfg: DictConfig) -> Callable[[float, int], bool] | None:
    """What says whether a training is to be given up, where this run is a trial of a search that prunes."""
    if not HydraConfig.initialized():
        return None
    sweeper = HydraConfig.get().sweeper
    if sweeper.get("trial") is None or sweeper.pruner is None:
        return None
    from geoseg.study import judge, study_folder

    return judge(study_folder(cfg.runs, cfg.name, sweeper.study), sweeper.trial, **sweeper.pruner)


def _prepare() -> None:
    """Loads what every job needs."""
    from geoseg.config import register_resolvers

    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    quieten()  # before and after the import, at which some libraries speak and others set their level
    importlib.import_module("geoseg.run")
    quieten()
    setup_globals()
    register_resolvers()


@functools.cache
def _models() -> Any:
    """What stays loaded in this process."""
    from geoseg.assembly import Models

    return Models()


def _work(task: Callable[..., Any], several: bool, config: DictConfig) -> Any:
    """One job in a worker; what it raises is told here, where the whole of it is known."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.utils import JobRuntime
    from hydra.types import HydraContext

    JobRuntime.instance().set("name", config.hydra.job.name)
    done = functools.partial(task, models=_models(), brief=several) if task is job else task
    context = HydraContext(config_loader=None, callbacks=Callbacks(config))  # type: ignore[arg-type]
    with progress.in_lines() if several else nullcontext():
        ended = run_job(
            hydra_context=context,
            task_function=done,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
    error = ended._return_value
    if ended.status is JobStatus.COMPLETED or no_failure(error):
        return error
    failed = describe(error)
    if failed.code == 1:
        traceback.print_exception(error)
    raise failed from error


def no_failure(answer: Any) -> bool:
    """Whether a job that has no result is in order all the same: another one is at its run, or it was pruned."""
    from geoseg.checkpoints import Pruned

    return isinstance(answer, Busy | Pruned)


def _number(words: Sequence[str], otherwise: int) -> int:
    given = [word for word in words if word.startswith("hydra.job.num=")]
    return int(given[-1].partition("=")[2]) if given else otherwise


def _returned(overrides: Sequence[str], outcome: Outcome) -> JobReturn:
    """A worker's outcome as Hydra knows it."""
    bad = outcome.error is not None or no_failure(outcome.value)
    ended = JobReturn(overrides=list(overrides), status=JobStatus.FAILED if bad else JobStatus.COMPLETED)
    ended.return_value = outcome.value if outcome.error is None else outcome.error
    if outcome.error is not None and outcome.log:
        failed = describe(outcome.error)
        where = f"; log: {outcome.log}"
        ended.return_value = JobFailed(in_a_line(failed.text, LONGEST - len(where)) + where, failed.code)
    return ended


def _ending(ended: JobReturn) -> str:
    if ended.status is JobStatus.COMPLETED:
        return "done"
    if isinstance(ended._return_value, Busy):
        return f"left: {ended._return_value}; stopped"
    if no_failure(ended._return_value):
        return f"{ended._return_value}; stopped"
    return f"failed: {_failure(describe(ended._return_value))[1]};"


def shown(words: Sequence[str], keys: Collection[str]) -> list[str]:
    """The words for some keys as they would be typed."""
    return [shlex.quote(word) for word in words if word.partition("=")[0] in keys]


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in short, such as "0, 2-5"."""
    parts: list[list[int]] = []
    for value in sorted(numbers):
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} minutes"
