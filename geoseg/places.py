"""Folders that results go to: writable before any work, one writer at a time, and a clear word when a disk is full."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

log = logging.getLogger("geoseg")

LOCK = ".lock"
"""The file in a folder that its lock is on."""

LEAST = 64 << 20
"""Bytes that must be free for a run to start: a LoRA of Stable Diffusion and the pictures of a few profiles."""


SWEEP = "GEOSEG_SWEEP"
"""The environment variable in which a sweep tells its workers whose they are."""


class DiskFull(RuntimeError):
    """A write found no room, or a disk that may not be written to any more; the message names the folder."""


class Busy(RuntimeError):
    """Somebody else works in a folder; the message says who and since when."""


def check_writable(folder: Path, option: str, needed: int = LEAST) -> None:
    """Looks whether a folder can be made or written to, and has some room left; writes nothing.

    Args:
        folder: need not exist yet.
        option: the setting that names it, for the message.
        needed: bytes that must be free.

    Raises:
        ValueError: it cannot, and what stands in the way.
    """
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"results go to {folder}, but {place} is no folder; choose another one with {option}=FOLDER")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"results go to {folder}, but {place} is read-only; choose another one with {option}=FOLDER")
    if (free := shutil.disk_usage(place).free) < needed:
        raise ValueError(
            f"results go to {folder}, but only {free >> 20} MiB are free there and {needed >> 20} are needed at least; "
            f"make room, or choose another one with {option}=FOLDER"
        )


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Turns whatever a library says about a full or read-only disk, or a quota, into one sentence.

    Raises:
        DiskFull: something inside could not be written.
    """
    try:
        yield
    except Exception as error:
        why = _why(error)
        if why is None:
            raise
        raise DiskFull(
            f"{why} {folder}; mend that and give the same command again: what is finished is kept, and a training goes "
            "on from its last checkpoint"
        ) from error


@contextmanager
def locked(folder: Path, what: str, wait: bool = True) -> Iterator[None]:
    """Keeps a folder to one process (and thread) at a time; others wait, and say for whom.

    The lock is the kernel's, on the file ``.lock``: it ends with its process, however that ends, so that none can be
    left behind. The file stays, since a file that is removed may be held by somebody who waits for it.

    Args:
        folder: made when missing.
        what: what is done there, such as "run 0123456789".
        wait: False waits only for workers of the same sweep, which are at something that both need.

    Raises:
        Busy: somebody else is in there, and ``wait`` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _queue(file, what, wait)
        except OSError as error:  # some file systems of clusters have no locks
            log.warning("%s cannot be locked (%s); do not start the same run twice at once", folder, error.strerror)
        try:
            file.truncate(0)
            file.write(f"{_me()}\n")
            file.flush()
            yield
        finally:
            with contextlib.suppress(OSError):  # workers that were forked meanwhile would hold it on
                fcntl.flock(file, fcntl.LOCK_UN)


def holder(folder: Path) -> str | None:
    """Who works in a folder and since when, such as "process 7 on node3 since 12:30"; None where nobody does.

    Nothing is made or changed, and nobody is kept waiting for longer than the look takes.
    """
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _whose(file)
    except OSError:  # no such file, or no locks on this file system
        pass
    return None


def me() -> str:
    """This process as others are told of it, such as "process 7 on node3"."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def _me() -> str:
    sweep = os.environ.get(SWEEP)
    return f"{me()}, a worker of {sweep}" if sweep and sweep != me() else me()


def _whose(file: IO[str]) -> str:
    for _ in range(10):
        file.seek(0)
        if who := file.read().strip():
            break
        time.sleep(0.01)  # whoever has just taken the lock is about to sign
    who = who or "another process"
    began = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime)
    today = began.date() == datetime.now().date()
    return f"{who} since {began:%H:%M}" if today else f"{who} since {began:%Y-%m-%d %H:%M}"


def _queue(file: IO[str], what: str, wait: bool) -> None:
    """Waits for a lock that is held, or gives up."""
    if not wait:
        time.sleep(0.05)  # somebody may only have looked who is there
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            who, sweep = _whose(file), os.environ.get(SWEEP)
            if not sweep or f"worker of {sweep} " not in who:
                raise Busy(f"{what} is being computed by {who}") from None
    log.warning("%s is being computed by %s; waiting for it", what, _whose(file))
    fcntl.flock(file, fcntl.LOCK_EX)


UNWRITABLE = {
    errno.ENOSPC: "no room is left for results in",
    errno.EDQUOT: "no room is left for results in",
    errno.EROFS: "results can no longer be written to",
}
"""What a disk says that takes nothing any more, in words."""


def _why(error: BaseException | None) -> str | None:
    """What this error, or one it came from, says about the disk; safetensors tells it in words alone."""
    while error is not None:
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if number in UNWRITABLE:
            return UNWRITABLE[number]
        error = error.__cause__ or error.__context__
    return None
