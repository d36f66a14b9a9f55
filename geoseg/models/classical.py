"""Segmentation from before networks: thresholds, edges, clusters and contours, in the form of a network.

A rule sorts the pixels of one grey picture into so many groups, whose numbers mean the same in every picture: low ones
are dark, or smooth where a rule looks at texture. No rule knows where in a picture a pixel lies. What class a group is,
``Grouping`` is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from scipy import ndimage
from skimage.feature import canny, peak_local_max
from skimage.filters import sobel
from skimage.segmentation import morphological_chan_vese, watershed
from torch import Tensor, nn

from geoseg.models.thresholds import otsu

LEVELS = 256
"""Levels of a histogram."""


class Rule(Protocol):
    """How pixels are sorted into groups; a dataclass, whose fields can be tuned."""

    def __call__(self, grey: np.ndarray, count: int) -> np.ndarray:
        """Sorts the pixels of a picture.

        Args:
            grey: float64 [H, W] in [0, 1].
            count: groups, K.

        Returns:
            int [H, W] in 0..K-1; groups may be empty.
        """
        ...


class Grouping(nn.Module):
    """Labels pictures by a rule, and a class for each of its groups.

    Args:
        rule: sorts pixels into K groups.
        num_classes: K.

    Attributes:
        names: the class of every group, a permutation of 0..K-1; the order of the groups themselves until it is told.
    """

    def __init__(self, rule: Rule, num_classes: int) -> None:
        super().__init__()
        self.rule, self.num_classes = rule, num_classes
        self.names: Sequence[int] = range(num_classes)

    def groups(self, image: Tensor, rule: Rule | None = None) -> Tensor:
        """The groups of the pixels of one picture.

        Args:
            image: float [C, H, W] in [0, 1]; the mean of its channels is what rules see.
            rule: another one than its own.

        Returns:
            int64 [H, W] in 0..K-1, on the CPU.
        """
        grey = image.detach().cpu().double().mean(0).numpy()
        return torch.from_numpy((rule or self.rule)(grey, self.num_classes).astype(np.int64))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of a batch.

        Args:
            image: float [B, C, H, W] in [0, 1].

        Returns:
            float32 [B, K, H, W]: 0 for the class of the pixel's group and minus infinity for all others, so that their
            softmax is 1 and 0.
        """
        names = torch.as_tensor(list(self.names))
        labels = torch.stack([names[self.groups(one)] for one in image])
        logits = torch.full((len(image), self.num_classes, *image.shape[2:]), -torch.inf)
        return logits.scatter_(1, labels[:, None], 0.0).to(image.device)


@dataclass(frozen=True)
class Thresholds:
    """Cuts the histogram of the whole picture.

    Attributes:
        cuts: finds the cuts from a histogram and a number of groups, see ``geoseg.models.thresholds``.
        sigma: of the Gaussian window that the picture is seen through, pixels; 0 takes single pixels.
        texture: cut the standard deviation in that window instead of the mean.
    """

    cuts: Callable[[np.ndarray, int], list[int]]
    sigma: float = 2.0
    texture: bool = False

    def __post_init__(self) -> None:
        _check_view(self.sigma, self.texture)

    def __call__(self, grey: np.ndarray, count: int) -> np.ndarray:
        return _cut(view(grey, self.sigma, self.texture), count, self.cuts)


