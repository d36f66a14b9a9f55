"""Which samples a run trains on, and in which order it meets them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

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


def choose_random(names: Sequence[str], count: int, seed: int) -> list[str]:
    """``count`` names drawn without replacement; a larger count only adds names to a smaller one's."""
    order = torch.randperm(len(names), generator=stream(seed, "select")).tolist()
    return [names[i] for i in order[:count]]


def choose_representative(source: Source, names: Sequence[str], count: int, seed: int) -> list[str]:
    """``count`` names whose label maps together cover the classes most evenly.

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
    counts = np.bincount(target[target != IGNORE].ravel(), minlength=num_classes)[:num_classes]
    return counts / max(1, target.size)
