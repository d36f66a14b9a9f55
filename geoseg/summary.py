"""Many runs as one table: means over runs, and differences with intervals over independent units."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from geoseg.metrics.statistics import interval
from geoseg.report import CLASS, flattened, given

REFERENCE = "input as is"
"""The control that every other row of a summary is compared with, unit by unit."""


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """Finished records as one Markdown table: a row per data set, method, what it was given and stage.

    A row is a mean over runs that differ in nothing but seed, training samples and places; where data sets or methods
    of one name were set differently, the row says how. The last columns hold the mean difference to ``input as is``
    over independent units (a unit's score is its mean over the runs that tested it), with a 95 % bootstrap interval
    over units. Runs that failed are named below the table.
    """
    groups = _groups(records)
    controls = {row.data: members for row, members in groups.items() if row.method == REFERENCE}
    titles = [title.replace("\n", " ") for title in CLASS.values()]
    head = ["data", "method", "trained on", "checkpoints", "runs", "Dice loss label–generated ↓"]
    head += [f"{title} ↑" for title in titles] + [f"matched {title} ↑" for title in titles]
    head += ["Dice loss − input as is ↓", "matched IoU − input as is ↑"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row, members in sorted(groups.items(), key=_order):
        columns = ["dice_loss/label_generated", *CLASS, *(f"matched/{score}" for score in CLASS)]
        cells = [row.data, row.name, row.given, row.checkpoints, str(len(members))]
        cells += [_mean_deviation([member.scores.get(f"test/{column}") for member in members]) for column in columns]
        for score in ("dice_loss/label_generated", "matched/iou/mean"):
            compared = row.method != REFERENCE
            cells.append(_difference(members, controls.get(row.data, []), score) if compared else "")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Scores are those of all pixels of a data set together, as mean ± spread over runs. Differences are taken "
        "profile by profile, over the classes of each, and then averaged, so that they need not be the differences of "
        "two rows; their intervals are over profiles, not over seeds.",
    ]
    failed = [record for record in records if record["status"] == "failed"]
    if failed:
        lines += ["", f"{len(failed)} of {len(records)} runs failed:", ""]
        lines += [f"- {r['method']} `{r['run_id']}`: {str(r.get('error', '')).splitlines()[0]}" for r in failed]
    return "\n".join(lines) + "\n"


def settings(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How every record's method was set where others of its name were set differently, such as "strength=0.4"."""
    named = _told_apart(records, "method", lambda record: (record["method"],))
    return [name.removeprefix(record["method"]).strip(" ()") for name, record in zip(named, records, strict=True)]


COMPARED = {
    "dice_loss/label_generated": "Dice loss label–generated ↓",
    "iou/mean": "mean IoU ↑",
    "matched/iou/mean": "matched mean IoU ↑",
    "boundary_f1/mean": "boundary F1, 2 px ↑",
    "matched/small_regions/recall": "matched recall of small regions ↑",
}
"""Scores that one row is compared with another by."""


def comparisons(records: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[str, str]]) -> str:
    """Differences between rows of the summary as a Markdown table, one row per pair and data set.

    A difference is the mean over independent units that both were scored on, the first minus the second; a unit's
    score is its mean over the runs that tested it. With a 95 % bootstrap interval over units.

    Args:
        records: of finished runs; others are left out.
        pairs: names of rows as the summary calls them, such as ("label LoRA: pass 2", "without LoRA: pass 2").

    Raises:
        ValueError: there is no such row; with the nearest name.
    """
    groups = _groups(records)
    lines = ["| data | difference | " + " | ".join(COMPARED.values()) + " |", "|---|---|" + "---|" * len(COMPARED)]
    for pair in pairs:
        before = len(lines)
        for data in dict.fromkeys(row.data for row in sorted(groups)) or [""]:  # no row: the first name says so
            first, second = (_called(groups, name, data) for name in pair)
            if first and second:
                cells = [_difference(first, second, score) for score in COMPARED]
                lines.append(f"| {data} | {pair[0]} − {pair[1]} | " + " | ".join(cells) + " |")
        if len(lines) == before:
            raise ValueError(f"{pair[0]!r} and {pair[1]!r} have no data set in common, so nothing compares them")
    return "\n".join(lines) + "\n"


def _called(groups: Mapping[_Row, list[_Member]], name: str, data: str) -> list[_Member]:
    """The runs of a row by its name, or by its method and stage where no other row of the data set has these."""
    alike = {row: members for row, members in groups.items() if name in (row.name, row.bare(members))}
    if not alike:
        names = sorted({row.bare(members) for row, members in groups.items()})
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        there = f"there is {', '.join(map(repr, names))}" if names else "no run is finished and tested"
        raise ValueError(f"no row of the table is called {name!r}; {hint}{there}")
    here = {row: members for row, members in alike.items() if row.data == data}
    exact = [row for row in here if row.name == name] or list(here)
    if len(exact) > 1:
        names = [row.name for row in exact]
        raise ValueError(f"{len(exact)} rows are called {name!r}; give one in full: {', '.join(map(repr, names))}")
    return here[exact[0]] if exact else []


