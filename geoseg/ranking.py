"""Which method is the best with so many labelled images, how sure that is, and what each was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from geoseg.metrics.statistics import interval, student_interval
from geoseg.summary import Member, answers, grouped, markdown, unit_means

SCORE = "matched/iou/mean"
"""What methods are ranked by: the score that figures show, which a method that names no classes has too."""

ALPHA = 0.05
"""Share of comparisons at one size in which any interval of a difference may miss, all of them together."""


class Difference(NamedTuple):
    """Of two methods, unit by unit.

    Attributes:
        mean: of the score, over independent units; above 0 where the first is better.
        ends: a bootstrap interval over units, None below five.
        n: units.
    """

    mean: float
    ends: tuple[float, float] | None
    n: int

    @property
    def apart(self) -> bool | None:
        """Whether the two can be told apart; None where there is no interval."""
        return None if self.ends is None else not self.ends[0] <= 0 <= self.ends[1]

    def __str__(self) -> str:
        ends = (
            f"[{self.ends[0]:+.3f}, {self.ends[1]:+.3f}], n = {self.n}" if self.ends else f"n = {self.n}: no interval"
        )
        return f"{self.mean:+.3f} {ends}"


class Place(NamedTuple):
    """One method's place among those that had as many labelled images.

    Attributes:
        data: what the data set is called.
        size: labelled images that methods which learn had.
        rank: 1 for the best.
        method: its name, with the settings in which it differs from others of that name.
        runs: one per seed.
        score: matched mean IoU in [0, 1], mean over runs.
        ends: Student's 95 % interval of that mean over runs, None below three.
        against: the difference to the best, or to the baseline; None for that one itself, and where no seed has both.
    """

    data: str
    size: int
    rank: int
    method: str
    runs: list[Member]
    score: float
    ends: tuple[float, float] | None
    against: Difference | None


def ranking(records: Sequence[Mapping[str, Any]], baseline: str | None = None) -> list[Place]:
    """Ranks the answers of methods by ``SCORE``, for every data set and number of labelled images.

    A method that learns nothing takes part at every size. Differences are taken unit by unit (a unit's score is its
    mean over the seeds that both methods have), and their intervals hold for all methods of one size together with
    95 % (Bonferroni: m differences get 1 - 0.05 / m each).

    Args:
        records: finished or not; those that were not tested are left out.
        baseline: title of the method that the others are compared with; None takes the best of each size.

    Raises:
        ValueError: no method is called like the baseline.
    """
    groups = grouped(answers(records))
    titles = sorted({str(member.record["method"]) for members in groups.values() for member in members})
    if baseline is not None and baseline not in titles:
        raise ValueError(f"baseline: no method that was tested is called {baseline!r}; there is {', '.join(titles)}")
    found = []
    for data in dict.fromkeys(row.data for row in groups):
        methods: dict[str, list[Member]] = {}
        for row, members in groups.items():
            if row.data == data:
                methods.setdefault(row.method, []).extend(members)
        for size in _sizes(methods):
            here = {method: _of_size(members, size) for method, members in methods.items()}
            found += _placed(data, size, {method: runs for method, runs in here.items() if runs}, baseline)
    return found


def learns(record: Mapping[str, Any]) -> bool:
    """Whether the run trained something, so that the number of labelled images makes a difference to it."""
    return record.get("fit_id") is not None


def _sizes(methods: Mapping[str, Sequence[Member]]) -> list[int]:
    of_all = {member.record["num_train"]: learns(member.record) for members in methods.values() for member in members}
    of_learning = {
        member.record["num_train"] for members in methods.values() for member in members if learns(member.record)
    }
    return sorted(of_learning or of_all)


def _of_size(members: Sequence[Member], size: int) -> list[Member]:
    """The runs of a method with so many labelled images; of one that learns nothing, one run per seed."""
    exact = [member for member in members if member.record["num_train"] == size]
    if exact or learns(members[0].record):
        return exact
    return list({member.record["seed"]: member for member in members}.values())


def _placed(data: str, size: int, methods: Mapping[str, list[Member]], baseline: str | None) -> list[Place]:
    scores = {
        method: [value for run in runs if (value := run.scores.get(f"test/{SCORE}")) is not None]
        for method, runs in methods.items()
    }
    order = sorted(
        (method for method in methods if scores[method]), key=lambda method: (-fmean(scores[method]), method)
    )
    those = [method for method in order if baseline in (None, methods[method][0].record["method"])]
    places = []
    for i, method in enumerate(order):
        against = None
        if those and method != those[0]:
            against = _difference(methods[method], methods[those[0]], 1 - ALPHA / (len(order) - 1))
        ends = student_interval(scores[method])
        places.append(Place(data, size, i + 1, method, methods[method], fmean(scores[method]), ends, against))
    return places


def _difference(runs: Sequence[Member], others: Sequence[Member], confidence: float) -> Difference | None:
    seeds = {run.record["seed"] for run in runs} & {run.record["seed"] for run in others}
    mine, reference = (
        unit_means([run for run in side if run.record["seed"] in seeds], SCORE) for side in (runs, others)
    )
    shared = sorted(mine.keys() & reference.keys())
    if not shared:
        return None
    differences = [mine[unit] - reference[unit] for unit in shared]
    return Difference(fmean(differences), interval(differences, confidence), len(shared))


NOTE = (
    "Ranked by matched mean IoU of all pixels together, the mean over seeds with Student's 95 % interval over them. "
    "Differences are taken profile by profile over the seeds that both methods have, and then averaged, so that they "
    "need not be those of two rows, with a bootstrap interval over profiles; the intervals of one size hold together "
    "with 95 % (Bonferroni). The best is called the best by the same profiles, which flatters it a little; a baseline"
    " that is named beforehand has no such advantage. Trials: runs by which the settings were chosen, 1 where they "
    "were set beforehand. Minutes are those of training, prediction and scoring of one run. Methods that learn "
    "nothing were given no image, and stand at every size with the same runs."
)
"""What the numbers of ``ranking_cells`` are."""


def ranking_cells(places: Sequence[Place], baseline: str | None = None) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the ranking, every cell as text: what each method was given, what it reached and how sure."""
    head = ["data", "labelled images", "rank", "method", "images", "labels", "pretraining", "trials", "runs", "minutes"]
    head += ["mean IoU ↑", "matched mean IoU ↑", f"matched mean IoU − {baseline or 'best'} ↑"]
    rows = []
    for place in places:
        records = [run.record for run in place.runs]
        given = records[0]["given"]
        minutes = fmean(sum(record["minutes"].values()) for record in records)
        drawn = [value for run in place.runs if (value := run.scores.get("test/iou/mean")) is not None]
        rows.append(
            [
                place.data,
                str(place.size),
                str(place.rank),
                place.method,
                *(str(given[what]) for what in ("images", "labels", "pretraining")),
                str(given.get("trials", 1)),
                str(len(records)),
                f"{minutes:.2f}",
                f"{fmean(drawn):.3f}" if drawn else "-",
                f"{place.score:.3f}" + (f" [{place.ends[0]:.3f}, {place.ends[1]:.3f}]" if place.ends else ""),
                "" if place.against is None else str(place.against),
            ]
        )
    return head, rows


