"""The words every part of geoseg speaks: a batch goes in, a prediction comes out.

Letters in all docstrings: B batch, C channel, K class, H W pixels, h w latent or patch grid, N tokens.
``space`` is (H, W) where pixels are labelled and () where whole images are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
import torch
from torch import Tensor

IGNORE = 255
"""Class index of pixels that no loss and no score looks at."""


class Sample(NamedTuple):
    """One labelled picture as a source reads it, before it becomes part of a batch.

    Attributes:
        image: uint8 [H, W] (grey) or [H, W, 3] (colour).
        target: uint8 [*space], class indices, 255 = ignore; for a corpus of pictures, their regions. Where a source is
            ``continuous``, float32 [H, W] in [0, 1], how much of a pixel is of the second of two classes, nan = ignore.
        caption: words that describe the picture, "" when nobody wrote any.
    """

    image: np.ndarray
    target: np.ndarray
    caption: str = ""


class Batch(TypedDict):
    """What data yields.

    Attributes:
        image: float32 [B, C, H, W] in [0, 1]; every model applies its own normalisation.
        target: int64 [B, *space], 255 = ignore; of a ``continuous`` source float32 in [0, 1], nan = ignore.
        name: sample ids, length B.
        index: int64 [B], position of each sample in its split, the key of its randomness.
        caption: words, length B; only corpora carry them.
    """

    image: Tensor
    target: Tensor
    name: list[str]
    index: Tensor
    caption: NotRequired[list[str]]


@dataclass(frozen=True)
class Prediction:
    """What every method says about a batch.

    Attributes:
        probs: float [B, K, *space], class probabilities that sum to 1 over K; of continuous targets the shares that the
            two classes have in a pixel.
        uncertainty: [B, *space] or None; larger is less sure.
        painted: [B, 3, H, W] in [0, 1] or None: the picture a generative method drew.
        stages: named pictures [B, 3, H, W] in [0, 1] in the order they were drawn; the last one is the answer.
        members: [B, M, K, *space] or None: class probabilities of every member of an ensemble, whose mean is
            ``probs``.
        facts: named numbers [B] worth keeping beside the scores, such as how many masks were found.
        regions: int64 [B, *space] or None: what a method finds that knows no classes, numbered image by image from 0
            on, the largest region first, as many as there are; ``probs`` then hold the first K - 1 of them as classes
            and the others together as the last one.
    """

    probs: Tensor
    uncertainty: Tensor | None = None
    painted: Tensor | None = None
    stages: dict[str, Tensor] = field(default_factory=dict)
    members: Tensor | None = None
    facts: dict[str, Tensor] = field(default_factory=dict)
    regions: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        """The most probable class of every pixel, int64 [B, *space]."""
        return self.probs.argmax(dim=1)

    @property
    def values(self) -> Tensor:
        """What is said of a continuous target: the share of the second of two classes, float [B, *space] in [0, 1]."""
        return self.probs[:, 1]

    def with_(self, **changes: Any) -> Prediction:
        """The same prediction with some fields replaced."""
        return replace(self, **changes)


def ignored(target: Tensor) -> Tensor:
    """Which pixels of a target no loss and no score looks at, bool of its shape.

    >>> ignored(torch.tensor([1, 255])).tolist(), ignored(torch.tensor([1.0, float("nan")])).tolist()
    ([False, True], [False, True])
    """
    return target.isnan() if target.is_floating_point() else target == IGNORE


def classes_of(target: Tensor) -> Tensor:
    """Class indices int64, 255 = ignore; of a continuous target the class that more than half of a pixel is of.

    >>> classes_of(torch.tensor([0.2, 0.5, 0.7, float("nan")])).tolist()
    [0, 0, 1, 255]
    """
    return (target > 0.5).long().masked_fill(target.isnan(), IGNORE) if target.is_floating_point() else target


class Predictor(Protocol):
    """What every method becomes once it is trained.

    A predictor is also a ``torch.nn.Module`` where it holds weights, so that a Trainer moves it.
    """

    num_classes: int

    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        """Labels a batch.

        Args:
            image: float [B, C, H, W] in [0, 1].
            generator: one per image, on the CPU, the only source of randomness; an image gives the same
                answer in any batch.
        """
        ...


@runtime_checkable
class Told(Protocol):
    """A control that is told something of the truth, to see what it would be worth to know it.

    Only an evaluation can tell it, image by image; a prediction without truth does without such a method.
    """

    def told(self, target: Tensor) -> Predictor:
        """The predictor for one batch, which knows what it may of ``target``, int64 [B, *space]."""
        ...
