"""Drawn scenes of one class each."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from geoseg.data.module import DataModule
from geoseg.data.scene_classes import KINDS, SceneClasses


@pytest.fixture(scope="module")
def source() -> SceneClasses:
    return SceneClasses(size=64, train=40, val=10, test=20)


def test_a_picture_has_the_class_that_its_number_says(source: SceneClasses) -> None:
    assert source.num_classes == len(KINDS) == 10
    sample = source.read("train_0013")
    assert (sample.image.shape, sample.image.dtype) == ((64, 64, 3), np.uint8)
    assert (sample.target.shape, int(sample.target)) == ((), source.label("train_0013")) == ((), 3)
    assert sample.caption == source.words(3) == "a satellite image of storage tanks"


def test_every_class_is_drawn_and_no_two_pictures_are_the_same(source: SceneClasses) -> None:
    images = [source.read(name).image for name in source.names[:20]]
    assert len({image.tobytes() for image in images}) == 20
    assert all(image.std() > 2 for image in images)


def test_a_picture_is_a_function_of_seed_and_name(source: SceneClasses) -> None:
    again, other = SceneClasses(size=64, train=99), SceneClasses(size=64, seed=1)
    for name in ("train_0000", "train_0007"):
        assert (again.read(name).image == source.read(name).image).all()
        assert (other.read(name).image != source.read(name).image).any()
    assert source.fingerprint(["train_0000"]) == again.fingerprint(["train_0000"]) != other.fingerprint(["train_0000"])


def test_splits_do_not_share_pictures(source: SceneClasses) -> None:
    firsts = [source.read(f"{split}_0000").image.tobytes() for split in ("train", "val", "test")]
    assert len(set(firsts)) == 3


@pytest.mark.parametrize("count", [10, 17])
def test_chosen_samples_have_all_classes_alike(source: SceneClasses, count: int) -> None:
    data = DataModule(source, num_train=count, seed=3)
    data.prepare()
    counts = Counter(source.label(name) for name in data.names["train"])
    assert len(counts) == 10 and max(counts.values()) - min(counts.values()) <= 1
    assert data.train[0]["target"].shape == ()
