"""Pictures whose mattes are known exactly, and folders of mattes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geoseg.data import scenes
from geoseg.data.elsewhere import Elsewhere
from geoseg.data.module import DataModule, Split
from geoseg.data.profiles import ProfileFolder
from geoseg.data.splits import Splits
from geoseg.data.synthetic import SyntheticEarth, SyntheticMattes


def test_a_white_thing_on_black_ground_shows_its_matte(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is composed with the very alpha that is given: with black behind and white before, it is alpha."""
    surface, leaves = scenes.surface, scenes.leaves
    drawn: list[str] = []

    def flat(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        surface(rng, size)
        drawn.append("surface")
        return np.full((*size, 3), 0.0 if len(drawn) == 1 else 9.0, np.float32)  # bright enough for any tint

    def ground(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        leaves(rng, size)
        drawn.append("leaves")
        return np.zeros((*size, 3), np.float32)

    with monkeypatch.context() as patch:
        patch.setattr(scenes, "surface", flat)
        patch.setattr(scenes, "leaves", ground)
        for seed in range(8):
            drawn.clear()
            image, alpha = scenes.matte(np.random.default_rng(seed), (40, 48))
            assert alpha.dtype == np.float32 and image.shape == (40, 48, 3)
            assert np.abs(image / 255 - alpha[..., None]).max() <= 0.5 / 255 + 1e-6


def test_where_there_is_no_thing_the_ground_is_seen() -> None:
    for seed in range(4):
        image, alpha = scenes.matte(np.random.default_rng(seed), (40, 40))
        rng = np.random.default_rng(seed)
        ground = (scenes.leaves if rng.random() < 0.5 else scenes.surface)(rng, (40, 40))
        bare = alpha == 0
        assert bare.any() and np.array_equal(image[bare], np.rint(255 * ground).astype(np.uint8)[bare])


def test_mattes_are_soft_and_the_same_again() -> None:
    source = SyntheticMattes(size=64, train=12, val=2, test=2)
    samples = [source.read(name) for name in source.names]
    alphas = np.stack([sample.target for sample in samples])
    assert alphas.min() == 0 and alphas.max() == 1 and source.num_classes == 2
    assert 0.05 < ((alphas > 0.02) & (alphas < 0.98)).mean() < 0.5
    assert all(0.01 < alpha.mean() < 0.9 for alpha in alphas)
    again = SyntheticMattes(size=64, train=1, val=0, test=0).read("train_0000")
    assert np.array_equal(again.target, alphas[0]) and np.array_equal(again.image, samples[0].image)
    assert source.fingerprint(source.names) != SyntheticMattes(64, 12, 2, 2, seed=1).fingerprint(source.names)


def test_continuous_targets_arrive_as_they_are() -> None:
    source = SyntheticMattes(size=32, train=6, val=0, test=1)
    data = DataModule(source, num_train=2, select="representative")
    data.prepare()
    item = data.train[0]
    assert item["target"].dtype == torch.float32
    assert np.array_equal(item["target"].numpy(), source.read(item["name"]).target)
    assert data.continuous and data.palette is not None and data.palette.hex == ("#000000", "#FFFFFF")
    areas = {name: source.read(name).target.mean() for name in source.names if name.startswith("train")}
    assert min(np.sqrt([a, 1 - a]).sum() for n, a in areas.items() if n in data.names["train"][:1]) == pytest.approx(
        max(np.sqrt([a, 1 - a]).sum() for a in areas.values())
    )
    assert Splits(source).continuous and not Splits(SyntheticEarth(size=16, train=1, val=0, test=1)).continuous
    assert not DataModule(SyntheticEarth(size=16)).continuous


def folder(root: Path, count: int = 2, size: int = 48) -> Path:
    """Pictures and mattes as people keep them: 8-bit grey, white where the thing is."""
    source = SyntheticMattes(size=size, train=count, val=0, test=0, seed=5)
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for i, name in enumerate(source.names):
        sample = source.read(name)
        Image.fromarray(sample.image).save(root / "images" / f"photo{i}.png")
        Image.fromarray(np.rint(255 * sample.target).astype(np.uint8)).save(root / "labels" / f"photo{i}.png")
    return root


def test_a_folder_of_mattes(tmp_path: Path) -> None:
    root = folder(tmp_path / "real")
    source = ProfileFolder(str(root), continuous=True, unit="picture")
    source.check(source.names)
    truth = SyntheticMattes(size=48, train=2, val=0, test=0, seed=5).read("train_0001").target
    read = source.read("photo1").target
    assert read.dtype == np.float32 and np.abs(read - truth).max() <= 0.5 / 255 + 1e-6
    assert read.max() == 1  # what is white is no pixel to ignore
    joined = Elsewhere(SyntheticMattes(size=32, train=2, val=0, test=0), source)
    assert joined.continuous and Split(joined, ["photo0"])[0]["target"].dtype == torch.float32
    classes = (root / "classes").mkdir() or root / "classes"
    for i in range(2):
        Image.fromarray(np.eye(48, dtype=np.uint8)).save(classes / f"photo{i}.png")
    maps = ProfileFolder(str(root), labels="classes")
    assert maps.fingerprint(maps.names) != source.fingerprint(source.names)
    with pytest.raises(ValueError, match="synthetic mattes has mattes and real has classes"):
        Elsewhere(SyntheticMattes(size=32, train=2, val=0, test=0), maps)
    with pytest.raises(ValueError, match="leave data.source.label_values"):
        ProfileFolder(str(root), continuous=True, label_values=[0, 255])
