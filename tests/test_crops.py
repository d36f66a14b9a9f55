"""Cutting squares and mirroring what is too small, against NumPy's own padding."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from geoseg.crops import bucket, bucket_sizes, pad_to, pad_to_multiple, random_corner, window
from geoseg.randomness import stream


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((4, 5), (4, 5)), ((4, 5), (6, 5)), ((4, 5), (4, 9)), ((3, 2), (20, 31)), ((1, 1), (4, 4)), ((9, 9), (3, 3))],
)
def test_padding_mirrors_as_often_as_needed(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    picture = torch.arange(2 * size[0] * size[1]).reshape(2, *size)
    padded = pad_to(picture, *wanted)
    assert padded.shape == (2, max(size[0], wanted[0]), max(size[1], wanted[1]))
    margins = [(0, 0), *((0, max(0, want - have)) for have, want in zip(size, wanted, strict=True))]
    np.testing.assert_array_equal(padded.numpy(), np.pad(picture.numpy(), margins, mode="symmetric"))


def test_padding_to_a_multiple() -> None:
    picture = torch.rand(2, 3, 13, 16)
    padded = pad_to_multiple(picture, 8)
    assert padded.shape == (2, 3, 16, 16)
    assert torch.equal(padded[..., :13, :], picture)
    assert torch.equal(padded[..., 13:, :], picture[..., 10:, :].flip(-2))
    assert pad_to_multiple(picture[..., :8, :], 8).shape == (2, 3, 8, 16)


def test_corners_stay_inside_and_reach_every_place() -> None:
    corners = [random_corner(7, 6, 5, stream(0, "corner", i)) for i in range(1200)]
    counts = Counter(corners)
    assert set(counts) == {(top, left) for top in range(3) for left in range(2)}
    assert chisquare(list(counts.values())).pvalue > 0.01
    assert random_corner(5, 5, 5, stream(0, "corner")) == (0, 0)


def test_the_window_is_smooth_and_above_zero() -> None:
    for height, width in ((1, 1), (2, 2), (16, 16), (16, 40), (1024, 1024)):
        weights = window(height, width)
        assert weights.shape == (height, width)
        assert (weights > 0).all()
        torch.testing.assert_close(weights, weights.flip(0).flip(1))
    assert window(64, 64)[:, 32].diff().abs().max() < 0.06, "a step of the window would show as a seam"


def test_the_buckets_of_512_by_hand() -> None:
    by_hand = [(256, 1024), (320, 768), (384, 640), (448, 576), (512, 512)]  # 512 * 512 // width, rounded down to 64
    more = [(256, 832), (256, 896), (256, 960), (320, 704)]
    assert bucket_sizes(512, 64) == sorted({*by_hand, *more, *((b, a) for a, b in by_hand + more)})
    assert bucket_sizes(64, 64) == [(64, 64)]  # 64 x 128 would be twice the area


@pytest.mark.parametrize(
    ("shape", "upscale", "resized", "cut"),
    [
        ((1024, 1024), False, (512, 512), (512, 512)),
        ((600, 1200), False, (352, 704), (320, 704)),  # 2 : 1; 320 x 704 is 2.2, 384 x 640 only 1.67
        ((1200, 600), False, (704, 352), (704, 320)),
        ((300, 400), False, (300, 400), (256, 384)),  # never enlarged: what exceeds a multiple of 64 is cut away
        ((300, 400), True, (448, 597), (448, 576)),
        ((40, 400), False, (40, 400), (64, 384)),  # too low for 64, so it is mirrored up to it
        ((100, 5000), False, (100, 5000), (256, 1024)),  # longer than any rectangle: cut at random, mirrored in height
        ((512, 512), False, (512, 512), (512, 512)),
    ],
)
def test_buckets_by_hand(shape: tuple[int, int], upscale: bool, resized: tuple[int, int], cut: tuple[int, int]) -> None:
    assert bucket(*shape, size=512, step=64, upscale=upscale) == (resized, cut)


def test_a_random_corner_of_a_rectangle() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = {random_corner(5, 9, (4, 7), generator) for _ in range(200)}
    assert corners == {(y, x) for y in range(2) for x in range(3)}
