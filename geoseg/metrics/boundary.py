"""How well the borders between classes are drawn, with a tolerance of a few pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geoseg.types import IGNORE


class BoundaryCounts(NamedTuple):
    """Boundary pixels of every class, and how many lie near a boundary of every class of the other side.

    In both pair counts i is the target class and j the predicted class, so that predicted classes can be renamed
    afterwards.

    Attributes:
        hits_pred: int64 [..., K, K], boundary pixels of predicted class j near the boundary of target class i.
        total_pred: int64 [..., K], boundary pixels of predicted class j.
        hits_target: int64 [..., K, K], boundary pixels of target class i near the boundary of predicted class j.
        total_target: int64 [..., K], boundary pixels of target class i.
    """

    hits_pred: Tensor
    total_pred: Tensor
    hits_target: Tensor
    total_target: Tensor


def boundary(labels: Tensor, num_classes: int) -> Tensor:
    """The inner border of every class: its pixels with a pixel of another class above, below, left or right.

    The border of the image is no boundary, and an ignored pixel neither has one nor makes one.

    Args:
        labels: int64 [B, H, W] in 0..K-1, 255 = ignore.
        num_classes: K.

    Returns:
        bool [B, K, H, W].

    >>> boundary(torch.tensor([[[0, 0, 1, 255, 0]]]), 2)[0, :, 0].int().tolist()
    [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    """
    edge = borders(labels)
    classes = torch.arange(num_classes, device=labels.device)[None, :, None, None]
    return (labels[:, None] == classes) & edge[:, None]


def borders(labels: Tensor) -> Tensor:
    """Pixels on either side of any border between two classes, as ``boundary`` has them of each: bool [B, H, W]."""
    edge = torch.zeros_like(labels, dtype=torch.bool)
    for dim in (1, 2):
        size = labels.shape[dim]
        if size < 2:
            continue
        before, after = labels.narrow(dim, 0, size - 1), labels.narrow(dim, 1, size - 1)
        differ = (before != after) & (before != IGNORE) & (after != IGNORE)
        edge.narrow(dim, 0, size - 1).logical_or_(differ)
        edge.narrow(dim, 1, size - 1).logical_or_(differ)
    return edge


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Every pixel within ``radius`` of a true pixel, as the crow flies.

    Args:
        mask: bool [..., H, W].
        radius: pixels, 0 changes nothing.

    Returns:
        bool [..., H, W].
    """
    height, width = mask.shape[-2:]
    grown = torch.zeros_like(mask)
    for dy in range(-min(radius, height - 1), min(radius, height - 1) + 1):
        for dx in range(-min(radius, width - 1), min(radius, width - 1) + 1):
            if dy * dy + dx * dx <= radius * radius:
                to = grown[..., max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
                to |= mask[..., max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)]
    return grown


def boundary_counts(labels: Tensor, target: Tensor, num_classes: int, radius: int = 2) -> BoundaryCounts:
    """Counts every boundary pixel and those near the other side's boundaries, for every pair of classes.

    Args:
        labels: int64 [B, H, W], predicted classes in 0..K-1.
        target: int64 [B, H, W] in 0..K-1, 255 = ignore; ignored pixels count on neither side.
        num_classes: K.
        radius: tolerance in pixels, Euclidean.

    Returns:
        Counts with one leading axis B.

    Raises:
        ValueError: the maps are not [B, H, W] of one shape, or the radius is negative.
    """
    if labels.shape != target.shape or labels.ndim != 3:
        raise ValueError(
            f"boundaries need labels and target of one shape [B, H, W], got {list(labels.shape)} and "
            f"{list(target.shape)}"
        )
    if radius < 0:
        raise ValueError(f"radius must be 0 or more pixels, got {radius}")
    pred_edge = boundary(labels.masked_fill(target == IGNORE, IGNORE), num_classes)  # [B, K, H, W]
    target_edge = boundary(target, num_classes)
    return BoundaryCounts(
        hits_pred=_overlap(dilate(target_edge, radius), pred_edge),
        total_pred=pred_edge.sum((2, 3)),
        hits_target=_overlap(target_edge, dilate(pred_edge, radius)),
        total_target=target_edge.sum((2, 3)),
    )


def boundary_f1(counts: BoundaryCounts) -> Tensor:
    """Harmonic mean of the two shares of boundary pixels that lie near the other side's boundary of their class.

    Args:
        counts: with any leading axes; add up images first for the score of a data set.

    Returns:
        float64 [..., K] in [0, 1]; nan for a class without boundary on either side, 0 where only one side has one.
    """
    total_pred, total_target = counts.total_pred.double(), counts.total_target.double()
    precision = counts.hits_pred.diagonal(dim1=-2, dim2=-1) / total_pred.clamp(min=1)
    recall = counts.hits_target.diagonal(dim1=-2, dim2=-1) / total_target.clamp(min=1)
    both = precision + recall
    f1 = torch.where(both > 0, 2 * precision * recall / both.clamp(min=torch.finfo(both.dtype).tiny), 0.0)
    return f1.masked_fill(total_pred + total_target == 0, torch.nan)


def _overlap(target: Tensor, labels: Tensor) -> Tensor:
    # float32 counts exactly up to 2**24 pixels, more than any picture that fits beside its K masks
    exact = torch.float32 if target[0, 0].numel() < 2**24 else torch.float64
    with torch.autocast(target.device.type, enabled=False):  # half precision counts exactly up to 2048 only
        return torch.einsum("bihw,bjhw->bij", target.to(exact), labels.to(exact)).round().long()
