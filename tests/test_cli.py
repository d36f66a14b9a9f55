"""The command line: what it refuses and how it says so, before any work is done."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from geoseg import commands, sweep
from geoseg.cli import COMMANDS
from geoseg.overrides import check_overrides
from geoseg.record import SCHEMA
from tests.made_records import record

AS_IS = ("method=input_as_is", "data.source.size=32", "data.source.train=4", "data.source.val=2", "data.source.test=2")
AS_IS += ("data.num_train=2", "logger=files", "progress=false", "trainer=cpu")
HERE = "hydra/launcher=basic"
"""Runs of a sweep in this process: what workers do, test_sweep asks."""


def record_paths(folder: Path) -> list[Path]:
    return sorted((folder / "runs").rglob("record.json"))


def test_help_is_fast_because_nothing_heavy_is_imported() -> None:
    program = """if True:
        import contextlib, sys
        from geoseg.cli import COMMANDS, main
        main(["--help"])
        if modules := [name for name in sys.modules if name.startswith("geoseg.commands")]:
            sys.exit(f"imported {modules}, and no command was asked for")
        for name in COMMANDS:
            if name != "run":  # lists settings, which takes Hydra
                with contextlib.suppress(SystemExit):  # so argparse ends
                    main([name, "--help"])
        heavy = {"torch", "hydra", "omegaconf", "numpy", "diffusers", "rich", "wandb", "PIL"} & set(sys.modules)
        sys.exit(f"imported {heavy}" if heavy else 0)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "geoseg run experiment=label_lora" in done.stdout
    for name in ("demo", "evaluate", "predict", "synthesize", "compare", "fetch"):
        assert f"\ngeoseg {name} " in done.stdout
    for name in ("report", "export", "sync", "doctor", "status"):
        assert f"usage: geoseg {name} " in done.stdout


def test_every_command_is_a_module_and_every_module_a_command() -> None:
    found = {path.stem for path in Path(commands.__path__[0]).glob("*.py")}
    assert found == {*COMMANDS, "__init__", "shell"}  # what they share


def test_commands(run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("--help",), ("-h",)):
        assert run_cli(*words) == 0
        assert "geoseg COMMAND --help" in capsys.readouterr().out
    assert run_cli("--version") == 0
    assert capsys.readouterr().out.startswith("geoseg ")
    assert run_cli("rnu") == 2
    assert "no command 'rnu'; did you mean run?" in capsys.readouterr().err
    assert run_cli("xyz") == 2
    assert "there are run, demo, evaluate, predict, synthesize, report, export, sync, doctor" in capsys.readouterr().err
    assert run_cli("demo", "--help") == 0
    assert "experiment=label_lora" in capsys.readouterr().out


