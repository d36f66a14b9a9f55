"""The words that all parts share."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from geoseg.types import IGNORE, Prediction, Sample


def test_labels_are_the_most_probable_classes() -> None:
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]).view(2, 3, 1, 1)
    labels = Prediction(probs).labels
    assert labels.tolist() == [[[1]], [[0]]]
    assert labels.dtype == torch.int64


def test_whole_images_may_be_labelled_too() -> None:
    assert Prediction(torch.tensor([[0.1, 0.9]])).labels.tolist() == [1]


def test_replacing_a_field_makes_a_new_prediction() -> None:
    first = Prediction(torch.ones(1, 2, 1, 1) / 2, facts={"n": torch.ones(1)})
    second = first.with_(uncertainty=torch.zeros(1, 1, 1))
    assert first.uncertainty is None
    assert second.uncertainty is not None
    assert second.probs is first.probs
    assert second.facts is first.facts
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.probs = torch.zeros(1)  # type: ignore[misc]


def test_predictions_do_not_share_their_defaults() -> None:
    first, second = Prediction(torch.zeros(1, 2)), Prediction(torch.zeros(1, 2))
    first.stages["drawn"] = torch.zeros(1)
    assert second.stages == {}


def test_a_sample_needs_no_caption() -> None:
    assert Sample(image=None, target=None).caption == ""  # type: ignore[arg-type]
    assert IGNORE == 255
