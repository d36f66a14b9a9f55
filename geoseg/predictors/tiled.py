"""Pictures larger than a predictor was made for, by overlapping tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geoseg import progress
from geoseg.crops import pad_to, starts, window
from geoseg.palette import Palette
from geoseg.types import Prediction, Predictor


class Tiled(nn.Module):
    """Predicts square tiles and blends them, so that no seam shows.

    Tiles are spread evenly, the last one ending at the border, and overlap by at least ``overlap``. A smooth window
    weighs every tile less towards its sides; weights are divided out, so what is the same in all tiles stays exact. A
    picture smaller than a tile is enlarged by mirroring it, and the answer is cropped. A picture of exactly one tile is
    passed on as it is.

    Args:
        predictor: labels pixels; sees pictures [B, C, tile, tile] only.
        tile: side of a tile in pixels.
        overlap: smallest share of its side that a tile has in common with the next, 0 <= overlap < 1.
        batch: tiles per call of the predictor, from one picture or several.
        palette: reads the class probabilities from the blended picture, where the predictor paints one, so that they
            belong to what is shown; None blends the probabilities of the tiles.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        predictor: Predictor,
        tile: int,
        overlap: float = 0.25,
        batch: int = 16,
        palette: Palette | None = None,
    ) -> None:
        super().__init__()
        if tile < 1 or batch < 1 or not 0 <= overlap < 1:
            raise ValueError(
                f"wanted tile >= 1, batch >= 1 and 0 <= overlap < 1, got tile={tile}, batch={batch}, overlap={overlap}"
            )
        self.predictor = predictor
        self.tile = tile
        self.overlap = overlap
        self.batch = batch
        self.palette = palette
        self.num_classes = predictor.num_classes

    @torch.no_grad()
    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        """Labels a batch.

        Args:
            image: float [B, C, H, W] in [0, 1], of any size.
            generator: one per image. An image of several tiles draws one seed per tile from it.

        Returns:
            The blended prediction: ``probs``, ``uncertainty``, ``members``, ``painted`` and all stages; ``facts`` are
            means over the tiles of an image. An uncertainty is that of the tiles and not of blended members, which
            differ less where tiles overlap, since two draws are averaged there.

        Raises:
            ValueError: not one generator per image, or the predictor does not label the pixels of its tiles, or finds
                regions in them, which have no names to be joined by.
        """
        count, _, height, width = image.shape
        if len(generator) != count:
            raise ValueError(f"wanted one generator per image, got {len(generator)} for {count} images")
        if (height, width) == (self.tile, self.tile):
            return self.predictor.predict(image, generator)

        image = pad_to(image, self.tile, self.tile)
        places = [
            (y, x)
            for y in starts(image.shape[2], self.tile, self.overlap)
            for x in starts(image.shape[3], self.tile, self.overlap)
        ]
        seeds = [_seeds(one, len(places)) for one in generator]
        jobs = [(i, t) for i in range(count) for t in range(len(places))]
        blend = _Blend(count, image.shape[2], image.shape[3], self.tile, places)
        for start in range(0, len(jobs), self.batch):
            chunk = jobs[start : start + self.batch]
            crops = torch.stack([self._crop(image[i], *places[t]) for i, t in chunk])
            with progress.scale(1 / len(places)):
                prediction = self.predictor.predict(crops, [seeds[i][t] for i, t in chunk])
            if prediction.regions is not None:
                raise ValueError(
                    f"a method that finds regions numbers them anew in every tile, so tiles of {self.tile} pixels "
                    "cannot be joined; leave tile away"
                )
            blend.add(chunk, prediction)
        found = blend.result(height, width)
        if self.palette is None or found.painted is None:
            return found
        return found.with_(probs=self.palette.decode(found.painted))

    def _crop(self, image: Tensor, y: int, x: int) -> Tensor:
        return image[:, y : y + self.tile, x : x + self.tile]


class _Blend:
    """Weighted means over tiles, filled as predictions arrive."""

    def __init__(self, count: int, height: int, width: int, tile: int, places: list[tuple[int, int]]) -> None:
        self.size = (count, height, width)
        self.tile = tile
        self.places = places
        own, weight = window(tile, tile), torch.zeros(height, width, dtype=torch.float64)
        for y, x in places:
            weight[y : y + tile, x : x + tile] += own
        # what each tile contributes to its pixels; the shares of a pixel sum to 1
        self.shares = [(own / weight[y : y + tile, x : x + tile]).float() for y, x in places]
        self.maps: dict[tuple[str, str], Tensor] = {}  # (field, name) -> [B, ..., H, W]
        self.facts: dict[str, Tensor] = {}  # name -> [B]

    def add(self, jobs: list[tuple[int, int]], prediction: Prediction) -> None:
        tiles = {("probs", ""): prediction.probs}
        if prediction.uncertainty is not None:
            tiles["uncertainty", ""] = prediction.uncertainty
        if prediction.painted is not None:
            tiles["painted", ""] = prediction.painted
        if prediction.members is not None:
            tiles["members", ""] = prediction.members
        tiles |= {("stage", name): stage for name, stage in prediction.stages.items()}

        count, height, width = self.size
        for key, value in tiles.items():
            if value.shape[0] != len(jobs) or value.shape[-2:] != (self.tile, self.tile):
                raise ValueError(
                    f"the predictor answered {len(jobs)} tiles of {self.tile} x {self.tile} pixels with "
                    f"{key[1] or key[0]} {list(value.shape)}; only predictors that label pixels can be tiled"
                )
            if key not in self.maps:
                self.maps[key] = torch.zeros(count, *value.shape[1:-2], height, width, device=value.device)
            for (i, t), tile in zip(jobs, value.float(), strict=True):
                y, x = self.places[t]
                share = self.shares[t].to(value.device)
                self.maps[key][i, ..., y : y + self.tile, x : x + self.tile] += tile * share
        for name, numbers in prediction.facts.items():
            if name not in self.facts:
                self.facts[name] = torch.zeros(count, dtype=torch.float64)
            for (i, _), number in zip(jobs, numbers.tolist(), strict=True):
                self.facts[name][i] += number / len(self.places)

    def result(self, height: int, width: int) -> Prediction:
        done = {}
        for key, total in self.maps.items():
            done[key] = total[..., :height, :width].contiguous()
        probs = done["probs", ""]
        painted = done.get(("painted", ""))
        return Prediction(
            probs=probs / probs.sum(dim=1, keepdim=True),
            uncertainty=done.get(("uncertainty", "")),
            members=done.get(("members", "")),
            # a mean of pictures in [0, 1] may leave it by one rounding
            painted=None if painted is None else painted.clamp(0, 1),
            stages={name: stage.clamp(0, 1) for (field, name), stage in done.items() if field == "stage"},
            facts={name: numbers.float() for name, numbers in self.facts.items()},
        )


def _seeds(generator: torch.Generator, count: int) -> list[torch.Generator]:
    if count == 1:
        return [generator]
    drawn = torch.randint(2**63 - 1, (count,), generator=generator)
    return [torch.Generator().manual_seed(seed) for seed in drawn.tolist()]
