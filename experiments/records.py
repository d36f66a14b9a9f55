"""Keeps the records behind the tables: experiments/QUESTION/records.tar.xz holds record.json of every run of its table.

    python experiments/records.py pack      adds what lies in runs to the archives that the READMEs ask for
    python experiments/records.py unpack    puts what is in the archives into runs, where it is not there yet

A README asks for an archive by its command ``geoseg report runs/NAME ...``. With the records in runs the same sweep
takes these runs for done, and goes on with what is missing; label maps and what was trained are not kept. Where a table
says what trainings logged (``--mixtures``), the archive has their losses and accuracies too.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from geoseg.losses import CURVES

HERE = Path(__file__).resolve().parent
ARCHIVE = "records.tar.xz"


def main(words: Sequence[str] | None = None) -> None:
    """Packs or unpacks, and says how many records there are of what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--experiments", type=Path, default=HERE, help="folder of the questions")
    asked = parser.parse_args(words)
    for readme, name, logs in questions(asked.experiments):
        archive = readme.with_name(ARCHIVE)
        kept = read(archive)
        if asked.what == "pack":
            found = {**kept, **finished(asked.runs / name, logs)}
            if found != kept:
                write(archive, found)
            if found:
                print(f"{archive}: {counted(found)} records, {counted(found) - counted(kept)} of them new")
        else:
            new = {path: text for path, text in kept.items() if not (asked.runs / path).exists()}
            for path, text in new.items():
                (asked.runs / path).parent.mkdir(parents=True, exist_ok=True)
                (asked.runs / path).write_bytes(text)
            if kept:
                print(f"{asked.runs / name}: {counted(new)} of {counted(kept)} records put there")


def questions(folder: Path) -> Iterator[tuple[Path, str, bool]]:
    """READMEs with a command for their table: path, name of its runs, and whether it says what these logged."""
    for readme in sorted(folder.rglob("README.md")):
        text = readme.read_text(encoding="utf-8").replace("\\\n", " ")
        if asked := re.search(r"^    geoseg report runs/(\w+)(.*)", text, re.M):
            yield readme, asked[1], "--mixtures" in asked[2].split()


def finished(runs: Path, logs: bool) -> dict[str, bytes]:
    """The records of finished runs in a folder, by their path from above it, if wanted with their logs."""
    found = {path: json.loads(path.read_bytes()) for path in sorted(runs.glob("*/record.json"))}
    done = {path: record for path, record in found.items() if record["status"] == "done"}
    files = {
        path.relative_to(runs.parent).as_posix(): json.dumps(placeless(record), indent=1).encode()
        for path, record in done.items()
    }
    if logs:
        for name in sorted({f"fits/{record['fit_id']}/metrics.jsonl" for record in done.values()}):
            if (runs.parent / name).exists():
                files[name] = curves((runs.parent / name).read_text(encoding="utf-8"))
    return files


def curves(log: str) -> bytes:
    """The lines of a log, of which losses and accuracies are left."""
    lines = [json.loads(line) for line in log.splitlines()]
    left = [{name: line[name] for name in ("step", *CURVES) if name in line} for line in lines]
    return "".join(f"{json.dumps(line)}\n" for line in left if len(line) > 1).encode()


def counted(files: Iterable[str]) -> int:
    """How many of the files are records."""
    return sum(name.endswith("/record.json") for name in files)


def placeless(part: Any) -> Any:
    """A record whose folders are named by their last part, or from geoseg's own on, wherever they lay."""
    if isinstance(part, dict):
        return {key: placeless(value) for key, value in part.items()}
    if isinstance(part, list):
        return [placeless(value) for value in part]
    if not isinstance(part, str) or not part.startswith("/"):
        return part
    _, inside, rest = part.rpartition("/geoseg/assets/")
    return f"geoseg/assets/{rest}" if inside else part.rstrip("/").rpartition("/")[2]


def read(archive: Path) -> dict[str, bytes]:
    """What an archive holds, by path; nothing where there is none."""
    if not archive.exists():
        return {}
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


def write(archive: Path, records: dict[str, bytes]) -> None:
    """Writes them in an order and with dates of their own, so that the same records make the same file."""
    part = archive.with_name(f".{archive.name}.part")
    with tarfile.open(part, "w:xz") as tar:
        for path, text in sorted(records.items()):
            member = tarfile.TarInfo(path)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    part.replace(archive)


if __name__ == "__main__":
    main()
