"""Parquet files as the mirrors have them, written by pyarrow and PIL."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image

from geoseg.config import build, plain
from geoseg.data.parquet import ParquetFiles

HEIGHT, WIDTH = 5, 7


def encoded(array: np.ndarray) -> dict[str, Any]:
    """A picture as the hub stores it: PNG for bytes, TIFF for longer numbers."""
    stored = io.BytesIO()
    Image.fromarray(array).save(stored, "PNG" if array.dtype == np.uint8 else "TIFF")
    return {"bytes": stored.getvalue(), "path": None}


def image(i: int) -> np.ndarray:
    return np.random.default_rng(i).uniform(-700, 700, (HEIGHT, WIDTH)).astype(np.float32)


def classes(i: int) -> np.ndarray:
    return (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) + i) % 6


def written(path: Path, ids: range, label: Callable[[int], np.ndarray], rows: int = 2) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(exist_ok=True, parents=True)
    cells = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    table = arrow.table(
        {
            "id": arrow.array(list(ids), arrow.int32()),
            "seismic": arrow.array([encoded(image(i)) for i in ids], cells),
            "label": arrow.array([encoded(label(i)) for i in ids], cells),
        }
    )
    parquet.write_table(table, path, row_group_size=rows)


def float_bits(i: int) -> np.ndarray:
    """Labels from 1 as 32-bit floats, their bits read as integers."""
    table = {1: 1065353216, 2: 1073741824, 3: 1077936128, 4: 1082130432, 5: 1084227584, 6: 1086324736}
    return np.vectorize(table.__getitem__)(classes(i) + 1).astype(np.int32)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    written(tmp_path / "data/train-00000-of-00002.parquet", range(0, 5), float_bits)
    written(tmp_path / "data/train-00001-of-00002.parquet", range(5, 8), float_bits)
    written(tmp_path / "data/validation-00000-of-00001.parquet", range(8, 10), float_bits)
    return tmp_path


def test_a_mirror_with_float_labels_read_as_integers(
    compose: Callable[[list[str]], DictConfig], mirror: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["data=sfm_facies_parquet", f"data.root={mirror}", "data.source.parts.train.indices=[0,4]"]
    words += ["data.source.parts.val.indices=[6,7]", "data.source.amplitudes.grey_range=[-700,700]"]
    data = build(plain(compose([*words, "data.num_train=null"]))["data"], "data")
    with caplog.at_level(logging.WARNING, "geoseg"):
        data.prepare()
    assert "floats that were written as integers" in caplog.text
    assert sorted(data.names["train"]) == [f"train_{i}" for i in range(5)]
    assert (data.names["val"], data.names["test"]) == (["val_6", "val_7"], ["test_8", "test_9"])
    for split in data.names.values():
        for name in split:
            i = int(name.rpartition("_")[2])
            found = data.source.read(name)
            np.testing.assert_array_equal(found.target, classes(i))
            assert np.abs(found.image - 255 * (image(i) + 700) / 1400).max() < 0.51
            assert data.source.shape(name) == (HEIGHT, WIDTH)


def test_a_mirror_with_labels_of_one_byte(tmp_path: Path, compose: Callable[[list[str]], DictConfig]) -> None:
    for split, ids in (("train", range(4)), ("valid", range(3)), ("validation", range(9))):  # the last is a stray one
        written(
            tmp_path / f"data/{split}-00000-of-00001.parquet",
            ids,
            lambda i, split=split: ((classes(i) + (split == "valid")) % 6).astype(np.uint8),
        )
    words = ["data=s3_facies_parquet", f"data.root={tmp_path}", "data.source.parts.train.indices=[0,1]"]
    words += ["data.source.parts.val.indices=[3,3]", "data.source.amplitudes.grey_range=null"]
    data = build(plain(compose(words))["data"], "data")
    assert data.source.names == ["train_0", "train_1", "val_3", "test_0", "test_1", "test_2"]
    np.testing.assert_array_equal(data.source.read("test_1").target, (classes(1) + 1) % 6)
    with pytest.raises(ValueError, match="test_0: the same picture as train_0") as error:
        data.prepare()  # both files drew the same pictures
    assert "data.source.leave_out=[test_0]" in str(error.value)


def looked(make: Callable[..., ParquetFiles], *words: Any, **settings: Any) -> None:
    source = make(*words, **settings)
    source.check(source.names)


def test_mistakes_name_the_setting(mirror: Path) -> None:
    def said(**changes: Any) -> str:
        parts = {"train": {"files": "data/train-*.parquet"}}
        settings: dict[str, Any] = {"parts": parts, "class_names": ["a", "b", "c"], "label_offset": 1, **changes}
        with pytest.raises(ValueError, match=r"data\.source|fetch") as error:
            looked(ParquetFiles, str(mirror), **settings)
        return str(error.value)

    assert "data.source.parts.train.files=*.parquet" in said(parts={"train": {"files": "*.parquet"}})
    assert "data.source.parts.train.files is missing" in said(parts={"train": {}})
    assert "has no column for data.source.label=mask; its columns are id, seismic, label" in said(label="mask")
    assert "label values 4, 5, 6 are none of the 3 classes" in said()
    torn = mirror / "data/train-00000-of-00002.parquet"
    torn.write_bytes(torn.read_bytes()[:-9])
    assert "fetch it again" in said()


def test_without_pyarrow_its_extra_is_named(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'geoseg\[parquet\]'"):
        ParquetFiles(str(mirror), {"train": {"files": "data/train-*.parquet"}}, ["a", "b"])
