"""Pictures of one class each, drawn from a seed: data for tests of what looks at whole pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from geoseg.randomness import numpy_stream
from geoseg.types import Sample


class Land:
    """``count`` coarse random pictures, classes in turn, each class with a colour of its own.

    Args:
        size: side, pixels.
        count: of pictures.
        template: of their captions.
    """

    title, unit, per_image = "land", "image", True

    def __init__(self, size: int = 16, count: int = 6, template: str = "tile {}") -> None:
        self.size, self.template = size, template
        self.class_names, self.num_classes = ["sea", "dry bed", "map"], 3
        self.names = [f"{self.class_names[i % 3]}/{i}" for i in range(count)]

    def words(self, class_index: int) -> str:
        return self.template.replace("{}", self.class_names[class_index])

    def label(self, name: str) -> int:
        return self.class_names.index(name.partition("/")[0])

    def read(self, name: str) -> Sample:
        label = self.label(name)
        coarse = numpy_stream(0, "land", name).integers(0, 256, (self.size // 2, self.size // 2, 3))
        picture = np.repeat(np.repeat(coarse, 2, 0), 2, 1) // 2 + np.eye(3, dtype=int)[label] * 100
        return Sample(picture.astype(np.uint8), np.array(label, np.uint8), self.words(label))

    def shape(self, name: str) -> tuple[int, int]:
        return self.size, self.size

    def split(self, name: str) -> str | None:
        return None

    def check(self, names: Sequence[str]) -> None:
        """Nothing can be wrong."""

    def fingerprint(self, names: Sequence[str]) -> str:
        return hashlib.sha256(b"".join(name.encode() + self.read(name).image.tobytes() for name in names)).hexdigest()
