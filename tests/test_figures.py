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
from geoseg.figures import (
    draw_dice,
    draw_features,
    draw_map,
    draw_results,
    draw_samples,
    draw_sheet,
    draw_stages,
    draw_training,
    principal_colours,
)
from geoseg.palette import Palette

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
    assert curves["validation"] == [[29, 59], [0.5, 0.25]]
    assert {name: values[1][0] for name, values in lines_of(rate).items()} == {"unet": 1e-4, "text": 1e-5}
    assert rate.get_yscale() == "log"


def test_a_training_of_one_step(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps({"step": 0, "train/loss": 1.0, "lr/unet": 1e-4}) + "\n")
    assert draw_training(metrics, tmp_path / "training.png").stat().st_size > 1000


def test_results_side_by_side_with_their_errors(tmp_path: Path, drawn: list[Any]) -> None:
    palette = Palette(list(CLASSES.values()))
    target = torch.tensor([[0, 0, 1, 255], [0, 1, 1, 1]])
    found = {"a": torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1]]), "b $": 1 - target.clamp(max=1)}
    image = torch.rand(1, 2, 4)
    rows = [
        {"name": "p_1", "image": image, "target": target, "found": found},
        {"name": "p_2", "image": image, "target": target, "found": {"b $": found["b $"]}},
    ]
    draw_results(rows, palette, list(CLASSES), tmp_path / "results.png")
    axes = np.array(drawn[0].axes).reshape(4, 4)
    assert [axis.get_title() for axis in axes[0]] == ["image", "label", "a", "b $"]
    np.testing.assert_array_equal(axes[0, 2].images[0].get_array(), array(palette.paint(found["a"][None])[0]))
    np.testing.assert_array_equal(axes[2, 1].images[0].get_array(), array(palette.paint(target[None])[0]))
    errors = np.asarray(axes[1, 2].images[0].get_array())
    wrong = np.isclose(errors, figures.WRONG).all(-1)
    assert wrong.tolist() == [[False, True, False, False], [False] * 4]
    np.testing.assert_allclose(errors[0, 3], 0.5)  # what is ignored
    np.testing.assert_allclose(errors[1, 0], 0.45 + 0.55 * image[0, 1, 0].item(), rtol=1e-5)
    assert axes[1, 2].get_title() == f"mIoU {(2 / 3 + 4 / 5) / 2:.3f}, 14% wrong"
    assert axes[1, 3].get_title() == "mIoU 0.000, 100% wrong"
    assert not axes[2, 2].images and not axes[3, 2].images  # not tested on this one
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == [*CLASSES, "wrong", "ignored"]


def test_principal_components_as_colours_are_those_of_a_decomposition() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator) * torch.tensor([5.0, 3.0, 2.0, 0.3, 0.2, 0.1])[:, None]
    before, after = (
        [torch.randn(4, 5 + i, 6, generator=generator) @ mixing + n for i in range(n)] for n in (2, 3)
    )  # pictures of several sizes
    shown = principal_colours(before, after)
    assert [[list(one.shape) for one in side] for side in shown] == [
        [[4, 5, 3], [4, 6, 3]],
        [[4, 5, 3], [4, 6, 3], [4, 7, 3]],
    ]
    flat = np.concatenate([one.reshape(-1, 6).numpy() for one in (*before, *after)]).astype(np.float64)
    _, _, axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    for i in range(3):
        axis = axes[i] * np.sign(axes[i][np.abs(axes[i]).argmax()])
        along = (flat - flat.mean(0)) @ axis
        low, high = np.percentile(along, [1, 99])
        wanted = ((along - low) / (high - low)).clip(0, 1)
        ours = np.concatenate([one[..., i].reshape(-1).numpy() for side in shown for one in side])
        np.testing.assert_allclose(ours, wanted, atol=1e-5)
    alike = principal_colours([torch.ones(2, 2, 3)], [torch.ones(2, 2, 3)])  # nothing differs
    assert all(torch.isfinite(one).all() for side in alike for one in side)
    with pytest.raises(ValueError, match=r"one D of 3 or more, got \[\[4, 5, 6\], \[4, 5, 2\]\]"):
        principal_colours(before[:1], [before[0][..., :2]])


def test_features_before_and_after(tmp_path: Path, drawn: list[Any]) -> None:
    before, after = ([torch.rand(3, 4, 8), torch.rand(2, 4, 8)] for _ in range(2))
    images = [torch.rand(1, 30, 40), torch.rand(1, 20, 40)]
    draw_features(images, before, after, tmp_path / "features.png", "MLA of $K$")
    assert drawn[0].get_suptitle() == "MLA of $K$"
    colours = principal_colours(before, after)
    axes = np.array(drawn[0].axes).reshape(2, 3)
    for i in range(2):
        for side in (0, 1):
            np.testing.assert_array_equal(axes[i, side + 1].images[0].get_array(), colours[side][i].numpy())
    boxes = [axis.get_window_extent() for axis in axes[1]]
    assert all(box.width / box.height == pytest.approx(2, rel=0.05) for box in boxes)  # as the picture that they cover
