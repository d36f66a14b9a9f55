"""The benchmark's numbers: what its tables say is what was measured, and a ratio of different results is none."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SPEED = Path(__file__).resolve().parent.parent / "experiments" / "speed"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The benchmark's module of that name."""
    monkeypatch.syspath_prepend(str(SPEED))
    yield importlib.import_module("table")
    sys.modules.pop("table")


@pytest.fixture
def around(table: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The benchmark's module of that name, with the smaller of its two networks and a profile of four tiles."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("around")
    both = module.networks
    small = ["method.model.depth=3", "method.task.crop=32", "data.source.size=32"]
    monkeypatch.setattr(module, "networks", lambda folder: {"U-Net": [*both(folder)["U-Net"], *small]})
    monkeypatch.setattr(module, "LARGE", 224)
    yield module
    sys.modules.pop("around")


def test_the_readme_shows_what_was_measured(table: Any) -> None:
    measured = json.loads((SPEED / "speed.json").read_text(encoding="utf-8"))
    text = (SPEED / "README.md").read_text(encoding="utf-8")
    found = table.tables(measured)
    assert "speed" in found
    for marks, wanted in found.items():
        shown = text.split(f"<!-- {marks} -->\n")[1].split(f"<!-- end of {marks} -->")[0]
        assert shown.strip() == wanted.strip(), f"make bench writes the table of {marks}"
    for part in measured.values():
        assert {"commit", "dirty", "device", "versions"} <= part.keys()
        for row in part["rows"].values():
            assert row["valid"]
            ends = [sorted(row["rounds"][side])[len(row["rounds"][side]) // 2] for side in ("plain", "geoseg")]
            if len(row["rounds"]["plain"]) % 2:
                assert [row["plain"], row["geoseg"]] == ends
            wanted = row["plain"] / row["geoseg"] if row["kind"] == "speed" else row["geoseg"] / row["plain"]
            assert row["ratio"] == pytest.approx(wanted)


def test_ratios_and_when_they_are_void(table: Any) -> None:
    rows = {
        "jobs": table.faster([8.0, 2.0, 4.0], [1.0, 2.0, 9.0], 0.0, 0.0, aim=2.0),
        "other results": table.faster([4.0], [1.0], 1e-3, 1e-4),
        "help": table.costs("torch", [2.0], [0.5], aim=0.6),
        "other losses": table.costs("steps", [2.0], [2.5], 1e-9),
    }
    found = table.tables({"a": {"rows": rows}})
    assert found["speed"].splitlines()[2:] == [
        "| jobs | 4.0 | 2.0 | 2.00 | ≥ 2 | 0.0e+00 |",
        "| other results | 4.0 | 1.0 | void: results differ |  | 1.0e-03 |",
    ]
    assert found["cost"].splitlines()[2:] == [
        "| help | torch | 2.0 | 0.500 | 0.25 | ≤ 0.6 |",
        "| other losses | steps | 2.0 | 2.5 | void: results differ |  |",
    ]


def test_a_labelling_network_does_in_a_run_what_it_does_in_the_bare_loop(around: Any) -> None:
    made = around.labelling(argparse.Namespace(rounds=1, steps=3))
    assert set(made) == {"U-Net: training step in a run", "U-Net: waiting for its data"}
    step, wait = made.values()
    assert step["valid"] and wait["valid"]  # every loss is the same
    assert 0 < wait["geoseg"] < wait["plain"] == step["plain"]
    assert (step["kind"], step["aim"], wait["kind"], wait["aim"]) == ("cost", 1.03, "cost", 0.05)


def test_tiles_are_blended_as_a_loop_blends_them(around: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(around, "BATCH", 3)  # another portion, and no other answer
    (row,) = around.tiles(argparse.Namespace(rounds=1)).values()
    assert (row["kind"], row["valid"]) == ("speed", True)
    assert len(row["rounds"]["plain"]) == len(row["rounds"]["geoseg"]) == 1  # the warm-up does not count


def test_a_batch_of_members_answers_as_a_loop_over_them(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    members = importlib.import_module("members")
    monkeypatch.setattr(members, "SETTINGS", (*members.SETTINGS, "data.source.size=64"))
    speed, cost = members.ensemble(argparse.Namespace(rounds=1, members=3)).values()
    assert speed["valid"] and (speed["kind"], cost["kind"]) == ("speed", "cost")
    assert speed["rounds"]["geoseg"] == cost["rounds"]["geoseg"]  # the same batch, beside a loop and one member
    assert cost["against"] == "one member"
    sys.modules.pop("members")
