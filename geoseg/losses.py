"""What a training logged, as curves and as one final number each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

TRAIN, VAL = "train/loss", "val/loss"
TRAIN_ACCURACY, VAL_ACCURACY = "train/accuracy/image", "val/accuracy/image"
"""Share of images with the right class, which classifiers of whole images log."""

CURVES = (TRAIN, VAL, TRAIN_ACCURACY, VAL_ACCURACY)

LAST = 0.1
"""Share of a training whose mean loss is called final: one step's loss is mostly which timestep was drawn."""


class Curve(NamedTuple):
    """A logged number: steps [N] and values [N], in order."""

    steps: np.ndarray
    values: np.ndarray


def read_curves(path: Path) -> dict[str, Curve]:
    """Losses, accuracies and learning rates of a metrics.jsonl by name; none where there is no such file.

    A line that is half written, as the last one of a training that goes on, is left out.
    """
    found: dict[str, tuple[list[int], list[float]]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    for text in lines:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        for name, value in line.items():
            if value is not None and (name in CURVES or name.startswith("lr/")):
                steps, values = found.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    return {name: Curve(np.array(steps), np.array(values, dtype=float)) for name, (steps, values) in found.items()}


def final_losses(curves: Mapping[str, Curve]) -> dict[str, float]:
    """The mean training loss of the last tenth of the logged steps, and the last validation loss, where logged.

    >>> steps = np.arange(20)
    >>> final_losses({"train/loss": Curve(steps, 1.0 * steps)})
    {'train/loss': 18.5}
    """
    final = {}
    if TRAIN in curves:
        values = curves[TRAIN].values
        final[TRAIN] = float(values[-max(1, round(LAST * len(values))) :].mean())
    if VAL in curves:
        final[VAL] = float(curves[VAL].values[-1])
    return final


def smoothed(curve: Curve, window: int, most: int = 400) -> Curve:
    """Running mean over ``window`` values, at its last step, thinned to about ``most`` points."""
    if len(curve.values) < window or window < 2:
        return curve
    sums = np.concatenate([[0.0], np.cumsum(curve.values)])
    means = (sums[window:] - sums[:-window]) / window
    every = max(1, len(means) // most)
    return Curve(curve.steps[window - 1 :][::every], means[::every])
