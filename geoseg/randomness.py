"""Randomness as a pure function of (seed, what, where), so that nothing random has a state to save.

A step's noise, a sample's crop and an epoch's order are looked up rather than drawn in sequence: a run that is
resumed, batched differently or spread over more workers sees the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def key(seed: int, *where: str | int) -> int:
    """A 63-bit integer that depends on every part of its arguments and on nothing else.

    >>> key(0, "noise", 3) == key(0, "noise", 3), key(0, "noise", 3) == key(0, "noise", 4)
    (True, False)
    """
    text = repr((int(seed), *where)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def stream(seed: int, *where: str | int) -> torch.Generator:
    """A CPU generator for torch, started at ``key(seed, *where)``."""
    return torch.Generator().manual_seed(key(seed, *where))


def numpy_stream(seed: int, *where: str | int) -> np.random.Generator:
    """A generator for NumPy, started at ``key(seed, *where)``; Philox gives the same numbers on every machine."""
    return np.random.Generator(np.random.Philox(key(seed, *where)))


@contextmanager
def seeded(seed: int, what: str) -> Iterator[None]:
    """First weights depend on the run's seed alone, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, what))
        yield
