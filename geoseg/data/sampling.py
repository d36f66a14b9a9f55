"""Which samples a run trains on, and in which order it meets them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from geoseg.data.source import Source
from geoseg.randomness import stream
from geoseg.types import IGNORE


class Visits(Sampler[list[tuple[int, int]]]):
    """The batches of a whole training run as a function of (seed, batch number).

    A run visits every sample ``visits`` times; each round has its own order. Batch ``i`` can be looked up without the
    batches before it, so a run that continues starts at ``first`` and meets exactly what it would have met.

    Args:
        samples: number of samples.
        batch_size: samples per batch; the last batch of a round may be smaller.
        visits: rounds, that is epochs times repeats.
        seed: decides the order.
        first: number of batches to leave out at the start.
    """

    def __init__(self, samples: int, batch_size: int, visits: int, seed: int, first: int = 0) -> None:
        if min(samples, batch_size, visits) < 1:
            raise ValueError(
                f"training needs at least one sample, batch and epoch; got samples={samples}, "
                f"batch_size={batch_size}, epochs x repeats={visits}"
            )
        self.samples, self.batch_size, self.visits, self.seed, self.first = samples, batch_size, visits, seed, first
        self.per_round = -(-samples // batch_size)

    def __len__(self) -> int:
        return self.visits * self.per_round - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for visit in range(self.first // self.per_round, self.visits):
            order = torch.randperm(self.samples, generator=stream(self.seed, "order", visit)).tolist()
            skip = max(0, self.first - visit * self.per_round)
            for start in range(skip * self.batch_size, self.samples, self.batch_size):
                yield [(i, visit) for i in order[start : start + self.batch_size]]


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
