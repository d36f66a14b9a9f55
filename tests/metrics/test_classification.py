"""Scores of classes of whole images against scikit-learn's definitions, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geoseg.metrics.classification import ImageScore

PROBS = torch.tensor(
    [[0.7, 0.2, 0.1, 0.0], [0.1, 0.8, 0.1, 0.0], [0.3, 0.4, 0.3, 0.0], [0.6, 0.1, 0.3, 0.0], [0.2, 0.2, 0.6, 0.0]]
)
TARGET = torch.tensor([0, 1, 0, 0, 2])


def scored(probs: torch.Tensor = PROBS, target: torch.Tensor = TARGET, batch: int = 2) -> ImageScore:
    score = ImageScore(probs.shape[1])
    for part, truth in zip(probs.split(batch), target.split(batch), strict=True):
        score.update(part, truth)
    return score


def test_scores_are_those_of_their_definitions() -> None:
    found = {name: float(value) for name, value in scored().compute().items()}
    labels, target = PROBS.argmax(1).numpy(), TARGET.numpy()  # 0 1 1 0 2 of 0 1 0 0 2
    assert found["accuracy/image"] == pytest.approx((labels == target).mean()) == 0.8
    f1 = []
    for k in range(3):
        hits = ((labels == k) & (target == k)).sum()
        precision, recall = hits / (labels == k).sum(), hits / (target == k).sum()
        f1.append(2 * precision * recall / (precision + recall))
        assert found[f"f1/class_{k}"] == pytest.approx(f1[-1])
        assert found[f"accuracy/class_{k}"] == pytest.approx(recall)
    assert found["f1/mean"] == pytest.approx(np.mean(f1))  # the fourth class is nowhere, and left out
    assert np.isnan(found["f1/class_3"]) and np.isnan(found["accuracy/class_3"])
    assert found["accuracy/mean"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    nll = -np.log([0.7, 0.8, 0.3, 0.6, 0.6]).mean()
    assert found["cross_entropy"] == pytest.approx(nll, abs=1e-6)


def test_images_are_scored_one_by_one_and_counted_in_a_matrix() -> None:
    score = scored(batch=3)
    found = score.per_image()
    assert found["accuracy/image"] == [1, 1, 0, 1, 1]
    assert found["cross_entropy"] == pytest.approx(-np.log([0.7, 0.8, 0.3, 0.6, 0.6]).astype(float), abs=1e-6)
    assert score.matrix.tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_ignored_images_count_nowhere_and_a_probability_of_0_is_finite() -> None:
    target = torch.tensor([0, 1, 0, 255, 3])
    score = scored(target=target)
    found = {name: float(value) for name, value in score.compute().items()}
    assert found["accuracy/image"] == 0.5
    assert score.matrix.sum() == 4
    assert np.isnan(score.per_image()["accuracy/image"][3])
    assert np.isfinite(found["cross_entropy"]) and score.per_image()["cross_entropy"][4] > 80
