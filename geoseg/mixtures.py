"""What classifiers learnt from mixtures of real and generated pictures: shares, controls, gaps and differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from geoseg.losses import TRAIN, TRAIN_ACCURACY, VAL, VAL_ACCURACY, Curve
from geoseg.metrics.statistics import interval, student_interval
from geoseg.summary import Member, grouped, is_mixture, learnt_from, told_apart, unit_means

ACCURACY = "accuracy/image"

SCORED = {"accuracy/image": "accuracy ↑", "f1/mean": "macro F1 ↑"}
LOST = {"cross_entropy": "cross-entropy ↓", "calibration/error": "calibration error ↓"}
"""Scores of the table; those that are better when they are higher, and the others."""


class Share(NamedTuple):
    """What a training set was mixed of.

    Attributes:
        data: what the data set is called.
        total: pictures asked for; None: all there are.
        real: share of real ones, 0 to 1.
        rest: what the others are, "generated", "nothing" or "noised"; "" where there are none.
        noise: of noised ones, else 0.
        seen: whether the real ones are those that the generator has learnt from.
        folder: of generated pictures, where runs have learnt from several; else "".
        setting: how else the trainings were set, where they differ, such as "epochs=20"; else "".
    """

    data: str
    total: int | None
    real: float
    rest: str
    noise: float
    seen: bool
    folder: str = ""
    setting: str = ""

    @property
    def name(self) -> str:
        """As people write it, such as 8:2.

        >>> Share("scenes", 400, 0.8, "generated", 0, False).name
        '8:2'
        """
        ratio = f"{10 * self.real:.4g}:{10 - 10 * self.real:.4g}"
        if self.seen:
            ratio = "what the generator saw"
        elif self.rest == "nothing":
            ratio += ", real part alone"
        elif self.rest == "noised":
            ratio += f", {self.copies}"
        return ", ".join(part for part in (ratio, self.folder, self.setting) if part)

    @property
    def copies(self) -> str:
        """What noised copies are called, such as noised copies (0.1); without noise they are plain ones."""
        return f"noised copies ({self.noise:g})" if self.noise else "plain copies"


class Mixed(NamedTuple):
    """Runs that learnt from one share.

    Attributes:
        share: what of.
        runs: one per seed.
        curves: what the training of each logged, see ``geoseg.losses.read_curves``; empty where nothing is left of it.
    """

    share: Share
    runs: list[Member]
    curves: list[Mapping[str, Curve]]


def mixtures(
    records: Sequence[Mapping[str, Any]], curves: Mapping[str, Mapping[str, Curve]] | None = None
) -> list[Mixed]:
    """Finished runs on mixtures by what they learnt from: generated pictures first, most real ones first.

    Runs whose data or trainings were set differently are kept apart. The same training set under two names (all real,
    whatever was to stand beside) counts once per seed.

    Args:
        records: finished or not; those whose data is no mixture are left out.
        curves: fit id to what was logged.

    Raises:
        ValueError: none is left.
    """
    members = [
        (row.data, member) for row, group in grouped(records).items() for member in group if is_mixture(_source(member))
    ]
    if not members:
        raise ValueError("no finished run has learnt from a mixture; runs of experiment=synthetic_data do")
    shares = [_share(data, member) for data, member in members]
    settings = told_apart([member.record for _, member in members], "method", lambda record: ("",), beside=shares)
    totals, folders = {share.total for share in shares} - {None}, {share.folder for share in shares} - {""}
    found: dict[Share, Mixed] = {}
    for (_, member), share, setting in zip(members, shares, settings, strict=True):
        told = [f"total={share.total}"] if len(totals) > 1 and share.total is not None else []
        told += [setting.removeprefix(" (").removesuffix(")")] if setting else []
        share = share._replace(folder=share.folder if len(folders) > 1 else "", setting=", ".join(told))
        mixed = found.setdefault(share, Mixed(share, [], []))
        if all(_training_set(member) != _training_set(run) for run in mixed.runs):
            mixed.runs.append(member)
            mixed.curves.append((curves or {}).get(member.record["fit_id"], {}))
    order = {"": 0, "generated": 0, "nothing": 1, "noised": 2}

    def place(one: Mixed) -> tuple[Any, ...]:
        share = one.share
        noise = share.noise or float("inf")  # plain copies last
        return share.data, share.setting, share.seen, order[share.rest], share.folder, noise, -share.real

    return sorted(found.values(), key=place)


def _source(member: Member) -> Mapping[str, Any]:
    source: Mapping[str, Any] = member.record["config"]["data"]["source"]
    return source


def _share(data: str, member: Member) -> Share:
    source = learnt_from(_source(member))
    rest, noise, folder = source.get("rest", ""), source.get("noise", 0.0), source.get("synthetic", "")
    return Share(data, source["total"], source["real"], rest, noise, source["seen"], folder)


def _training_set(member: Member) -> tuple[Any, ...]:
    return member.record["seed"], member.record["data"]["fingerprint"]


NOTE = (
    "Means over seeds with Student's 95 % interval over them. Gap: accuracy on the training pictures in the last "
    "epoch, as they were met, minus that on the validation pictures after it. Differences are in accuracy, picture by "
    "picture over the seeds that both have: first a bootstrap interval over test pictures, widened so that those of "
    "one column hold together with 95 % (Bonferroni), then Student's over seeds, likewise. 10:0 is all real at the "
    "same number; noised copies are of the same real part, to the same number, with the least noise that was run."
)
"""What the numbers of ``mixture_cells`` are."""


def mixture_cells(found: Sequence[Mixed]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of mixtures, every cell as text."""
    head = ["data", "real : generated", "trained on", "seeds", *SCORED.values(), *LOST.values(), "gap ↓"]
    head += ["− 10:0 ↑", "− its real part alone ↑", "− noised copies ↑"]
    against = [
        (
            _other(found, one, "") if one.share.rest or one.share.seen else None,
            _other(found, one, "nothing") if one.share.rest in ("generated", "noised") else None,
            _other(found, one, "noised") if one.share.rest == "generated" else None,
        )
        for one in found
    ]
    columns = list(zip(*against, strict=True))
    compared = [max(1, sum(other is not None for other in column)) for column in columns]
    rows = []
    for one, others in zip(found, against, strict=True):
        cells = [one.share.data, one.share.name, f"{one.runs[0].record['num_train']} images", str(len(one.runs))]
        cells += [_mean([run.scores.get(f"test/{score}") for run in one.runs]) for score in (*SCORED, *LOST)]
        cells.append(_mean(gaps(one)))
        for other, count in zip(others, compared, strict=True):
            cells.append("" if other is None else _difference(one.runs, other.runs, 1 - 0.05 / count))
        rows.append(cells)
    return head, rows


