"""Profiles and label maps that lie as pictures in two folders: the data set most users have."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from geoseg.data.copies import Copies
from geoseg.data.pictures import grey_values, read_label, read_profile, size
from geoseg.types import IGNORE, Sample

log = logging.getLogger("geoseg")

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
SHOWN = 10

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What people call the splits, in folders and files."""

HARDLY = 8
"""Profiles whose values span less than this part of ``grey_range`` get 32 of 256 greys or fewer."""


class ProfileFolder:
    """Pairs ``<root>/<images>/<stem>.png`` with ``<root>/<labels>/<stem>.png``.

    Where both lie in folders train, val and test below root, these are the splits, and a sample is called after folder
    and stem, such as ``train_line1``.

    Images are grey or colour, 8 bit, or grey of more bits with ``grey_range``. Label maps hold one value per pixel:
    class indices 0..K-1 with 255 = ignore, or the values listed in ``label_values``.

    Args:
        root: the folder that holds both.
        images: name of the folder with profiles.
        labels: name of the folder with label maps.
        num_classes: K; None takes the largest label found plus one, where every smaller one occurs too.
        class_names: K names; None numbers them.
        label_values: pixel value of each class in order, such as [0, 255] for a mask; None: values are indices.
        grey_range: values of profiles with more than 8 bits that become black and white, such as [0, 65535]; None
            refuses such profiles.
        unit: what an independent unit is.
        continuous: label maps are mattes, 8-bit grey: 0 is nothing of the second of two classes, 255 all of it; none is
            ignored.
        split_file: a text file in root, or anywhere, with a line ``name,split`` for every profile, where the split is
            train, val or test; profiles that it does not name are left out. None leaves the choice to the data module.

    Raises:
        ValueError: folders or pairs are missing, or the split file does not fit; the first ten offenders are listed.
    """

    def __init__(
        self,
        root: str,
        images: str = "images",
        labels: str = "labels",
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        label_values: Sequence[int] | None = None,
        grey_range: Sequence[float] | None = None,
        unit: str = "section",
        split_file: str | None = None,
        continuous: bool = False,
    ) -> None:
        if continuous and (label_values is not None or num_classes not in (None, 2)):
            raise ValueError(
                "data.source.continuous=true takes label maps for mattes between two classes; leave "
                "data.source.label_values and data.source.num_classes away"
            )
        self.continuous = continuous
        self.unit = unit
        self._splits: dict[str, str] = {}
        if grey_range is not None:
            numbers = [value for value in grey_range if isinstance(value, int | float) and np.isfinite(value)]
            if len(grey_range) != 2 or len(set(numbers)) != 2:
                raise ValueError(f"data.source.grey_range={list(grey_range)}: two different numbers are wanted")
        self._grey_range = grey_range
        self._shapes: dict[str, tuple[int, int]] = {}
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise ValueError(f"data.root={root} is no folder; give the one that holds '{images}' and '{labels}'")
        self.title = self.root.resolve().name
        self._images = self._pictures(images, "data.source.images")
        self._labels = self._pictures(labels, "data.source.labels")
        self.names = sorted(self._images.keys() & self._labels.keys())
        self._values = None if label_values is None else list(label_values)
        if continuous:
            self.num_classes = 2
        elif self._values is not None:
            self.num_classes = len(self._values)
        elif num_classes is not None:
            self.num_classes = num_classes
        else:
            self.num_classes = self._count_classes()
        self._check_pairs()
        if split_file is not None:
            self._read_splits(split_file)
        if self.num_classes < 2:
            raise ValueError(
                f"the label maps in {self.root / labels} hold one class only (255 counts as ignore); two or more are "
                "needed. For masks of 0 and 255 set data.source.label_values=[0,255]"
            )
        self.class_names = list(class_names) if class_names else [f"class {k}" for k in range(self.num_classes)]
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"data.source.class_names has {len(self.class_names)} names for {self.num_classes} classes"
            )

    def read(self, name: str) -> Sample:
        """Reads one pair; image uint8 [H, W] or [H, W, 3], target uint8 [H, W], or float32 of a matte."""
        image = read_profile(self._images[name], self._grey_range)
        return Sample(image, self._indices(read_label(self._labels[name])))

    def shape(self, name: str) -> tuple[int, int]:
        """H and W as a viewer shows the picture; kept, since not every header tells how it was held."""
        if name not in self._shapes:
            self._shapes[name] = size(self._images[name])
        return self._shapes[name]

    def split(self, name: str) -> str | None:
        """That of its folder or of the split file; None: the split is chosen by the data module."""
        return self._splits.get(name)

    def check(self, names: Sequence[str]) -> None:
        """Reads every pair: readable, of one size, labels inside the classes, no picture twice.

        Raises:
            ValueError: lists the first ten offenders.
        """
        wrong = self._faults(names)
        if wrong:
            headline = f"{len(wrong)} of the samples in {self.root} cannot be used"
            raise ValueError(listed(headline + self._rule_wanted(names), wrong))
        self._check_grey_range(names)

    def _check_pairs(self) -> None:
        """Whoever has to mend file names hears at once what else is wrong."""
        alone = [
            f"{self._images[stem].name}: no label map; draw one, or move the profile away"
            for stem in sorted(self._images.keys() - self._labels, key=natural)
        ]
        without = sorted(self._labels.keys() - self._images, key=natural)
        alone += [f"{self._labels[stem].name}: no profile" for stem in without]
        if alone:
            wrong = alone + self._faults(self.names)
            headline = f"profiles and label maps in {self.root} do not pair up by file name"
            raise ValueError(listed(headline + self._rule_wanted(self.names), wrong))

    def _rule_wanted(self, names: Sequence[str]) -> str:
        """What to type for profiles of more than 8 bits that no rule was given for, or ""."""
        found = [] if self._grey_range is not None else [(v.min(), v.max()) for _, v in self._deep(names)]
        lows, highs = zip(*found, strict=True) if found else ((), ())
        if not found or min(lows) == max(highs):
            return ""
        return f" (of those with more than 8 bits, {_spanning(min(lows), max(highs))} takes all values)"

    def _check_grey_range(self, names: Sequence[str]) -> None:
        """Whether the rule for more than 8 bits leaves something to see; where that is little, a hint."""
        if self._grey_range is None:
            return
        low, high = sorted(self._grey_range)
        lost, cut, count, least, most = list[str](), 0, 0, np.inf, -np.inf
        for name, values in self._deep(names):
            first, last = values.min(), values.max()
            if last < low or first > high:
                lost.append(f"{self._images[name].name}: values {first:.10g} to {last:.10g}")
            cut, count = cut + int(((values < low) | (values > high)).sum()), count + values.size
            least, most = min(least, first), max(most, last)
        if least >= most:
            return
        rule = f"data.source.grey_range=[{','.join(f'{value:.10g}' for value in self._grey_range)}]"
        cure = _spanning(least, most, turned=self._grey_range[0] > self._grey_range[1])
        if lost:
            raise ValueError(listed(f"{rule} makes profiles black or white throughout; {cure} takes all values", lost))
        there = f"the profiles hold values {least:.10g} to {most:.10g}"
        if most - least < (high - low) / HARDLY:
            share = 100 * (most - least) / (high - low)
            log.warning("%s: %s, %.2g %% of it, and come out nearly flat; %s spans them", rule, there, share, cure)
        elif cut > count / 2:
            share = 100 * cut / count
            log.warning("%s: %s, and %.0f %% of the pixels are cut off; %s takes all", rule, there, share, cure)

    def _deep(self, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Every profile of more than 8 bits that can be read, with its values."""
        for name in sorted(names, key=natural):
            with contextlib.suppress(ValueError):  # what cannot be read is listed by ``_faults``
                if (values := grey_values(self._images[name])) is not None:
                    yield name, values

    def _faults(self, names: Sequence[str]) -> list[str]:
        wrong: list[str] = []
        copies = Copies(self.split)
        indices = range(256 if self.continuous else self.num_classes)
        known = set(indices if self._values is None else self._values)
        for name in sorted(names, key=natural):
            profile, label = self._images[name].name, self._labels[name].name
            try:
                image, target = read_profile(self._images[name], self._grey_range), read_label(self._labels[name])
            except ValueError as error:
                wrong.append(str(error))
                continue
            if image.shape[:2] != target.shape:
                wrong.append(
                    f"{profile}: {image.shape[0]} pixels high and {image.shape[1]} wide, but its label map {label} is "
                    f"{target.shape[0]} high and {target.shape[1]} wide; they must have one size"
                )
            strange = sorted(set(np.unique(target).tolist()) - known - {IGNORE})
            if strange:
                values = ", ".join(map(str, strange[:SHOWN])) + ", ..." * (len(strange) > SHOWN)
                wrong.append(
                    f"{label}: label values {values} are none of the {self.num_classes} classes; set "
                    "data.source.num_classes, or data.source.label_values to the value of each class in order"
                )
            if (other := copies.of(name, image)) is not None:
                twin = self._images[other].name
                wrong.append(f"{profile}: the same picture as {twin}; a copy would leak between the splits")
        return wrong

    def fingerprint(self, names: Sequence[str]) -> str:
        """Hash of names, file contents and what label and grey values mean."""
        digest = hashlib.sha256(repr(self._values).encode() + b"continuous" * self.continuous)
        if self._grey_range is not None:
            digest.update(repr([float(value) for value in self._grey_range]).encode())
        for name in names:
            digest.update(name.encode())
            digest.update(self._images[name].read_bytes())
            digest.update(self._labels[name].read_bytes())
        return digest.hexdigest()

    def _pictures(self, folder: str, option: str) -> dict[str, Path]:
        """Picture files by the names of their samples."""
        parts = (
            [] if (self.root / folder).is_dir() else [part for part in SPLITS if (self.root / part / folder).is_dir()]
        )
        if not parts:
            return self._stems(self.root / folder, option)
        found = {
            (part, stem): path
            for part in parts
            for stem, path in self._stems(self.root / part / folder, option).items()
        }
        self._splits |= {f"{part}_{stem}": SPLITS[part] for part, stem in found}
        return {f"{part}_{stem}": path for (part, stem), path in found.items()}

    def _read_splits(self, split_file: str) -> None:
        path = self.root / Path(split_file).expanduser()
        if self._splits:
            raise ValueError(
                f"data.source.split_file={split_file}, but folders of {self.root} say the splits already; choose one"
            )
        if not path.is_file():
            raise ValueError(f"data.source.split_file={split_file}: there is no {path}")
        wrong: list[str] = []
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
            name, _, split = (part.strip() for part in line.rpartition(","))
            if not line.strip() or (number == 1 and (name, split) == ("name", "split")):
                continue
            if split not in SPLITS:
                wrong.append(f"line {number}: {line!r}; name,train or name,val or name,test is wanted")
            elif name not in self.names:
                wrong.append(f"line {number}: there is no profile {name!r}")
            elif self._splits.setdefault(name, SPLITS[split]) != SPLITS[split]:
                wrong.append(f"line {number}: {name} is in {self._splits[name]} already")
        if wrong or not self._splits:
            raise ValueError(
                listed(f"data.source.split_file={split_file} cannot be used", wrong or ["it names no profile"])
            )
        if others := sorted(set(self.names) - self._splits.keys(), key=natural):
            shown = ", ".join(others[:SHOWN]) + " ..." * (len(others) > SHOWN)
            log.warning("left out, since data.source.split_file does not name them: %s", shown)
        self.names = [name for name in self.names if name in self._splits]

    def _stems(self, folder: Path, option: str) -> dict[str, Path]:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; {option} names the one inside data.root={self.root}")
        files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
        found = [path for path in files if path.suffix.lower() in SUFFIXES]
        others = [path.name for path in files if path not in found]
        if not found:
            holds = f"only {', '.join(others[:SHOWN])}" if others else "nothing"
            raise ValueError(f"{folder} holds no picture ({', '.join(SUFFIXES)}), {holds}")
        if others:
            more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
            shown = ", ".join(sorted(others, key=natural)[:SHOWN])
            log.warning("%s: left out, since they are no pictures: %s%s", folder, shown, more)
        stems: dict[str, Path] = {}
        for path in found:
            if path.stem in stems:
                raise ValueError(
                    f"{stems[path.stem].name} and {path.name} in {folder} share one name; keep one of them"
                )
            stems[path.stem] = path
        return stems

    def _count_classes(self) -> int:
        holders: dict[int, list[str]] = {}
        for name in self.names:
            try:
                values = np.unique(read_label(self._labels[name])).tolist()
            except ValueError:
                continue  # ``check`` lists unreadable files, all at once
            for value in values:
                if value != IGNORE:
                    holders.setdefault(value, []).append(self._labels[name].name)
        count = max(holders, default=0) + 1
        absent = sorted(set(range(count)) - holders.keys())
        if holders and absent:
            beyond = [f"{value} in {', '.join(holders[value][:3])}" for value in sorted(holders) if value > absent[0]]
            raise ValueError(
                f"no label map holds the value {', '.join(map(str, absent[:SHOWN]))}, but there is "
                f"{'; '.join(beyond[:SHOWN])}; mend the label maps, or set data.source.num_classes={count} if a "
                "class may be absent, or data.source.label_values to the value of each class in order, such as [0,255]"
            )
        return count

    def _indices(self, target: np.ndarray) -> np.ndarray:
        if self.continuous:
            return target.astype(np.float32) / 255
        if self._values is None:
            return target
        table = np.full(256, IGNORE, np.uint8)
        table[self._values] = np.arange(len(self._values))
        return table[target]


def _spanning(low: float, high: float, turned: bool = False) -> str:
    """The setting to type for values from ``low`` to ``high``."""
    ends = (high, low) if turned else (low, high)
    return shlex.quote(f"data.source.grey_range=[{ends[0]:.10g},{ends[1]:.10g}]")


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts names as people number them. Splits keep the plain order, on which their random choice rests.

    >>> sorted(["line10", "line2", "line1"], key=natural)
    ['line1', 'line2', 'line10']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def listed(headline: str, lines: list[str]) -> str:
    """A headline and the first ten of what it speaks of, one per line."""
    shown = "\n  ".join(lines[:SHOWN])
    more = f"\n  ... and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return f"{headline}:\n  {shown}{more}"
