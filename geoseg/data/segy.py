"""SEG-Y files as sections: lines and volumes of recorded amplitudes, read and written one section at a time."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import segyio

SUFFIXES = (".sgy", ".segy")

FORMATS = {
    1: "IBM float",
    2: "32-bit integer",
    3: "16-bit integer",
    5: "IEEE float",
    6: "64-bit IEEE float",
    8: "8-bit integer",
    9: "64-bit integer",
    10: "unsigned 32-bit integer",
    11: "unsigned 16-bit integer",
    12: "unsigned 64-bit integer",
    16: "unsigned 8-bit integer",
}
"""Sample formats by their code in bytes 3225-3226."""

HEADER = 240
"""Bytes of a trace header."""

DIRECTIONS = ("inline", "crossline")
ORDERS = {"big": ">", "little": "<"}

EMPTIEST = 20
"""Places of a survey's grid per trace above which its inline and crossline numbers are something else."""

MEASURED, MOST = 32, 1 << 24
"""Sections that a scale is measured on at most, and values; more would say the same and take memory."""

_POSITION = "inline_byte=, crossline_byte= say where inline and crossline numbers stand in the trace headers"
_LINE = "ignore_geometry=true reads the file as one line, in the order of its traces"


class SegyFile:
    """A SEG-Y file as named sections [H, W]: H time or depth samples, W traces.

    A volume has a section per inline, or per crossline, each as wide as the whole survey, so that label maps can be
    stacked; where the survey has no trace, the section has a dead one. Only trace headers are held in memory.

    Args:
        path: the file.
        direction: "inline" or "crossline": which sections a volume is read in.
        points: corners [inline, crossline] of a line through a volume, which is then the only section; the nearest
            traces are taken, one for every step of the survey's grid.
        inline_byte: where a trace header holds the inline number, counted from 1.
        crossline_byte: the same for the crossline number.
        endian: "big", as the standard has it, or "little".
        ignore_geometry: the file is one line, in the order of its traces, whatever the headers say.

    Attributes:
        names: of its sections; all begin with the file's stem.
        facts: what was found, in words and numbers.

    Raises:
        ValueError: names the file, what is wrong with it, and the option that mends it.
    """

    def __init__(
        self,
        path: Path,
        direction: str = "inline",
        points: Sequence[Sequence[int]] | None = None,
        inline_byte: int = 189,
        crossline_byte: int = 193,
        endian: str = "big",
        ignore_geometry: bool = False,
    ) -> None:
        if direction not in DIRECTIONS:
            raise ValueError(f"direction={direction}: inline or crossline is wanted")
        if endian not in ORDERS:
            raise ValueError(f"endian={endian}: big or little is wanted")
        if points is not None and direction != "inline":
            raise ValueError(
                f"direction={direction}: points make one line, which has no direction; leave one of them away"
            )
        if ignore_geometry and (points is not None or direction != "inline"):
            raise ValueError(
                "ignore_geometry=true leaves one line in the order of its traces; leave direction and points away, or "
                "ignore_geometry"
            )
        self.path, self._endian = path, endian
        code = _format(path, endian)
        with self._opened() as file:
            self.height, self._traces = len(file.samples), int(file.tracecount)
            self._width = self.height * file.dtype.itemsize  # bytes of a trace's samples
            numbers = None
            if not ignore_geometry:
                numbers = [_header(file, path, byte) for byte in (inline_byte, crossline_byte)]
        self.facts: dict[str, Any] = {"format": FORMATS[code], "samples": self.height, "traces": self._traces}
        self._sections: dict[str, np.ndarray] = {}  # name -> numbers of its traces, -1 where there is none
        if numbers is None:
            self._sections[path.stem] = np.arange(self._traces)
            return
        inlines, crosslines = _axis(numbers[0]), _axis(numbers[1])
        grid = self._grid(numbers, inlines, crosslines, (inline_byte, crossline_byte))
        self.facts["missing_traces"] = int((grid < 0).sum())
        for word, axis in (("inlines", inlines), ("crosslines", crosslines)):
            self.facts[word] = [int(axis[0]), int(axis[-1]), int(axis[1] - axis[0]) if len(axis) > 1 else 1]
        if points is not None:
            self._sections[f"{path.stem}_line"] = self._along(points, grid, inlines, crosslines)
            return
        axis, rows = (inlines, grid) if direction == "inline" else (crosslines, grid.T)
        if rows.shape[1] == 1 and len(rows) > 1:
            raise ValueError(
                f"{path.name}: every {direction} has a single trace; direction={DIRECTIONS[direction == 'inline']} "
                f"reads the other sections; {_POSITION}; {_LINE}"
            )
        digits = max(len(str(number)) for number in axis)
        for number, row in zip(axis, rows, strict=True):
            if (row >= 0).any():
                self._sections[f"{path.stem}_{direction}_{number:0{digits}d}"] = row

    @property
    def names(self) -> list[str]:
        """Names of the sections, in order."""
        return list(self._sections)

    def shape(self, name: str) -> tuple[int, int]:
        """H and W of a section."""
        return self.height, len(self._sections[name])

    def read(self, name: str, every: int = 1) -> np.ndarray:
        """The amplitudes of a section, float32 [H, W].

        nan stands for what is no number; a trace that is missing, or holds nothing but zeros, is dead: nan throughout.

        Args:
            name: of the section.
            every: read each ``every``-th trace alone.

        Raises:
            ValueError: the file cannot be read any more.
        """
        places = self._sections[name][::every]
        there = places[places >= 0]
        section = np.full((len(places), self.height), np.nan, np.float32)
        with self._opened() as file:
            steps = np.diff(there)
            if len(there) > 1 and steps[0] > 0 and (steps == steps[0]).all():  # one call for traces in a row
                values = file.trace.raw[int(there[0]) : int(there[-1]) + 1 : int(steps[0])]
            else:
                values = [file.trace[int(i)] for i in there]
            # beyond the range of float32 is as little a number as nan
            with np.errstate(over="ignore", invalid="ignore"):
                section[places >= 0] = np.asarray(values, dtype=np.float32)
        section[~np.isfinite(section)] = np.nan
        section[((section == 0) | np.isnan(section)).all(axis=1)] = np.nan
        return np.ascontiguousarray(section.T)

    def write(self, path: Path, names: Sequence[str], values: Callable[[str], np.ndarray]) -> None:
        """Writes numbers of sections as SEG-Y, with this file's headers, so that they lie where its amplitudes do.

        All headers are copied byte by byte, those of the traces too; only the sample format becomes 5, IEEE float.
        Places without a trace are left out.

        Args:
            path: of the new file.
            names: of the sections whose traces are written, one after the other.
            values: gives the numbers of a section [H, W] by its name.
        """
        sign, (code,) = ORDERS[self._endian], (code for code, word in FORMATS.items() if word == "IEEE float")
        with self.path.open("rb") as file:
            head = bytearray(file.read(self.path.stat().st_size - self._traces * (HEADER + self._width)))
        head[3224:3226] = struct.pack(f"{sign}h", code)
        source = np.dtype([("header", f"V{HEADER}"), ("samples", f"V{self._width}")])
        traces = np.memmap(self.path, source, "r", offset=len(head), shape=(self._traces,))
        target = np.dtype([("header", f"V{HEADER}"), ("samples", f"{sign}f4", (self.height,))])
        with path.open("wb") as file:
            file.write(head)
            for name in names:
                places = self._sections[name]
                written = np.empty(int((places >= 0).sum()), target)
                written["header"] = traces["header"][places[places >= 0]]
                written["samples"] = values(name)[:, places >= 0].T
                file.write(written.tobytes())

    def measured_on(self) -> tuple[list[str], int]:
        """Sections that a scale is measured on, spread evenly over the file, and which of their traces: every n-th."""
        chosen = min(MEASURED, len(self._sections))
        indices = np.linspace(0, len(self._sections) - 1, chosen).round().astype(int)
        names = [self.names[i] for i in indices]
        values = sum(self.height * len(self._sections[name]) for name in names)
        return names, -(-values // MOST)

    @contextmanager
    def _opened(self) -> Iterator[segyio.SegyFile]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with segyio.open(self.path, ignore_geometry=True, endian=self._endian) as file:
                    yield file
        except (RuntimeError, OSError, IndexError, Warning) as error:
            raise ValueError(
                f"{self.path.name}: {str(error) or type(error).__name__}; it is truncated, or its traces differ in "
                "length, which is not read: get the file anew, or write it with traces of one length"
            ) from None

    def _grid(
        self,
        numbers: Sequence[np.ndarray],
        inlines: np.ndarray,
        crosslines: np.ndarray,
        where: tuple[int, int],
    ) -> np.ndarray:
        """Numbers of traces [inlines, crosslines], -1 where there is none."""
        found = (
            f"bytes {where[0]} say inlines {inlines[0]} to {inlines[-1]}, bytes {where[1]} crosslines "
            f"{crosslines[0]} to {crosslines[-1]}"
        )
        if len(inlines) * len(crosslines) > EMPTIEST * self._traces:
            raise ValueError(
                f"{self.path.name}: {found}, which is no survey of {self._traces} traces; {_POSITION}; {_LINE}"
            )
        rows, columns = np.searchsorted(inlines, numbers[0]), np.searchsorted(crosslines, numbers[1])
        grid = np.full((len(inlines), len(crosslines)), -1, np.int64)
        grid[rows, columns] = np.arange(self._traces)
        if twice := self._traces - int((grid >= 0).sum()):
            raise ValueError(
                f"{self.path.name}: {found}, and {twice} of {self._traces} traces stand where another one does; "
                f"{_POSITION}; {_LINE}; gathers have to be stacked before"
            )
        return grid

    def _along(
        self, points: Sequence[Sequence[int]], grid: np.ndarray, inlines: np.ndarray, crosslines: np.ndarray
    ) -> np.ndarray:
        """Numbers of the traces nearest to a line through ``points``."""
        wanted = "two or more corners [inline,crossline] are wanted, such as points=[[111,875],[133,892]]"
        try:
            numbers = np.asarray(points)
        except ValueError:  # rows of several lengths
            numbers = np.zeros(0)
        if numbers.ndim != 2 or len(numbers) < 2 or numbers.shape[1] != 2 or numbers.dtype.kind != "i":
            raise ValueError(f"points={points}: {wanted}")
        corners = []
        for inline, crossline in points:
            for word, number, axis in (("inlines", inline, inlines), ("crosslines", crossline, crosslines)):
                if not axis[0] <= number <= axis[-1]:
                    raise ValueError(f"points={points}: {self.path.name} has {word} {axis[0]} to {axis[-1]}; {wanted}")
            corners.append([_position(inline, inlines), _position(crossline, crosslines)])
        places = [np.array(corners[:1])]
        for start, end in pairwise(corners):
            steps = max(1, round(max(abs(end[0] - start[0]), abs(end[1] - start[1]))))
            places.append(np.linspace(start, end, steps + 1)[1:])
        rows, columns = np.floor(np.concatenate(places) + 0.5).astype(int).T
        found: np.ndarray = grid[rows, columns]
        return found


def _position(number: float, axis: np.ndarray) -> float:
    """Where a number stands on an axis, in steps from its beginning."""
    return float(number - axis[0]) / float(axis[1] - axis[0]) if len(axis) > 1 else 0.0


def _axis(numbers: np.ndarray) -> np.ndarray:
    """All places from the first to the last number, in the largest step that meets every one that occurs."""
    there = np.unique(numbers).astype(np.int64)
    if len(there) == 1:
        return there
    step = int(np.gcd.reduce(np.diff(there)))
    if (there[-1] - there[0]) // step > EMPTIEST * len(numbers):
        return there  # no axis at all; whoever lays the grid says so
    return np.arange(there[0], there[-1] + 1, step)


def _header(file: segyio.SegyFile, path: Path, byte: int) -> np.ndarray:
    try:
        return np.asarray(file.attributes(byte)[:])
    except (RuntimeError, ValueError, KeyError, IndexError):
        raise ValueError(
            f"{path.name}: no field of a trace header begins at byte {byte}; inline_byte= and crossline_byte= take the "
            "first byte of a field, such as 189 and 193, 9 and 21, or 5 and 17"
        ) from None


def _format(path: Path, endian: str) -> int:
    """The sample format that the file's header says.

    Raises:
        ValueError: it is too short, of the other order of bytes, or of a format that is not read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(3600)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if len(head) < 3600:
        raise ValueError(f"{path.name}: {len(head)} bytes are too few for the headers of a SEG-Y file; get it anew")
    codes = {name: struct.unpack(f"{sign}h", head[3224:3226])[0] for name, sign in ORDERS.items()}
    (other,) = ORDERS.keys() - {endian}
    if codes[endian] in FORMATS:
        return int(codes[endian])
    if codes[other] in FORMATS:
        raise ValueError(f"{path.name}: its header makes sense in the other order of bytes; endian={other} reads it")
    raise ValueError(
        f"{path.name}: bytes 3225-3226 say sample format {codes[endian]}; read are "
        f"{', '.join(f'{code} ({name})' for code, name in FORMATS.items())}. Where it is SEG-Y and the code is wrong, "
        "put the right one there: with segyio, f.bin[3225] = 1 on a file opened in mode r+"
    )
