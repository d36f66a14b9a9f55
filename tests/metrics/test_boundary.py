"""Boundary scores against distance transforms and loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from geoseg.metrics.boundary import BoundaryCounts, boundary, boundary_counts, boundary_f1, dilate

SHAPES = [(13, 17), (1, 9), (9, 1), (24, 24)]


def maps(seed: int, shape: tuple[int, int], num_classes: int, ignored: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Blocky label maps, so that boundaries are neither everywhere nor nowhere."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, num_classes, (shape[0] // 4 + 1, shape[1] // 4 + 1))
    target = np.kron(small, np.ones((4, 4), dtype=int))[: shape[0], : shape[1]]
    labels = np.roll(target, (1, -1), (0, 1))
    labels = np.where(rng.random(shape) < 0.05, rng.integers(0, num_classes, shape), labels)
    return labels, np.where(rng.random(shape) < ignored, 255, target)


def edge_by_loop(labels: np.ndarray, k: int) -> np.ndarray:
    height, width = labels.shape
    edge = np.zeros((height, width), dtype=bool)
    for y in range(height):
        for x in range(width):
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if labels[y, x] == k and 0 <= v < height and 0 <= u < width and labels[v, u] not in (k, 255):
                    edge[y, x] = True
    return edge


def near(edge: np.ndarray, radius: float) -> np.ndarray:
    return distance_transform_edt(~edge) <= radius if edge.any() else np.zeros_like(edge)


def f1_by_loop(labels: np.ndarray, target: np.ndarray, num_classes: int, radius: int) -> list[float]:
    labels = np.where(target == 255, 255, labels)
    scores = []
    for k in range(num_classes):
        mine, true = edge_by_loop(labels, k), edge_by_loop(target, k)
        if not mine.any() and not true.any():
            scores.append(float("nan"))
        elif not mine.any() or not true.any():
            scores.append(0.0)
        else:
            precision, recall = near(true, radius)[mine].mean(), near(mine, radius)[true].mean()
            scores.append(0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall))
    return scores


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [0, 1, 2, 5])
def test_f1_is_that_of_a_distance_transform(shape: tuple[int, int], radius: int) -> None:
    pairs = [maps(seed, shape, 4) for seed in range(3)]
    labels = torch.from_numpy(np.stack([pair[0] for pair in pairs]))
    target = torch.from_numpy(np.stack([pair[1] for pair in pairs]))
    f1 = boundary_f1(boundary_counts(labels, target, 5, radius))  # class 4 never occurs
    for i, pair in enumerate(pairs):
        np.testing.assert_allclose(f1[i].numpy(), f1_by_loop(*pair, 5, radius), rtol=1e-12)
    assert f1[:, 4].isnan().all()


def test_counts_hold_every_pair_of_classes() -> None:
    labels, target = maps(5, (20, 21), 3)
    counts = boundary_counts(torch.from_numpy(labels)[None], torch.from_numpy(target)[None], 3, radius=2)
    labels = np.where(target == 255, 255, labels)
    for i in range(3):
        for j in range(3):
            true, mine = edge_by_loop(target, i), edge_by_loop(labels, j)
            assert counts.hits_pred[0, i, j] == (near(true, 2) & mine).sum()
            assert counts.hits_target[0, i, j] == (near(mine, 2) & true).sum()
            assert counts.total_target[0, i] == true.sum()
            assert counts.total_pred[0, j] == mine.sum()


def test_image_border_and_ignored_pixels_are_no_boundary() -> None:
    labels = torch.tensor([[[0, 0, 255, 1, 1]]])
    assert not boundary(labels, 2).any()
    assert not boundary(torch.zeros(1, 4, 4, dtype=torch.int64), 2).any()


def test_a_shifted_border_counts_within_the_radius_only() -> None:
    target = torch.zeros(1, 8, 20, dtype=torch.int64)
    target[..., 10:] = 1
    for shift, expected in ((2, 1.0), (3, 0.0)):
        labels = torch.zeros_like(target)
        labels[..., 10 + shift :] = 1
        assert boundary_f1(boundary_counts(labels, target, 2, radius=2))[0].tolist() == [expected, expected]


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 40])
def test_dilation_is_a_disk(radius: int) -> None:
    mask = torch.zeros(2, 11, 15, dtype=torch.bool)
    mask[0, 2, 3] = mask[0, 9, 14] = True
    np.testing.assert_array_equal(dilate(mask, radius)[0].numpy(), near(mask[0].numpy(), radius))
    assert not dilate(mask, radius)[1].any()


def test_a_boundary_on_one_side_only_is_zero() -> None:
    zero = torch.zeros(1, 1, dtype=torch.int64)
    one_sided = BoundaryCounts(zero, torch.tensor([3]), zero, torch.tensor([0]))
    assert boundary_f1(one_sided).tolist() == [0.0]


def test_counts_are_exact_where_precision_is_mixed() -> None:
    labels, target = torch.randint(0, 2, (2, 1, 96, 96), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = boundary_counts(labels, target, 2)
    for name, counts in boundary_counts(labels, target, 2)._asdict().items():
        assert torch.equal(getattr(mixed, name), counts), name


def test_mistakes_are_named() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="one shape"):
        boundary_counts(labels, labels[:, :2], 2)
    with pytest.raises(ValueError, match="radius"):
        boundary_counts(labels, labels, 2, radius=-1)
