"""Records on disk: whole or not at all, and readable by whoever comes later."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from geoseg import record
from geoseg.record import SCHEMA, commit, read_record, versions, write_atomically, write_record


def test_a_record_comes_back(tmp_path: Path) -> None:
    path = write_record(tmp_path / "run", {"run_id": "abc", "scores": {"test/iou/mean": 0.5, "x": None}})
    assert json.loads(path.read_text())["schema"] == SCHEMA
    assert read_record(tmp_path / "run") == {
        "schema": SCHEMA,
        "run_id": "abc",
        "scores": {"test/iou/mean": 0.5, "x": None},
    }


def test_there_may_be_none(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None


def test_a_record_of_a_newer_program_is_not_guessed_at(tmp_path: Path) -> None:
    write_atomically(tmp_path / "record.json", json.dumps({"schema": SCHEMA + 1}))
    with pytest.raises(ValueError, match="update geoseg"):
        read_record(tmp_path)


def test_numbers_that_json_cannot_hold_become_null(tmp_path: Path) -> None:
    write_record(tmp_path, {"scores": {"a": float("nan"), "b": float("inf"), "c": 1.5}, "list": [float("-inf"), 2]})
    record = read_record(tmp_path)
    assert record is not None
    assert record["scores"] == {"a": None, "b": None, "c": 1.5}
    assert record["list"] == [None, 2]


def test_a_failed_write_leaves_the_old_file_and_no_scrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, "old")

    def full(handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new and longer")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_versions_are_those_installed() -> None:
    found = versions()
    assert found["torch"] == version("torch")
    assert found["geoseg"] == version("geoseg")
    assert found["python"].count(".") == 2


def repository(folder: Path) -> Path:
    """A checkout with one commit and a geoseg package in it."""
    (folder / "geoseg").mkdir(parents=True)
    (folder / "conf").mkdir()
    (folder / "conf" / "run.yaml").write_text("a: 1\n")
    (folder / "geoseg" / "record.py").write_text("1\n")
    (folder / "notes.txt").write_text("1\n")
    me = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], [*me, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)
    return folder


def test_the_commit_and_changes_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = repository(tmp_path / "checkout")
    monkeypatch.setattr(record, "__file__", str(folder / "geoseg" / "record.py"))
    asked = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    head = asked.stdout.strip()[:12]
    assert commit() == (head, False)
    (folder / "notes.txt").write_text("2\n")  # not code
    assert commit() == (head, False)
    (folder / "conf" / "run.yaml").write_text("a: 2\n")
    assert commit() == (head, True)
    (folder / "conf" / "run.yaml").write_text("a: 1\n")
    (folder / "geoseg" / "record.py").write_text("2\n")
    assert commit() == (head, True)


def test_a_wheel_inside_a_foreign_checkout_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = repository(tmp_path / "checkout")
    place = folder / ".venv" / "site-packages" / "geoseg"
    place.parent.mkdir(parents=True)
    shutil.copytree(folder / "geoseg", place)
    monkeypatch.setattr(record, "__file__", str(place / "record.py"))
    assert commit() == (None, False)


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit() == (None, False)
