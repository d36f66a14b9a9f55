"""Searches through the command line: what is found, what is told, and what is left after somebody pulls the plug."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from geoseg import sweep
from geoseg.data.synthetic import SyntheticEarth
from geoseg.search import parameter
from geoseg.study import Choice, Number, Study, Trial
from tests.test_cli import AS_IS, HERE

ROOT = Path(__file__).resolve().parent.parent

FLAT = '''
import os, time
import torch
from geoseg.predictors.unchanged import InputAsIs
from geoseg.types import Prediction


class Flat(InputAsIs):
    """Says the same class of every pixel."""

    def __init__(self, palette, label=0, level=0.0, bad=None, how="raise"):
        super().__init__(palette)
        self.label, self.bad, self.how = label, bad, how

    def predict(self, image, generator):
        if self.label == self.bad:
            if self.how == "kill":
                os.kill(os.getpid(), 9)
            raise RuntimeError("of bad luck")
        probs = torch.zeros(len(image), self.num_classes, *image.shape[2:])
        probs[:, self.label] = 1
        return Prediction(probs=probs)
'''

FLATLY = (*AS_IS, "method.predictor._target_=flat.Flat", "trust=[flat]", "figure_rows=0")
ACCURACY = ("hparams_search=optuna", "objective=val/accuracy/pixel", "hydra.sweeper.direction=maximize")
LEVEL = "+method.predictor.level=tag(log,interval(1e-3,1))"
"""A setting that changes no score, so that a search over it is as good as random, and quick."""


@pytest.fixture
def flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "flat.py").write_text(FLAT)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("flat", None)


def records(folder: Path = Path("runs")) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/*/record.json"))]


def trials(text: str) -> list[dict[str, str]]:
    """The rows of the table at the end."""
    lines = text.splitlines()
    (start,) = (i for i, line in enumerate(lines) if re.match("Trials: ", line))
    names = lines[start + 2].split()
    names = [name for name in names if name not in ("↓", "↑")]
    rows = []
    for line in lines[start + 4 :]:
        if not line.strip():
            break
        cells = line.split()
        rows.append(dict(zip(names, cells, strict=True)) if len(cells) == len(names) else {"state": cells[1]})
    return rows


def study_of(folder: Path = Path("runs"), **more: Any) -> Study:
    """The one that lies there, to look at."""
    (found,) = folder.glob("*/searches/*")
    space = {"+method.predictor.level": Number(1e-3, 1.0, log=True)}
    return Study(found, more.pop("space", space), "val/accuracy/pixel", "maximize", 0, 0, 0)


class PlugPulled(BaseException):
    """What no program expects."""


def test_the_best_of_a_few_values_is_found(
    flat: None, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "-m", *FLATLY, HERE, *ACCURACY, "+method.predictor.label=choice(0,1,2,3)"]
    assert run_cli(*command) == 0
    said = capsys.readouterr().out
    source = SyntheticEarth(kind="facies", size=32, train=4, val=2, test=2, seed=0)
    truth = np.concatenate([source.read(name).target.ravel() for name in source.names if source.split(name) == "val"])
    shares = {str(label): float((truth == label).mean()) for label in range(4)}
    rows = [row for row in trials(said) if row["state"] == "done"]
    # twenty trials were to be, but there are four values; those that came twice are none
    assert {row["+method.predictor.label"]: float(row["val/accuracy/pixel"]) for row in rows} == {
        label: pytest.approx(share, rel=1e-3) for label, share in shares.items()
    }
    best = max(shares, key=shares.__getitem__)
    assert rows[0]["+method.predictor.label"] == best
    assert len(records()) == 4
    line = re.search(r"as an ordinary run:\n  geoseg (.*)", said)
    assert line is not None
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("record.json")}
    assert run_cli(*shlex.split(line[1])) == 0
    assert rows[0]["run"] in capsys.readouterr().out
    assert run_cli(*command) == 0
    again = capsys.readouterr().out
    assert "4 of 20 trials are finished" in again
    assert [row for row in trials(again) if row["state"] == "done"] == rows
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("record.json")} == before
    for folder in ("runs", "runs/run"):
        assert run_cli("status", folder) == 0
        assert re.search(r"all runs +4 *\n", capsys.readouterr().out)
    # other values are another study, but the runs are those that are there
    assert run_cli(*command[:-1], "+method.predictor.label=range(0,3)", "hydra.sweeper.pruner=null") == 0
    said = capsys.readouterr().out
    assert said.count(": found") == 3
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("record.json")} == before


def test_a_search_that_was_cut_off_does_what_it_would_have_done(
    flat: None, run_cli: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "-m", *FLATLY, HERE, *ACCURACY, LEVEL, "hydra.sweeper.n_trials=4"]
    command += ["hydra.sweeper.n_startup_trials=2"]

    def tried(folder: str) -> list[Trial]:
        return study_of(Path(folder)).all()

    assert run_cli(*command, "runs=whole") == 0
    whole = tried("whole")
    assert [trial.state for trial in whole] == ["done"] * 4
    assert len({trial.words["+method.predictor.level"] for trial in whole}) == 4
    job, tell = sweep.job, Study.tell
    count = 0

    def cut_off(*arguments: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise PlugPulled
        return job(*arguments, **more)

    monkeypatch.setattr(sweep, "job", cut_off)
    with pytest.raises(PlugPulled):
        run_cli(*command)
    assert [trial.state for trial in tried("runs")] == ["done", "done", "running"]
    monkeypatch.setattr(sweep, "job", job)

    def told(self: Study, number: int, *rest: Any) -> None:
        if number == 4:  # its run is finished, and nobody has said so
            raise PlugPulled
        tell(self, number, *rest)

    monkeypatch.setattr(Study, "tell", told)
    with pytest.raises(PlugPulled):
        run_cli(*command)
    assert [trial.state for trial in tried("runs")] == ["done", "done", "interrupted", "done", "running"]
    monkeypatch.setattr(Study, "tell", tell)
    capsys.readouterr()
    assert run_cli(*command) == 0
    out = capsys.readouterr().out
    assert "3 of 4 trials are finished" in out
    done = [trial for trial in tried("runs") if trial.state == "done"]
    assert [(trial.words, trial.score, trial.run) for trial in done] == [
        (trial.words, trial.score, trial.run) for trial in whole
    ]
    assert len(records()) == 4


def test_a_trial_that_fails_stops_no_other(
    flat: None, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "-m", *FLATLY, HERE, *ACCURACY, "+method.predictor.label=0,1,2", "+method.predictor.bad=1"]
    assert run_cli(*command) == 1
    said = capsys.readouterr()
    rows = trials(said.out)
    assert sorted(row["+method.predictor.label"] for row in rows if row["state"] == "done") == ["0", "2"]
    assert "1 trials failed, the first: [" in said.err
    assert "+method.predictor.label=1: RuntimeError: of bad luck" in said.err
    (failed,) = (
        trial
        for trial in study_of(space={"+method.predictor.label": Choice(("0", "1", "2"))}).all()
        if trial.state == "failed"
    )
    assert failed.note == "RuntimeError: of bad luck"
    # the same command tries again what failed, and nothing else
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("record.json")}
    assert run_cli(*command) == 1
    after = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("record.json")}
    assert [json.loads(path.read_text())["status"] for path in after if after[path] != before[path]] == ["failed"]


REFUSED = {
    "objective=test/iou/mean": "choosing by a test score spoils the test",
    "objective=null": "which score decides? objective=val/loss hydra.sweeper.direction=minimize",
    "hydra.sweeper.direction=null": "hydra.sweeper.direction=null: minimize or maximize is wanted",
    "data.num_val=0": "none are set apart; data.num_val=4",
    "hydra.sweeper.n_trials=0": "hydra.sweeper.n_trials=0: 1 or more is wanted",
    "hydra.sweeper.pruner.reduction=1": "reduction=1: 2 or more",
    "workers=1,2": "workers takes one number",
    "+method.x=range(3,3)": "names no value; the end of a range is left out",
}

NOT_SEARCHED = {
    "data.num_train=1,2": "data.num_train=1,2: a search varies settings of method, prompt, checkpoints, trainer",
    "seed=range(3)": "seed=range(3): a search varies",
    "rivals.unet.task.lr=1,2": "rivals.unet.task.lr=1,2: a search varies",
    "experiment=a,b": "experiment=a,b: a search varies",
    "+method.x=tag(often,choice(1,2))": "tag often means nothing here",
    "+method.x=shuffle(1,2,3)": "leave shuffle away",
    "+method.x=interval(2,1)": "from a smaller number to a larger one",
    "+method.x=tag(log,interval(0,1))": "wants numbers above 0",
    "+method.x=tag(log,range(1,9,2))": "exclude each other; use interval(...)",
    "+method.x=tag(log,choice(1,2))": "a list has no order",
    "+method.x=range(3,3)": "there is no number in it",
}
"""Words as they may also stand in an experiment's file."""

