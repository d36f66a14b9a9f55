"""Soft Dice on grey values against closed forms and PIL's grey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from geoseg.metrics.intensity import IntensityDice, dice_loss, grey


def pictures(seed: int, channels: int = 3, count: int = 2) -> torch.Tensor:
    return torch.rand(count, channels, 5, 7, generator=torch.Generator().manual_seed(seed))


def test_grey_is_that_of_pil() -> None:
    pixels = (pictures(0, count=1)[0] * 255).byte()
    theirs = np.asarray(Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert("L"))
    ours = grey(pixels[None] / 255)[0, 0].numpy() * 255
    np.testing.assert_allclose(ours, theirs, atol=1.0)
    assert torch.equal(grey(pictures(1, channels=1)), pictures(1, channels=1))


@pytest.mark.parametrize("squared", [False, True])
def test_loss_is_the_formula(squared: bool) -> None:
    a, b = pictures(0, channels=1), pictures(1, channels=1)
    for i, loss in enumerate(dice_loss(a, b, smooth=0.5, squared=squared).tolist()):
        x, y = a[i].double().numpy(), b[i].double().numpy()
        below = (x**2).sum() + (y**2).sum() if squared else x.sum() + y.sum()
        assert loss == pytest.approx(1 - (2 * (x * y).sum() + 0.5) / (below + 0.5))


def test_colours_are_compared_channel_by_channel() -> None:
    red, green = (torch.zeros(1, 3, 2, 2).index_fill(1, torch.tensor([k]), 1.0) for k in (0, 1))
    assert dice_loss(red, green, colour=True).item() == pytest.approx(1, abs=1e-6)
    assert dice_loss(red, red, colour=True).item() == pytest.approx(0, abs=1e-6)
    # a grey picture has three equal channels: 2 * 4 * 0.5 / (12 * 0.5 + 4)
    assert dice_loss(torch.full((1, 1, 2, 2), 0.5), red, colour=True).item() == pytest.approx(1 - 4 / 10, abs=1e-6)


def test_identical_pictures() -> None:
    binary = pictures(2, channels=1).round()
    half = torch.full((1, 1, 4, 4), 0.5)
    black = torch.zeros(1, 3, 4, 4)
    assert dice_loss(binary, binary).abs().max() < 1e-12
    assert dice_loss(half, half).item() == pytest.approx(0.5, abs=1e-6)
    assert dice_loss(half, half, squared=True).item() == pytest.approx(0, abs=1e-12)
    assert dice_loss(black, black).item() == 0
    assert dice_loss(black, black + 1).item() == pytest.approx(1, abs=1e-6)


def test_three_pairs_add_up_image_by_image() -> None:
    batches = [(pictures(i, channels=1), pictures(i + 10), pictures(i + 20)) for i in range(2)]
    metric, other = IntensityDice(), IntensityDice()
    metric.update(*batches[0])
    other.update(*batches[1])
    other.merge_state(metric)
    metric.update(*batches[1])
    original, label, generated = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = {
        "dice_loss/original_label": dice_loss(original, label),
        "dice_loss/original_generated": dice_loss(original, generated),
        "dice_loss/label_generated": dice_loss(label, generated),
    }
    for each in (metric, other):
        assert each.per_image() == {name: losses.tolist() for name, losses in expected.items()}
        assert {name: value.item() for name, value in each.compute().items()} == pytest.approx(
            {name: losses.mean().item() for name, losses in expected.items()}
        )


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="agree in number and size"):
        dice_loss(pictures(0), pictures(0)[:1])
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        grey(pictures(0, channels=2))
    with pytest.raises(ValueError, match="no image was scored"):
        IntensityDice().per_image()
