"""Tiles: no seams, no dependence on the batch, and nothing new where one tile is enough."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from geoseg import progress
from geoseg.crops import starts, window
from geoseg.palette import Palette
from geoseg.predictors.ensemble import Ensemble
from geoseg.predictors.tiled import Tiled
from geoseg.randomness import stream
from geoseg.types import Prediction


class Pointwise(nn.Module):
    """Every answer depends on its own pixel only, so that tiles must change nothing."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        assert len(generator) == len(image)
        self.sizes.append(tuple(image.shape))
        progress.advance("prediction", len(image))
        logits = torch.cat([image * 5, 2 - image, image.square()], dim=1)
        rgb = torch.cat([image, 1 - image, image.square()], dim=1)
        return Prediction(
            probs=logits.softmax(1),
            uncertainty=image[:, 0] * (1 - image[:, 0]),
            painted=rgb,
            stages={"first": 1 - rgb, "second": rgb},
            facts={"count": image.new_ones(len(image)), "level": image.amax((1, 2, 3))},
        )


class Noisy(nn.Module):
    """Every answer is drawn from the generator alone."""

    num_classes = 2

    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        one = torch.stack([torch.rand(image.shape[2:], generator=each) for each in generator])
        return Prediction(probs=torch.stack([one, 1 - one], dim=1))


def pictures(height: int, width: int, count: int = 2) -> Tensor:
    return torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def streams(count: int) -> list[torch.Generator]:
    return [stream(0, "image", i) for i in range(count)]


@pytest.mark.parametrize("size", [(16, 16), (40, 37), (16, 50), (17, 16), (9, 40), (7, 5), (3, 16), (1, 1), (100, 33)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.75])
def test_a_pointwise_answer_shows_no_seam(size: tuple[int, int], overlap: float) -> None:
    image = pictures(*size)
    inner = Pointwise()
    whole, tiled = inner.predict(image, streams(2)), Tiled(inner, 16, overlap, 5).predict(image, streams(2))
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(tiled.probs, whole.probs, **close)
    torch.testing.assert_close(tiled.uncertainty, whole.uncertainty, **close)
    torch.testing.assert_close(tiled.painted, whole.painted, **close)
    assert list(tiled.stages) == ["first", "second"]
    for name, stage in whole.stages.items():
        torch.testing.assert_close(tiled.stages[name], stage, **close)
    torch.testing.assert_close(tiled.facts["count"], torch.ones(2))
    assert {shape[2:] for shape in inner.sizes[1:]} == {(16, 16)}
    assert max(shape[0] for shape in inner.sizes[1:]) <= 5


def test_labels_are_those_of_the_picture_that_is_shown() -> None:
    palette = Palette(["#000000", "#FF0000"])

    class Painter(Noisy):
        def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
            painted = super().predict(image, generator).probs[:, :1].expand(-1, 3, -1, -1)
            return Prediction(palette.decode(painted), painted=painted, stages={"pass 1": painted})

    tiled = Tiled(Painter(), 16, 0.25, palette=palette).predict(pictures(24, 40), streams(2))
    assert torch.equal(tiled.probs, palette.decode(tiled.stages["pass 1"]))
    assert Tiled(Noisy(), 16, 0.25, palette=palette).predict(pictures(24, 40), streams(2)).painted is None


@pytest.mark.parametrize("length", [16, 17, 31, 32, 33, 100, 1006])
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5, 0.9, 0.99])
def test_tiles_reach_both_ends_and_overlap_evenly(length: int, overlap: float) -> None:
    places = starts(length, 16, overlap)
    assert places[0] == 0
    assert places[-1] == length - 16
    steps = [b - a for a, b in pairwise(places)]
    assert all(1 <= step <= max(1, 16 * (1 - overlap) + 1e-6) for step in steps)
    assert max(steps, default=0) - min(steps, default=0) <= 1


def test_weights_are_those_of_the_window() -> None:
    class Index(nn.Module):
        """The n-th tile answers n / 10."""

        num_classes = 2

        def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
            one = (torch.arange(len(image)) / 10).view(-1, 1, 1, 1).expand(-1, 1, *image.shape[2:])
            return Prediction(probs=torch.cat([one, 1 - one], dim=1))

    probs = Tiled(Index(), 8, 0.5).predict(pictures(8, 12, 1), streams(1)).probs[0, 0]
    w = window(8, 8)
    assert probs[:, :4].abs().max() == 0
    torch.testing.assert_close(probs[:, 4:8], (0.1 * w[:, :4] / (w[:, :4] + w[:, 4:])).float())
    torch.testing.assert_close(probs[:, 8:], torch.full((8, 4), 0.1))


