"""COCO-Stuff-27 and Cityscapes, written in miniature in their own layouts."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geoseg.data.cityscapes import Cityscapes
from geoseg.data.coco_stuff import COARSE, CocoStuff27
from geoseg.data.module import DataModule
from geoseg.data.squares import Squares
from geoseg.types import IGNORE


def draw(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def photograph(seed: int, high: int = 12, wide: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(high, wide, 3))


def label(values: list[int], high: int = 12, wide: int = 20) -> np.ndarray:
    """Stripes from left to right, the outermost of which lie outside the middle square."""
    return np.repeat(np.repeat([values], high, axis=0), wide // len(values), axis=1)


@pytest.fixture
def cities(tmp_path: Path) -> Path:
    samples = [("train", "aachen", 0), ("train", "bochum", 1), ("val", "lindau", 2), ("val", "munster", 3)]
    for part, city, number in samples:
        name = f"{city}_{number:06d}_000019"
        draw(tmp_path / f"leftImg8bit/{part}/{city}/{name}_leftImg8bit.png", photograph(number))
        draw(tmp_path / f"gtFine/{part}/{city}/{name}_gtFine_labelIds.png", label([34, 7, 33, 4, 255]))
        draw(tmp_path / f"gtFine/{part}/{city}/{name}_gtFine_color.png", photograph(9))  # lies there too
    return tmp_path


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    for part, numbers in (("val2017", (139, 285, 632)), ("train2017", (9,))):
        for number in numbers:
            draw(tmp_path / part / f"{number:012d}.jpg", photograph(number))
            draw(tmp_path / f"annotation_{part}" / f"{number:012d}.png", label([0, 181, 91, 255, 3]))
    (tmp_path / "published.txt").write_text("000000000139\n000000000632\n")
    return tmp_path


def test_cityscapes(cities: Path) -> None:
    source = Cityscapes(str(cities), side=6)
    source.check(source.names)
    assert source.names == [f"{c}_00000{i}_000019" for i, c in enumerate(("aachen", "bochum", "lindau", "munster"))]
    assert [source.split(name) for name in source.names] == ["val", "val", "test", "test"]
    assert source.num_classes == 27 and source.class_names[0] == "road" and source.class_names[-1] == "bicycle"
    sample = source.read(source.names[2])
    assert (sample.image.shape, sample.image.dtype) == ((6, 6, 3), np.uint8)
    assert sample.target[0].tolist() == [0, 0, 26, 26, IGNORE, IGNORE]  # the outer stripes were cut off
    middle = Image.fromarray(photograph(2).astype(np.uint8)[:, 4:16]).resize((6, 6), Image.Resampling.BILINEAR)
    assert np.array_equal(sample.image, np.asarray(middle))


def test_coco_stuff(coco: Path) -> None:
    source = CocoStuff27(str(coco), side=6)
    source.check(source.names)
    splits = [source.split(name) for name in source.names]
    assert splits == ["val", "test", "test", "test"]
    sample = source.read("000000000285")
    assert sample.target[0].tolist() == [24, 24, 17, 17, IGNORE, IGNORE]
    listed = CocoStuff27(str(coco), ids="published.txt", side=6)
    assert [name for name in listed.names if listed.split(name) == "test"] == ["000000000139", "000000000632"]
    assert source.class_names[9] == "person" and source.class_names[23] == "sky"


def test_the_classes_of_coco_stuff_are_joined_as_published() -> None:
    counts = Counter(COARSE)
    assert len(COARSE) == 182 and sorted(counts) == list(range(27))
    assert sha256(bytes(COARSE)).hexdigest() == "5b6c6ce82fb97a8c2d29cc61a451953c867c5aa043372a5286bbf668351e7129"
    # things by their numbers in COCO: person; vehicles, animals, food, all others
    assert COARSE[0] == 9 and counts[9] == 1
    assert [COARSE[i] for i in (1, 8, 9, 15, 24, 60, 90)] == [11, 11, 8, 7, 7, 2, 4]
    assert [COARSE[i] for i in (95, 105, 113, 119, 156, 168, 170, 180)] == [20, 23, 13, 26, 23, 22, 18, 19]


@pytest.mark.parametrize(("kind", "folder"), [(Cityscapes, "cities"), (CocoStuff27, "coco")])
def test_they_are_test_sets_for_methods_that_learn_nothing(
    kind: type[Squares], folder: str, request: pytest.FixtureRequest
) -> None:
    source = kind(str(request.getfixturevalue(folder)), side=6)  # type: ignore[call-arg, arg-type]
    data = DataModule(source, num_train=None, num_val=1)
    data.prepare()
    assert (len(data.train), len(data.val)) == (0, 1) and len(data.test) >= 2
    before = source.fingerprint(source.names)
    assert kind(str(request.getfixturevalue(folder)), side=8).fingerprint(source.names) != before  # type: ignore[call-arg, arg-type]
    with pytest.raises(ValueError, match=r"data\.num_train=2, but 0 labelled"):
        DataModule(source, num_train=2).prepare()


def test_what_is_missing_is_told(cities: Path, coco: Path) -> None:
    (cities / "gtFine/val/lindau/lindau_000002_000019_gtFine_labelIds.png").unlink()
    source = Cityscapes(str(cities), side=6)
    draw(cities / "gtFine/val/munster/munster_000003_000019_gtFine_labelIds.png", label([7, 8], 10, 10))
    with pytest.raises(ValueError, match=r"(?s)2 of the samples of Cityscapes.*no label map.*\[12, 20\].*\[10, 10\]"):
        source.check(source.names)
    with pytest.raises(ValueError, match=r"no leftImg8bit/val/CITY"):
        Cityscapes(str(coco / "val2017"))
    with pytest.raises(ValueError, match=r"no val2017/ID\.jpg"):
        CocoStuff27(str(cities / "gtFine"))
    with pytest.raises(ValueError, match="data.source.ids: there is no file"):
        CocoStuff27(str(coco), ids="none.txt")
    (coco / "published.txt").write_text("000000000001\n")
    with pytest.raises(ValueError, match="(?s)does not hold.*000000000001"):
        CocoStuff27(str(coco), ids="published.txt")
    with pytest.raises(ValueError, match="a number of pixels is wanted"):
        CocoStuff27(str(coco), side=0)
