"""The matching against every permutation there is."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from geoseg.metrics.matching import apply_matching, best_matching


def mean_iou(counts: np.ndarray) -> float:
    """Written apart from the code under test: classes absent on both sides are left out."""
    values = []
    for k in range(len(counts)):
        union = counts[k].sum() + counts[:, k].sum() - counts[k, k]
        if union:
            values.append(counts[k, k] / union)
    return float(np.mean(values))


def best_by_trying(counts: np.ndarray) -> float:
    return max(mean_iou(counts[:, list(order)]) for order in permutations(range(len(counts))))


@pytest.mark.parametrize("seed", range(40))
def test_no_permutation_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 50, (4, 4))
    counts[rng.random((4, 4)) < 0.4] = 0
    counts[rng.random(4) < 0.3] = 0  # classes that the target lacks
    counts[:, rng.random(4) < 0.3] = 0  # classes that were never predicted
    if not counts.any():
        counts[0, 2] = 1
    matching = best_matching(torch.from_numpy(counts))
    assert sorted(matching.tolist()) == [0, 1, 2, 3]
    renamed = apply_matching(torch.from_numpy(counts), matching).numpy()
    assert mean_iou(renamed) == pytest.approx(best_by_trying(counts))


def test_a_class_without_overlap_is_not_wasted_on_an_absent_one() -> None:
    # classes 0 and 1 occur in the target, 0 and 2 were predicted; predicted 2 overlaps nothing but target 0
    counts = torch.tensor([[5, 0, 1], [3, 0, 0], [0, 0, 0]])
    renamed = apply_matching(counts, best_matching(counts)).numpy()
    assert mean_iou(renamed) == pytest.approx(best_by_trying(counts.numpy()))


def test_a_permuted_prediction_gets_its_names_back() -> None:
    assert best_matching(torch.tensor([[0, 0, 7], [9, 0, 0], [0, 4, 0]])).tolist() == [1, 2, 0]


def test_equal_choices_keep_their_names() -> None:
    assert best_matching(torch.zeros(5, 5, dtype=torch.int64)).tolist() == [0, 1, 2, 3, 4]
    assert best_matching(torch.full((4, 4), 3)).tolist() == [0, 1, 2, 3]


def test_columns_move_and_rows_stay() -> None:
    counts = torch.arange(9).view(3, 3)
    renamed = apply_matching(counts, torch.tensor([1, 2, 0]))
    for j, name in enumerate([1, 2, 0]):
        assert renamed[:, name].tolist() == counts[:, j].tolist()


def test_every_image_may_have_its_own_matching() -> None:
    counts = torch.arange(8).view(2, 2, 2)
    renamed = apply_matching(counts, torch.tensor([[0, 1], [1, 0]]))
    assert renamed.tolist() == [[[0, 1], [2, 3]], [[5, 4], [7, 6]]]


def test_counts_of_single_images_are_refused() -> None:
    with pytest.raises(ValueError, match="sum per-image counts"):
        best_matching(torch.zeros(3, 2, 2))
