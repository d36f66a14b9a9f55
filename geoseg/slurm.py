"""Jobs of a sweep in the queue of a SLURM cluster, or beside this process in the same way: submitted and collected.

What is submitted are pickled configurations; submitit writes the job array, starts them and puts them back into the
queue. It is optional and imported only where it is needed: this is the only place that knows it.
"""

from __future__ import annotations

import contextlib
import difflib
import getpass
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from geoseg.checkpoints import Interrupted
from geoseg.config import check_type, own_packages
from geoseg.places import SWEEP, me
from geoseg.record import loaded_code, source_digest, write_atomically
from geoseg.workers import Outcome, WorkerEnded, as_sent

log = logging.getLogger("geoseg")

FOLDER = "slurm"
"""The folder of submissions below that of runs: a folder each, with a log per job."""

JOBS = "jobs.json"
"""In a submission's folder, while the queue may have jobs of it: a job's id to the runs that it does."""

TICK = 1.0
"""Seconds between two looks for results."""

LOOK = 20.0
"""Seconds between two questions to the queue."""

SETTLE = 20.0
"""Seconds that a result has to appear on a shared disk after its job has left the queue."""

KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "timeout_min": (int,),
    "max_num_timeout": (int,),
    "signal_delay_s": (int,),
    "cpus_per_task": (int,),
    "array_parallelism": (int,),
    "allow_other_code": (bool,),
    "partition": (str, type(None)),
    "qos": (str, type(None)),
    "account": (str, type(None)),
    "constraint": (str, type(None)),
    "gpus_per_node": (int, type(None)),
    "gres": (str, type(None)),
    "mem_gb": (float, type(None)),
    "setup": (list,),
    "srun_args": (list,),
    "additional_parameters": (dict,),
}
"""Settings of the launchers and their types."""

LEAST = {"timeout_min": 1, "max_num_timeout": 0, "signal_delay_s": 1, "cpus_per_task": 1, "array_parallelism": 1}
"""Least values of numbers among them."""


def pause() -> None:
    """Waits a little between two looks at jobs."""
    time.sleep(TICK)


@dataclass
class _Live:
    """A job that is not known to have ended.

    Attributes:
        index: its place among the tasks.
        job: submitit's.
        begun: whether it has been seen to run.
        gone: when it was first missed in the queue, or None.
    """

    index: int
    job: Any
    begun: bool = False
    gone: float | None = None


