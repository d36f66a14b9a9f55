"""Progress bars that any floor may advance without knowing who shows them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text


class _Rate(ProgressColumn):
    """Units per second, or seconds per unit where that reads better."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "")
        if not speed:
            return Text("", style="progress.data.speed")
        text = f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}"
        return Text(text, style="progress.data.speed")


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = "?" if task.total is None else f"{task.total:.0f}"
        return Text(f"{task.completed:.0f}/{total} {task.fields.get('unit', '')}", style="progress.download")


EVERY = 30.0
"""Seconds between two lines where bars cannot move, such as in a log file."""


@dataclass
class _Display:
    """Bars of this process."""

    bars: Progress
    title: str = ""
    total: float | None = None
    tasks: dict[str, TaskID] = field(default_factory=dict)
    spoken: float = field(default_factory=time.monotonic)

    def section(self, title: str, total: float | None) -> None:
        self.title, self.total, self.tasks = title, total, {}

    def expect(self, name: str, total: float | None, unit: str) -> None:
        if name in self.tasks:
            bar = self.bars.tasks[self.bars.task_ids.index(self.tasks[name])]
            self.bars.update(bar.id, total=(bar.total or 0) + (total or 0))
        else:
            title = f"{self.title}: {name}" if self.title else name
            self.tasks[name] = self.bars.add_task(title, total=total, unit=unit, note="")

    def advance(self, name: str, amount: float) -> None:
        if name not in self.tasks:
            self.expect(name, self.total, "image")
        bar = self.bars.tasks[self.bars.task_ids.index(self.tasks[name])]
        done = bar.completed + amount
        # parts of an image add up to a little less or more than one
        self.bars.update(bar.id, completed=round(done) if abs(done - round(done)) < 1e-6 else done)
        if not self.bars.console.is_terminal and time.monotonic() - self.spoken > EVERY:
            self.spoken = time.monotonic()
            left = "" if bar.time_remaining is None else f", {bar.time_remaining / 60:.1f} minutes left"
            self.bars.console.print(
                f"{bar.description}: {bar.completed:.0f} of {bar.total or 0:.0f}{left}", highlight=False
            )

    def note(self, name: str, text: str) -> None:
        if name in self.tasks:
            self.bars.update(self.tasks[name], note=text)


@dataclass
class _Elsewhere:
    """Bars of another process, to which every call is passed on."""

    send: Callable[..., object]

    def section(self, title: str, total: float | None) -> None:
        self.send("section", title, total)

    def expect(self, name: str, total: float | None, unit: str) -> None:
        self.send("expect", name, total, unit)

    def advance(self, name: str, amount: float) -> None:
        self.send("advance", name, amount)

    def note(self, name: str, text: str) -> None:
        self.send("note", name, text)


_display: ContextVar[_Display | _Elsewhere | None] = ContextVar("geoseg_progress", default=None)
_in_lines: ContextVar[bool] = ContextVar("geoseg_progress_in_lines", default=False)
_factor: ContextVar[float] = ContextVar("geoseg_progress_factor", default=1.0)


@contextmanager
def display(enabled: bool = True, console: Console | None = None) -> Iterator[None]:
    """Shows the bars that code inside expects and advances; where they cannot move, a line now and then instead."""
    if not enabled:
        yield
        return
    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(),
        _Count(table_column=Column(no_wrap=True)),
        _Rate(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    bars = Progress(*columns, console=console)
    with contextlib.nullcontext() if _in_lines.get() else bars:
        token = _display.set(_Display(bars))
        try:
            yield
        finally:
            _display.reset(token)


@contextmanager
def in_lines() -> Iterator[None]:
    """Inside, displays speak in lines alone, for a stream that carries those of several processes."""
    token = _in_lines.set(True)
    try:
        yield
    finally:
        _in_lines.reset(token)


@contextmanager
def passed_on(send: Callable[..., object]) -> Iterator[None]:
    """Inside, what would move a bar is passed on, for another process to show.

    Args:
        send: called with the name of one of this module's functions and what it is to be given.
    """
    token = _display.set(_Elsewhere(send))
    try:
        yield
    finally:
        _display.reset(token)


@contextmanager
def scale(factor: float) -> Iterator[None]:
    """Multiplies every advance inside, so that n tiles of one image count as one image."""
    token = _factor.set(_factor.get() * factor)
    try:
        yield
    finally:
        _factor.reset(token)


@contextmanager
def silent() -> Iterator[None]:
    """Hides what code inside expects and advances."""
    token = _display.set(None)
    try:
        yield
    finally:
        _display.reset(token)


def section(title: str, total: float | None = None) -> None:
    """Begins a new part of the work, whose bars carry ``title`` and, unless announced otherwise, ``total`` units."""
    shown = _display.get()
    if shown is not None:
        shown.section(title, total)


def expect(name: str, total: float | None, unit: str = "image") -> None:
    """Announces a bar called ``name`` with ``total`` units to come; a second call adds to the total."""
    shown = _display.get()
    if shown is not None:
        shown.expect(name, total, unit)


def advance(name: str, amount: float = 1.0) -> None:
    """Moves the bar ``name`` on, and shows it where this is its first move; does nothing outside a display."""
    shown = _display.get()
    if shown is not None:
        shown.advance(name, amount * _factor.get())


def note(name: str, text: str) -> None:
    """Writes ``text`` behind the bar ``name``, such as the current loss."""
    shown = _display.get()
    if shown is not None:
        shown.note(name, text)
