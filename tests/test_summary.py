"""Tables over runs: means, and differences unit by unit."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from geoseg.summary import (
    SPREAD,
    comparisons,
    cost_cells,
    doubt_cells,
    grouped,
    quoted_cells,
    settings,
    summary,
    summary_cells,
    unit_means,
    write_spread,
)
from tests.made_records import failed, record, scores


def cells(records: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Rows of the summary by their cells up to the checkpoints."""
    lines = [line for line in summary(records).splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in rows}) == 1
    assert rows[0][:5] == ["data", "method", "trained on", "checkpoints", "runs"]
    made = {", ".join(row[:4]).removeprefix("earth, "): row[4:] for row in rows[2:]}
    assert len(made) == len(rows) - 2
    return made


def test_the_summary_averages_runs_and_keeps_apart_what_differs() -> None:
    many = [
        record(start=0.1, seed=0, stages=("pass 1",)),
        record(start=0.3, seed=1, stages=("pass 1",)),
        record(start=0.7, seed=0, stages=("pass 1",), labels=1),
        record(start=0.8, seed=0, stages=("pass 1",), kind="hub"),
        failed(),
    ]
    rows = cells(many)
    assert list(rows) == [
        "label LoRA: pass 1, 1 label map alone, demo",
        "label LoRA: pass 1, 4 label maps alone, demo",
        "label LoRA: pass 1, 4 label maps alone, hub",
    ]
    row = rows["label LoRA: pass 1, 4 label maps alone, demo"]
    assert row[0] == "2"
    # mean of 0.102 and 0.302, and their sample standard deviation
    assert row[1] == f"0.202 ± {(2 * 0.1**2) ** 0.5:.3f}"
    assert row[2].startswith("0.203 ±")
    assert row[6].startswith("0.207 ±")
    assert rows["label LoRA: pass 1, 1 label map alone, demo"][1] == "0.702"


def test_runs_that_were_set_differently_are_not_averaged() -> None:
    def made(kind: str = "facies", strength: float = 0.5, seed: int = 0, **more: Any) -> dict[str, Any]:
        method = {"predictor": {"strength": strength}, "adapter": {"seed": seed}}
        data = {"source": {"kind": kind}, "seed": seed, "select": "random"}
        return record(seed=seed, config={"method": method, "data": data}, **more)

    rows = cells([made(seed=0), made(seed=1), made(strength=0.4)])
    assert {name: row[0] for name, row in rows.items()} == {
        "label LoRA (strength=0.4), 4 label maps alone, demo": "1",
        "label LoRA (strength=0.5), 4 label maps alone, demo": "2",
    }
    # units of one name in two data sets are compared with their own control
    controls = [made("salt", method="input as is", labels=0), made(method="input as is", start=0.6, labels=0)]
    rows = cells([*controls, made("salt", start=0.4), made(start=0.4)])
    assert {name.split(", 4")[0]: row[-1].split()[0] for name, row in rows.items() if "LoRA" in name} == {
        "earth (kind=facies), label LoRA": "-0.200",
        "earth (kind=salt), label LoRA": "+0.300",
    }
    assert [row[-1] for name, row in rows.items() if "input as is" in name] == ["", ""]


def test_settings_are_told_where_they_differ() -> None:
    def made(strength: float, method: str = "label LoRA") -> dict[str, Any]:
        return record(method, config={"method": {"predictor": {"strength": strength, "steps": 9}}, "data": {}})

    assert settings([made(0.4), made(0.5), made(0.4, "U-Net")]) == ["strength=0.4", "strength=0.5", ""]


def test_a_number_is_one_setting_however_it_was_typed() -> None:
    def made(guidance: float, seed: int) -> dict[str, Any]:
        return record(seed=seed, config={"method": {"predictor": {"guidance": guidance}}, "data": {}})

    assert [row[0] for row in cells([made(7, 0), made(7.0, 1)]).values()] == ["2"]
    assert settings([made(7.0, 0), made(7.5, 1)]) == ["guidance=7", "guidance=7.5"]


