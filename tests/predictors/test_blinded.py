"""The method sees a mean and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from geoseg.palette import Palette
from geoseg.predictors.blinded import Blinded
from geoseg.predictors.unchanged import InputAsIs
from geoseg.types import Prediction


class Recorder(InputAsIs):
    def predict(self, image: Tensor, generator: Sequence[Generator]) -> Prediction:
        self.seen, self.keys = image, generator
        return super().predict(image, generator)


def test_only_the_mean_of_every_channel_is_shown() -> None:
    inner = Recorder(Palette(["#000000", "#FFFFFF"]))
    image = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    keys = [torch.Generator(), torch.Generator()]
    blinded = Blinded(inner)
    answer = blinded.predict(image, keys)
    assert blinded.num_classes == 2
    assert inner.seen.shape == image.shape
    assert torch.allclose(inner.seen.mean((2, 3)), image.mean((2, 3)))
    assert inner.seen.flatten(2).std(2).max() < 1e-6
    assert inner.keys is keys
    shuffled = image.flatten(2)[..., torch.randperm(48)].view_as(image)
    assert torch.allclose(blinded.predict(shuffled, keys).probs, answer.probs, atol=1e-5)
