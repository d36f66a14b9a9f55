"""Near-duplicates: found whatever was done to them, and only them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from geoseg.data.likeness import COPY, Likeness


def ground(seed: int, side: int = 64) -> np.ndarray:
    """Blobs in random colours, uint8 [side, side, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    picture = np.zeros((side, side, 3))
    for _ in range(12):
        centre, width, colour = rng.random(2), rng.uniform(0.05, 0.2), rng.normal(size=3)
        picture += np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / width**2)[..., None] * colour
    picture = (picture - picture.min()) / np.ptp(picture)
    return np.rint(255 * picture).astype(np.uint8)


NAMES = [f"train_{i}" for i in range(40)]
PICTURES = [ground(i) for i in range(40)]


@pytest.fixture(scope="module")
def likeness() -> Likeness:
    return Likeness(NAMES, PICTURES)


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: picture,
        lambda picture: picture[:, ::-1],
        lambda picture: np.rot90(picture, 3),
        lambda picture: np.rot90(picture)[::-1],
        lambda picture: (40 + 0.6 * picture).astype(np.uint8),
        lambda picture: np.roll(picture, (8, -8), (0, 1)),  # by an eighth of its side
        lambda picture: np.roll(picture, (-3, 5), (0, 1)),  # by no whole cells
        lambda picture: np.asarray(Image.fromarray(picture).resize((40, 40), Image.Resampling.BILINEAR)),
        lambda picture: np.clip(picture + np.random.default_rng(0).normal(0, 12, picture.shape), 0, 255).astype(
            "uint8"
        ),
    ],
)
def test_what_was_done_to_a_copy_does_not_hide_it(
    likeness: Likeness, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    for i in (3, 17, 31):
        (found,) = likeness.nearest([change(PICTURES[i])])
        assert found.name == NAMES[i] and found.distance < likeness.threshold


def test_new_pictures_are_no_duplicates(likeness: Likeness) -> None:
    found = likeness.nearest([ground(1000 + i) for i in range(60)])
    # as often as the closest of 40 training pictures would be by chance
    assert sum(one.distance < likeness.threshold for one in found) <= 4
    assert COPY < likeness.threshold < 0.6


def test_the_distance_against_numpy(likeness: Likeness) -> None:
    def cells(picture: np.ndarray) -> np.ndarray:
        grey = picture.astype(float) @ [0.299, 0.587, 0.114]
        return grey.reshape(-1, 4, grey.shape[1] // 4, 4).mean((1, 3))

    new, least = ground(1000), {}
    # 64 pixels in cells of 4: the middle begins at 8, or half a cell later
    middles = [cells(new[y : y + 48, x : x + 48]) for y in (8, 10) for x in (8, 10)]
    for name, picture in zip(NAMES, PICTURES, strict=True):
        other = cells(picture)
        least[name] = 1 - max(
            np.corrcoef(way.ravel(), other[y : y + 12, x : x + 12].ravel())[0, 1]
            for middle in middles
            for k in range(4)
            for way in (np.rot90(middle, k), np.rot90(middle, k)[:, ::-1])
            for y in range(5)
            for x in range(5)
        )
    name = min(least, key=lambda name: least[name])
    (found,) = likeness.nearest([ground(1000)])
    assert found.name == name and found.distance == pytest.approx(least[name], abs=1e-3)


def test_the_threshold_is_that_of_the_closest_two_but_never_none() -> None:
    few = Likeness(NAMES[:5], PICTURES[:5])
    apart = [Likeness([*NAMES[:i], *NAMES[i + 1 : 5]], [*PICTURES[:i], *PICTURES[i + 1 : 5]]) for i in range(5)]
    closest = min(rest.nearest([PICTURES[i]])[0].distance for i, rest in enumerate(apart))
    assert few.threshold == pytest.approx(closest, abs=1e-4)
    assert Likeness(NAMES[:2], [PICTURES[0], PICTURES[0]]).threshold == COPY
    alone = Likeness(NAMES[:1], PICTURES[:1])
    assert alone.threshold == COPY
    assert alone.nearest([PICTURES[0][::-1]])[0].distance < COPY


def test_pictures_of_one_grey_are_like_no_other() -> None:
    flat = np.full((32, 32), 90, np.uint8)
    likeness = Likeness(["flat", "ground"], [flat, PICTURES[0]])
    assert [one.distance for one in likeness.nearest([flat, flat + 1])] == [1.0, 1.0]
