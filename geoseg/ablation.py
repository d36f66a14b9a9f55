"""Scores over one setting, and whether the loss of a training tells how good its answers are."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from geoseg import report
from geoseg.losses import TRAIN, VAL
from geoseg.metrics.statistics import rank_correlation
from geoseg.report import flattened, given
from geoseg.summary import told_apart

SCORES = {
    "test/matched/iou/mean": "matched mean IoU ↑",
    "test/dice_loss/label_generated": "Dice loss label–generated ↓",
    "test/boundary_f1/mean": "boundary F1, 2 px ↑",
}
"""Scores of the answer that are drawn over a setting, one line per stage."""

IMAGES = {f"test/{score}": title for score, title in report.IMAGES.items()}
"""Those of answers that are classes of whole images."""

LOSSES = {TRAIN: "final training loss ↓", VAL: "validation loss ↓"}
"""Losses of the training behind it, one line per method: they know no stages."""


SIZES = ("num_train", "data.num_train")
"""Names of the number of labelled images."""


class Line(NamedTuple):
    """What one method reached over a setting.

    Attributes:
        method: its name, with the settings in which it differs from others of that name.
        by: the value of the second setting, such as "select=random"; "" without one.
        stage: of the answer; "" for the only one, and for losses.
        points: score to value of the setting to one number per run.
    """

    method: str
    by: str
    stage: str
    points: dict[str, dict[Any, list[float]]]

    @property
    def owner(self) -> str:
        """Whose line it is, without the stage."""
        return ", ".join(part for part in (self.method, self.by) if part)


class Ablation(NamedTuple):
    """Scores of one data set over one setting.

    Attributes:
        data: what the data set is called.
        key: the setting's full name.
        values: those it had, in order.
        lines: one per method, second setting and stage.
        without: methods on this data set that are left out, since they have no such setting.
        alike: whether all values were scored on the same profiles.
    """

    data: str
    key: str
    values: list[Any]
    lines: list[Line]
    without: list[str]
    alike: bool


def ablations(
    records: Sequence[Mapping[str, Any]],
    losses: Mapping[str, Mapping[str, float]],
    key: str,
    by: str | None = None,
) -> list[Ablation]:
    """Sorts finished, tested runs by the value of a setting, one ``Ablation`` per data set that has two values of it.

    Runs that differ in seed, training samples and places alone share a point. Where a method was set differently
    besides, the line says how, but for settings that follow from the key, as those that are interpolated from it. Over
    the number of labelled images, a method that learns nothing and was run with one number stands at all of them.

    Args:
        records: of a sweep; a run that two experiments share counts once.
        losses: fit id to final losses, see ``geoseg.losses.final_losses``.
        key: "num_train", or the full name of a setting.
        by: another one: a line per value.

    Raises:
        ValueError: no run has these settings, with the nearest names; or the setting has one value only.
    """
    once = {record["run_id"]: record for record in records if record["status"] == "done" and "units" in record}
    keys = [key] if by is None else [key, by]
    flat = {run: {**dict(flattened(one["config"])), "num_train": one["num_train"]} for run, one in once.items()}
    known = {name for names in flat.values() for name in names}
    for wanted in keys:
        if wanted not in known:
            near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
            raise ValueError(
                f"no finished run has the setting {wanted}" + (f"; did you mean {near[0]}?" if near else "")
            )
    done = [one for run, one in once.items() if all(wanted in flat[run] for wanted in keys)]
    places = [tuple(flat[one["run_id"]][wanted] for wanted in keys) for one in done]
    if key in SIZES:
        done, places = _at_every_size(done, places)
    data_sets = told_apart(done, "data", lambda one: (one["data"]["name"],), places)
    made = []
    for data in dict.fromkeys(data_sets):
        chosen = [i for i, name in enumerate(data_sets) if name == data]
        values = _ordered({places[i][0] for i in chosen})
        if len(values) > 1:
            here, at = [done[i] for i in chosen], [places[i] for i in chosen]
            lines = _lines(list(zip(_names(here, at, keys), at, here, strict=True)), losses, by)
            titles = {one["data"]["name"] for one in here}
            others = {one["method"] for one in once.values() if one["data"]["name"] in titles}
            without = sorted(others - {one["method"] for one in here})
            scored = {
                value: {name for i in chosen if places[i][0] == value for name in done[i]["data"]["test"]}
                for value in values
            }
            alike = len({frozenset(names) for names in scored.values()}) == 1
            made.append(Ablation(data, key, values, lines, without, alike))
    if not made:
        values = _ordered({place[0] for place in places})
        found = ", ".join(map(shown, values))
        raise ValueError(f"{key} is {found} in all these runs of a data set; a figure over it needs two values")
    return made


def _at_every_size(
    done: Sequence[Mapping[str, Any]], places: Sequence[tuple[Any, ...]]
) -> tuple[list[Mapping[str, Any]], list[tuple[Any, ...]]]:
    """Puts runs that learnt nothing at every size of their data set, unless their method was run with several."""
    sizes: dict[str, dict[Any, None]] = {}
    own: dict[tuple[str, str], set[Any]] = {}
    for one, place in zip(done, places, strict=True):
        sizes.setdefault(one["data"]["name"], {})[place[0]] = None
        own.setdefault((one["data"]["name"], one["method"]), set()).add(place[0])
    pairs = []
    for one, place in zip(done, places, strict=True):
        name = one["data"]["name"]
        everywhere = one["fit_id"] is None and len(own[name, one["method"]]) == 1
        pairs += [(one, (size, *place[1:])) for size in (sizes[name] if everywhere else [place[0]])]
    return [one for one, _ in pairs], [place for _, place in pairs]


def ablation_cells(made: Sequence[Ablation]) -> tuple[list[str], list[list[Any]]]:
    """Head and rows of scores over one setting: a row per data set, line and value, with means over its runs.

    Args:
        made: of one setting, see ``ablations``; numbers stay numbers where all its values are.
    """
    titles = titles_of([line for one in made for line in one.lines])
    numeric = all(is_number(value) for one in made for value in one.values)
    rows: list[list[Any]] = []
    for one in made:
        for line in one.lines:
            for value in one.values:
                found = {score: points[value] for score, points in line.points.items() if value in points}
                if found:
                    means = [fmean(found[score]) if score in found else None for score in titles]
                    place = value if numeric else shown(value)
                    rows.append([one.data, line.owner, line.stage, place, max(map(len, found.values())), *means])
    return ["data", "method", "stage", made[0].key, "runs", *titles.values()], rows


def titles_of(lines: Sequence[Line]) -> dict[str, str]:
    """Scores and losses that such lines may have, with their titles: of label maps, of whole images, or of both."""
    there = {score for line in lines for score in line.points}
    whole = bool(there & set(IMAGES))
    return {**({} if whole and not there & set(SCORES) else SCORES), **(IMAGES if whole else {}), **LOSSES}


def shown(value: Any) -> str:
    """A setting's value for readers.

    >>> shown(0.0001), shown(("a", "b")), shown(None)
    ('0.0001', 'a b', 'null')
    """
    if isinstance(value, tuple):
        return " ".join(map(shown, value))
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def is_number(value: Any) -> bool:
    """Whether it has a place on an axis; True and False have none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ordered(values: set[Any]) -> list[Any]:
    """Numbers by size, after words by name."""
    return sorted(values, key=lambda value: (1, value, "") if is_number(value) else (0, 0, shown(value)))


