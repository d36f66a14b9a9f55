"""Scores over a setting: which run counts where, and under which name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from scipy import stats

from geoseg.ablation import ablation_cells, ablations, correlations
from tests.made_records import failed, record


def made(num_train: int, seed: int = 0, start: float = 0.1, method: str = "label LoRA", **more: Any) -> dict[str, Any]:
    settings = more.pop("settings", {"strength": 0.5})
    data = {"num_train": num_train, "select": more.pop("select", "random")}
    one = record(method, start, seed=seed, labels=num_train, config={"method": {"predictor": settings}, "data": data})
    fit = f"fit{num_train}{seed}{data['select']}"
    name = f"{method}{num_train}{seed}{settings}{data['select']}"
    return {**one, "num_train": num_train, "run_id": name, "fit_id": fit, **more}


def points(records: Sequence[dict[str, Any]], key: str, by: str | None = None, **losses: Any) -> dict[str, Any]:
    (found,) = ablations(records, losses, key, by)
    score = "test/matched/iou/mean"
    return {": ".join(filter(None, (one.owner, one.stage))): one.points.get(score, one.points) for one in found.lines}


def test_runs_are_gathered_by_the_value_of_a_setting() -> None:
    many = [made(1, 0, 0.1), made(1, 1, 0.3), made(16, 0, 0.5), made(4, 0, 0.2), failed()]
    for key in ("data.num_train", "num_train"):
        found = points(many, key)
        assert found == {"label LoRA": {1: [0.107, 0.307], 4: [0.207], 16: [0.507]}}
    assert points([*many, many[0]], "num_train") == found  # a run that two experiments share counts once
    (ablation,) = ablations(many, {}, "num_train")
    assert (ablation.values, ablation.data, ablation.without, ablation.alike) == ([1, 4, 16], "earth", [], True)
    many[3]["data"] = {**many[3]["data"], "test": ["u0"]}
    assert not ablations(many, {}, "num_train")[0].alike


def test_what_learns_nothing_stands_at_every_number_of_images() -> None:
    control = {"method": "input as is", "fit_id": None}
    many = [made(1, 0, 0.1), made(4, 0, 0.2), *(made(1, seed, 0.3 + 0.1 * seed, **control) for seed in (0, 1))]
    for one, name in zip(many, "abcd", strict=True):
        one["run_id"] = name
    assert points(many, "num_train")["input as is"] == {1: [0.307, 0.407], 4: [0.307, 0.407]}
    assert points(many, "num_train")["label LoRA"] == {1: [0.107], 4: [0.207]}
    many[3] = {**made(4, 1, 0.4, **control), "run_id": "e"}  # with several numbers of its own it stays where it is
    assert points(many, "num_train")["input as is"] == {1: [0.307], 4: [0.407]}


def test_a_line_per_stage_method_and_second_setting() -> None:
    many = [
        made(n, select=select, method=method, settings={"strength": strength})
        for n in (1, 4)
        for select in ("random", "first")
        for method, strength in (("a", 0.5), ("a", 0.7), ("b", 0.5))
    ]
    for one in many:
        one["stages"] = {"pass 1": one["scores"], "pass 2": one["scores"]}
    assert list(points(many, "num_train", "data.select"))[:8] == [
        f"a (strength={strength}), select={select}: pass {i}"
        for strength in (0.5, 0.7)
        for select in ("first", "random")
        for i in (1, 2)
    ]
    # the second setting tells what the names need not say, and so does the first
    assert set(points(many, "num_train", "method.predictor.strength")) == {
        f"{name}: pass {i}" for name in ("a, strength=0.5", "a, strength=0.7", "b, strength=0.5") for i in (1, 2)
    }
    assert "a, 1 label map alone: pass 1" in points(many, "method.predictor.strength")


def test_settings_that_follow_from_the_key_are_not_told() -> None:
    many = [
        made(4, seed, settings={"tile": tile, "overlap": tile // 4, "guidance": 7 if seed else 7.0})
        for tile in (64, 128)
        for seed in (0, 1)
    ]
    assert points(many, "method.predictor.tile") == {"label LoRA": {64: [0.107, 0.107], 128: [0.107, 0.107]}}


def test_losses_count_once_per_training() -> None:
    many = [made(n, settings={"strength": s}) for n in (1, 4) for s in (0.5, 0.7)]
    losses = {one["fit_id"]: {"train/loss": one["num_train"] / 10} for one in many}
    (found,) = ablations(many, losses, "num_train", "method.predictor.strength")
    assert [line.points["train/loss"] for line in found.lines] == [{1: [0.1], 4: [0.4]}] * 2
    (found,) = ablations(many[:1] + many[2:3], losses, "num_train")
    assert found.lines[0].points["train/loss"] == {1: [0.1], 4: [0.4]}


def test_data_sets_have_a_figure_each_and_words_an_order() -> None:
    other = {"name": "salt", "train": [], "val": [], "test": []}
    many = [
        made(4, select=select, **more) for select in ("random", "first") for more in ({}, {"data": other, "seed": 1})
    ]
    found = ablations(many, {}, "data.select")
    assert [(one.data, one.values) for one in found] == [("earth", ["first", "random"]), ("salt", ["first", "random"])]


def test_the_same_as_a_table() -> None:
    many = [made(1), made(1, 1, 0.3), made(4, 0, 0.5)]
    many[2]["stages"] = {"refined": many[2]["scores"]}
    losses = {many[2]["fit_id"]: {"train/loss": 0.25}}
    head, rows = ablation_cells(ablations(many, losses, "num_train"))
    assert head[:5] == ["data", "method", "stage", "num_train", "runs"]
    score, loss = head.index("matched mean IoU ↑"), head.index("final training loss ↓")
    assert [(*row[:5], row[score], row[loss]) for row in rows] == [
        ("earth", "label LoRA", "", 1, 2, pytest.approx(0.207), None),
        ("earth", "label LoRA", "", 4, 1, None, 0.25),
        ("earth", "label LoRA", "refined", 4, 1, 0.507, None),
    ]
    words = [made(4, select=select) for select in ("random", "first")] + [made(1, select=("a", "b"))]
    assert [row[3] for row in ablation_cells(ablations(words, {}, "data.select"))[1]] == ["a b", "first", "random"]


def test_what_a_setting_must_be() -> None:
    many = [made(4), made(4, 1), made(4, method="b", settings={"other": 1})]
    with pytest.raises(ValueError, match=r"no finished run has the setting data.num_trian; did you mean data.num_tr"):
        ablations(many, {}, "data.num_trian")
    with pytest.raises(ValueError, match="num_train is 4 in all these runs of a data set; .* needs two values"):
        ablations(many, {}, "num_train")
    many += [made(4, settings={"strength": None})]
    (found,) = ablations(many, {}, "method.predictor.strength")
    assert (found.values, found.without) == ([None, 0.5], ["b"])


def test_does_the_loss_tell_how_good_the_answers_are() -> None:
    loss = [0.5, 0.1, 0.4, 0.2, 0.3, 0.6]
    start = [0.3, 0.2, 0.6, 0.1, 0.4, 0.5]
    many = [made(4, seed, value) for seed, value in enumerate(start)]
    # a second run of the first training moves that training's mean, and adds no training
    many += [made(4, 0, 0.52, settings={"strength": 0.9}), made(4, 9, method="U-Net", fit_id="untrained")]
    losses = {f"fit4{seed}random": {"train/loss": value} for seed, value in enumerate(loss)}
    head, (row, all_of_them) = correlations(many, losses)
    assert head[2:4] == [
        "final training loss and Dice loss label–generated",
        "final training loss and matched mean IoU",
    ]
    assert row[:2] == ["earth", "label LoRA"]
    rho = stats.spearmanr(loss, [0.41, *start[1:]]).statistic
    assert float(row[2].split()[0]) == pytest.approx(rho, abs=0.006)
    assert row[2].endswith("n = 6") and "[" in row[2]
    assert row[4:] == ["-", "-"]  # no validation loss was logged
    assert all_of_them == ["all", "all", *row[2:]]
    assert correlations(many[:2], losses)[1][0][2] == "n = 2: no correlation"
    assert correlations(many[:4], losses)[1][0][2].endswith("n = 4: no interval")