def test_help_of_run_lists_groups_and_settings(run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("run", "--help") == 0
    text = capsys.readouterr().out
    for words in (
        "label_lora",
        "checkpoints: demo, demo_in_domain, hub, hub_flux, hub_sd2, local",
        "strength: 0.53",
        "num_train: 4",
    ):
        assert words in text
    assert "== " not in text  # no template of Hydra's own


@pytest.mark.parametrize("words", [("run", "method=unet", "--cfg", "job"), ("run", "--cfg", "job", "method=unet")])
def test_the_whole_configuration_can_be_shown(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...]
) -> None:
    assert run_cli(*words) == 0
    assert "_target_: geoseg.models.unet.UNet" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["method.predictor.strenght=0.4"],
            "no setting method.predictor.strenght; did you mean method.predictor.strength?",
        ),
        (["strength=0.4"], "no setting strength; did you mean method.predictor.strength?"),
        (["num_train=3"], "no setting num_train; did you mean data.num_train?"),
        (["method.task.fit.epoch=3"], "did you mean method.task.fit.epochs?"),
        (["qwxyz=3"], "no setting qwxyz; geoseg run experiment=... --help lists those of an experiment"),
        (["data.root=x"], "no setting data.root; data=cityscapes or data=coco_stuff27 or data=dat or"),
        (["method.model.encoder=x"], "method=unet or method=unet_matte or method=vit has it, so add the one you mean"),
        (
            ["method=unet", "method.adapter.rank=4"],
            "method=mask_diffusion or method=synthetic_lora or method=vit_lora has it, which was not asked for",
        ),
        (["experiment=label_lore"], "no experiment=label_lore; did you mean experiment=label_lora?"),
        (["method=u-net"], "no method=u-net; did you mean method=unet?"),
        (["trainer=tpu"], "no trainer=tpu; did you mean trainer=gpu?"),
        (["checkpoints=x"], "no checkpoints=x; there are demo, demo_in_domain, hub, hub_flux, hub_sd2, local"),
        (
            ["data.select=[a,b"],
            """geoseg: put quotes around the value: 'data.select=["a","b"]'\n  cannot read""",
        ),
        (["data.select=[línea,x=1]"], """put quotes around the value: 'data.select=["línea","x=1"]'"""),
        (["prompt.text=a: b, c"], """one value is typed 'prompt.text="a: b, c"'"""),
        (["prompt.text=a <lora:vai1:1>"], """put quotes around the value: 'prompt.text="a <lora:vai1:1>"'"""),
        (["data=profiles", "data.root=my", "survey"], """a value with spaces needs quotes: 'data.root="my survey"'"""),
        (["-m", "sed=0,1"], "no setting sed; did you mean seed?"),
        (["~method.nothing"], "there is no setting method.nothing"),
        (["label_lora"], "a setting is typed key=value, such as experiment=label_lora or method=label_lora; got"),
        (["~method.wrappers.sam", "x"], "a setting is typed key=value, such as seed=1; got 'x'"),
        (["+seed=3"], "leave the + away, since it is there already: seed=3"),
        (["+data=profiles"], "leave the + away, since it is there already: data=profiles"),
        (["data=null"], "a group takes the name of one of its options, such as experiment=label_lora (Config group"),
        (["experiment=[label_lora,b]"], "there is no experiment=b; geoseg run --help lists the options of every group"),
        (["experiment=label_lore", "--help"], "did you mean experiment=label_lora?"),
        (["data.num_train=1,2"], "'data.num_train=1,2' names several values: geoseg run -m runs one after the other"),
    ],
)
def test_misspelt_settings(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    assert run_cli("run", *words) == 2
    said = capsys.readouterr().err
    assert said.startswith("geoseg: ")
    assert message in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.predictor.strength=abc"], "method.predictor.strength=abc: a number is wanted"),
        (["method.task.fit.epochs=2.5"], "method.task.fit.epochs=2.5: a whole number is wanted"),
        (["experiment=label_lora", "rivals.unet.model.depth=deep"], "rivals.unet.model.depth=deep: a whole number"),
        (["checkpoints.size=wide"], "=wide: a whole number"),
        (["progress=1"], "progress=1: true or false is wanted"),
    ],
)
def test_wrong_types_are_told_before_anything_is_loaded(
    run_cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    def no(*args: Any, **options: Any) -> None:
        raise AssertionError("an object was looked up")

    monkeypatch.setattr("geoseg.config.get_object", no)
    monkeypatch.setattr(sweep, "job", no)
    assert run_cli("run", *words) == 2
    assert message in capsys.readouterr().err


def test_the_check_takes_what_is_right() -> None:
    check_overrides(["seed=0,1", "experiment=label_lora", "method.predictor.strength=0.4"], multirun=True)
    check_overrides(["+new.key=1", "data.select=[a,b]"])
    check_overrides(["data=profiles", "method.predictor.second_strength=null", "method.predictor.guidance=7"])
    check_overrides(["seed=0,abc"], multirun=True)  # a job of its own says so
    check_overrides(["method=unet,label_lora", "experiment=label_lora,paper/guo2024", "rivals=null"], multirun=True)
    with pytest.raises(ValueError, match=r"there is no method=dinov2_mlaa; did you mean method=dinov2_mla\?"):
        check_overrides(["method=unet,dinov2_mlaa"], multirun=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.predictor.strength=0"], "strength must be above 0 and at most 1, got 0"),
        (["method.predictor.strength=1.5"], "strength must be above 0 and at most 1, got 1.5"),
        (["method.predictor.second_strength=-1"], "second_strength must be above 0"),
        (["method.predictor.steps=0"], "steps must be at least 1, got 0"),
        (["method.predictor.guidance=-1"], "guidance must be"),
        (["method.predictor.prompt='a <lora:vai2:1>'"], "vai1"),
        (["method.task.lr.unet=-0.001"], "a learning rate must not be negative"),
        (["method.task.lr={unet: 0, text: 0}"], "every learning rate is 0"),
        (
            ["method.task.optimizer._target_=geoseg.optim.prodigy"],
            "method.task.optimizer: prodigy has one rate for all groups, got unet 0.0001, text 1e-05; use 1 for each",
        ),
        (["method.task.fit.epochs=0"], "method.task.fit: epochs must be 1 or more, got 0"),
        (["method.task.schedule.warmup=99999"], "method.task.schedule: warmup must be from 0 to below the"),
        (
            ["experiment=label_lora", "rivals.unet.task.schedule.warmup=99999"],
            "rivals.unet.task.schedule: warmup must be from 0 to below the",
        ),
        (["experiment=label_lora", "rivals.without_lora.predictor.batch=0"], "rivals.without_lora.predictor: wanted"),
        (["method.predictor.strength=abc"], "method.predictor.strength=abc: a number is wanted"),
        (["seed=abc"], "seed=abc: a whole number is wanted"),
        (["data.num_train=few"], "data.num_train=few: a whole number or null is wanted"),
        (["method.adapter.rank=0"], "method.adapter: rank must be at least 1"),
        (["trainer=gpu"], "torch sees no GPU here; use trainer=auto"),
        (["rivals={}"], "rivals=null leaves them out"),
        (["method.predictor.overlap=1"], "0 <= overlap < 1"),
        (["experiment=label_lora", "method.predictor.guidance=-3"], "geoseg: method.predictor: guidance must be"),
        (["experiment=label_lora", "rivals.without_lora.predictor.guidance=-3"], "geoseg: rivals.without_lora.pred"),
        (["objective=test/iou/mean"], "objective=test/iou/mean: only val/... scores may be optimised"),
        (["trainer.precision=16-mixed"], "needs a GPU, and this run is on the CPU; use trainer=auto"),
        (
            ["trainer.devices=2"],
            "method.task.fit.batch_size=1: a batch is divided among the devices, and trainer.devices=",
        ),
        (["trainer.devices=0"], "trainer.devices=0: how many devices is wanted, 1 or more, or which GPUs"),
        (["trainer.devices=auto"], "trainer.devices=auto: how many devices is wanted"),
        (["trainer.devices=[0,1]"], "trainer.devices=[0, 1] names GPUs, and this run is on the CPU; give a number"),
        (["trainer.devices=2", "trainer.strategy=ddp"], "trainer.strategy=ddp: auto or ddp_spawn is wanted"),
        (
            ["experiment=label_lora", "trainer.devices=2", "method.task.fit.batch_size=2"],
            "trainer.devices=2: rivals.unet (U-Net) normalises over the whole batch (BatchNorm)",
        ),
        (["data.num_train=5"], "data.num_train=5, but 4 labelled samples are there to choose from"),
        (["data.num_test=0"], "no sample is left to test on"),
        (["data.source.kind=coal"], "kind 'coal' is not drawn"),
        (["+method.predictor.foo=1"], "geoseg: method.predictor: --cfg job shows the keys it takes ("),
        (["checkpoints.stable_diffusion.path_or_id=./nothing"], "there is no folder './nothing'"),
        (["checkpoints.sam.path=sam.pth"], "geoseg: checkpoints.sam.path=sam.pth: there is no such file or folder"),
        (
            ["experiment=label_lora", "rivals.label_lora_tuned=null"],
            "geoseg: set rivals.blinded=null too: it takes settings from rivals.label_lora_tuned, which is null",
        ),
        (
            ["experiment=label_lora", "method.predictor.prompt=${prompt.txt}"],
            "method.predictor.prompt=${prompt.txt}: there is no setting prompt.txt; did you mean ${prompt.text}?",
        ),
        (["checkpoints.sam.path=???"], "needs a value for checkpoints.sam.path"),
        (["data=profiles", "~data.source.size", "data.root=nowhere"], "data.root=nowhere is no folder"),
        # objects from elsewhere
        (["method.predictor._target_=os.system"], "method.predictor names os.system, which is outside geoseg"),
        (["+x._target_=subprocess.run"], "x names subprocess.run"),
        (
            ["method.task.optimizer._target_=diffusers.utils.torch_utils.torch.load"],
            "really is torch.serialization.load",
        ),
        (["method.predictor._target_=geoseg.record.subprocess.run"], "really is subprocess.run"),
    ],
)
def test_what_cannot_work_is_refused_before_the_training(
    run_cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_run: list[str],
    words: list[str],
    message: str,
) -> None:
    import pytorch_lightning as pl

    def no(*args: Any, **options: Any) -> None:
        raise AssertionError("work was begun")

    for work in ("fit", "test"):
        monkeypatch.setattr(pl.Trainer, work, no)
    monkeypatch.setattr(os, "system", no)
    monkeypatch.setattr(os, "abort", no)
    base = (
        tiny_run if "data=profiles" not in words else [word for word in tiny_run if not word.startswith("data.source")]
    )
    words = [word for word in words if not word.startswith("~")]
    assert run_cli("run", *base, *words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("adapter"))


