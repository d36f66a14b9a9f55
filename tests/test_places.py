"""Folders that results go to: who may write, who waits, and what a full disk is answered with."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from geoseg.places import LEAST, SWEEP, Busy, DiskFull, check_writable, full_disk_told, holder, locked, me

ROOT = Path(__file__).resolve().parent.parent


def test_a_folder_that_can_be_made_is_not_made(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "runs")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for name in ("notes", "gone"):
        with pytest.raises(ValueError, match=rf"{name} is no folder; choose another one with runs=FOLDER"):
            check_writable(tmp_path / name / "deep", "runs")


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(
        ValueError, match=r"results go to .*x, but .* is read-only; choose another one with runs=FOLDER"
    ):
        check_writable(tmp_path / "x", "runs")


def test_hardly_any_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=LEAST - 1))
    with pytest.raises(ValueError, match=r"only 63 MiB are free there and 64 are needed at least; make room, or"):
        check_writable(tmp_path / "x", "runs")


def tidied_up_badly() -> None:
    try:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    finally:
        raise KeyError("step")


def test_whoever_says_it_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=rf"no room is left for results in {tmp_path}"), full_disk_told(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DiskFull), full_disk_told(tmp_path):  # as safetensors says it
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(DiskFull), full_disk_told(tmp_path):
        tidied_up_badly()
    for other in (ValueError("no"), OSError(errno.EIO, "broken"), KeyError("x")):
        with pytest.raises(type(other)) as error, full_disk_told(tmp_path):
            raise other
        assert error.value is other


def test_the_second_waits_and_says_for_whom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with locked(tmp_path / "run", "run 1"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locked(tmp_path / "run", "run 1"):
        inside.set()
        thread.join(0.2)
        assert thread.is_alive()
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert f"run 1 is being computed by process {os.getpid()} on " in caplog.text


def test_the_lock_of_a_process_that_was_killed_is_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = (
        "import pathlib, sys, time; from geoseg.places import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), 'x'):\n  print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    with other.stdout:
        assert other.stdout.readline() == "in\n"
        timer = threading.Timer(0.2, other.kill)
        timer.start()
        with locked(tmp_path, "run 1"):
            assert other.wait(10) != 0
    assert f"run 1 is being computed by process {other.pid} on " in caplog.text


def test_locks_of_different_folders_do_not_meet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with locked(tmp_path / "a", "a"), locked(tmp_path / "b", "b"):
        pass
    assert not caplog.text


def test_who_does_not_wait_is_told_whom_for(tmp_path: Path) -> None:
    assert holder(tmp_path / "run") is None
    with locked(tmp_path / "run", "run 1"):
        with (
            pytest.raises(Busy, match=rf"run 1 is being computed by process {os.getpid()} on \S+ since \d\d:\d\d$"),
            locked(tmp_path / "run", "run 1", wait=False),
        ):
            pass
        assert re.fullmatch(rf"{re.escape(me())} since \d\d:\d\d", holder(tmp_path / "run") or "")
    assert holder(tmp_path / "run") is None
    with locked(tmp_path / "run", "run 1", wait=False):
        pass
    os.utime(tmp_path / "run" / ".lock", (0, 0))
    assert holder(tmp_path / "run") is None


def test_workers_of_one_sweep_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWEEP, "process 1 on here")
    done = threading.Event()

    def second() -> None:
        with locked(tmp_path, "run 1", wait=False):
            done.set()

    with locked(tmp_path, "run 1"):
        assert " a worker of process 1 on here since " in (holder(tmp_path) or "")
        thread = threading.Thread(target=second)
        thread.start()
        assert not done.wait(0.3)
        monkeypatch.setenv(SWEEP, "process 11 on here")
        with pytest.raises(Busy), locked(tmp_path, "run 1", wait=False):
            pass
    thread.join(10)
    assert done.is_set()
