"""Folders of pictures as users have them: what is read, and what every kind of mistake is answered with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geoseg.data.module import DataModule
from geoseg.data.profiles import ProfileFolder
from geoseg.types import IGNORE


def folder(root: Path, count: int = 3, size: tuple[int, int] = (6, 8), classes: int = 3) -> Path:
    """Writes profiles and label maps that hold every class."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(root / "images" / f"line{i}.png")
        target = rng.integers(0, classes, size, dtype=np.uint8)
        target.flat[:classes] = np.arange(classes)
        Image.fromarray(target).save(root / "labels" / f"line{i}.png")
    return root


def offenders(root: Path, **options: Any) -> str:
    """What the check says about all samples."""
    source = ProfileFolder(str(root), **options)
    with pytest.raises(ValueError, match="cannot be used") as error:
        source.check(source.names)
    return str(error.value)


def mode(path: Path) -> str:
    """What the pixels of a picture file are."""
    with Image.open(path) as picture:
        return picture.mode


def test_pairs_are_read_as_they_lie_on_disk(tmp_path: Path) -> None:
    source = ProfileFolder(str(folder(tmp_path)))
    source.check(source.names)
    assert source.names == ["line0", "line1", "line2"]
    assert source.num_classes == 3
    assert source.class_names == ["class 0", "class 1", "class 2"]
    for name in source.names:
        image, target, caption = source.read(name)
        np.testing.assert_array_equal(image, np.asarray(Image.open(tmp_path / "images" / f"{name}.png")))
        np.testing.assert_array_equal(target, np.asarray(Image.open(tmp_path / "labels" / f"{name}.png")))
        assert image.dtype == target.dtype == np.uint8
        assert caption == ""
        assert source.shape(name) == (6, 8)
        assert source.split(name) is None


def test_a_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "survey")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(ProfileFolder("~/survey").names) == 3


def test_images_and_labels_may_be_of_different_formats(tmp_path: Path) -> None:
    folder(tmp_path, count=2)
    for i in range(2):
        path = tmp_path / "images" / f"line{i}.png"
        Image.open(path).save(path.with_suffix(".TIFF"), format="TIFF")
        path.unlink()
    (tmp_path / "images" / "notes.txt").write_text("not a picture, and not looked at")
    source = ProfileFolder(str(tmp_path))
    source.check(source.names)
    assert source.shape("line1") == (6, 8)


def test_grey_in_colour_is_grey_and_colour_stays_colour(tmp_path: Path) -> None:
    folder(tmp_path)
    grey = np.asarray(Image.open(tmp_path / "images" / "line0.png"))
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(tmp_path / "images" / "line0.png")
    colour = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "images" / "line1.png")
    source = ProfileFolder(str(tmp_path))
    source.check(source.names)
    np.testing.assert_array_equal(source.read("line0").image, grey)
    np.testing.assert_array_equal(source.read("line1").image, colour)


def test_255_is_ignored_and_is_no_class(tmp_path: Path) -> None:
    folder(tmp_path)
    target = np.full((6, 8), IGNORE, np.uint8)
    target[0, 0] = 1
    Image.fromarray(target).save(tmp_path / "labels" / "line1.png")
    source = ProfileFolder(str(tmp_path))
    source.check(source.names)
    assert source.num_classes == 3
    np.testing.assert_array_equal(source.read("line1").target, target)


def test_a_palette_picture_holds_its_indices(tmp_path: Path) -> None:
    folder(tmp_path)
    indices = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3
    picture = Image.frombytes("P", (8, 6), indices.tobytes())
    picture.putpalette([240, 10, 10, 10, 240, 10, 10, 10, 240])
    picture.save(tmp_path / "labels" / "line0.png")
    assert mode(tmp_path / "labels" / "line0.png") == "P"
    source = ProfileFolder(str(tmp_path))
    source.check(source.names)
    np.testing.assert_array_equal(source.read("line0").target, indices)


