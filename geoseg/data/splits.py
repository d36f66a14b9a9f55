"""Splits that do not leak: by the pictures' names, by their distance, and by columns with a gap between."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from geoseg.data.profiles import SHOWN, natural
from geoseg.data.source import Source
from geoseg.types import Sample

log = logging.getLogger("geoseg")


class Columns:
    """Cuts a picture into blocks of neighbouring columns, with columns between them that belong to nobody.

    Neighbouring columns show the same ground, so what is seen at one place is known at the next; the gap should be
    wider than that. What only lies in one block of all pictures, such as a class, is not in the others: look before.

    Args:
        val: share of the columns for validation, from 0.
        test: share of the columns for the test, from 0; for data that has no other ground to test on.
        gap: columns between two blocks.
        order: the blocks from left to right.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, val: float = 0.2, test: float = 0.0, gap: int = 32, order: Sequence[str] = ("train", "val", "test")
    ) -> None:
        if min(val, test) < 0 or val + test >= 1:
            raise ValueError(f"val={val}, test={test}: shares of the columns are wanted, from 0 and below 1 together")
        if gap < 0:
            raise ValueError(f"gap={gap}: a number of columns is wanted, 0 or more")
        if sorted(order) != ["test", "train", "val"]:
            raise ValueError(f"order={list(order)}: train, val and test are wanted, each once")
        self.val, self.test, self.gap, self.order = val, test, gap, tuple(order)

    def blocks(self, name: str, width: int) -> dict[str, tuple[int, int]]:
        """The first column of each block, and the one after its last, by split.

        Raises:
            ValueError: the picture is too narrow.
        """
        sizes = {split: round(share * width) for split, share in (("val", self.val), ("test", self.test)) if share}
        train = width - sum(sizes.values()) - self.gap * len(sizes)
        if min([train, *sizes.values()]) < 1:
            raise ValueError(
                f"data.source.columns: {name} has {width} columns, too few for val={self.val}, test={self.test} and a "
                f"gap of {self.gap}; lower data.source.columns.gap, or set data.source.columns=null"
            )
        found, begin = {}, 0
        sizes["train"] = train
        for split in [split for split in self.order if split in sizes]:
            found[split] = (begin, begin + sizes[split])
            begin += sizes[split] + self.gap
        return found


class Piece(NamedTuple):
    """What a sample is of a picture.

    Attributes:
        picture: its name.
        split: "train", "val" or "test".
        columns: the first one, and the one after the last; None: all.
        rows: likewise.
    """

    picture: str
    split: str
    columns: tuple[int, int] | None = None
    rows: tuple[int, int] | None = None


def piece_name(piece: Piece) -> str:
    """The picture's name, with first and last row and column of a piece of it."""
    cuts = (f"_{axis}{cut[0]}-{cut[1] - 1}" for axis, cut in (("y", piece.rows), ("x", piece.columns)) if cut)
    return piece.picture + "".join(cuts)