class Queue(ABC):
    """Where jobs are submitted to.

    Args:
        settings: those of the launcher.
        runs: the folder of runs; the jobs have to see it too.

    Attributes:
        gpu: whether its jobs have a GPU; None where they see what this process sees.
    """

    gpu: bool | None = None

    def __init__(self, settings: Mapping[str, Any], runs: Path) -> None:
        self.settings, self.runs = settings, runs
        self.wanted: dict[int, list[str]] = {}  # the runs that a job has to do, by its number
        self.found: dict[int, Any] = {}  # jobs that were submitted before

    def check(self) -> None:
        """Looks at the settings and for what is needed, before any work.

        Raises:
            ValueError: a setting that cannot work, or submitit or a command of SLURM is missing.
        """
        if importlib.util.find_spec("submitit") is None:
            raise ValueError("this launcher needs submitit: pip install submitit, or choose hydra/launcher=workers")
        for name, value in self.settings.items():
            if name not in KINDS:
                near = difflib.get_close_matches(name, KINDS, n=1)
                hint = f"did you mean {near[0]}?" if near else "additional_parameters takes other options of sbatch"
                raise ValueError(f"hydra.launcher.{name}: there is no such setting; {hint}")
            check_type(f"hydra.launcher.{name}", value, *KINDS[name])
            if value is not None and name in LEAST and value < LEAST[name]:
                raise ValueError(f"hydra.launcher.{name}={value}: {LEAST[name]} or more is wanted")
        limit, delay = 60 * self.settings["timeout_min"], self.settings["signal_delay_s"]
        if delay >= limit:
            raise ValueError(
                f"hydra.launcher.signal_delay_s={delay}: a job is warned that long before its time limit, which "
                f"is {limit} seconds (timeout_min); make one of them smaller or the other larger"
            )

    def known(self, number: int, runs: Collection[str]) -> str | None:
        """Whether an earlier sweep has submitted this job, which then need not be submitted again.

        Args:
            number: the job's.
            runs: what it has to do, by run ids.

        Returns:
            What to say of it, or None where it has to be submitted.
        """
        self.wanted[number] = list(runs)
        self.found.pop(number, None)
        return None

    def run(
        self,
        work: Callable[[Any], Any],
        numbers: Sequence[int],
        task: Callable[[int], Any],
        prepare: Callable[[], None],
        begins: Callable[[int], None],
        ends: Callable[[int, Outcome], None],
    ) -> list[Outcome]:
        """Submits tasks, except those that were submitted before, and waits for all of them.

        Ctrl-C cancels the jobs; whatever else ends this process leaves them in the queue.

        Args:
            work: a function of a module, called with one task in the job.
            numbers: those of the jobs, in the order of the tasks.
            task: gives the task of an index; something that can be pickled.
            prepare: called in the job before its work, such as loading libraries.
            begins: called with a task's index when it is seen to run.
            ends: called with its index and outcome.

        Returns:
            Outcomes in the order of the tasks.
        """
        outcomes: dict[int, Outcome] = {}

        def end(index: int, outcome: Outcome) -> None:
            outcomes[index] = outcome
            ends(index, outcome)

        live = [_Live(i, self.found[number]) for i, number in enumerate(numbers) if number in self.found]
        todo = [i for i, number in enumerate(numbers) if number not in self.found]
        seen = list(live)
        asked, there = -math.inf, None
        try:
            while todo or live:
                while todo and (room := self.room(len(live))):
                    batch, todo = todo[:room], todo[room:]
                    new = self._submit(batch, numbers, work, task, prepare, end)
                    live, seen = [*live, *new], [*seen, *new]
                    asked = -math.inf
                if time.monotonic() - asked >= LOOK:
                    there, asked = self.states([entry.job for entry in live]), time.monotonic()
                else:
                    there = None  # nothing new is known
                for entry in list(live):
                    outcome = self._look(entry, there, begins)
                    if outcome is not None:
                        live.remove(entry)
                        end(entry.index, outcome)
                if live:
                    pause()
        except KeyboardInterrupt:
            said, cancelled = self.cancel([entry.job for entry in live])
            print(said, flush=True)
            live = [] if cancelled else live
            raise
        except BaseException:
            if live:
                print(f"{_count(live)} left in the queue: {_ids(live)}; the same command waits for them", flush=True)
            raise
        finally:
            for folder in {entry.job.paths.folder for entry in seen}:
                _tidy(folder, {entry.job.job_id for entry in seen if entry not in live})
        return [outcomes[index] for index in range(len(numbers))]

    @abstractmethod
    def room(self, live: int) -> int:
        """How many jobs may be submitted while ``live`` of them have not ended."""

    @abstractmethod
    def submit(self, folder: Path, tasks: Sequence[Submitted]) -> list[Any]:
        """Submits tasks; gives submitit's jobs, whose scripts, logs and results lie in ``folder``."""

    @abstractmethod
    def environment(self) -> dict[str, str | None]:
        """Variables that a job sets, or with None removes, before it loads anything."""

    @abstractmethod
    def states(self, jobs: Sequence[Any]) -> dict[str, str] | None:
        """The states of those jobs that have not ended, by their ids; None where nobody could say."""

    @abstractmethod
    def why(self, job: Any) -> str | None:
        """Why a job ended without a result; None where it has been put back into the queue."""

    @abstractmethod
    def cancel(self, jobs: Sequence[Any]) -> tuple[str, bool]:
        """Ends jobs, which save their trainings where there is time; what to say of that, and whether it was done."""

    def _submit(
        self,
        indices: Sequence[int],
        numbers: Sequence[int],
        work: Callable[[Any], Any],
        task: Callable[[int], Any],
        prepare: Callable[[], None],
        end: Callable[[int, Outcome], None],
    ) -> list[_Live]:
        """Submits some of the tasks at once; those that cannot be are ended."""
        ready: list[tuple[int, Submitted]] = []
        for index in indices:
            try:
                given = task(index)
                code = Code.of(given)
            except Exception as error:
                end(index, Outcome(None, error, 0.0))
                continue
            allow, more = self.settings["allow_other_code"], self.environment()
            ready.append((index, Submitted(work, given, prepare, code, allow, Path.cwd(), more)))
        if not ready:
            return []
        began = f"{datetime.now():%Y%m%d-%H%M%S-%f}"  # one process may submit twice in a second
        folder = self.runs / FOLDER / f"{began}-{os.getpid()}-{numbers[ready[0][0]]}"
        try:
            folder.mkdir(parents=True, mode=0o700)  # what is submitted may hold secrets
            jobs = self.submit(folder, [submitted for _, submitted in ready])
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            for index, _ in ready:
                end(index, Outcome(None, ValueError(f"it could not be submitted: {said}"), 0.0))
            return []
        ids = {job.job_id: self.wanted.get(numbers[i], []) for (i, _), job in zip(ready, jobs, strict=True)}
        write_atomically(folder / JOBS, json.dumps(ids, indent=1) + "\n")
        live = [_Live(index, job) for (index, _), job in zip(ready, jobs, strict=True)]
        print(f"{_count(live)} submitted: {_ids(live)}; logs in {folder}", flush=True)
        return live

    def _look(self, entry: _Live, there: Mapping[str, str] | None, begins: Callable[[int], None]) -> Outcome | None:
        """How a job ended, or None while it is waiting or at work."""
        job, paths = entry.job, entry.job.paths
        with contextlib.suppress(OSError):
            paths.folder.chmod(paths.folder.stat().st_mode)  # has a network file system look again
        if paths.result_pickle.exists():
            if not entry.begun:
                begins(entry.index)
            return _collected(job)._replace(log=self._log(job))
        if there is None:
            return None
        if job.job_id in there:
            entry.gone = None
            if there[job.job_id] == "RUNNING" and not entry.begun:
                entry.begun = True
                begins(entry.index)
            return None
        entry.gone = time.monotonic() if entry.gone is None else entry.gone
        if time.monotonic() - entry.gone < SETTLE:
            return None
        if (reason := self.why(job)) is None:
            entry.gone, entry.begun = None, False
            return None
        return Outcome(None, WorkerEnded(reason), 0.0, self._log(job))

    def _log(self, job: Any) -> str:
        path = job.paths.stdout
        here = Path.cwd()
        return str(path.relative_to(here) if path.is_relative_to(here) else path)


