"""Tuning on pictures whose best setting is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geoseg.data.module import Split
from geoseg.models import thresholds
from geoseg.models.classical import Grouping, MeanShift, Thresholds
from geoseg.tasks.tuning import Tuning
from geoseg.types import IGNORE, Sample


class Pictures:
    """A source of given pictures and targets."""

    num_classes, class_names, title, unit = 2, ["a", "b"], "pictures", "picture"

    def __init__(self, *samples: tuple[np.ndarray, np.ndarray]) -> None:
        self.samples = samples
        self.names = [str(i) for i in range(len(samples))]

    def read(self, name: str) -> Sample:
        image, target = self.samples[int(name)]
        return Sample(image.astype(np.uint8), target.astype(np.uint8))


def split(*samples: tuple[np.ndarray, np.ndarray]) -> Split:
    source: Any = Pictures(*samples)
    return Split(source, source.names)


def rough(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Class 0 is rough and class 1 smooth, of one grey."""
    target = (np.arange(64) < 32)[:, None] * np.ones((1, 64), dtype=int)
    noise = np.random.default_rng(seed).choice([-40, 40], (64, 64))
    return 120 + np.where(target == 0, noise, 0), target


def tuned(data: Split, num_classes: int = 2, **grid: list[Any]) -> Tuning:
    model = Grouping(Thresholds(thresholds.otsu), num_classes)
    task = Tuning(model, grid or {"sigma": [1.0, 4.0], "texture": [False, True]})
    task.tune(data)
    return task


def test_the_setting_and_the_names_that_fit_are_chosen() -> None:
    data = split(rough(0), rough(1))
    task = tuned(data)
    assert task.tuned["settings"]["texture"] is True
    assert task.tuned["names"] == [1, 0]  # smooth, the lower group, is class 1
    assert (task.tuned["parameters"], task.tuned["trials"]) == (2, 4)
    labels = task.model(data[0]["image"][None]).argmax(1)[0]
    right = (labels == data[0]["target"]).float().mean().item()
    assert right > 0.9
    counts = np.zeros((2, 2))
    for i in range(2):
        labels = task.model(data[i]["image"][None]).argmax(1)[0].numpy()
        np.add.at(counts, (data[i]["target"].numpy(), labels), 1)
    both = counts.diagonal()
    assert task.tuned["train/iou/mean"] == pytest.approx((both / (counts.sum(0) + counts.sum(1) - both)).mean())


def test_ignored_pixels_decide_nothing() -> None:
    image, target = rough(0)
    hidden = target.copy()
    hidden[:, :32] = IGNORE
    misled = target.copy()
    misled[:, :32] = 1 - misled[:, :32]
    clean = tuned(split((image, hidden))).tuned
    image[:, :32] = 255 - image[:, :32]
    assert clean["names"] == tuned(split((image, hidden))).tuned["names"] == [1, 0]
    assert tuned(split((image, misled))).tuned["train/iou/mean"] < 0.5 < clean["train/iou/mean"]
    nothing = np.full_like(target, IGNORE)
    assert tuned(split((image, nothing))).tuned["train/iou/mean"] == 0.0


def test_one_class_alone() -> None:
    image, target = rough(0)
    task = tuned(split((image, np.zeros_like(target))))
    assert sorted(task.tuned["names"]) == [0, 1]
    flat = tuned(split((np.full((16, 16), 90), np.ones((16, 16)))))
    assert flat.tuned["train/iou/mean"] == 1.0 and flat.tuned["names"] == [1, 0]  # all is the one group there is


def test_the_first_of_equals_stays() -> None:
    flat = split((np.full((16, 16), 90), np.zeros((16, 16))))
    assert tuned(flat, sigma=[3.0, 1.0, 2.0]).tuned["settings"] == {"sigma": 3.0}


def test_what_was_tuned_comes_back(tmp_path: Path) -> None:
    task = tuned(split(rough(0)))
    (path,) = task.save(tmp_path / "adapter")
    assert [file.name for file in path.parent.iterdir()] == ["tuned.json"]
    fresh = Tuning(Grouping(Thresholds(thresholds.otsu), 2), task.grid)
    fresh.load(tmp_path / "adapter")
    picture = torch.rand(1, 1, 20, 20)
    assert fresh.tuned == task.tuned == json.loads(path.read_text())
    assert torch.equal(fresh.model(picture), task.model(picture))
    for other in (
        Tuning(Grouping(Thresholds(thresholds.otsu), 2), {"sigma": [1.0]}),
        Tuning(Grouping(Thresholds(thresholds.otsu), 3), task.grid),
    ):
        with pytest.raises(ValueError, match="force=true tunes anew"):
            other.load(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"sigm": [1]}, "grid.sigm: MeanShift has no such setting; it has space, range, sigma, texture"),
        ({"space": []}, "grid.space has no value"),
        ({"space": [0]}, "space >= 1"),
    ],
)
def test_grids_that_cannot_be(grid: dict[str, list[Any]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Tuning(Grouping(MeanShift(), 2), grid)