def ranking_text(places: Sequence[Place], baseline: str | None = None) -> str:
    """The ranking as Markdown, with its note."""
    return "\n".join([*markdown(*ranking_cells(places, baseline)), "", NOTE]) + "\n"


def print_ranking(places: Sequence[Place], baseline: str | None = None, console: Console | None = None) -> None:
    """Prints which method with how many labels: a table per data set, a row per method and a column per size."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=max(120, console.width), file=console.file)
    for data in dict.fromkeys(place.data for place in places):
        here = [place for place in places if place.data == data]
        ranks: dict[str, list[int]] = {}
        for place in here:
            ranks.setdefault(place.method, []).append(place.rank)
        sizes = sorted({place.size for place in here})
        # lines of their own, since a title is broken where its table is narrow
        title = f"{data}: which method with how many labelled images? Matched mean IoU ↑, mean over seeds"
        console.print(title, style="bold", highlight=False, soft_wrap=True)
        table = Table(box=box.SIMPLE)
        table.add_column("method")
        for size in sizes:
            table.add_column(str(size), justify="right")
        cells = {(place.method, place.size): _cell(place) for place in here}
        for method in sorted(ranks, key=lambda method: fmean(ranks[method])):
            table.add_row(method, *(cells.get((method, size), "-") for size in sizes))
        console.print(table, highlight=False)
        told = f"(1): the best of its column; ~: not told apart from {baseline or 'it'}, profile by profile"
        console.print(f"{told}; ?: too few profiles to say", highlight=False, soft_wrap=True)


def _cell(place: Place) -> str:
    first = " (1)" if place.rank == 1 else ""
    told = {None: " ?", False: " ~", True: ""}[place.against.apart] if place.against else ""
    return f"{place.score:.3f}{first}{told}"
