"""Class indices and colours, against colour arithmetic done by hand."""

from __future__ import annotations

import math
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from geoseg.palette import (
    IGNORED_COLOUR,
    SFM_FACIES,
    Palette,
    facies_palette,
    separated_palette,
    without_gaps,
)

THREE = ["#000000", "#FF0000", "#0082F4"]


def test_painting_looks_colours_up() -> None:
    labels = torch.tensor([[[0, 1], [2, 255]]])
    painted = Palette(THREE).paint(labels)
    assert painted.shape == (1, 3, 2, 2)
    assert painted.dtype == torch.float32
    wanted = [[ImageColor.getrgb(THREE[0]), ImageColor.getrgb(THREE[1])], [ImageColor.getrgb(THREE[2]), IGNORED_COLOUR]]
    np.testing.assert_array_equal((painted[0].permute(1, 2, 0) * 255).round().int().numpy(), np.array(wanted))


@pytest.mark.parametrize("num_classes", [2, 6, 15])
def test_what_is_painted_is_read_back(num_classes: int) -> None:
    palette = Palette(facies_palette(num_classes))
    labels = torch.randint(num_classes, (2, 9, 7), generator=torch.Generator().manual_seed(0))
    probs = palette.decode(palette.paint(labels))
    assert torch.equal(probs.argmax(1), labels)
    torch.testing.assert_close(probs.sum(1), torch.ones(2, 9, 7))


def test_probabilities_by_hand() -> None:
    palette = Palette(THREE, softness=0.2)
    pixel = (0.3, 0.5, 0.9)
    probs = palette.decode(torch.tensor(pixel).view(1, 3, 1, 1)).flatten().tolist()
    colours = [(0, 0, 0), (1, 0, 0), (0, 130 / 255, 244 / 255)]
    # a class loses a factor e for every (softness)^2 of mean squared distance per channel
    worth = [
        math.exp(-sum((p - c) ** 2 for p, c in zip(pixel, colour, strict=True)) / 3 / 0.2**2) for colour in colours
    ]
    assert probs == pytest.approx([w / sum(worth) for w in worth], rel=1e-4)


def test_the_nearest_colour_wins() -> None:
    palette = Palette(facies_palette(9))
    picture = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    pixels = picture[0].flatten(1).T
    nearest = torch.cdist(pixels, palette.colours, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(palette.decode(picture).argmax(1).flatten(), nearest)


def test_mixed_precision_changes_no_reading() -> None:
    palette = Palette(facies_palette(6))
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = palette.decode(picture)
    assert torch.equal(mixed, palette.decode(picture))


def test_grey_pictures_count_as_three_equal_channels() -> None:
    palette = Palette(THREE)
    grey = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(palette.decode(grey), palette.decode(grey.repeat(1, 3, 1, 1)))


def test_a_written_label_map_holds_indices_and_shows_colours(tmp_path: Path) -> None:
    labels = torch.tensor([[0, 1, 2], [2, 255, 0]])
    Palette(THREE).write(labels, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        assert np.asarray(picture).tolist() == labels.tolist()
        shown = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255
    torch.testing.assert_close(shown, Palette(THREE).paint(labels[None])[0])


def test_the_standard_colours_stay_apart() -> None:
    assert facies_palette(6) == list(SFM_FACIES)
    for num_classes in (2, 6, 12, 20):
        colours = Palette(facies_palette(num_classes)).colours
        assert len(colours) == num_classes
        assert torch.pdist(torch.cat([colours, torch.tensor([IGNORED_COLOUR]) / 255])).min() > 0.05


@pytest.mark.parametrize(
    ("colours", "softness", "message"),
    [
        (["#000000", "#000000"], 0.1, "all different"),
        (["#000000", "#00000A", "#00000a"], 0.1, "all different"),
        (["#000000"], 0.1, "at least two"),
        (["#000000", "red"], 0.1, "'#RRGGBB', got 'RED'"),
        (["#000000", "#GG0000"], 0.1, "'#RRGGBB'"),
        (["#000000", "#FFFFFF"], 0.0, "softness must be above 0"),
    ],
)
def test_mistakes(colours: list[str], softness: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Palette(colours, softness)


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5, 6, 7, 8])
def test_separated_colours_keep_off_the_lines_between_others(num_classes: int) -> None:
    palette = Palette(separated_palette(num_classes))
    palette.check_separated(0.1)
    shares = torch.linspace(0, 1, 41)[:, None]
    if num_classes > 4:  # the corners of an octahedron and a cube leave the very middle of a line undecided
        shares = shares[shares[:, 0] != 0.5]
    for i in range(num_classes):
        for j in range(i):  # a border between two classes is read as no third one
            drawn = (1 - shares) * palette.colours[i] + shares * palette.colours[j]
            assert set(palette.decode(drawn.T[None, :, :, None]).argmax(1).unique().tolist()) <= {i, j}


@pytest.mark.parametrize("num_classes", [9, 13])
def test_many_separated_colours_are_those_of_the_search_written_out(num_classes: int) -> None:
    levels = [0.0, 0.25, 0.5, 0.75, 1.0]
    grid = np.array([[r, g, b] for r in levels for g in levels for b in levels])

    def apart(point: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        along = end - start
        share = ((point - start) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-12)
        nearest = start + np.clip(share, 0, 1)[..., None] * along
        return np.sqrt(((point - nearest) ** 2).mean(-1))

    found = Palette(separated_palette(num_classes))
    found.check_separated(0.1)
    colours = np.round(found.colours.double().numpy() * 4) / 4
    for count in range(2, num_classes):  # no other colour of the grid would have kept further off
        old = colours[:count]
        room = np.stack(
            [np.sqrt(((grid - one) ** 2).mean(-1)) for one in old]
            + [apart(grid, a, b) for a, b in combinations(old, 2)]
            + [apart(a, grid, b) for a, b in permutations(old, 2)]
        ).min(0)
        chosen = int(np.abs(grid - colours[count]).sum(1).argmin())
        assert room[chosen] == pytest.approx(room.max())
    labels = torch.arange(num_classes)[None, None]
    assert torch.equal(found.decode(found.paint(labels)).argmax(1), labels)


def test_more_classes_than_there_are_colours_for_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="at most 13 classes, and the data have 27; join classes, or give colours"):
        separated_palette(27)


def test_colours_between_others_are_told() -> None:
    with pytest.raises(ValueError, match=r"#F3B677 .class 4. lies 0\.0\d from the line between #.* and #"):
        Palette(facies_palette(6)).check_separated(0.1)
    Palette(["#000000", "#FFFFFF"]).check_separated(0.5)  # nothing is between two


@pytest.mark.parametrize("label", [3, -1, 254])
def test_a_label_without_a_colour_is_an_error(label: int) -> None:
    with pytest.raises(ValueError, match="do not fit the 3 colours"):
        Palette(THREE).paint(torch.tensor([[[0, label]]]))


def test_mixtures_of_two_colours_are_painted_and_read_back() -> None:
    shares = torch.rand(2, 9, 7, generator=torch.Generator().manual_seed(4))
    for colours in (["#000000", "#FFFFFF"], ["#333333", "#CCCCCC"], ["#FF8000", "#0040FF"]):
        palette = Palette(colours, softness=None)
        painted = palette.paint(shares)
        ends = torch.tensor([ImageColor.getrgb(colour) for colour in colours]) / 255
        wanted = ends[0] + shares[..., None] * (ends[1] - ends[0])
        torch.testing.assert_close(painted, wanted.permute(0, 3, 1, 2))
        probs = palette.decode(painted)
        torch.testing.assert_close(probs[:, 1], shares, atol=1e-5, rtol=0)
        torch.testing.assert_close(probs.sum(1), torch.ones_like(shares))
        # the classes of a mask are mixtures of all and nothing
        mask = (shares > 0.5).long()
        assert torch.equal(palette.decode(palette.paint(mask)).argmax(1), mask)


def test_one_channel_is_read_by_the_mean_of_three() -> None:
    picture = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(5)) * 1.4 - 0.2
    torch.testing.assert_close(
        Palette(["#000000", "#FFFFFF"], None).decode(picture)[:, 1], picture.mean(1).clamp(0, 1), atol=1e-6, rtol=0
    )
    wanted = ((picture.mean(1) - 0.2) / 0.6).clamp(0, 1)
    torch.testing.assert_close(Palette(separated_palette(2), None).decode(picture)[:, 1], wanted, atol=1e-6, rtol=0)


