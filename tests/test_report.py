"""Tables from records: every number where it belongs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from geoseg.record import write_record
from geoseg.report import (
    collect,
    grids,
    main_table,
    print_run,
    result_rows,
    summary,
    write_cards,
    write_results,
    write_table,
)

SCORES = (
    "dice_loss/original_label",
    "dice_loss/original_generated",
    "dice_loss/label_generated",
    "iou/mean",
    "dice/mean",
    "accuracy/pixel",
    "boundary_f1/mean",
    "matched/iou/mean",
    "matched/dice/mean",
    "matched/accuracy/pixel",
    "matched/boundary_f1/mean",
)


def scores(start: float) -> dict[str, float]:
    """Every score a number of its own."""
    return {f"test/{name}": round(start + i / 1000, 3) for i, name in enumerate(SCORES)}


def per_unit(start: float, units: int, step: float = 0.01) -> dict[str, list[float]]:
    return {name: [round(value + step * i, 4) for i in range(units)] for name, value in scores(start).items()}


def record(
    method: str = "label LoRA",
    start: float = 0.1,
    stages: tuple[str, ...] = (),
    labels: int = 4,
    images: int = 0,
    seed: int = 0,
    units: int = 5,
    kind: str = "demo",
    step: float = 0.01,
    **more: Any,
) -> dict[str, Any]:
    names = [f"u{i}" for i in range(units)]
    return {
        "run_id": f"{method[0]}{seed}{labels}",
        "fit_id": "f1",
        "experiment": "asked",
        "method": method,
        "data": {"name": "earth", "train": [f"t{i}" for i in range(4)], "val": [], "test": names},
        "num_train": 4,
        "checkpoints": {"kind": kind},
        "seed": seed,
        "commit": "c0ffee",
        "device": "CPU",
        "given": {"labels": labels, "images": images, "pretraining": "none"},
        "status": "done",
        "scores": {"val/loss": 0.9, **scores(start)},
        "per_unit": per_unit(start, units, step),
        "stages": {stage: scores(start + 0.1 * i) for i, stage in enumerate(stages)},
        "stages_per_unit": {stage: per_unit(start + 0.1 * i, units, step) for i, stage in enumerate(stages)},
        "units": {"names": names, "unit": "section"},
        "minutes": {"fit": 1.5, "predict": 0.25, "score": 0.25},
        "adapter": ["pytorch_lora_weights.safetensors"],
        "figures": ["figures/stages.png"],
        **more,
    }


THREE = ("pass 1", "pass 2", "refined")
RUN = [
    record(start=0.1, stages=THREE),
    record("input as is", start=0.4, labels=0, kind="none"),
    record("without LoRA", start=0.5, labels=0, stages=("pass 1", "pass 2")),
    record("U-Net", start=0.6, labels=4, images=4, kind="none"),
]


def printed(records: list[dict[str, Any]]) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    console.print(main_table(records))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_the_table_of_a_run() -> None:
    lines = printed(RUN)
    assert lines[0].strip() == "asked on earth, seed 0: 5 test profiles, checkpoints=demo"
    starts = {
        "input as is": 0.4,
        "without LoRA": 0.5,
        "pass 1": 0.1,
        "pass 2": 0.2,
        "refined": 0.3,
        "U-Net": 0.6,
    }
    where = [next(i for i, line in enumerate(lines) if line.strip().startswith(name)) for name in starts]
    assert where == sorted(where)  # controls, the main method's stages, what was trained with profiles
    for i, start in zip(where, starts.values(), strict=True):
        numbers = [f"{start + k / 1000:.3f}" for k in range(11)]
        assert lines[i].split()[-7:] == numbers[:7]
        assert lines[i + 1].split()[-4:] == numbers[7:]
    assert "nothing" in lines[where[0]]
    assert "4 label maps alone" in lines[where[2]]
    assert "label maps" not in lines[where[3]]
    assert "4 label maps" in lines[where[5]]
    assert "and their profiles" in lines[where[5] + 1]
    assert any("lower is better" in line for line in lines)


def test_one_label_map_and_a_score_that_does_not_exist() -> None:
    one = record(labels=1)
    one["scores"]["test/iou/mean"] = None
    text = "\n".join(printed([one]))
    assert "1 label map alone" in text
    assert " - " in text


def test_what_is_printed_after_a_run() -> None:
    console = Console(file=io.StringIO(), width=80)
    facts = {"sam/masks": 12.34, "sam/coverage": 0.5, "sam/largest": 0.123}
    print_run([{**RUN[0], "facts": facts}, *RUN[1:]], Path("runs/asked/l04"), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "mean per picture: masks 12.3, covered 50%, by the largest 12%" in text
    assert [line for line in text.splitlines() if "record.json" in line] == [
        f"  record           runs/asked/{run}/record.json" for run in ("l04", "i00", "w00", "U04")
    ]
    assert "runs/fits/f1/adapter/pytorch_lora_weights.safetensors" in text
    assert "figure stages    runs/asked/l04/figures/stages.png" in text
    assert "8.0 minutes in all, 6.0 of them training" in text


def test_what_is_printed_after_a_training_that_is_not_tested() -> None:
    console = Console(file=io.StringIO(), width=120)
    print_run([record(scores={"val/psnr/mean": 23.45678})], Path("runs/asked/l04"), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "23.4568" in text
    assert "Dice" not in text


def failed() -> dict[str, Any]:
    made = record("label LoRA", seed=7, status="failed", error="ValueError: no")
    return {name: value for name, value in made.items() if name not in ("scores", "stages", "minutes", "per_unit")}


def test_rows_of_results(tmp_path: Path) -> None:
    rows = [*result_rows(RUN[0]), *result_rows(RUN[1]), *result_rows(failed())]
    assert [row["stage"] for row in rows] == ["pass 1", "pass 2", "refined", "", ""]
    assert [row["status"] for row in rows] == ["done"] * 4 + ["failed"]
    assert rows[2]["iou/mean"] == pytest.approx(0.303)
    assert rows[3]["train"] == "t0 t1 t2 t3"
    assert rows[0]["minutes"] == 2.0
    path = write_results([RUN[0], RUN[1], failed()], tmp_path / "results.csv")
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == 5
    assert list(read[0])[:4] == ["run_id", "experiment", "method", "stage"]
    assert float(read[1]["matched/iou/mean"]) == pytest.approx(0.207)
    assert (read[4]["iou/mean"], read[4]["minutes"]) == ("", "0")
    assert "val/loss" not in read[0]


def test_records_are_found_and_put_in_order(tmp_path: Path) -> None:
    for one in (record(seed=1), record("U-Net"), record(seed=0), failed()):
        write_record(tmp_path / "runs" / "asked" / str(one["run_id"]), one)
    found = collect([tmp_path / "runs", tmp_path / "nothing here"])
    assert [(one["method"], one["seed"]) for one in found] == [
        ("U-Net", 0),
        ("label LoRA", 0),
        ("label LoRA", 1),
        ("label LoRA", 7),
    ]


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


def test_runs_over_two_settings(tmp_path: Path) -> None:
    def made(strength: float, guidance: float, seed: int, start: float, **more: Any) -> dict[str, Any]:
        config = {"method": {"predictor": {"strength": strength, "guidance": guidance, "tile": None}}}
        one = record(start=start, seed=seed, config=config, **more)
        return {**one, "run_id": f"{strength}{guidance}{seed}", "facts": {"sam/masks": start}}

    many = [made(0.2, 1, 1, 0.3), made(0.2, 1, 0, 0.1), made(0.4, 1, 0, 0.5), failed()]
    places = {one["run_id"]: tmp_path / str(one["run_id"]) for one in many}
    (grid,) = grids(many, places, ("method.predictor.strength", "method.predictor.guidance"))
    assert grid.method == "label LoRA"
    assert grid.scores[0.2, 1]["masks per picture"] == pytest.approx(0.2)  # mean of two seeds
    assert grid.scores[0.4, 1]["Dice loss label–generated"] == pytest.approx(0.502)
    assert grid.folders == {(0.2, 1): tmp_path / "0.210", (0.4, 1): tmp_path / "0.410"}
    with pytest.raises(ValueError, match=r"setting strenth; did you mean|has the setting strenth"):
        grids(many, places, ("strenth", "method.predictor.guidance"))
    assert grids(many, places, ("method.predictor.strength", "method.predictor.tile")) == []


def test_the_cards_of_checkpoints(tmp_path: Path) -> None:
    fit = {"epochs": 3, "repeats": 2, "batch_size": 3}
    config = {"method": {"task": {"fit": fit}}, "data": {"source": {"seed": 5, "count": 4}}}
    one = record("segmenter", config=config, dirty=True, precision="32-true", scores={"val/iou/labels": 0.81234})
    write_record(tmp_path / "run", one)
    (tmp_path / "README.md").write_text("Cards\n<!-- table -->\n<!-- end of table -->\n")
    path, readme = write_cards({"sam": tmp_path / "run"}, tmp_path)
    card = json.loads(path.read_text())
    assert path == tmp_path / "cards" / "asked.json"
    assert (card["steps"], card["minutes"], card["source"]["seed"]) == (3 * 2 * 2, 1.5, 5)
    assert card["scores"] == {"val/iou/labels": 0.81234}
    assert "| sam | `asked` | 12 steps of 3, 2 minutes, CPU | `c0ffee` with changes | iou/labels 0.8123 |" in (
        readme.read_text()
    )
    write_record(tmp_path / "run", failed())
    with pytest.raises(ValueError, match="train sam first"):
        write_cards({"sam": tmp_path / "run"}, tmp_path)


def test_the_table_in_a_readme_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Question\n\n<!-- table -->\nold\n<!-- end of table -->\n\nVerdict.\n")
    for _ in range(2):  # writing twice changes nothing more
        write_table([record()], readme)
        text = readme.read_text()
        assert text.startswith("# Question\n\n<!-- table -->\n")
        assert text.endswith("<!-- end of table -->\n\nVerdict.\n")
        assert text.count("| earth | label LoRA |") == 1
        assert "old" not in text
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="around its table"):
        write_table([record()], readme)
    assert readme.read_text() == "no marks"
