"""Splits, tensors and batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from geoseg.data.module import DataModule, SameShape, Split
from geoseg.data.synthetic import Corpus, SyntheticEarth
from geoseg.palette import SFM_FACIES
from geoseg.types import Sample


class Pictures:
    """Pictures that say who they are; shapes and splits as told."""

    unit = "image"
    num_classes = 2

    def __init__(
        self, count: int, splits: Sequence[str | None] | None = None, shapes: Sequence[tuple[int, int]] | None = None
    ) -> None:
        self.class_names = ["rock", "salt"]
        self.names = [f"p{i}" for i in range(count)]
        self._splits = dict(zip(self.names, splits or [None] * count, strict=True))
        self._shapes = dict(zip(self.names, shapes or [(4, 6)] * count, strict=True))
        self.checked: list[str] = []
        self.reads = 0

    def read(self, name: str) -> Sample:
        self.reads += 1
        shape = self._shapes[name]
        colour = int(name[1:]) % 2
        number = np.full((*shape, 3) if colour else shape, int(name[1:]), np.uint8)
        return Sample(number, np.ones(shape, np.uint8), caption=f"about {name}")

    def shape(self, name: str) -> tuple[int, int]:
        return self._shapes[name]

    def split(self, name: str) -> str | None:
        return self._splits[name]

    def check(self, names: Sequence[str]) -> None:
        self.checked += names

    def fingerprint(self, names: Sequence[str]) -> str:
        return ",".join(names)


def prepared(source: Any, **options: Any) -> DataModule:
    data = DataModule(source, **options)
    data.prepare()
    return data


def test_samples_become_tensors() -> None:
    split = Split(Pictures(256), [f"p{i}" for i in (254, 255)])
    grey, colour = split[0], split[1]
    assert grey["image"].shape == (1, 4, 6)
    assert colour["image"].shape == (3, 4, 6)
    assert grey["image"].dtype == torch.float32
    assert grey["image"].unique().tolist() == pytest.approx([254 / 255])
    assert colour["image"].unique().tolist() == [1.0]
    assert grey["target"].dtype == torch.int64
    assert grey["target"].shape == (4, 6)
    assert (colour["name"], colour["index"], colour["caption"]) == ("p255", 1, "about p255")


def test_colours_stay_where_they_are() -> None:
    source = Pictures(1)
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    source.read = lambda name: Sample(picture, np.zeros((4, 6), np.uint8))  # type: ignore[method-assign]
    image = Split(source, source.names)[0]["image"]
    for channel in range(3):
        np.testing.assert_array_equal((image[channel] * 255).round().byte().numpy(), picture[..., channel])


def test_what_was_read_is_kept_up_to_a_limit() -> None:
    source = Pictures(3)
    split = Split(source, source.names, keep=2)
    for _ in range(4):
        for i in range(3):
            assert split[i]["name"] == f"p{i}"
    assert source.reads == 2 + 4


def test_batches_hold_neighbours_of_one_shape() -> None:
    shapes = [(4, 6)] * 3 + [(5, 6)] * 2 + [(4, 6)]
    source = Pictures(6, shapes=shapes)
    batches = SameShape(Split(source, source.names), batch_size=2)
    assert list(batches) == [[0, 1], [2], [3, 4], [5]]
    assert len(batches) == 4


def test_one_pool_is_cut_into_three() -> None:
    source = Pictures(20)
    data = prepared(source, num_train=4, num_val=3, seed=1)
    train, val, test = (data.names[split] for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (4, 3, 13)
    assert sorted(train + val + test) == sorted(source.names)
    assert (len(data.train), len(data.val), len(data.test)) == (4, 3, 13)
    assert sorted(source.checked) == sorted(source.names)


def test_more_training_samples_hold_the_fewer_and_seeds_differ() -> None:
    names = {
        (n, seed): prepared(Pictures(20), num_train=n, seed=seed).names["train"] for n in (2, 4) for seed in (0, 1)
    }
    assert names[2, 0] == names[4, 0][:2]
    assert names[4, 0] != names[4, 1]


@pytest.mark.parametrize("select", ["random", "representative"])
def test_however_many_train_they_are_scored_on_the_same(select: str) -> None:
    made = [
        prepared(Pictures(20), num_train=n, num_val=3, num_test=4, select=select, seed=1).names
        for n in (1, 5, 13, None)
    ]
    assert [len(names["train"]) for names in made] == [1, 5, 13, 13]
    assert [(len(names["val"]), len(names["test"])) for names in made] == [(3, 4)] * 4
    assert len({(*names["val"], *names["test"]) for names in made}) == 1
    assert len({*made[2]["train"], *made[2]["val"], *made[2]["test"]}) == 20
    assert set(made[0]["train"]) <= set(made[1]["train"]) <= set(made[2]["train"])
    other = prepared(Pictures(20), num_train=1, num_val=3, num_test=4, select=select, seed=2).names
    assert other["test"] != made[0]["test"]


def test_prescribed_splits_are_kept() -> None:
    source = Pictures(9, splits=["train"] * 4 + ["val"] * 2 + ["test"] * 3)
    data = prepared(source, num_train=2)
    assert set(data.names["train"]) <= {"p0", "p1", "p2", "p3"}
    assert data.names["val"] == ["p4", "p5"]
    assert data.names["test"] == ["p6", "p7", "p8"]
    fewer = prepared(source, num_train=2, num_val=0, num_test=1)
    assert (fewer.names["val"], fewer.names["test"]) == ([], ["p6"])


def test_chosen_by_name() -> None:
    data = prepared(Pictures(6), select=["p4", "p1"], num_train=99)
    assert data.names["train"] == ["p4", "p1"]
    assert data.names["test"] == ["p0", "p2", "p3", "p5"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 0}, r"data\.num_train=0, but 6 labelled samples are there.*1 to 6"),
        ({"num_train": 7}, r"data\.num_train=7, but 6 labelled"),
        ({"select": "best"}, r"random, representative or a list of names, got 'best'"),
        ({"select": ["p1", "q1"]}, r"data\.select names \['q1'\], which the data set does not have"),
        ({"select": []}, r"data\.select is an empty list"),
        ({"num_val": -1}, r"data\.num_val must be 0 or more, or null; got -1"),
        ({"num_train": 4, "num_val": 3}, r"data\.num_train=4, but 3 labelled .* beside the 3 that .* 1 to 3"),
        ({"num_train": 4, "num_val": 1, "num_test": 2}, r"data\.num_train=4, but 3 labelled .* beside the 3 that"),
        ({"select": ["p1", "p2", "p3"], "num_val": 4}, r"data\.num_val=4, but only 3 samples are left"),
        ({"select": ["p1", "p2", "p3"], "num_test": 4}, r"data\.num_test=4, but only 3 samples are left"),
        ({"tolerances": {"rok": 2}}, r"names the class 'rok', .* its classes are rock, salt"),
        ({"tolerances": {"salt": 1.5}}, r"data\.tolerances\.salt=1\.5: a whole number of pixels"),
        ({"tolerances": {"salt": -1}}, r"data\.tolerances\.salt=-1"),
        ({"published_batch": 0}, r"data\.published_batch must be 1 or more images, or null; got 0"),
        ({"palette": ["#000000", "#FFFFFF", "#FF0000"]}, r"3 colours, the data set has 2 classes \(rock, salt\)"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(Pictures(6), **options)


def test_colours_of_the_classes() -> None:
    assert DataModule(Pictures(2)).palette.hex == SFM_FACIES[:2]  # type: ignore[union-attr]
    assert DataModule(Pictures(2), palette=["#000000", "#ffffff"]).palette.hex == ("#000000", "#FFFFFF")  # type: ignore[union-attr]
    assert DataModule(Corpus(2, size=16)).palette is None


def test_the_fingerprint_says_who_is_in_which_split() -> None:
    def made(num_train: int, seed: int = 0) -> DataModule:
        return DataModule(SyntheticEarth(size=16, train=6, val=2, test=2), num_train=num_train, seed=seed)

    assert made(2).fingerprint("train", "val") == made(2).fingerprint("train", "val")
    assert made(2).fingerprint("train", "val") != made(3).fingerprint("train", "val")
    assert made(2).fingerprint("train") != made(2, seed=1).fingerprint("train")
    assert made(2).fingerprint("test") == made(3, seed=1).fingerprint("test")
    assert made(2).fingerprint("train") != made(2).fingerprint("val")


def test_test_batches() -> None:
    shapes = [(4, 6)] * 2 + [(4, 6)] * 2 + [(8, 8)] * 2
    source = Pictures(6, shapes=shapes)
    source.read = (
        lambda name: Sample(  # type: ignore[method-assign]
            np.full(source.shape(name), int(name[1:]), np.uint8), np.ones(source.shape(name), np.uint8)
        )
    )
    data = prepared(source, select=["p0"], batch_size=2)
    batches = list(data.test_dataloader())
    assert [batch["name"] for batch in batches] == [["p1", "p2"], ["p3"], ["p4", "p5"]]
    assert [tuple(batch["image"].shape) for batch in batches] == [(2, 1, 4, 6), (1, 1, 4, 6), (2, 1, 8, 8)]
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2], [3, 4]]
    assert batches[2]["image"][1].unique().tolist() == pytest.approx([5 / 255])
