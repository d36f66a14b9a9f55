"""The record: what every run leaves behind, so that its numbers can be found, compared and defended."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

SCHEMA = 1
"""Version of the layout of record.json."""

PACKAGES = (
    "geoseg",
    "torch",
    "pytorch-lightning",
    "hydra-core",
    "diffusers",
    "transformers",
    "peft",
    "bitsandbytes",
    "segment-anything",
    "segmentation-models-pytorch",
    "torchmetrics",
)


def write_atomically(path: Path, content: str) -> None:
    """Writes text so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_record(folder: Path, record: Mapping[str, Any]) -> Path:
    """Writes ``record.json`` into a run's folder."""
    path = folder / "record.json"
    write_atomically(path, json.dumps(finite({"schema": SCHEMA, **record}), indent=1, allow_nan=False) + "\n")
    return path


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a run, or None where there is none yet.

    Raises:
        ValueError: the record was written by a newer geoseg.
    """
    path = folder / "record.json"
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_bytes())  # UTF-8, taken apart faster than as text
    if record.get("schema", 0) > SCHEMA:
        raise ValueError(f"{path} has schema {record['schema']}, this geoseg reads up to {SCHEMA}; update geoseg")
    return record


def find_run(run: str | os.PathLike[str], runs: str | os.PathLike[str] = "runs") -> tuple[Path, dict[str, Any]]:
    """The folder of a finished run and its record.

    Args:
        run: its folder, or its run id, or as much of the id's beginning as no other run has.
        runs: where runs are looked for by their id.

    Raises:
        ValueError: there is no such run, several, or it is not finished.
    """
    folder = Path(run).expanduser()
    if not folder.is_dir():
        if folder.parent != Path():
            raise ValueError(f"there is no folder {folder}; a run's folder is runs/EXPERIMENT/RUN_ID")
        below = sorted(path.parent for path in Path(runs).rglob("record.json"))
        alike = [path for path in below if path.name.startswith(str(run))]
        if not alike or len({path.name for path in alike}) > 1:
            shown = ", ".join(path.as_posix() for path in (alike or below)[:5]) + " ..." * (len(alike or below) > 5)
            problem = f"{len(alike)} runs below {runs} begin with {run}" if alike else f"no run below {runs} is {run}"
            raise ValueError(f"{problem}; " + (f"name one of {shown}" if shown else "runs=FOLDER says where runs lie"))
        folder = alike[0]  # one run may stand in several experiments, and says the same in each
    record = read_record(folder)
    if record is None:
        inside = sorted(path.parent.as_posix() for path in folder.glob("*/record.json"))
        hint = (
            f"name one of those in it: {', '.join(inside[:5])}{' ...' * (len(inside) > 5)}"
            if inside
            else "its command has to come to its end"
        )
        raise ValueError(f"{folder} is no finished run, since it has no record.json; {hint}")
    if record["status"] != "done":
        raise ValueError(f"the run in {folder} is not finished ({record.get('error', record['status'])}); repeat it")
    return folder, record


def runs_of(folder: Path, record: Mapping[str, Any]) -> Path:
    """The folder of runs that a run lies in, with what it trained below ``fits``.

    Raises:
        ValueError: what it trained is not there.
    """
    above = [*folder.parents, *folder.absolute().parents]
    fit = record["fit_id"]
    if fit is None:
        return folder.parent.parent if len(folder.parts) > 2 else folder.absolute().parent.parent
    for place in above:
        if (place / "fits" / fit / "fit.json").is_file():
            return place
    raise ValueError(
        f"what the run in {folder} trained, fits/{fit}, is in no folder above it: it was moved, deleted or is just "
        "being trained anew; repeat the run's command with force=true"
    )


def commit() -> tuple[str | None, bool]:
    """The git commit of the code and whether files differ from it; (None, False) outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or here.parent != Path(top):
        return None, False  # installed as a wheel, perhaps inside somebody else's repository
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ":/geoseg", ":/conf")
    return git("rev-parse", "--short=12", "HEAD"), bool(changes)


@functools.cache
def loaded_code() -> tuple[str | None, bool]:
    """``commit`` as it was when this process first asked: later changes to files are not what it runs."""
    return commit()


@functools.cache
def source_digest(package: str) -> str:
    """A fingerprint of the Python files of an importable package or module, as they were when this was first asked."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    files = [file for place in places for file in sorted(Path(place).rglob("*.py"))]
    if not places and spec is not None and spec.origin:
        files = [Path(spec.origin)]
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}:".encode() + file.read_bytes())
    return total.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def digest(path: Path, edge: int = 8 << 20) -> str:
    """A fingerprint of a checkpoint: names, sizes and, of files beyond 16 MiB, the first and last 8 MiB."""
    total = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.relative_to(path)}:{size};".encode())
        with file.open("rb") as handle:
            if size <= 2 * edge:
                total.update(handle.read())
            else:
                total.update(handle.read(edge))
                handle.seek(-edge, 2)
                total.update(handle.read(edge))
    return total.hexdigest()[:16]


def device(gpu: bool = True) -> str:
    """The device in words, such as "NVIDIA H100" or "CPU x86_64, 2 threads"; ``gpu``: the GPU where there is one."""
    import torch  # here, so that records can be looked at without it

    if gpu and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def made_by(precision: str, gpu: bool, processes: int, packages: Collection[str]) -> dict[str, Any]:
    """Which code, libraries and device are at work.

    Args:
        precision: that to compute in.
        gpu: whether the GPU is at work where there is one.
        processes: how many train together.
        packages: those outside geoseg whose code takes part.
    """
    code, dirty = loaded_code()
    on = device(gpu=gpu)
    if processes > 1:  # the training; the rest is done in one
        on += f", {processes} processes"
    made = {"commit": code, "dirty": dirty, "versions": versions(), "device": on, "precision": precision}
    own = {package: source_digest(package) for package in packages}
    return {**made, "own": own} if own else made


def stale(found: Mapping[str, Any]) -> str:
    """What to say of a record or fit that other code may have made, "" where the code is the same."""
    now, dirty = loaded_code()
    own = sorted(package for package, digest in found.get("own", {}).items() if source_digest(package) != digest)
    if found["commit"] != now or found["dirty"] or dirty:
        changed = " with uncommitted changes"
        told = f", made by commit {found['commit']}{changed * found['dirty']}, the code is now {now}{changed * dirty}"
        told += f"; {', '.join(own)} changed too" * bool(own)
    elif own:
        told = f", made by other code of {', '.join(own)}"
    else:
        return ""
    return f"{told}; force=true runs it anew"


def finite(value: Any) -> Any:
    """The same containers with numbers that JSON cannot hold (nan, infinity) as None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return None
    return value
