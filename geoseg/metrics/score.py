"""Every score of a label map, from one confusion matrix per image.

Counts add up exactly: over batches, over processes, and from images to the data set. A class that occurs neither in the
target nor in the prediction is left out of a mean; it counts neither as 0 nor as 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from geoseg.metrics.boundary import BoundaryCounts, boundary_counts, boundary_f1
from geoseg.metrics.matching import apply_matching, best_matching
from geoseg.metrics.tolerance import (
    TolerantCounts,
    tolerant_counts,
    tolerant_f1,
    tolerant_precision,
    tolerant_recall,
)
from geoseg.types import IGNORE

SMALL = 0.01
"""Regions below this share of a picture's area are small; the label LoRA paper's own example of what is missed."""


def confusion(labels: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Counts how often each predicted class meets each target class, image by image.

    Args:
        labels: int [B, *space], predicted classes in 0..K-1; not looked at where the target is ignored.
        target: int [B, *space] in 0..K-1, 255 = ignore.
        num_classes: K.

    Returns:
        int64 [B, K, K]; rows = target, columns = predicted.

    Raises:
        ValueError: shapes differ, a tensor holds no class indices, or a class is out of range.

    >>> confusion(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]), 2).tolist()
    [[[1, 1], [0, 0]]]
    """
    if labels.shape != target.shape or not labels.ndim:
        raise ValueError(
            f"labels and target must have one shape [B, *space], got {list(labels.shape)} and {list(target.shape)}"
        )
    for name, value in (("labels", labels), ("target", target)):
        if value.is_floating_point():
            raise ValueError(f"{name} must be class indices, got {value.dtype}; take probs.argmax(1) or .long()")
    keep = target != IGNORE
    image = torch.arange(len(labels), device=labels.device).view(-1, *[1] * (labels.ndim - 1)).expand_as(labels)[keep]
    predicted, true = labels[keep].long(), target[keep].long()
    for name, value in (("labels", predicted), ("target", true)):
        if value.numel() and (int(value.min()) < 0 or int(value.max()) >= num_classes):
            raise ValueError(
                f"{name} holds classes {int(value.min())}..{int(value.max())}, wanted 0..{num_classes - 1} "
                f"({IGNORE} = ignore in the target); set num_classes to the number of classes of the data"
            )
    cell = (image * num_classes + true) * num_classes + predicted
    counts = torch.bincount(cell, minlength=len(labels) * num_classes**2)
    return counts.view(len(labels), num_classes, num_classes)


def iou(counts: Tensor) -> Tensor:
    """Intersection over union of every class.

    Args:
        counts: [..., K, K]; rows = target, columns = predicted.

    Returns:
        float64 [..., K] in [0, 1]; nan for a class absent from both target and prediction.

    >>> iou(torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])).tolist()
    [0.75, 0.6666666666666666, nan]
    """
    both = counts.diagonal(dim1=-2, dim2=-1).double()
    return both / (counts.sum(-1) + counts.sum(-2) - both)  # 0 / 0 is nan, as wanted


def dice(counts: Tensor) -> Tensor:
    """Dice score (F1) of every class; arguments and result as for ``iou``."""
    both = counts.diagonal(dim1=-2, dim2=-1).double()
    return 2 * both / (counts.sum(-1) + counts.sum(-2))


def pixel_accuracy(counts: Tensor) -> Tensor:
    """Share of pixels with the right class.

    Args:
        counts: [..., K, K].

    Returns:
        float64 [...] in [0, 1]; nan where every pixel is ignored.
    """
    return counts.diagonal(dim1=-2, dim2=-1).sum(-1).double() / counts.sum((-2, -1))


def recall(counts: Tensor) -> Tensor:
    """Share of every class's pixels that were found.

    Args:
        counts: [..., K, K]; rows = target, columns = predicted.

    Returns:
        float64 [..., K] in [0, 1]; nan for a class that the target does not have.
    """
    return counts.diagonal(dim1=-2, dim2=-1).double() / counts.sum(-1)


def mean_accuracy(counts: Tensor) -> Tensor:
    """Share of a class's pixels that were found, averaged over the classes of the target (mPA).

    Args:
        counts: [..., K, K].

    Returns:
        float64 [...] in [0, 1]; nan where every pixel is ignored.
    """
    return recall(counts).nanmean(-1)


