"""Scores of thin classes against a hand count and SciPy's distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from geoseg.metrics.score import SegmentationScore
from geoseg.metrics.tolerance import tolerant_counts, tolerant_f1, tolerant_precision, tolerant_recall


def test_a_fault_counted_by_hand() -> None:
    target = torch.zeros(1, 5, 7, dtype=torch.int64)
    target[0, :, 3] = 1
    labels = torch.zeros_like(target)
    labels[0, :3, 4] = 1  # beside it
    labels[0, 0, 0] = 1  # far away
    counts = tolerant_counts(labels, target, {1: 1})
    # row 3 of the fault is a step down and a step aside from the prediction: further than one pixel
    assert [value.item() for value in counts] == [3, 4, 3, 5]
    assert tolerant_f1(counts).item() == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))
    assert [value.item() for value in tolerant_counts(labels, target, {1: 0})] == [0, 4, 0, 5]
    assert tolerant_f1(tolerant_counts(labels, target, {1: 0})).item() == 0
    assert [value.item() for value in tolerant_counts(labels, target, {1: 2})] == [3, 4, 4, 5]


@pytest.mark.parametrize("distance", [0, 1, 3])
def test_counts_are_those_of_a_distance_transform(distance: int) -> None:
    random = np.random.default_rng(distance)
    labels, target = (random.random((4, 30, 40)) < 0.02 for _ in range(2))
    ignored = random.random((4, 30, 40)) < 0.1
    labels[3] = False
    truth = np.where(ignored, 255, target.astype(int))
    counts = tolerant_counts(torch.from_numpy(labels.astype(int)), torch.from_numpy(truth), {1: distance})
    for i in range(4):
        a, b = labels[i] & ~ignored[i], target[i] & ~ignored[i]
        near_b = ndimage.distance_transform_edt(~b) <= distance
        near_a = ndimage.distance_transform_edt(~a) <= distance if a.any() else np.zeros_like(a)
        wanted = [(a & near_b).sum(), a.sum(), (b & near_a).sum(), b.sum()]
        assert [int(value[i, 0]) for value in counts] == wanted


def test_the_data_set_adds_up_counts_and_classes_keep_their_names() -> None:
    target = torch.zeros(2, 4, 6, dtype=torch.int64)
    target[0, 1], target[1, 2] = 2, 2
    labels = target.roll(1, dims=1)  # everything a pixel lower
    labels[1] = 0
    score = SegmentationScore(3, tolerances={2: 1, 1: 1})
    score.update(labels[:1], target[:1])
    score.update(labels[1:], target[1:])
    scores = {name: value.item() for name, value in score.compute().items() if "tolerant" in name}
    assert scores == pytest.approx(
        {
            "tolerant_f1/mean": 2 / 3,  # all that is predicted lies near, half of the truth
            "tolerant_f1/class_2": 2 / 3,
            "tolerant_precision/class_2": 1.0,
            "tolerant_recall/class_2": 0.5,
            **{f"tolerant_{name}/class_1": float("nan") for name in ("f1", "precision", "recall")},
        },
        nan_ok=True,
    )
    per_image = score.per_image()
    assert per_image["tolerant_f1/class_2"] == [1.0, 0.0]
    assert per_image["tolerant_precision/class_2"] == pytest.approx([1.0, float("nan")], nan_ok=True)
    assert not [name for name in per_image if name.startswith("matched/tolerant")]


def test_precision_and_recall_of_nothing() -> None:
    nothing, something = torch.zeros(1, 2, 2, dtype=torch.int64), torch.ones(1, 2, 2, dtype=torch.int64)
    counts = tolerant_counts(nothing, something, {1: 5})
    assert tolerant_precision(counts).isnan().item()
    assert (tolerant_recall(counts).item(), tolerant_f1(counts).item()) == (0, 0)
    assert tolerant_f1(tolerant_counts(nothing, nothing, {1: 5})).isnan().item()
    with pytest.raises(ValueError, match=r"class 3 has a tolerance of 1 pixels; classes are 0\.\.2"):
        SegmentationScore(3, tolerances={3: 1})
