"""What watches a training, and the moment it goes wrong."""

from __future__ import annotations

import functools
import io
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset

from geoseg import progress
from geoseg.data.module import DataModule, Split
from geoseg.data.sampling import Visits
from geoseg.data.synthetic import SyntheticEarth
from geoseg.optim import constant
from geoseg.tasks.callbacks import Average, Watch
from geoseg.tasks.task import Fit, Task, TrainingDiverged
from tests.training import fit, metrics


class Visited(Dataset[dict[str, Any]]):
    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, where: tuple[int, int]) -> dict[str, Any]:
        return {"index": where[0], "visit": where[1], "name": self.split.names[where[0]]}


class Slope(Task):
    """One weight whose loss is weight times a slope: gradient descent moves it by lr times the mean slope."""

    def __init__(self, slopes: dict[tuple[int, int], float] | None = None, rate: float = 0.1, **options: Any) -> None:
        weight = nn.Parameter(torch.zeros(()))
        fit = Fit(**{"epochs": 6, "batch_size": 2, "clip": None, **options.pop("fit", {})})
        super().__init__(
            groups={"weight": [weight]},
            fit=fit,
            lr=rate,
            optimizer=functools.partial(torch.optim.SGD, lr=0.0),
            schedule=constant,
            seed=0,
            **options,
        )
        self.weight, self.slopes = weight, slopes or {}
        self.seen: list[tuple[int, int]] = []
        self.validated: list[float] = []

    def view(self, split: Split, training: bool) -> Visited:
        return Visited(split)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        keys = list(zip(batch["index"].tolist(), batch["visit"].tolist(), strict=True))
        if self.training:
            self.seen += keys
        else:
            self.validated.append(self.weight.item())
        return self.weight * torch.tensor([self.slopes.get(key, 1.0) for key in keys])

    def save(self, folder: Path) -> list[Path]:
        return []


def data(train: int = 4, val: int = 0) -> DataModule:
    return DataModule(SyntheticEarth(size=16, train=train, val=val, test=1), num_train=train)


def test_numbers_of_every_step(tmp_path: Path) -> None:
    task = Slope({(i, 1): 3.0 for i in range(4)}, fit={"epochs": 2})
    fit(task, data(), tmp_path)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert [line["lr/weight"] for line in lines] == pytest.approx([0.1] * 4)
    assert [line["train/grad_norm"] for line in lines] == pytest.approx([1, 1, 3, 3])
    assert [line["train/loss"] for line in lines] == pytest.approx([0, -0.1, 3 * -0.2, 3 * -0.5])
    assert task.weight.item() == pytest.approx(-0.1 * (1 + 1 + 3 + 3))


def test_gradients_are_clipped_after_they_are_logged(tmp_path: Path) -> None:
    task = Slope({(i, 0): 8.0 for i in range(4)}, fit={"epochs": 1, "clip": 2.0})
    fit(task, data(), tmp_path)
    assert [line["train/grad_norm"] for line in metrics(tmp_path)] == pytest.approx([8, 8])
    assert task.weight.item() == pytest.approx(-0.1 * (2 + 2))


def test_speed_and_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, *(10.0 + i / 2 for i in range(1, 100))])
    monkeypatch.setattr("geoseg.tasks.callbacks.time.perf_counter", lambda: next(clock))
    console = Console(file=io.StringIO(), width=160)
    with progress.display(console=console):
        progress.section("slope")
        fit(Slope(fit={"epochs": 6}), data(train=3), tmp_path)
    # rounds of three samples in batches of 2 and 1, a batch every half second
    assert [line["train/samples_per_s"] for line in metrics(tmp_path)][:4] == pytest.approx([4, 3, 10 / 3, 3])
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "slope: training" in shown
    assert "12/12 step" in shown
    assert "loss -1.0000" in shown  # that of step 10, after ten steps of -0.1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("accumulate", "batch"), [(1, 6), (1, 7), (2, 6), (2, 7)])