class Slurm(Queue):
    """The queue of a cluster: all jobs at once, as one array."""

    def __init__(self, settings: Mapping[str, Any], runs: Path) -> None:
        super().__init__(settings, runs)
        self._before: list[tuple[Any, list[str], str]] | None = None

    def check(self) -> None:
        super().check()
        for command in ("sbatch", "srun", "squeue", "scontrol"):
            if shutil.which(command) is None:
                raise ValueError(
                    f"there is no command {command} here: hydra/launcher=slurm is for the login node of a SLURM "
                    "cluster; hydra/launcher=slurm_local does the same on this machine, hydra/launcher=workers is for "
                    "one machine"
                )
        if (gpus := _gpus(self.settings)) > 1:
            raise ValueError(f"{gpus} GPUs for every job are asked for, but a run uses one; ask for one")
        self.gpu = gpus == 1

    def known(self, number: int, runs: Collection[str]) -> str | None:
        super().known(number, runs)
        if self._before is None:
            self._before = self._still_there()
        for job, does, state in self._before:
            if set(runs) <= set(does):
                self.found[number] = job
                return f"job {job.job_id}, {state.lower()}"
        return None

    def run(self, *arguments: Any, **named: Any) -> list[Outcome]:
        self._before = None  # what is in the queue will be another question afterwards
        return super().run(*arguments, **named)

    def room(self, live: int) -> int:
        return sys.maxsize  # array_parallelism is the queue's affair

    def submit(self, folder: Path, tasks: Sequence[Submitted]) -> list[Any]:
        import submitit

        given = self.settings
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=given["max_num_timeout"])
        threads = f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{given['cpus_per_task']}}}"
        executor.update_parameters(
            name=given["name"],
            nodes=1,
            tasks_per_node=1,
            timeout_min=given["timeout_min"],
            cpus_per_task=given["cpus_per_task"],
            mem_gb=given["mem_gb"],
            gpus_per_node=None if _of_gpus(given["gres"]) else given["gpus_per_node"] or None,
            stderr_to_stdout=True,
            **{f"slurm_{key}": given[key] for key in ("partition", "qos", "account", "constraint", "gres")},
            slurm_array_parallelism=given["array_parallelism"],
            slurm_signal_delay_s=given["signal_delay_s"],
            slurm_setup=[*given["setup"], threads],
            # from SLURM 22.05 on srun does not take over what sbatch was told
            slurm_srun_args=[f"--cpus-per-task={given['cpus_per_task']}", *given["srun_args"]],
            slurm_additional_parameters={"requeue": True, **given["additional_parameters"]},
        )
        jobs: list[Any] = executor.submit_array(tasks)
        return jobs

    def environment(self) -> dict[str, str | None]:
        return {SWEEP: os.environ.get(SWEEP, me())}

    def states(self, jobs: Sequence[Any]) -> dict[str, str] | None:
        # of the user, since the id of a job that has gone is an error
        command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i %T"]
        done = _asked(command)
        if done.returncode:
            log.warning("squeue: %s; asking again", done.stderr.strip() or f"exit code {done.returncode}")
            return None
        lines = [line.split() for line in done.stdout.splitlines()]
        return {line[0]: line[1] for line in lines if len(line) == 2}

    def why(self, job: Any) -> str | None:
        # submitit would ask as well, but keeps an answer that a job put back into the queue has outlived
        told = _asked(["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", "-j", job.job_id])
        states = [line.partition("|")[2] for line in told.stdout.splitlines() if line.startswith(f"{job.job_id}|")]
        state = states[-1].split(" ")[0] if states else ""
        if state == "PREEMPTED" and not _asked(["scontrol", "requeue", job.job_id]).returncode:
            log.warning("job %s was preempted and is put back into the queue", job.job_id)
            return None
        reasons = {
            "CANCELLED": "somebody cancelled it",
            "NODE_FAIL": "its node failed",
            "OUT_OF_MEMORY": "it took more memory than hydra.launcher.mem_gb grants",
            "PREEMPTED": "it was preempted and could not be put back into the queue",
            "TIMEOUT": "its time limit came before it could be saved; raise hydra.launcher.signal_delay_s",
        }
        why = f" ({state}{': ' * (state in reasons)}{reasons.get(state, '')})" if state else ""
        return f"job {job.job_id} ended without a result{why}"

    def cancel(self, jobs: Sequence[Any]) -> tuple[str, bool]:
        if not jobs:
            return "no job was left in the queue", True
        ids = [job.job_id for job in jobs]
        done = _asked(["scancel", *ids])
        if done.returncode:
            said = done.stderr.strip() or f"exit code {done.returncode}"
            return f"{_count(jobs)} could not be cancelled ({said}): scancel {' '.join(ids)}", False
        return f"{_count(jobs)} cancelled: {' '.join(ids)}", True

    def _still_there(self) -> list[tuple[Any, list[str], str]]:
        """Jobs of earlier sweeps that the queue still has: submitit's job, the runs that it does, its state."""
        submitted = []
        for path in sorted((self.runs / FOLDER).glob(f"*/{JOBS}")):
            with contextlib.suppress(OSError):  # somebody else tidies up as well
                submitted.append((path.parent, json.loads(path.read_text(encoding="utf-8"))))
        if not submitted:
            return []
        import submitit

        if (states := self.states([])) is None:
            raise ValueError("squeue does not say which jobs are in the queue; some may be of this sweep; try again")
        found: list[tuple[Any, list[str], str]] = []
        for folder, jobs in submitted:
            _tidy(folder, jobs.keys() - states.keys())
            found += [(submitit.SlurmJob(folder, i), runs, states[i]) for i, runs in jobs.items() if i in states]
        return found