def test_a_mask_of_one_bit_holds_two_classes(tmp_path: Path) -> None:
    folder(tmp_path, classes=2)
    mask = np.arange(48).reshape(6, 8) % 3 == 0
    Image.fromarray(mask).save(tmp_path / "labels" / "line0.png")
    assert mode(tmp_path / "labels" / "line0.png") == "1"
    source = ProfileFolder(str(tmp_path))
    source.check(source.names)
    np.testing.assert_array_equal(source.read("line0").target, mask.astype(np.uint8))


def test_label_values_give_classes_in_order(tmp_path: Path) -> None:
    folder(tmp_path, count=2)
    stored = np.array([[0, 255, 128], [128, 0, 255]], np.uint8)
    for i in range(2):
        Image.fromarray(stored + 0).save(tmp_path / "labels" / f"line{i}.png")
        Image.fromarray(np.full((2, 3), 7 + i, np.uint8)).save(tmp_path / "images" / f"line{i}.png")
    source = ProfileFolder(str(tmp_path), label_values=[255, 0, 128], class_names=["salt", "sea", "rest"])
    source.check(source.names)
    assert source.num_classes == 3
    assert source.read("line0").target.tolist() == [[1, 0, 2], [2, 1, 0]]
    # a mask of 0 and 255, of which 255 is no longer "ignore"
    both = ProfileFolder(str(tmp_path), label_values=[0, 255])
    assert both.read("line0").target.tolist() == [[0, 1, IGNORE], [IGNORE, 0, 1]]
    with pytest.raises(ValueError, match=r"label values 128 are none of the 2 classes"):
        both.check(both.names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "pictures"}, r"pictures is no folder; data\.source\.images names the one inside"),
        ({"labels": "masks"}, r"masks is no folder; data\.source\.labels names"),
        ({"num_classes": 1}, "one class only"),
        ({"class_names": ["a", "b"]}, "has 2 names for 3 classes"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    folder(tmp_path)
    with pytest.raises(ValueError, match=message):
        ProfileFolder(str(tmp_path), **options)


def test_no_folder_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root=.*nowhere is no folder; give the one that holds 'images'"):
        ProfileFolder(str(tmp_path / "nowhere"))
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"images holds no picture \(\.png, "):
        ProfileFolder(str(tmp_path))


def test_labels_of_one_class_are_no_segmentation(tmp_path: Path) -> None:
    folder(tmp_path, classes=1)
    with pytest.raises(ValueError, match=r"hold one class only.*label_values=\[0,255\]"):
        ProfileFolder(str(tmp_path))


def test_what_has_no_partner_is_named(tmp_path: Path) -> None:
    folder(tmp_path, count=4)
    (tmp_path / "labels" / "line1.png").unlink()
    (tmp_path / "images" / "line3.png").rename(tmp_path / "images" / "lime3.png")
    with pytest.raises(ValueError, match="do not pair up by file name") as error:
        ProfileFolder(str(tmp_path))
    assert str(error.value).splitlines()[1:] == [
        "  lime3.png: no label map; draw one, or move the profile away",
        "  line1.png: no label map; draw one, or move the profile away",
        "  line3.png: no profile",
    ]


def test_what_else_is_wrong_is_told_with_what_has_no_partner(tmp_path: Path) -> None:
    folder(tmp_path, count=4)
    (tmp_path / "labels" / "line1.png").unlink()
    (tmp_path / "images" / "line2.png").write_bytes(b"torn")
    with pytest.raises(ValueError, match="do not pair up by file name") as error:
        ProfileFolder(str(tmp_path))
    assert [line.split(":")[0] for line in str(error.value).splitlines()[1:]] == ["  line1.png", "  line2.png"]


def test_files_that_are_no_pictures_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path, count=4)
    (tmp_path / "images" / "volume.sgy").write_bytes(b"")
    (tmp_path / "images" / ".hidden").write_bytes(b"")
    ProfileFolder(str(tmp_path))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'images'}: left out, since they are no pictures: volume.sgy"
    ]


def test_a_gap_between_labels_is_asked_about(tmp_path: Path) -> None:
    folder(tmp_path, classes=3)
    with Image.open(tmp_path / "images" / "line1.png") as picture:
        Image.fromarray(np.full((picture.height, picture.width), 5, np.uint8)).save(tmp_path / "labels" / "line1.png")
    with pytest.raises(
        ValueError, match=r"no label map holds the value 3, 4, but there is 5 in line1\.png; mend"
    ) as error:
        ProfileFolder(str(tmp_path))
    assert "data.source.num_classes=6" in str(error.value)
    assert ProfileFolder(str(tmp_path), num_classes=6).num_classes == 6