def test_a_step_without_a_number_is_left_out_and_counted(
    bad: float, accumulate: int, batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    index, visit = list(Visits(4, 2, 6, seed=0))[batch][1]
    task, source = Slope({(index, visit): bad}, fit={"accumulate": accumulate}), data()
    watch = Watch()
    fit(task, source, watch=watch)
    step = batch // accumulate  # even where the other batch of that step was fine
    assert f"at step {step} on {source.names['train'][index]}; this step is left out" in caplog.text
    assert watch.skipped == 1
    assert task.weight.item() == pytest.approx(-0.1 * (12 // accumulate - 1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_many_in_a_row_stop_the_training_and_the_weights_are_the_last_good_ones(bad: float) -> None:
    wrong = {sample: bad for batch in list(Visits(4, 2, 6, seed=0))[3:] for sample in batch[1:]}
    task = Slope(wrong)
    with pytest.raises(TrainingDiverged, match=r"at step 7 on train_000\d, and so it was 5 steps in a row; lower the"):
        fit(task, data())
    assert task.weight.item() == pytest.approx(-0.3)


def test_a_good_step_between_bad_ones_begins_the_count_anew() -> None:
    batches = list(Visits(4, 2, 6, seed=0))
    task, watch = Slope({sample: math.nan for i in (1, 2, 3, 4, 6, 7, 8, 9) for sample in batches[i]}), Watch()
    fit(task, data(), watch=watch)
    assert watch.skipped == 8
    assert task.weight.item() == pytest.approx(-0.4)


class Kink(Slope):
    """Fine losses whose gradient is none."""

    def loss(self, batch: dict[str, Any]) -> Tensor:
        losses = super().loss(batch)
        return losses + (self.weight * 0).sqrt() if (0, 2) in self.seen else losses


def test_a_gradient_that_is_no_number_stops_too() -> None:
    task = Kink()
    with pytest.raises(
        TrainingDiverged, match=r"the gradient became nan at step [89] on train_000\d, train_000\d, and so"
    ):
        fit(task, data())
    assert task.weight.item() in (pytest.approx(-0.4), pytest.approx(-0.5))


def test_the_average_by_hand() -> None:
    task = Slope({(i, visit): float(visit) for i in range(4) for visit in range(6)})
    callback = Average(0.4)
    fit(task, data(), callbacks=[callback])
    weight = average = 0.0
    for step in range(1, 13):
        weight -= 0.1 * ((step - 1) // 2)
        keep = min(0.4, (1 + step) / (10 + step))
        average = keep * average + (1 - keep) * weight
    assert task.weight.item() == pytest.approx(average, rel=1e-5)
    assert float(callback.average["weight"]) == pytest.approx(average, rel=1e-5)
    assert average != pytest.approx(weight, rel=1e-2)


def test_validation_sees_the_average_and_training_goes_on_without_it() -> None:
    task = Slope()
    fit(task, data(val=1), callbacks=[Average(0.4)], val_check_interval=4)
    average, averages = 0.0, []
    for step in range(1, 13):
        keep = min(0.4, (1 + step) / (10 + step))
        average = keep * average + (1 - keep) * -0.1 * step
        averages.append(average)
    assert sorted(set(task.validated), reverse=True) == pytest.approx([averages[3], averages[7], averages[11]])


def test_an_average_can_be_put_aside_and_taken_up() -> None:
    first, second = Average(0.9), Average(0.9)
    fit(Slope(), data(), callbacks=[first])
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.average["weight"], first.average["weight"])


class Steps(pl.Callback):
    def __init__(self) -> None:
        self.drawn: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.drawn.append(float(torch.rand(())))


def test_the_global_generator_follows_seed_and_step() -> None:
    runs = []
    for past in (0, 1):
        torch.manual_seed(past)
        steps = Steps()
        fit(Slope(), data(), callbacks=[steps])
        runs.append(steps.drawn)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 12


@pytest.mark.parametrize(("steps", "accumulate"), [(1, 1), (5, 1), (5, 2)])
def test_a_number_of_steps_goes_before_epochs(steps: int, accumulate: int) -> None:
    task = Slope(fit={"epochs": 1, "steps": steps, "accumulate": accumulate})
    fit(task, data())
    assert len(task.seen) == 2 * steps * accumulate
    assert task.weight.item() == pytest.approx(-0.1 * steps)


def test_no_steps_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be 1 or more, or null where epochs decides; got 0"):
        Fit(steps=0)