def test_probabilities_sum_to_one() -> None:
    probs = Tiled(Noisy(), 16, 0.5).predict(pictures(40, 50), streams(2)).probs
    torch.testing.assert_close(probs.sum(1), torch.ones(2, 40, 50), rtol=0, atol=1e-6)


def test_an_image_gives_the_same_answer_in_any_batch() -> None:
    image = pictures(30, 45, 3)
    together = Tiled(Noisy(), 16, batch=4).predict(image, streams(3)).probs
    for i in range(3):
        alone = Tiled(Noisy(), 16, batch=64).predict(image[i : i + 1], streams(3)[i : i + 1]).probs
        assert torch.equal(together[i : i + 1], alone)
    assert not torch.allclose(together[0], together[1])


def test_tiles_of_an_image_have_their_own_noise() -> None:
    probs = Tiled(Noisy(), 16, overlap=0.0).predict(pictures(16, 32, 1), streams(1)).probs
    assert not torch.allclose(probs[..., :16], probs[..., 16:])


def test_exactly_one_tile_is_passed_on_untouched() -> None:
    image = pictures(16, 16)
    inner, passed = Noisy(), streams(2)
    assert torch.equal(Tiled(inner, 16).predict(image, passed).probs, inner.predict(image, streams(2)).probs)
    after = streams(2)
    inner.predict(image, after)
    assert torch.equal(passed[0].get_state(), after[0].get_state())


def test_small_pictures_are_reflected() -> None:
    class Seen(nn.Module):
        num_classes = 2

        def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
            self.image = image
            return Prediction(probs=torch.cat([image, 1 - image], dim=1))

    image, inner = pictures(12, 5, 1), Seen()
    Tiled(inner, 16).predict(image, streams(1))
    rows = [*range(12), 11, 10, 9, 8]
    columns = [0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 4]  # mirrored as often as 16 columns need
    assert torch.equal(inner.image, image[:, :, rows][..., columns])


def test_facts_are_means_over_the_tiles_of_an_image() -> None:
    image = torch.zeros(2, 1, 16, 32)
    image[0, 0, 0, 0], image[1, 0, 0, 31] = 1.0, 0.5
    facts = Tiled(Pointwise(), 16, overlap=0.0).predict(image, streams(2)).facts
    torch.testing.assert_close(facts["level"], torch.tensor([0.5, 0.25]))


def test_an_image_counts_once_on_the_bar() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    with progress.display(console=console):
        progress.expect("prediction", 2)
        Tiled(Pointwise(), 16).predict(pictures(40, 40), streams(2))
    assert "2/2 image" in console.file.getvalue()  # type: ignore[attr-defined]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="overlap"):
        Tiled(Pointwise(), 16, overlap=1.0)
    with pytest.raises(ValueError, match="one generator per image"):
        Tiled(Pointwise(), 16).predict(pictures(20, 20), streams(1))

    class Flat(nn.Module):
        num_classes = 2

        def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
            return Prediction(probs=torch.full((len(image), 2), 0.5))

    with pytest.raises(ValueError, match="only predictors that label pixels"):
        Tiled(Flat(), 16).predict(pictures(20, 20), streams(2))


class Regions(Pointwise):
    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        found = super().predict(image, generator)
        return found.with_(regions=found.probs.argmax(1))


def test_regions_are_not_joined() -> None:
    assert Tiled(Regions(), 8).predict(torch.rand(1, 1, 8, 8), [stream(0, "test", 0)]).regions is not None
    with pytest.raises(ValueError, match="in every tile, so tiles of 8 pixels cannot be joined; leave tile away"):
        Tiled(Regions(), 8).predict(torch.rand(1, 1, 12, 8), [stream(0, "test", 0)])


def test_members_of_an_ensemble_are_blended_like_their_mean() -> None:
    image = pictures(20, 27)
    found = Tiled(Ensemble(Noisy(), members=3), tile=12).predict(image, streams(2))
    assert found.members is not None and found.members.shape == (2, 3, 2, 20, 27)
    torch.testing.assert_close(found.members.mean(1), found.probs)
    torch.testing.assert_close(found.members.sum(2), torch.ones(2, 3, 20, 27))
    assert not torch.allclose(found.members[:, 0], found.members[:, 1])
    assert found.uncertainty is not None and found.uncertainty.shape == (2, 20, 27)
    whole = Tiled(Ensemble(Noisy(), members=3), tile=12).predict(pictures(12, 12), streams(2))
    assert whole.members is not None and whole.members.shape == (2, 3, 2, 12, 12)
