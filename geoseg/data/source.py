"""What a data set must be able to say; everything else is done once, for all of them, by the data module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from geoseg.types import Sample


class Source(Protocol):
    """A readable collection of labelled pictures.

    Attributes:
        title: what tables call the data set.
        names: sample ids, all different, in a fixed order.
        num_classes: K.
        class_names: K names.
        unit: what an independent unit is, such as "section" or "image"; intervals resample these.

    A source may also have ``repeats(name) -> int``, how often an epoch meets a sample; without it that is once. And
    ``block(name) -> str``, the independent unit that a sample is part of, such as the section or the spatial block that
    it was cut from; without it every sample is a unit of its own. Where ``continuous`` is true, targets are no class
    indices but say how much of a pixel is of the second of two classes, see ``geoseg.types.Sample``. One whose samples
    are pieces has ``whole(name)``, the picture that a piece was cut from.

    Where ``per_image`` is true, a sample has one class as a whole: its target is an array without axes. Such a source
    has ``label(name) -> int``, that class without reading the picture, and ``words(class_index) -> str``, the caption
    of a class, which its samples carry.
    """

    title: str
    names: list[str]
    num_classes: int
    class_names: list[str]
    unit: str

    def read(self, name: str) -> Sample:
        """Reads one sample; pure, so that any worker may read any sample at any time."""
        ...

    def shape(self, name: str) -> tuple[int, int]:
        """H and W of one sample, without reading its pixels where that can be had."""
        ...

    def split(self, name: str) -> str | None:
        """Says "train", "val" or "test" where the data set prescribes it, else None."""
        ...

    def check(self, names: Sequence[str]) -> None:
        """Looks at every named sample before any work starts.

        Raises:
            ValueError: lists the first ten offenders, each with what is wrong.
        """
        ...

    def fingerprint(self, names: Sequence[str]) -> str:
        """A hex digest that changes when the content of the named samples does."""
        ...
