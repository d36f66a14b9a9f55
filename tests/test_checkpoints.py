"""Trainings that are interrupted and go on, against trainings that are not."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from geoseg import optim
from geoseg.checkpoints import SIGNALS, Checkpoints, Interrupted
from geoseg.data.module import DataModule
from geoseg.data.synthetic import SyntheticEarth
from geoseg.loggers import JsonLines
from geoseg.lora import FILE
from geoseg.palette import Palette, facies_palette
from geoseg.tasks.callbacks import Average, Patience, Watch
from geoseg.tasks.task import Task
from tests.training import label_lora

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*in eval mode at the start of training",
    "ignore:.*does not have many workers",
    "ignore:.*your dataloader is not resumable",
)  # as the program is told
PALETTE = Palette(facies_palette(6))


class Killed(BaseException):
    """The process is gone: nothing is saved or cleaned up any more."""


class At(pl.Callback):
    """Does something after a batch, before any checkpoint of it."""

    def __init__(self, batch: int, act: Callable[[], None]) -> None:
        self.batch, self.act = batch, act

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        if rest[-1] == self.batch:
            self.act()


def killed() -> None:
    raise Killed


def told(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


def source(workers: int = 0, val: int = 0) -> DataModule:
    return DataModule(SyntheticEarth(size=16, train=5, val=val, test=0), num_train=5, num_val=val, workers=workers)


def task(optimizer: Any = None, **options: Any) -> Task:
    defaults = {
        "epochs": 4,
        "batch_size": 2,
        "validation_visits": 2,
        "schedule": functools.partial(optim.cosine, warmup=2),
    }
    made = label_lora(PALETTE, **{**defaults, **options}, **({} if optimizer is None else {"optimizer": optimizer}))
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1  # draws from the global generator
    return made


def train(
    folder: Path,
    what: Task | None = None,
    data: DataModule | None = None,
    acts: tuple[pl.Callback, ...] = (),
    minutes: float = 0.0,
    **trainer: Any,
) -> tuple[dict[str, Tensor], Checkpoints, list[str]]:
    """Starts a training, or goes on with the one in the folder; what it learnt, its checkpoints and its log."""
    what, data = what or task(), data or source()
    data.prepare()
    lines = JsonLines(folder)
    checkpoints = Checkpoints(folder / "checkpoints", lines, minutes=minutes)
    start = checkpoints.latest()
    patience = [Patience(what.fit.patience)] if what.fit.patience else []
    average = [Average(what.ema)] if what.ema else []
    fitting = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=what.fit.accumulate,
        gradient_clip_val=1.0,
        logger=[lines],
        log_every_n_steps=1,
        callbacks=[Watch(), *patience, *average, *acts, checkpoints],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if len(data.val) else 0,
        **{"val_check_interval": 3 if len(data.val) else 12, **trainer},
    )
    fitting.fit(what, datamodule=data, ckpt_path=start.path if start else None, weights_only=True)
    for watched in patience:
        watched.put_back(what)
    learnt = {name: p.detach().clone() for name, p in what.trainable().items()}
    return learnt, checkpoints, log_of(folder)


def log_of(folder: Path) -> list[str]:
    """The lines of a log but for what the clock says."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line.split(', "train/samples_per_s"')[0] for line in lines]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def adamw8bit(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """With 8 bits for every tensor, however small."""
    return optim.adamw8bit(groups, weight_decay=0.01, min_8bit_size=1)


OPTIMIZERS = {
    "adamw": functools.partial(optim.adamw, weight_decay=0.01),
    "adamw8bit": adamw8bit,
    "prodigy": functools.partial(optim.prodigy, weight_decay=0.01, d0=1e-3, d_coef=2.0, use_bias_correction=True),
}
RATES = {"prodigy": {"unet": 1.0, "text": 1.0}}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("accumulate", "val", "ema"), [(1, 2, 0.9), (2, 0, None)])
def test_two_kills_change_nothing(optimizer: str, accumulate: int, val: int, ema: float | None, tmp_path: Path) -> None:
    def go(folder: str, *acts: pl.Callback) -> tuple[dict[str, Tensor], Checkpoints, list[str]]:
        what = task(OPTIMIZERS[optimizer], accumulate=accumulate, ema=ema, lr=RATES.get(optimizer))
        return train(tmp_path / folder, what, source(val=val), acts)

    whole, _, log = go("whole")
    for batch in (3, 7):
        with pytest.raises(Killed):
            go("parts", At(batch, killed))
    learnt, _, joined = go("parts")
    assert same(learnt, whole)
    assert joined == log
    if optimizer != "adamw":
        states = torch.load(Checkpoints(tmp_path / "parts" / "checkpoints", JsonLines(tmp_path)).latest().path)  # type: ignore[union-attr]
        kept = states["optimizer_states"][0]["state"].values()
    if optimizer == "adamw8bit":
        means = [state["__bnb_optimizer_quant_state__"][name] for state in kept for name in ("state1", "state2")]
        assert {mean.dtype for mean in means} == {torch.uint8}
    if optimizer == "prodigy":
        assert all(state.keys() >= {"s", "p0", "exp_avg", "exp_avg_sq"} for state in kept)
        assert all(group["d_numerator"] for group in states["optimizer_states"][0]["param_groups"])


@pytest.mark.parametrize(("accumulate", "val"), [(1, 2), (2, 2), (3, 0)])
def test_a_kill_in_every_batch_changes_nothing(accumulate: int, val: int, tmp_path: Path) -> None:
    whole, _, log = train(tmp_path / "whole", task(accumulate=accumulate), source(val=val))
    for batch in range(12):
        with pytest.raises(Killed):
            train(tmp_path / "parts", task(accumulate=accumulate), source(val=val), (At(batch, killed),))
    learnt, _, joined = train(tmp_path / "parts", task(accumulate=accumulate), source(val=val))
    assert same(learnt, whole)
    assert joined == log


def test_worker_processes_change_nothing(tmp_path: Path) -> None:
    whole, _, log = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "parts", data=source(workers=2), acts=(At(6, killed),))
    learnt, _, joined = train(tmp_path / "parts", data=source(workers=2))
    assert same(learnt, whole)
    assert joined == log


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("batch", [2, 4, 5])
def test_a_signal_saves_and_stops(signum: int, batch: int, tmp_path: Path) -> None:
    before = signal.getsignal(signum)
    whole, _, log = train(tmp_path / "whole", task(accumulate=2), source(val=2))
    with pytest.raises(Interrupted, match="the same command goes on from there") as error:
        # without a signal nothing would be saved for an hour
        train(tmp_path / "parts", task(accumulate=2), source(val=2), (At(batch, told(signum)),), minutes=60)
    assert error.value.signum == signum
    assert signal.getsignal(signum) == before
    learnt, checkpoints, joined = train(tmp_path / "parts", task(accumulate=2), source(val=2), minutes=60)
    assert same(learnt, whole)
    assert joined == log
    assert checkpoints.asked is None


def test_a_signal_during_the_last_step_is_told_afterwards(tmp_path: Path) -> None:
    whole, _, _ = train(tmp_path / "whole")
    learnt, checkpoints, _ = train(tmp_path / "parts", acts=(At(11, told(signal.SIGTERM)),), minutes=60)
    assert same(learnt, whole)
    with pytest.raises(Interrupted):
        checkpoints.stop_if_asked(12)


def test_asking_twice_does_not_wait(tmp_path: Path) -> None:
    twice = (At(1, told(signal.SIGINT)), At(1, told(signal.SIGINT)))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path, acts=twice, minutes=60)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, _, log = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "parts", acts=(At(6, killed),))
    newest = max((tmp_path / "parts" / "checkpoints").iterdir())
    for damage in (lambda content: content[:-9], lambda content: content[:5000] + b"?" + content[5001:]):
        shutil.copytree(tmp_path / "parts", tmp_path / "damaged")
        where = tmp_path / "damaged" / "checkpoints" / newest.name
        where.write_bytes(damage(newest.read_bytes()))
        caplog.clear()
        learnt, _, joined = train(tmp_path / "damaged")
        assert f"{newest.name} is damaged" in caplog.text
        assert same(learnt, whole)
        assert joined == log
        shutil.rmtree(tmp_path / "damaged")


def test_a_damaged_checkpoint_takes_no_place(tmp_path: Path) -> None:
    train(tmp_path)
    folder = tmp_path / "checkpoints"
    for path in folder.iterdir():
        path.rename(folder / path.name.replace("step_000000", "step_000009"))  # ahead, and damaged below
    for path in folder.iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(Killed):
        train(tmp_path, acts=(At(6, killed),))
    assert [path.name[:13] for path in sorted(folder.iterdir())] == ["step_00000005", "step_00000006"]


def test_only_what_is_trained_is_saved_and_the_latest_are_kept(tmp_path: Path) -> None:
    what = task()
    _, checkpoints, _ = train(tmp_path, what)
    files = sorted((tmp_path / "checkpoints").iterdir())
    assert [file.name[:13] for file in files] == ["step_00000010", "step_00000011"]
    saved = torch.load(files[-1], weights_only=True)
    assert set(saved["state_dict"]) == set(what.trainable())
    trained = sum(p.numel() * p.element_size() for p in what.trainable().values())
    assert files[-1].stat().st_size < 5 * trained + 300_000  # weights and two means; the rest is names
    checkpoints.clear()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_the_best_stays(tmp_path: Path) -> None:
    _, checkpoints, log = train(tmp_path, data=source(val=2))
    lines = [json.loads(line + "}" * (not line.endswith("}"))) for line in log]
    losses = {line["step"] + 1: line["val/loss"] for line in lines if "val/loss" in line}
    assert set(losses) == {3, 6, 9, 12}
    best = min((step for step in losses if step < 12), key=losses.__getitem__)  # the last one is what is trained
    assert checkpoints.best == {"step": best, "val/loss": pytest.approx(losses[best])}
    checkpoints.clear(best=True)
    (left,) = (tmp_path / "checkpoints").iterdir()
    assert left.name.startswith(f"step_{best:08d}")


class Losses(pl.Callback):
    """Puts given losses in the place of those of the validations, and keeps the weights that were validated."""

    def __init__(self, losses: list[float]) -> None:
        self.losses, self.seen = list(losses), dict[int, dict[str, Tensor]]()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        done = trainer.global_step // 3 - 1
        trainer.callback_metrics["val/loss"].fill_(self.losses[done])
        self.seen[done] = {name: p.detach().clone() for name, p in pl_module.trainable().items()}


@pytest.mark.parametrize("ema", [None, 0.8])
def test_patience_ends_it_and_the_best_weights_are_kept(
    ema: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = Losses([3.0, 1.0, 2.0, 1.5, 0.5])
    before = Patience.on_validation_end

    def judged(self: Patience, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stand_in.on_validation_end(trainer, pl_module)
        before(self, trainer, pl_module)

    monkeypatch.setattr(Patience, "on_validation_end", judged)

    def what() -> Task:
        made = task(epochs=6, ema=ema)
        made.fit = dataclasses.replace(made.fit, patience=2)
        return made

    learnt, checkpoints, log = train(tmp_path / "whole", what(), source(val=2))
    assert sorted(stand_in.seen) == [0, 1, 2, 3]  # two after the best one, and the fifth is never asked
    assert same(learnt, stand_in.seen[1])
    assert not same(learnt, stand_in.seen[3])
    # cut off between the validations, and right after the last of them
    for batch in (4, 8, 10):
        with pytest.raises(Killed):
            train(tmp_path / f"{batch}", what(), source(val=2), (At(batch, killed),))
        again, _, its_log = train(tmp_path / f"{batch}", what(), source(val=2))
        assert same(again, learnt)
        assert its_log == log
    shutil.copytree(tmp_path / "whole", tmp_path / "ended")
    ended, _, its_log = train(tmp_path / "ended", what(), source(val=2))  # what was saved then has no patience left
    assert same(ended, learnt)
    assert its_log == log
    assert checkpoints.latest() is not None


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _, log = train(tmp_path / "whole")
    real = pl.Trainer.save_checkpoint

    def full(trainer: pl.Trainer, path: Path, **options: Any) -> None:
        real(trainer, path, **options)
        if trainer.global_step == 6:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path / "parts")
    assert [file.name[:13] for file in sorted((tmp_path / "parts" / "checkpoints").iterdir())] == [
        "step_00000004",
        "step_00000005",
    ]
    monkeypatch.undo()
    learnt, _, joined = train(tmp_path / "parts")
    assert same(learnt, whole)
    assert joined == log


def test_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, acts=(At(4, killed),))
    with pytest.raises(ValueError, match="differ in .* tensors, such as .*force=true starts anew"):
        train(tmp_path, task(lr={"unet": 1e-3, "text": 0.0}))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("save.minutes=-1", "save.minutes=-1: 0 or more is wanted"),
        ("save.minutes=soon", "save.minutes=soon: a number is wanted"),
        ("save.keep=0", "save.keep=0: at least one"),
        ("save=null", "save=null: "),
    ],
)
def test_impossible_settings_are_told_before_any_work(
    wrong: str, said: str, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("run", "experiment=label_lora", "trainer=cpu", wrong) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_run_that_is_stopped_goes_on_by_the_same_command(
    tiny_run: list[str],
    run_cli: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    command = ["run", "experiment=label_lora", *tiny_run, "rivals=null", "sample_every=1", "method.task.ema=0.9"]
    assert run_cli(*command, "runs=whole") == 0
    real = Watch.on_train_batch_end

    def stopped(watch: Watch, trainer: pl.Trainer, *rest: Any) -> None:
        real(watch, trainer, *rest)
        if trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_train_batch_end", stopped)
        assert run_cli(*command, "runs=parts") == 128 + signal.SIGTERM
    assert "stopped after step 1 as asked; the same command goes on from there (SIGTERM)" in capsys.readouterr().err
    (record,) = records("parts")
    assert record["status"] == "interrupted"
    with caplog.at_level("INFO", logger="geoseg"):
        assert run_cli(*command, "runs=parts") == 0
    assert "goes on from step 1" in caplog.text
    (whole,), (parts,) = records("whole"), records("parts")
    for name in ("run_id", "fit_id", "status", "scores", "per_unit", "stages", "facts"):
        assert parts[name] == whole[name], name
    fits = [Path(folder, "fits", whole["fit_id"]) for folder in ("whole", "parts")]
    assert same(*(load_file(fit / "adapter" / FILE) for fit in fits))
    assert len({(fit / "samples" / "epoch_0002.png").read_bytes() for fit in fits}) == 1
    assert log_of(fits[0]) == log_of(fits[1])
    assert not list((fits[1] / "checkpoints").glob("*"))


def records(folder: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(Path(folder).rglob("record.json"))]
