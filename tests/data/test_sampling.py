"""Order and choice of samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from geoseg.data.sampling import Visits, balanced, choose_random, choose_representative, stratified
from geoseg.types import IGNORE, Sample

NAMES = [f"s{i}" for i in range(9)]


@pytest.mark.parametrize(("samples", "batch_size", "visits"), [(7, 3, 4), (6, 3, 2), (1, 4, 3), (5, 1, 2), (4, 9, 2)])
def test_every_sample_once_per_round(samples: int, batch_size: int, visits: int) -> None:
    batches = list(Visits(samples, batch_size, visits, seed=0))
    assert len(batches) == len(Visits(samples, batch_size, visits, seed=0)) == visits * -(-samples // batch_size)
    assert Counter(item for batch in batches for item in batch) == {
        (i, v): 1 for i in range(samples) for v in range(visits)
    }
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert all(len({visit for _, visit in batch}) == 1 for batch in batches)  # rounds do not mix
    assert [visit for batch in batches for _, visit in batch] == sorted(visit for b in batches for _, visit in b)


def test_starting_later_gives_exactly_the_tail() -> None:
    whole = list(Visits(7, 3, 4, seed=5))
    for first in range(len(whole) + 1):
        rest = Visits(7, 3, 4, seed=5, first=first)
        assert list(rest) == whole[first:]
        assert len(rest) == len(whole)  # of the run, not of what is left


def test_the_order_depends_on_seed_and_round_and_nothing_else() -> None:
    def rounds(visits: int, seed: int, batch_size: int = 4) -> list[list[int]]:
        order: dict[int, list[int]] = {}
        for batch in Visits(30, batch_size, visits, seed):
            for index, visit in batch:
                order.setdefault(visit, []).append(index)
        return list(order.values())

    assert rounds(3, seed=0) == rounds(3, seed=0)
    assert rounds(5, seed=0)[:3] == rounds(3, seed=0)  # a longer run begins like a shorter one
    assert rounds(3, seed=0, batch_size=7) == rounds(3, seed=0)
    assert len({tuple(order) for order in rounds(3, seed=0) + rounds(3, seed=1)}) == 6


def test_iterating_twice_gives_the_same() -> None:
    visits = Visits(7, 3, 4, seed=5)
    assert list(visits) == list(visits)


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_nothing_to_visit(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least one sample, batch and epoch"):
        Visits(*numbers, seed=0)


def test_a_larger_random_choice_holds_the_smaller_one() -> None:
    for seed in range(5):
        chosen = [choose_random(NAMES, count, seed) for count in range(len(NAMES) + 1)]
        for count, names in enumerate(chosen):
            assert len(set(names)) == len(names) == count
            assert names == chosen[-1][:count]
        assert sorted(chosen[-1]) == NAMES


def test_the_random_choice_is_by_seed_and_fair() -> None:
    assert choose_random(NAMES, 3, 1) == choose_random(NAMES, 3, 1)
    first = Counter(choose_random(NAMES, 1, seed)[0] for seed in range(900))
    assert set(first) == set(NAMES)
    assert max(first.values()) < 150  # 100 expected, standard deviation 9.4
    assert min(first.values()) > 50


class Drawn:
    """Label maps of one row, given as counts of pixels per class."""

    unit = "section"

    def __init__(self, counts: Sequence[Sequence[int]], ignored: int = 0) -> None:
        self.counts, self.ignored = counts, ignored
        self.names = [f"s{i}" for i in range(len(counts))]
        self.num_classes = len(counts[0])

    def read(self, name: str) -> Sample:
        row = np.repeat(np.arange(self.num_classes), self.counts[self.names.index(name)])
        row = np.concatenate([row, np.full(self.ignored, IGNORE)]).astype(np.uint8)
        return Sample(np.zeros((1, len(row)), np.uint8), row[None])


def worth(source: Drawn, names: Sequence[str]) -> float:
    """What the choice is to make large: sum over classes of the square root of collected area."""
    areas = np.array([np.bincount(source.read(n).target[0], minlength=256)[: source.num_classes] for n in names])
    sizes = np.array([source.read(name).target.size for name in names])
    return float(np.sqrt((areas / sizes[:, None]).sum(0)).sum())


@pytest.mark.parametrize("table_seed", range(6))
def test_the_representative_choice_is_near_the_best_of_all(table_seed: int) -> None:
    rng = np.random.default_rng(table_seed)
    counts = rng.integers(0, 30, (8, 4)) * (rng.random((8, 4)) < 0.5)
    counts[:, 0] += 5
    source = Drawn(counts.tolist(), ignored=3)
    for count in (1, 2, 3):
        chosen = choose_representative(source, source.names, count, seed=0)  # type: ignore[arg-type]
        assert len(set(chosen)) == count
        best = max(worth(source, some) for some in combinations(source.names, count))
        found = worth(source, chosen)
        assert found <= best + 1e-12
        assert found >= (1 - 1 / np.e) * best  # what greedy choice guarantees for such a sum
        if count == 1:
            assert found == pytest.approx(best)


def test_the_representative_choice_covers_rare_classes() -> None:
    # common maps hold classes 0 and 1 only; classes 2 and 3 lie in one map each
    counts = [[90, 10, 0, 0]] * 6 + [[80, 0, 20, 0], [0, 80, 0, 20]]
    source = Drawn(counts)
    for seed in range(4):
        chosen = choose_representative(source, source.names, 2, seed)  # type: ignore[arg-type]
        best = max(combinations(source.names, 2), key=lambda some: worth(source, some))
        assert set(chosen) == set(best) == {"s6", "s7"}
    # chosen by chance, most seeds would miss them
    assert sum(set(choose_random(source.names, 2, seed)) == {"s6", "s7"} for seed in range(20)) < 5


def test_equal_maps_are_told_apart_by_the_seed() -> None:
    source = Drawn([[5, 5]] * 9)
    picks = {choose_representative(source, source.names, 1, seed)[0] for seed in range(30)}  # type: ignore[arg-type]
    assert len(picks) > 4
    again = [choose_representative(source, source.names, 3, 2) for _ in range(2)]  # type: ignore[arg-type]
    assert again[0] == again[1]


def test_repeats_are_visits_of_their_own() -> None:
    repeats = [3, 1, 2]
    batches = list(Visits(3, 2, 4, seed=0, repeats=repeats))
    # six visits per round, so three batches; over four rounds a sample's visits are numbered without a gap
    assert len(batches) == len(Visits(3, 2, 4, seed=0, repeats=repeats)) == 4 * 3
    met = Counter(item for batch in batches for item in batch)
    assert met == {(i, visit): 1 for i in range(3) for visit in range(4 * repeats[i])}
    for number in range(4):
        here = Counter(i for batch in batches[3 * number : 3 * number + 3] for i, _ in batch)
        assert here == {0: 3, 1: 1, 2: 2}
    assert list(Visits(3, 2, 4, seed=0, repeats=[1, 1, 1])) == list(Visits(3, 2, 4, seed=0))


def test_a_batch_holds_one_bucket() -> None:
    buckets, repeats = ["wide", "high", "wide", "wide", "high"], [2, 1, 2, 1, 2]
    # wide: 5 visits, high: 3 visits; in twos that is 3 + 2 batches per round
    visits = Visits(5, 2, 3, seed=1, repeats=repeats, buckets=buckets)
    batches = list(visits)
    assert len(batches) == len(visits) == 3 * 5
    assert all(len({buckets[i] for i, _ in batch}) == 1 for batch in batches)
    for start in range(0, 15, 5):
        round_ = batches[start : start + 5]
        assert sorted(map(len, round_)) == [1, 1, 2, 2, 2]
        assert [len(batch) for batch in round_][:3] == [2, 2, 2]  # what is left over comes last
        assert Counter(i for batch in round_ for i, _ in batch) == dict(enumerate(repeats))
    assert list(visits) == batches
    for first in (0, 3, 5, 9, 15):
        tail = Visits(5, 2, 3, seed=1, first=first, repeats=repeats, buckets=buckets)
        assert list(tail) == batches[first:]
    other = list(Visits(5, 2, 3, seed=2, repeats=repeats, buckets=buckets))
    assert other != batches


@pytest.mark.parametrize("batches", [1, 3, 4, 11, 12])
def test_a_run_may_end_within_a_round(batches: int) -> None:
    whole = list(Visits(7, 3, 4, seed=5))
    short = Visits(7, 3, 4, seed=5, batches=batches)
    assert list(short) == whole[:batches]
    assert len(short) == batches
    for first in range(batches):
        assert list(Visits(7, 3, 4, seed=5, first=first, batches=batches)) == whole[first:batches]


SIZES = {"a": 12, "b": 6, "c": 3}
CLASSED = [f"{name}{i}" for name, size in SIZES.items() for i in range(size)]
CLASSES = ["abc".index(name[0]) for name in CLASSED]


@pytest.mark.parametrize("seed", range(5))
def test_any_stretch_of_a_stratified_order_has_its_share_of_every_class(seed: int) -> None:
    order = stratified(CLASSED, CLASSES, seed)
    assert sorted(order) == sorted(CLASSED)
    for count in range(1, len(order) + 1):
        for part in (order[:count], order[-count:]):
            for name, size in SIZES.items():
                found = sum(one[0] == name for one in part)
                assert abs(found - count * size / len(order)) < 1.5
    assert order != stratified(CLASSED, CLASSES, seed + 5)


@pytest.mark.parametrize("seed", range(5))
def test_balanced_choices_are_even_nested_and_go_on_where_another_ended(seed: int) -> None:
    before: list[str] = []
    for count in range(10):
        chosen = balanced(CLASSED, CLASSES, count, seed)
        assert chosen[: len(before)] == before and len(set(chosen)) == count
        for other in range(10 - count):
            both = Counter(name[0] for name in chosen + balanced(CLASSED, CLASSES, other, seed, first=count))
            assert max(both.values(), default=0) - min((both[name] for name in "abc"), default=0) <= 1
        before = chosen
    with pytest.raises(ValueError, match="class 2 has 3 samples, and 4 of it are wanted"):
        balanced(CLASSED, CLASSES, 12, seed)