def batch_scores(counts: Tensor, batch: int) -> dict[str, Tensor]:
    """Mean IoU and mean pixel accuracy as Guo et al. (2024) count them: batch by batch, then averaged over batches.

    Classes that neither the targets nor the predictions of a batch hold are left out of its mean IoU, and classes that
    its targets do not hold count as 0 in its mean accuracy. Both numbers depend on the size and the order of batches
    and serve a comparison with published ones alone.

    Args:
        counts: [N, K, K], an image each, in the order of batches; rows = target, columns = predicted.
        batch: images per batch; the last one may be smaller and weighs as much as any other.

    Returns:
        ``iou/mean`` and ``accuracy/mean``, float64 scalars in [0, 1].

    >>> counts = torch.tensor([[[4, 0], [0, 0]], [[1, 1], [0, 2]]])
    >>> {name: value.item() for name, value in batch_scores(counts, 1).items()}
    {'iou/mean': 0.7916666666666666, 'accuracy/mean': 0.625}
    """
    sums = torch.stack([some.sum(0) for some in counts.split(batch)])
    return {
        "iou/mean": iou(sums).nanmean(-1).nanmean(),
        "accuracy/mean": recall(sums).nan_to_num(0.0).mean(-1).mean(),
    }


def small_regions(target: Tensor, share: float = SMALL) -> Tensor:
    """Which pixels lie in a connected region of one class that covers less than ``share`` of its picture.

    Args:
        target: int [B, H, W], 255 = ignore. Pixels that touch by a side belong together.
        share: of all H * W pixels, 0..1.

    Returns:
        bool [B, H, W]; ignored pixels lie in none.

    >>> small_regions(torch.tensor([[[0, 0, 0, 1]]]), share=0.5).tolist()
    [[[False, False, False, True]]]
    """
    small = np.zeros(target.shape, dtype=bool)
    for picture, found in zip(target.cpu().numpy(), small, strict=True):
        for k in np.unique(picture[picture != IGNORE]):
            pieces, _ = ndimage.label(picture == k)
            sizes = np.bincount(pieces.ravel())
            sizes[0] = picture.size  # what is not of this class
            found |= sizes[pieces] < share * picture.size
    return torch.from_numpy(small).to(target.device)


