"""Uncertainty scores against torchmetrics, SciPy and counts pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from scipy.stats import mannwhitneyu
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

from geoseg.metrics.uncertainty import CalibrationError, Ranking, entropy, variance, vote_entropy
from geoseg.types import IGNORE


def drawn(seed: int = 0, batch: int = 3, classes: int = 4, side: int = 12) -> tuple[Tensor, Tensor]:
    """Probabilities that are right more often where they are sure, and targets with ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (batch, side, side), generator=generator)
    logits = 2 * torch.randn(batch, classes, side, side, generator=generator)
    logits += 1.5 * torch.nn.functional.one_hot(target, classes).movedim(-1, 1)
    target[:, :2] = IGNORE
    return logits.softmax(1), target


def levelled(values: Tensor) -> Tensor:
    """Few levels that half the bits of a float tell apart, so that there are ties."""
    return (values * 64).round() / 64


def pixels(unsure: Tensor, probs: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    keep = target != IGNORE
    return unsure[keep].numpy(), (probs.argmax(1) != target)[keep].numpy()


def by_hand(unsure: np.ndarray, wrong: np.ndarray) -> float:
    """Mean over n of the share of wrong pixels among the n surest, over many orders of the equally sure."""
    found = []
    random = np.random.default_rng(0)
    for _ in range(400):
        order = np.lexsort((random.random(len(unsure)), unsure))
        found.append((np.cumsum(wrong[order]) / np.arange(1, len(order) + 1)).mean())
    return float(np.mean(found))


def test_rankings_are_those_of_others() -> None:
    probs, target = drawn()
    unsure = levelled(entropy(probs))
    ranking = Ranking()
    ranking.update(unsure[:2], probs[:2].argmax(1), target[:2])
    ranking.update(unsure[2:], probs[2:].argmax(1), target[2:])
    values, wrong = pixels(unsure, probs, target)
    found = {name: float(value) for name, value in ranking.compute().items()}
    assert found["auroc"] == pytest.approx(
        mannwhitneyu(values[wrong], values[~wrong]).statistic / (wrong.sum() * (~wrong).sum())
    )
    torch_says = binary_auroc(torch.from_numpy(values), torch.from_numpy(wrong).long())
    assert found["auroc"] == pytest.approx(float(torch_says), abs=1e-6)
    assert 0.55 < found["auroc"] < 1
    assert found["risk"] == pytest.approx(by_hand(values, wrong), abs=2e-3)
    for i, (auroc, risk) in enumerate(zip(*ranking.per_image().values(), strict=True)):
        one = pixels(unsure[i : i + 1], probs[i : i + 1], target[i : i + 1])
        assert auroc == pytest.approx(float(binary_auroc(torch.from_numpy(one[0]), torch.from_numpy(one[1]).long())))
        assert risk == pytest.approx(by_hand(*one), abs=1e-2)


def test_values_that_nearly_agree_change_nothing_that_matters() -> None:
    probs, target = drawn(1, side=40)
    unsure = 5 * entropy(probs) - 2  # negative ones too
    ranking = Ranking()
    ranking.update(unsure, probs.argmax(1), target)
    values, wrong = pixels(unsure, probs, target)
    exact = float(binary_auroc(torch.from_numpy(values).sigmoid(), torch.from_numpy(wrong).long()))
    assert float(ranking.compute()["auroc"]) == pytest.approx(exact, abs=2e-3)


def test_the_curve_ends_at_the_share_of_wrong_pixels() -> None:
    target = torch.zeros(1, 1, 10, dtype=torch.int64)
    labels = torch.tensor([[[0, 0, 0, 0, 0, 0, 1, 0, 1, 1]]])
    ranking = Ranking()
    ranking.update(torch.arange(10.0).view(1, 1, 10), labels, target)
    assert ranking.curve([0.5, 0.7, 1.0]) == pytest.approx([0, 1 / 7, 0.3])
    assert float(ranking.compute()["auroc"]) == pytest.approx((6 + 7 + 7) / 21)
    assert float(ranking.compute()["risk"]) == pytest.approx((1 / 7 + 1 / 8 + 2 / 9 + 3 / 10) / 10)


def test_no_pixel_has_no_risk_at_all() -> None:
    ranking, nothing = Ranking(), torch.full((1, 2, 2), IGNORE)
    ranking.update(torch.rand(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), nothing)
    assert all(math.isnan(risk) for risk in ranking.curve()) and math.isnan(float(ranking.compute()["risk"]))


def test_all_right_has_no_ranking_and_no_risk() -> None:
    ranking, target = Ranking(), torch.zeros(1, 2, 2, dtype=torch.int64)
    ranking.update(torch.rand(1, 2, 2), target, target)
    assert math.isnan(float(ranking.compute()["auroc"])) and float(ranking.compute()["risk"]) == 0
    with pytest.raises(ValueError, match="must have one shape"):
        ranking.update(torch.rand(1, 2), target, target)


def test_the_calibration_error_is_that_of_torchmetrics() -> None:
    probs, target = drawn(2)
    error = CalibrationError(bins=15)
    error.update(probs[:1], target[:1])
    error.update(probs[1:], target[1:])
    keep = target != IGNORE
    flat = probs.movedim(1, -1)
    wanted = multiclass_calibration_error(flat[keep], target[keep], num_classes=4, n_bins=15)
    assert float(error.compute()) == pytest.approx(float(wanted), abs=1e-6)
    wanted = multiclass_calibration_error(flat[1][keep[1]], target[1][keep[1]], num_classes=4, n_bins=15)
    assert error.per_image()[1] == pytest.approx(float(wanted), abs=1e-6)


def test_entropies_and_variance_by_hand() -> None:
    probs, _ = drawn(3)
    wanted = scipy_entropy(probs.numpy(), axis=1) / np.log(4)
    np.testing.assert_allclose(entropy(probs).numpy(), wanted, atol=1e-5)
    members = torch.tensor([[1.0, 0.0], [0.6, 0.4], [0.2, 0.8], [0.0, 1.0]]).view(1, 4, 2, 1, 1)  # [B, M, K, H, W]
    assert float(variance(members)) == pytest.approx(2 * np.var([1.0, 0.6, 0.2, 0.0]))
    assert float(vote_entropy(members)) == pytest.approx(1)  # two votes each
    assert float(vote_entropy(members[:, :2])) == 0


def test_being_too_sure_here_does_not_make_up_for_doubt_there() -> None:
    """Half of the pixels say 0.9 and every other one of them is right; the other half say 0.55, and all are right."""
    sure = torch.tensor([0.9] * 10 + [0.55] * 10).view(1, 20)
    target = torch.tensor([0, 1] * 5 + [0] * 10).view(1, 20)
    error = CalibrationError()
    error.update(torch.stack([sure, 1 - sure], 1), target)
    assert float(error.compute()) == pytest.approx(0.5 * 0.4 + 0.5 * 0.45)
