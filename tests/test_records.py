"""The records that are kept beside the tables: nothing is lost on the way, and the tables come from them again."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from geoseg.cli import main
from geoseg.record import write_atomically
from tests.made_records import record

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
KEPT = sorted(path.parent for path in EXPERIMENTS.rglob("records.tar.xz") if (path.parent / "results.csv").exists())


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script of that name."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    yield importlib.import_module("records")
    sys.modules.pop("records")


def question(folder: Path, more: str = "") -> Path:
    place = folder / "experiments" / "asked"
    write_atomically(place / "README.md", f"# Asked\n\n    geoseg report runs/asked --to experiments/asked{more}\n")
    return place / "records.tar.xz"


def put(folder: Path, *made: dict[str, Any]) -> None:
    for one in made:
        write_atomically(folder / "asked" / one["run_id"] / "record.json", json.dumps(one))


def test_records_come_back_and_those_of_another_machine_stay(records: Any, tmp_path: Path) -> None:
    archive = question(tmp_path)
    told = ["--experiments", str(tmp_path / "experiments"), "--runs"]
    first, second, broken = record(seed=0), record(seed=1), record(seed=2, status="failed")
    put(tmp_path / "here", first, broken)
    records.main(["pack", *told, str(tmp_path / "here")])
    written = archive.read_bytes()
    records.main(["pack", *told, str(tmp_path / "here")])
    assert archive.read_bytes() == written
    put(tmp_path / "there", {**second, "place": [f"{tmp_path}/data", f"{tmp_path}/geoseg/assets/sam", "a/b"]})
    records.main(["pack", *told, str(tmp_path / "there")])
    changed = {**first, "commit": "mine"}
    stored = {**second, "place": ["data", "geoseg/assets/sam", "a/b"]}
    put(tmp_path / "back", changed)
    records.main(["unpack", *told, str(tmp_path / "back")])
    found = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "back").rglob("record.json")}
    assert found == {first["run_id"]: changed, second["run_id"]: stored}


def test_logs_that_a_table_is_made_of_are_kept(records: Any, tmp_path: Path) -> None:
    lines = [
        {"step": 0, "train/loss": 2.5, "train/accuracy/image": 0.125, "lr/head": 0.001},
        {"step": 1, "lr/head": 0.0005},
        {"step": 1, "val/loss": 2.25, "val/accuracy/image": 0.5},
    ]
    told = ["--experiments", str(tmp_path / "experiments"), "--runs"]
    for more, kept in ((" \\\n        --mixtures", True), ("", False)):
        question(tmp_path, more).unlink(missing_ok=True)
        put(tmp_path / "here", record())
        log = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(tmp_path / "here" / "fits" / "f1" / "metrics.jsonl", log)
        records.main(["pack", *told, str(tmp_path / "here")])
        back = tmp_path / f"back{kept}"
        records.main(["unpack", *told, str(back)])
        found = back / "fits" / "f1" / "metrics.jsonl"
        assert found.exists() is kept
    found = tmp_path / "backTrue" / "fits" / "f1" / "metrics.jsonl"
    assert [json.loads(line) for line in found.read_text().splitlines()] == [
        {"step": 0, "train/loss": 2.5, "train/accuracy/image": 0.125},
        {"step": 1, "val/loss": 2.25, "val/accuracy/image": 0.5},
    ]


def test_a_question_without_records_has_no_archive(records: Any, tmp_path: Path) -> None:
    archive = question(tmp_path)
    records.main(["pack", "--experiments", str(tmp_path / "experiments"), "--runs", str(tmp_path / "runs")])
    assert not archive.exists()


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_tables_come_again_from_the_records(
    folder: Path, records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    records.main(["unpack"])
    place = Path(folder.relative_to(EXPERIMENTS.parent))
    place.mkdir(parents=True)
    shutil.copy(folder / "README.md", place)
    before = (place / "README.md").read_text(encoding="utf-8")
    words = re.search(r"^    geoseg (report .*)", before.replace("\\\n", " "), re.M)
    assert words is not None
    drawn = ("--sheet", "--features")  # want label maps and models, which are not kept
    assert main([word for word in shlex.split(words[1]) if word not in drawn]) == 0
    assert (place / "README.md").read_text(encoding="utf-8") == before
    assert (place / "results.csv").read_text(encoding="utf-8") == (folder / "results.csv").read_text(encoding="utf-8")
