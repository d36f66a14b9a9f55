"""The ranking of methods, against counts by hand."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from geoseg.metrics.statistics import interval
from geoseg.ranking import Place, print_ranking, ranking, ranking_cells, ranking_text
from tests.made_records import record

UNITS = 8


def made(method: str, size: int, seed: int, start: float, fit: str | None = "f", **more: Any) -> dict[str, Any]:
    """A run whose matched mean IoU is ``start`` + 0.007, and 0.01 more from profile to profile."""
    given = size if fit else 0
    return record(
        method,
        start,
        labels=given,
        images=given,
        seed=seed,
        units=UNITS,
        **{"num_train": size, "fit_id": fit, "run_id": f"{method}{size}{seed}", "config": {}, **more},
    )


MANY = [
    *(made("A", 1, seed, start) for seed, start in enumerate((0.3, 0.4, 0.5))),
    *(made("A", 4, seed, 0.5) for seed in range(3)),
    *(made("B", 1, seed, 0.2, step=0.03) for seed in range(2)),
    *(made("B", 4, seed, 0.6, stages=("first", "second")) for seed in range(3)),
    *(made("C", 1, seed, 0.35, fit=None) for seed in range(3)),
]


def by_size(places: list[Place]) -> dict[int, list[tuple[int, str, float]]]:
    found: dict[int, list[tuple[int, str, float]]] = {}
    for place in places:
        found.setdefault(place.size, []).append((place.rank, place.method, round(place.score, 6)))
    return found


def test_methods_are_ranked_for_every_number_of_images() -> None:
    assert by_size(ranking(MANY)) == {
        1: [(1, "A", 0.407), (2, "C", 0.357), (3, "B", 0.207)],
        4: [(1, "B", 0.607), (2, "A", 0.507), (3, "C", 0.357)],  # C learns nothing, and is there with the same runs
    }


def test_intervals_are_those_of_runs_and_of_profiles() -> None:
    first, second, third = ranking(MANY)[:3]
    half = stats.t.ppf(0.975, 2) * np.std([0.3, 0.4, 0.5], ddof=1) / np.sqrt(3)
    assert first.ends == pytest.approx((0.407 - half, 0.407 + half))
    assert third.ends is None  # two runs
    assert first.against is None
    assert second.against is not None
    assert second.against.mean == pytest.approx(-0.05)
    assert second.against.ends == pytest.approx((-0.05, -0.05))
    assert second.against.apart
    # B has no third seed, so that A counts with its first two: 0.3 and 0.4
    differences = [0.2 + 0.03 * i - (0.35 + 0.01 * i) for i in range(UNITS)]
    assert third.against is not None
    assert third.against.mean == pytest.approx(np.mean(differences))
    assert third.against.ends == pytest.approx(interval(differences, 1 - 0.05 / 2))
    assert third.against.ends != pytest.approx(interval(differences))  # two differences share the 5 %
    assert third.against.n == UNITS


def test_a_baseline_that_is_named() -> None:
    places = {place.method: place for place in ranking(MANY, "C") if place.size == 4}
    assert places["C"].against is None
    assert [round(places[name].against.mean, 6) for name in "AB"] == [0.15, 0.25]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no method that was tested is called 'D'; there is A, B, C"):
        ranking(MANY, "D")


def test_the_table_says_what_each_was_given() -> None:
    tuned = [made("A", 1, 0, 0.3, given={"images": 0, "labels": 1, "pretraining": "demo", "trials": 9})]
    head, (row, *_) = ranking_cells(ranking([*tuned, made("C", 1, 0, 0.2, fit=None)]))
    told = dict(zip(head, row, strict=True))
    assert [told[name] for name in ("images", "labels", "pretraining", "trials", "runs")] == [
        "0",
        "1",
        "demo",
        "9",
        "1",
    ]
    assert told["minutes"] == "2.00"
    assert (told["mean IoU ↑"], told["matched mean IoU ↑"]) == ("0.303", "0.307")
    text = ranking_text(ranking(MANY, "C"), "C")
    assert "| matched mean IoU − C ↑ |" in text
    assert "| earth | 4 | 2 | A | 4 | 4 | none | 1 | 3 | 2.00 | 0.503 | 0.507 [0.507, 0.507] | +0.150 [+0.150" in text


def test_the_terminal_shows_which_method_with_how_many() -> None:
    alike = [made("D", 4, seed, 0.6) for seed in range(3)]
    console = Console(file=io.StringIO(), width=160)
    print_ranking(ranking([*MANY, *alike]), console=console)
    said = {
        line.split()[0]: " ".join(line.split()[1:])
        for line in console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        if line.split()
    }
    assert said["method"] == "1 4"
    assert said["A"] == "0.407 (1) 0.507"
    assert said["B"] == "0.207 0.607 (1)"
    assert said["C"] == "0.357 0.357"
    assert said["D"] == "- 0.607 ~"


def test_few_profiles_have_no_interval() -> None:
    few = [record(method, 0.1 * i, units=4, config={}) for i, method in enumerate("AB")]
    (_, last) = ranking(few)
    assert str(last.against) == "-0.100 n = 4: no interval"