class Local(Queue):
    """Processes of this machine that are started as a cluster would start them; for trying out."""

    def room(self, live: int) -> int:
        return max(0, self.settings["array_parallelism"] - live)

    def submit(self, folder: Path, tasks: Sequence[Submitted]) -> list[Any]:
        import submitit

        given = self.settings
        executor = submitit.LocalExecutor(folder, max_num_timeout=given["max_num_timeout"])
        executor.update_parameters(
            timeout_min=given["timeout_min"], signal_delay_s=given["signal_delay_s"], stderr_to_stdout=True
        )
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = before or str(given["cpus_per_task"])  # read where libraries are loaded
        try:
            jobs: list[Any] = executor.submit_array(tasks)
        finally:
            os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
        return jobs

    def environment(self) -> dict[str, str | None]:
        # submitit hides the GPUs from its local jobs, or hands out those that come first
        return {SWEEP: os.environ.get(SWEEP, me()), "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}

    def states(self, jobs: Sequence[Any]) -> dict[str, str] | None:
        return {job.job_id: "RUNNING" for job in jobs if not job.done()}

    def why(self, job: Any) -> str | None:
        return f"process {job.job_id} ended without a result; killed by somebody, or its time limit came too soon"

    def cancel(self, jobs: Sequence[Any]) -> tuple[str, bool]:
        for job in jobs:
            job.cancel()
        return f"{_count(jobs)} ended", True


class Code:
    """Which code a job was submitted with.

    Attributes:
        commit: the commit in words.
        files: packages to fingerprints of their Python files, which alone decide.
    """

    def __init__(self, packages: Sequence[str]) -> None:
        commit, dirty = loaded_code()
        version = importlib.metadata.version("geoseg")
        self.commit = f"commit {commit}{' with uncommitted changes' * dirty}" if commit else f"version {version}"
        self.files = {package: source_digest(package) for package in packages}

    @classmethod
    def of(cls, config: Any) -> Code:
        """The code that a configuration needs: geoseg's and that of packages whose objects it names."""
        return cls(["geoseg", *(name for name in own_packages(config) if not name.startswith("hydra"))])

    def compare(self, allow: bool) -> None:
        """Compares it with the code of this process.

        Args:
            allow: whether other code is only told.

        Raises:
            ValueError: the files of a package differ.
        """
        here = Code(list(self.files))
        changed = sorted(package for package, files in self.files.items() if here.files[package] != files)
        if not changed:
            return
        told = f"the code of {', '.join(changed)} is not that of the submission ({self.commit}; now {here.commit})"
        if not allow:
            raise ValueError(
                f"{told}; the same command submits what is left with the code as it is now, a checkout of its own for "
                "the sweep keeps it, and hydra.launcher.allow_other_code=true takes whatever is there"
            )
        log.warning("%s; allow_other_code=true takes it", told)


class Submitted:
    """A task as it lies in the queue: submitit pickles this and calls it in the job.

    Args:
        work: what to do with the task.
        task: see ``Queue.run``.
        prepare: called first.
        code: that of the submission.
        allow: whether the code of the job may be another.
        folder: to work in.
        environment: variables to set, or with None to remove.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        task: Any,
        prepare: Callable[[], None],
        code: Code,
        allow: bool,
        folder: Path,
        environment: Mapping[str, str | None],
    ) -> None:
        self.work, self.task, self.prepare = work, task, prepare
        self.code, self.allow, self.folder, self.environment = code, allow, folder, environment

    def __call__(self) -> Outcome:
        """Does the task; a warning of SLURM puts the job back into the queue, SIGTERM ends it without a result."""
        import submitit

        began = time.monotonic()
        # Lightning and submitit would each act at once: training goes to the end of its step and saves itself, and
        # what submitit would have done comes afterwards
        warning = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
        requeue = signal.getsignal(warning)
        before = {signum: signal.signal(signum, _leave) for signum in (warning, signal.SIGTERM)}
        for name, value in self.environment.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        try:
            with contextlib.chdir(self.folder):
                self.code.compare(self.allow)
                self.prepare()
                return Outcome(self.work(self.task), None, time.monotonic() - began)
        except BaseException as error:
            signum = _asking(error)
            if signum is None:
                return Outcome(None, as_sent(error), time.monotonic() - began)
            if signum != warning or not callable(requeue):
                raise SystemExit(128 + signum) from None  # no result, so that SLURM has the last word
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        try:
            requeue(warning, None)  # does not come back: a SystemExit
        except Exception as error:
            said = " ".join(str(error).split())
            ended = WorkerEnded(f"what is trained is saved, but it was not put back into the queue: {said}")
            return Outcome(None, ended, time.monotonic() - began)
        raise AssertionError("submitit has not ended the job")

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue: the same, since trainings find their checkpoints themselves."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class _Left(SystemExit):
    """A signal ended work that keeps no checkpoints."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


def _leave(signum: int, frame: FrameType | None) -> None:
    raise _Left(signum)


def _asking(error: BaseException) -> int | None:
    """The signal that an error comes from, or None."""
    if isinstance(error, KeyboardInterrupt):
        return int(signal.SIGINT)
    for one in (error, error.__cause__):
        if isinstance(one, _Left | Interrupted):
            return one.signum
    return None


def _collected(job: Any) -> Outcome:
    """What the result file of a job says."""
    try:
        outcome: Outcome = job.result()
    except Exception as error:  # it could not even be called, or was written by another geoseg
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
        traced = [line for line in lines if "Error" in line and not line.startswith(("File", "raise"))]
        return Outcome(None, WorkerEnded((traced or lines or [type(error).__name__])[-1]), 0.0)
    return outcome


def _gpus(settings: Mapping[str, Any]) -> int:
    """How many GPUs a job asks for.

    >>> _gpus({"gpus_per_node": 1, "gres": "gpu:a100:2,tmp:1G", "additional_parameters": {}})
    2
    """
    more = {key.replace("_", "-"): str(value) for key, value in settings["additional_parameters"].items()}
    asked = [more[key] for key in ("gpus", "gpus-per-node", "gpus-per-task") if key in more]
    asked += [request for gres in (settings["gres"], more.get("gres")) for request in _of_gpus(gres)]
    counts = [int(last) if (last := request.split(":")[-1]).isdigit() else 1 for request in asked]
    return sum(counts) if counts else settings["gpus_per_node"] or 0


def _of_gpus(gres: str | None) -> list[str]:
    """The requests for GPUs among those of a gres option, such as gpu:a100:1."""
    return [request for request in (gres or "").split(",") if request.strip().startswith("gpu")]


def _asked(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(list(command), 1, "", str(error))


def _tidy(folder: Path, ended: Collection[str]) -> None:
    """Forgets jobs of a submission that have ended, and what was submitted, which holds whole configurations."""
    path = folder / JOBS
    try:
        jobs = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return
    for job in ended:
        (folder / f"{job}_submitted.pkl").unlink(missing_ok=True)
    left = {job: runs for job, runs in jobs.items() if job not in ended}
    if left:
        write_atomically(path, json.dumps(left, indent=1) + "\n")
    else:
        path.unlink(missing_ok=True)


def _count(live: Sequence[Any]) -> str:
    return f"{len(live)} job{'s' * (len(live) != 1)}"


def _ids(live: Sequence[_Live]) -> str:
    """The numbers to ask the queue for, those of arrays once."""
    return ", ".join(dict.fromkeys(entry.job.job_id.partition("_")[0] for entry in live))