def _names(done: Sequence[Mapping[str, Any]], places: Sequence[Hashable], keys: Sequence[str]) -> list[str]:
    """Names of lines: the method, and whatever runs of one name differ in that is not told by their place."""
    sizes = not set(SIZES) & set(keys)

    def others(one: Mapping[str, Any]) -> tuple[str, str]:
        return (given(one).replace("\n", " ") if sizes else "", one["checkpoints"]["kind"])

    told = told_apart(done, "method", lambda one: (one["method"], *others(one)), places)
    alike: dict[str, set[tuple[str, str]]] = {}
    for one in done:
        alike.setdefault(one["method"], set()).add(others(one))
    names = []
    for name, one in zip(told, done, strict=True):
        labels, kind = others(one)
        all_labels, kinds = (set(values) for values in zip(*alike[one["method"]], strict=True))
        if len(all_labels) > 1:
            name += f", {labels}"
        if len(kinds) > 1 and not any(key.startswith("checkpoints") for key in keys):
            name += f", checkpoints={kind}"
        names.append(name)
    return names


def _lines(
    runs: Sequence[tuple[str, tuple[Any, ...], Mapping[str, Any]]],
    losses: Mapping[str, Mapping[str, float]],
    by: str | None,
) -> list[Line]:
    lines: dict[tuple[str, str, str], Line] = {}
    fits: set[tuple[str, str, Any, str]] = set()

    def put(method: str, place: tuple[Any, ...], stage: str, scores: Mapping[str, float | None], of: Any) -> None:
        second = f"{str(by).rpartition('.')[2]}={shown(place[1])}" if by else ""
        line = lines.setdefault((method, second, stage), Line(method, second, stage, {}))
        for score in of:
            value = scores.get(score)
            if value is not None:
                line.points.setdefault(score, {}).setdefault(place[0], []).append(value)

    seconds = {value: i for i, value in enumerate(_ordered({place[-1] for _, place, _ in runs}))}
    order = sorted(runs, key=lambda run: (bool(run[2]["given"]["labels"]), run[0], seconds[run[1][-1]]))
    for method, place, record in order:
        for stage, scores in (record["stages"] or {"": record["scores"]}).items():
            put(method, place, stage, scores, (*SCORES, *IMAGES))
        # runs that share a training are one training at each place
        if (fit := (method, *map(shown, place), record["fit_id"])) not in fits:
            fits.add(fit)
            put(method, place, "", losses.get(record["fit_id"], {}), LOSSES)
    return [line for line in lines.values() if line.points]


