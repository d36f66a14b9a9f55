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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("geoseg")

LEAST = 64 << 20
"""Bytes that must be free for a run to start: a LoRA of Stable Diffusion and the pictures of a few profiles."""


class DiskFull(RuntimeError):
    """A write found no room, or a disk that may not be written to any more; the message names the folder."""


def check_writable(folder: Path, option: str) -> None:
    """Looks whether a folder can be made or written to, and has some room left; writes nothing.

    Args:
        folder: need not exist yet.
        option: the setting that names it, for the message.

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
    if (free := shutil.disk_usage(place).free) < LEAST:
        raise ValueError(
            f"results go to {folder}, but only {free >> 20} MiB are free there and {LEAST >> 20} are needed at least; "
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
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keeps a folder to one process (and thread) at a time; others wait, and say for whom.

    The lock is the kernel's, on the file ``.lock``: it ends with its process, however that ends, so that none can be
    left behind. The file stays, since a file that is removed may be held by somebody who waits for it.

    Args:
        folder: made when missing.
        what: what is done there, such as "run 0123456789".
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            log.warning("%s is being computed by %s; waiting for it", what, file.read().strip() or "another process")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some file systems of clusters have no locks
            log.warning("%s cannot be locked (%s); do not start the same run twice at once", folder, error.strerror)
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield
        finally:
            with contextlib.suppress(OSError):  # workers that were forked meanwhile would hold it on
                fcntl.flock(file, fcntl.LOCK_UN)


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
