"""Charts over many runs, each as PNG and PDF, drawn without a display and told apart without colour vision."""

from __future__ import annotations

import os
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    LogFormatterSciNotation,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from geoseg.ablation import IMAGES, LOSSES, SCORES, Ablation, is_number, shown, titles_of
from geoseg.losses import TRAIN, TRAIN_ACCURACY, VAL, VAL_ACCURACY, Curve, smoothed
from geoseg.metrics.statistics import FEWEST_UNITS, student_interval
from geoseg.mixtures import Mixed, by_epoch, gaps
from geoseg.summary import Member, grouped

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C510A")
"""Okabe and Ito (2008), told apart by colour-blind readers, without the yellow that white paper swallows."""

MARKERS = "osD^vPX*<>"
DASHES = ("-", "--", ":", "-.")
APART = 8
"""Numbers whose largest is so many times the smallest stand on a logarithmic axis."""

MOST_LINES = 24
"""Beyond so many lines a chart over a setting shows the last stage of each alone."""

MOST_VALIDATED = 12
"""Beyond so many trainings in one panel, their validation losses are lines without points."""


class Cost(NamedTuple):
    """What one method costs and reaches on one data set, a number per run of each.

    Attributes:
        data: what the data set is called.
        method: its name.
        amount: of what it costs, such as minutes of training and prediction.
        score: matched mean IoU, in [0, 1].
    """

    data: str
    method: str
    amount: list[float]
    score: list[float]


MEASURES = {
    "minutes": "minutes of training and prediction",
    "trainable_parameters": "trainable parameters",
    "ms_per_image": "milliseconds per image at prediction",
}
"""What a method costs, by the name that a record has for it."""


def costs(records: Sequence[Mapping[str, Any]], measure: str = "minutes") -> list[Cost]:
    """Costs and scores of finished, tested runs by data set and method; a shared training counts in each run.

    Args:
        records: those that do not know the cost, or have none of it, are left out.
        measure: one of ``MEASURES``.
    """
    found: dict[tuple[str, str], Cost] = {}
    for run in {record["run_id"]: record for record in records}.values():
        score = run.get("scores", {}).get("test/matched/iou/mean")
        if run["status"] != "done" or score is None:
            continue
        minutes = run["minutes"]["fit"] + run["minutes"]["predict"]
        amount = minutes if measure == "minutes" else run.get("costs", {}).get(measure)
        if amount:
            pair = run["data"]["name"], run["method"]
            cost = found.setdefault(pair, Cost(*pair, [], []))
            cost.amount.append(amount)
            cost.score.append(score)
    return list(found.values())


