"""Random numbers as a function of their name."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from geoseg.randomness import key, numpy_stream, stream


def test_a_key_is_the_first_eight_bytes_of_a_hash() -> None:
    by_hand = int.from_bytes(hashlib.blake2b(b"(7, 'noise', 3)", digest_size=8).digest(), "little") // 2
    assert key(7, "noise", 3) == by_hand
    assert key(0, "noise", 3) == 6347807290990278987  # the numbers of finished runs stand on this


def test_every_part_counts() -> None:
    keys = [
        key(0, "a"),
        key(1, "a"),
        key(0, "b"),
        key(0, "a", 0),
        key(0, "a", "0"),
        key(0, 0, "a"),
        key(0, "a", 0, 0),
        key(0, "a0"),
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= k < 2**63 for k in keys)


def test_streams_repeat_and_differ() -> None:
    assert torch.equal(torch.rand(5, generator=stream(3, "x")), torch.rand(5, generator=stream(3, "x")))
    assert not torch.equal(torch.rand(5, generator=stream(3, "x")), torch.rand(5, generator=stream(3, "y")))
    np.testing.assert_array_equal(numpy_stream(3, "x").random(5), numpy_stream(3, "x").random(5))
    assert (numpy_stream(3, "x").random(5) != numpy_stream(4, "x").random(5)).all()


def test_streams_leave_the_global_state_alone() -> None:
    torch.manual_seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    torch.rand(100, generator=stream(1, "x"))
    assert torch.equal(torch.rand(3), first)


def test_neighbouring_streams_are_not_related() -> None:
    rows = torch.stack([torch.randn(2000, generator=stream(0, "noise", i)) for i in range(6)])
    off_diagonal = torch.corrcoef(rows) - torch.eye(6)
    assert off_diagonal.abs().max() < 5 / 2000**0.5
