from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from geoseg.optim import adamw, adamw8bit, constant, cosine, prodigy


def groups() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"params": [nn.Parameter(torch.randn(80, 64, generator=generator))], "lr": 1e-2, "name": "unet"},
        {"params": [nn.Parameter(torch.randn(80, 64, generator=generator))], "lr": 1e-3, "name": "text"},
    ]


@pytest.mark.parametrize("factory", [adamw, adamw8bit])
def test_every_group_keeps_its_rate_and_its_name(factory: Callable) -> None:
    given = groups()
    optimizer = factory(given, weight_decay=0.0)
    assert [(g["name"], g["lr"]) for g in optimizer.param_groups] == [("unet", 1e-2), ("text", 1e-3)]
    starts = [group["params"][0].detach().clone() for group in given]
    for group in given:
        group["params"][0].grad = torch.ones(80, 64)
    optimizer.step()
    for group, start in zip(given, starts, strict=True):
        # Adam's first step is the rate times the sign of the gradient
        torch.testing.assert_close(start - group["params"][0], torch.full((80, 64), group["lr"]), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("factory", [adamw, adamw8bit])
def test_weight_decay_is_decoupled(factory: Callable) -> None:
    given = groups()
    optimizer = factory(given, weight_decay=0.5)
    starts = [group["params"][0].detach().clone() for group in given]
    for group in given:
        group["params"][0].grad = torch.zeros(80, 64)
    optimizer.step()
    for group, start in zip(given, starts, strict=True):
        torch.testing.assert_close(group["params"][0].detach(), start * (1 - 0.5 * group["lr"]))


def test_eight_bits_are_eight_bits_and_learn_alike() -> None:
    ends = []
    for factory in (adamw, adamw8bit):
        target = torch.linspace(-1, 1, 80 * 64).view(80, 64)
        p = nn.Parameter(torch.zeros(80, 64))
        optimizer = factory([{"params": [p], "lr": 0.05, "name": "unet"}])
        for _ in range(60):
            optimizer.zero_grad()
            (p - target).square().mean().backward()
            optimizer.step()
        ends.append((p - target).square().mean().item())
        if factory is adamw8bit:
            assert optimizer.state[p]["state1"].dtype == torch.uint8
    start = target.square().mean().item()
    assert ends[0] < 0.05 * start
    assert ends[1] < 0.1 * start


def test_small_tensors_keep_exact_means_unless_asked() -> None:
    for size, dtype in ((4096, torch.float32), (1, torch.uint8)):
        p = nn.Parameter(torch.zeros(32, 32))
        optimizer = adamw8bit([{"params": [p], "lr": 0.1}], min_8bit_size=size)
        p.grad = torch.ones(32, 32)
        optimizer.step()
        assert optimizer.state[p]["state1"].dtype == dtype


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        adamw8bit(groups())


def at_one() -> list[dict]:
    return [{**group, "lr": 1.0} for group in groups()]


def test_prodigy_finds_its_rate(capsys: pytest.CaptureFixture[str]) -> None:
    target = torch.linspace(-1, 1, 80 * 64).view(80, 64)
    p = nn.Parameter(torch.zeros(80, 64))
    optimizer = prodigy([{"params": [p], "lr": 1.0, "name": "unet"}])
    for _ in range(150):
        optimizer.zero_grad()
        (p - target).square().mean().backward()
        optimizer.step()
    (group,) = optimizer.param_groups
    assert group["name"] == "unet"
    assert group["d"] > 1e-3  # from 1e-6
    assert (p - target).square().mean() < 0.2 * target.square().mean()
    assert capsys.readouterr().out == ""


def test_d_coef_multiplies_what_prodigy_finds() -> None:
    found = []
    for d_coef in (1.0, 2.0):
        given = at_one()
        optimizer = prodigy(given, weight_decay=0.0, d_coef=d_coef)
        for _ in range(2):  # in the first step nothing has moved yet, so there is nothing to estimate from
            for group in given:
                group["params"][0].grad = torch.ones(80, 64)
            optimizer.step()
        found.append(optimizer.param_groups[0]["d_hat"])
    assert found[1] == pytest.approx(2 * found[0])


def test_prodigy_says_what_rates_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"one rate for all groups, got unet 0.01, text 0.001; use 1 for each"):
        prodigy(groups())
    with pytest.raises(ValueError, match=r"lr multiplies it: 1 is wanted, got unet 0.001"):
        prodigy([{**groups()[0], "lr": 1e-3}])
    with pytest.raises(ValueError, match="there is no parameter group"):
        prodigy([])
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(ValueError, match="pip install prodigyopt"):
        prodigy(at_one())


def test_a_run_with_prodigy(tiny_run: list[str], run_cli: Callable[..., int], tmp_path: Path) -> None:
    words = ["method.task.optimizer._target_=geoseg.optim.prodigy", "sample_every=0"]
    words += ["method.task.lr.unet=1", "method.task.lr.text=0", "method.task.fit.epochs=3", "method.wrappers.sam=null"]
    assert run_cli("run", *tiny_run, *words, "foresee=true") == 0
    (log,) = (tmp_path / "runs" / "fits").glob("*/metrics.jsonl")
    rates = [line["lr/unet"] for line in map(json.loads, log.read_text().splitlines()) if "lr/unet" in line]
    assert rates[0] == pytest.approx(1e-6, rel=1e-5) and rates == sorted(rates)  # it only grows


@pytest.mark.parametrize("factory", [adamw, adamw8bit])
def test_wrong_groups(factory: Callable) -> None:
    with pytest.raises(ValueError, match="there is no parameter group"):
        factory([])
    with pytest.raises(ValueError, match="0 parameters for 'unet'"):
        factory([{"params": [], "lr": 1.0, "name": "unet"}])
    with pytest.raises(ValueError, match="needs params and an lr"):
        factory([{"params": [nn.Parameter(torch.zeros(1))], "name": "unet"}])


def rates(schedule: Callable, steps: int, **options: int) -> list[list[float]]:
    given = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = torch.optim.SGD(given)
    scheduler = schedule(optimizer, steps, **options)
    seen = []
    for _ in range(steps + 1):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


def test_constant_by_hand() -> None:
    assert [rate for rate, _ in rates(constant, 3)] == [1, 1, 1, 1]
    assert [rate for rate, _ in rates(constant, 5, warmup=4)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [rate for _, rate in rates(constant, 5, warmup=4)] == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.1])


def test_cosine_by_hand() -> None:
    quarter = (1 + math.sqrt(0.5)) / 2
    assert [rate for rate, _ in rates(cosine, 4)] == pytest.approx([1, quarter, 0.5, 1 - quarter, 0])
    assert [rate for rate, _ in rates(cosine, 6, warmup=2)] == pytest.approx([0, 0.5, 1, quarter, 0.5, 1 - quarter, 0])


@pytest.mark.parametrize("schedule", [constant, cosine])
@pytest.mark.parametrize(("steps", "warmup"), [(0, 0), (5, 5), (5, -1)])
def test_wrong_lengths(schedule: Callable, steps: int, warmup: int) -> None:
    with pytest.raises(ValueError, match=r"schedule needs|warmup must be"):
        rates(schedule, steps, warmup=warmup)