def test_trust_lets_a_package_in(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mymethods.py").write_text(
        "from geoseg.predictors.unchanged import InputAsIs\n\n\nclass Mine(InputAsIs):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    words = (*AS_IS, "method.predictor._target_=mymethods.Mine")
    assert run_cli("run", *words) == 2
    assert "trust=[mymethods]" in capsys.readouterr().err
    assert run_cli("run", *words, "trust=[mymethods]") == 0
    sys.modules.pop("mymethods")


def test_one_rival_is_left_out(run_cli: Callable[..., int], tmp_path: Path) -> None:
    rivals = ("+method@rivals.a=input_as_is", "rivals.a.title=kept", "+method@rivals.b=input_as_is", "rivals.b=null")
    assert run_cli("run", *AS_IS, *rivals) == 0
    assert {json.loads(path.read_text())["method"] for path in record_paths(tmp_path)} <= {"input as is", "kept"}


@pytest.mark.parametrize("order", ["first", "last"])
def test_several_runs(run_cli: Callable[..., int], tmp_path: Path, order: str) -> None:
    words = ["-m", *AS_IS, HERE, "seed=0,1"] if order == "first" else [*AS_IS, HERE, "seed=0,1", "--multirun"]
    assert run_cli("run", *words) == 0
    records = [json.loads(path.read_text()) for path in record_paths(tmp_path)]
    assert sorted(record["seed"] for record in records) == [0, 1]
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"run"}  # nothing of Hydra's own


