"""Splits by name, by distance and by columns; what would leak, and that it is caught."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image

from geoseg.config import build, plain
from geoseg.data.module import DataModule
from geoseg.data.profiles import ProfileFolder
from geoseg.data.splits import Columns, Splits
from tests.data.test_profiles import folder
from tests.test_run import records

REAL = Path(__file__).resolve().parents[2] / "../shared/data"


def pictures(root: Path, names: list[str], width: int = 40) -> ProfileFolder:
    """Pictures in which every column has a grey of its own, so that a pixel says where it is from."""
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for i, name in enumerate(names):
        columns = np.tile(np.arange(width, dtype=np.uint8) + i * width, (4, 1))
        Image.fromarray(columns).save(root / "images" / f"{name}.png")
        Image.fromarray((columns % 2).astype(np.uint8)).save(root / "labels" / f"{name}.png")
    return ProfileFolder(str(root), num_classes=2)


INLINES = ["inline_100", "inline_110", "inline_150", "inline_200", "other_110"]


def placed(source: Splits) -> dict[str, list[str]]:
    return {split: [n for n in source.names if source.split(n) == split] for split in ("train", "val", "test")}


def test_lists_and_patterns_of_names(tmp_path: Path) -> None:
    source = pictures(tmp_path, INLINES)
    assert placed(Splits(source, test=["inline_1?0"], val=["inline_200"])) == {
        "train": ["other_110"],
        "val": ["inline_200"],
        "test": ["inline_100", "inline_110", "inline_150"],
    }
    only = placed(Splits(source, train=["inline_100"], test=["other_*"]))
    assert only == {"train": ["inline_100"], "val": [], "test": ["other_110"]}
    with pytest.raises(ValueError, match=r"data.source.test names 'inline_7'.*it has inline_100, inline_110"):
        Splits(source, test=["inline_7"])
    with pytest.raises(ValueError, match=r"inline_100 is in data.source.val and data.source.test; choose one"):
        Splits(source, val=["inline_100"], test=["inline_*"])


def test_what_the_data_prescribes_stays_where_nothing_is_said(tmp_path: Path) -> None:
    root = tmp_path / "survey"
    source = pictures(root, INLINES)
    (root / "splits.csv").write_text("name,split\n" + "".join(f"{name},train\n" for name in INLINES[1:]))
    with (root / "splits.csv").open("a") as file:
        file.write("inline_100,test\n")
    source = ProfileFolder(str(root), num_classes=2, split_file="splits.csv")
    found = placed(Splits(source, val=["other_110"]))
    assert (found["val"], found["test"]) == (["other_110"], ["inline_100"])


@pytest.mark.parametrize("distance", [0, 10, 11, 50, 51])
def test_nearer_ones_belong_to_nobody(tmp_path: Path, distance: int, caplog: pytest.LogCaptureFixture) -> None:
    source = pictures(tmp_path, INLINES)
    with caplog.at_level(logging.WARNING, "geoseg"):
        found = placed(Splits(source, test=["inline_100"], val=["inline_200"], distance=distance))
    wanted = {name for name in ("inline_110", "inline_150") if int(name[-3:]) - 100 >= distance}
    wanted -= {name for name in wanted if 200 - int(name[-3:]) < distance}
    assert set(found["train"]) == wanted | {"other_110"}  # another survey is far away
    for judged, judges in itertools.combinations(("train", "val", "test"), 2):
        for a, b in itertools.product(found[judged], found[judges]):
            assert a[:5] != b[:5] or abs(int(a[-3:]) - int(b[-3:])) >= distance
    left_out = {"inline_110", "inline_150"} - wanted
    assert all(name in caplog.text for name in left_out)


def test_distance_wants_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.source.distance=5, but line holds no number"):
        Splits(pictures(tmp_path, ["line", "line2"]), test=["line2"], distance=5)


def test_no_column_is_in_two_splits_and_the_gap_is_kept(tmp_path: Path) -> None:
    source = Splits(
        pictures(tmp_path, ["a", "b", "c"]),
        test=["c"],
        columns=Columns(val=0.25, gap=5, order=["val", "train", "test"]),
    )
    data = DataModule(source, num_train=None)
    data.prepare()
    assert sorted(data.names["train"]) == ["a_x15-39", "b_x15-39"]
    assert (data.names["val"], data.names["test"]) == (["a_x0-9", "b_x0-9"], ["c"])
    greys = {
        split: {round(255 * value) for i in range(len(part)) for value in part[i]["image"].unique().tolist()}
        for split, part in (("train", data.train), ("val", data.val), ("test", data.test))
    }
    assert greys["train"] == {*range(15, 40), *range(55, 80)}
    assert greys["val"] == {*range(10), *range(40, 50)}
    assert greys["test"] == set(range(80, 120))
    item = data.train[0]
    assert item["image"].shape == (1, 4, 25)
    assert source.shape(data.names["train"][0]) == (4, 25)
    assert ((item["image"][0] * 255).round() % 2 == item["target"]).all()  # the label was cut at the same place


def test_blocks_side_by_side_where_there_is_no_other_ground(tmp_path: Path) -> None:
    source = Splits(pictures(tmp_path, ["a"]), columns=Columns(val=0.1, test=0.3, gap=3))
    assert placed(source) == {"train": ["a_x0-17"], "val": ["a_x21-24"], "test": ["a_x28-39"]}
    assert source.unit == "block of a section"
    with pytest.raises(ValueError, match=r"a has 40 columns, too few.*lower data.source.columns.gap"):
        Splits(pictures(tmp_path / "more", ["a"]), columns=Columns(val=0.1, test=0.3, gap=15))
    with pytest.raises(ValueError, match="from 0 and below 1 together"):
        Columns(val=0.6, test=0.4)


def test_a_picture_for_the_test_is_judged_in_blocks_that_make_it_up(tmp_path: Path) -> None:
    whole = pictures(tmp_path, ["a", "b"])
    source = Splits(whole, test=["b"], test_blocks=[2, 3])
    columns = ["x0-12", "x13-25", "x26-39"]
    blocks = [f"b_{rows}_{cut}" for rows in ("y0-1", "y2-3") for cut in columns]
    assert placed(source) == {"train": ["a"], "val": [], "test": blocks}
    assert [source.shape(name) for name in blocks] == 2 * [(2, 13), (2, 13), (2, 14)]
    for k in (0, 1):  # image and target
        rows = [np.hstack([source.read(name)[k] for name in part]) for part in (blocks[:3], blocks[3:])]
        np.testing.assert_array_equal(np.vstack(rows), whole.read("b")[k])
    assert source.unit == "block of a section"
    np.testing.assert_array_equal(source.whole(blocks[4]), whole.read("b").image)
    prints = {source.fingerprint([name]) for name in [*blocks, "a"]}
    assert len(prints) == 7
    for wrong in ([0, 3], [2], [5, 1], [1, 41]):
        with pytest.raises(ValueError, match=r"test_blocks=.*rows and columns.*b has 4 x 40 pixels"):
            Splits(whole, test=["b"], test_blocks=wrong)


def test_fingerprints_follow_the_cut(tmp_path: Path) -> None:
    source = pictures(tmp_path, ["a", "b"])

    def print_of(gap: int) -> str:
        made = Splits(source, test=["b"], columns=Columns(gap=gap))
        return made.fingerprint(made.names)

    assert print_of(3) == print_of(3) != print_of(4)


def test_the_same_picture_under_two_names_is_told_before_any_work(tmp_path: Path) -> None:
    source = pictures(tmp_path, ["a", "b", "c"])
    (tmp_path / "images/c.png").write_bytes((tmp_path / "images/a.png").read_bytes())
    data = DataModule(Splits(source, test=["c"], columns=Columns(gap=3)), num_train=None)
    with pytest.raises(ValueError, match=r"c.png: the same picture as a.png; a copy would leak"):
        data.prepare()


def test_nothing_left_to_train_on_is_told_and_an_evaluation_needs_nothing(tmp_path: Path) -> None:
    source = Splits(pictures(tmp_path, ["a", "b"]), test=["*"])
    with pytest.raises(ValueError, match="0 labelled samples are there to choose from; change the splits"):
        DataModule(source, num_train=1).prepare()
    for train in (True, False):  # what is to be trained refuses; what learns nothing, or is only evaluated, does not
        data = DataModule(source, num_train=None)
        data.prepare(train=train)
        assert data.names == {"train": [], "val": [], "test": ["a", "b"]}


def test_an_evaluation_knows_a_picture_by_the_piece_that_was_trained_on(
    tmp_path: Path, run_cli: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "survey"
    folder(root, count=3, size=(32, 128), classes=6)
    # the layout of the facies benchmark: its names, its classes
    for old, new in zip(("line0", "line1", "line2"), ("test1_0", "test1_199", "test2_0"), strict=True):
        for part in ("images", "labels"):
            (root / part / f"{old}.png").rename(root / part / f"{new}.png")
    tiny = ["method.model.depth=3", "method.task.crop=32", "method.task.fit.epochs=1", "method.task.fit.repeats=1"]
    here = ["trainer=cpu", "logger=files", "progress=false", "figure_rows=0", "foresee=false"]
    words = ["data=f3_facies", f"data.root={root}", "data.source.test=[test2_*]", "method=unet"]
    assert run_cli("run", *words, *tiny, *here, "sample_every=0", "method.task.schedule.warmup=0") == 0
    (record,) = records(tmp_path / "runs").values()
    assert sorted(record["data"]["train"]) == ["test1_0_x58-127", "test1_199_x58-127"]
    assert sorted(record["data"]["val"]) == ["test1_0_x0-25", "test1_199_x0-25"]
    assert record["data"]["test"] == ["test2_0"]
    other = ["data=profiles", f"data.root={root}", "data.source.num_classes=6", "name=other"]
    assert run_cli("evaluate", f"run={record['run_id']}", *other, *here) == 0
    (again,) = records(tmp_path / "runs" / "other").values()
    assert again["data"]["test"] == ["test2_0"]  # the two whole pictures hold what it was trained on


# the real data, where it is


@pytest.fixture
def real() -> Path:
    if not REAL.is_dir():
        pytest.skip("the real data lies in ../shared/data, which is not here")
    return REAL


def prepared(compose: Callable[[list[str]], DictConfig], root: Path, name: str, *words: str) -> DataModule:
    data: DataModule = build(plain(compose([f"data={name}", f"data.root={root / name}", *words]))["data"], "data")
    data.prepare()
    return data


def present(data: DataModule, split: str) -> set[int]:
    return {int(k) for name in data.names[split] for k in np.unique(data.source.read(name).target)}


def test_f3_facies_by_survey_both_ways(real: Path, compose: Callable[[list[str]], DictConfig]) -> None:
    for test, widths in (("test2", {701}), ("test1", {601})):
        data = prepared(compose, real, "f3_facies", f"data.source.test=[{test}_*]")
        assert {name[:5] for name in data.names["test"]} == {test}
        assert len(data.names["test"]) == len(data.names["train"]) == len(data.names["val"]) == 3
        assert not {name[:5] for split in ("train", "val") for name in data.names[split]} & {test}
        (width,) = widths
        for name in data.names["train"]:
            assert data.source.shape(name) == (255, width - round(0.2 * width) - 32)
        assert present(data, "train") == set(range(6))  # all that the test holds can be learnt


def test_f3_facies_all_fifteen_ways_to_hold_two_out(real: Path) -> None:
    source = ProfileFolder(str(real / "f3_facies"), num_classes=6)
    ways = list(itertools.combinations(source.names, 2))
    assert len(ways) == 15
    for two in ways:
        found = placed(Splits(source, test=two, distance=20, columns=Columns()))
        assert found["test"] == sorted(two)
        assert (len(found["train"]), len(found["val"])) == (4, 4)


def test_faults_and_craters(real: Path, compose: Callable[[list[str]], DictConfig]) -> None:
    faults = prepared(compose, real, "f3_faults")
    assert len(faults.names["test"]) == 6 and {name[:10] for name in faults.names["test"]} == {"inline_300"}
    assert sorted(name[:10] for name in faults.names["train"]) == ["inline_100", "inline_200"]
    assert present(faults, "train") == present(faults, "val") == present(faults, "test") == {0, 1}
    craters = prepared(compose, real, "moon_wac_craters")
    assert [name[:5] for name in craters.names["train"]] == ["train"]
    assert len(craters.names["test"]) == 8 and {name[:4] for name in craters.names["test"]} == {"val_"}
    blocks = ("data.source.test=null", "data.source.columns.test=0.3")
    data = prepared(compose, real, "moon_wac_craters", *blocks)
    assert [len(data.names[split]) for split in ("train", "val", "test")] == [2, 2, 2]
    assert present(data, "train") == present(data, "test") == {0, 1}