def test_two_pictures_of_one_name(tmp_path: Path) -> None:
    folder(tmp_path)
    Image.new("L", (8, 6)).save(tmp_path / "images" / "line1.bmp")
    with pytest.raises(ValueError, match=r"line1\.bmp and line1\.png in .*images share one name"):
        ProfileFolder(str(tmp_path))


def test_the_first_ten_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    folder(tmp_path, count=14)
    for path in sorted((tmp_path / "labels").iterdir())[:13]:
        path.unlink()
    with pytest.raises(ValueError, match="do not pair up") as error:
        ProfileFolder(str(tmp_path))
    lines = str(error.value).splitlines()
    assert len(lines) == 12
    assert lines[-1].strip() == "... and 3 more"


def test_every_kind_of_broken_picture_at_once(tmp_path: Path) -> None:
    folder(tmp_path, count=7, size=(40, 40))
    images, labels = tmp_path / "images", tmp_path / "labels"
    (images / "line0.png").write_text("I am a text\n")
    (images / "line1.png").write_bytes((images / "line1.png").read_bytes()[:200])
    (labels / "line2.png").write_bytes(b"")
    Image.new("L", (40, 39)).save(labels / "line3.png")
    Image.fromarray(np.full((40, 40), 9, np.uint8)).save(labels / "line4.png")
    Image.new("RGB", (40, 40)).save(labels / "line5.png")
    said = offenders(tmp_path, num_classes=3)
    assert said.startswith(f"6 of the samples in {tmp_path} cannot be used:")
    for line in (
        "line0.png: not a picture, whatever its name says; replace it",
        "line1.png: unreadable or truncated (",
        "line2.png: not a picture",
        "line3.png: 40 pixels high and 40 wide, but its label map line3.png is 39 high and 40 wide",
        "line4.png: label values 9 are none of the 3 classes; set data.source.num_classes, or data.source.label_values",
        "line5.png: a label map holds one 8-bit value per pixel (class index), this one is RGB",
    ):
        assert f"\n  {line}" in said
    assert "line6" not in said


def test_a_png_with_a_damaged_middle(tmp_path: Path) -> None:
    folder(tmp_path, size=(40, 40))
    path = tmp_path / "images" / "line1.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "line1.png: unreadable or truncated" in offenders(tmp_path)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_are_refused_not_cut(tmp_path: Path, mode: str) -> None:
    folder(tmp_path)
    deep = np.arange(48).reshape(6, 8) * 1000
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    (tmp_path / "images" / "line0.png").unlink()
    Image.fromarray(deep.astype(dtype)).save(tmp_path / "images" / "line0.tif")
    said = offenders(tmp_path)
    assert f"line0.tif: pixels are of type {mode}, with values 0 to 47000; say for all profiles" in said
    assert "(of those with more than 8 bits, 'data.source.grey_range=[0,47000]' takes all values)" in said


def test_16_bit_png_is_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    Image.fromarray((np.arange(48).reshape(6, 8) * 1000).astype(np.uint16)).save(tmp_path / "images" / "line0.png")
    Image.fromarray((np.arange(48).reshape(6, 8) % 3).astype(np.uint16)).save(tmp_path / "labels" / "line1.png")
    said = offenders(tmp_path)
    assert "line0.png: pixels are of type I;16, with values 0 to 47000; say for all" in said
    assert "line1.png: a label map holds one 8-bit value per pixel (class index), this one is I;16" in said


def test_the_same_picture_in_train_and_test_would_leak(tmp_path: Path) -> None:
    folder(tmp_path, count=6)
    picture = Image.open(tmp_path / "images" / "line4.png")
    picture.save(tmp_path / "images" / "line1.png", compress_level=0)  # other bytes, same pixels
    data = DataModule(ProfileFolder(str(tmp_path)), num_train=3)
    with pytest.raises(
        ValueError, match=r"line\d.png: the same picture as line\d.png; a copy would leak between the splits"
    ):
        data.prepare()