class _Row(NamedTuple):
    """What tells one row of the summary from another."""

    data: str
    method: str
    stage: str
    given: str
    checkpoints: str

    @property
    def name(self) -> str:
        return f"{self.method}: {self.stage}" if self.stage else self.method

    def bare(self, members: Sequence[_Member]) -> str:
        """The name without how the method was set."""
        method = str(members[0].record["method"])
        return f"{method}: {self.stage}" if self.stage else method


class _Member(NamedTuple):
    """One run's share in a row: its record, the scores of its stage, and every unit's scores."""

    record: Mapping[str, Any]
    scores: Mapping[str, float | None]
    units: Mapping[str, Mapping[str, float | None]]


def _groups(records: Sequence[Mapping[str, Any]]) -> dict[_Row, list[_Member]]:
    done = [record for record in records if record["status"] == "done" and "units" in record]  # trained and tested
    data_sets = _told_apart(done, "data", lambda record: (record["data"]["name"],))
    methods = _told_apart(
        done, "method", lambda record: (record["method"], given(record), record["checkpoints"]["kind"])
    )
    groups: dict[_Row, list[_Member]] = {}
    for record, data, method in zip(done, data_sets, methods, strict=True):
        pairs = record["stages"] or {"": record["scores"]}
        units = record["stages_per_unit"] if record["stages"] else {"": record["per_unit"]}
        for stage, scores in pairs.items():
            row = _Row(data, method, stage, given(record).replace("\n", " "), record["checkpoints"]["kind"])
            own = [dict(zip(units[stage], values, strict=True)) for values in zip(*units[stage].values(), strict=True)]
            groups.setdefault(row, []).append(
                _Member(record, scores, dict(zip(record["units"]["names"], own, strict=True)))
            )
    return groups


_VARIED = re.compile(
    r"data\.(seed|root|source\.root|workers|batch_size|select|num_train)|method\.(.*\.)?seed|"
    r"method\.(title|given\..*)|.*\.(path|path_or_id|_partial_)"
)
"""Settings that may differ between the runs of one row."""


def _settings(record: Mapping[str, Any], part: str) -> dict[str, str]:
    """What decides a number besides seed and training samples, by its full name."""
    flat = flattened(record.get("config", {}).get(part), part)
    return {name: "null" if value is None else str(value) for name, value in flat if not _VARIED.fullmatch(name)}


def _told_apart(
    records: Sequence[Mapping[str, Any]], part: str, called: Callable[[Mapping[str, Any]], tuple[str, ...]]
) -> list[str]:
    """Every record's data set or method, with the settings in which it differs from others that are called the same."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for i, record in enumerate(records):
        alike.setdefault(called(record), []).append(i)
    settings = [_settings(record, part) for record in records]
    names = [called(record)[0] for record in records]
    for members in alike.values():
        keys = {key for i in members for key in settings[i]}
        differing = [key for key in sorted(keys) if len({settings[i].get(key, "null") for i in members}) > 1]
        # an object that stands where others have none is told as a whole, not setting by setting
        wholes = dict.fromkeys(next((up for up in _above(key) if up in keys), key) for key in differing)
        for i in members:
            told = {}
            for whole in wholes:
                own = settings[i].get(whole)
                value = own if own is not None else settings[i].get(f"{whole}._target_", "")
                if value:
                    is_object = own is None or whole.endswith("._target_")
                    told[whole.removesuffix("._target_")] = value.rpartition(".")[2] if is_object else value
            short = [key.rpartition(".")[2] for key in told]
            told = {last if short.count(last) == 1 else key: told[key] for key, last in zip(told, short, strict=True)}
            if told:
                names[i] += f" ({', '.join(f'{key}={value}' for key, value in told.items())})"
    return names


def _above(key: str) -> list[str]:
    """a.b.c: a, a.b"""
    return [key[:i] for i, letter in enumerate(key) if letter == "."]


def _order(group: tuple[_Row, Sequence[_Member]]) -> tuple[Any, ...]:
    """Data sets by name; in each controls first, then methods by name and labels, their stages as they were drawn."""
    row, members = group
    record = members[0].record
    labels = record["given"]["labels"]
    stage = list(record["stages"]).index(row.stage) if row.stage else 0
    return row.data, bool(labels), row.method, labels, row.checkpoints, stage


def _unit_means(members: Sequence[_Member], score: str) -> dict[str, float]:
    seen: dict[str, list[float]] = {}
    for member in members:
        for unit, scores in member.units.items():
            value = scores.get(f"test/{score}")
            if value is not None:
                seen.setdefault(unit, []).append(value)
    return {unit: fmean(values) for unit, values in seen.items()}


def _difference(members: Sequence[_Member], others: Sequence[_Member], score: str) -> str:
    mine, reference = _unit_means(members, score), _unit_means(others, score)
    shared = sorted(mine.keys() & reference.keys())
    if not shared:
        return "-"
    differences = [mine[unit] - reference[unit] for unit in shared]
    ends = interval(differences)
    spread = f"[{ends[0]:+.3f}, {ends[1]:+.3f}], n = {len(shared)}" if ends else f"n = {len(shared)}: no interval"
    return f"{fmean(differences):+.3f} {spread}"


def _mean_deviation(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{fmean(known):.3f} ± {stdev(known):.3f}" if len(known) > 1 else f"{known[0]:.3f}"
