"""The page about methods of one's own, block by block."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from geoseg.data.synthetic import SyntheticEarth
from geoseg.record import source_digest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "own_method.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
SMALL = ["data.source.size=32", "data.source.train=4", "data.source.val=1", "data.source.test=2", "trainer=cpu"]
SMALL += ["logger=files", "progress=false", "figure_rows=1"]


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files of the page, on the path of Python."""
    for text in [*blocks("python"), *blocks("yaml")]:
        if name := re.match(r"# ([\w/]+\.(?:py|yaml))\n", text):
            (tmp_path / name[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name[1]).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    source_digest.cache_clear()
    yield tmp_path
    sys.modules.pop("my_methods", None)
    source_digest.cache_clear()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("record.json"))]


def test_the_page(place: Path, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    lines = [shlex.split(line)[1:] for line in "".join(blocks("bash")).splitlines()]
    assert [line[0] for line in lines] == ["run", "run", "run", "report", "evaluate"]
    one, several, beside, report, evaluate = lines
    assert run_cli(*one, *SMALL) == 0
    assert run_cli(*several, *SMALL, "data.num_train=2") == 0
    assert "4 runs; geoseg report runs/run" in capsys.readouterr().out
    found = records(place / "runs")
    assert sorted((record["method"], record["seed"]) for record in found if record["num_train"] == 2) == [
        *(("equal shares", 0), ("equal shares", 1), ("greys", 0), ("greys", 1)),
    ]
    greys = next(record for record in found if record["method"] == "greys")
    assert greys["own"].keys() == {"my_methods"} and greys["adapter"] == ["greys.safetensors"]
    assert greys["scores"]["val/loss"] > 0
    log = (place / "runs" / "fits" / greys["fit_id"] / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train/loss"] for line in log if "train/loss" in line]
    assert len(losses) == 40 and sum(losses[-10:]) < sum(losses[:10])  # it learns something
    assert run_cli(*beside, *SMALL, "data.num_train=2") == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("input as is", "equal shares", "greys"))
    assert run_cli(*report) == 0
    with (place / "results" / "results.csv").open(newline="") as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"input as is", "equal shares", "greys"}
    run = greys["run_id"]
    words = [word.replace("RUN", run) for word in evaluate]
    assert run_cli(*words, *SMALL) == 0
    (evaluated,) = records(place / "runs" / "evaluate")
    assert (evaluated["fit_id"], evaluated["num_train"]) == (greys["fit_id"], 2)
    # without trust nothing of it is imported
    assert run_cli(*words[:-1], *SMALL, "force=true") == 2
    assert "method.model names my_methods.Greys" in capsys.readouterr().err
    source = SyntheticEarth(size=32, train=4, val=1, test=2)
    profile = source.read("test_0000").image
    (code,) = (text for text in blocks("python") if "geoseg.load" in text)
    names: dict[str, Any] = {"profile": profile}
    exec(code.replace("RUN", run), names)
    right = names["labels"][0] == torch.from_numpy(source.read("test_0000").target)
    assert right.float().mean().item() == pytest.approx(greys["per_unit"]["test/accuracy/pixel"][0], abs=1e-6)


def test_changed_code_is_told(place: Path, run_cli: Callable[..., int], caplog: pytest.LogCaptureFixture) -> None:
    words = ["run", "--config-dir", "conf", "method=shares", "trust=[my_methods]", *SMALL]
    assert run_cli(*words) == 0
    code = place / "my_methods.py"
    code.write_text(code.read_text() + "# another line\n")
    with caplog.at_level("INFO", logger="geoseg"):
        assert run_cli(*words) == 0
        assert "my_methods" not in caplog.text  # what this process has loaded is what it runs
        source_digest.cache_clear()
        assert run_cli(*words) == 0
    assert re.search(r"found finished run \w+, made by .*my_methods.*force=true runs it anew", caplog.text)


def test_an_installed_package_speaks_for_itself(
    place: Path, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--config-dir", "conf", "method=shares", *SMALL]
    assert run_cli(*words) == 2
    assert "add trust=[my_methods]" in capsys.readouterr().err
    (toml,) = blocks("toml")
    group, line = re.fullmatch(r'\[project\.entry-points\."([\w.]+)"\]\n(.+)\n', toml).groups()  # type: ignore[union-attr]
    info = place / "my_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{line.replace(chr(34), '')}\n")
    assert run_cli(*words) == 0
    assert [record["method"] for record in records(place / "runs")] == ["equal shares"]


def test_a_module_that_is_not_there(run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "method=input_as_is", "method.predictor._target_=no_such_module.X", "trust=[no_such_module]"]
    assert run_cli(*words, *SMALL) == 2
    said = capsys.readouterr().err
    assert "cannot be imported" in said and "install no_such_module, or put its folder on PYTHONPATH" in said
