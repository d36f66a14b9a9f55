"""Curves from metrics.jsonl, and what is called final."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from geoseg.losses import Curve, final_losses, read_curves, smoothed


def test_curves_and_their_ends(tmp_path: Path) -> None:
    lines = [{"step": i, "train/loss": 100.0 - i, "lr/unet": 1e-4, "train/grad_norm": 9} for i in range(50)]
    lines[3]["train/loss"] = None  # type: ignore[assignment]
    lines += [{"step": 24, "val/loss": 0.5}, {"step": 49, "val/loss": 0.25}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 50, "train/lo')  # the line that is being written
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert set(curves) == {"train/loss", "val/loss", "lr/unet"}
    assert curves["train/loss"].steps.tolist() == [i for i in range(50) if i != 3]
    assert curves["val/loss"].values.tolist() == [0.5, 0.25]
    # 49 values, a tenth of them: steps 45 to 49
    assert final_losses(curves) == {"train/loss": pytest.approx(np.mean([55, 54, 53, 52, 51])), "val/loss": 0.25}
    assert read_curves(tmp_path / "nothing.jsonl") == {}
    assert final_losses({}) == {}


def test_a_running_mean() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    curve = Curve(np.arange(1000), values)
    smooth = smoothed(curve, 50, most=100)
    assert 90 <= len(smooth.values) <= 120
    for step, value in zip(smooth.steps, smooth.values, strict=True):
        assert value == pytest.approx(values[step - 49 : step + 1].mean())
    assert smoothed(curve, 1) is curve
    assert smoothed(Curve(curve.steps[:3], values[:3]), 5).values.tolist() == values[:3].tolist()
