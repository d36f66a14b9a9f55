"""The record: what every run leaves behind, so that its numbers can be found, compared and defended."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
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
    write_atomically(path, json.dumps({"schema": SCHEMA, **record}, indent=1, allow_nan=False) + "\n")
    return path


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a run, or None where there is none yet.

    Raises:
        ValueError: the record was written by a newer geoseg.
    """
    path = folder / "record.json"
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if record.get("schema", 0) > SCHEMA:
        raise ValueError(f"{path} has schema {record['schema']}, this geoseg reads up to {SCHEMA}; update geoseg")
    return record


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


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