class SegmentationScore(Metric):
    """IoU, Dice, accuracy and boundary F1 of label maps, for the data set and image by image, higher is better.

    ``compute`` gives ``iou/mean``, ``dice/mean``, ``accuracy/pixel``, ``accuracy/mean``, ``boundary_f1/mean``,
    ``small_regions/recall`` (share of the pixels of small regions that got their class, nan where there are none),
    ``iou/class_<k>`` and ``accuracy/class_<k>``, and each again under ``matched/`` after the predicted classes got the
    names that fit the target best; a method that was never told the names is to be judged by those. The counts of all
    images are added up before a score is taken of them. A class's score is nan where the class is absent, ``mean``
    leaves it out. For classes with a tolerance there are ``tolerant_f1/class_<k>``, ``tolerant_precision/class_<k>``
    and ``tolerant_recall/class_<k>``, and the mean F1 over these classes, ``tolerant_f1/mean``; names stay as they are.

    Args:
        num_classes: K.
        radius: tolerance of the boundary score in pixels.
        tolerances: thin classes, each with the distance in pixels within which a pixel counts as found.
        matching: "dataset" finds one matching for all images (as PiCIE and STEGO do); "image" finds one for each (as
            DiffSeg does), which is more lenient.

    Raises:
        ValueError: an unknown matching, or a tolerance that cannot be.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    counts: list[Tensor]
    small: list[Tensor]
    hits_pred: list[Tensor]
    total_pred: list[Tensor]
    hits_target: list[Tensor]
    total_target: list[Tensor]

    def __init__(
        self,
        num_classes: int,
        radius: int = 2,
        matching: str = "dataset",
        tolerances: Mapping[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if matching not in ("dataset", "image"):
            raise ValueError(f"matching must be 'dataset' or 'image', got {matching!r}")
        self.num_classes = num_classes
        self.radius = radius
        self.matching = matching
        self.tolerances = dict(tolerances or {})
        for k, distance in self.tolerances.items():
            if not 0 <= k < num_classes or distance < 0:
                raise ValueError(
                    f"class {k} has a tolerance of {distance} pixels; classes are 0..{num_classes - 1} and a tolerance "
                    "is 0 or more"
                )
        for name in _STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, labels: Tensor, target: Tensor) -> None:
        """Counts a batch.

        Args:
            labels: int [B, H, W], predicted classes in 0..K-1.
            target: int [B, H, W] in 0..K-1, 255 = ignore.

        Raises:
            ValueError: as ``confusion`` and ``boundary_counts`` say.
        """
        labels = labels.to(target.device)
        self.counts.append(confusion(labels, target, self.num_classes))
        small = target.masked_fill(~small_regions(target), IGNORE)
        self.small.append(confusion(labels, small, self.num_classes))
        for name, value in boundary_counts(labels, target, self.num_classes, self.radius)._asdict().items():
            getattr(self, name).append(value)
        for name, value in tolerant_counts(labels, target, self.tolerances)._asdict().items():
            getattr(self, f"thin_{name}").append(value)

    def compute(self) -> dict[str, Tensor]:
        """The scores of the data set, float64 scalars in [0, 1]."""
        counted = self._counted()
        matched = _scores(counted.matched(self.mapping()).total())
        return {**_scores(counted.total()), **self._tolerant(counted.total()), **_prefixed("matched/", matched)}

    def per_image(self) -> dict[str, list[float]]:
        """The same scores for every image, in the order of updates; means are over the classes of that image.

        Among several processes it holds the images of all of them, one process after the other; call it on all.
        """
        with self.sync_context():
            counted = self._counted()
            matching = self.mapping()
        matched = _prefixed("matched/", _scores(counted.matched(matching)))
        scores = {**_scores(counted), **self._tolerant(counted), **matched}
        return {name: value.tolist() for name, value in scores.items()}

    def mapping(self) -> Tensor:
        """The matching of all images counted here: int64 [K], or [N, K] for ``matching="image"``.

        Predicted class j means target class ``mapping()[j]``; see ``best_matching``.
        """
        counts = self._counted().counts
        if self.matching == "dataset":
            return best_matching(counts.sum(0))
        return torch.stack([best_matching(image) for image in counts])

    def _counted(self) -> _Counted:
        if isinstance(self.counts, list) and not self.counts:
            raise ValueError("no image was scored yet; call update(labels, target) before asking for scores")
        # on the CPU, since some devices have no float64 and the matching is found there anyway
        counts, small, *rest = (dim_zero_cat(getattr(self, name)).cpu() for name in _STATES)
        return _Counted(counts, small, BoundaryCounts(*rest[:4]), TolerantCounts(*rest[4:]))

    def _tolerant(self, counted: _Counted) -> dict[str, Tensor]:
        if not self.tolerances:
            return {}
        f1 = tolerant_f1(counted.thin)  # [..., T]
        scores = {"f1": f1, "precision": tolerant_precision(counted.thin), "recall": tolerant_recall(counted.thin)}
        return {
            "tolerant_f1/mean": f1.nanmean(-1),
            **{
                f"tolerant_{name}/class_{k}": value
                for name, values in scores.items()
                for k, value in zip(self.tolerances, values.unbind(-1), strict=True)
            },
        }


_STATES = ("counts", "small", *BoundaryCounts._fields, *(f"thin_{name}" for name in TolerantCounts._fields))
"""Counts that a score keeps of every image."""


class _Counted(NamedTuple):
    """All counts of images [N, ...], or of a data set, their sums.

    Attributes:
        counts: int64 [..., K, K].
        small: the same of the pixels in small regions.
        edges: of borders.
        thin: of classes with a tolerance.
    """

    counts: Tensor
    small: Tensor
    edges: BoundaryCounts
    thin: TolerantCounts

    def total(self) -> _Counted:
        edges = BoundaryCounts(*(value.sum(0) for value in self.edges))
        thin = TolerantCounts(*(value.sum(0) for value in self.thin))
        return _Counted(self.counts.sum(0), self.small.sum(0), edges, thin)

    def matched(self, matching: Tensor) -> _Counted:
        """The counts with predicted classes renamed; those of thin classes stay as they are."""
        edges = self.edges._replace(
            hits_pred=apply_matching(self.edges.hits_pred, matching),
            total_pred=apply_matching(self.edges.total_pred.unsqueeze(-2), matching).squeeze(-2),
            hits_target=apply_matching(self.edges.hits_target, matching),
        )
        counts, small = apply_matching(self.counts, matching), apply_matching(self.small, matching)
        return self._replace(counts=counts, small=small, edges=edges)


def _scores(counted: _Counted) -> dict[str, Tensor]:
    per_class = iou(counted.counts)  # [..., K]
    return {
        "iou/mean": per_class.nanmean(-1),
        "dice/mean": dice(counted.counts).nanmean(-1),
        "accuracy/pixel": pixel_accuracy(counted.counts),
        "accuracy/mean": mean_accuracy(counted.counts),
        "boundary_f1/mean": boundary_f1(counted.edges).nanmean(-1),
        "small_regions/recall": pixel_accuracy(counted.small),
        **{f"iou/class_{k}": value for k, value in enumerate(per_class.unbind(-1))},
        **{f"accuracy/class_{k}": value for k, value in enumerate(recall(counted.counts).unbind(-1))},
    }


def _prefixed(prefix: str, scores: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in scores.items()}
