"""Pictures without labels, from one domain alone: what an encoder is pretrained on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from geoseg.data.earth import crater_field, das_record, section
from geoseg.data.scenes import scene
from geoseg.data.synthetic import Drawn
from geoseg.randomness import numpy_stream
from geoseg.types import Sample


def _ground(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A picture of the synthetic earth, without what is known about it: mostly sections, some craters and records."""
    share = rng.random()
    if share < 0.6:
        return section(rng, size).image
    return crater_field(rng, size)[0] if share < 0.8 else das_record(rng, size)[0]


DOMAINS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "scenes": scene,
    "earth": _ground,
}
"""What is drawn: "scenes" know nothing of the ground, "earth" are profiles such as those of ``SyntheticEarth``."""


class Unlabelled(Drawn):
    """Drawn pictures of one domain, twice as wide as high; their targets are empty.

    They come from random streams of their own, so that no picture is one of ``SyntheticEarth``'s or of ``Corpus``'s,
    whatever the seeds.

    Args:
        count: how many pictures to learn from.
        domain: key of ``DOMAINS``.
        size: height, pixels.
        seed: another seed gives other pictures.
        val: how many pictures to watch the training with.
    """

    def __init__(self, count: int, domain: str = "scenes", size: int = 128, seed: int = 0, val: int = 64) -> None:
        if domain not in DOMAINS:
            raise ValueError(f"domain {domain!r} is not drawn; choose one of {', '.join(DOMAINS)}")
        self.domain = domain
        super().__init__(f"unlabelled {domain}", {"train": count, "val": val}, 6, size, seed, "image", ())

    def read(self, name: str) -> Sample:
        """Draws one picture: image uint8 [size, 2 size] or [size, 2 size, 3], target uint8 [size, 2 size], zero."""
        rng = numpy_stream(self.seed, "unlabelled", self.domain, *self.where(name))
        image = DOMAINS[self.domain](rng, self.shape(name))
        return Sample(image, np.zeros(self.shape(name), dtype=np.uint8))

    def shape(self, name: str) -> tuple[int, int]:
        """H and W, the same for all samples."""
        return self.size, 2 * self.size

    def parameters(self) -> tuple[str | int, ...]:
        """Domain, size and seed; how many there are changes no picture."""
        return self.domain, self.size, self.seed