CORRELATED = {
    "test/dice_loss/label_generated": "Dice loss label–generated",
    "test/matched/iou/mean": "matched mean IoU",
}
"""Scores that a training's losses are compared with."""

CORRELATION_NOTE = (
    "Spearman's rank correlation over trainings, with a 95 % bootstrap interval over them; a training that several "
    "runs share counts once, with the mean of their last stages. The final training loss is the mean of the last tenth "
    "of its steps. Losses of different methods are different quantities, so the rows of single methods are the ones to "
    "read. Where a low loss goes with good answers, the Dice loss has a positive and IoU a negative correlation."
)
"""What the numbers of ``correlations`` are."""


def correlations(
    records: Sequence[Mapping[str, Any]], losses: Mapping[str, Mapping[str, float]]
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: does a training's loss tell how good its answers are?

    A row per data set and method, and one over all trainings.

    Args:
        records: finished, tested runs; others are left out, and so are trainings without a logged loss.
        losses: fit id to final losses.
    """
    scored: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    seen = set()
    for one in records:
        if one["status"] != "done" or "units" not in one or one["fit_id"] not in losses or one["run_id"] in seen:
            continue
        seen.add(one["run_id"])
        scores = scored.setdefault((one["data"]["name"], one["method"], one["fit_id"]), {})
        for name in CORRELATED:
            if one["scores"].get(name) is not None:
                scores.setdefault(name, []).append(one["scores"][name])
    head = ["data", "method"]
    head += [f"{loss.removesuffix(' ↓')} and {score}" for loss in LOSSES.values() for score in CORRELATED.values()]
    groups = dict.fromkeys((data, method) for data, method, _ in scored)
    rows = []
    for group in [*groups, None]:
        cells = list(group or ("all", "all"))
        for loss in LOSSES:
            for score in CORRELATED:
                pairs = [
                    (losses[fit][loss], fmean(scores[score]))
                    for (data, method, fit), scores in scored.items()
                    if group in (None, (data, method)) and loss in losses[fit] and score in scores
                ]
                cells.append(_correlation([x for x, _ in pairs], [y for _, y in pairs]))
        if any(cell != "-" for cell in cells[2:]) or group is None:
            rows.append(cells)
    return head, rows


def _correlation(x: Sequence[float], y: Sequence[float]) -> str:
    if not x:
        return "-"
    if len(x) < 3:
        return f"n = {len(x)}: no correlation"  # two pairs always rise or fall together
    found = rank_correlation(x, y)
    if found.rho is None:
        return f"n = {found.n}: no correlation"
    if found.ends is None:
        return f"{found.rho:+.2f}, n = {found.n}: no interval"
    return f"{found.rho:+.2f} [{found.ends[0]:+.2f}, {found.ends[1]:+.2f}], n = {found.n}"
