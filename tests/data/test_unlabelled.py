"""Pictures to pretrain on: pure, of one domain, and none that anybody is tested on."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import numpy as np
import pytest

from geoseg.data import earth, scenes, synthetic, unlabelled
from geoseg.data.synthetic import KINDS, Corpus, SyntheticEarth
from geoseg.data.unlabelled import DOMAINS, Unlabelled
from geoseg.demo.examination import SEED
from geoseg.randomness import numpy_stream

GROUND = ("section", "crater_field", "das_record", "texture")
"""All that the synthetic earth and the corpus draw."""


@pytest.mark.parametrize("domain", DOMAINS)
def test_pictures_are_a_function_of_their_name_and_seed(domain: str) -> None:
    one, other = (Unlabelled(4, domain, size=32, val=2) for _ in range(2))
    other.read("val_000001")
    for name in one.names:
        sample = one.read(name)
        assert sample.image.dtype == np.uint8 and sample.image.shape[:2] == one.shape(name) == (32, 64)
        assert sample.target.shape == (32, 64) and not sample.target.any()
        np.testing.assert_array_equal(sample.image, other.read(name).image)
    drawn = [
        source.read(name).image.tobytes() for source in (one, Unlabelled(4, domain, 32, 1, 2)) for name in one.names
    ]
    assert len(set(drawn)) == len(drawn)
    assert one.fingerprint(one.names) != Unlabelled(4, domain, 32, 1, 2).fingerprint(one.names)


def test_the_domains_are_told_apart() -> None:
    first, second = (Unlabelled(2, domain, size=32) for domain in DOMAINS)
    assert first.fingerprint(first.names) != second.fingerprint(second.names)
    with pytest.raises(ValueError, match="choose one of scenes, earth"):
        Unlabelled(2, "sea")


def test_other_domains_hold_nothing_of_the_ground(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("the ground was drawn")

    for module in (earth, synthetic, unlabelled):
        for name in GROUND:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, forbidden)
    source = Unlabelled(24, size=32)
    for name in source.names[:24]:
        source.read(name)
    with pytest.raises(AssertionError, match="the ground was drawn"):
        Unlabelled(1, "earth", size=32).read("train_000000")
    imported = [node for node in ast.walk(ast.parse(inspect.getsource(scenes))) if isinstance(node, ast.ImportFrom)]
    assert not [node.module for node in imported if (node.module or "").startswith("geoseg")]


def test_no_picture_of_a_test_set_is_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the seeds: the streams of numbers are others."""
    keys: dict[str, set[tuple[Any, ...]]] = {"pretraining": set(), "others": set()}
    whose = "pretraining"

    def listen(seed: int, *where: str | int) -> np.random.Generator:
        keys[whose].add((seed, *where))
        return numpy_stream(seed, *where)

    for module in (synthetic, unlabelled):
        monkeypatch.setattr(module, "numpy_stream", listen)
    for seed in (0, 1, SEED):
        whose = "pretraining"
        for domain in DOMAINS:
            source = Unlabelled(2, domain, size=32, seed=seed, val=1)
            for name in source.names:
                source.read(name)
        whose = "others"
        drawn = [SyntheticEarth(kind, 32, 2, 1, 2, seed) for kind in KINDS] + [Corpus(2, 32, seed, 1)]
        for other in drawn:
            for name in other.names:
                other.read(name)
    assert keys["pretraining"] and keys["others"] and not keys["pretraining"] & keys["others"]


def test_all_scenes_fill_their_range_and_half_are_grey() -> None:
    drawn = [scenes.scene(numpy_stream(0, "test", number), (32, 48)) for number in range(60)]
    assert {image.shape for image in drawn} == {(32, 48), (32, 48, 3)}
    assert 15 < sum(image.ndim == 2 for image in drawn) < 45
    assert min(np.ptp(image) for image in drawn if image.ndim == 2) >= 120
    for _, draw in (*scenes.FIELDS, *scenes.SCENES):
        for number in range(5):
            field = draw(numpy_stream(1, "field", number), (32, 48))
            assert field.shape[:2] == (32, 48) and field.min() >= 0 and field.max() <= 1 and field.std() > 0
