from __future__ import annotations

import pytest
import torch
from torch import Tensor

from geoseg.predictors.kmeans_regions import KMeansRegions, PixelFeatures, PlaceFeatures
from geoseg.randomness import stream
from geoseg.types import Told

COLOURS = torch.tensor([[0.1, 0.2, 0.9], [0.8, 0.1, 0.1], [0.2, 0.9, 0.3]])
REGIONS = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1], [0, 0, 2, 2, 2, 1], [0, 0, 2, 2, 1, 1]])


def picture(noise: float = 0.05) -> Tensor:
    """[1, 3, 4, 6], three colours."""
    clean = COLOURS[REGIONS].permute(2, 0, 1)[None]
    return clean + noise * torch.rand(clean.shape, generator=torch.Generator().manual_seed(0))


def pixels(clusters: int | None) -> KMeansRegions:
    return KMeansRegions(3, PixelFeatures, clusters)


def generators(count: int = 1, seed: int = 0) -> list[torch.Generator]:
    return [stream(seed, "test", i) for i in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_three_colours_are_three_regions(seed: int) -> None:
    prediction = pixels(3).predict(picture(), generators(seed=seed))
    assert prediction.regions is not None
    assert torch.equal(prediction.regions[0], REGIONS)


def test_it_is_told_the_number_of_classes() -> None:
    told = pixels(None)
    assert isinstance(told, Told)
    target = torch.stack([REGIONS, REGIONS.clamp(max=1), torch.full_like(REGIONS, 255)])
    target[1][target[1] == 1] = 255  # of what is ignored nothing is told
    knowing = told.told(target)
    regions = knowing.predict(picture().expand(3, -1, -1, -1), generators(3)).regions
    assert regions is not None
    assert [len(one.unique()) for one in regions] == [3, 1, 1]
    with pytest.raises(ValueError, match="only an evaluation knows"):
        told.predict(picture(), generators())
    constant = pixels(2)
    assert constant.told(target) is constant


def test_a_picture_with_fewer_colours_than_clusters() -> None:
    flat = picture(noise=0.0)
    regions = pixels(6).predict(flat, generators()).regions
    assert regions is not None
    assert torch.equal(regions[0], REGIONS)


def test_an_image_gives_the_same_in_any_batch() -> None:
    images = torch.rand(3, 1, 9, 7, generator=torch.Generator().manual_seed(0))
    together = pixels(4).predict(images, generators(3)).labels
    alone = [pixels(4).predict(images[i : i + 1], generators(3)[i : i + 1]).labels[0] for i in range(3)]
    assert torch.equal(together, torch.stack(alone))


def test_places_know_nothing_of_the_picture() -> None:
    image = torch.rand(2, 3, 6, 12, generator=torch.Generator().manual_seed(0))
    places = PlaceFeatures()(image)
    assert [one[4, 7].tolist() for one in places] == [[4, 7]] * 2
    found = KMeansRegions(3, PlaceFeatures, 2).predict(image, [stream(0, "test", 0) for _ in range(2)]).regions
    assert found is not None and torch.equal(found[0], found[1])
    assert (found[0] == found[0, 0]).all() and found[0, 0].bincount().tolist() == [6, 6]  # halves of the longer side
    depths = KMeansRegions(3, lambda model: PlaceFeatures(model, axes=[0]), 2).predict(image, generators(2)).regions
    assert depths is not None and (depths == depths[..., :1]).all() and len(depths.unique()) == 2
    with pytest.raises(ValueError, match=r"axes=\[2\]: 0 \(row\), 1 \(column\) or both"):
        PlaceFeatures(axes=[2])


@pytest.mark.parametrize("options", [{"clusters": 0}, {"starts": 0}])
def test_options_that_cannot_be(options: dict) -> None:
    with pytest.raises(ValueError, match="wanted clusters >= 1 or null, and starts >= 1"):
        KMeansRegions(3, PixelFeatures, **options)
