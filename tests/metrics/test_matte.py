"""Errors of mattes, against sums written out pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch

from geoseg.metrics.matte import MatteError, matte_errors


def by_hand(found: list[list[float]], true: list[list[float]]) -> tuple[float, float]:
    """SAD in thousands and MSE in thousandths of one picture, pixel by pixel in Python."""
    pairs = [(f, t) for row, wanted in zip(found, true, strict=True) for f, t in zip(row, wanted, strict=True)]
    pairs = [(f, t) for f, t in pairs if not math.isnan(t)]
    return math.fsum(abs(f - t) for f, t in pairs) / 1e3, math.fsum((f - t) ** 2 for f, t in pairs) / len(pairs) * 1e3


def test_errors_are_those_written_out() -> None:
    draws = torch.Generator().manual_seed(0)
    found, true = torch.rand(5, 9, 7, generator=draws), torch.rand(5, 9, 7, generator=draws)
    true[1, :4] = torch.nan
    wanted = [by_hand(f.tolist(), t.tolist()) for f, t in zip(found, true, strict=True)]
    assert matte_errors(found, true).T.tolist() == [pytest.approx(pair, rel=1e-5) for pair in wanted]
    metric = MatteError()
    for some in (slice(0, 2), slice(2, 5)):  # however they come in batches
        metric.update(found[some], true[some])
    scores, per_image = metric.compute(), metric.per_image()
    for i, name in enumerate(("matte/sad", "matte/mse")):
        assert per_image[name] == pytest.approx([pair[i] for pair in wanted], rel=1e-5)
        assert float(scores[name]) == pytest.approx(sum(pair[i] for pair in wanted) / 5, rel=1e-5)


def test_half_a_picture_off_by_one_in_the_units_of_the_literature() -> None:
    """Of 100 x 100 pixels half are wrong by all: SAD 5, in thousands; MSE 500, in thousandths."""
    true = torch.zeros(1, 100, 100)
    found = true.clone()
    found[:, :50] = 1
    assert matte_errors(found, true).flatten().tolist() == [5, 500]


def test_what_counts_nowhere_has_no_error() -> None:
    metric = MatteError()
    metric.update(torch.ones(2, 2, 2), torch.tensor([[[torch.nan] * 2] * 2, [[0.0] * 2] * 2]))
    assert math.isnan(metric.per_image()["matte/sad"][0]) and math.isnan(metric.per_image()["matte/mse"][0])
    assert float(metric.compute()["matte/mse"]) == 1000
    with pytest.raises(ValueError, match=r"one shape, got \[1, 2\] and \[1, 3\]"):
        matte_errors(torch.zeros(1, 2), torch.zeros(1, 3))
