"""Figures that people want to look at, drawn without a display."""

from __future__ import annotations

import json
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from geoseg.metrics.intensity import LUMA, dice_loss, grey
from geoseg.metrics.score import confusion, iou, pixel_accuracy
from geoseg.palette import Palette
from geoseg.tasks.evaluation import READING
from geoseg.types import IGNORE, ignored


def draw_stages(pictures: Sequence[Mapping[str, Any]], classes: Mapping[str, str], path: Path, note: str = "") -> Path:
    """One row per profile: the original, every stage in order, and the label (Figure 8 of Zhao and Ma 2025).

    Args:
        pictures: dicts with ``name``, ``original`` [C, H, W], ``stages`` (name to [3, H, W]) and ``label`` [3, H, W],
            all in [0, 1].
        classes: name to colour "#RRGGBB".
        path: a .png to write.
        note: a line under the figure that says what the numbers stand on.
    """
    columns = ["original", *pictures[0]["stages"], "label"]
    height, width = pictures[0]["label"].shape[-2:]
    cell = 1.9 if height >= width else 3.2
    figure = Figure(figsize=(cell * len(columns), cell * height / width * len(pictures) + 0.7), layout="constrained")
    axes = figure.subplots(len(pictures), len(columns), squeeze=False)
    for row, picture in zip(axes, pictures, strict=True):
        shown = [picture["original"], *picture["stages"].values(), picture["label"]]
        for axis, image in zip(row, shown, strict=True):
            _show(axis, image)
        row[0].set_ylabel(picture["name"], fontsize=8, parse_math=False)  # a file's name may hold $
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=10)
    patches = [Patch(facecolor=colour, edgecolor="0.4", label=name) for name, colour in classes.items()]
    that_fit = max(1, int(figure.get_figwidth() / 1.5))
    options = {
        "ncols": min(len(patches), that_fit),
        "fontsize": 7,
        "title": note,
        "title_fontsize": 7,
        "frameon": False,
    }
    for text in figure.legend(handles=patches, loc="outside lower center", **options).get_texts():
        text.set_parse_math(False)
    return _write(figure, path)


def draw_dice(
    pictures: Sequence[Mapping[str, Any]], path: Path, note: str = "", squared: bool = False, colour: bool = False
) -> Path:
    """One row per profile: the three pairs whose Dice loss is taken, as it sees them (Figures 9 to 11 of Zhao and Ma).

    A line above says what its grey means: the brightness of colours, never a class.

    Args:
        pictures: as for ``draw_stages``; the last picture that was drawn is the generated one.
        path: a .png to write.
        note: a line above the figure that says what the numbers stand on.
        squared: form of the loss, see ``geoseg.metrics.intensity.dice_loss``.
        colour: whether it compares colours or grey values.
    """
    height, width = pictures[0]["label"].shape[-2:]
    cell = 3.6 if height >= width else 5.0
    figure = Figure(figsize=(3 * cell, (cell * height / width / 2 + 0.35) * len(pictures) + 0.6), layout="constrained")
    axes = figure.subplots(len(pictures), 3, squeeze=False)
    for row, picture in zip(axes, pictures, strict=True):
        drawn = [image for stage, image in picture["stages"].items() if stage != READING]
        shown = {"original": picture["original"], "label": picture["label"], "generated": drawn[-1]}
        seen = {name: image.float().expand(3, -1, -1) for name, image in shown.items()}
        if not colour:
            seen = {name: grey(image[None])[0] for name, image in seen.items()}
        for axis, (a, b) in zip(row, combinations(seen, 2), strict=True):
            loss = float(dice_loss(seen[a][None], seen[b][None], squared=squared, colour=colour))
            _show(axis, torch.cat([seen[a], seen[b]], 2))
            axis.set_title(f"{a} | {b}: loss {loss:.3f}, similarity {1 - loss:.3f}", fontsize=8)
        row[0].set_ylabel(picture["name"], fontsize=8)
    stage = [name for name in pictures[0]["stages"] if name != READING][-1]
    form = f"generated: {stage}; {'squared' if squared else 'linear'} Dice on {'colours' if colour else 'grey values'}"
    weights = " + ".join(f"{weight:g} {name}" for weight, name in zip(LUMA, ("red", "green", "blue"), strict=True))
    meaning = f"Grey is the brightness of a colour, {weights}: all that the loss sees; it is no class"
    lines = [", ".join(part for part in (form, note) if part)] + [meaning] * (not colour)
    figure.suptitle("\n".join(lines), fontsize=8)
    return _write(figure, path)


