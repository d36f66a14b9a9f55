"""Many runs as one table: means over runs, and differences with intervals over independent units."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from geoseg.metrics.statistics import interval, student_interval
from geoseg.record import write_atomically
from geoseg.report import CLASS, IMAGES, flattened, given

REFERENCE = "input as is"
"""The control that every other row of a summary is compared with, unit by unit."""


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """Finished records as one Markdown table: a row per data set, method, what it was given and stage.

    A row is a mean over runs that differ in nothing but seed, training samples and places; where data sets or methods
    of one name were set differently, the row says how. The last columns hold the mean difference to ``input as is``
    over independent units (a unit's score is its mean over the runs that tested it), with a 95 % bootstrap interval
    over units. Runs that failed are named below the table.
    """
    lines = [*markdown(*summary_cells(records)), "", summary_note(records)]
    failed = [record for record in records if record["status"] == "failed"]
    if failed:
        lines += ["", f"{len(failed)} of {len(records)} runs failed:", ""]
        lines += [f"- {r['method']} `{r['run_id']}`: {first_line(r.get('error', ''))}" for r in failed]
    return "\n".join(lines) + "\n"


def summary_note(records: Sequence[Mapping[str, Any]]) -> str:
    """What the numbers of ``summary_cells`` are, for whoever reads it."""
    _, pixels = of_images(grouped(records))
    counted = "pixels" if pixels else "pictures"
    note = f"Scores are those of all {counted} of a data set together, as mean ± spread over runs."
    if not pixels:
        return note
    return (
        f"{note} Differences are taken profile by profile, over the classes of each, and then averaged, so that they "
        "need not be the differences of two rows; their intervals are over profiles, or the larger units that "
        "profiles were cut from, not over seeds."
    )


OWN = {
    "val/own_loss/before": "loss on the base's own pictures, before training ↓",
    "val/own_loss": "the same after training ↓",
}
"""How well a diffusion model denoises what its base was trained on, where a run measured that."""


def summary_cells(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the summary, every cell as text; see ``summary``."""
    groups = grouped(records)
    controls = {row.data: members for row, members in groups.items() if row.method == REFERENCE}
    whole, pixels = of_images(groups)
    titles = [title.replace("\n", " ") for title in CLASS.values()]
    scored: dict[str, str] = {}
    if pixels:
        scored["dice_loss/label_generated"] = "Dice loss label–generated ↓"
        scored |= {score: f"{title} ↑" for score, title in zip(CLASS, titles, strict=True)}
        scored |= {f"matched/{score}": f"matched {title} ↑" for score, title in zip(CLASS, titles, strict=True)}
    if any("test/matte/sad" in member.scores for members in groups.values() for member in members):
        scored |= {score: COMPARED_WHERE_THERE[score] for score in ("matte/sad", "matte/mse")}
    if whole:
        scored |= IMAGES
    compared = ("dice_loss/label_generated", "matched/iou/mean") if pixels else ()
    forgotten = any(
        name in member.record["scores"] for members in groups.values() for member in members for name in OWN
    )
    own = OWN if forgotten else {}
    head = ["data", "method", "trained on", "checkpoints", "runs", *scored.values()]
    head += ["Dice loss − input as is ↓", "matched IoU − input as is ↑"] if pixels else []
    head += own.values()
    lines = []
    for row, members in groups.items():
        cells = [row.data, row.name, row.given, row.checkpoints, str(len(members))]
        cells += [_mean_deviation([member.scores.get(f"test/{column}") for member in members]) for column in scored]
        for score in compared:
            other = row.method != REFERENCE
            cells.append(_difference(members, controls.get(row.data, []), score) if other else "")
        cells += [_mean_deviation([member.record["scores"].get(name) for member in members]) for name in own]
        lines.append(cells)
    return head, lines


def of_images(groups: Mapping[Row, Sequence[Member]]) -> tuple[bool, bool]:
    """Whether there are runs that give whole images a class, and whether there are others, or none at all."""
    whole = {"test/accuracy/image" in member.scores for members in groups.values() for member in members}
    return True in whole, whole != {True}


REGIONS = {
    "test/regions/count": "regions per image",
    "test/regions/true_count": "classes per image",
    "val/regions/per_image/iou": "validation: mean IoU ↑",
    "test/regions/per_image/accuracy": "pixel accuracy ↑",
    "test/regions/per_image/iou": "mean IoU ↑",
    "test/regions/boundary_f1": "border F1, 2 px ↑",
    "test/regions/once/accuracy": "pixel accuracy, matched once ↑",
    "test/regions/once/iou": "mean IoU, matched once ↑",
}
"""Scores of methods that find regions without names."""


def region_cells(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Regions without names as a table, every cell as text: a row per data set and method that finds some."""
    lines = []
    for row, members in grouped(records).items():
        if any("test/regions/count" in member.record["scores"] for member in members):
            scores = [[member.record["scores"].get(name) for member in members] for name in REGIONS]
            lines.append([row.data, row.method, row.checkpoints, str(len(members)), *map(_mean_deviation, scores)])
    return ["data", "method", "checkpoints", "runs", *REGIONS.values()], lines


DOUBTS = {"own": "its own", "votes": "entropy of votes", "entropy": "entropy", "one_member": "one member's entropy"}
"""Uncertainties of a method by their names in a record."""


def doubt_cells(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Whether methods know where they are wrong, as a table, every cell as text: a row per data set and method.

    What an ensemble gains stands beside it: the mean IoU of its members, each alone, and that of their mean.
    """
    rows: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
    for row, members in grouped(records).items():
        if any("test/uncertainty/entropy/auroc" in member.record["scores"] for member in members):
            rows[row.data, row.method, row.given, row.checkpoints] = [member.record for member in members]
    known = {score for runs in rows.values() for run in runs for score in run["scores"]}
    named = [name for name in DOUBTS if f"test/uncertainty/{name}/auroc" in known]
    head = ["data", "method", "trained on", "checkpoints", "runs", "members", "mean IoU of a member ↑", "mean IoU ↑"]
    head += ["calibration error ↓", *(f"AUROC, {DOUBTS[name]} ↑" for name in named), "lowest AUROC of a run ↑"]
    head += [f"risk, {DOUBTS[name]} ↓" for name in named]
    lines = []
    for told, runs in rows.items():
        alone = [run.get("members", {}).get("alone/iou/mean") for run in runs]
        counts = sorted({len(ious) for ious in alone if ious})
        best = [name for name in ("own", "entropy") if f"test/uncertainty/{name}/auroc" in runs[0]["scores"]][:1]
        lowest = [run["scores"].get(f"test/uncertainty/{name}/auroc") for run in runs for name in best]
        found = [value for value in lowest if value is not None]
        cells = [*told, str(len(runs)), ", ".join(map(str, counts)) or "-"]
        cells += [_mean_deviation([fmean(ious) if ious else None for ious in alone])]
        for score in ("iou/mean", "calibration/error", *(f"uncertainty/{name}/auroc" for name in named)):
            cells.append(_mean_deviation([run["scores"].get(f"test/{score}") for run in runs]))
        cells.append(f"{min(found):.3f}" if found else "-")
        cells += [
            _mean_deviation([run["scores"].get(f"test/uncertainty/{name}/risk") for run in runs]) for name in named
        ]
        lines.append(cells)
    return head, lines


DOUBT_NOTE = (
    "Means ± spread over runs. *AUROC*: the chance that of a wrong and a right pixel the wrong one is less sure, "
    "0.5 is a coin; the lowest is that of a method's own uncertainty where it has one, else of its entropy. *Risk*: "
    "mean share of wrong pixels among the surest, over all shares that are kept. *Calibration error*: how far "
    "probabilities are from the shares of pixels that are right. An ensemble's own uncertainty is the variance of "
    "its members; one member's entropy is the control."
)
"""What the numbers of ``doubt_cells`` are."""


REGION_NOTE = (
    "Regions get the classes that fit them best, image by image, before counts are added up; *matched once*: region "
    "number j, by size, is the same class in all images. Regions beyond the number of classes count as missed. Borders "
    "are those of any region against any class. Means ± spread over runs."
)
"""What the numbers of ``region_cells`` are."""


COST_NOTE = (
    "Means over the runs of a row; minutes are those of the device that is named, and a training that several runs "
    "share counts in each. Milliseconds per image leave the first batch out, which warms up. Memory: the most that was "
    "held, by tensors on a GPU or by the whole process on a CPU, libraries included. - : not known, or there is none."
)
"""What the numbers of ``cost_cells`` are."""


def cost_cells(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """What methods cost as a table, every cell as text: a row per data set, method and what it was given.

    Columns that no record has numbers for are left out, since those of earlier versions keep minutes alone.
    """
    rows: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row, members in grouped(records).items():
        rows[row.data, row.method, row.given] = [member.record for member in members]  # the same for every stage
    head = ["data", "method", "trained on", "runs", "minutes of training", "minutes of prediction", *COSTED, "device"]
    lines = []
    for (data, method, told), runs in rows.items():
        minutes = [_amount([run["minutes"][part] for run in runs]) for part in ("fit", "predict")]
        amounts = [_amount([run.get("costs", {}).get(name) for run in runs], scale) for name, scale in COSTED.values()]
        devices = ", ".join(dict.fromkeys(str(run["device"]) for run in runs))
        lines.append([data, method, told, str(len(runs)), *minutes, *amounts, devices])
    told_of = [i for i in range(len(head)) if head[i] not in COSTED or any(line[i] != "-" for line in lines)]
    return [head[i] for i in told_of], [[line[i] for i in told_of] for line in lines]


COSTED = {
    "tuned parameters": ("tuned_parameters", 1),
    "trials": ("trials", 1),
    "trainable parameters": ("trainable_parameters", 1),
    "decoder parameters": ("decoder_parameters", 1),
    "all parameters": ("parameters", 1),
    "ms per image": ("ms_per_image", 1),
    "training memory, GiB": ("fit_bytes", 2**30),
    "prediction memory, GiB": ("predict_bytes", 2**30),
}
"""Columns of ``cost_cells``: what a record calls it, and what it is divided by."""


DOMAIN_NOTE = (
    "Means ± spread over runs. Trials: combinations of the tuned parameters that were tried on the training profiles; "
    "- : none were. In domain are test profiles of the data set that a method was trained or tuned on; out of domain "
    "is the same method, nothing trained or tuned anew, on the other data set that stands there. A method that learns "
    "nothing is the same on both. Minutes, milliseconds and memory are those of the runs in domain."
)
"""What the numbers of ``domain_cells`` are."""


def domain_cells(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """What methods take, and what they reach where they were trained and elsewhere, as a table, every cell as text.

    A row per data set, method and what it was given, and one more for every further data set on which its runs were
    evaluated (``geoseg evaluate``); evaluations of runs that are not among the records are left out.
    """
    costs, scores = ["tuned_parameters", "trials", "trainable_parameters"], ("iou/mean", "matched/iou/mean")
    head = ["data", "method", "trained on", "runs", "tuned parameters", "trials", "trainable parameters"]
    head += ["minutes of training", "ms per image", "prediction memory, GiB", "mean IoU ↑", "matched mean IoU ↑"]
    head += ["out of domain", "mean IoU there ↑", "matched mean IoU there ↑"]
    groups = grouped(answers(records))
    elsewhere: dict[str, dict[str, Member]] = {}  # by the run that was evaluated and the data set
    for row, members in groups.items():
        for member in members:
            if source := member.record.get("evaluates"):
                elsewhere.setdefault(source["run_id"], {})[row.data] = member
    lines = []
    for row, members in groups.items():
        own = [member for member in members if "evaluates" not in member.record]
        if not own:
            continue
        there: dict[str, list[Member]] = {}
        for member in own:
            for data, other in elsewhere.get(member.record["run_id"], {}).items():
                there.setdefault(data, []).append(other)
        runs = [member.record for member in own]
        cells = [row.data, row.method, row.given, str(len(own))]
        cells += [_amount([run.get("costs", {}).get(name) for run in runs]) for name in costs]
        cells.append(_amount([run["minutes"]["fit"] for run in runs]))
        cells.append(_amount([run.get("costs", {}).get("ms_per_image") for run in runs]))
        cells.append(_amount([run.get("costs", {}).get("predict_bytes") for run in runs], 2**30))
        cells += [_mean_deviation([member.scores.get(f"test/{score}") for member in own]) for score in scores]
        for data, others in there.items() or [("-", list[Member]())]:
            found = [_mean_deviation([member.scores.get(f"test/{score}") for member in others]) for score in scores]
            lines.append([*cells, data, *found])
    return head, lines


def _amount(values: Sequence[float | None], scale: float = 1) -> str:
    """The mean of what is known; parameters in full, as the only ones that are whole numbers."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    whole = scale == 1 and all(isinstance(value, int) for value in known)
    return f"{fmean(known):,.0f}" if whole else f"{fmean(known) / scale:.3g}"


def answers(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same records without the stages on the way, so that each method has one row, line and column."""
    return [{**record, "stages": {}, "stages_per_unit": {}} for record in records]


QUOTED = {
    "iou/mean": "mean IoU ↑",
    "accuracy/mean": "mean pixel accuracy ↑",
    "accuracy/image": "accuracy ↑",
    "mse": '"mse", as printed and unexplained',
}
"""Published scores that tables may quote."""


def quoted_cells(path: Path, records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Published numbers as a table, marked as quoted, beside those of finished runs that were counted the same way.

    Args:
        path: a CSV with the columns ``data, method, score, value, source``; scores as in ``QUOTED``.
        records: runs whose data set and method have the names that the file gives them are put beside; their score is
            ``published/with_flips/...`` where they have it, else ``published/...``, as mean ± spread over runs.

    Raises:
        ValueError: the file lacks a column, or has a score or a number that is none.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lacking = {"data", "method", "score", "value", "source"} - set(reader.fieldnames or ())
        if lacking:
            raise ValueError(f"{path} needs the columns {', '.join(sorted(lacking))} too")
        lines = list(reader)
    values: dict[tuple[str, str, str], dict[str, float]] = {}
    for line in lines:
        try:
            number = float(line["value"])
        except ValueError:
            raise ValueError(f"{path}: {line['value']!r} is no number") from None
        if line["score"] not in QUOTED:
            raise ValueError(f"{path} has the score {line['score']!r}; known are {', '.join(QUOTED)}")
        values.setdefault((line["data"], line["method"], line["source"]), {})[line["score"]] = number
    done = [record for record in records if record["status"] == "done"]
    quoted = {score: title for score, title in QUOTED.items() if any(score in found for found in values.values())}
    rows = []
    for (data, method, source), published in values.items():
        here = [record["scores"] for record in done if (record["data"]["name"], record["method"]) == (data, method)]
        cells = []
        for score in quoted:
            cells.append(f"{published[score]:.4f}" if score in published else "-")
            cells.append(_mean_deviation([_as_published(scores, score) for scores in here]))
        rows.append([data, method, *cells, source])
    titles = [f"{title}, {whose}" for title in quoted.values() for whose in ("quoted", "here, counted the same way")]
    return ["data", "method", *titles, "quoted from"], rows


QUOTED_NOTE = (
    "Columns marked as quoted hold what others have published; nothing of it was computed here. - : no finished run of "
    "that name, or none that was counted the same way (`data.published_batch`)."
)
"""What the numbers of ``quoted_cells`` are."""


def _as_published(scores: Mapping[str, float | None], score: str) -> float | None:
    if score == "accuracy/image":  # there is one way to count it
        return scores.get(f"test/{score}")
    flipped = scores.get(f"test/published/with_flips/{score}")
    return flipped if flipped is not None else scores.get(f"test/published/{score}")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]


def first_line(text: object) -> str:
    """The first line of a message, "" of an empty one."""
    return next(iter(str(text).splitlines()), "")


SPREAD = ("data", "method", "stage", "trained_on", "checkpoints", "score", "mean", "std", "low", "high", "n")
"""Columns of ``write_spread``."""


def write_spread(records: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Writes the summary's rows with every score as CSV, for other programs: one line per row and score.

    ``mean`` and ``std`` (sample standard deviation, empty for one run) are over the ``n`` runs of the row that have the
    score; ``low`` and ``high`` are Student's 95 % interval of the mean over these runs, empty below three of them. Runs
    of one row differ in seed and training samples, so that the interval says how far other seeds would move the mean;
    it says nothing about other profiles, for which ``comparisons`` is there.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SPREAD)
    for row, members in grouped(records).items():
        for score in dict.fromkeys(score for member in members for score in member.scores):
            values = [value for member in members if (value := member.scores.get(score)) is not None]
            if not score.startswith("test/") or not values:
                continue
            ends = student_interval(values) or ()
            numbers = [fmean(values), stdev(values) if len(values) > 1 else None, *(ends or (None, None))]
            told = ["" if number is None else f"{number:.6g}" for number in numbers]
            named = [row.data, row.method, row.stage, row.given, row.checkpoints, score.removeprefix("test/")]
            writer.writerow([*named, *told, len(values)])
    write_atomically(path, text.getvalue())
    return path


def settings(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How every record's method and data were set where others of that name were set differently: "strength=0.4"."""
    methods = told_apart(records, "method", lambda record: (record["method"],))
    data_sets = told_apart(records, "data", lambda record: (record["data"]["name"],))
    told = []
    for record, method, data in zip(records, methods, data_sets, strict=True):
        added = method.removeprefix(record["method"]), data.removeprefix(record["data"]["name"])
        told.append(", ".join(part.strip()[1:-1] for part in added if part))  # without the brackets
    return told


COMPARED = {
    "dice_loss/label_generated": "Dice loss label–generated ↓",
    "iou/mean": "mean IoU ↑",
    "matched/iou/mean": "matched mean IoU ↑",
    "boundary_f1/mean": "boundary F1, 2 px ↑",
    "matched/small_regions/recall": "matched recall of regions below 1 % of the area ↑",
}
"""Scores that one row is compared with another by."""

COMPARED_IMAGES = {"accuracy/image": "accuracy ↑", "cross_entropy": "cross-entropy ↓"}
"""Those of whole images."""

COMPARED_WHERE_THERE = {
    "matte/sad": "matte SAD ↓",
    "matte/mse": "matte MSE ↓",
    "regions/per_image/accuracy": "regions, matched per image: pixel accuracy ↑",
    "regions/per_image/iou": "regions, matched per image: mean IoU ↑",
    "regions/boundary_f1": "regions: border F1, 2 px ↑",
}
"""Those of mattes, and of methods that find regions without names, where both rows of a pair have them."""


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
    return "\n".join(markdown(*comparison_cells(records, pairs))) + "\n"


def comparison_cells(
    records: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[str, str]]
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of ``comparisons``, every cell as text."""
    groups = grouped(records)
    whole, pixels = of_images(groups)
    compared = {**(COMPARED if pixels else {}), **(COMPARED_IMAGES if whole else {})}
    lines: list[list[str]] = []
    for pair in pairs:
        before = len(lines)
        for data in dict.fromkeys(row.data for row in groups) or [""]:  # no row: the first name says so
            first, second = (_called(groups, name, data) for name in pair)
            if first and second:
                cells = [_difference(first, second, score) for score in (*compared, *COMPARED_WHERE_THERE)]
                lines.append([data, f"{pair[0]} − {pair[1]}", *cells])
        if len(lines) == before:
            raise ValueError(f"{pair[0]!r} and {pair[1]!r} have no data set in common, so nothing compares them")
    head = ["data", "difference", *compared.values(), *COMPARED_WHERE_THERE.values()]
    always = len(head) - len(COMPARED_WHERE_THERE)
    shown = [i for i in range(len(head)) if i < always or any(line[i] != "-" for line in lines)]
    head, lines = [head[i] for i in shown], [[line[i] for i in shown] for line in lines]
    return head, lines


def _called(groups: Mapping[Row, list[Member]], name: str, data: str) -> list[Member]:
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


class Row(NamedTuple):
    """What tells one row of the summary from another."""

    data: str
    method: str
    stage: str
    given: str
    checkpoints: str

    @property
    def name(self) -> str:
        return f"{self.method}: {self.stage}" if self.stage else self.method

    def bare(self, members: Sequence[Member]) -> str:
        """The name without how the method was set."""
        method = str(members[0].record["method"])
        return f"{method}: {self.stage}" if self.stage else method


class Member(NamedTuple):
    """One run's share in a row: its record, and its stage's scores of all units together and of every unit."""

    record: Mapping[str, Any]
    scores: Mapping[str, float | None]
    per_unit: Mapping[str, Sequence[float | None]]


def grouped(records: Sequence[Mapping[str, Any]]) -> dict[Row, list[Member]]:
    """Rows of the summary in its order, each with the runs that it is a mean of; only runs that were tested."""
    done = [record for record in records if record["status"] == "done" and "units" in record]  # trained and tested
    data_sets = told_apart(done, "data", lambda record: (record["data"]["name"],))
    methods = told_apart(
        done, "method", lambda record: (record["method"], given(record), record["checkpoints"]["kind"])
    )
    groups: dict[Row, list[Member]] = {}
    for record, data, method in zip(done, data_sets, methods, strict=True):
        pairs = record["stages"] or {"": record["scores"]}
        units = record["stages_per_unit"] if record["stages"] else {"": record["per_unit"]}
        for stage, scores in pairs.items():
            row = Row(data, method, stage, given(record).replace("\n", " "), record["checkpoints"]["kind"])
            groups.setdefault(row, []).append(Member(record, scores, units[stage]))
    return dict(sorted(groups.items(), key=_order))


_VARIED = re.compile(
    r"data\.(seed|root|source\.root|workers|batch_size|select|num_train|tolerances.*|published_\w+|merge_threshold)|"
    r"data\.source\.choice_seed|"
    r"method\.(.*\.)?seed|method\.(title|given\..*)|.*\.(path|path_or_id|_partial_)"
)
"""Settings that may differ between the runs of one row."""

_MIXED = re.compile(r"data\.source\.(synthetic|total|real|rest|noise|seen|choice_seed)")
"""Settings of a ``Mixture`` that change what is learnt from, and nothing that is tested on."""


def is_mixture(source: Mapping[str, Any]) -> bool:
    """Whether a data set's training set is a ``Mixture``."""
    return str(source.get("_target_", "")).endswith(".Mixture")


def learnt_from(source: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a ``Mixture`` that decide what is in its training set.

    All real is that, whatever was to stand beside; noise counts where there are noised copies, and the name of the
    folder where something in it was used.
    """
    kept = {"total", "real", "seen", "choice_seed"}
    if source["real"] != 1:
        kept |= {"rest"} | ({"noise"} if source["rest"] == "noised" else set())
    used = source["seen"] or (source["real"] != 1 and source["rest"] == "generated")
    folder = {"synthetic": Path(str(source["synthetic"])).name} if used else {}
    return {key: value for key, value in source.items() if key in kept} | folder


def _settings(record: Mapping[str, Any], part: str) -> dict[str, str]:
    """What decides a number besides seed and training samples, by its full name."""
    config = record.get("config", {})
    flat = list(flattened(config.get(part), part))
    source = config.get("data", {}).get("source", {})
    if is_mixture(source):  # what stands in a training set beside its data is how the method was trained
        flat = [(name, value) for name, value in flat if not _MIXED.fullmatch(name)]
        if part == "method":
            flat += [(f"data.source.{key}", value) for key, value in learnt_from(source).items()]
    placed = [(name, Path(str(value)).name if name.endswith(".root") else value) for name, value in flat]
    return {name: _text(value) for name, value in placed if not _VARIED.fullmatch(name)}


def _text(value: Any) -> str:
    """7 and 7.0 are one setting, whichever a user typed."""
    if value is None:
        return "null"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def told_apart(
    records: Sequence[Mapping[str, Any]],
    part: str,
    called: Callable[[Mapping[str, Any]], tuple[str, ...]],
    beside: Sequence[Hashable] = (),
) -> list[str]:
    """Every record's data set or method, with the settings in which it differs from others that are called the same.

    Args:
        records: finished or not.
        part: of their configuration, "data" or "method".
        called: names of a record; the first is the one that settings are added to, and only records that share all
            names are told apart.
        beside: a value per record that is told elsewhere, such as the place on an axis; settings that are the same
            wherever it is the same are left out.
    """
    beside = beside or [None] * len(records)
    alike: dict[tuple[str, ...], list[int]] = {}
    for i, record in enumerate(records):
        alike.setdefault(called(record), []).append(i)
    settings = [_settings(record, part) for record in records]
    names = [called(record)[0] for record in records]
    for members in alike.values():
        keys = {key for i in members for key in settings[i]}
        differing = [
            key
            for key in sorted(keys)
            if len({settings[i].get(key, "null") for i in members}) > 1
            and len({(beside[i], settings[i].get(key, "null")) for i in members}) > len({beside[i] for i in members})
        ]
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


def _order(group: tuple[Row, Sequence[Member]]) -> tuple[Any, ...]:
    """Data sets by name; in each controls first, then methods by name and labels, their stages as they were drawn."""
    row, members = group
    record = members[0].record
    labels = record["given"]["labels"]
    stage = list(record["stages"]).index(row.stage) if row.stage else 0
    return row.data, bool(labels), row.method, labels, row.checkpoints, stage


def unit_means(members: Sequence[Member], score: str) -> dict[str, float]:
    """A score of every independent unit: its mean over the runs that tested it, and over what was cut from it."""
    seen: dict[str, list[float]] = {}
    for member in members:
        units = member.record["units"]
        names = units.get("blocks", units["names"])
        values = member.per_unit.get(f"test/{score}") or [None] * len(names)
        for unit, value in zip(names, values, strict=True):
            if value is not None:
                seen.setdefault(unit, []).append(value)
    return {unit: fmean(values) for unit, values in seen.items()}


def _difference(members: Sequence[Member], others: Sequence[Member], score: str) -> str:
    mine, reference = unit_means(members, score), unit_means(others, score)
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
