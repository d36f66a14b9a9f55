"""Tables from records: every number where it belongs."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from geoseg.record import write_record
from geoseg.report import (
    collect,
    find,
    grids,
    main_table,
    print_run,
    put_between,
    result_rows,
    write_cards,
    write_results,
)
from tests.made_records import failed, record

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
    assert "3.5 minutes in all, 1.5 of them training" in text


def test_what_a_table_of_label_maps_has_no_room_for() -> None:
    regions = {"per_image/iou": 0.56, "per_image/accuracy": 0.8, "once/iou": 0.3, "once/accuracy": None, "count": 4.5}
    doubts = {"own/auroc": 0.78, "one_member/auroc": 0.66}
    one, other = record(), record("ensemble")
    one["scores"] |= {f"test/regions/{name}": value for name, value in regions.items()}
    other["scores"] |= {f"test/uncertainty/{name}": value for name, value in doubts.items()}
    other |= {"members": {"alone/iou/mean": [0.2, 0.4]}, "evaluates": {"run": "l04"}}
    console = Console(file=io.StringIO(), width=400)
    print_run([one, other], Path("runs/asked/l04"), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "its 4.500 regions per picture have no names" in text
    assert (
        "of every picture mean IoU 0.560, pixel accuracy 0.800, once for all pictures mean IoU 0.300, pixel accuracy -"
        in text
    )
    assert "ensemble: mean IoU of its 2 members, each alone, 0.300, of their mean 0.1" in text
    assert "wrong pixels with AUROC 0.780, one member's entropy with 0.660" in text
    assert "geoseg report runs/asked --to FOLDER --uncertainty" in text
    assert "of them training" in text


def test_a_score_that_stands_on_the_training_of_another_run_took_none() -> None:
    console = Console(file=io.StringIO(), width=120)
    print_run([{**record(), "evaluates": {"run": "l04"}}], Path("runs/asked/l04"), console)
    assert " 0.0 of them training" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_printed_after_a_training_that_is_not_tested() -> None:
    console = Console(file=io.StringIO(), width=120)
    print_run([record(scores={"val/psnr/mean": 23.45678})], Path("runs/asked/l04"), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "23.4568" in text
    assert "Dice" not in text


def test_rows_of_results(tmp_path: Path) -> None:
    rows = [*result_rows(RUN[0]), *result_rows(RUN[1]), *result_rows(failed())]
    assert [row["stage"] for row in rows] == ["pass 1", "pass 2", "refined", "", ""]
    assert [row["status"] for row in rows] == ["done"] * 4 + ["failed"]
    assert rows[2]["iou/mean"] == pytest.approx(0.303)
    assert rows[3]["train"] == "t0 t1 t2 t3"
    many = [f"t{i}" for i in range(10_000)]
    long = [{**RUN[1], "data": {**RUN[1]["data"], "train": names}} for names in (many, many[::-1])]
    cells = [result_rows(one)[0]["train"] for one in long]
    assert [cell.partition(",")[0] for cell in cells] == ["10000 names in record.json"] * 2
    assert cells[0] != cells[1]
    assert rows[0]["minutes"] == 2.0
    path = write_results([RUN[0], RUN[1], failed()], tmp_path / "results.csv")
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == 5
    assert list(read[0])[:4] == ["run_id", "experiment", "method", "stage"]
    assert float(read[1]["matched/iou/mean"]) == pytest.approx(0.207)
    assert (read[4]["iou/mean"], read[4]["minutes"]) == ("", "0")
    assert "val/loss" not in read[0]
    chosen = {**RUN[0], "config": {"data": {"select": "random", "num_train": 4}}}
    write_results([chosen, RUN[1]], path, keys=["data.select", "data.num_train"])
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["data.select"] for row in read] == ["random"] * 3 + [""]
    assert "data.num_train" not in read[0]  # which has a column whatever is asked


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


def test_a_run_is_found_with_its_folder_and_training(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "asked" / "l04"
    write_record(folder, record())
    write_record(folder / "predictions" / "odd", record(seed=1))  # below a run nothing is looked for
    write_record(tmp_path / "runs" / "demo" / "deeper" / "w04", record("without"))
    found = find([tmp_path / "runs"])
    assert [one.folder for one in found] == [folder, tmp_path / "runs" / "demo" / "deeper" / "w04"]
    assert found[0].fit == tmp_path / "runs" / "fits" / "f1"
    assert found[0].record["method"] == "label LoRA"
    assert find([folder])[0].folder == folder  # the folder of a run itself
    shutil.copytree(folder, tmp_path / "runs" / "zoo" / "l04")  # the same run, as part of a second experiment
    write_record(tmp_path / "runs" / "zoo" / "l04", record(experiment="zoo"))
    assert [one.folder for one in find([tmp_path / "runs"])] == [one.folder for one in found]


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
        put_between(readme, "table", "| new |\n")
        assert readme.read_text() == "# Question\n\n<!-- table -->\n\n| new |\n\n<!-- end of table -->\n\nVerdict.\n"
    with pytest.raises(ValueError, match="'<!-- comparisons -->'.*around its comparisons"):
        put_between(readme, "comparisons", "")
    assert "| new |" in readme.read_text()
