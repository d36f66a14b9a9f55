"""K-means on features, on bare pixels or on places, picture by picture: what attention segmentation has to beat."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq
from torch import Tensor, nn
from torch.nn.functional import one_hot

from geoseg import progress
from geoseg.predictors.regions import as_prediction, enlarged_winners
from geoseg.types import IGNORE, Prediction, classes_of

ROUNDS = 50
"""Of K-means, which has come to rest long before on such data."""


class PixelFeatures(nn.Module):
    """Colours as features, in the form of ``AttentionMaps``.

    Args:
        model: not used; there is none.
    """

    def __init__(self, model: None = None) -> None:
        super().__init__()

    def forward(self, image: Tensor) -> Iterable[Tensor]:
        """float [H, W, C] for every picture of a batch [B, C, H, W]."""
        return image.float().permute(0, 2, 3, 1)


class PlaceFeatures(nn.Module):
    """Where a pixel lies and nothing else, in the form of ``AttentionMaps``: how far nearness alone carries.

    Args:
        model: not used; there is none.
        axes: which of row, 0, and column, 1; [0] is depth alone, which divides a picture into level layers.

    Raises:
        ValueError: other axes.
    """

    def __init__(self, model: None = None, axes: Sequence[int] = (0, 1)) -> None:
        super().__init__()
        if sorted(axes) not in ([0], [1], [0, 1]):
            raise ValueError(f"axes={list(axes)}: 0 (row), 1 (column) or both are wanted")
        self.axes = list(axes)

    def forward(self, image: Tensor) -> Iterable[Tensor]:
        """float [H, W, axes], in pixels, for every picture of a batch [B, C, H, W]."""
        rows, columns = (torch.arange(n, device=image.device, dtype=torch.float32) for n in image.shape[2:])
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)[..., self.axes]
        return places.expand(len(image), -1, -1, -1)


class KMeansRegions(nn.Module):
    """Divides each picture's places into clusters of like features (Lloyd's algorithm, started by k-means++).

    Args:
        num_classes: K of the data, which decides nothing but what ``probs`` look like.
        features: makes, of the model, what gives the features [h, w, D] of every picture of a batch.
        clusters: how many; None is told by the evaluation how many classes a picture truly has, a control.
        starts: of which the one with the least squared distance to the centres counts.
        model: what the features are made of, or None.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        num_classes: int,
        features: Callable[[Any], Callable[[Tensor], Iterable[Tensor]]],
        clusters: int | None = 6,
        starts: int = 3,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if (clusters is not None and clusters < 1) or starts < 1:
            raise ValueError(f"wanted clusters >= 1 or null, and starts >= 1, got clusters={clusters}, starts={starts}")
        self.num_classes, self.clusters, self.starts = num_classes, clusters, starts
        self.features = features(model)
        self._truth: list[int] | None = None

    def told(self, target: Tensor) -> KMeansRegions:
        """Itself, or where ``clusters`` is None a copy that knows how many classes each picture has."""
        if self.clusters is not None:
            return self
        knowing = copy.copy(self)
        classes = classes_of(target)
        knowing._truth = [max(1, len(one[one != IGNORE].unique())) for one in classes]
        return knowing

    @torch.inference_mode()
    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        """Divides a batch.

        Args:
            image: float [B, 1 or 3, H, W] in [0, 1].
            generator: one per image, on the CPU; decides the first centres.

        Returns:
            ``regions`` and the ``probs`` made of them, see ``Prediction``.

        Raises:
            ValueError: the number of clusters is to be told, and nobody has told it.
        """
        counts = [self.clusters] * len(image) if self.clusters is not None else self._truth
        if counts is None or len(counts) != len(image):
            raise ValueError(
                "method.predictor.clusters=null takes the true number of classes of each picture, which only an "
                "evaluation knows; give a number"
            )
        found = []
        for features, count, draws in zip(self.features(image), counts, generator, strict=True):
            labels = self._divided(features.flatten(0, 1).double().cpu().numpy(), count, draws)
            clusters = torch.from_numpy(labels).long().view(features.shape[:2]).to(image.device)
            shares = one_hot(clusters).permute(2, 0, 1).float()  # enlarged as proposals of attention are
            found.append(enlarged_winners(shares, (image.shape[2], image.shape[3])))
            progress.advance("prediction")
        return as_prediction(torch.stack(found), self.num_classes)

    def _divided(self, points: np.ndarray, count: int, generator: torch.Generator) -> np.ndarray:
        """The cluster of each point, int [N]."""
        if len(np.unique(points[:, 0])) < count:  # asked first, since all columns at once are slow
            count = min(count, len(np.unique(points, axis=0)))
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        best: tuple[float, np.ndarray] | None = None
        for _ in range(self.starts):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="One of the clusters is empty")
                centres, _ = kmeans2(points, count, iter=ROUNDS, minit="++", rng=rng)
            labels, distance = vq(points, centres)
            spread = float((distance**2).sum())
            if best is None or spread < best[0]:
                best = spread, labels
        assert best is not None
        return best[1]
