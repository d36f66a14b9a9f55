"""Which samples a run trains on, and in which order it meets them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from geoseg.data.source import Source
from geoseg.randomness import stream
from geoseg.types import IGNORE


class Visits(Sampler[list[tuple[int, int]]]):
    """The batches of a whole training run as a function of (seed, batch number).

    A run has ``visits`` rounds, each with its own order, in which it meets every sample once, or as often as
    ``repeats`` says. Batch ``i`` can be looked up without the batches before it, so a run that continues starts at
    ``first`` and meets exactly what it would have met.

    Args:
        samples: number of samples.
        batch_size: samples per batch; a bucket's last batch of a round may be smaller.
        visits: rounds, that is epochs times repeats.
        seed: decides the order.
        first: number of batches to leave out at the start; they count in the length, which is that of the run.
        repeats: how often each sample comes in a round; its visits are numbered through all rounds.
        buckets: a batch holds samples of one bucket only; None puts all into one.
        batches: length of the run, which may end within a round; None takes all rounds.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        visits: int,
        seed: int,
        first: int = 0,
        repeats: Sequence[int] | None = None,
        buckets: Sequence[Hashable] | None = None,
        batches: int | None = None,
    ) -> None:
        if min(samples, batch_size, visits) < 1:
            raise ValueError(
                f"training needs at least one sample, batch and epoch; got samples={samples}, "
                f"batch_size={batch_size}, epochs x repeats={visits}"
            )
        self.samples, self.batch_size, self.visits, self.seed, self.first = samples, batch_size, visits, seed, first
        self.repeats = list(repeats) if repeats is not None else [1] * samples
        self.buckets = list(buckets) if buckets is not None else [None] * samples
        self._round = [
            i for i in range(samples) for _ in range(self.repeats[i])
        ]  # what a round holds, before its order
        sizes = Counter(self.buckets[i] for i in self._round)
        self.per_round = sum(-(-size // batch_size) for size in sizes.values())
        self.batches = visits * self.per_round if batches is None else min(batches, visits * self.per_round)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for visit in range(self.first // self.per_round, self.visits):
            before = visit * self.per_round
            yield from self._batches(visit)[max(0, self.first - before) : max(0, self.batches - before)]

    def _batches(self, visit: int) -> list[list[tuple[int, int]]]:
        """The batches of a round; those that nothing is left to fill come last."""
        order = torch.randperm(len(self._round), generator=stream(self.seed, "order", visit)).tolist()
        met = [visit * often for often in self.repeats]
        full: list[list[tuple[int, int]]] = []
        filling: dict[Hashable, list[tuple[int, int]]] = {}
        for i in (self._round[place] for place in order):
            batch = filling.setdefault(self.buckets[i], [])
            batch.append((i, met[i]))
            met[i] += 1
            if len(batch) == self.batch_size:
                full.append(filling.pop(self.buckets[i]))
        return [*full, *filling.values()]


class Shares(Sampler[list[tuple[int, int, float, int]]]):
    """What one of several processes takes of each batch: ``(sample, visit, share, size)`` as ``Shared`` wants it.

    ``share`` is such that the mean over all processes of the sum of a process's ``share`` times loss is the mean over
    the whole batch of ``size`` samples, whose losses count alike. Where a batch has fewer samples than there are
    processes, one that is left without takes another's, with a share of 0.

    Args:
        visits: the batches as one process would meet them.
        rank: which process this is, from 0.
        of: how many there are.
    """

    def __init__(self, visits: Visits, rank: int, of: int) -> None:
        self.visits, self.rank, self.of = visits, rank, of

    def __len__(self) -> int:
        return len(self.visits)

    def __iter__(self) -> Iterator[list[tuple[int, int, float, int]]]:
        for batch in self.visits:
            size = len(batch)
            mine = [(*where, self.of / size, size) for where in batch[self.rank :: self.of]]
            yield mine or [(*batch[self.rank % size], 0.0, size)]


class Shared(Dataset[dict[str, Any]]):
    """A task's view of a split, whose items also hold the ``share`` and ``size`` that ``Shares`` gave them."""

    def __init__(self, view: Dataset[dict[str, Any]]) -> None:
        self.view = view

    def __getitem__(self, where: tuple[int, int, float, int]) -> dict[str, Any]:
        index, visit, share, size = where
        return {**self.view[index, visit], "share": share, "size": size}


T = TypeVar("T")


def choose_random(names: Sequence[T], count: int, seed: int) -> list[T]:
    """``count`` names drawn without replacement; a larger count only adds names to a smaller one's."""
    order = torch.randperm(len(names), generator=stream(seed, "select")).tolist()
    return [names[i] for i in order[:count]]


def stratified(names: Sequence[str], labels: Sequence[int], seed: int) -> list[str]:
    """All names in an order in which classes alternate: any stretch of it holds about the share of each that all do.

    Where all classes have the same number of samples, their numbers among the first n, or the last, differ by one at
    most. Which samples of a class come first, and which class does, is decided by the seed.

    Args:
        names: samples.
        labels: the class of each.
        seed: decides the order.

    >>> stratified(["a0", "a1", "b0", "b1"], [0, 0, 1, 1], seed=0)
    ['a0', 'b1', 'a1', 'b0']
    """
    class_of = dict(zip(names, labels, strict=True))
    shuffled = choose_random(names, len(names), seed)
    first = list(dict.fromkeys(class_of[name] for name in shuffled))
    sizes, met = Counter(labels), Counter[int]()
    placed = []
    for name in shuffled:
        label = class_of[name]
        placed.append(((met[label] + 0.5) / sizes[label], first.index(label), name))
        met[label] += 1
    return [name for *_, name in sorted(placed)]


def balanced(names: Sequence[str], labels: Sequence[int], count: int, seed: int, first: int = 0) -> list[str]:
    """``count`` names, class after class in turn, so that the numbers of two classes differ by one at most.

    A larger count only adds names to a smaller one's. One that begins at turn ``first`` goes on, in the same order of
    classes, where one of that many has ended, so that both together are as even.

    Args:
        names: samples.
        labels: the class of each.
        count: how many.
        seed: decides the order of classes and that of the samples in each.
        first: turn to begin at.

    Raises:
        ValueError: a class has too few samples.

    >>> balanced(["a0", "a1", "a2", "b0", "b1"], [0, 0, 0, 1, 1], 3, seed=0)
    ['a1', 'b0', 'a0']
    """
    queues: dict[int, list[str]] = {}
    class_of = dict(zip(names, labels, strict=True))
    for name in choose_random(names, len(names), seed):
        queues.setdefault(class_of[name], []).append(name)
    classes = choose_random(sorted(queues), len(queues), seed)
    turns = [classes[turn % len(classes)] for turn in range(first, first + count)] if count else []
    for label, wanted in sorted(Counter(turns).items()):
        if wanted > len(queues[label]):
            raise ValueError(f"class {label} has {len(queues[label])} samples, and {wanted} of it are wanted")
    met = Counter[int]()
    chosen = []
    for label in turns:
        chosen.append(queues[label][met[label]])
        met[label] += 1
    return chosen


def choose_representative(source: Source, names: Sequence[str], count: int, seed: int) -> list[str]:
    """``count`` names whose targets together cover the classes most evenly.

    Greedy: each pick adds most to the sum over classes of the square root of collected area, which rewards a class
    that is still rare among the picks. Ties are broken by the seed.
    """
    shuffled = choose_random(names, len(names), seed)
    areas = np.stack([_areas(source.read(name).target, source.num_classes) for name in shuffled])  # [N, K]
    picked: list[int] = []
    collected = np.zeros(source.num_classes)
    for _ in range(count):
        gain = np.sqrt(collected + areas).sum(1)
        gain[picked] = -1
        best = int(gain.argmax())
        picked.append(best)
        collected += areas[best]
    return [shuffled[i] for i in picked]


def _areas(target: np.ndarray, num_classes: int) -> np.ndarray:
    if target.dtype.kind == "f":  # shares of the second of two classes
        return np.array([np.nansum(1 - target), np.nansum(target)]) / max(1, target.size)
    counts = np.bincount(target[target != IGNORE].ravel(), minlength=num_classes)[:num_classes]
    return counts / max(1, target.size)
