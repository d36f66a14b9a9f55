"""Files of bare numbers, written byte by byte as the published data sets have them."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig

from geoseg.config import build, plain
from geoseg.data.amplitudes import Amplitudes
from geoseg.data.module import DataModule
from geoseg.data.raw import RawFolder
from tests.test_run import records

HEIGHT, WIDTH = 6, 9
NAMES = ["rock", "salt"]


def amplitudes(seed: int, low: float, high: float) -> list[float]:
    return np.random.default_rng(seed).uniform(low, high, HEIGHT * WIDTH).astype(np.float32).tolist()


def s3(root: Path, images: str = "image", labels: str = "label", train: int = 6, valid: int = 3) -> Path:
    """Two folders of pairs: images of little-endian 32-bit floats from 0 to 255, labels of one signed byte, from 0."""
    for k, (split, count) in enumerate({"train": train, "valid": valid}.items()):
        for folder in (images, labels):
            (root / split / folder).mkdir(parents=True)
        for i in range(count):
            values = amplitudes(100 * k + i, 0, 255)
            (root / split / images / f"{i}.dat").write_bytes(struct.pack(f"<{HEIGHT * WIDTH}f", *values))
            classes = [(j + i) % 2 for j in range(HEIGHT * WIDTH)]
            (root / split / labels / f"{i}.dat").write_bytes(struct.pack(f"<{HEIGHT * WIDTH}b", *classes))
    return root


def sfm(root: Path, count: int = 8, classes: int = 6) -> Path:
    """One folder of pairs, both of 32-bit floats; amplitudes about 0, labels from 1."""
    for folder in ("seismic", "label"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        pixels = HEIGHT * WIDTH
        values = [1000 * value for value in amplitudes(i, -1, 1)]
        (root / "seismic" / f"{i}.dat").write_bytes(struct.pack(f"<{pixels}f", *values))
        label = [1.0 + (j + i) % classes for j in range(pixels)]
        (root / "label" / f"{i}.dat").write_bytes(struct.pack(f"<{pixels}f", *label))
    return root


S3_PARTS: dict[str, Any] = {
    "train": {"images": "train/image", "labels": "train/label", "indices": [0, 3]},
    "val": {"images": "train/image", "labels": "train/label", "indices": [5, 5]},
    "test": {"images": "valid/image", "labels": "valid/label", "indices": None},
}
SMALL = [f"data.source.shape=[{HEIGHT},{WIDTH}]", "data.source.parts.train.indices=[0,3]"]
SMALL += ["data.source.parts.val.indices=[5,5]"]


def source(root: Path, **changes: Any) -> RawFolder:
    settings: dict[str, Any] = {
        "parts": S3_PARTS,
        "shape": [HEIGHT, WIDTH],
        "class_names": NAMES,
        "amplitudes": Amplitudes(grey_range=[0, 255]),
        **changes,
    }
    return RawFolder(str(root), **settings)


def error_of(make: Callable[[], Any]) -> str:
    with pytest.raises(ValueError, match=r"data\.(root|source\.)") as error:  # each names a setting
        make()
    return str(error.value)


def checked(root: Path, **changes: Any) -> str:
    made = source(root, **changes)
    return error_of(lambda: made.check(made.names))


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("facies", ("input", "target")),
        ("salt", ("input", "target")),
        ("crater", ("image", "label")),
        ("das", ("image", "label")),
        ("fault", ("image", "label")),
    ],
)
def test_the_five_tasks_in_their_folders(
    compose: Callable[[list[str]], DictConfig], tmp_path: Path, name: str, folders: tuple[str, str]
) -> None:
    root = s3(tmp_path, *folders)
    data = build(plain(compose([f"data=s3_{name}", f"data.root={root}", *SMALL]))["data"], "data")
    data.prepare()
    assert sorted(data.names["train"]) == ["train_0", "train_1", "train_2", "train_3"]
    assert data.names["val"] == ["val_5"]
    assert data.names["test"] == ["test_0", "test_1", "test_2"]  # the published "valid" judges and chooses nothing
    image, target, _ = data.source.read("test_2")
    np.testing.assert_array_equal(image.ravel(), [round(value) for value in amplitudes(102, 0, 255)])
    np.testing.assert_array_equal(target.ravel(), [(j + 2) % 2 for j in range(HEIGHT * WIDTH)])
    assert image.shape == target.shape == data.source.shape("test_2") == (HEIGHT, WIDTH)
    assert data.palette.num_classes == (6 if name == "facies" else 2)


@pytest.mark.parametrize(
    ("name", "published", "train", "test"),
    [
        ("facies", (1006, 782), 250, None),
        ("salt", (224, 224), 3000, None),
        ("crater", (1022, 1022), 1000, None),
        ("das", (512, 512), 115, None),
        ("fault", (896, 896), 1081, None),
        ("sfm facies", (768, 768), 100, (100, 116)),
        ("sfm salt", (224, 224), 3500, (3500, 3999)),
    ],
)
def test_published_sizes_and_splits(
    compose: Callable[[list[str]], DictConfig],
    name: str,
    published: tuple[int, int],
    train: int,
    test: tuple[int, int] | None,
) -> None:
    option = name.replace(" ", "_") if name.startswith("sfm") else f"s3_{name}"
    found = plain(compose([f"data={option}", "data.root=here"]))["data"]["source"]
    parts = found["parts"]
    assert tuple(found["shape"]) == published
    assert parts["train"]["indices"][0] == 0
    assert parts["train"]["indices"][1] < parts["val"]["indices"][0]
    assert parts["val"]["indices"][1] == train - 1
    assert parts["test"]["indices"] == (None if test is None else list(test))
    mirror = plain(compose([f"data={option}_parquet", "data.root=here"]))["data"]["source"]
    for split in ("train", "val"):
        assert mirror["parts"][split]["indices"] == parts[split]["indices"]
    for key in ("title", "class_names", "label_offset", "amplitudes", "unit"):
        assert mirror[key] == found[key]


def test_float_labels_that_begin_at_one_and_a_measured_scale(
    compose: Callable[[list[str]], DictConfig], tmp_path: Path
) -> None:
    words = ["data=sfm_facies", f"data.root={sfm(tmp_path)}", f"data.source.shape=[{HEIGHT},{WIDTH}]"]
    words += [f"data.source.parts.{split}.indices={span}" for split, span in SPANS.items()]
    data = build(plain(compose([*words, "data.source.amplitudes.clip=100", "data.num_train=null"]))["data"], "data")
    data.prepare()
    assert sorted(data.names["train"]) == ["train_0", "train_1", "train_2"]
    assert (data.names["val"], data.names["test"]) == (["val_5"], ["test_6", "test_7"])
    image, target, _ = data.source.read("test_7")
    np.testing.assert_array_equal(target.ravel(), [(j + 7) % 6 for j in range(HEIGHT * WIDTH)])
    # white is the largest amplitude of the sections for training, and of no other
    most = max(abs(1000 * value) for i in range(3) for value in amplitudes(i, -1, 1))
    wanted = [min(255, max(0, 255 * (1000 * value + most) / (2 * most))) for value in amplitudes(7, -1, 1)]
    assert np.abs(image.ravel() - np.array(wanted)).max() <= 0.5001


SPANS = {"train": "[0,2]", "val": "[5,5]", "test": "[6,7]"}


def test_a_run_from_raw_files(run_cli: Callable[..., int], tmp_path: Path) -> None:
    root = s3(tmp_path / "geobody", "input", "target")
    words = ["data=s3_salt", f"data.root={root}", *SMALL, "method=input_as_is", "trainer=cpu", "logger=files"]
    assert run_cli("run", *words, "progress=false", "figure_rows=1") == 0
    (record,) = records(tmp_path / "runs").values()
    assert record["data"]["name"] == "S3 salt"
    assert record["data"]["class_names"] == ["sediment", "salt"]
    assert record["data"]["test"] == ["test_0", "test_1", "test_2"]
    assert record["units"]["unit"] == "patch"


def test_every_mistake_names_the_setting_that_mends_it(tmp_path: Path) -> None:
    root = s3(tmp_path / "data")
    assert "data.root=" in error_of(lambda: source(tmp_path / "nowhere"))
    assert "data.source.shape=[6]" in error_of(lambda: source(root, shape=[6]))
    assert "data.source.dtype=text" in error_of(lambda: source(root, dtype="text"))
    assert "data.source.class_names" in error_of(lambda: source(root, class_names=["salt"]))

    def parts(split: str, **changes: Any) -> dict[str, Any]:
        return {**S3_PARTS, split: {**S3_PARTS[split], **changes}}

    wrong = {
        "data.source.parts.test.images names": parts("test", images="valid/input"),
        "data.source.parts.val.labels is missing": parts("val", labels=None),
        "data.source.parts.train.indices=[0]": parts("train", indices=[0]),
        "data.source.parts.val.indices: sample 3 is train_3 as well": parts("val", indices=[3, 5]),
        "set data.source.parts.val.indices=[first,last]": parts("val", indices=[5, 9]),
        "['valid']; its parts are train, val, test": {**S3_PARTS, "valid": S3_PARTS["test"]},
    }
    for said, changed in wrong.items():
        assert said in error_of(lambda changed=changed: source(root, parts=changed))
    assert "data.source.leave_out names ['test_9']" in error_of(lambda: source(root, leave_out=["test_9"]))
    size = checked(root, shape=[HEIGHT, WIDTH + 1])
    assert "image/0.dat holds 216 bytes" in size and "data.source.shape" in size
    assert "1 bytes per pixel" in checked(root, label_dtype="float32")
    assert "label values 0 are none of the 2 classes from 1 to 2; set data.source.label_offset" in checked(
        root, label_offset=1
    )
    dark = checked(root, amplitudes=Amplitudes(grey_range=[0, 60000]))
    assert "data.source.amplitudes.grey_range=[0, 60000]" in dark and "null to have the scale measured" in dark


def test_gaps_and_files_without_a_partner(tmp_path: Path) -> None:
    root = s3(tmp_path)
    (root / "train/label/2.dat").unlink()
    said = error_of(lambda: source(root))
    assert "2.dat of train lack their partner" in said and "data.source.parts.train.images" in said
    (root / "train/image/2.dat").unlink()
    said = error_of(lambda: source(root))
    assert "train has no sample 2, 1 of the numbers from 0 to 3" in said
    assert "data.source.parts.train.indices" in said


def test_the_same_picture_in_training_and_test_is_told_and_can_be_left_out(tmp_path: Path) -> None:
    root = s3(tmp_path)
    twin = (root / "train/image/1.dat").read_bytes()
    (root / "valid/image/2.dat").write_bytes(twin)
    assert "test_2: the same picture as train_1" in checked(root)
    made = source(root, leave_out=["test_2"])
    made.check(made.names)
    assert "test_2" not in made.names
    # copies within a split are no leak, nor are pictures of one grey
    (root / "valid/image/2.dat").write_bytes((root / "valid/image/0.dat").read_bytes())
    for place in ("train/image/3.dat", "valid/image/1.dat"):
        (root / place).write_bytes(struct.pack(f"<{HEIGHT * WIDTH}f", *[0.0] * (HEIGHT * WIDTH)))
    made = source(root)
    made.check(made.names)


def test_floats_that_were_read_as_integers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = s3(tmp_path)
    for path in root.glob("*/label/*.dat"):
        path.write_bytes(struct.pack(f"<{HEIGHT * WIDTH}f", *[float(b) for b in path.read_bytes()]))
    floats, integers = source(root, label_dtype="float32"), source(root, label_dtype="int32")
    with caplog.at_level(logging.WARNING, "geoseg"):
        integers.check(integers.names)
    assert [record.getMessage().count("1065353216") for record in caplog.records] == [1]  # told once
    for name in floats.names:
        np.testing.assert_array_equal(floats.read(name).target, integers.read(name).target)
        assert floats.read(name).target.any()


def test_fingerprints_follow_numbers_and_their_meaning(tmp_path: Path) -> None:
    root = s3(tmp_path)

    def print_of(**changes: Any) -> str:
        made = source(root, **changes)
        return made.fingerprint(made.names)

    first = print_of()
    assert first == print_of(title="another", unit="line")
    assert first != print_of(amplitudes=Amplitudes(grey_range=[0, 200]))
    assert first != print_of(amplitudes=Amplitudes())
    path = root / "valid/label/0.dat"
    path.write_bytes(path.read_bytes()[::-1])
    assert first != print_of()


def test_a_data_module_takes_them_in_the_other_order_of_bytes(tmp_path: Path) -> None:
    root = s3(tmp_path)
    wanted = source(root).read("test_1").image
    for path in root.glob("*/image/*.dat"):
        path.write_bytes(struct.pack(f">{HEIGHT * WIDTH}f", *struct.unpack(f"<{HEIGHT * WIDTH}f", path.read_bytes())))
    data = DataModule(source(root, dtype=">f4"), num_train=None)
    data.prepare()
    np.testing.assert_array_equal(data.source.read("test_1").image, wanted)
