"""Which predicted class means which target class, for methods that name their classes at random or by colour."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def best_matching(counts: Tensor) -> Tensor:
    """The one-to-one renaming of predicted classes that makes the mean IoU largest.

    Every pair of a target class that occurs and a predicted class that occurs earns 1 beside its IoU. This changes no
    optimum, since joining two such classes never lowers a sum of IoUs and leaves one class fewer to average over; it
    only keeps a class that occurs from being paired with one that does not. Where choices stay equal, a class keeps
    its own name.

    Args:
        counts: [K, K], pixels; rows = target, columns = predicted.

    Returns:
        int64 [K] on the CPU, a permutation: predicted class j means target class ``matching[j]``.

    Raises:
        ValueError: the counts are not square.

    >>> best_matching(torch.tensor([[0, 5], [7, 1]])).tolist()
    [1, 0]
    """
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"counts must be [K, K], got {list(counts.shape)}; sum per-image counts over images first")
    hits = counts.detach().cpu().numpy().astype(np.float64)
    in_target, in_labels = hits.sum(1), hits.sum(0)  # [K]
    union = in_target[:, None] + in_labels[None, :] - hits
    worth = np.divide(hits, union, out=np.zeros_like(hits), where=union > 0)
    worth += (in_target[:, None] > 0) & (in_labels[None, :] > 0)
    # far below the step between any two sums of IoUs, far above the rounding of a float64 of size K
    worth += 1e-12 * np.eye(len(hits))
    target, labels = linear_sum_assignment(worth, maximize=True)
    return _permutation(target, labels)


def most_pixels(counts: Tensor) -> Tensor:
    """The one-to-one renaming that gets the most pixels right, as PiCIE, STEGO and DiffSeg choose it.

    A region that fits no class takes one that is left over, whether it occurs or not, and counts against that class.

    Args:
        counts: [M, M], pixels; rows = target, columns = predicted. Where there are more regions than classes or fewer,
            the missing rows or columns are zero.

    Returns:
        int64 [M] on the CPU, a permutation: region j means class ``matching[j]``.

    >>> most_pixels(torch.tensor([[6, 5], [4, 0]])).tolist()
    [1, 0]
    """
    return _permutation(*linear_sum_assignment(counts.cpu().numpy(), maximize=True))


def _permutation(target: np.ndarray, labels: np.ndarray) -> Tensor:
    matching = torch.empty(len(labels), dtype=torch.int64)
    matching[torch.from_numpy(labels)] = torch.from_numpy(target)
    return matching


def apply_matching(counts: Tensor, matching: Tensor) -> Tensor:
    """Counts as they would be had the prediction used the target's names.

    Args:
        counts: [..., K, K], columns = predicted; or [..., K] totals of predicted classes as [..., 1, K].
        matching: int64 [K] or [..., K], predicted class -> target class, a permutation.

    Returns:
        [..., K, K], column ``matching[j]`` of which is column j of ``counts``.

    >>> apply_matching(torch.tensor([[0, 5], [7, 1]]), torch.tensor([1, 0])).tolist()
    [[5, 0], [1, 7]]
    """
    came_from = matching.to(counts.device).argsort(dim=-1).unsqueeze(-2)
    return counts.gather(-1, came_from.expand(counts.shape))
