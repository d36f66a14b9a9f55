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


def question(folder: Path) -> Path:
    place = folder / "experiments" / "asked"
    write_atomically(place / "README.md", "# Asked\n\n    geoseg report runs/asked --to experiments/asked\n")
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
