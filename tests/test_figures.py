"""Figures: every picture is in its place, and no file is left half written."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import matplotlib.axes
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image
from torch import Tensor

from geoseg import figures
from geoseg.figures import draw_dice, draw_map, draw_samples, draw_sheet, draw_stages, draw_training

RED, GREEN, BLUE = (torch.tensor(colour).view(3, 1, 1).expand(3, 8, 12).float() for colour in torch.eye(3).tolist())
GREY = torch.full((1, 8, 12), 0.5)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are written."""
    seen: list[Any] = []
    write = figures._write
    monkeypatch.setattr(
        figures, "_write", lambda figure, path, **more: seen.append(figure) or write(figure, path, **more)
    )
    return seen


CLASSES = {"rock": "#FF0000", "salt": "#123456"}


def grid(figure: Any, columns: int) -> list[list[np.ndarray]]:
    """The pictures of a figure, row by row."""
    shown = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    return [shown[i : i + columns] for i in range(0, len(shown), columns)]


def array(picture: Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).squeeze(-1).numpy()


def test_a_row_per_profile_and_a_column_per_stage(tmp_path: Path, drawn: list[Any]) -> None:
    pictures = [
        {"name": "a", "original": GREY, "stages": {"pass 1": RED, "refined": GREEN}, "label": BLUE},
        {"name": "b", "original": BLUE, "stages": {"pass 1": GREEN, "refined": RED * 1.5}, "label": RED},
    ]
    path = draw_stages(pictures, CLASSES, tmp_path / "figures" / "stages.png", note="checkpoints=demo")
    rows = grid(drawn[0], 4)
    wanted = [[GREY, RED, GREEN, BLUE], [BLUE, GREEN, RED, RED]]
    for row, want in zip(rows, wanted, strict=True):
        for found, picture in zip(row, want, strict=True):
            np.testing.assert_array_equal(found, array(picture))
    assert [axis.get_title() for axis in drawn[0].axes[:4]] == ["original", "pass 1", "refined", "label"]
    assert [drawn[0].axes[i].get_ylabel() for i in (0, 4)] == ["a", "b"]
    (legend,) = drawn[0].legends
    assert legend.get_title().get_text() == "checkpoints=demo"
    assert [text.get_text() for text in legend.get_texts()] == ["rock", "salt"]
    assert [to_hex(patch.get_facecolor()) for patch in legend.get_patches()] == ["#ff0000", "#123456"]
    assert [p.name for p in path.parent.iterdir()] == ["stages.png"]
    with Image.open(path) as picture:
        colours = {
            tuple(colour) for colour in np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0).tolist()
        }
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= colours