def test_too_few_label_maps_for_the_training(tmp_path: Path) -> None:
    data = DataModule(ProfileFolder(str(folder(tmp_path))), num_train=4)
    with pytest.raises(ValueError, match=r"data\.num_train=4, but 3 labelled samples are there.*ask for 1 to 3"):
        data.prepare()


def test_only_samples_in_use_are_checked(tmp_path: Path) -> None:
    folder(tmp_path, count=5)
    data = DataModule(ProfileFolder(str(tmp_path)), select=["line0"], num_train=1, num_test=2)
    data.prepare()
    used = data.names["train"] + data.names["test"]
    unused = [name for name in data.source.names if name not in used]
    assert len(unused) == 2
    (tmp_path / "images" / f"{unused[0]}.png").write_text("broken")
    DataModule(ProfileFolder(str(tmp_path)), select=["line0"], num_train=1, num_test=2).prepare()


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    folder(tmp_path / "a", count=3)
    folder(tmp_path / "b", count=3)
    first = ProfileFolder(str(tmp_path / "a"))
    here = first.fingerprint(first.names)
    assert here == ProfileFolder(str(tmp_path / "b")).fingerprint(first.names)  # a copy elsewhere is the same data
    assert here != first.fingerprint(first.names[:2])
    # what a value means is content too: with other label_values the same files hold other classes
    meant = {
        ProfileFolder(str(tmp_path / "a"), label_values=v).fingerprint(first.names) for v in ([0, 1, 2], [2, 1, 0])
    }
    assert len(meant | {here}) == 3
    for part in ("labels", "images"):
        path = tmp_path / "a" / part / "line2.png"
        picture = np.asarray(Image.open(path)).copy()
        picture[3, 3] = (picture[3, 3] + 1) % 3
        Image.fromarray(picture).save(path)
        changed = first.fingerprint(first.names)
        assert changed != here
        here = changed


def test_a_split_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path, count=5)
    (root / "splits.csv").write_text("name,split\nline0, train\nline3,train\n\nline1,validation\nline2,test\n")
    with caplog.at_level(logging.WARNING, "geoseg"):
        source = ProfileFolder(str(root), split_file="splits.csv")
    assert "line4" in caplog.text  # it is in no line
    data = DataModule(source, num_train=None)
    data.prepare()
    assert {split: sorted(names) for split, names in data.names.items()} == {
        "train": ["line0", "line3"],
        "val": ["line1"],
        "test": ["line2"],
    }


def test_what_is_wrong_with_a_split_file(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "splits.csv").write_text("line0,train\nline9,test\nline1,later\nline0,test\n")
    with pytest.raises(ValueError, match=r"data.source.split_file=splits.csv cannot be used") as error:
        ProfileFolder(str(root), split_file="splits.csv")
    for said in (
        "line 2: there is no profile 'line9'",
        "line 3: 'line1,later'; name,train",
        "line 4: line0 is in train",
    ):
        assert said in str(error.value)
    with pytest.raises(ValueError, match=r"data.source.split_file=nowhere.csv: there is no "):
        ProfileFolder(str(root), split_file="nowhere.csv")


def test_folders_that_say_the_splits(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("valid", 1), ("test", 2)):
        folder(tmp_path / part, count=count)
    for i, path in enumerate(sorted(tmp_path.glob("*/images/*.png"))):  # the same numbers draw the same pictures
        Image.fromarray(np.full((6, 8), 0, np.uint8) + np.arange(8, dtype=np.uint8) + np.uint8(10 * i)).save(path)
    source = ProfileFolder(str(tmp_path))
    data = DataModule(source, num_train=None)
    data.prepare()
    assert {split: sorted(names) for split, names in data.names.items()} == {
        "train": ["train_line0", "train_line1", "train_line2"],
        "val": ["valid_line0"],
        "test": ["test_line0", "test_line1"],
    }
    (tmp_path / "list.txt").write_text("test_line0,train\n")
    with pytest.raises(ValueError, match="say the splits already; choose one"):
        ProfileFolder(str(tmp_path), split_file="list.txt")
