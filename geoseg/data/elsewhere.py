"""Learning from one data set and being judged on another, such as synthetic ground and real profiles."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from geoseg.data.source import Source
from geoseg.types import Sample


class Elsewhere:
    """Training and validation samples of one source, test samples of another.

    Of ``train``, samples that it prescribes as its test set are left out; those that it puts nowhere are for training.
    Of ``test``, what it prescribes as its test set counts, or all of it where it prescribes none.

    Args:
        train: what is learnt from; its names for the classes count.
        test: what is scored.

    Raises:
        ValueError: the sources differ in the number of classes or in the kind of target, or share the name of a sample.
    """

    def __init__(self, train: Source, test: Source) -> None:
        if train.num_classes != test.num_classes:
            raise ValueError(
                f"{train.title} has {train.num_classes} classes ({', '.join(train.class_names)}) and {test.title} has "
                f"{test.num_classes} ({', '.join(test.class_names)}); a method knows those it has learnt: "
                "choose another kind, or set num_classes of the test set where some do not occur in it"
            )
        self.train, self.test = train, test
        learnt = [name for name in train.names if train.split(name) != "test"]
        scored = [name for name in test.names if test.split(name) == "test"] or list(test.names)
        self.continuous = bool(getattr(train, "continuous", False))
        if self.continuous != getattr(test, "continuous", False):
            mattes, maps = (train, test) if self.continuous else (test, train)
            raise ValueError(
                f"{mattes.title} has mattes and {maps.title} has classes; what is learnt and scored must be of one "
                "kind, see data.source.test.continuous"
            )
        both = sorted(set(learnt) & set(scored))
        if both:
            raise ValueError(f"both sources have a sample called {both[0]}; rename the files of the test set")
        self._scored = set(scored)
        self.title = f"{train.title}, tested on {test.title}"
        self.names = [*learnt, *scored]
        self.num_classes, self.class_names, self.unit = train.num_classes, train.class_names, test.unit

    def read(self, name: str) -> Sample:
        """Reads one sample where it lies."""
        return self._of(name).read(name)

    def shape(self, name: str) -> tuple[int, int]:
        """H and W of one sample."""
        return self._of(name).shape(name)

    def split(self, name: str) -> str:
        """Says "train", "val" or "test"."""
        return "test" if name in self._scored else self.train.split(name) or "train"

    def block(self, name: str) -> str:
        """The independent unit that a sample is part of."""
        block = getattr(self._of(name), "block", None)
        return name if block is None else str(block(name))

    def check(self, names: Sequence[str]) -> None:
        """Looks at every named sample."""
        for source, some in self._parted(names):
            source.check(some)

    def fingerprint(self, names: Sequence[str]) -> str:
        """A hex digest of the content of the named samples."""
        found = [source.fingerprint(some) for source, some in self._parted(names)]
        return hashlib.sha256(";".join(found).encode()).hexdigest()

    def _of(self, name: str) -> Source:
        return self.test if name in self._scored else self.train

    def _parted(self, names: Sequence[str]) -> list[tuple[Source, list[str]]]:
        parts = [(source, [name for name in names if self._of(name) is source]) for source in (self.train, self.test)]
        return [(source, some) for source, some in parts if some]