@pytest.mark.parametrize("option", [["--config-dir", "own"], ["--config-dir=own"], ["-cd", "own"]])
def test_experiments_of_ones_own(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, option: list[str]
) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\nname: my_question\nseed: 5\n")
    assert run_cli("run", *option, "experiment=mine", *AS_IS) == 0
    assert [path.parts[-3] for path in record_paths(tmp_path)] == ["my_question"]
    assert run_cli("run", *option, "experiment=mime", *AS_IS) == 2
    assert "did you mean experiment=mine?" in capsys.readouterr().err


def test_one_bad_run_of_several_is_told_in_the_exit_code(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_cli("run", "-m", *AS_IS, HERE, "data.num_train=9,2") == 2
    assert "data.num_train=9" in capsys.readouterr().err
    assert len(record_paths(tmp_path)) == 1


def test_an_objective_that_no_run_has(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_cli("run", *AS_IS, "objective=val/iou") == 2
    assert "objective=val/iou is no score of this run" in capsys.readouterr().err


def test_report_maps_two_settings(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoints: list[str]
) -> None:
    sweep = ["method.predictor.strength=0.3,0.6", "method.predictor.guidance=1,3", "method.predictor.steps=4"]
    assert run_cli("run", "-m", *tiny_checkpoints, HERE, "method=without_lora", *sweep) == 0
    settings = ["method.predictor.strength", "method.predictor.guidance"]
    assert run_cli("report", "runs", "--to", "out", "--map", *settings) == 0
    written = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert written == ["map_without_lora.png", "sheet_without_lora_pass_1.png", "sheet_without_lora_pass_2.png"]
    capsys.readouterr()
    assert run_cli("report", "runs", "--to", "out", "--map", "method.predictor.strenght", settings[1]) == 2
    assert "did you mean method.predictor.strength?" in capsys.readouterr().err


def test_report_gathers_records(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_cli("report", "runs", "--to", "out") == 2
    assert "no record.json below runs" in capsys.readouterr().err
    assert run_cli("run", "-m", *AS_IS, HERE, "seed=0,1") == 0
    capsys.readouterr()
    assert run_cli("report", "runs", "--to", "out") == 0
    said = capsys.readouterr().out
    assert "2 records -> out/results.csv" in said
    assert "| input as is |" in said
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    records = {str(r["seed"]): r for r in (json.loads(path.read_text()) for path in record_paths(tmp_path))}
    assert {row["seed"] for row in rows} == {"0", "1"}
    for row in rows:
        assert float(row["iou/mean"]) == pytest.approx(records[row["seed"]]["scores"]["test/iou/mean"], rel=1e-5)
    (tmp_path / "out" / "README.md").write_text("<!-- table -->\n<!-- end of table -->\n")
    assert run_cli("report", "runs", "--to", "out") == 0
    assert "| input as is |" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "out" / "README.md").write_text("no marks\n")
    assert run_cli("report", "runs", "--to", "out") == 2
    assert "around its table" in capsys.readouterr().err
    assert run_cli("report", "runs", "--costs") == 2
    assert "--to is missing" in (said := capsys.readouterr().err) and "geoseg report runs --costs --to summary" in said


def test_report_compares_two_rows_and_says_what_it_lacks(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("input as is", "U-Net"):
        folder = tmp_path / "runs" / "asked" / name
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps({"schema": SCHEMA, **record(name)}))
    compare = ("report", "runs", "--to", "out", "--compare")
    assert run_cli(*compare, "U-Net", "input as is") == 0
    assert "| U-Net − input as is |" in capsys.readouterr().out
    for words in (["U-Net"], []):
        assert run_cli(*compare, *words) == 2
        said = capsys.readouterr().err
        assert said.startswith("geoseg report: --compare takes two rows of the table by their names, such as --compare")
    assert run_cli(*compare, "U-net", "input as is") == 2
    said = capsys.readouterr().err
    assert "no row of the table is called 'U-net'; did you mean 'U-Net'? there is 'U-Net', 'input as is'" in said


def test_report_draws_and_tells_everything(
    run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = ("data.source.size=32", "data.source.train=4", "data.source.val=2", "data.source.test=2", "logger=files")
    asked = ("data.tolerances={chalk: 2}", "data.published_batch=1", "data.published_flips=true", "data.batch_size=1")
    unet = ("method=unet", "method.model.depth=3", "method.task.crop=32", "method.task.fit.epochs=2", "data.num_val=2")
    swept = ("trainer=cpu", "progress=false", "data.num_train=1,2", "seed=0,1")
    assert run_cli("run", "-m", *small, *asked, *unet, *swept) == 0
    capsys.readouterr()
    words = ("--tex", "--csv", "--html", "--over", "data.num_train", "--costs", "--sheet")
    assert run_cli("report", "runs", "--to", "out", *words) == 0
    said = capsys.readouterr().out
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    records = [json.loads(path.read_text()) for path in record_paths(tmp_path)]
    weights = load_file(tmp_path / "runs" / "fits" / records[0]["fit_id"] / "adapter" / "model.safetensors")
    learnt = sum(w.numel() for name, w in weights.items() if not name.endswith(("_mean", "_var", "_tracked")))
    for row in rows:
        assert int(row["trainable_parameters"]) == int(row["parameters"]) == learnt
        assert float(row["ms_per_image"]) > 0
        assert row["tolerant_f1/mean"] == row["tolerant_f1/class_3"] != ""
        assert row["published/iou/mean"] != row["published/with_flips/iou/mean"]
    assert f"| {learnt:,} |" in said and "| ms per image |" in said
    for one in records:  # one image per batch, so that the mean over batches is that over images
        mean = np.mean(one["per_unit"]["test/iou/mean"])
        assert one["scores"]["test/published/iou/mean"] == pytest.approx(mean)
    if sys.platform == "linux":
        assert all(1e8 < one["costs"][name] < 1e11 for one in records for name in ("fit_bytes", "predict_bytes"))
    assert "| synthetic" in said and "n = 4: no interval" in said
    out = tmp_path / "out"
    costs = ("cost", "cost_trainable_parameters", "cost_ms_per_image")
    drawn = {f"{name}.{suffix}" for name in ("over_num_train", "losses", "spread", *costs) for suffix in ("png", "pdf")}
    assert {path.name for path in out.iterdir()} == drawn | {
        *("results.csv", "table.csv", "table.tex", "report.html", "results.png")
    }
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64") == 7
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import""", page)
    for path in record_paths(tmp_path):
        kept = json.loads(path.read_text())
        log = tmp_path / "runs" / "fits" / kept["fit_id"] / "metrics.jsonl"
        logged = [json.loads(line) for line in log.read_text().splitlines()]
        last = [line["train/loss"] for line in logged if "train/loss" in line]
        last = last[-max(1, round(len(last) / 10)) :]
        assert f">{sum(last) / len(last):.4g}<" in page
        assert f">{kept['scores']['test/matched/iou/mean']:.4g}<" in page
    (out / "README.md").write_text(
        "<!-- table -->\n<!-- end of table -->\n<!-- correlation -->\n<!-- end of correlation -->\n"
    )
    assert run_cli("report", "runs", "--to", "out", "--over", "num_train", "--by", "seed") == 0
    assert "correlation -> out/README.md" in capsys.readouterr().out
    assert "| synthetic" in (out / "README.md").read_text().split("<!-- correlation -->")[1]
    assert run_cli("report", "runs", "--to", "out", "--over", "data.num_trian") == 2
    assert "did you mean data.num_train?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_cli("report", "runs", "--to", "out", "--by", "seed")
    assert "--by needs --over" in capsys.readouterr().err
    (out / "README.md").unlink()
    for words, message in (
        (("--sheet", "test_0007"), "left a label map of the profiles test_0007"),
        (("--distance",), "no profile has a distance from the training data"),
        (("--distance", "far"), "invalid float value: 'far'"),
    ):
        assert run_cli("report", "runs", "--to", "out", *words) == 2
        assert message in capsys.readouterr().err
    assert run_cli("report", "runs", "--to", "out", "--distance", "7", "--sheet", "test_0001") == 0
    assert (out / "distance.pdf").is_file()
    (out / "published.csv").write_text(
        "data,method,score,value,source\nsynthetic facies,U-Net,iou/mean,0.5,me\nelsewhere,x,accuracy/mean,1,you\n"
    )
    assert run_cli("report", "runs", "--to", "out") == 0
    flipped = [one["scores"]["test/published/with_flips/iou/mean"] for one in records]
    here = f"{np.mean(flipped):.3f} ± {np.std(flipped, ddof=1):.3f}"
    assert f"| synthetic facies | U-Net | 0.5000 | {here} | - |" in capsys.readouterr().out