def test_pictures_of_different_sizes_fit_into_one_figure(tmp_path: Path) -> None:
    tall = {"name": "t", "original": GREY[:, :, :4], "stages": {"s": RED[:, :, :4]}, "label": BLUE[:, :, :4]}
    wide = {"name": "w", "original": GREY, "stages": {"s": RED}, "label": BLUE}
    draw_stages([tall, wide], CLASSES, tmp_path / "a.png")
    draw_stages([wide], CLASSES, tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        assert a.height > b.height


def test_a_map_shows_every_number_in_its_cell(tmp_path: Path, drawn: list[Any]) -> None:
    cells = {(0.2, 1): {"a": 1.0, "b": 7.0}, (0.4, 1): {"a": 2.0, "b": 8.0}, (0.4, 7): {"a": 4.0}}
    draw_map(cells, ("strength", "guidance"), tmp_path / "map.png", "label LoRA")
    first, second = drawn[0].axes[:2]
    values = first.images[0].get_array()
    assert values.filled(np.nan).tolist()[0] == [1.0, 2.0]
    assert values.mask.tolist() == [[False, False], [True, False]]  # (0.2, 7) was not run
    assert sorted(text.get_text() for text in first.texts) == ["1", "2", "4"]
    assert {text.get_text(): text.get_position() for text in second.texts} == {"7": (0, 0), "8": (1, 0)}
    assert [label.get_text() for label in first.get_xticklabels()] == ["0.2", "0.4"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["1", "7"]


def test_a_sheet_puts_every_picture_at_its_settings(tmp_path: Path, drawn: list[Any]) -> None:
    places = {}
    for x, y, colour in ((0.2, 1, (255, 0, 0)), (0.4, 1, (0, 255, 0)), (0.4, 7, (0, 0, 255))):
        places[x, y] = tmp_path / f"{x}_{y}.png"
        Image.new("RGB", (4, 3), colour).save(places[x, y])
    draw_sheet(places, ("strength", "guidance"), tmp_path / "sheet.png")
    shown = [axis.images[0].get_array()[0, 0].tolist() if axis.images else None for axis in drawn[0].axes]
    assert shown == [[255, 0, 0], [0, 255, 0], None, [0, 0, 255]]


@pytest.mark.parametrize("colour", [False, True])
def test_a_dice_sheet_shows_the_pairs_it_compares(tmp_path: Path, drawn: list[Any], colour: bool) -> None:
    pictures = [{"name": "a", "original": GREY, "stages": {"pass 1": RED, "read as classes": BLUE}, "label": GREEN}]
    draw_dice(pictures, tmp_path / "dice.png", colour=colour)
    shown, titles = grid(drawn[0], 3)[0], [axis.get_title() for axis in drawn[0].axes]
    meaning = "Grey is the brightness of a colour, 0.299 red + 0.587 green + 0.114 blue: all that the loss sees"
    assert (meaning in drawn[0].get_suptitle()) == (not colour)
    pairs = ["original | label", "original | generated", "label | generated"]
    assert [title.split(":")[0] for title in titles] == pairs
    losses = [float(title.split()[4].strip(",")) for title in titles]
    similarities = [float(title.split()[-1]) for title in titles]
    assert [a + b for a, b in zip(losses, similarities, strict=True)] == pytest.approx([1, 1, 1], abs=1e-3)
    if colour:  # pure red and pure green have nothing in common
        assert losses[2] == pytest.approx(1, abs=1e-3)
        np.testing.assert_array_equal(shown[2], array(torch.cat([GREEN, RED], 2)))
    else:  # 1 - 2ab / (a + b) for the greys of pure green and pure red
        assert losses[2] == pytest.approx(1 - 2 * 0.587 * 0.299 / (0.587 + 0.299), abs=1e-3)
        assert np.ptp(shown[2], axis=(0, 1)).max() == pytest.approx(0.587 - 0.299, abs=1e-3)


def test_samples_of_a_training(tmp_path: Path, drawn: list[Any]) -> None:
    image = torch.stack([GREY, GREY / 2])
    draw_samples(image, torch.stack([RED, GREEN]), torch.stack([BLUE, RED]), tmp_path / "epoch_0001.png")
    rows = grid(drawn[0], 2)
    wanted = [[GREY, GREY / 2], [RED, GREEN], [BLUE, RED]]
    for row, want in zip(rows, wanted, strict=True):
        for found, picture in zip(row, want, strict=True):
            np.testing.assert_array_equal(found, array(picture))
    assert [drawn[0].axes[i].get_ylabel() for i in (0, 2, 4)] == ["original", "drawn", "label"]


def lines_of(axis: matplotlib.axes.Axes) -> dict[str, list[list[float]]]:
    return {str(line.get_label()): np.asarray(line.get_data()).tolist() for line in axis.lines}


def test_curves_of_a_training(tmp_path: Path, drawn: list[Any]) -> None:
    records: list[dict[str, Any]] = [
        {"step": i, "train/loss": float(i % 5), "lr/unet": 1e-4, "lr/text": 1e-5} for i in range(60)
    ]
    records[7]["train/loss"] = None  # a number that JSON could not hold
    records += [{"step": 29, "val/loss": 0.5}, {"step": 59, "val/loss": 0.25}]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    draw_training(metrics, tmp_path / "training.png")
    loss, rate = drawn[0].axes
    curves = lines_of(loss)
    steps = [i for i in range(60) if i != 7]
    assert curves["each step"] == [steps, [float(i % 5) for i in steps]]
    smooth = curves["mean of 2 steps"]
    assert smooth[1] == [(a % 5 + b % 5) / 2 for a, b in itertools.pairwise(steps)]
    assert smooth[0] == steps[1:]
    assert curves["validation, fixed noise and timesteps"] == [[29, 59], [0.5, 0.25]]
    assert {name: values[1][0] for name, values in lines_of(rate).items()} == {"unet": 1e-4, "text": 1e-5}
    assert rate.get_yscale() == "log"


def test_a_training_of_one_step(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps({"step": 0, "train/loss": 1.0, "lr/unet": 1e-4}) + "\n")
    assert draw_training(metrics, tmp_path / "training.png").stat().st_size > 1000
