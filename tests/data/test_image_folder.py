"""Folders of pictures, each a class, and PatternNet in its layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image

from geoseg.config import build, plain
from geoseg.data.image_folder import ImageFolder
from geoseg.data.module import DataModule

# fmt: off
PATTERNNET = [
    "airplane", "baseball_field", "basketball_court", "beach", "bridge", "cemetery", "chaparral",
    "christmas_tree_farm", "closed_road", "coastal_mansion", "crosswalk", "dense_residential", "ferry_terminal",
    "football_field", "forest", "freeway", "golf_course", "harbor", "intersection", "mobile_home_park",
    "nursing_home", "oil_gas_field", "oil_well", "overpass", "parking_lot", "parking_space", "railway", "river",
    "runway", "runway_marking", "shipping_yard", "solar_panel", "sparse_residential", "storage_tank",
    "swimming_pool", "tennis_court", "transformer_station", "wastewater_treatment_plant",
]
# fmt: on
"""The folders of the data set as torchgeo hands it out."""


def fill(root: Path, classes: dict[str, int], suffix: str = "png", seed: int = 0, side: int = 16) -> Path:
    """Folders of noise; the class's number is in the mean of its pictures."""
    rng = np.random.default_rng(seed)
    for label, (name, count) in enumerate(classes.items()):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(1, count + 1):
            pixels = (20 * label + rng.integers(0, 60, (side, side, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name.replace(' ', '')}{number:03d}.{suffix}")
    return root


def test_patternnet_is_read_as_it_is_handed_out(tmp_path: Path, compose: Callable[[list[str]], DictConfig]) -> None:
    fill(tmp_path / "images", dict.fromkeys(PATTERNNET, 4), "jpg")
    words = ["data=patternnet", f"data.root={tmp_path}", "data.source.val=38", "data.source.test=38"]
    data = build(plain(compose([*words, "data.num_train=70"]))["data"], "data")
    data.prepare()
    source = data.source
    assert (source.title, source.num_classes, len(source.names)) == ("PatternNet", 38, 152)
    assert source.class_names[1] == "baseball field" and source.class_names[37] == "wastewater treatment plant"
    assert "airplane/airplane001.jpg" in source.names
    sample = source.read("baseball_field/baseball_field003.jpg")
    assert sample.image.shape == (16, 16, 3) and int(sample.target) == 1
    assert sample.caption == source.words(1) == "a satellite image of baseball field"
    for split in ("val", "test"):
        assert Counter(map(source.label, data.names[split])) == dict.fromkeys(range(38), 1)
    assert set(Counter(map(source.label, data.names["train"])).values()) == {1, 2}
    assert data.palette.num_classes == 38


def test_the_splits_do_not_depend_on_the_seed_of_a_run(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 9, "b": 6, "c": 3})
    source = ImageFolder(str(tmp_path), val=3, test=1 / 3)
    held = []
    for seed in (0, 1):
        data = DataModule(source, num_train=None, seed=seed)
        data.prepare()
        held.append((data.names["val"], data.names["test"]))
        assert len(data.names["train"]) == 9
        assert Counter(map(source.label, data.names["test"])) == {0: 3, 1: 2, 2: 1}
    assert held[0] == held[1]
    other = ImageFolder(str(tmp_path), val=3, test=6, split_seed=1)
    assert {name for name in other.names if other.split(name) == "test"} != set(held[0][1])


def test_without_splits_of_its_own_the_data_module_chooses(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 6, "b": 6})
    data = DataModule(ImageFolder(str(tmp_path)), num_train=4, num_val=2)
    data.prepare()
    for split, count in (("train", 2), ("val", 1), ("test", 3)):
        assert Counter(name[0] for name in data.names[split]) == {"a": count, "b": count}


def test_spaces_and_underscores_are_one_class_and_grey_has_three_channels(tmp_path: Path) -> None:
    fill(tmp_path, {"parking lot": 1, "river": 1})
    Image.new("L", (16, 8), 7).save(tmp_path / "river" / "grey.tif")
    source = ImageFolder(str(tmp_path), class_names=["river", "parking_lot"])
    assert source.class_names == ["river", "parking lot"]
    assert source.read("river/grey.tif").image.shape == (8, 16, 3)
    (tmp_path / "parking_lot").mkdir()
    with pytest.raises(ValueError, match="are both the class 'parking lot'"):
        ImageFolder(str(tmp_path))


def test_copies_across_splits_are_told(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "b" / "again.png").write_bytes((tmp_path / "a" / "a001.png").read_bytes())
    source = ImageFolder(str(tmp_path))
    with pytest.raises(ValueError, match="b/again.png: the same picture as a/a001.png; name one"):
        source.check(source.names)
    ImageFolder(str(tmp_path), leave_out=["b/again.png"]).check([name for name in source.names if "again" not in name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "images"}, "there is no folder .*images; give the one that holds the folder images, or"),
        ({"class_names": ["a", "b", "d"]}, "c is none of the 3 classes\n  no folder for the class 'd'"),
        ({"val": 8, "test": 2}, "are 10 pictures, and .* holds 9, so that none is left"),
        ({"val": 1.5}, "val=1.5: a number of pictures is wanted, or a share below 1"),
        ({"template": "land from above"}, "data.source.template=land from above: wanted is {} once"),
        ({"leave_out": ["a/b.png"]}, "leave_out names what is not in .*:\n  a/b.png"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, options: dict[str, object], message: str) -> None:
    fill(tmp_path, dict.fromkeys("abc", 3))
    with pytest.raises(ValueError, match=message):
        ImageFolder(str(tmp_path), **options)  # type: ignore[arg-type]


def test_folders_without_classes_or_pictures_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"holds 1 folder \(a\), and each is a class"):
        ImageFolder(str(tmp_path))
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        ImageFolder(str(tmp_path))


def test_the_fingerprint_follows_content(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 2, "b": 2})
    source = ImageFolder(str(tmp_path))
    before = source.fingerprint(source.names)
    assert before == ImageFolder(str(tmp_path)).fingerprint(source.names)
    Image.new("RGB", (16, 16)).save(tmp_path / "b" / "b002.png")
    assert source.fingerprint(source.names) != before
