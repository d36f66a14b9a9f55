"""Worker processes: what one task does to the others, and to whoever gave it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from geoseg.workers import CORES, Outcome, WorkerEnded, run_tasks, threads_for

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = '''
import os, signal, sys, time
from geoseg.workers import run_tasks

done = []

def work(task):
    """Does what the task says; answers with its process and with how many tasks that has done before."""
    if task == "raise":
        raise ValueError("no")
    if task == "exit":
        sys.exit(3)
    if task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "end":
        os._exit(7)
    if task == "hang":
        time.sleep(600)
    if task == "local":
        class Local(Exception): pass
        raise Local("cannot be sent")
    if task == "say":
        print("in Python"); os.system("echo of another program; printf 'no end'")
    done.append(task)
    return os.getpid(), len(done), os.environ.get("COLOUR"), os.getcwd()
'''


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The function of a module that workers can import in a moment."""
    (tmp_path / "errands.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    import errands

    yield errands.work
    sys.modules.pop("errands")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_worker_does_all_in_order_and_ends(work, tmp_path: Path) -> None:
    said: list[object] = []
    outcomes = run_tasks(
        work,
        "abc",
        environment={"COLOUR": "red"},
        begins=said.append,
        ends=lambda index, outcome: said.append((index, outcome.value[1])),
    )
    assert [outcome.error for outcome in outcomes] == [None] * 3
    [pid] = {outcome.value[0] for outcome in outcomes}
    assert [outcome.value[1:] for outcome in outcomes] == [(i, "red", str(tmp_path)) for i in (1, 2, 3)]
    assert said == [0, (0, 1), 1, (1, 2), 2, (2, 3)]
    assert pid != os.getpid()
    assert not is_alive(pid)
    assert "COLOUR" not in os.environ


def test_what_fails_fails_alone(work) -> None:
    tasks = ["a", "raise", "b", "exit", "kill", "end", "local", "hang", "c"]
    outcomes = run_tasks(work, tasks, workers=2, timeout=2)
    told = {task: str(outcome.error) for task, outcome in zip(tasks, outcomes, strict=True) if outcome.error}
    assert told == {
        "raise": "no",
        "exit": "it called exit(3)",
        "kill": "its process was ended by signal 9 (SIGKILL); killed by somebody, or by the system for want of memory",
        "end": "its process ended with exit code 7",
        "local": "Local: cannot be sent",
        "hang": "stopped after 2 seconds, as timeout=2 says",
    }
    assert isinstance(outcomes[1].error, ValueError)
    assert all(isinstance(outcomes[i].error, WorkerEnded) for i in (3, 4, 5, 6, 7))
    assert all(outcomes[i].value for i in (0, 2, 8))


def test_lines_of_several_workers_say_whose_they_are(work) -> None:
    lines: list[tuple[int, str]] = []
    tasks = ["a", "say", "say"]
    run_tasks(work, tasks, workers=2, says=lambda index, line: lines.append((index, line)))
    for index in (1, 2):
        assert {line for of, line in lines if of == index} == {"in Python", "of another program", "no end"}
    assert {of for of, _ in lines} == {1, 2}


def test_preparation_comes_once_per_worker_and_costs_no_task_its_time(work, tmp_path: Path) -> None:
    (tmp_path / "slowly.py").write_text(
        "import time\ndef prepare():\n    time.sleep(1.5)\n    open('prepared', 'a').write('x')\n"
    )
    import slowly

    outcomes = run_tasks(work, "ab", timeout=1, prepare=slowly.prepare)
    sys.modules.pop("slowly")
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert (tmp_path / "prepared").read_text() == "x"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word for it is Linux's")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_whoever_started_them(work, tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "controller.py").write_text(
        # whoever runs the tests in the background may have taken Ctrl-C away from them
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from errands import work\nfrom geoseg.workers import run_tasks\nif __name__ == '__main__':\n"
        "    said = lambda index, outcome: print(outcome.value[0], flush=True)\n"
        "    run_tasks(work, ['a', 'b', 'hang', 'hang'], workers=2, ends=said)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    with subprocess.Popen(
        [sys.executable, "controller.py"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as controller:
        assert controller.stdout is not None
        pids = {int(controller.stdout.readline()) for _ in range(2)}
        controller.send_signal(how)
        controller.wait(20)
    waited = time.monotonic()
    while any(map(is_alive, pids)) and time.monotonic() - waited < 10:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))


def test_threads_are_shared_unless_the_user_has_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert [threads_for(workers) for workers in (1, 2, 3, 16)] == [
        {},
        {"OMP_NUM_THREADS": "4", CORES: "4"},
        {"OMP_NUM_THREADS": "2", CORES: "2"},
        {"OMP_NUM_THREADS": "1", CORES: "1"},
    ]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_for(4) == {}
    monkeypatch.setenv(CORES, "3")  # a worker's own share, which nobody but us has decided
    assert threads_for(2) == {"OMP_NUM_THREADS": "1", CORES: "1"}


def test_nothing_to_do(work) -> None:
    assert run_tasks(work, "") == []
    assert Outcome(1, None, 0.0).value == 1
