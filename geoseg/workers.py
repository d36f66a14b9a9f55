"""Worker processes under supervision: tasks that fail, exit, are killed or hang alone, or that belong together.

Only the standard library: what the work is and what it needs, the workers import themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

TICK = 0.5
"""Seconds between two looks at workers that say nothing."""

GRACE = 5.0
"""Seconds that a worker has to end by itself when its work is done."""

FAREWELL = 60.0
"""Seconds that a worker has when everything ends early, so that a training can be saved."""

ALONE = 20.0
"""Seconds that the others of a group have to end by themselves when one of them has failed."""

CORES = "GEOSEG_CORES"
"""Environment variable by which a process knows its share of the cores, so that it can divide that further."""


class WorkerEnded(RuntimeError):
    """A task has no outcome of its own: its process ended or was stopped."""


class Outcome(NamedTuple):
    """How a task ended.

    Attributes:
        value: what the work returned; None where it did not come to that.
        error: why there is no value: what the work raised, or ``WorkerEnded``; None where there is one.
        seconds: how long it took.
        log: the file with what was said meanwhile; "" where it was said here.
    """

    value: Any
    error: BaseException | None
    seconds: float
    log: str = ""


def run_tasks(
    work: Callable[[Any], Any],
    tasks: Iterable[Any],
    workers: int = 1,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
    begins: Callable[[int], None] = lambda index: None,
    ends: Callable[[int, Outcome], None] = lambda index, outcome: None,
    says: Callable[[int, str], None] | None = None,
) -> list[Outcome]:
    """Does tasks in worker processes, each of which goes on to the next one with all that it has loaded.

    A worker whose task failed is replaced, since nobody knows what the failure left behind. Workers end with the
    process that called this, however that ends.

    Args:
        work: a function of a module; called with one task in a process that was started anew (spawn).
        tasks: things that can be pickled; asked for the next one when a worker is free for it.
        workers: how many processes at most.
        timeout: seconds after which a task is stopped; None never.
        environment: variables that the workers see beside those of this process.
        prepare: called once in every worker, before its first task and its clock; such as loading libraries.
        begins: called with a task's index when a worker takes it up.
        ends: called with its index and outcome.
        says: called with the index of a task and a line that its worker wrote, to whatever stream; None leaves the
            workers this process's own streams.

    Returns:
        Outcomes in the order of the tasks.
    """
    left = enumerate(tasks)
    outcomes: dict[int, Outcome] = {}
    crew: list[_Worker] = []

    def hand(worker: _Worker, index: int, task: Any) -> None:
        begins(index)
        worker.give(index, task)

    try:
        while True:
            while len(crew) < workers and (following := next(left, None)):
                crew.append(_Worker(work, prepare, environment or {}, says))
                hand(crew[-1], *following)
            if not crew:
                break
            wait([source for worker in crew for source in worker.sources()], timeout=TICK)
            for worker in list(crew):
                outcome = worker.look(timeout)
                if outcome is None:
                    continue
                outcomes[worker.index] = outcome
                ends(worker.index, outcome)
                if outcome.error is None and (following := next(left, None)):
                    hand(worker, *following)
                else:
                    worker.end()
                    crew.remove(worker)
    finally:
        # only where something went wrong here, or somebody asked for the end
        for worker in crew:
            worker.process.terminate()
        ending = time.monotonic() + FAREWELL
        for worker in crew:
            worker.end(max(0.0, ending - time.monotonic()))
    return [outcomes[index] for index in sorted(outcomes)]


def run_together(
    work: Callable[[Any], Any],
    tasks: Sequence[Any],
    environment: Mapping[str, str] | None = None,
    asked: Callable[[], bool] = lambda: False,
    hears: Callable[[Any], None] = lambda value: None,
) -> list[Any]:
    """Does tasks that wait for each other, all at once and each in a process of its own: where one fails, all end.

    They end with the process that called this too, however that ends.

    Args:
        work: a function of a module; called with one task in a process that was started anew (spawn).
        tasks: one per process; something that can be pickled.
        environment: variables that the processes see beside those of this one.
        asked: whether they are to stop; they are told by SIGUSR1, once.
        hears: called with whatever a process says by ``tell``.

    Returns:
        What the work returned, in the order of the tasks.

    Raises:
        BaseException: what a task raised, or ``WorkerEnded`` where a process ended without a word; of several such the
            one that the others follow from. The others have had ``ALONE`` seconds to end by themselves.
    """
    crew: list[_Worker] = []
    outcomes: dict[int, Outcome] = {}
    error: BaseException | None = None
    told, ending = False, float("inf")
    try:
        for index, task in enumerate(tasks):
            crew.append(_Worker(work, None, environment or {}, None, hears))
            crew[-1].give(index, task)
        while len(outcomes) < len(crew) and time.monotonic() < ending:
            left = [worker for worker in crew if worker.index not in outcomes]
            if asked() and not told:
                told = True
                for worker in left:
                    assert worker.process.pid is not None
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker.process.pid, signal.SIGUSR1)
            wait([source for worker in left for source in worker.sources()], timeout=TICK)
            for worker in left:
                outcome = worker.look(None)
                if outcome is None:
                    continue
                outcomes[worker.index] = outcome
                if outcome.error is None:
                    continue
                ending = min(ending, time.monotonic() + ALONE)
                died = isinstance(outcome.error, WorkerEnded)
                if died:  # without a word of its own
                    which = f"process {worker.index + 1} of {len(tasks)}: {outcome.error}"
                    outcome = outcome._replace(error=WorkerEnded(which))
                if error is None or (died and not isinstance(error, WorkerEnded)):  # the others only lost touch with it
                    error = outcome.error
    finally:
        for worker in crew:
            if worker.index not in outcomes:
                worker.process.kill()
        for worker in crew:
            worker.end()
    if error is not None:
        raise error
    return [outcomes[index].value for index in range(len(crew))]


def tell(value: Any) -> bool:
    """Says something to whoever started this worker; False where this process is none.

    Args:
        value: something that can be pickled.
    """
    if _starter is None or _starter[0] != os.getpid():  # such as one that reads data for a worker
        return False
    with _speaking:
        _starter[1].send(("told", value))
    return True


_starter: tuple[int, Connection] | None = None  # this worker, and its pipe
_speaking = threading.Lock()


def threads_for(workers: int) -> dict[str, str]:
    """The environment in which so many workers share the cores; empty for one, and where the user has decided."""
    if workers == 1 or ("OMP_NUM_THREADS" in os.environ and CORES not in os.environ):
        return {}
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = str(max(1, int(os.environ.get(CORES, here)) // workers))
    return {"OMP_NUM_THREADS": share, CORES: share}


class _Worker:
    """One process, and the pipes to it."""

    def __init__(
        self,
        work: Callable[[Any], Any],
        prepare: Callable[[], None] | None,
        environment: Mapping[str, str],
        says: Callable[[int, str], None] | None,
        hears: Callable[[Any], None] = lambda value: None,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        self.output: Connection | None = None
        far_output: Connection | None = None
        if says is not None:
            self.output, far_output = context.Pipe(duplex=False)
            os.set_blocking(self.output.fileno(), False)
        self.says, self.hears, self.rest = says, hears, b""
        self.index, self.given, self.began = -1, time.monotonic(), float("inf")
        self.process = context.Process(target=_serve, args=(far, far_output, work, prepare, os.getpid()))
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)  # it is read where libraries are loaded, so it must be there from the start
        try:
            self.process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            far.close()
            if far_output is not None:
                far_output.close()

    def sources(self) -> list[Any]:
        """What to wait for."""
        return [self.pipe, self.process.sentinel, *([self.output] if self.output is not None else [])]

    def give(self, index: int, task: Any) -> None:
        """Hands over a task."""
        self.index, self.given, self.began = index, time.monotonic(), float("inf")
        with contextlib.suppress(OSError):  # it has ended meanwhile, which the next look finds
            self.pipe.send(task)

    def look(self, timeout: float | None) -> Outcome | None:
        """How the task ended, or None while it is at it."""
        self._pass_on()
        try:
            while self.pipe.poll():
                what, value = self.pipe.recv()
                if what == "begun":
                    self.began = time.monotonic()
                elif what == "told":
                    self.hears(value)
                else:
                    self._pass_on(last=True)
                    failed = what == "failed"
                    return Outcome(None if failed else value, value if failed else None, self._seconds())
        except (EOFError, OSError):
            self.process.join(GRACE)
        if self.process.exitcode is not None:
            self._pass_on(last=True)
            return Outcome(None, WorkerEnded(_death(self.process.exitcode)), self._seconds())
        if timeout is not None and time.monotonic() - self.began > timeout:
            self.process.kill()
            self.process.join()
            self._pass_on(last=True)
            stopped = WorkerEnded(f"stopped after {timeout:g} seconds, as timeout={timeout:g} says")
            return Outcome(None, stopped, self._seconds())
        return None

    def end(self, grace: float = GRACE) -> None:
        """Sees to it that the process is gone, after ``grace`` seconds at most."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self.process.join(grace)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self._pass_on(last=True)
        self.pipe.close()
        if self.output is not None:
            self.output.close()
            self.output = None

    def _seconds(self) -> float:
        return time.monotonic() - self.given

    def _pass_on(self, last: bool = False) -> None:
        """Passes on the lines that were written since; with ``last`` also one without an end."""
        if self.output is None or self.says is None:
            return
        while True:
            try:
                read = os.read(self.output.fileno(), 1 << 16)
            except BlockingIOError:
                break
            if not read:
                break
            self.rest += read
        *lines, self.rest = re.split(rb"[\r\n]", self.rest)
        if last:
            lines, self.rest = [*lines, self.rest], b""
        for line in lines:
            if line.strip():
                self.says(self.index, line.decode(errors="replace").rstrip())