class Splits:
    """A data set whose splits are prescribed by the pictures' names, however the data set itself has them.

    Names may hold ``*`` and ``?``. What is in none of the lists stays where the data set puts it, and is for training
    where it puts it nowhere; with a list ``train`` it belongs to nobody. A piece of a picture is called after it and
    its columns, such as ``test1_0_x0-528``.

    Args:
        source: the pictures.
        train: pictures to learn from; None takes what the others leave.
        val: pictures to choose by.
        test: pictures to judge by.
        distance: numbers, such as inlines, that a picture must be away from those of the same survey it is judged by;
            nearer ones belong to nobody. The last number of a name counts, the rest of it is the survey.
        columns: cuts every picture for training into blocks; None leaves them whole.
        test_blocks: into how many rows and columns of blocks every picture for the test is cut, each a unit by itself,
            so that one large picture has an interval; None leaves them whole.

    Raises:
        ValueError: names the setting that fits no picture.
    """

    def __init__(
        self,
        source: Source,
        train: Sequence[str] | None = None,
        val: Sequence[str] | None = None,
        test: Sequence[str] | None = None,
        distance: int = 0,
        columns: Columns | None = None,
        test_blocks: Sequence[int] | None = None,
    ) -> None:
        self.source = source
        self.title, self.unit = source.title, source.unit
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self.continuous = bool(getattr(source, "continuous", False))
        lists = {"train": train, "val": val, "test": test}
        named = {split: self._matching(split, patterns or []) for split, patterns in lists.items()}
        for name in source.names:
            if len(twice := [split for split, names in named.items() if name in names]) > 1:
                raise ValueError(f"{name} is in {' and '.join(f'data.source.{split}' for split in twice)}; choose one")
        where = {name: self._placed(name, named, train is not None) for name in source.names}
        if distance:
            _keep_away(where, distance)
        self._pieces: dict[str, Piece] = {}
        for name in source.names:
            place = where[name]
            if place == "train" and columns is not None:
                for part, block in columns.blocks(name, source.shape(name)[1]).items():
                    piece = Piece(name, part, block)
                    self._pieces[piece_name(piece)] = piece
            elif place == "test" and test_blocks is not None:
                for piece in self._blocks(name, test_blocks):
                    self._pieces[piece_name(piece)] = piece
            elif place is not None:
                self._pieces[name] = Piece(name, place)
        if (columns is not None and columns.test) or test_blocks is not None:
            self.unit = f"block of a {source.unit}"
        self.names = list(self._pieces)

    def read(self, name: str) -> Sample:
        """Reads one piece; image uint8 [H, W] or [H, W, 3], target uint8 [H, W]."""
        picture, _, columns, rows = self._pieces[name]
        sample = self.source.read(picture)
        if columns is None:
            return sample
        cut = slice(*rows) if rows else slice(None), slice(*columns)
        return sample._replace(image=sample.image[cut].copy(), target=sample.target[cut].copy())

    def whole(self, name: str) -> np.ndarray:
        """The picture that a piece was cut from, uint8 [H, W] or [H, W, 3]."""
        return self.source.read(self._pieces[name].picture).image

    def repeats(self, name: str) -> int:
        """How often an epoch meets a piece: as often as its picture."""
        repeats: Callable[[str], int] = getattr(self.source, "repeats", lambda name: 1)
        return repeats(self._pieces[name].picture)

    def shape(self, name: str) -> tuple[int, int]:
        """H and W of one piece."""
        picture, _, columns, rows = self._pieces[name]
        height, width = self.source.shape(picture)
        return (height if rows is None else rows[1] - rows[0], width if columns is None else columns[1] - columns[0])

    def split(self, name: str) -> str | None:
        """Which split a piece is for."""
        return self._pieces[name].split

    def check(self, names: Sequence[str]) -> None:
        """Looks at every picture that one of the pieces was cut from, as its data set does.

        Raises:
            ValueError: lists the first ten offenders.
        """
        self.source.check(self._pictures(names))

    def fingerprint(self, names: Sequence[str]) -> str:
        """That of the pictures, which pieces carry in their names, and of who is where in them."""
        found = {name: self._pieces[name] for name in names}
        pieces = ",".join(f"{name}={piece.columns}{piece.rows or ''}" for name, piece in found.items())
        return f"{self.source.fingerprint(self._pictures(names))}:{pieces}"

    def _blocks(self, name: str, count: Sequence[int]) -> list[Piece]:
        """A picture for the test in blocks of nearly the same size, row by row.

        Raises:
            ValueError: the numbers are no rows and columns, or more than the picture has.
        """
        shape = self.source.shape(name)
        if len(count) != 2 or any(not 1 <= number <= side for number, side in zip(count, shape, strict=False)):
            raise ValueError(
                f"data.source.test_blocks={list(count)}: numbers of rows and columns of blocks are wanted, such as "
                f"[2,4], and {name} has {shape[0]} x {shape[1]} pixels"
            )
        rows, columns = (
            [side * i // number for i in range(number + 1)] for number, side in zip(count, shape, strict=True)
        )
        return [Piece(name, "test", column, row) for row in pairwise(rows) for column in pairwise(columns)]

    def _pictures(self, names: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(self._pieces[name].picture for name in names))

    def _matching(self, split: str, patterns: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for pattern in map(str, patterns):  # the command line reads a name such as 7 as a number
            fits = {name for name in self.source.names if name == pattern or fnmatchcase(name, pattern)}
            if not fits:
                have = sorted(self.source.names, key=natural)
                more = " ..." if len(have) > SHOWN else ""
                raise ValueError(
                    f"data.source.{split} names {pattern!r}, which fits no picture of {self.title}; it has "
                    f"{', '.join(have[:SHOWN])}{more}"
                )
            found |= fits
        return found

    def _placed(self, name: str, named: dict[str, set[str]], only_named: bool) -> str | None:
        for split, names in named.items():
            if name in names:
                return split
        before = self.source.split(name)
        if before in (None, "train"):
            return None if only_named else "train"
        return before


def _keep_away(where: dict[str, str | None], distance: int) -> None:
    """Takes pictures out that lie nearer than ``distance`` to one that later decisions rest on: test, then val."""
    placed: dict[str, tuple[str, int]] = {}
    for name in where:
        if not (found := re.fullmatch(r"(.*?)(\d+)(\D*)", name, re.DOTALL)):
            raise ValueError(f"data.source.distance={distance}, but {name} holds no number; rename it, or set 0")
        placed[name] = (f"{found[1]}*{found[3]}", int(found[2]))
    dropped: list[str] = []
    for judges, judged in (("test", ("train", "val")), ("val", ("train",))):
        fixed = [placed[name] for name in where if where[name] == judges]
        for name in [name for name in where if where[name] in judged]:
            survey, number = placed[name]
            if any(survey == other and abs(number - n) < distance for other, n in fixed):
                where[name] = None
                dropped.append(name)
    if dropped:
        shown = ", ".join(sorted(dropped, key=natural)[:SHOWN]) + " ..." * (len(dropped) > SHOWN)
        log.warning("left out, nearer than data.source.distance=%d to what they are judged by: %s", distance, shown)
