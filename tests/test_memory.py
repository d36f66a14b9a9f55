"""Memory told beforehand, against what torch really holds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from geoseg import memory
from geoseg.data.module import DataModule
from geoseg.data.synthetic import SyntheticEarth
from geoseg.optim import adamw, adamw8bit, prodigy, state_bytes
from geoseg.palette import Palette, facies_palette
from geoseg.predictors.img2img import Img2Img
from tests.training import label_lora

PALETTE = Palette(facies_palette(6))


def earth(size: int = 32, **options: int) -> DataModule:
    data = DataModule(SyntheticEarth(size=size, train=2, val=0, test=2), num_train=2, **options)  # type: ignore[arg-type]
    data.prepare()
    return data


def test_alive_counts_by_hand() -> None:
    with memory.Alive() as alive:
        a = torch.zeros(1000)  # 4000 bytes
        b = a + 1
        view = b.view(10, 100)
        b.add_(1)
        assert alive.now == 8000
        c = b.double()
        assert alive.now == alive.peak == 16000
        del b, c
        assert (alive.now, alive.peak) == (8000, 16000)  # the view keeps its base
        del view
    assert (alive.now, alive.peak) == (4000, 16000)


@pytest.mark.parametrize(("batch_size", "checkpointing"), [(1, False), (3, False), (3, True)])
def test_the_count_of_a_step_is_what_a_real_backward_holds(batch_size: int, checkpointing: bool) -> None:
    """To the byte what operations make; saved tensors, which torch itself names, are at least three quarters of it."""
    data = earth()
    task = label_lora(PALETTE, batch_size=batch_size, crop=32, gradient_checkpointing=checkpointing)
    counted = memory.count(lambda: memory.step(task, data.train))
    assert all(p.grad is None for p in task.parameters())
    with memory.Alive() as alive:
        memory.step(task, data.train)
    assert counted == alive.peak
    own = {p.untyped_storage().data_ptr() for p in task.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        task.rehearse(data.train, task.fit.batch_size)
    kept = sum(storage.nbytes() for storage in saved.values())
    assert kept < counted < kept / (0.75 if checkpointing else 0.9)


def test_checkpointing_and_half_precision_take_less() -> None:
    data, task = earth(), label_lora(PALETTE, batch_size=2, crop=32)
    half, like_cuda = (memory.count(lambda: memory.step(task, data.train), "16-mixed", gpu) for gpu in (False, True))
    with memory.Alive() as alive:
        memory.step(task, data.train)
    assert half < like_cuda < alive.peak  # a GPU normalises in fp32
    frugal = label_lora(PALETTE, batch_size=2, crop=32, gradient_checkpointing=True)
    assert memory.count(lambda: memory.step(frugal, data.train), "16-mixed", True) < like_cuda / 2


@pytest.mark.parametrize(("make", "lr"), [(adamw, 1e-3), (adamw8bit, 1e-3), (prodigy, 1.0)])
def test_the_state_of_an_optimizer_to_the_byte(make: Callable[..., torch.optim.Optimizer], lr: float) -> None:
    parameters = [torch.nn.Parameter(torch.randn(count)) for count in (10, 4095, 4096, 5000, 70001)]
    parameters.append(torch.nn.Parameter(torch.zeros(300)))  # as half of a LoRA begins
    optimizer = make([{"params": parameters, "lr": lr, "name": "all"}])
    foreseen = state_bytes(optimizer)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    found = {
        value.data_ptr(): value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    }
    assert foreseen == sum(found.values())


def test_expectations_add_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(memory, "memory_here", lambda: 2**40)
    data = earth(batch_size=2)
    task = label_lora(PALETTE, crop=32, ema=0.9, accumulate=2)
    predictor = Img2Img(task.model, PALETTE, "Tile <lora:vai1:1>", tile=32)
    how = {"sample_images": 1, "precision": "32-true", "gpu": False}
    with caplog.at_level("INFO", logger="geoseg"):
        needs = memory.foresee("label LoRA", task, predictor, predictor, data, **how)
    assert needs["weights"] == sum(t.numel() * t.element_size() for t in [*task.parameters(), *task.buffers()])
    trained = sum(p.numel() for p in task.trainable().values())
    assert needs["gradients"] == 4 * trained
    assert needs["optimizer"] == 12 * trained + 4 * len(task.trainable())  # two means and the running average
    with memory.Alive() as alive:
        memory.step(task, data.train)
    assert needs["step"] == alive.peak + 4 * trained
    with memory.Alive() as alive, torch.no_grad():
        predictor.rehearse(torch.zeros(2, 3, 32, 32))
    assert needs["generation"] == alive.peak
    most = max(needs["step"], needs["generation"])
    assert needs["peak"] == needs["program"] + needs["weights"] + needs["optimizer"] + most
    assert caplog.text.count("GiB of memory at the peak (weights 0.00, optimizer 0.00, a training step 0.0") == 1
    assert "more than there is" not in caplog.text
    monkeypatch.setattr(memory, "memory_here", lambda: 2**20)
    memory.foresee("label LoRA", task, predictor, predictor, data, **how)
    assert "that is more than there is: trainer=gpu_24gb" in caplog.text


def test_processes_divide_a_batch_and_share_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_resident", lambda: 2**30)
    data, one, both = earth(), label_lora(PALETTE, crop=32), label_lora(PALETTE, batch_size=2, crop=32)
    how = {"sample_images": 1, "precision": "32-true", "gpu": False}
    half, part = memory.expect(one, None, None, data, **how), memory.expect(both, None, None, data, **how, processes=2)
    assert part["step"] == half["step"]
    waiting = half["program"] + half["weights"]  # the process that started them
    assert part["peak"] == 2 * half["peak"] + waiting


def test_what_cannot_be_counted_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    how = {"sample_images": 1, "precision": "32-true", "gpu": False}
    assert memory.foresee("input as is", None, None, None, earth(), **how) == {}
    assert caplog.text == ""

    class Reading:
        def rehearse(self, picture: torch.Tensor) -> None:
            picture.nonzero()

    assert memory.foresee("reading", None, Reading(), Reading(), earth(), **how) == {}
    assert "reading: its memory could not be counted" in caplog.text


def test_a_run_tells_it_first_and_keeps_it(
    tiny_run: list[str], run_cli: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="geoseg"):
        assert run_cli("run", *tiny_run, "foresee=true", "method.wrappers.sam=null", "sample_every=0") == 0
    assert caplog.text.count("GiB of memory at the peak") == 1
    (path,) = (tmp_path / "runs" / "run").rglob("record.json")
    record = json.loads(path.read_text())
    assert record["memory"].keys() == {
        *("weights", "gradients", "optimizer", "step", "generation", "program", "peak", "there")
    }
    assert all(math.isfinite(value) and value > 0 for value in record["memory"].values())