def test_shares_that_cannot_be_painted() -> None:
    grey = Palette(["#000000", "#FFFFFF"], None).paint(torch.tensor([[[math.nan, 1.0]]]))
    assert (255 * grey[0, 0]).round().tolist() == [[IGNORED_COLOUR[0], 255]]
    with pytest.raises(ValueError, match="got 3 colours and values from 0 to 1"):
        Palette(THREE).paint(torch.tensor([[[0.0, 1.0]]]))
    with pytest.raises(ValueError, match=r"got 2 colours and values from 0.5 to 1\.5"):
        Palette(THREE[:2]).paint(torch.tensor([[[0.5, 1.5]]]))
    with pytest.raises(ValueError, match="mixtures of two colours, and there are 3"):
        Palette(THREE, None)


def test_gaps_take_the_nearest_value() -> None:
    labels = torch.tensor([[0, 255, 255, 255, 3]])
    assert without_gaps(labels).tolist() == [[0, 0, 0, 3, 3]] or without_gaps(labels).tolist() == [[0, 0, 3, 3, 3]]
    assert without_gaps(torch.tensor([[math.nan, 0.25, 0.5]])).tolist() == [[0.25, 0.25, 0.5]]
    assert without_gaps(torch.full((1, 2), 255)).tolist() == [[0, 0]]
    assert without_gaps(labels[:, :1]) is not None and torch.equal(without_gaps(labels[:, :1]), labels[:, :1])


def test_where_borders_may_be_read_as_a_third_class() -> None:
    """By brute force along every line: a third colour that is as near as the ends."""
    for num_classes in range(2, 9):
        palette = Palette(separated_palette(num_classes))
        shares = torch.linspace(0, 1, 401)[:, None]
        found = False
        for i in range(num_classes):
            for j in range(i):
                line = (1 - shares) * palette.colours[i] + shares * palette.colours[j]
                apart = torch.cdist(line, palette.colours)
                third = [k for k in range(num_classes) if k not in (i, j)]
                ends = apart[:, [i, j]].amin(1)
                found |= bool(third) and bool((apart[:, third].amin(1) <= ends + 1e-3).any())
        assert palette.seams == found == (num_classes > 4)