def test_the_summary_for_other_programs(tmp_path: Path) -> None:
    starts = [0.1, 0.3, 0.35]
    many = [record(start=start, seed=seed, stages=("pass 1", "pass 2")) for seed, start in enumerate(starts)]
    many += [record("U-Net", seed=0, start=0.5), record("U-Net", seed=1, start=0.7), failed()]
    many[0]["stages"]["pass 1"]["test/dice/mean"] = None
    with write_spread(many, tmp_path / "out" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == SPREAD
    found = {(row["method"], row["stage"], row["score"]): row for row in rows}
    assert len(found) == len(rows) == 3 * 11
    row = found["label LoRA", "pass 2", "matched/iou/mean"]
    values = np.array(starts) + 0.107
    ends = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    told = [float(row[name]) for name in ("mean", "std", "low", "high")]
    assert told == pytest.approx([values.mean(), values.std(ddof=1), *ends], rel=1e-5)
    assert (row["n"], row["data"], row["trained_on"], row["checkpoints"]) == (
        "3",
        "earth",
        "4 label maps alone",
        "demo",
    )
    row = found["label LoRA", "pass 1", "dice/mean"]  # one run has no such score
    assert (row["n"], row["low"], float(row["mean"])) == ("2", "", pytest.approx(0.329))
    assert [found["U-Net", "", "iou/mean"][name] for name in ("mean", "low", "high", "n")] == ["0.603", "", "", "2"]


def test_a_setting_that_older_runs_did_not_know_is_null() -> None:
    old = record(config={"method": {}, "data": {"source": {"kind": "a"}}})
    new = record(seed=1, config={"method": {}, "data": {"source": {"kind": "a", "grey_range": None}}})
    assert {name: row[0] for name, row in cells([old, new]).items()} == {"label LoRA, 4 label maps alone, demo": "2"}


def test_an_object_that_others_leave_out_is_told_as_a_whole() -> None:
    def made(sam: Any, prompt: str = "a") -> dict[str, Any]:
        method = {"wrappers": {"sam": sam}, "predictor": {"_target_": f"x.{prompt}", "steps": 3}}
        return record(config={"method": method, "data": {}})

    with_sam = {"_target_": "geoseg.predictors.sam_refined.SamRefined", "points_per_side": 4, "crop_n_layers": 0}
    assert [name.split(", 4")[0] for name in cells([made(with_sam), made(None)])] == [
        "label LoRA (sam=SamRefined)",
        "label LoRA (sam=null)",
    ]
    coarser = {**with_sam, "points_per_side": 2}
    assert [name.split(", 4")[0] for name in cells([made(with_sam), made(coarser)])] == [
        "label LoRA (points_per_side=2)",
        "label LoRA (points_per_side=4)",
    ]
    assert [name.split(", 4")[0] for name in cells([made(None), made(None, "b")])] == [
        "label LoRA (predictor=a)",
        "label LoRA (predictor=b)",
    ]


def test_runs_that_failed_are_named() -> None:
    text = summary([record(), failed()])
    assert "1 of 2 runs failed:" in text
    assert "- label LoRA `l74`: ValueError: no" in text


def test_the_summary_compares_unit_by_unit() -> None:
    rows = cells(
        [record("input as is", start=0.5, labels=0, kind="none"), record(start=0.2), record("U-Net", 0.4, units=4)]
    )
    assert next(iter(rows)) == "input as is, nothing, none"
    assert rows["input as is, nothing, none"][-2:] == ["", ""]
    lora = rows["label LoRA, 4 label maps alone, demo"][-2:]
    # the same difference at every unit leaves an interval of no width
    assert lora == ["-0.300 [-0.300, -0.300], n = 5"] * 2
    assert rows["U-Net, 4 label maps alone, demo"][-2:] == ["-0.100 n = 4: no interval"] * 2


def test_a_unit_without_a_score_is_left_out() -> None:
    odd = record(start=0.2)
    odd["per_unit"]["test/matched/iou/mean"][2] = None
    rows = cells([record("input as is", start=0.5, labels=0, kind="none"), odd])
    assert rows["label LoRA, 4 label maps alone, demo"][-1] == "-0.300 n = 4: no interval"


def test_an_interval_that_spreads() -> None:
    rows = cells([record("input as is", start=0.5, labels=0, kind="none"), record(start=0.5, step=0.11)])
    text = rows["label LoRA, 4 label maps alone, demo"][-1]
    mean, low, high = (float(word.strip("[],")) for word in text.split()[:3])
    assert mean == pytest.approx(0.2)  # 0, 0.1, 0.2, 0.3, 0.4
    assert 0 < low < 0.12
    assert 0.28 < high < 0.4


def test_the_summary_without_a_reference() -> None:
    assert cells([record()])["label LoRA, 4 label maps alone, demo"][-2:] == ["-", "-"]


def test_a_training_that_was_not_tested_has_no_row() -> None:
    recipe = record("embedded autoencoder")
    for name in ("per_unit", "units", "stages_per_unit"):
        del recipe[name]
    assert list(cells([recipe, record()])) == ["label LoRA, 4 label maps alone, demo"]


def test_two_rows_are_compared_unit_by_unit_and_over_seeds() -> None:
    tuned = [record(start=0.2 + 0.1 * seed, stages=("pass 1", "pass 2"), seed=seed) for seed in (0, 1)]
    control = record("without LoRA", start=0.1, labels=0, stages=("pass 1", "pass 2"))
    pairs = [("label LoRA: pass 2", "without LoRA: pass 2"), ("label LoRA: pass 2", "label LoRA: pass 1")]
    head, _, first, second = comparisons([*tuned, control, failed()], pairs).splitlines()
    assert head.startswith("| data | difference | Dice loss")
    assert first.startswith("| earth | label LoRA: pass 2 − without LoRA: pass 2 | +0.150 [+0.150, +0.150], n = 5 |")
    assert second.startswith("| earth | label LoRA: pass 2 − label LoRA: pass 1 | +0.100 [+0.100, +0.100], n = 5 |")
    assert first.endswith("| - |")  # a score that these records do not have
    with pytest.raises(
        ValueError, match=r"no row .* pass 3'; did you mean 'label LoRA: pass 2'\? there is 'label LoRA: pass 1', 'la"
    ):
        comparisons(tuned, [("label LoRA: pass 3", "without LoRA: pass 2")])


def test_rows_that_nothing_compares() -> None:
    salt = record("U-Net", data={"name": "salt", "train": [], "val": [], "test": []})
    with pytest.raises(ValueError, match=r"'U-Net' and 'label LoRA' have no data set in common"):
        comparisons([record(), salt], [("U-Net", "label LoRA")])
    with pytest.raises(ValueError, match=r"no row of the table is called 'U-Net'; no run is finished and tested"):
        comparisons([failed()], [("U-Net", "label LoRA")])


def test_a_row_is_found_by_its_method_where_it_is_the_only_one() -> None:
    def made(strength: float, **more: Any) -> dict[str, Any]:
        return record(config={"method": {"predictor": {"strength": strength}}, "data": {}}, **more)

    control = record("input as is", start=0.1, labels=0)
    two = [made(0.4, start=0.2), made(0.5, start=0.3), control]
    with pytest.raises(ValueError, match=r"2 rows are called 'label LoRA'; .*'label LoRA \(strength=0.4\)'"):
        comparisons(two, [("label LoRA", "input as is")])
    assert "+0.200" in comparisons(two, [("label LoRA (strength=0.5)", "input as is")])
    assert "+0.100" in comparisons([two[0], control], [("label LoRA", "input as is")])


def test_units_are_the_blocks_that_samples_were_cut_from() -> None:
    blocks = ["s1", "s1", "s2", "s3", "s4"]
    names = [f"u{i}" for i in range(5)]
    units = {"names": names, "unit": "section", "blocks": blocks}
    made = [
        record("U-Net", start=0.5, step=0.1),
        record("input as is", start=0.1, labels=0, step=0.0),
    ]
    assert "n = 5" in summary(made) and "no interval" not in summary(made)
    for one in made:
        one["units"] = units
    assert "n = 4: no interval" in summary(made)
    (members, *_) = grouped(made).values()
    assert unit_means(members, "iou/mean")["s1"] == pytest.approx(
        sum(members[0].per_unit["test/iou/mean"][:2]) / 2  # type: ignore[operator]
    )


def test_what_methods_cost() -> None:
    told = {
        "trainable_parameters": 1_234_567,
        "decoder_parameters": None,
        "parameters": 2_000_000,
        "ms_per_image": 12.25,
    }
    made = [
        record("U-Net", seed=0, costs={**told, "fit_bytes": 3 * 2**30, "predict_bytes": 2**30}),
        record("U-Net", seed=1, costs={**told, "ms_per_image": 13.25, "fit_bytes": None, "predict_bytes": 2**30}),
        record("label LoRA", stages=("pass 1", "pass 2")),  # of an earlier version
        failed(),
    ]
    head, rows = cost_cells(made)
    assert "decoder parameters" not in head  # nobody has one
    by_method = {row[1]: dict(zip(head, row, strict=True)) for row in rows}
    unet, lora = by_method["U-Net"], by_method["label LoRA"]
    assert len(rows) == 2
    assert (unet["trainable parameters"], unet["all parameters"]) == ("1,234,567", "2,000,000")
    assert (unet["ms per image"], unet["training memory, GiB"], unet["prediction memory, GiB"]) == ("12.8", "3", "1")
    assert (lora["minutes of training"], lora["ms per image"], lora["device"]) == ("1.5", "-", "CPU")


def test_whether_methods_know_where_they_are_wrong() -> None:
    def doubts(**values: float) -> dict[str, float]:
        return {
            f"test/uncertainty/{name}/{what}": value for name, value in values.items() for what in ("auroc", "risk")
        }

    def drawn(seed: int, own: float, members: list[float]) -> dict[str, Any]:
        told = scores(0.5) | doubts(own=own, entropy=0.9, one_member=0.6) | {"test/calibration/error": 0.1}
        return record("drawing", seed=seed, scores=told, members={"alone/iou/mean": members})

    single = record("single", scores=scores(0.4) | doubts(entropy=0.75), members={})
    unknown = record("older")
    head, lines = doubt_cells([drawn(0, 0.8, [0.2, 0.4]), drawn(1, 0.6, [0.3, 0.5]), single, unknown, failed()])
    rows = {line[1]: dict(zip(head, line, strict=True)) for line in lines}
    assert list(rows) == ["drawing", "single"]
    assert rows["drawing"]["members"] == "2" and rows["single"]["members"] == "-"
    assert rows["drawing"]["mean IoU of a member ↑"].startswith("0.350 ±")
    assert rows["drawing"]["AUROC, its own ↑"].startswith("0.700 ±")
    assert (
        rows["drawing"]["lowest AUROC of a run ↑"] == "0.600" and rows["single"]["lowest AUROC of a run ↑"] == "0.750"
    )
    assert rows["drawing"]["risk, one member's entropy ↓"].startswith("0.600")
    assert rows["single"]["AUROC, its own ↑"] == rows["single"]["calibration error ↓"] == "-"
    assert "AUROC, entropy of votes ↑" not in head


def test_mattes_have_their_errors_in_the_summary() -> None:
    mattes = record("mattes", scores=scores(0.5) | {"test/matte/sad": 7.8, "test/matte/mse": 0.25})
    head, lines = summary_cells([mattes, record("classes")])
    shown = {line[1]: dict(zip(head, line, strict=True)) for line in lines}
    assert shown["mattes"]["matte SAD ↓"] == "7.800" and shown["mattes"]["matte MSE ↓"] == "0.250"
    assert shown["classes"]["matte SAD ↓"] == "-"
    assert "matte SAD ↓" not in summary_cells([record("classes")])[0]


def test_what_a_base_has_forgotten_stands_in_the_summary() -> None:
    runs = [
        record("LoRA", scores=scores(0.5) | {"val/own_loss": loss, "val/own_loss/before": 0.05}) for loss in (0.2, 0.3)
    ]
    head, lines = summary_cells([*runs, record("U-Net")])
    assert head[-2:] == ["loss on the base's own pictures, before training ↓", "the same after training ↓"]
    assert {line[1]: line[-2:] for line in lines} == {"LoRA": ["0.050 ± 0.000", "0.250 ± 0.071"], "U-Net": ["-", "-"]}
    assert "the same after training ↓" not in summary_cells([record("U-Net")])[0]


def test_mattes_are_compared_by_their_errors() -> None:
    def made(method: str, errors: list[float]) -> dict[str, Any]:
        plain = record(method)
        return record(method, per_unit=plain["per_unit"] | {"test/matte/sad": errors})

    one, two = made("one", [1.0, 2.0, 3.0, 4.0, 5.0]), made("two", [0.5, 1.5, 2.5, 3.5, 4.5])
    head, _, line = comparisons([one, two], [("one", "two")]).splitlines()
    assert head.endswith("| matte SAD ↓ |")  # no column for errors that neither has
    assert line.endswith("| +0.500 [+0.500, +0.500], n = 5 |")


def test_published_numbers_are_quoted_beside_ours(tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    lines = ["data,method,score,value,source", "earth,a,iou/mean,0.75,X", "earth,a,accuracy/mean,0.8,X"]
    path.write_text("\n".join([*lines, "moon,a,iou/mean,0.5,X"]))
    ours = [record("a", seed=seed) for seed in (0, 1)]
    for one, value in zip(ours, (0.6, 0.8), strict=True):
        one["scores"]["test/published/iou/mean"] = value
    head, rows = quoted_cells(path, [*ours, failed()])
    assert [title for title in head if "quoted" in title] == [
        *("mean IoU ↑, quoted", "mean pixel accuracy ↑, quoted", "quoted from")
    ]
    assert rows == [
        ["earth", "a", "0.7500", "0.700 ± 0.141", "0.8000", "-", "X"],
        ["moon", "a", "0.5000", "-", "-", "-", "X"],
    ]
    ours[0]["scores"]["test/published/with_flips/iou/mean"] = 0.9  # how it was published, where we have it
    assert quoted_cells(path, ours[:1])[1][0][3] == "0.900"
    path.write_text("data,method,score,value\n")
    with pytest.raises(ValueError, match="needs the columns source too"):
        quoted_cells(path, [])
    path.write_text("data,method,score,value,source\na,b,iou,0.5,x\n")
    with pytest.raises(ValueError, match="has the score 'iou'; known are iou/mean, accuracy/mean"):
        quoted_cells(path, [])
    path.write_text("data,method,score,value,source\na,b,iou/mean,**0.5**,x\n")
    with pytest.raises(ValueError, match="is no number"):
        quoted_cells(path, [])