WRONG = (0.42, 0.1, 0.6)
"""Colour of wrong pixels in maps of errors: a violet that is none of the standard colours of classes."""


def draw_results(rows: Sequence[Mapping[str, Any]], palette: Palette, class_names: Sequence[str], path: Path) -> Path:
    """Two lines per profile: image, label and every method's label map; below each map, where it is wrong.

    Over a map of errors stand its mean IoU and the share of wrong pixels, both of that profile alone.

    Args:
        rows: dicts with ``name``, ``image`` [C, H, W] in [0, 1], ``target`` int64 [H, W] (255 = ignore) and ``found``,
            method to its label map int64 [H, W]; a method without one is left white.
        palette: colours of the classes.
        class_names: K names.
        path: a .png to write.
    """
    methods = list(dict.fromkeys(method for row in rows for method in row["found"]))
    shapes = [row["target"].shape for row in rows]
    cell = 1.9 if all(height >= width for height, width in shapes) else 2.6
    heights = [max(0.45, cell * height / width) + 0.18 for height, width in shapes for _ in (0, 1)]
    lines = max(len(textwrap.wrap(method, 20)) for method in methods)
    size = (cell * (2 + len(methods)), sum(heights) + 0.17 * lines + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(2 * len(rows), 2 + len(methods), squeeze=False, height_ratios=heights)
    for axis in axes.ravel():
        axis.set_axis_off()
    for i, row in enumerate(rows):
        above, below = axes[2 * i], axes[2 * i + 1]
        target, ignored = row["target"], row["target"] == IGNORE
        _show(above[0], row["image"])
        _show(above[1], palette.paint(target[None])[0])
        above[0].text(-0.04, 0.5, row["name"], rotation=90, ha="right", va="center", fontsize=8, parse_math=False)
        above[0].texts[-1].set_transform(above[0].transAxes)
        pale = 0.45 + 0.55 * grey(row["image"][None])[0].expand(3, -1, -1)
        for column, method in enumerate(methods, start=2):
            if method not in row["found"]:
                continue
            labels = row["found"][method]
            _show(above[column], palette.paint(labels[None])[0])
            wrong = (labels != target) & ~ignored
            picture = torch.where(wrong, torch.tensor(WRONG).view(3, 1, 1), pale)
            _show(below[column], picture.masked_fill(ignored, 0.5))
            counts = confusion(labels[None], target[None], palette.num_classes)[0]
            share = 1 - float(pixel_accuracy(counts))
            told = f"mIoU {float(iou(counts).nanmean()):.3f}, {share:.0%} wrong"
            below[column].set_title(told, fontsize=7.5, pad=2)
    for axis, title in zip(axes[0], ["image", "label", *methods], strict=True):
        axis.set_title(textwrap.fill(title, 20), fontsize=9, parse_math=False)
    patches = [Patch(facecolor=c, edgecolor="0.4", label=n) for n, c in zip(class_names, palette.hex, strict=True)]
    patches.append(Patch(facecolor=WRONG, edgecolor="0.4", label="wrong"))
    if any((row["target"] == IGNORE).any() for row in rows):
        patches.append(Patch(facecolor="0.5", edgecolor="0.4", label="ignored"))
    columns = min(len(patches), max(1, int(size[0] / 1.5)))
    legend = figure.legend(handles=patches, loc="outside lower center", ncols=columns, fontsize=7.5, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _write(figure, path)


ACROSS = 6
"""Pictures in a row of a sheet of whole images."""

NAME = 30
"""Characters of a name below one of them."""


def draw_answers(pictures: Sequence[Mapping[str, Any]], path: Path, note: str = "") -> Path:
    """A sheet of whole images, the class of each above it, and in violet what it was taken for where that is wrong.

    Args:
        pictures: dicts with ``name``, ``original`` [C, H, W] in [0, 1], ``target`` and ``label``, names of classes ("":
            not known), and ``sure``, the probability of the answer.
        path: a .png to write.
        note: a line under the figure that says what it stands on.
    """
    down = -(-len(pictures) // ACROSS)
    figure = Figure(figsize=(1.9 * ACROSS, 2.25 * down + 0.3), layout="constrained")
    axes = figure.subplots(down, ACROSS, squeeze=False).ravel()
    for axis in axes[len(pictures) :]:
        figure.delaxes(axis)
    for axis, picture in zip(axes, pictures, strict=False):
        _show(axis, picture["original"])
        right = picture["target"] in ("", picture["label"])
        said = f"{picture['label']}, {picture['sure']:.0%}"
        title = f"{picture['target'] or 'class not known'}\n{'' if right and picture['target'] else 'taken for '}{said}"
        axis.set_title(title, fontsize=7, color="black" if right else WRONG, parse_math=False)
        axis.set_xlabel(_short(picture["name"]), fontsize=6, parse_math=False)
    figure.supxlabel(note, fontsize=7, parse_math=False)
    return _write(figure, path)


def _short(name: str) -> str:
    """A name that fits below a picture; its end, which tells it from others, stays."""
    return name if len(name) <= NAME else f"…{name[1 - NAME :]}"


def draw_confusion(counts: Sequence[Sequence[int]], class_names: Sequence[str], path: Path, note: str = "") -> Path:
    """How often every class was taken for which, as shares of its images.

    Args:
        counts: K rows of K numbers; a row per class of the truth.
        class_names: K names.
        path: a .png to write.
        note: a line under the figure that says what it stands on.
    """
    table = np.asarray(counts, dtype=float)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = 1.9 + 0.34 * len(table)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(table):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{count:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
    places = range(len(table))
    axis.set_xticks(places, class_names, rotation=90, fontsize=7, parse_math=False)
    axis.set_yticks(places, class_names, fontsize=7, parse_math=False)
    axis.set(xlabel="taken for", ylabel="class")
    figure.colorbar(shown, ax=axis, shrink=0.8, label="share of the class's images").ax.tick_params(labelsize=6)
    figure.supxlabel(note, fontsize=7, parse_math=False)
    return _write(figure, path)


def draw_uncertainty(
    pictures: Sequence[Mapping[str, Any]], palette: Palette, class_names: Sequence[str], path: Path, note: str = ""
) -> Path:
    """One row per profile: itself, its label, members of an ensemble, their mean, how unsure it is, where it is wrong.

    Every map of uncertainty goes from 0, black, to the largest value of its row, which stands above it.

    Args:
        pictures: dicts with ``name``, ``original`` [C, H, W] in [0, 1], ``target`` and ``labels`` int64 [H, W],
            ``members`` int64 [M, H, W] and ``uncertainty`` float [H, W]. Of continuous targets these are float, and the
            error is drawn in grey, black 0 and white 0.5 or more, below its mean.
        palette: colours of the classes.
        class_names: K names.
        path: a .png to write.
        note: a line under the figure that says what the numbers stand on.
    """
    count = len(pictures[0]["members"])
    members = [f"member {m + 1}" for m in range(count)]
    continuous = pictures[0]["target"].is_floating_point()
    columns = ["profile", "label", *members, "mean of all", "variance", "error" if continuous else "wrong"]
    height, width = pictures[0]["target"].shape
    cell = 1.7 if height >= width else 2.6
    size = (cell * len(columns), (cell * height / width + 0.2) * len(pictures) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(pictures), len(columns), squeeze=False)
    for row, picture in zip(axes, pictures, strict=True):
        target, labels, unsure = picture["target"], picture["labels"], picture["uncertainty"]
        gaps = ignored(target)
        painted = palette.paint(torch.stack([target, *picture["members"], labels]))
        if continuous:
            apart = (labels - target).abs().masked_fill(gaps, 0)
            error = (2 * apart[None]).clamp(max=1)
            told = f"mean {float(apart.sum() / (~gaps).sum().clamp(min=1)):.3f}"
        else:
            wrong = (labels != target) & ~gaps
            pale = 0.45 + 0.55 * grey(picture["original"][None])[0].expand(3, -1, -1)
            error = torch.where(wrong, torch.tensor(WRONG).view(3, 1, 1), pale).masked_fill(gaps, 0.5)
            told = f"{float(wrong.sum() / (~gaps).sum().clamp(min=1)):.0%} wrong"
        most = float(unsure.max())
        shown = [picture["original"], *painted, None, error]
        for axis, image in zip(row, shown, strict=True):
            if image is not None:
                _show(axis, image)
        row[-2].imshow(unsure.numpy(), cmap="magma", vmin=0, vmax=most or 1)
        row[-2].set(xticks=[], yticks=[])
        row[-2].set_title(f"0 to {most:.2g}", fontsize=7.5, pad=2)
        row[-1].set_title(told, fontsize=7.5, pad=2)
        row[0].set_ylabel(picture["name"], fontsize=8, parse_math=False)
    for axis, title in zip(axes[0], columns, strict=True):
        own = axis.get_title()
        axis.set_title(f"{title}\n{own}" if own else title, fontsize=9)
    patches = [Patch(facecolor=c, edgecolor="0.4", label=n) for n, c in zip(class_names, palette.hex, strict=True)]
    if not continuous:
        patches.append(Patch(facecolor=WRONG, edgecolor="0.4", label="wrong"))
    options = {"ncols": min(len(patches), max(1, int(size[0] / 1.5))), "fontsize": 7.5, "frameon": False}
    legend = figure.legend(handles=patches, loc="outside lower center", title=note, title_fontsize=7, **options)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _write(figure, path)


def draw_members(
    members: Mapping[str, Sequence[float]], risk_coverage: Mapping[str, Sequence[float]], path: Path, note: str = ""
) -> Path:
    """Mean IoU over the number of members, and the share of wrong pixels over the share that is kept.

    Of mattes, SAD and MSE over the number of members.

    Args:
        members: ``iou/mean`` of the mean of the first 1, 2, ... members, ``alone/iou/mean`` of each of them; of mattes
            ``matte/sad`` and ``matte/mse``, too.
        risk_coverage: ``coverage``, and for every uncertainty the share of wrong pixels among the surest.
        path: a .png to write.
        note: a line above the figure that says what the numbers stand on.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    score_axis, risk_axis = figure.subplots(1, 2)
    mattes = {"matte/sad": "SAD, thousands", "matte/mse": "MSE, thousandths"} if "matte/sad" in members else {}
    shown = mattes or {"iou/mean": "mean IoU"}
    for axis, (score, title) in zip((score_axis, risk_axis), shown.items(), strict=False):
        counts = range(1, len(members[score]) + 1)
        axis.plot(counts, members[score], "o-", color="C0", label="mean of the first members")
        axis.plot(counts, members[f"alone/{score}"], "x", color="C1", label="each member alone")
        axis.set(xlabel="members", ylabel=title, title="score over members")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(fontsize=7, frameon=False)
    if mattes:
        figure.suptitle(note, fontsize=8, parse_math=False)
        return _write(figure, path)
    named = {
        "own": "variance",
        "votes": "entropy of votes",
        "entropy": "entropy of the mean",
        "one_member": "entropy of one member",
    }
    for i, (name, values) in enumerate((n, v) for n, v in risk_coverage.items() if n != "coverage"):
        style = "--" if name == "one_member" else "-"
        risk_axis.plot(risk_coverage["coverage"], values, style, color=f"C{i}", label=named[name])
    risk_axis.set(xlabel="share of pixels kept, the surest first", ylabel="share of these that is wrong")
    risk_axis.set_ylim(bottom=0)  # after the lines, so that the upper end is theirs
    risk_axis.set_title("risk over coverage")
    risk_axis.legend(fontsize=7, frameon=False)
    figure.suptitle(note, fontsize=8, parse_math=False)
    return _write(figure, path)


def principal_colours(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The three strongest principal components of features as red, green and blue.

    They are fitted on both sets together, so that one colour means the same direction in both and what adaptation has
    changed shows as another colour. A component's sign, which is arbitrary, is the one in which its largest weight is
    positive; its range goes from the 1st to the 99th percentile of both sets, and what lies beyond is cut.

    Args:
        before: float [h, w, D] with D of 3 or more for every picture, of any h and w.
        after: the same of the adapted model.

    Returns:
        float32 [h, w, 3] in [0, 1] for every picture of both.

    Raises:
        ValueError: the features differ in D, or D is below 3.
    """
    features = [*before, *after]
    shapes = [list(one.shape) for one in features]
    if len({shape[-1] for shape in shapes}) != 1 or shapes[0][-1] < 3 or any(len(shape) != 3 for shape in shapes):
        raise ValueError(f"features must be [h, w, D] with one D of 3 or more, got {shapes}")
    flat = torch.cat([one.detach().cpu().double().flatten(0, 1) for one in features])
    flat = flat - flat.mean(0)
    # the D x D matrix serves any number of pictures
    axes = torch.linalg.eigh(flat.T @ flat).eigenvectors[:, -3:].flip(-1)  # [D, 3], strongest first
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    shown = (flat @ axes).numpy()
    low, high = np.percentile(shown, [1, 99], axis=0)
    shown = ((shown - low) / np.maximum(high - low, np.finfo(np.float64).tiny)).clip(0, 1)
    parts = torch.from_numpy(shown).float().split([one[..., 0].numel() for one in features])
    colours = [part.view(*shape[:2], 3) for part, shape in zip(parts, shapes, strict=True)]
    return colours[: len(before)], colours[len(before) :]


def draw_features(
    images: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor], path: Path, note: str = ""
) -> Path:
    """A row per picture: itself, and its features before and after adaptation (Figure 2 of Guo et al. 2024).

    Args:
        images: N pictures [C, H, W] in [0, 1].
        before: features [h, w, D] of each, see ``principal_colours``.
        after: the same of the adapted model.
        path: a .png to write.
        note: a line above the figure that says whose features they are.
    """
    high = sum(2.0 * image.shape[-2] / image.shape[-1] + 0.1 for image in images)
    told = textwrap.wrap(note, 95)
    figure = Figure(figsize=(6.2, high + 0.3 + 0.2 * len(told)), layout="constrained")
    axes = figure.subplots(len(images), 3, squeeze=False)
    for row, image, *colours in zip(axes, images, *principal_colours(before, after), strict=True):
        for axis, picture in zip(row, [image, *(colour.permute(2, 0, 1) for colour in colours)], strict=True):
            _show(axis, picture)
            height, width = image.shape[-2:]
            axis.set_aspect(height / width * picture.shape[-1] / picture.shape[-2])  # patches cover the picture
    for axis, title in zip(axes[0], ("image", "features before", "features after"), strict=True):
        axis.set_title(title, fontsize=9)
    if told:
        figure.suptitle("\n".join(told), fontsize=8, parse_math=False)
    return _write(figure, path)


def draw_samples(image: Tensor, painted: Tensor, label: Tensor | None, path: Path) -> Path:
    """What a method in training makes of a few images: rows original, drawn, label; all [B, C, H, W] in [0, 1]."""
    rows = {"original": image, "drawn": painted} | ({} if label is None else {"label": label})
    figure = Figure(figsize=(1.7 * len(image) + 0.3, 1.7 * len(rows) + 0.1), layout="constrained")
    axes = figure.subplots(len(rows), len(image), squeeze=False)
    for row, (title, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            _show(axis, picture)
        row[0].set_ylabel(title, fontsize=9)
    return _write(figure, path)


def draw_beside(
    rows: Mapping[str, tuple[Sequence[np.ndarray], Sequence[np.ndarray]]], path: Path, note: str = ""
) -> Path:
    """Drawn pictures of every class beside real ones, a row per class (Figure 1 of Khrulev).

    Args:
        rows: class to drawn and real pictures, uint8 [H, W] or [H, W, 3], as many as there are.
        path: a .png to write.
        note: a line under the figure that says by what they were drawn.
    """
    wide = [max(1, *(len(row[side]) for row in rows.values())) for side in (0, 1)]
    figure = Figure(figsize=(1.2 * sum(wide) + 1.4, 1.2 * len(rows) + 0.7), layout="constrained")
    axes = figure.subplots(len(rows), sum(wide), squeeze=False)
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set_axis_off()
        for pictures, places in zip(row, (line[: wide[0]], line[wide[0] :]), strict=True):
            for axis, picture in zip(places, pictures, strict=False):
                axis.set_axis_on()
                _show(axis, torch.from_numpy(np.atleast_3d(picture).copy()).permute(2, 0, 1) / 255)
        line[0].set_ylabel(name.replace("_", " "), fontsize=8, rotation=0, ha="right", va="center", parse_math=False)
    for axis, title in ((axes[0][0], "drawn"), (axes[0][wide[0]], "real")):
        axis.set_title(title, fontsize=10, loc="left")
    figure.supxlabel(note, fontsize=7)
    return _write(figure, path)


def draw_training(metrics: Path, path: Path) -> Path:
    """Loss and learning rates against the step (Figures 4 and 5 of Zhao and Ma 2025).

    Args:
        metrics: a run's metrics.jsonl.
        path: a .png to write.
    """
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    loss_axis, rate_axis = figure.subplots(1, 2)
    steps, losses = _series(lines, "train/loss")
    loss_axis.plot(steps, losses, lw=0.6, alpha=0.4, color="C0", label="each step")
    window = max(1, len(losses) // 20)
    if len(losses) >= window > 1:
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        loss_axis.plot(steps[window - 1 :], smooth, color="C0", label=f"mean of {window} steps")
    steps, losses = _series(lines, "val/loss")
    if len(steps):
        loss_axis.plot(steps, losses, "o-", color="C1", label="validation")
    loss_axis.set(xlabel="step", ylabel="loss", title="loss")
    loss_axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False)
    for name in sorted({name for line in lines for name in line if name.startswith("lr/")}):
        rate_axis.plot(*_series(lines, name), label=name.removeprefix("lr/"))
    rate_axis.set(xlabel="step", ylabel="learning rate", yscale="log", title="learning rates")
    for axis in (loss_axis, rate_axis):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    rate_axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False)
    return _write(figure, path)


def draw_map(
    cells: Mapping[tuple[Any, Any], Mapping[str, float]], names: tuple[str, str], path: Path, title: str = ""
) -> Path:
    """Heat maps over two settings, one per score, every cell with its number.

    Args:
        cells: values of both settings to scores; a pair that was not run stays white.
        names: what the settings are called, x first.
        path: a .png to write.
        title: of the whole figure.
    """
    columns, rows = (sorted({pair[i] for pair in cells}) for i in (0, 1))
    scores = list(dict.fromkeys(name for found in cells.values() for name in found))
    across = min(3, len(scores))
    down = -(-len(scores) // across)
    size = (max(2.6, 0.55 * len(columns) + 1.2) * across, max(2.4, 0.42 * len(rows) + 1.4) * down)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(scores) :]:
        figure.delaxes(axis)
    for axis, score in zip(axes, scores, strict=False):
        values = np.array([[cells.get((x, y), {}).get(score, np.nan) for x in columns] for y in rows], float)
        shown = axis.imshow(values, cmap="viridis", aspect="auto", origin="lower")
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                colour = "black" if value > middle else "white"
                axis.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=6, color=colour)
        axis.set(xlabel=names[0], ylabel=names[1], title=score)
        axis.set(xticks=range(len(columns)), yticks=range(len(rows)), xticklabels=columns, yticklabels=rows)
        axis.title.set_fontsize(8)
        figure.colorbar(shown, ax=axis, shrink=0.8).ax.tick_params(labelsize=6)
    figure.suptitle(title, fontsize=9)
    return _write(figure, path)


def draw_sheet(pictures: Mapping[tuple[Any, Any], Path], names: tuple[str, str], path: Path, title: str = "") -> Path:
    """What came of one profile at every pair of two settings (Figures 6 and 7 of Zhao and Ma 2025).

    Args:
        pictures: values of both settings to a picture file.
        names: what the settings are called, the one along a row first.
        path: a .png to write.
        title: of the whole figure.
    """
    columns, rows = (sorted({pair[i] for pair in pictures}) for i in (0, 1))
    with Image.open(next(iter(pictures.values()))) as picture:
        shape = (picture.width / picture.height) ** 0.5  # all have about the same area, however long they are
    size = (max(0.8, 1.3 * shape) * len(columns) + 0.6, max(0.7, 1.35 / shape) * len(rows) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for row, y in enumerate(rows):
        for column, x in enumerate(columns):
            axis = axes[row, column]
            axis.set(xticks=[], yticks=[])
            axis.set_frame_on(False)
            if (x, y) in pictures:
                with Image.open(pictures[x, y]) as picture:
                    axis.imshow(np.asarray(picture.convert("RGB")))
            if row == 0:
                axis.set_title(f"{names[0]} {x}", fontsize=7)
        axes[row, 0].set_ylabel(f"{names[1]} {y}", fontsize=7)
    figure.suptitle(title, fontsize=9, parse_math=False)
    return _write(figure, path, dpi=100)  # many pictures, each small


def _series(lines: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps), np.array(values)


def _show(axis: Axes, picture: Tensor) -> None:
    array = picture.clamp(0, 1).permute(1, 2, 0).numpy()
    axis.imshow(array.squeeze(-1) if array.shape[-1] == 1 else array, cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _write(figure: Figure, path: Path, dpi: int = 130) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part.png")
    FigureCanvasAgg(figure)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")  # such a name is shown as boxes
            figure.savefig(part, dpi=dpi)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