def draw_losses(trainings: Mapping[str, Sequence[Mapping[str, Curve]]], stem: Path) -> list[Path]:
    """Losses and learning rates of all trainings, a row per method.

    Args:
        trainings: method to what each of its trainings logged, see ``geoseg.losses.read_curves``.
        stem: path of the files without suffix.

    Returns:
        The PNG and the PDF.
    """
    figure = Figure(figsize=(9.5, 2.6 * len(trainings) + 0.3), layout="constrained")
    rows = figure.subplots(len(trainings), 2, squeeze=False)
    for (method, logged), (loss_axis, rate_axis) in zip(trainings.items(), rows, strict=True):
        many = len(logged)
        fine = max(0.15, min(1.0, 6 / many))
        seen = []
        for curves in logged:
            if TRAIN in curves:
                smooth = smoothed(curves[TRAIN], max(1, len(curves[TRAIN].values) // 20))
                loss_axis.plot(*smooth, color=COLOURS[0], lw=1.1, alpha=fine)
                seen.append(smooth.values)
            if VAL in curves:
                point = "o" if many <= MOST_VALIDATED else ""
                loss_axis.plot(*curves[VAL], marker=point, ms=3.5, lw=0.8, ls="--", color=COLOURS[1], alpha=fine)
                seen.append(curves[VAL].values)
        values = np.concatenate(seen) if seen else np.array([1.0])
        if values.min() > 0 and values.max() / values.min() >= 20:  # a loss that falls far shows its end on this alone
            _logarithmic(loss_axis)
        names = sorted({name for curves in logged for name in curves if name.startswith("lr/")})
        for name, colour, dash in zip(names, COLOURS * len(names), DASHES * len(names), strict=False):
            for curves in logged:
                if name in curves:
                    rate_axis.plot(*curves[name], color=colour, ls=dash, lw=1.3, alpha=fine)
        rates = [rate for curves in logged for name in names if name in curves for rate in curves[name].values]
        if rates and max(rates) > 0:
            rate_axis.set_yscale("log", nonpositive="mask")  # a schedule may begin or end at 0
            top = max(rates)
            bottom = max(min(rate for rate in rates if rate > 0), top / 1e4)  # where a schedule ends matters to nobody
            rate_axis.set_ylim(bottom / 3, top * 3)
        title = textwrap.fill(f"{method}: {many} training{'s' * (many != 1)}", 60)
        loss_axis.set_title(title, fontsize=9, loc="left", parse_math=False)
        loss_axis.set(xlabel="step", ylabel="loss")
        rate_axis.set(xlabel="step", ylabel="learning rate")
        keys = [
            Line2D([], [], color=COLOURS[0], label="training, mean of\na 20th of the steps"),
            Line2D([], [], color=COLOURS[1], ls="--", marker="o", ms=3.5, label="validation"),
        ]
        keys = [key for key, name in zip(keys, (TRAIN, VAL), strict=True) if any(name in curves for curves in logged)]
        _beside(loss_axis, keys)
        _beside(
            rate_axis,
            [
                Line2D([], [], color=colour, ls=dash, label=name.removeprefix("lr/"))
                for name, colour, dash in zip(names, COLOURS * len(names), DASHES * len(names), strict=False)
            ],
        )
        for axis in (loss_axis, rate_axis):
            _plain(axis)
    return _save(figure, stem)


def draw_ablation(ablation: Ablation, stem: Path) -> list[Path]:
    """Scores and losses over one setting: a line per method and stage through the means over seeds, single runs as
    points, Student's 95 % band where a point has three runs or more.

    Args:
        ablation: see ``geoseg.ablation.ablations``.
        stem: path of the files without suffix.

    Returns:
        The PNG and the PDF.
    """
    lines = ablation.lines
    last = {line.owner: line.stage for line in lines if set(line.points) & {*SCORES, *IMAGES}}
    fewer = len(lines) > MOST_LINES
    if fewer:
        lines = [line for line in lines if line.stage in ("", last.get(line.owner))]
    owners = list(dict.fromkeys(line.owner for line in lines))
    stages = list(dict.fromkeys(line.stage for line in lines if line.stage))
    titles = {name: title for name, title in titles_of(lines).items() if any(name in one.points for one in lines)}
    across = min(3, len(titles))
    numeric = all(map(is_number, ablation.values))
    where = {value: float(value) if numeric else float(i) for i, value in enumerate(ablation.values)}
    logarithmic = numeric and _far_apart(where.values())
    width = 3.5 * across
    figure, axes = _panels(len(titles), across, (width, 2.7))
    for axis, (name, title) in zip(axes, titles.items(), strict=False):
        if logarithmic:
            axis.set_xscale("log")
        for line in lines:
            points = {
                where[value]: line.points[name][value]
                for value in ablation.values
                if value in line.points.get(name, {})
            }
            if points:
                style = _style(line.owner, line.stage or last.get(line.owner, ""), owners, stages)
                _draw_line(axis, points, fill=min(0.15, 0.6 / len(lines)), **style)
        if name not in LOSSES:  # a band over three runs is wide, and would press the lines together
            _limit(axis, [v for line in lines for values in line.points.get(name, {}).values() for v in values])
        else:
            means = [fmean(v) for line in lines for v in line.points.get(name, {}).values()]
            if _far_apart(means):
                _logarithmic(axis)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(ablation.key, fontsize=8)
        _label_values(axis, [(where[value], shown(value)) for value in ablation.values], width / across - 0.9, numeric)
        _plain(axis)
    drawn = {(line.owner, line.stage) for line in lines}
    handles = [
        Line2D([], [], **_style(owner, stage, owners, stages), label=": ".join(part for part in (owner, stage) if part))
        for owner in owners
        for stage in ([stage for stage in stages if (owner, stage) in drawn] or [""])
    ]
    note = "lines: means over runs; points: single runs; band, cut off by the panel: Student's 95 % interval"
    if any(set(line.points) <= set(LOSSES) for line in lines):
        note += "; losses: one line per method, as its last stage"
    if fewer:
        note += "; last stage of each method alone"
    if ablation.without:
        note += f"; without this setting: {', '.join(ablation.without)}"
    if not ablation.alike:
        note += "; not all values were scored on the same profiles (data.num_test keeps them)"
    _below(figure, handles, note)
    figure.suptitle(f"{ablation.data} over {ablation.key}", fontsize=10, parse_math=False)
    return _save(figure, stem)


def draw_ablations(made: Sequence[Ablation], folder: Path, name: str) -> list[tuple[str, list[Path]]]:
    """Draws scores over one setting, a figure per data set: ``over_NAME``, or ``over_NAME_1`` and so on.

    Returns:
        Title and files of each.
    """
    stems = [folder / (f"over_{name}" + (f"_{i + 1}" if len(made) > 1 else "")) for i in range(len(made))]
    return [(f"{one.data} over {one.key}", draw_ablation(one, stem)) for one, stem in zip(made, stems, strict=True)]


BAND = 8
"""Panels of one band of curves; more are ordered into bands by kind."""


def draw_mixture_curves(found: Sequence[Mixed], stem: Path) -> list[Path]:
    """Loss above accuracy over epochs, a column per share of real pictures (Figures 2 to 4 of Khrulev).

    Where there are many, generated pictures, real parts alone and noised copies are below each other. Thin lines are
    single seeds, thick ones their mean.

    Args:
        found: see ``geoseg.mixtures.mixtures``; those without curves are left out.
        stem: path of the files without suffix.

    Returns:
        The PNG and the PDF; none where nothing was logged.
    """
    logged = [one for one in found if any(one.curves)]
    if not logged:
        return []
    several = len({one.share.data for one in logged}) > 1
    bands: dict[tuple[Any, ...], list[Mixed]] = {}
    for one in logged:  # all real: the end of the first band; few panels make one
        kind = (one.share.data, one.share.setting, one.share.folder, one.share.rest or "generated", one.share.noise)
        bands.setdefault(kind if len(logged) > BAND else (), []).append(one)
    across = max(map(len, bands.values()))
    figure = Figure(figsize=(1.5 * across + 0.6, 3.6 * len(bands) + 0.5), layout="constrained")
    rows = figure.subplots(2 * len(bands), across, squeeze=False)
    for axis in rows.flat:
        axis.set_visible(False)
    for band, mixed in enumerate(bands.values()):
        for column, one in enumerate(mixed):
            epochs = [by_epoch(run.record, curves) for run, curves in zip(one.runs, one.curves, strict=True)]
            for row, names in enumerate(((TRAIN, VAL), (TRAIN_ACCURACY, VAL_ACCURACY))):
                axis, first = rows[2 * band + row, column], rows[row, 0]
                axis.set_visible(True)
                if axis is not first:
                    axis.sharey(first)
                axis.tick_params(labelleft=column == 0, labelbottom=row == 1)
                for name, colour, dash in zip(names, COLOURS, DASHES, strict=False):
                    there = [curves[name] for curves in epochs if name in curves]
                    for curve in there:
                        axis.plot(*curve, color=colour, ls=dash, lw=0.5, alpha=0.35)
                    shortest = min((len(curve.values) for curve in there), default=0)
                    if shortest:
                        mean = np.mean([curve.values[:shortest] for curve in there], axis=0)
                        axis.plot(there[0].steps[:shortest], mean, color=colour, ls=dash, lw=1.6)
                _plain(axis)
                axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            above, below = rows[2 * band : 2 * band + 2, column]
            title = f"{one.share.name}, {one.share.data}" if several else one.share.name
            above.set_title(textwrap.fill(title, 18), fontsize=8.5, parse_math=False)
            below.set_xlabel("epoch", fontsize=8)
        rows[2 * band, 0].set_ylabel("loss", fontsize=8)
        rows[2 * band + 1, 0].set_ylabel("accuracy", fontsize=8)
    handles = [
        Line2D([], [], color=colour, ls=dash, label=name)
        for name, colour, dash in zip(("training", "validation"), COLOURS, DASHES, strict=False)
    ]
    _below(figure, handles, "real : generated; training: the mean of an epoch, as pictures were met in it")
    return _save(figure, stem)


def draw_mixture_shares(found: Sequence[Mixed], stem: Path) -> list[Path]:
    """Accuracy, and the gap between training and validation, over the share of real pictures.

    A line per kind of what stands beside them, through means over seeds; points are single runs, bands Student's 95 %.

    Args:
        found: see ``geoseg.mixtures.mixtures``.
        stem: path of the files without suffix.

    Returns:
        The PNG and the PDF.
    """
    kinds = {"": "real", "generated": "with generated ones", "nothing": "real part alone"}
    several = len({one.share.data for one in found}) > 1
    lines: dict[str, list[Mixed]] = {}
    for one in sorted((one for one in found if not one.share.seen), key=lambda one: one.share.rest == ""):
        kind = f"with {one.share.copies}" if one.share.rest == "noised" else kinds[one.share.rest]
        apart = [one.share.folder, one.share.setting, one.share.data if several else ""]
        name = ", ".join(part for part in (kind, *apart) if part)
        ends = [] if one.share.rest else [line for line in lines.values() if _one_setting(line[0], one)]
        for line in ends or [lines.setdefault(name, [])]:  # all real: the end of every line of its setting
            line.append(one)
    names = list(lines)
    figure, axes = _panels(2, 2, (8.0, 3.0))
    _draw_shares(axes[0], lines, lambda one: [run.scores.get("test/accuracy/image") for run in one.runs])
    _draw_shares(axes[1], lines, gaps)
    axes[0].set_title("accuracy on real test pictures ↑", fontsize=9)
    axes[1].set_title("gap: accuracy in training − in validation ↓", fontsize=9)
    handles = [Line2D([], [], **_style(name, "", names, []), label=name) for name in names]
    seen = [
        f"{one.share.name}: accuracy {fmean(values):.3f}"
        for one in found
        if one.share.seen
        and (values := [v for run in one.runs if (v := run.scores.get("test/accuracy/image")) is not None])
    ]
    note = "lines: means over seeds; points: single runs; band: Student's 95 % interval from three runs on"
    _below(figure, handles, "; ".join([note, *seen]))
    return _save(figure, stem)


def _one_setting(one: Mixed, other: Mixed) -> bool:
    return (one.share.data, one.share.setting) == (other.share.data, other.share.setting)


def _draw_shares(
    axis: Axes, lines: Mapping[str, Sequence[Mixed]], measured: Callable[[Mixed], Sequence[float | None]]
) -> None:
    for name, members in lines.items():
        points: dict[float, list[float]] = {}
        for one in sorted(members, key=lambda one: one.share.real):
            points.setdefault(one.share.real, []).extend(value for value in measured(one) if value is not None)
        points = {share: values for share, values in points.items() if values}
        if points:
            _draw_line(axis, points, **_style(name, "", list(lines), []))
    axis.set_xlabel("share of real pictures", fontsize=8)
    _plain(axis)


def draw_costs(found: Sequence[Cost], stem: Path, measure: str = "minutes") -> list[Path]:
    """What a method takes against what it reaches: a point per method, bars of one standard deviation over its runs.

    Args:
        found: see ``costs``; a panel per data set.
        stem: path of the files without suffix.
        measure: one of ``MEASURES``, what the costs are.

    Returns:
        The PNG and the PDF.
    """
    data_sets = list(dict.fromkeys(cost.data for cost in found))
    methods = list(dict.fromkeys(cost.method for cost in found))
    across = min(2, len(data_sets))
    width = 4.6 * across
    figure, axes = _panels(len(data_sets), across, (width, 3.1))
    for axis, data in zip(axes, data_sets, strict=False):
        here = [cost for cost in found if cost.data == data]
        means = [fmean(cost.amount) for cost in here]
        for cost, mean in zip(here, means, strict=True):
            spread = [stdev(values) if len(values) > 1 else 0.0 for values in (cost.amount, cost.score)]
            if _far_apart(means):
                spread[0] = min(spread[0], 0.9 * mean)  # a bar that reaches 0 has no end on this axis
            style = _style(cost.method, "", methods, []) | {"ls": ""}
            axis.errorbar(mean, fmean(cost.score), xerr=spread[0], yerr=spread[1], **style, capsize=2.5, elinewidth=1)
        if _far_apart(means):
            axis.set_xscale("log")
        axis.set_title(textwrap.fill(data, 50), fontsize=9, parse_math=False)
        axis.set(xlabel=MEASURES[measure], ylabel="matched mean IoU ↑")
        _plain(axis)
    handles = []
    for method in methods:
        # the same runs may stand in several panels
        apart = {(*cost.amount, *cost.score): len(cost.score) for cost in found if cost.method == method}
        runs = sum(apart.values())
        label = f"{method}, {runs} run{'s' * (runs != 1)}"
        handles.append(Line2D([], [], **_style(method, "", methods, []) | {"ls": ""}, label=label))
    _below(figure, handles, "points: means over runs; bars: standard deviation")
    return _save(figure, stem)


class Spread(NamedTuple):
    """Per-image scores of one method on one data set.

    Attributes:
        data: what the data set is called.
        method: its name, with what it was given where that tells it from another.
        scores: image to its mean IoU, in [0, 1]; the mean over the runs that tested it.
        distances: image to its distance from the training data; images without one are left out.
    """

    data: str
    method: str
    scores: dict[str, float]
    distances: dict[str, float]


def spreads(records: Sequence[Mapping[str, Any]], origin: float | None = None) -> list[Spread]:
    """Mean IoU of every image, method by method, those of the last stage; classes as the method named them.

    Args:
        records: finished or not.
        origin: see ``distance``.
    """
    last: dict[tuple[str, str, str], list[Member]] = {}
    for row, members in grouped(records).items():
        last[row.data, row.method, row.given] = members  # stages come in order
    found = []
    for (data, method, given), members in last.items():
        scores: dict[str, list[float]] = {}
        far: dict[str, float] = {}
        for member in members:
            if (values := member.per_unit.get("test/iou/mean")) is None:  # of whole images
                continue
            for name, value in zip(member.record["units"]["names"], values, strict=True):
                if value is not None:
                    scores.setdefault(name, []).append(value)
                    away = distance(name, member.record["data"]["train"], origin)
                    if away is not None:
                        far[name] = away
        several = sum(pair[:2] == (data, method) for pair in last) > 1
        found.append(Spread(data, f"{method}, {given}" if several else method, _means(scores), far))
    return [one for one in found if one.scores]


def distance(name: str, train: Sequence[str], origin: float | None = None) -> float | None:
    """How far a sample lies from the training data, by the last number in its name, such as 199 in test2_199.

    Args:
        name: the sample's.
        train: names of training samples; those count whose name is the same but for that number.
        origin: the number at which the training data ends; None takes the nearest training sample.

    Returns:
        The difference of the numbers, or None where there is none.

    >>> distance("inline_120", ["inline_100", "inline_110", "crossline_119"])
    10.0
    >>> distance("test1_99", ["train_3"]) is None
    True
    >>> distance("test1_99", [], origin=200)
    101.0
    """
    words, number = _numbered(name)
    if number is None:
        return None
    others = [found for one in train for rest, found in [_numbered(one)] if rest == words and found is not None]
    ends = others if origin is None else [origin]
    return min((abs(number - end) for end in ends), default=None)


def _numbered(name: str) -> tuple[str, float | None]:
    """A name without its last number, and that number."""
    found = re.fullmatch(r"(.*?)(\d+)(\D*)", name, re.DOTALL)
    return (f"{found[1]}#{found[3]}", float(found[2])) if found else (name, None)


def _means(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: fmean(values) for name, values in scores.items()}


def draw_spreads(found: Sequence[Spread], stem: Path) -> list[Path]:
    """How the images of a test set differ: every image's mean IoU as a point, a box from five images on.

    Boxes go from the lower to the upper quartile with a line at the median, whiskers to the outermost image within 1.5
    times the box.

    Args:
        found: see ``spreads``; a panel per data set.
        stem: path of the files without suffix.

    Returns:
        The PNG and the PDF.
    """
    data_sets = list(dict.fromkeys(one.data for one in found))
    most = max(sum(one.data == data for one in found) for data in data_sets)
    longest = max(len(line) for one in found for line in _broken(one.method))
    figure, axes = _panels(len(data_sets), 1, (4.2 + 0.075 * longest, 1.0 + 0.42 * most))
    for axis, data in zip(axes, data_sets, strict=True):
        here = [one for one in found if one.data == data]
        for place, one in enumerate(here):
            values = list(one.scores.values())
            colour = COLOURS[place % len(COLOURS)]
            if len(values) >= FEWEST_UNITS:
                look = {"color": colour, "lw": 1.1}
                parts: dict[str, Any] = {f"{part}props": look for part in ("box", "whisker", "cap", "median")}
                where: dict[str, Any] = {"positions": [place], "widths": 0.62, "orientation": "horizontal"}
                axis.boxplot(values, showfliers=False, **where, **parts)
            # side by side where many are alike, in an order that is always the same
            beside = place + 0.22 * (2 * (np.arange(len(values)) * 0.618034 % 1) - 1)
            axis.plot(values, beside, "o", color=colour, ms=3, alpha=0.55, mew=0)
        count = max(len(one.scores) for one in here)
        axis.set_yticks(range(len(here)), ["\n".join(_broken(one.method)) for one in here])
        for label in axis.get_yticklabels():
            label.set_parse_math(False)
        axis.set(xlabel="mean IoU of an image ↑", ylim=(len(here) - 0.4, -0.6))
        title = f"{data}: {count} image{'s' * (count != 1)}"
        axis.set_title(textwrap.fill(title, 50), fontsize=9, parse_math=False)
        _plain(axis)
    return _save(figure, stem)


def _broken(name: str) -> list[str]:
    return textwrap.wrap(name, 32) or [""]


def draw_distances(found: Sequence[Spread], stem: Path) -> list[Path]:
    """Mean IoU of every image against its distance from the training data, and a line through the means.

    Args:
        found: see ``spreads``; a panel per data set that has distances.
        stem: path of the files without suffix.

    Returns:
        The PNG and the PDF.

    Raises:
        ValueError: no image has a distance.
    """
    placed = [one for one in found if one.distances]
    if not placed:
        raise ValueError(
            "--distance: no profile has a distance from the training data, since no training profile has its name but "
            "for the last number; --distance NUMBER takes that number as the end of the training data"
        )
    data_sets = list(dict.fromkeys(one.data for one in placed))
    methods = list(dict.fromkeys(one.method for one in placed))
    across = min(2, len(data_sets))
    figure, axes = _panels(len(data_sets), across, (4.6 * across, 3.1))
    for axis, data in zip(axes, data_sets, strict=False):
        for one in placed:
            if one.data != data:
                continue
            style = _style(one.method, "", methods, [])
            at: dict[float, list[float]] = {}
            for name, away in one.distances.items():
                at.setdefault(away, []).append(one.scores[name])
            x = sorted(at)
            axis.plot(x, [fmean(at[away]) for away in x], color=style["color"], lw=1.3)
            points = [(away, score) for away in x for score in at[away]]
            axis.plot(*zip(*points, strict=True), color=style["color"], marker=style["marker"], ls="", ms=4, alpha=0.6)
        axis.set_title(textwrap.fill(data, 50), fontsize=9, parse_math=False)
        axis.set(xlabel="distance from the training data (difference of numbers)", ylabel="mean IoU of an image ↑")
        _plain(axis)
    handles = [Line2D([], [], **_style(method, "", methods, []), label=method) for method in methods]
    _below(figure, handles, "points: images, each the mean over runs; lines: means of images at one distance")
    return _save(figure, stem)


def _far_apart(values: Any) -> bool:
    return min(values, default=0) > 0 and max(values) >= APART * min(values)


def _style(owner: str, stage: str, owners: Sequence[str], stages: Sequence[str]) -> dict[str, Any]:
    """Colour by method, marker and dashes by stage; where colours begin anew, the markers are others, and hollow."""
    round_, colour = divmod(owners.index(owner), len(COLOURS))
    at = stages.index(stage) + 1 if stage else 0
    marker = MARKERS[(at + round_ * 4 + (0 if stages else colour)) % len(MARKERS)]
    dash = DASHES[(len(stages) - at) % len(DASHES)] if stage else "-"  # the last stage is the answer, drawn through
    fill = "white" if round_ % 2 else COLOURS[colour]
    return {"color": COLOURS[colour], "marker": marker, "mfc": fill, "ls": dash, "ms": 5, "lw": 1.4}


def _limit(axis: Axes, values: Sequence[float]) -> None:
    """Gives an axis the range of what was measured."""
    if values:
        room = 0.06 * (max(values) - min(values)) or 0.01
        axis.set_ylim(min(values) - room, max(values) + room)


def _draw_line(axis: Axes, points: Mapping[float, Sequence[float]], fill: float = 0.15, **style: Any) -> None:
    x = sorted(points)
    axis.plot(x, [fmean(points[place]) for place in x], **style, zorder=3)
    for place in x:
        if len(points[place]) > 1:
            alone = {"color": style["color"], "marker": style["marker"], "ls": "", "ms": 2.5, "alpha": 0.45, "mew": 0}
            axis.plot([place] * len(points[place]), points[place], **alone)
    ends = [student_interval(points[place]) or (np.nan, np.nan) for place in x]
    low, high = zip(*ends, strict=True)
    axis.fill_between(x, low, high, color=style["color"], alpha=fill, lw=0)
    for i, end in enumerate(ends):
        if not np.isnan(end[0]) and _is_alone(ends, i):  # a band needs two neighbours
            axis.plot([x[i]] * 2, end, color=style["color"], alpha=0.4, lw=2, zorder=1)


def _is_alone(ends: Sequence[tuple[float, float]], i: int) -> bool:
    return all(not 0 <= j < len(ends) or np.isnan(ends[j][0]) for j in (i - 1, i + 1))


def _label_values(axis: Axes, places: Sequence[tuple[float, str]], inches: float, numeric: bool) -> None:
    """Ticks at the setting's own values, those left out whose labels would run into a neighbour's."""
    logarithmic = axis.get_xscale() == "log"
    at = np.array([place for place, _ in places])
    along = np.log(at) if logarithmic else at
    along = (along - along.min()) / max(np.ptp(along), 1e-12) * inches * 0.9
    texts = [textwrap.shorten(text, 22, placeholder="…") if " " in text else text[:22] for _, text in places]
    slanted = not numeric and max(map(len, texts)) * 0.065 > inches / len(places)
    kept: list[int] = []
    for i in range(len(places)):
        room = 0.16 if slanted else 0.065 * (len(texts[i]) + len(texts[kept[-1]])) / 2 + 0.06 if kept else 0
        if not kept or along[i] - along[kept[-1]] >= room:
            kept.append(i)
    axis.xaxis.set_major_locator(FixedLocator([float(at[i]) for i in kept]))
    axis.xaxis.set_major_formatter(FixedFormatter([texts[i] for i in kept]))
    axis.xaxis.set_minor_locator(NullLocator())
    if slanted:
        for label in axis.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")
    for label in axis.get_xticklabels():
        label.set_parse_math(False)


def _logarithmic(axis: Axes) -> None:
    """A logarithmic y axis with few labels, also where it spans less than a power of ten."""
    axis.set_yscale("log")
    axis.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(2, 0.5)))
    axis.tick_params(axis="y", which="minor", labelsize=6)


