from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from geoseg.metrics.matching import most_pixels
from geoseg.metrics.regions import RegionScore
from geoseg.predictors.regions import by_size


def scored(regions: Tensor, target: Tensor, num_classes: int = 3, radius: int = 0) -> RegionScore:
    score = RegionScore(num_classes, radius)
    score.update(regions, target)
    return score


def by_hand(regions: Tensor, target: Tensor, num_classes: int) -> tuple[float, float]:
    """Accuracy and mean IoU as DiffSeg's authors count them: true and false positives and negatives over all images."""
    tp, fp, fn = (np.zeros(num_classes) for _ in range(3))
    for one, classes in zip(regions.numpy(), target.numpy(), strict=True):
        keep = classes != 255
        wide = max(num_classes, one.max() + 1)
        hits = np.array([[(keep & (classes == k) & (one == j)).sum() for j in range(wide)] for k in range(num_classes)])
        for k, j in zip(*linear_sum_assignment(hits, maximize=True), strict=True):
            tp[k] += hits[k, j]
            fp[k] += (keep & (one == j)).sum() - hits[k, j]
            fn[k] += (keep & (classes == k)).sum() - hits[k, j]
    with np.errstate(invalid="ignore"):
        return tp.sum() / (target != 255).sum(), np.nanmean(tp / (tp + fp + fn))


@pytest.mark.parametrize("regions", [2, 3, 7])
def test_matched_image_by_image_as_published(regions: int) -> None:
    generator = torch.Generator().manual_seed(regions)
    target = torch.randint(4, (5, 9, 8), generator=generator)
    noise = torch.randint(regions, (5, 9, 8), generator=generator)
    found = by_size(torch.where(torch.rand(5, 9, 8, generator=generator) < 0.6, (target + 1) % regions, noise))
    target[:, :2] = 255
    got = scored(found, target, 5).compute()
    accuracy, iou = by_hand(found, target, 5)
    assert got["per_image/accuracy"] == pytest.approx(accuracy)
    # which of several classes that an image lacks a region takes that fits none is nobody's business
    assert got["per_image/iou"] == pytest.approx(iou, abs=0.03 if regions > 4 else 1e-9)


def test_once_is_stricter() -> None:
    target = torch.tensor([[[0, 0, 0, 1]], [[1, 1, 1, 0]]])
    regions = torch.tensor([[[0, 0, 0, 1]], [[0, 0, 0, 1]]])
    got = scored(regions, target, 2).compute()
    assert got["per_image/accuracy"] == got["per_image/iou"] == 1
    assert got["once/accuracy"] == 0.5
    assert got["once/iou"] == pytest.approx((3 / 7 + 1 / 5) / 2)


def test_regions_beyond_the_classes_are_missed() -> None:
    target = torch.tensor([[[0, 0, 0, 0, 1, 1, 255, 255]]])
    regions = torch.tensor([[[0, 0, 2, 3, 1, 1, 4, 5]]])
    score = scored(regions, target, 2)
    got = score.compute()
    assert got["per_image/accuracy"] == pytest.approx(4 / 6)
    assert got["per_image/iou"] == pytest.approx((2 / 4 + 1) / 2)
    assert (got["count"], got["true_count"]) == (4, 2)  # those of pixels that are ignored do not count
    assert score.per_image()["per_image/accuracy"] == [pytest.approx(4 / 6)]


def test_borders_whatever_meets_there() -> None:
    target = torch.tensor([[[0, 0, 0, 1, 1, 1, 2, 2, 2]]])
    regions = torch.tensor([[[5, 5, 5, 0, 0, 0, 0, 0, 0]]])
    exact = scored(regions, target).compute()["boundary_f1"]
    assert exact == pytest.approx(2 * 1 * 0.5 / 1.5)  # both pixels found are right, two of four are found
    moved = torch.tensor([[[5, 5, 0, 0, 0, 0, 1, 1, 1]]])
    assert scored(moved, target).compute()["boundary_f1"] == pytest.approx(0.75)
    assert scored(moved, target, radius=1).compute()["boundary_f1"] == 1
    many = torch.where(target == 0, 254, torch.where(target == 1, 255, 0))  # the last region is none to be ignored
    assert scored(many, target).compute()["boundary_f1"] == 1
    flat = torch.zeros_like(target)
    assert scored(flat, flat).compute()["boundary_f1"].isnan()
    assert scored(flat, target).compute()["boundary_f1"] == 0


def test_images_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    target, regions = (torch.randint(3, (4, 6, 6), generator=generator) for _ in range(2))
    whole, parts = scored(regions, target), RegionScore(3, 0)
    for i in range(4):
        parts.update(regions[i : i + 1], target[i : i + 1])
    assert whole.compute() == parts.compute()
    each = whole.per_image()["per_image/accuracy"]
    assert np.mean(each) == pytest.approx(float(whole.compute()["per_image/accuracy"]))


def test_most_pixels_is_the_best_of_all_permutations() -> None:
    from itertools import permutations

    counts = torch.randint(50, (4, 4), generator=torch.Generator().manual_seed(1))
    best = max(sum(int(counts[k, j]) for j, k in enumerate(order)) for order in permutations(range(4)))
    assert sum(int(counts[k, j]) for j, k in enumerate(most_pixels(counts).tolist())) == best


def test_what_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match=r"one shape \[B, H, W\]"):
        RegionScore(2).update(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5))
    with pytest.raises(ValueError, match="300 regions, and at most 256"):
        RegionScore(2).update(torch.full((1, 2, 2), 299), torch.zeros(1, 2, 2, dtype=torch.int64))
