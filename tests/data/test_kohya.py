"""kohya's training folders: what is read, and what is told where it cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geoseg.data.kohya import KohyaFolder
from geoseg.data.module import DataModule
from geoseg.types import IGNORE


def draw(path: Path, height: int = 8, width: int = 12, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3) + np.uint8(value)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pictures to be met ten times and two twice; a.png and d.png have captions of their own."""
    for i, name in enumerate(("a.png", "b.jpg", "c.webp")):
        draw(tmp_path / "10_vai1 label map" / name, value=i)
    for i, name in enumerate(("a.png", "d.png")):
        draw(tmp_path / "2_dark_salt" / name, height=9, value=7 + i)
    (tmp_path / "10_vai1 label map" / "a.txt").write_text("seven layers\na second line\n")
    (tmp_path / "2_dark_salt" / "d.caption").write_bytes(b"\xef\xbb\xbfa dome, \xc3\xbcber\r\n")
    return tmp_path


def test_pictures_captions_and_repeats(root: Path) -> None:
    source = KohyaFolder(str(root))
    source.check(source.names)
    found = {name: (source.repeats(name), source.read(name).caption, source.shape(name)) for name in source.names}
    assert found == {
        "10_vai1 label map/a.png": (10, "seven layers", (8, 12)),
        "10_vai1 label map/b.jpg": (10, "vai1 label map", (8, 12)),
        "10_vai1 label map/c.webp": (10, "vai1 label map", (8, 12)),
        "2_dark_salt/a.png": (2, "dark_salt", (9, 12)),  # kohya joins the words again by "_"
        "2_dark_salt/d.png": (2, "a dome, über", (9, 12)),
    }
    sample = source.read("2_dark_salt/a.png")
    assert (sample.image.shape, sample.image.dtype) == ((9, 12, 3), np.uint8)
    assert sample.target.shape == (9, 12) and (sample.target == IGNORE).all()
    assert (source.num_classes, source.class_names, source.title) == (0, [], root.name)


def test_the_whole_folder_is_for_training_but_what_is_kept_back(root: Path) -> None:
    for num_val, counts in ((0, (5, 0, 0)), (2, (3, 2, 0))):
        data = DataModule(KohyaFolder(str(root)), num_train=None, num_val=num_val, num_test=0)
        data.prepare()
        assert (len(data.train), len(data.val), len(data.test)) == counts
        assert data.palette is None
        assert sorted(data.train.repeats + data.val.repeats) == [2, 2, 10, 10, 10]
    with pytest.raises(ValueError, match="data.num_train=0, but 0 labelled .* beside the 5 .*; lower these"):
        DataModule(KohyaFolder(str(root)), num_train=None, num_val=5).prepare()


def test_the_fingerprint_follows_captions_pictures_and_repeats_but_not_the_place(root: Path) -> None:
    source = KohyaFolder(str(root))
    first = source.fingerprint(source.names)
    moved = root.rename(root.with_name("moved"))
    again = KohyaFolder(str(moved))
    assert again.fingerprint(again.names) == first
    (moved / "10_vai1 label map" / "b.txt").write_text("other words")
    assert again.fingerprint(again.names) != first
    (moved / "10_vai1 label map" / "b.txt").unlink()
    (moved / "10_vai1 label map").rename(moved / "11_vai1 label map")
    other = KohyaFolder(str(moved))
    assert other.fingerprint(other.names) != first


def test_every_fault_is_listed_at_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = root / "10_vai1 label map"
    (folder / "b.txt").write_text(" \n")
    (folder / "c.caption").write_bytes(b"caf\xe9")
    (folder / "e.txt").write_text("whose?")
    draw(folder / "f.png")
    (folder / "f.txt").write_text("one")
    (folder / "f.caption").write_text("two")
    (folder / "g.png").write_bytes(b"no picture")
    draw(root / "0_never" / "a.png")
    draw(root / "3_" / "a.png")
    (root / "4_empty").mkdir()
    (root / "notes").mkdir()
    with caplog.at_level("WARNING", logger="geoseg"):
        source = KohyaFolder(str(root))
    assert "left out, since no number stands before '_': notes" in caplog.text
    with pytest.raises(ValueError, match="cannot be trained on, for 8 reasons") as told:
        source.check(source.names)
    for words in (
        "0_never: 0 repeats",
        "4_empty: no picture in it",
        "10_vai1 label map: e.txt is the caption of no picture",
        "10_vai1 label map: b.txt: no words in its first line",
        "10_vai1 label map: c.caption: not in UTF-8",
        "10_vai1 label map: f.txt and f.caption are both captions of f.png",
        "10_vai1 label map: g.png: not a picture",
        "3_: a.png: no caption, and its folder's name holds no words",
    ):
        assert words in str(told.value)


def test_folders_that_cannot_be_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        KohyaFolder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="but nothing; make one such as"):
        KohyaFolder(str(tmp_path))
    (tmp_path / "salt").mkdir()
    with pytest.raises(ValueError, match="only salt; write how often to repeat before the name, such as '10_salt'"):
        KohyaFolder(str(tmp_path))
    (tmp_path / "5_salt").mkdir()
    with pytest.raises(ValueError, match=r"there is no picture \(.png.*\) in 5_salt"):
        KohyaFolder(str(tmp_path))
    draw(tmp_path / "5_salt" / "a.png")
    with pytest.raises(ValueError, match="data.root is the folder above it"):
        KohyaFolder(str(tmp_path / "5_salt"))
    draw(tmp_path / "other" / "a.png")
    with pytest.raises(ValueError, match="put them into a folder inside it"):
        KohyaFolder(str(tmp_path / "other"))
