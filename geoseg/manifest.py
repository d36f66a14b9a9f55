"""manifest.json of a folder that is filled piece by piece: what was asked for, and what is there already."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from geoseg.places import LOCK
from geoseg.record import write_atomically

FILE = "manifest.json"

SAVED = 1.0
"""Seconds between two times that it is written while work goes on, since it grows with the work."""


def save(place: Path, manifest: Mapping[str, Any]) -> None:
    """Writes it into the folder, whole or not at all."""
    write_atomically(place / FILE, json.dumps(manifest, indent=1, allow_nan=False) + "\n")


def put(path: Path, write: Callable[[Path], object]) -> Path:
    """Writes a file under another name first, so that whoever finds it finds the whole of it."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    write(part)
    part.replace(path)
    return path


def clear_parts(place: Path) -> None:
    """Removes half-written files that a killed process left in the folders of ``place``."""
    for part in place.glob("*/.*.part.*"):
        part.unlink()


def earlier(place: Path, asked: Mapping[str, Any], schema: int, option: str, what: str) -> dict[str, Any] | None:
    """What an earlier call left in the folder, if anything.

    Args:
        place: the folder.
        asked: what is asked for now, as JSON would give it back.
        schema: the newest layout that is understood.
        option: the setting that names the folder, for messages.
        what: what is in it, for messages.

    Raises:
        ValueError: something else is in there, or what was asked for then is not what is asked for now.
    """
    path = place / FILE
    if not path.is_file():
        there = sorted(
            entry.name for entry in place.iterdir() if entry.name != LOCK and not entry.name.endswith(".part")
        )
        if there:
            raise ValueError(f"{option}={place} holds other files ({', '.join(there[:5])}); name a new folder")
        return None
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("schema", 0) > schema:
        raise ValueError(f"{path} has schema {manifest['schema']}, this geoseg reads up to {schema}; update geoseg")
    before = manifest.get("asked", {})
    differ = list(_differing(before, asked))
    if differ:
        raise ValueError(
            f"{option}={place} holds {what} that were made otherwise: {'; '.join(differ)}. Name a new folder, or "
            "delete this one"
        )
    return manifest


def _differing(before: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    """What is not as it was, in words; of groups of settings those within them."""
    for key, now in asked.items():
        then = before.get(key)
        if isinstance(then, dict) and isinstance(now, dict) and then.keys() == now.keys():
            yield from (f"{key}.{difference}" for difference in _differing(then, now))
        elif then != now:
            yield f"{key} was {_short(then)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
