"""What stands in experiments/ is what the records said: tables agree with results.csv, commands are in order."""

from __future__ import annotations

import csv
import re
import shlex
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from geoseg.commands import compare
from geoseg.overrides import check_overrides

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = sorted(path.parent for path in (ROOT / "experiments").rglob("results.csv"))
TABLED = [  # of label maps; classifiers of whole pictures have other scores
    folder
    for folder in QUESTIONS
    if "<!-- table -->" in (folder / "README.md").read_text(encoding="utf-8")
    and "iou/mean" in (folder / "results.csv").read_text(encoding="utf-8").partition("\n")[0].split(",")
]
SCORES = (
    "dice_loss/label_generated",
    *(f"{matched}{score}" for matched in ("", "matched/") for score in ("iou/mean", "dice/mean", "accuracy/pixel")),
)
HEADS = (
    "Dice loss label–generated ↓",
    *(f"{matched}{score} ↑" for matched in ("", "matched ") for score in ("mean IoU", "mean Dice", "pixel accuracy")),
)


def table(text: str) -> list[dict[str, str]]:
    """The summary's rows by column."""
    found = re.search(r"<!-- table -->\n\n((?:\|.*\n)+)", text)
    assert found, "no table"
    head, _, *rows = [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in found[1].splitlines()]
    return [dict(zip([cell.strip("| ") for cell in head], row, strict=True)) for row in rows]


def shown(values: list[str]) -> str:
    numbers = [float(value) for value in values if value]
    if not numbers:
        return "-"
    return f"{fmean(numbers):.3f}" + (f" ± {stdev(numbers):.3f}" if len(numbers) > 1 else "")


def near(said: str, counted: str) -> bool:
    """The same but for the last digit, since results.csv has six of them."""
    a, b = said.split(" ± "), counted.split(" ± ")
    return a == b or (len(a) == len(b) and all(abs(float(x) - float(y)) < 0.0011 for x, y in zip(a, b, strict=True)))


@pytest.mark.parametrize("folder", TABLED, ids=lambda folder: folder.name)
def test_the_table_is_that_of_the_results(folder: Path) -> None:
    with (folder / "results.csv").open(newline="") as file:
        runs = [row for row in csv.DictReader(file) if row["status"] == "done" and row["iou/mean"]]
    assert runs
    groups: dict[tuple[Any, ...], list[dict[str, str]]] = defaultdict(list)
    for row, by_size in product(runs, (True, False)):  # what was given nothing is one row whatever the size
        key = (row["data"], row["method"], row["stage"], row["checkpoints"], row["settings"])
        groups[(*key, row["num_train"] if by_size else None)].append(row)
    told = set()
    for row in table((folder / "README.md").read_text(encoding="utf-8")):
        stage = row["method"].rpartition(": ")[2] if ": " in row["method"] else ""
        fits = [
            members
            for (data, method, at, kind, *_), members in groups.items()
            if row["data"].startswith(data) and row["method"].startswith(method) and at == stage
            if row["checkpoints"] == kind and int(row["runs"]) == len(members)
            if all(near(row[h], shown([one[s] for one in members])) for h, s in zip(HEADS, SCORES, strict=True))
        ]
        assert fits, row
        told |= {(one["run_id"], one["stage"]) for members in fits for one in members}
    assert told == {(row["run_id"], row["stage"]) for row in runs}


@pytest.mark.parametrize("folder", QUESTIONS, ids=lambda folder: folder.name)
def test_the_commands_name_settings_that_exist(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^    (geoseg .*)", text, re.MULTILINE)]
    place = folder.relative_to(ROOT).as_posix()
    runs = "runs/" + place.removeprefix("experiments/").replace("/", "_")
    reports = [words[2:] for words in commands if words[1] == "report"]
    assert [words[:3] for words in reports] == [[runs, "--to", place]]
    given = [words[2:] for words in commands if words[1] == "run" and "data.select=..." not in words]
    compared = [words[2:] for words in commands if words[1] == "compare"]
    assert given or compared
    for words in compared:
        line = compare._read(words)
        compare._check(words, line)
        check_overrides([*line.base, "method=unet", *line.of_methods])
    for words in given:
        check_overrides([word for word in words if word != "-m"], "-m" in words)
