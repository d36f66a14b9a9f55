from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from scipy.stats import entropy
from torch import Tensor, nn

from geoseg.predictors.attention_regions import AttentionRegions, anchor_rows, divergence, merged
from geoseg.predictors.regions import as_prediction, by_size, enlarged_winners
from geoseg.types import Predictor


class HandMade(nn.Module):
    """Attention whose answer is known: every place looks at its own region alone, but for a share everywhere."""

    def __init__(self, regions: Tensor, everywhere: float = 0.1) -> None:
        super().__init__()
        same = (regions.flatten()[:, None] == regions.flatten()[None]).float()
        own = same / same.sum(1, keepdim=True)
        self.maps = ((1 - everywhere) * own + everywhere / len(same)).view(*regions.shape, -1)

    def forward(self, image: Tensor) -> Iterator[Tensor]:
        yield from [self.maps] * len(image)


def predictor(regions: Tensor, **options) -> AttentionRegions:
    return AttentionRegions(None, 3, lambda model: HandMade(regions), **options)  # type: ignore[arg-type]


QUARTERS = torch.zeros(8, 8, dtype=torch.int64)
QUARTERS[:4, 5:], QUARTERS[4:, :3], QUARTERS[4:, 3:] = 1, 2, 3
"""20, 12, 12 and 20 places."""


def found(one: Predictor, size: tuple[int, int] = (8, 8)) -> Tensor:
    prediction = one.predict(torch.zeros(1, 1, *size), [])
    assert prediction.regions is not None
    assert torch.equal(prediction.labels, prediction.regions.clamp(max=2))
    return prediction.regions[0]


def test_regions_of_hand_made_attention_are_found() -> None:
    regions = found(predictor(QUARTERS, threshold=0.5))
    assert regions.unique().tolist() == [0, 1, 2, 3]
    same = regions.flatten()[:, None] == regions.flatten()[None]
    assert torch.equal(same, QUARTERS.flatten()[:, None] == QUARTERS.flatten()[None])
    assert [int((regions == k).sum()) for k in range(4)] == [20, 20, 12, 12]


def test_the_threshold_decides_what_is_one() -> None:
    maps = HandMade(QUARTERS).maps.flatten(0, 1)
    far = divergence(maps, maps)
    least, most = far[far > 1e-4].min().item(), far.max().item()
    assert len(found(predictor(QUARTERS, threshold=0.99 * least)).unique()) == 4
    assert len(found(predictor(QUARTERS, threshold=1.01 * most)).unique()) == 1


def test_divergence_is_that_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(3, 50, generator=generator).pow(4)
    second = torch.rand(4, 50, generator=generator)
    first, second = first / first.sum(1, keepdim=True), second / second.sum(1, keepdim=True)
    expected = [[(entropy(a, b) + entropy(b, a)) / 2 for b in second.double()] for a in first.double()]
    torch.testing.assert_close(divergence(first, second), torch.tensor(expected).float(), atol=1e-5, rtol=1e-5)
    assert divergence(first, first).diagonal().max() < 1e-5
    apart = divergence(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert apart.isfinite().all() and apart > 20


def test_merging_is_greedy_and_averages() -> None:
    # on a line of three, the middle one is near to both ends, which are far from each other
    line = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.4, 0.6], [0.05, 0.95]])
    far = divergence(line, line)
    threshold = (float(far[0, 1]) + float(far[0, 2])) / 2
    surroundings = merged(line, line, threshold, rounds=1)
    torch.testing.assert_close(surroundings[0], line[:2].mean(0))
    torch.testing.assert_close(surroundings[1], line[:3].mean(0))
    twice = merged(line, line, threshold, rounds=2)
    torch.testing.assert_close(twice, torch.stack([surroundings[:3].mean(0), line[3]]))
    # the first takes in what is near to it, and what is left goes on without that
    apart = torch.tensor([[0.6, 0.4], [0.3, 0.7]])
    assert len(merged(apart, apart, 1e-6, rounds=3)) == 2


def test_anchors_stand_evenly() -> None:
    assert anchor_rows(64, 16) == list(range(1, 64, 4))  # the published grid
    assert anchor_rows(16, 16) == list(range(16))
    assert anchor_rows(12, 16) == list(range(12))
    assert anchor_rows(5, 1) == [2]


def test_the_strongest_map_wins_and_many_are_no_different() -> None:
    maps = torch.rand(40, 4, 5, generator=torch.Generator().manual_seed(0))
    large = nn.functional.interpolate(maps[None], (9, 11), mode="bilinear")[0]
    assert torch.equal(enlarged_winners(maps, (9, 11)), large.argmax(0))


def test_regions_are_numbered_by_size() -> None:
    regions = torch.tensor([[[4, 4, 9], [9, 9, 2]], [[0, 0, 0], [0, 0, 0]]])
    assert by_size(regions).tolist() == [[[1, 1, 0], [0, 0, 2]], [[0, 0, 0], [0, 0, 0]]]
    prediction = as_prediction(regions, 2)
    assert prediction.labels.tolist() == [[[1, 1, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]]]
    assert prediction.regions is not None and prediction.regions.max() == 2


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"anchors": 0}, {"rounds": 0}])
def test_options_that_cannot_be(options: dict) -> None:
    with pytest.raises(ValueError, match="wanted threshold above 0, anchors >= 1 and rounds >= 1"):
        predictor(QUARTERS, **options)
