"""Photographs cut to squares of one side, as unsupervised segmentation is published on them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from geoseg.data.pictures import read_label, read_profile, size
from geoseg.data.profiles import listed, natural
from geoseg.types import IGNORE, Sample


class Squares(ABC):
    """Pairs of a photograph and a label map, whose middle square is cut out and scaled.

    Args:
        title: what tables call the data set.
        files: picture and label map of every sample, by its name.
        splits: "train", "val" or "test" of every sample.
        class_names: what the classes are called.
        side: of the squares, pixels; published: 512.

    Raises:
        ValueError: the side is none, or there are no samples.
    """

    unit = "image"

    def __init__(
        self,
        title: str,
        files: dict[str, tuple[Path, Path]],
        splits: dict[str, str],
        class_names: Sequence[str],
        side: int,
    ) -> None:
        if side < 1:
            raise ValueError(f"data.source.side={side}: a number of pixels is wanted; published: 512")
        self.title, self.side = title, side
        self._files, self._splits = files, splits
        self.names = sorted(files)
        self.class_names = list(class_names)
        self.num_classes = len(self.class_names)

    @property
    @abstractmethod
    def table(self) -> np.ndarray:
        """uint8 [256]: the class of every value of a label file, 255 = ignore."""

    def read(self, name: str) -> Sample:
        """Reads one pair; image uint8 [side, side] or [side, side, 3], target uint8 [side, side]."""
        picture, label = self._files[name]
        image = Image.fromarray(_middle(read_profile(picture))).resize((self.side,) * 2, Image.Resampling.BILINEAR)
        target = Image.fromarray(_middle(read_label(label))).resize((self.side,) * 2, Image.Resampling.NEAREST)
        return Sample(np.asarray(image), self.table[np.asarray(target)])

    def shape(self, name: str) -> tuple[int, int]:
        """The same for all samples."""
        return self.side, self.side

    def split(self, name: str) -> str | None:
        """That of its folder."""
        return self._splits[name]

    def check(self, names: Sequence[str]) -> None:
        """Reads every header: readable, and of one size with its label map.

        Raises:
            ValueError: lists the first ten offenders.
        """
        wrong = []
        for name in sorted(names, key=natural):
            picture, label = self._files[name]
            try:
                if not label.is_file():
                    wrong.append(f"{picture.name}: there is no label map {label}")
                elif (here := size(picture)) != (there := size(label)):
                    wrong.append(
                        f"{picture.name}: {list(here)} pixels, but its label map {label.name} has {list(there)}"
                    )
            except ValueError as error:
                wrong.append(str(error))
        if wrong:
            raise ValueError(listed(f"{len(wrong)} of the samples of {self.title} cannot be used", wrong))

    def fingerprint(self, names: Sequence[str]) -> str:
        """Hash of names, file contents, side and what label values mean."""
        digest = hashlib.sha256(repr((self.side, self.table.tolist())).encode())
        for name in names:
            digest.update(name.encode())
            for path in self._files[name]:
                digest.update(path.read_bytes())
        return digest.hexdigest()


def _middle(array: np.ndarray) -> np.ndarray:
    high, wide = array.shape[:2]
    side = min(high, wide)
    top, left = (high - side) // 2, (wide - side) // 2
    return array[top : top + side, left : left + side]


def mapped(classes: dict[int, int]) -> np.ndarray:
    """A table uint8 [256] from label values to classes; what is not named is ignored."""
    table = np.full(256, IGNORE, np.uint8)
    table[list(classes)] = list(classes.values())
    return table
