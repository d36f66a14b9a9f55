"""The benchmark's numbers: what its tables say is what was measured, and a ratio of different results is none."""

from __future__ import annotations

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
