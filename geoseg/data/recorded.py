"""What data sets of recorded numbers share: parts that are prescribed, amplitudes, and label maps of any type."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from geoseg.data.amplitudes import Amplitudes
from geoseg.data.copies import Copies
from geoseg.data.profiles import HARDLY, SHOWN, listed
from geoseg.types import Sample

log = logging.getLogger("geoseg")

PARTS = ("train", "val", "test")

MEASURED = 64
"""Sections, spread evenly over the training part, that the scale of a survey is measured on."""

SMALLEST_FLOAT = 0x00800000
"""The bits of the smallest normal 32-bit float; floats from 1 on, read as integers, are far larger."""


class Values(NamedTuple):
    """One sample as it is stored.

    Attributes:
        image: numbers [H, W] of any type.
        label: numbers [H, W] of any type.
    """

    image: np.ndarray
    label: np.ndarray


class Recorded(ABC):
    """Numbered pairs of amplitudes and label maps, whose splits are prescribed part by part.

    A sample is called after its part and number, such as ``train_17``.

    Args:
        title: what tables call the data set.
        parts: "train", "val" and "test" to where the part's files lie, as the class below says, and ``indices``: its
            first and last number, null: all. A part that is null does not exist.
        class_names: K names, in the order of the label values.
        label_offset: label value of the first class, 0 or 1 as a rule.
        amplitudes: the rule from amplitudes to greys.
        leave_out: samples that are not used, such as copies.
        unit: what an independent unit is.

    Raises:
        ValueError: names the setting that does not fit what is there.
    """

    def __init__(
        self,
        title: str,
        parts: Mapping[str, Mapping[str, Any] | None],
        class_names: Sequence[str],
        label_offset: int,
        amplitudes: Amplitudes,
        leave_out: Sequence[str],
        unit: str,
    ) -> None:
        self.title, self.unit = title, unit
        self.class_names, self.num_classes = list(class_names), len(class_names)
        if self.num_classes < 2:
            raise ValueError(f"data.source.class_names={self.class_names}: two names or more are wanted, one per class")
        self._offset, self._amplitudes = label_offset, amplitudes
        self._scale: float | None = None
        self._told = False
        if unknown := parts.keys() - set(PARTS):
            raise ValueError(f"data.source.parts has {sorted(unknown)}; its parts are {', '.join(PARTS)}")
        self._places: dict[str, Hashable] = {}
        self._splits: dict[str, str] = {}
        for split in PARTS:
            self._add(split, parts.get(split))
        if unknown := set(leave_out) - self._places.keys():
            raise ValueError(f"data.source.leave_out names {sorted(unknown)[:SHOWN]}, which the data set does not have")
        self.names = [name for name in self._places if name not in set(leave_out)]

    @abstractmethod
    def _find(self, split: str, part: Mapping[str, Any]) -> Mapping[int, Hashable]:
        """Where the samples of a part lie, by number."""

    @abstractmethod
    def _stored(self, place: Hashable) -> Values:
        """One sample as it is stored; what is wrong with it is a ValueError."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, int]:
        """H and W of one sample."""

    def read(self, name: str) -> Sample:
        """Reads one sample; image uint8 [H, W], target uint8 [H, W]."""
        stored = self._stored(self._places[name])
        return Sample(self._greys(stored.image), self._classes(stored.label))

    def split(self, name: str) -> str | None:
        """The part that a sample is in."""
        return self._splits[name]

    def check(self, names: Sequence[str]) -> None:
        """Reads every sample: of the stated size, labels inside the classes, no picture in two parts.

        Raises:
            ValueError: lists the first ten offenders, or says that the amplitudes do not fit their rule.
        """
        wrong: list[str] = []
        copies = Copies(self.split)
        darkest, brightest, least, most = 255, 0, np.inf, -np.inf
        for name in names:
            try:
                stored = self._stored(self._places[name])
                numbers = stored.image[np.isfinite(stored.image)]
                if not numbers.size:
                    raise ValueError("no pixel of the image is a number")
                self._classes(stored.label)
                greys = self._greys(stored.image)
            except ValueError as error:
                wrong.append(f"{name}: {error}")
                continue
            darkest, brightest = min(darkest, int(greys.min())), max(brightest, int(greys.max()))
            least, most = min(least, float(numbers.min())), max(most, float(numbers.max()))
            if (other := copies.of(name, stored.image)) is not None:
                wrong.append(
                    f"{name}: the same picture as {other}; a copy would leak between the splits, so leave one out: "
                    f"data.source.leave_out=[{name}]"
                )
        if wrong:
            raise ValueError(listed(f"{len(wrong)} of the samples of {self.title} cannot be used", wrong))
        if self._amplitudes.grey_range is not None and least < most and brightest - darkest < 256 / HARDLY:
            raise ValueError(
                f"data.source.amplitudes.grey_range={list(self._amplitudes.grey_range)} leaves all of {self.title} "
                f"nearly flat: the amplitudes are {least:.10g} to {most:.10g}; give those that are black and white, or "
                "null to have the scale measured"
            )

    def fingerprint(self, names: Sequence[str]) -> str:
        """Hash of names, stored numbers and what they mean."""
        digest = hashlib.sha256(repr((self._offset, self.num_classes, sorted(vars(self._amplitudes).items()))).encode())
        if self._amplitudes.measured:
            digest.update(repr(self._limit()).encode())
        for name in names:
            digest.update(name.encode())
            for values in self._stored(self._places[name]):
                digest.update(repr((values.shape, values.dtype.str)).encode() + values.tobytes())
        return digest.hexdigest()

    def _add(self, split: str, part: Mapping[str, Any] | None) -> None:
        """Takes the samples of a part in."""
        if part is None:
            return
        found = self._find(split, part)
        indices = part.get("indices")
        first, last = (min(found), max(found)) if indices is None else _span(split, indices)
        option = f"data.source.parts.{split}.indices"
        if missing := [i for i in range(first, last + 1) if i not in found]:
            shown = ", ".join(map(str, missing[:SHOWN])) + ", ..." * (len(missing) > SHOWN)
            raise ValueError(
                f"{split} has no sample {shown}, {len(missing)} of the numbers from {first} to {last}; there are "
                f"{len(found)} from {min(found)} to {max(found)}: fetch what is missing, or set {option}=[first,last]"
            )
        taken = {place: name for name, place in self._places.items()}
        for i in range(first, last + 1):
            if (other := taken.get(found[i])) is not None:
                raise ValueError(f"{option}: sample {i} is {other} as well; parts must not share samples")
            self._places[f"{split}_{i}"], self._splits[f"{split}_{i}"] = found[i], split

    def _limit(self) -> float | None:
        """The amplitude that becomes white where it is measured: on training sections alone, whoever asks."""
        if self._scale is None and self._amplitudes.measured:
            pool = [name for name in self.names if self._splits[name] == "train"] or self.names
            chosen = pool[:: -(-len(pool) // MEASURED)]
            self._scale = self._amplitudes.limit(self._stored(self._places[name]).image for name in chosen)
        return self._scale

    def _greys(self, image: np.ndarray) -> np.ndarray:
        return self._amplitudes.greys(image, self._limit())

    def _classes(self, label: np.ndarray) -> np.ndarray:
        """Stored label values as class indices, uint8 [H, W]."""
        values = label
        if (floats := as_floats(label)) is not None:
            values = floats
            if not self._told:
                self._told = True
                log.warning(
                    "%s: label maps hold floats that were written as integers (%d is 1.0); they are read as floats",
                    self.title,
                    np.float32(1).view(np.int32),
                )
        found = np.unique(values)
        strange = [value for value in found if not 0 <= value - self._offset < self.num_classes or value % 1]
        if strange:
            shown = ", ".join(f"{value:.10g}" for value in strange[:SHOWN]) + ", ..." * (len(strange) > SHOWN)
            raise ValueError(
                f"label values {shown} are none of the {self.num_classes} classes from {self._offset} to "
                f"{self._offset + self.num_classes - 1}; set data.source.label_offset to the value of the first class, "
                "or data.source.class_names to one name per class"
            )
        return (values - self._offset).astype(np.uint8)


def as_floats(label: np.ndarray) -> np.ndarray | None:
    """Label values that are 32-bit floats whose bits were read as integers, as floats; None for all others.

    >>> as_floats(np.array([0, 1065353216, 1073741824], np.int32)).tolist()
    [0.0, 1.0, 2.0]
    """
    if label.dtype.kind not in "iu" or label.dtype.itemsize != 4 or label.size == 0 or label.max() < SMALLEST_FLOAT:
        return None
    floats = np.ascontiguousarray(label).view(np.float32)
    whole = np.isfinite(floats).all() and (floats % 1 == 0).all() and floats.min() >= 0 and floats.max() < 256
    return floats if whole else None


def _span(split: str, indices: Any) -> tuple[int, int]:
    numbers = list(indices) if isinstance(indices, Sequence) and not isinstance(indices, str) else []
    if len(numbers) != 2 or not all(isinstance(i, int) for i in numbers) or not 0 <= numbers[0] <= numbers[1]:
        raise ValueError(
            f"data.source.parts.{split}.indices={indices}: the first and the last number are wanted, such as [0,99]"
        )
    return numbers[0], numbers[1]
