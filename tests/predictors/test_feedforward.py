"""One pass of a network, and the control that does nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from geoseg.palette import Palette
from geoseg.predictors.feedforward import Feedforward
from geoseg.predictors.unchanged import InputAsIs
from geoseg.randomness import stream


class Flat(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3)).repeat(1, 3)


def test_probabilities_are_the_softmax_of_the_logits() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(1, 3, 3, padding=1)
    image = torch.rand(2, 1, 6, 5)
    prediction = Feedforward(model, 3).predict(image, [stream(0, i) for i in range(2)])
    logits = model(image).detach()
    torch.testing.assert_close(prediction.probs, logits.exp() / logits.exp().sum(1, keepdim=True))
    assert prediction.probs.is_inference()


def test_the_network_runs_in_evaluation_mode_and_is_left_as_it_was() -> None:
    frozen = nn.BatchNorm2d(3).eval()
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Dropout(0.5), nn.BatchNorm2d(3), frozen).train()
    frozen.eval()
    predictor = Feedforward(model, 3)
    image = torch.rand(1, 1, 8, 8)
    first, second = (predictor.predict(image, [stream(0)]).probs for _ in range(2))
    assert torch.equal(first, second)
    assert model.training
    assert model[1].training
    assert not frozen.training
    assert model[2].running_mean.abs().sum() == 0, "the statistics moved"


def test_half_precision_logits_give_exact_probabilities() -> None:
    model = nn.Conv2d(1, 5, 1).bfloat16()
    probs = Feedforward(model, 5).predict(torch.rand(1, 1, 4, 4).bfloat16(), [stream(0)]).probs
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(1), torch.ones(1, 4, 4))


def test_whole_images_need_no_pixels() -> None:
    assert Feedforward(Flat(), 3).predict(torch.rand(2, 1, 4, 4), []).labels.shape == (2,)


def test_wrong_logits_are_named() -> None:
    with pytest.raises(ValueError, match="one num_classes"):
        Feedforward(nn.Conv2d(1, 3, 1), 4).predict(torch.rand(1, 1, 4, 4), [stream(0)])
    with pytest.raises(ValueError, match="resize its logits"):
        Feedforward(nn.Conv2d(1, 3, 3), 3).predict(torch.rand(1, 1, 4, 4), [stream(0)])


def test_the_control_reads_the_picture_it_was_given() -> None:
    palette = Palette(["#000000", "#FFFFFF", "#FF0000"])
    target = torch.tensor([[[0, 1, 2], [2, 2, 0]]])
    control = InputAsIs(palette)
    assert control.num_classes == 3
    prediction = control.predict(palette.paint(target), [stream(0)])
    assert torch.equal(prediction.labels, target)
    assert prediction.painted is not None
    assert torch.equal(prediction.painted, palette.paint(target))
    assert prediction.stages == {}


def test_the_control_takes_grey_for_colour() -> None:
    grey = torch.tensor([[[[0.0, 0.9]]]])
    prediction = InputAsIs(Palette(["#000000", "#FFFFFF"])).predict(grey, [stream(0)])
    assert prediction.painted is not None
    assert prediction.painted.shape == (1, 3, 1, 2)
    assert prediction.labels.tolist() == [[[0, 1]]]
    with pytest.raises(ValueError, match="picture must be"):
        InputAsIs(Palette(["#000000", "#FFFFFF"])).predict(torch.zeros(1, 2, 4, 4), [stream(0)])