SPACES = {
    "method.x=interval(1,8)": Number(1.0, 8.0),
    "method.x=int(interval(1,8))": Number(1, 8, whole=True),
    "method.x=tag(log,int(interval(1,8)))": Number(1, 8, whole=True, log=True),
    "method.x=tag(log,interval(1e-5,1e-3))": Number(1e-5, 1e-3, log=True),
    "method.x=range(1,9,2)": Number(1, 7, whole=True, step=2),
    "method.x=range(9,1,-2)": Number(3, 9, whole=True, step=2),
    "method.x=range(4)": Number(0, 3, whole=True),
    "method.x=1e-3,null,[1,a],true,1e-3": Choice(("0.001", "null", "[1,a]", "True")),
    "method/x=choice(a,b)": Choice(("a", "b")),
    "+checkpoints.x='a b',c": Choice(("'a b'", "c")),
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_cannot_work_is_told_before_any_work(
    word: str, flat: None, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("run", "-m", *FLATLY, HERE, *ACCURACY, LEVEL, word) == 2
    assert REFUSED[word] in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize("word", NOT_SEARCHED)
def test_what_cannot_be_searched_is_refused_in_words(word: str) -> None:
    with pytest.raises(ValueError, match=re.escape(NOT_SEARCHED[word])):
        parameter(OverridesParser.create().parse_override(word))


@pytest.mark.parametrize("word", SPACES)
def test_words_are_read_as_hydra_reads_them(word: str) -> None:
    assert parameter(OverridesParser.create().parse_override(word)) == SPACES[word]


def test_steps_end_within_their_bounds() -> None:
    steps = parameter(OverridesParser.create().parse_override("method.x=range(0.1,0.6,0.1)"))
    assert isinstance(steps, Number)
    assert [steps.word(value) for value in steps.values() or ()] == ["0.1", "0.2", "0.3", "0.4", "0.5"]


def test_searches_and_sweeps_are_told_apart(
    flat: None, run_cli: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("run", *FLATLY, *ACCURACY) == 2
    assert "geoseg run -m does them" in capsys.readouterr().err
    assert run_cli("run", "-m", *FLATLY, LEVEL) == 2
    assert "hparams_search=optuna tries some of them" in capsys.readouterr().err
    assert run_cli("run", "-m", *FLATLY, *ACCURACY) == 2
    assert "a search varies at least one setting" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert run_cli("run", "-m", *FLATLY, *ACCURACY, LEVEL) == 2
    assert "pip install 'optuna>=5,<6'" in capsys.readouterr().err
    assert not records()


def test_a_score_that_no_run_has_ends_the_search_after_one(
    flat: None, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("run", "-m", *FLATLY, HERE, *ACCURACY, LEVEL, "objective=val/iou/meen") == 2
    assert "objective=val/iou/meen is no score of this run" in capsys.readouterr().err
    assert len(records()) == 1


def test_scores_of_validation_are_added_to_a_finished_run(flat: None, run_cli: Callable[..., int]) -> None:
    assert run_cli("run", *FLATLY) == 0
    (before,) = records()
    assert not any(name.startswith("val/") for name in before["scores"])
    assert run_cli("run", *FLATLY, "objective=val/iou/mean") == 0
    (after,) = records()
    assert after["run_id"] == before["run_id"]
    assert {name: value for name, value in after["scores"].items() if name.startswith("test/")} == before["scores"]
    assert after["scores"].keys() >= {"val/iou/mean", "val/dice/mean"}
    assert after["scores"]["val/accuracy/pixel"] != after["scores"]["test/accuracy/pixel"]


def study(folder: Path, count: int, space: Any = None, **more: Any) -> Study:
    space = space or {"a": Number(1e-5, 1e-1, log=True), "b": Number(1, 1000, whole=True), "c": Number(0, 1, step=0.25)}
    return Study(
        folder / "x" / "searches" / "0123456789",
        space,
        "val/loss",
        "minimize",
        count,
        **{"startup": 10, "seed": 0, **more},
    )


def test_numbers_are_drawn_as_they_are_asked_for(tmp_path: Path) -> None:
    one = study(tmp_path, 60, startup=60)
    with one.opened():
        while (trial := one.ask()) is not None:
            one.tell(trial.number, 0.0)
    words = [trial.words for trial in one.all()]
    assert len(words) == 60
    logs = np.log10([float(word["a"]) for word in words])
    assert logs.min() >= -5
    assert logs.max() <= -1
    assert abs(logs.mean() + 3) < 0.5  # drawn evenly without the logarithm, the mean would be -1.4
    assert all(word["b"] == str(int(word["b"])) and 1 <= int(word["b"]) <= 1000 for word in words)
    assert {word["c"] for word in words} == {"0.0", "0.25", "0.5", "0.75", "1.0"}


def test_what_was_learnt_decides_what_comes_next(tmp_path: Path) -> None:
    one = study(tmp_path, 40, {"a": Number(0.0, 1.0), "b": Number(0.0, 1.0)})
    with one.opened():
        while (trial := one.ask()) is not None:
            one.tell(trial.number, (float(trial.words["a"]) - 0.7) ** 2)
    assert float(one.best()[0].words["a"]) == pytest.approx(0.7, abs=0.02)
    assert np.mean([abs(float(t.words["a"]) - 0.7) for t in one.all()[-10:]]) < 0.15  # 0.29 where it is left to chance
    shares = one.importances()
    assert shares["a"] > shares["b"]


def test_two_commands_share_a_study(tmp_path: Path) -> None:
    one, other = study(tmp_path, 7), study(tmp_path, 7)
    with other.opened():
        with one.opened():
            mine = [one.ask() for _ in range(2)]
            theirs = [other.ask() for _ in range(2)]
            asked = [trial for trial in (*mine, *theirs) if trial is not None]
            assert [trial.number for trial in asked] == [0, 1, 2, 3]
            assert len({tuple(trial.words.values()) for trial in asked}) == 4
            one.name(0, "ab")
            one.name(1, "cd")
            record = {"status": "pruned", "error": "pruned after step 3"}
            (tmp_path / "x" / "ab").mkdir()
            (tmp_path / "x" / "ab" / "record.json").write_text(json.dumps(record))
        # the first has gone: one of its trials was pruned, the values of the other come again
        again = other.ask()
        assert again is not None
        assert again.words == asked[1].words
        states = {trial.number: trial.state for trial in other.all()}
        assert states == {0: "pruned", 1: "interrupted", 2: "running", 3: "running", 4: "running"}
        assert [trial.number for trial in iter(other.ask, None)] == [5, 6, 7]  # seven in all, but for the interrupted
        other.fail(5, "of bad luck")
        assert other.ask() is None
        other.fail(6, "stopped", again=True)
        assert other.ask() is None
    later = study(tmp_path, 7)
    with later.opened():
        assert next(t.words for t in iter(later.ask, None)) == other.all()[6].words


def test_a_journal_that_is_damaged_is_told(
    flat: None, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "-m", *FLATLY, HERE, *ACCURACY, LEVEL, "hydra.sweeper.n_trials=1"]
    assert run_cli(*command) == 0
    (journal,) = Path("runs").rglob("journal.log")
    journal.write_text("{" + journal.read_text())
    assert run_cli(*command) == 2
    assert "journal.log cannot be read" in capsys.readouterr().err


def test_trainings_that_fall_behind_are_given_up(
    tiny_run: list[str], run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["method.task.fit.epochs=4", "method.task.fit.validate_every=1", "sample_every=0", "method.wrappers.sam=null"]
    fit += ["figure_rows=0"]
    command = ["run", "-m", "experiment=label_lora", *tiny_run, *fit, HERE, "hparams_search=optuna"]
    command += ["objective=val/loss", "hydra.sweeper.direction=minimize", "hydra.sweeper.pruner.min_steps=2"]
    command += ["hydra.sweeper.pruner.reduction=2", "method.task.lr.unet=1e-3,3,4", "hydra.sweeper.seed=1"]
    assert run_cli(*command, "trainer.devices=2", "method.task.fit.batch_size=2") == 2
    assert "pruned on one device alone; hydra.sweeper.pruner=null" in capsys.readouterr().err
    assert run_cli(*command) == 0
    rows = trials(capsys.readouterr().out)
    assert rows[0]["state"] == "done"
    pruned = [record for record in records() if record["status"] == "pruned"]
    assert len(pruned) == sum(row["state"] == "pruned" for row in rows) > 0
    assert re.match(r"pruned after step \d: other trials were better than ", pruned[0]["error"])
    step = int(pruned[0]["error"].split()[3].rstrip(":"))
    fit_folder = Path("runs/fits") / pruned[0]["fit_id"]

    def losses(fit: str) -> dict[int, float]:
        lines = [json.loads(line) for line in (Path("runs/fits") / fit / "metrics.jsonl").read_text().splitlines()]
        return {line["step"] + 1: line["val/loss"] for line in lines if "val/loss" in line}

    others = [losses(record["fit_id"])[step] for record in records() if record["status"] == "done"]
    assert losses(pruned[0]["fit_id"])[step] > min(others)
    assert not (fit_folder / "fit.json").exists()
    assert any(path.name.startswith(f"step_{step:08d}-") for path in (fit_folder / "checkpoints").iterdir())
    assert run_cli("status") == 0
    said = capsys.readouterr().out
    assert re.search(r"pruned +label_lora/" + pruned[0]["run_id"] + r" +label LoRA +pruned after step", said)
    assert "does what failed or was interrupted again" not in said
    # asked for by itself it goes on from there, to what it would have come to
    alone = ["run", "experiment=label_lora", *tiny_run, *fit, "rivals=null"]
    alone += [f"method.task.lr.unet={pruned[0]['config']['method']['task']['lr']['unet']}"]
    assert run_cli(*alone) == 0
    assert run_cli(*alone, "runs=alone") == 0
    (whole,) = records(Path("alone"))
    (on,) = (record for record in records() if record["run_id"] == whole["run_id"])
    assert (on["status"], on["scores"], on["per_unit"]) == ("done", whole["scores"], whole["per_unit"])
    assert list(losses(pruned[0]["fit_id"])) == [2, 4, 6, 8]


@pytest.mark.slow
def test_two_commands_and_their_workers_share_a_search_and_survive_a_kill(flat: None, tmp_path: Path) -> None:
    words = [*FLATLY, *ACCURACY, LEVEL, "+method.predictor.label=0,1,2", "+method.predictor.bad=1"]
    words += ["+method.predictor.how=kill", "workers=2", "hydra.sweeper.n_trials=8"]
    command = [sys.executable, "-m", "geoseg.cli", "run", "-m", *words]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)

    with start() as first:
        while not list((tmp_path / "runs").glob("*/*/record.json")):
            assert first.poll() is None
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
    with start() as one, start() as other:
        said = [process.communicate()[0] for process in (one, other)]
    print(*said)
    assert {one.returncode, other.returncode} <= {0, 1}
    space = {
        "+method.predictor.level": Number(1e-3, 1.0, log=True),
        "+method.predictor.label": Choice(("0", "1", "2")),
    }
    found = study_of(tmp_path / "runs", space=space).all()
    done = [trial for trial in found if trial.state == "done"]
    failed = [trial for trial in found if trial.state == "failed"]
    assert {trial.words["+method.predictor.label"] for trial in done} == {"0", "2"}
    assert {trial.words["+method.predictor.label"] for trial in failed} == {"1"}
    assert all("SIGKILL" in trial.note for trial in failed)
    assert len({tuple(trial.words.values()) for trial in done}) == len(done) >= 8 - len(failed)
    assert len({trial.run for trial in done}) == len(done)
    assert not [trial for trial in found if trial.state == "running"]


@pytest.mark.slow
def test_a_warm_worker_goes_on_after_a_pruned_trial(
    tiny_run: list[str], run_cli: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fit = ["method.task.fit.epochs=4", "method.task.fit.validate_every=1", "sample_every=0", "method.wrappers.sam=null"]
    command = ["run", "-m", "experiment=label_lora", *tiny_run, *fit, "hparams_search=optuna", "objective=val/loss"]
    command += ["hydra.sweeper.direction=minimize", "hydra.sweeper.pruner.min_steps=2"]
    command += ["hydra.sweeper.pruner.reduction=2", "method.task.lr.unet=1e-3,1e-4,3,4", "hydra.sweeper.seed=1"]
    assert run_cli(*command) == 0
    kinds = {record["run_id"]: record["status"] for record in records()}
    assert set(kinds.values()) == {"done", "pruned"}
    for record in [record for record in records() if record["status"] == "done"]:
        rate = f"method.task.lr.unet={record['config']['method']['task']['lr']['unet']}"
        assert run_cli("run", "experiment=label_lora", *tiny_run, *fit, "rivals=null", rate, "runs=alone") == 0
        (alone,) = (one for one in records(Path("alone")) if one["run_id"] == record["run_id"])
        assert (alone["scores"], alone["per_unit"]) == (record["scores"], record["per_unit"])