def _serve(
    pipe: Connection,
    output: Connection | None,
    work: Callable[[Any], Any],
    prepare: Callable[[], None] | None,
    controller: int,
) -> None:
    """What a worker does all its life."""
    global _starter
    _starter = (os.getpid(), pipe)
    _end_with(controller)
    if output is not None:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    try:
        while (task := pipe.recv()) is not None:
            try:
                if prepare is not None:
                    prepare()
                    prepare = None
                pipe.send(("begun", None))
                answer = ("done", work(task))
            except BaseException as error:
                # an exit is one task's failure; and whatever it was, this process has come to its end
                answer = ("failed", as_sent(error))
            sys.stdout.flush()
            sys.stderr.flush()
            pipe.send(answer)
            if answer[0] == "failed":
                return
    except (EOFError, OSError, KeyboardInterrupt):  # whoever gave the tasks has gone
        return


def _end_with(controller: int) -> None:
    """Has the kernel end this process when its controller ends, even by kill -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != controller:  # it was faster
            os._exit(1)


def as_sent(error: BaseException) -> BaseException:
    """The error where it survives the way to another process, else its words."""
    if isinstance(error, SystemExit):
        return WorkerEnded(f"it called exit({'' if error.code is None else error.code})")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return WorkerEnded(f"{type(error).__name__}: {error}")
    return error


def _death(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "no name"
    hint = "; killed by somebody, or by the system for want of memory" if -code == signal.SIGKILL else ""
    return f"its process was ended by signal {-code} ({name}){hint}"
