from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from geoseg.predictors.ensemble import Ensemble
from geoseg.randomness import stream
from geoseg.types import Prediction


class Dice(nn.Module):
    """Random probabilities, and how large each batch was."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        self.sizes.append(len(image))
        drawn = torch.stack([torch.randn(3, *image.shape[2:], generator=one) for one in generator])
        return Prediction((drawn + image[:, :1]).softmax(1), painted=image, facts={"mean": image.mean((1, 2, 3))})


def predicted(count: int, members: int, first: int = 0) -> tuple[Prediction, Dice]:
    dice = Dice()
    image = torch.rand(4, 1, 6, 5, generator=torch.Generator().manual_seed(0))[first : first + count]
    generators = [stream(0, "predict", str(first + i)) for i in range(count)]
    return Ensemble(dice, members).predict(image, generators), dice


def test_members_are_one_batch_and_the_mean_is_the_answer() -> None:
    found, dice = predicted(2, 5)
    assert dice.sizes == [10] and found.members is not None and found.uncertainty is not None
    assert found.members.shape == (2, 5, 3, 6, 5)
    assert not torch.equal(found.members[:, 0], found.members[:, 1])
    torch.testing.assert_close(found.probs, found.members.mean(1))
    torch.testing.assert_close(found.probs.sum(1), torch.ones(2, 6, 5))
    wanted = ((found.members - found.probs[:, None]) ** 2).mean(1).sum(1)
    torch.testing.assert_close(found.uncertainty, wanted)
    assert found.painted is None and found.facts["mean"].shape == (2,)


def test_members_depend_on_neither_the_batch_nor_their_number() -> None:
    many, _ = predicted(4, 6)
    few, _ = predicted(1, 2, first=2)
    assert many.members is not None and few.members is not None
    torch.testing.assert_close(many.members[2, :2], few.members[0])
    assert float(predicted(1, 1)[0].uncertainty.max()) == 0


def test_what_cannot_work_is_told() -> None:
    with pytest.raises(ValueError, match="members must be 1 or more, got 0"):
        Ensemble(Dice(), 0)
    with pytest.raises(ValueError, match="one generator per image, got 1 for 2 images"):
        Ensemble(Dice(), 2).predict(torch.rand(2, 1, 4, 4), [stream(0, "a")])