def _plain(axis: Axes) -> None:
    axis.grid(color="0.9", lw=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.xaxis.label.set_fontsize(8)
    axis.yaxis.label.set_fontsize(8)
    if axis.get_xscale() == "log":
        axis.xaxis.set_minor_formatter(NullFormatter())


def _beside(axis: Axes, handles: Sequence[Line2D]) -> None:
    """A legend right of its panel, where no line is."""
    if handles:
        axis.legend(handles=handles, fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))


def _panels(count: int, across: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels; ``size`` is the width of all and the height of a row, in inches."""
    down = -(-count // across)
    figure = Figure(figsize=(size[0], size[1] * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).ravel())
    for axis in axes[count:]:
        figure.delaxes(axis)
    return figure, axes[:count]


def _below(figure: Figure, handles: Sequence[Line2D], note: str) -> None:
    """A legend and a note below all panels, for which the figure grows."""
    width, height = figure.get_size_inches()
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = min(len(handles), max(1, int(width / (0.072 * longest + 0.6))))
    told = textwrap.wrap(note, int(17 * width))
    options = {"fontsize": 7.5, "title": "\n".join(told), "title_fontsize": 7, "frameon": False, "handlelength": 3}
    legend = figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, **options)
    for text in [*legend.get_texts(), legend.get_title()]:
        text.set_parse_math(False)  # names may hold $
    figure.set_size_inches(width, height + 0.16 * -(-len(handles) // columns) + 0.14 * len(told) + 0.2)


def _save(figure: Figure, stem: Path) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    made = []
    for suffix in ("png", "pdf"):
        path = stem.with_name(f"{stem.name}.{suffix}")
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        # without a date the same runs give the same file
        facts = {"CreationDate": None} if suffix == "pdf" else {"Software": None}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Glyph .* missing from")  # such a name is shown as boxes
                figure.savefig(part, format=suffix, dpi=140, metadata=facts)
            part.replace(path)
            figure.set_layout_engine("none")  # the places found for the first file serve the second
        finally:
            part.unlink(missing_ok=True)
        made.append(path)
    return made