@dataclass(frozen=True)
class AdaptiveThresholds:
    """Cuts the histogram of every zone of the picture, and blends the cuts from zone to zone (Chow and Kaneko 1972).

    A zone that holds little of what the picture holds (its levels deviate less than a third as much, or are fewer than
    the groups) takes the cuts of the whole picture: its own would divide noise. Cuts are Otsu's.

    Attributes:
        zones: per side of the picture, 1 or more.
        sigma: see ``Thresholds``.
        texture: see ``Thresholds``.
    """

    zones: int = 4
    sigma: float = 2.0
    texture: bool = False

    def __post_init__(self) -> None:
        _check_view(self.sigma, self.texture)
        if self.zones < 1:
            raise ValueError(f"zones must be 1 or more, got {self.zones}")

    def __call__(self, grey: np.ndarray, count: int) -> np.ndarray:
        levels = _levels(view(grey, self.sigma, self.texture))
        rows, columns = (np.array_split(np.arange(size), min(self.zones, size)) for size in levels.shape)
        whole = otsu(_histogram(levels), count)
        cuts = np.empty((len(rows), len(columns), count - 1), dtype=np.float32)
        for i, down in enumerate(rows):
            for j, across in enumerate(columns):
                zone = levels[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
                poor = zone.std() < levels.std() / 3 or len(np.unique(zone)) < count
                cuts[i, j] = whole if poor else otsu(_histogram(zone), count)
        height, width = levels.shape
        groups = np.zeros(levels.shape, dtype=np.int64)
        for k in range(count - 1):  # between the zones' middles, and from there to the border as in the zone
            groups += levels >= cv2.resize(cuts[..., k], (width, height), interpolation=cv2.INTER_LINEAR)
        return groups


@dataclass(frozen=True)
class CannyWatershed:
    """Floods the picture from the places farthest from Canny's edges (Canny 1986); regions of one grey are one group.

    Edges are ridges of the gradient: those in the steepest fifth of all pixels that hang on one in the steepest tenth.

    Attributes:
        sigma: of the Gaussian window in which edges and texture are looked for, pixels.
        spacing: least distance of two sources of the flood, pixels.
        texture: group regions by their texture instead of their grey.
    """

    sigma: float = 2.0
    spacing: int = 4
    texture: bool = False

    def __post_init__(self) -> None:
        _check_view(self.sigma, self.texture)
        _check_spacing(self.spacing)

    def __call__(self, grey: np.ndarray, count: int) -> np.ndarray:
        edges = canny(grey, sigma=self.sigma, low_threshold=0.8, high_threshold=0.9, use_quantiles=True, mode="nearest")
        # without any edge there is no distance to one
        distance = ndimage.distance_transform_edt(~edges) if edges.any() else np.zeros(grey.shape)
        return _group_regions(_flooded(-distance, self.spacing), view(grey, self.sigma, self.texture), count)


@dataclass(frozen=True)
class SobelWatershed:
    """Floods Sobel's gradient from its lowest places; regions of one grey are one group.

    Attributes:
        sigma: of the Gaussian window that the gradient is taken of, pixels.
        spacing: least distance of two sources of the flood, pixels.
        texture: group regions by their texture instead of their grey.
    """

    sigma: float = 2.0
    spacing: int = 4
    texture: bool = False

    def __post_init__(self) -> None:
        _check_view(self.sigma, self.texture)
        _check_spacing(self.spacing)

    def __call__(self, grey: np.ndarray, count: int) -> np.ndarray:
        gradient = sobel(view(grey, self.sigma), mode="nearest")
        return _group_regions(_flooded(gradient, self.spacing), view(grey, self.sigma, self.texture), count)


@dataclass(frozen=True)
class KMeans:
    """Clusters pixels by grey and texture; begins with equal shares of the greys, so that nothing is drawn.

    Attributes:
        sigma: of the Gaussian window in which mean and standard deviation are taken, pixels; above 0.
        texture: how much the standard deviation counts beside the mean, 0 or more. Clusters are in the order of their
            standard deviations where these count, else of their greys.
    """

    sigma: float = 2.0
    texture: float = 0.0

    def __post_init__(self) -> None:
        _check_view(self.sigma, True)
        if self.texture < 0:
            raise ValueError(f"texture must be 0 or more, got {self.texture}")

    def __call__(self, grey: np.ndarray, count: int) -> np.ndarray:
        features = [view(grey, self.sigma)]
        if self.texture:
            features.append(self.texture * view(grey, self.sigma, texture=True))
        points = np.stack([feature.ravel() for feature in features], axis=1).astype(np.float32)  # [H * W, 1 or 2]
        ranks = points[:, 0].argsort(kind="stable").argsort(kind="stable")
        start = (ranks * count // len(ranks)).astype(np.int32)
        few = len(np.unique(points[:, 0])) < count  # asked first, since all columns at once are slow
        if few and len(np.unique(points, axis=0)) < count:  # nothing that so many clusters could be told apart by
            return _cut(features[-1].clip(0, 1), count, otsu)
        stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 100, 1e-4)
        _, found, centres = cv2.kmeans(points, count, start[:, None], stop, 1, cv2.KMEANS_USE_INITIAL_LABELS)
        ranked = centres[:, -1].argsort(kind="stable").argsort()
        groups: np.ndarray = ranked[found[:, 0]].reshape(grey.shape)
        return groups


@dataclass(frozen=True)
class MeanShift:
    """Moves every pixel to the densest grey around it (Comaniciu and Meer 2002), then cuts these greys by Otsu's rule.

    Attributes:
        space: radius of the window in the picture, pixels, 1 or more.
        range: radius of the window in grey, in [0, 1].
        sigma: of the Gaussian window of the texture, pixels.
        texture: shift the standard deviation in that window instead of the grey.
    """

    space: int = 8
    range: float = 0.1
    sigma: float = 2.0
    texture: bool = False

    def __post_init__(self) -> None:
        _check_view(self.sigma, self.texture)
        if self.space < 1 or not 0 < self.range <= 1:
            raise ValueError(f"wanted space >= 1 and 0 < range <= 1, got space={self.space}, range={self.range}")

    def __call__(self, grey: np.ndarray, count: int) -> np.ndarray:
        levels = _levels(view(grey, self.sigma, texture=True) if self.texture else grey)
        # three equal channels are sqrt(3) times as far apart as one
        radius = 3**0.5 * (LEVELS - 1) * self.range
        moved = cv2.pyrMeanShiftFiltering(np.repeat(levels[..., None], 3, axis=2), self.space, radius, maxLevel=0)
        return _cut(moved[..., 0] / (LEVELS - 1), count, otsu)


@dataclass(frozen=True)
class ActiveContours:
    """Moves a contour between each group and the next until it divides their greys best (Chan and Vese 2001).

    Contours begin where Otsu's cuts are. Each looks at the greys between the means of its two groups alone and moves as
    in Marquez-Neila et al. (2014); a pixel's group is the number of contours around it.

    Attributes:
        iterations: steps of every contour.
        smoothing: rounds of smoothing per step, 0 or more; the more, the rounder.
        sigma: see ``Thresholds``.
        texture: see ``Thresholds``.
    """

    iterations: int = 20
    smoothing: int = 1
    sigma: float = 2.0
    texture: bool = False

    def __post_init__(self) -> None:
        _check_view(self.sigma, self.texture)
        if self.iterations < 1 or self.smoothing < 0:
            raise ValueError(
                f"wanted iterations >= 1 and smoothing >= 0, got {self.iterations} and smoothing={self.smoothing}"
            )

    def __call__(self, grey: np.ndarray, count: int) -> np.ndarray:
        seen = view(grey, self.sigma, self.texture)
        start = _cut(seen, count, otsu)
        if min(seen.shape) < 2:  # a line of pixels has no contours
            return start
        there = np.unique(start)  # no contour begins beside an empty group
        means = [seen[start == k].mean() for k in there]
        groups = np.full(seen.shape, there[0])
        for k in range(1, len(there)):
            between = seen.clip(means[k - 1], means[k])
            inside = morphological_chan_vese(
                between, self.iterations, init_level_set=(start >= there[k]).astype(np.int8), smoothing=self.smoothing
            )
            groups += (there[k] - there[k - 1]) * inside.astype(np.int64)
        return groups


def view(grey: np.ndarray, sigma: float, texture: bool = False) -> np.ndarray:
    """What is seen of a picture through a Gaussian window.

    Args:
        grey: float64 [H, W] in [0, 1].
        sigma: of the window, pixels; 0 shows single pixels.
        texture: the standard deviation in the window instead of the mean.

    Returns:
        float64 [H, W] in [0, 1]: the mean, or twice the standard deviation, which is 0.5 at most.
    """
    mean = ndimage.gaussian_filter(grey, sigma, mode="nearest") if sigma else grey
    if not texture:
        return mean
    squares = ndimage.gaussian_filter(grey**2, sigma, mode="nearest")
    spread: np.ndarray = 2 * np.sqrt(np.maximum(squares - mean**2, 0))
    return spread


def _check_view(sigma: float, texture: bool) -> None:
    if sigma < 0 or (texture and not sigma):
        raise ValueError(f"sigma must be 0 or more, and above 0 where texture is looked at; got {sigma}")


def _check_spacing(spacing: int) -> None:
    if spacing < 1:
        raise ValueError(f"spacing must be 1 or more, got {spacing}")


def _levels(picture: np.ndarray) -> np.ndarray:
    """A picture in [0, 1] as uint8 [H, W]."""
    levels: np.ndarray = np.rint((LEVELS - 1) * picture.clip(0, 1)).astype(np.uint8)
    return levels


def _histogram(levels: np.ndarray) -> np.ndarray:
    return np.bincount(levels.ravel(), minlength=LEVELS)


def _cut(picture: np.ndarray, count: int, cuts: Callable[[np.ndarray, int], list[int]]) -> np.ndarray:
    """Groups of a picture's levels, int64 [H, W]."""
    levels = _levels(picture)
    return np.searchsorted(np.asarray(cuts(_histogram(levels), count), dtype=np.int64), levels, side="right")


def _flooded(height: np.ndarray, spacing: int) -> np.ndarray:
    """Regions that a flood of this landscape [H, W] makes from its lowest places, int [H, W]; one where it is flat."""
    sources = peak_local_max(-height, min_distance=spacing, exclude_border=False) if np.ptp(height) else []
    markers = np.zeros(height.shape, dtype=np.int32)
    for number, place in enumerate(sources, start=1):
        markers[tuple(place)] = number
    regions: Any = watershed(height, markers) if markers.any() else np.ones(height.shape, dtype=np.int32)
    return np.asarray(regions)


def _group_regions(regions: np.ndarray, picture: np.ndarray, count: int) -> np.ndarray:
    """Groups of regions by their means, cut by Otsu's rule, each region by its pixels; int64 [H, W]."""
    sums = np.bincount(regions.ravel(), picture.ravel())
    means = sums / np.maximum(np.bincount(regions.ravel()), 1)
    return _cut(means[regions], count, otsu)
