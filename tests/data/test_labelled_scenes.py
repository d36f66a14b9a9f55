"""Drawn scenes whose regions are known to the pixel."""

from __future__ import annotations

import numpy as np
import pytest

from geoseg.data.module import DataModule
from geoseg.data.scenes import random_colours
from geoseg.data.synthetic import SyntheticScenes


def test_flat_and_textured_scenes_are_divided_alike() -> None:
    flat, textured = (SyntheticScenes(look, size=48, test=6) for look in ("flat", "textured"))
    for name in [name for name in flat.names if name.startswith("test")]:
        plain, rough = flat.read(name), textured.read(name)
        assert np.array_equal(plain.target, rough.target)
        assert plain.image.shape == rough.image.shape == (48, 48, 3)
        counts = np.bincount(plain.target.ravel())
        assert 2 <= len(counts) <= 6 and (np.diff(counts) <= 0).all() and counts.min() > 0
        colours = [np.unique(plain.image[plain.target == k], axis=0) for k in range(len(counts))]
        assert all(len(own) == 1 for own in colours)  # one colour in all of a material
        assert len(np.unique(np.concatenate(colours), axis=0)) == len(counts)
        assert len(np.unique(rough.image.reshape(-1, 3), axis=0)) > len(counts)
        again = SyntheticScenes("textured", size=48, test=6).read(name)
        assert np.array_equal(again.image, rough.image)
    assert flat.fingerprint(flat.names) != textured.fingerprint(textured.names)


def test_there_is_nothing_to_train_on() -> None:
    data = DataModule(SyntheticScenes(size=32, val=3, test=2), num_train=None)
    data.prepare()
    assert [len(data.names[split]) for split in ("train", "val", "test")] == [0, 3, 2]


def test_colours_are_told_apart() -> None:
    for seed in range(10):
        colours = random_colours(np.random.default_rng(seed), 6)
        gaps = np.linalg.norm(colours[:, None] - colours[None], axis=2)[np.triu_indices(6, 1)]
        assert gaps.min() >= 0.35
        assert colours.min() >= 0 and colours.max() <= 1


@pytest.mark.parametrize(
    ("options", "told"), [({"look": "fair"}, "flat or textured"), ({"materials": 1}, "two at least")]
)
def test_scenes_that_are_not_drawn(options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SyntheticScenes(**options)