def _other(found: Sequence[Mixed], one: Mixed, rest: str) -> Mixed | None:
    """What a mixture is compared with: all real at its number, or else its own real part; the first there is."""

    def fits(share: Share) -> bool:
        same = (share.data, share.setting) == (one.share.data, one.share.setting) or one.share.seen
        of_part = rest == "" or (share.total, share.real) == (one.share.total, one.share.real)
        return share.rest == rest and not share.seen and share.data == one.share.data and same and of_part

    return next((other for other in found if fits(other.share)), None)


def gaps(mixed: Mixed) -> list[float | None]:
    """Accuracy in training minus that in validation at the end, of every run; None where it is not known."""
    found: list[float | None] = []
    for run, logged in zip(mixed.runs, mixed.curves, strict=True):
        epochs = by_epoch(run.record, logged)
        both = [epochs[name].values[-1] for name in (TRAIN_ACCURACY, VAL_ACCURACY) if name in epochs]
        found.append(float(both[0] - both[1]) if len(both) == 2 else None)
    return found


def by_epoch(record: Mapping[str, Any], logged: Mapping[str, Curve]) -> dict[str, Curve]:
    """Losses and accuracies over epochs, counted from 1: of training the mean of an epoch, of validation as it was."""
    fit = record["config"]["method"]["task"]["fit"]
    steps = max(1, -(-record["num_train"] // fit["batch_size"]) * fit["repeats"] // fit["accumulate"])
    found = {}
    for name, curve in logged.items():
        if name in (TRAIN, TRAIN_ACCURACY):
            epochs = curve.steps // steps
            there = np.unique(epochs)
            found[name] = Curve(there + 1, np.array([curve.values[epochs == epoch].mean() for epoch in there]))
        elif name in (VAL, VAL_ACCURACY):
            found[name] = Curve((curve.steps + 1) / steps, curve.values)
    return found


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    ends = student_interval(known)
    return f"{fmean(known):.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def _difference(runs: Sequence[Member], others: Sequence[Member], confidence: float) -> str:
    """Picture by picture and seed by seed, over what both have."""
    by_seed = [{run.record["seed"]: run for run in side} for side in (runs, others)]
    seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
    means = [unit_means([side[seed] for seed in seeds], ACCURACY) for side in by_seed]
    shared = sorted(means[0].keys() & means[1].keys())
    if not shared:
        return "-"
    differences = [means[0][unit] - means[1][unit] for unit in shared]
    mine, theirs = (
        [value for seed in seeds if (value := side[seed].scores.get(f"test/{ACCURACY}")) is not None]
        for side in by_seed
    )
    over_units = interval(differences, confidence)
    over_seeds = student_interval([a - b for a, b in zip(mine, theirs, strict=True)], confidence)
    told = [f"[{ends[0]:+.3f}, {ends[1]:+.3f}]" if ends else "no interval" for ends in (over_units, over_seeds)]
    return f"{fmean(differences):+.3f} {told[0]} pictures, {told[1]} {len(seeds)} seed{'s' * (len(seeds) != 1)}"
