"""Rules on pictures whose answer is known, and on pictures that leave nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from scipy import ndimage

from geoseg.config import build, plain
from geoseg.models import thresholds
from geoseg.models.classical import (
    ActiveContours,
    AdaptiveThresholds,
    CannyWatershed,
    Grouping,
    KMeans,
    MeanShift,
    SobelWatershed,
    Thresholds,
    view,
)
from geoseg.predictors.feedforward import Feedforward

METHODS = ("otsu", "maximum_entropy", "balanced_histogram", "adaptive_threshold", "canny_watershed")
METHODS += ("sobel_watershed", "kmeans", "mean_shift", "active_contours")


@pytest.fixture(scope="module", params=METHODS)
def rule(request: pytest.FixtureRequest, compose: Callable[[list[str]], DictConfig]) -> Any:
    """The rule of a method as its file sets it."""
    return build(plain(compose([f"method={request.param}"]))["method"]["model"]["rule"], "rule")


def disc(noise: float = 0.03) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc on dark ground with a little noise, and where it is."""
    rows, columns = np.indices((64, 64))
    inside = (rows - 30) ** 2 + (columns - 36) ** 2 < 15**2
    noisy = np.where(inside, 0.7, 0.3) + np.random.default_rng(0).normal(0, noise, inside.shape)
    return noisy.clip(0, 1), inside


def test_every_method_finds_a_disc(rule: Any) -> None:
    picture, inside = disc()
    found = rule(picture, 2)
    far = ndimage.distance_transform_edt(inside) + ndimage.distance_transform_edt(~inside) > 4  # off the border
    assert (found == inside)[far].mean() > 0.98 and (found == inside).mean() > 0.93


def test_every_method_orders_three_bands(rule: Any, request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["rule"] == "maximum_entropy":
        pytest.skip("the largest entropies are had by dividing the blurred borders, not the bands")
    bands = np.repeat([2, 0, 1], 24)[:, None].repeat(72, axis=1)
    noise = np.random.default_rng(1).normal(0, 0.01, bands.shape)
    found = rule(0.2 + 0.3 * bands + noise, 3)
    middles = np.r_[6:18, 30:42, 54:66]
    assert (found == bands)[middles].mean() > 0.95, [np.bincount(found[rows], minlength=3) for rows in (12, 36, 60)]


@pytest.mark.parametrize("count", [2, 6])
def test_a_flat_picture_is_one_group(rule: Any, count: int) -> None:
    for value in (0.0, 0.4, 1.0):
        assert np.unique(rule(np.full((16, 24), value), count)).tolist() == [0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2), (5, 40)])
def test_tiny_pictures(rule: Any, shape: tuple[int, int]) -> None:
    found = rule(np.random.default_rng(2).random(shape), 6)
    assert found.shape == shape and found.min() >= 0 and found.max() < 6


def test_texture_is_told_from_grey() -> None:
    rng = np.random.default_rng(3)
    rough = np.arange(64) >= 32
    picture = 0.5 + np.where(rough, 0.2, 0.01) * rng.choice([-1, 1], (64, 64))
    inner = np.r_[0:24, 40:64]
    for rule in (
        Thresholds(thresholds.otsu, sigma=3, texture=True),
        AdaptiveThresholds(1, sigma=3, texture=True),
        CannyWatershed(sigma=3, texture=True),
        SobelWatershed(sigma=3, texture=True),
        KMeans(sigma=3, texture=2),
        MeanShift(sigma=3, texture=True),
        ActiveContours(sigma=3, texture=True),
    ):
        assert ((rule(picture, 2) == 1) == rough)[:, inner].mean() > 0.95, rule


def test_a_view_is_mean_and_twice_the_deviation() -> None:
    board = np.indices((40, 40)).sum(0) % 2.0  # half black, half white
    assert view(board, 4.0)[20, 20] == pytest.approx(0.5, abs=1e-3)
    assert view(board, 4.0, texture=True)[20, 20] == pytest.approx(1.0, abs=1e-3)
    assert view(board, 0.0) is board
    assert view(np.full((9, 9), 0.3), 2.0, texture=True).max() < 1e-6


def test_zones_follow_uneven_light() -> None:
    light = np.linspace(0, 0.6, 96)[None, :]
    stripes = (np.arange(96) // 8 % 2)[:, None] * np.ones((1, 96))
    picture = light + 0.2 * stripes
    adaptive = AdaptiveThresholds(zones=6, sigma=0.0)(picture, 2) == stripes
    assert adaptive[:, 8:-8].mean() > 0.97
    assert (Thresholds(thresholds.otsu, sigma=0.0)(picture, 2) == stripes).mean() < 0.75


def test_kmeans_ends_where_no_pixel_wants_to_move() -> None:
    grey = np.random.default_rng(4).random((20, 30))
    found = KMeans(sigma=1.0, texture=0.0)(grey, 4)
    seen = view(grey, 1.0)
    means = np.array([seen[found == k].mean() for k in range(4)])
    assert (np.diff(means) > 0).all()
    nearest = np.abs(seen[..., None] - means).argmin(-1)
    assert (nearest == found).mean() > 0.995


def test_contours_leave_out_specks() -> None:
    picture, _ = disc(noise=0.0)
    picture[5, 5] = picture[50, 10] = 0.7
    assert Thresholds(thresholds.otsu, sigma=0.0)(picture, 2)[5, 5] == 1
    found = ActiveContours(sigma=0.0, smoothing=2)(picture, 2)
    assert found[5, 5] == found[50, 10] == 0 and found[30, 36] == 1


def test_colour_is_read_as_the_mean_of_its_channels() -> None:
    picture, _ = disc()
    model = Grouping(KMeans(), 2)
    grey = torch.from_numpy(picture).float()
    colour = torch.stack([grey * 0.8, grey, grey * 1.2])
    assert torch.equal(model.groups(colour), model.groups(grey[None]))


def test_a_picture_gets_the_same_answer_in_any_batch_and_names_are_applied() -> None:
    images = torch.rand(3, 1, 24, 32, generator=torch.Generator().manual_seed(0))
    model = Grouping(Thresholds(thresholds.otsu), 3)
    predictor = Feedforward(model, 3)
    together = predictor.predict(images, [])
    assert together.probs.dtype == torch.float32 and set(together.probs.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(together.probs.sum(1), torch.ones(3, 24, 32))
    for i in range(3):
        assert torch.equal(predictor.predict(images[i : i + 1], []).labels[0], together.labels[i])
    model.names = [2, 0, 1]
    assert torch.equal(predictor.predict(images, []).labels, torch.tensor([2, 0, 1])[together.labels])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Thresholds(thresholds.otsu, sigma=-1.0), "sigma must be 0 or more"),
        (lambda: Thresholds(thresholds.otsu, sigma=0.0, texture=True), "above 0 where texture"),
        (lambda: AdaptiveThresholds(zones=0), "zones must be 1 or more"),
        (lambda: CannyWatershed(spacing=0), "spacing must be 1 or more"),
        (lambda: SobelWatershed(spacing=0), "spacing must be 1 or more"),
        (lambda: KMeans(texture=-1.0), "texture must be 0 or more"),
        (lambda: MeanShift(range=0.0), "0 < range <= 1"),
        (lambda: ActiveContours(iterations=0), "iterations >= 1"),
    ],
)
def test_settings_that_cannot_be(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
