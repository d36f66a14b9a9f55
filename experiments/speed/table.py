"""What was measured, as speed.json keeps it and README.md shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from geoseg.summary import markdown


def faster(
    theirs: Sequence[float], mine: Sequence[float], apart: float, most: float, aim: float | None = None
) -> dict[str, Any]:
    """Seconds of others and of geoseg in each round, and how many times faster geoseg is by their medians.

    Args:
        theirs: seconds, a number per round.
        mine: likewise.
        apart: the largest difference between the numbers that both sides came to.
        most: above that the ratio is void.
        aim: what the ratio should at least be.
    """
    return _row("speed", theirs, mine, median(theirs) / median(mine), aim) | {"apart": apart, "valid": apart <= most}


def costs(
    against: str, theirs: Sequence[float], mine: Sequence[float], apart: float = 0.0, aim: float | None = None
) -> dict[str, Any]:
    """Seconds of something without which it cannot be done and of geoseg, and what part of it geoseg takes.

    Args:
        against: what it is compared with.
        theirs: its seconds, a number per round.
        mine: those of geoseg.
        apart: the largest difference between the numbers that both sides came to; any makes the ratio void.
        aim: what the ratio should at most be.
    """
    made = _row("cost", theirs, mine, median(mine) / median(theirs), aim)
    return {**made, "against": against, "apart": apart, "valid": apart == 0}


def _row(kind: str, theirs: Sequence[float], mine: Sequence[float], ratio: float, aim: float | None) -> dict[str, Any]:
    rounds = {"plain": list(theirs), "geoseg": list(mine)}
    return {"kind": kind, "plain": median(theirs), "geoseg": median(mine), "ratio": ratio, "aim": aim, "rounds": rounds}


def tables(measured: Mapping[str, Any]) -> dict[str, str]:
    """The two tables of README.md as Markdown, by their marks.

    Args:
        measured: what speed.json holds: part to its ``rows``.
    """
    rows = {name: row for part in measured.values() for name, row in part["rows"].items()}
    speed = [
        [name, _seconds(row["plain"]), _seconds(row["geoseg"]), _ratio(row), _aim("≥", row), f"{row['apart']:.1e}"]
        for name, row in rows.items()
        if row["kind"] == "speed"
    ]
    cost = [
        [name, row["against"], _seconds(row["plain"]), _seconds(row["geoseg"]), _ratio(row), _aim("≤", row)]
        for name, row in rows.items()
        if row["kind"] == "cost"
    ]
    heads = {
        "speed": ["", "others, s", "geoseg, s", "times faster", "aim", "largest difference"],
        "cost": ["", "against", "that, s", "geoseg, s", "ratio", "aim"],
    }
    found = {"speed": speed, "cost": cost}
    return {kind: "\n".join(markdown(heads[kind], lines)) + "\n" for kind, lines in found.items() if lines}


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.1f}"


def _ratio(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.2f}" if row["valid"] else "void: results differ"


def _aim(sign: str, row: Mapping[str, Any]) -> str:
    return "" if row["aim"] is None else f"{sign} {row['aim']:g}"
