"""Drawn pictures: the same bytes everywhere, and a truth that agrees with the picture."""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from geoseg.data.earth import (
    RESERVED_COLOURS,
    SALT,
    Section,
    crater_field,
    das_record,
    palette_distance,
    random_palette,
    section,
    texture,
)
from geoseg.data.synthetic import KINDS, SUBJECTS, Corpus, Drawn, SyntheticEarth
from geoseg.randomness import numpy_stream
from geoseg.types import Sample

PINNED = {
    "facies": "52d3b0b1533aca95",
    "salt": "337f19fba7404cd6",
    "fault": "ec4c4663a9b238e9",
    "crater": "e2127adca44c39f4",
    "das": "5f58a2d6cc4406fe",
}
PINNED_CORPUS = [
    "8daef3691b248dad",
    "86f7e54e2e4c7f32",
    "6abb597959b918f9",
    "5ce568c969446a18",
    "923d1c3bb166bd5b",
    "f93e70d3625812f2",
    "46d5ddd41c22f18b",
    "f6e7f8474f797069",
    "0694e3303a8eb56a",
    "b60b8745d25e1a5c",
    "dd70b1949ab567ae",
    "4b5c935c05e5d39e",
]


def digest(sample: Sample) -> str:
    return hashlib.sha256(sample.image.tobytes() + sample.target.tobytes() + sample.caption.encode()).hexdigest()[:16]


def sections(count: int, seed: int = 0, **asked: bool | int) -> list[Section]:
    return [section(numpy_stream(seed, "tests", number), **asked) for number in range(count)]  # type: ignore[arg-type]


class Digests(Dataset[str]):
    def __init__(self, source: Drawn) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.names)

    def __getitem__(self, index: int) -> str:
        return digest(self.source.read(self.source.names[index]))


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_each_kind_are_pinned(kind: str) -> None:
    assert digest(SyntheticEarth(kind).read("train_0003")) == PINNED[kind]


def test_bytes_of_the_corpus_are_pinned() -> None:
    corpus = Corpus(12)
    assert [digest(corpus.read(name)) for name in corpus.names[:12]] == PINNED_CORPUS


@pytest.mark.parametrize("source", [SyntheticEarth("facies", 64, 6, 1, 1), Corpus(10, 64, val=2)])
def test_bytes_depend_neither_on_order_nor_on_workers(source: Drawn) -> None:
    alone = {name: digest(source.read(name)) for name in reversed(source.names)}
    loader: DataLoader[str] = DataLoader(Digests(source), batch_size=2, num_workers=2)
    assert [one for batch in loader for one in batch] == [alone[name] for name in source.names]
    assert len(set(alone.values())) == len(source.names), "two names show the same picture"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [32, 96])
def test_samples_are_what_a_source_promises(kind: str, size: int) -> None:
    source = SyntheticEarth(kind, size=size, train=6, val=2, test=1)
    assert [source.split(name) for name in source.names] == ["train"] * 6 + ["val"] * 2 + ["test"]
    assert len(source.class_names) == source.num_classes == (6 if kind == "facies" else 2)
    for name in source.names:
        image, target, caption = source.read(name)
        assert image.shape == target.shape == source.shape(name) == (size, size)
        assert image.dtype == target.dtype == np.uint8
        assert target.max() < source.num_classes and caption == ""
        assert image.std() > 5
    targets = [source.read(name).target for name in source.names]
    assert len(np.unique(targets)) > 1


def test_salt_fault_and_facies_are_asked_of_the_same_sections() -> None:
    facies, salt, fault = (SyntheticEarth(kind) for kind in ("facies", "salt", "fault"))
    for name in facies.names[:10]:
        assert (facies.read(name).image == salt.read(name).image).all()
        assert (facies.read(name).image == fault.read(name).image).all()
        assert ((facies.read(name).target == SALT) == salt.read(name).target).all()


def test_earth_and_corpus_are_different_pictures() -> None:
    """The corpus trains what is later judged on the earth, so no picture may be in both."""
    earth, corpus = SyntheticEarth(train=40), Corpus(40, val=16)
    judged = {earth.read(name).image.tobytes() for name in earth.names}
    learnt = {corpus.read(name).image[..., 0].tobytes() for name in corpus.names}
    assert len(judged) == 56 == len(learnt)
    assert not judged & learnt


def test_seeds_splits_and_questions_change_the_fingerprint() -> None:
    names = SyntheticEarth().names[:4]
    sources: list[Drawn] = [SyntheticEarth(), SyntheticEarth("salt"), SyntheticEarth(seed=1), SyntheticEarth(size=64)]
    prints = {source.fingerprint(names) for source in sources} | {SyntheticEarth().fingerprint(names[:3])}
    assert len(prints) == 5
    assert SyntheticEarth(train=100).fingerprint(names) == SyntheticEarth().fingerprint(names)


@pytest.mark.parametrize("name", ["train_0064", "train_3", "holdout_0001", "train", "train_-001", "train_00003"])
def test_unknown_names_are_refused(name: str) -> None:
    source = SyntheticEarth()
    for ask in (source.read, source.split, lambda name: source.check([name])):
        with pytest.raises(ValueError, match="there is no sample"):
            ask(name)


def test_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="facies, salt, fault, crater, das"):
        SyntheticEarth("gravity")


def test_facies_come_in_the_order_of_their_depth() -> None:
    for drawn in sections(12, faults=0, salt=False):
        present = np.unique(drawn.labels)
        assert (present == np.arange(present[0], present[-1] + 1)).all() and 2 <= len(present) <= 5
        assert (np.diff(drawn.labels.astype(int), axis=0) >= 0).all(), "a younger facies lies below an older one"
        assert (np.diff(drawn.regions.astype(int), axis=0) >= 0).all(), "a younger bed lies below an older one"


def test_regions_refine_labels() -> None:
    for drawn in sections(20):
        for region in range(drawn.regions.max() + 1):
            assert len(np.unique(drawn.labels[drawn.regions == region])) == 1
        assert (drawn.labels == SALT).tolist() == drawn.salt.tolist()
        assert drawn.regions.max() < 254


def test_beds_are_as_thick_as_in_a_real_section() -> None:
    thickness = [128 / (1 + (np.diff(s.regions.astype(int), axis=0) > 0).sum(axis=0).mean()) for s in sections(30)]
    assert min(thickness) > 4 and max(thickness) < 10


def test_a_fault_displaces_what_it_cuts() -> None:
    """The top of a facies steps where the mask says a fault is, and is smooth where there is none."""
    beside, elsewhere = [], []
    for drawn in sections(40, faults=1, salt=False):
        if drawn.words != ("one fault",):
            continue
        for facies in np.unique(drawn.labels)[1:]:
            top = (drawn.labels < facies).sum(axis=0)
            step = np.abs(top[6:] - top[:-6])
            inside = (top[3:-3] > 5) & (top[3:-3] < 123)
            cut = np.array([drawn.fault[max(row - 8, 0) : row + 8, col].any() for col, row in enumerate(top)])
            near = np.convolve(cut, np.ones(9), "same") > 0
            if (cut[3:-3] & inside).any():
                beside.append(step[cut[3:-3] & inside].max())
            elsewhere.extend(step[~near[3:-3] & inside])
    assert len(beside) > 10
    assert np.median(beside) >= 4 and np.median(elsewhere) <= 2
    assert np.quantile(elsewhere, 0.95) < np.median(beside)


def test_facies_are_told_apart_by_their_texture() -> None:
    """Mean amplitude ranks the facies as the table says, and chalk reflects with the longest wavelet."""
    strength: dict[int, list[float]] = {facies: [] for facies in range(SALT + 1)}
    length: dict[int, list[float]] = {facies: [] for facies in range(SALT + 1)}
    for drawn in sections(80):
        wave = drawn.image.astype(float) - 128
        for facies in range(SALT + 1):
            here = drawn.labels == facies
            if here.sum() > 400:
                strength[facies].append(wave[here].std())
                turns = ((wave[1:] > 0) != (wave[:-1] > 0)) & here[1:] & here[:-1]
                length[facies].append(here.sum() / max(turns.sum(), 1))
    strong = {facies: np.mean(values) for facies, values in strength.items()}
    assert strong[3] > max(strong[0], strong[2]) > min(strong[0], strong[2]) > strong[4] > strong[1]
    assert strong[SALT] < strong[4]
    upper, lower, chalk = (np.mean(length[facies]) for facies in (0, 2, 3))
    assert upper < lower < chalk


def test_words_say_what_is_in_a_section() -> None:
    drawn = sections(60)
    for one in drawn:
        assert ("salt dome" in one.words) == one.salt.any()
        assert ("faults" in one.words or "one fault" in one.words) == one.fault.any()
        assert ("continuous layers" in one.words) <= (len(one.words) == 1 and not one.fault.any())
    assert 0.2 < np.mean([one.salt.any() for one in drawn]) < 0.5
    assert 0.2 < np.mean(["unconformity" in one.words for one in drawn]) < 0.55
    assert all(one.salt.any() for one in sections(10, salt=True))
    assert not any(one.fault.any() for one in sections(10, faults=0))


def test_salt_has_a_bright_edge() -> None:
    gaps = []
    for one in sections(20, salt=True):
        covered = one.salt.any(axis=0) & ~one.salt[0]
        top = one.salt.argmax(axis=0)[covered]
        gaps.append(one.image[top, np.flatnonzero(covered)].mean() - one.image[one.salt].mean())
    assert np.mean(gaps) > 30 and min(gaps) > 0


def test_craters_stand_out_from_the_plain() -> None:
    for number in range(5):
        image, mask = crater_field(numpy_stream(0, "craters", number))
        assert image.dtype == np.uint8 and mask.dtype == bool and 0 < mask.mean() < 0.9
        assert image[mask].std() > image[~mask].std()


def test_das_events_are_louder_than_the_noise() -> None:
    louder = []
    for number in range(10):
        image, mask = das_record(numpy_stream(0, "das", number))
        assert image.dtype == np.uint8 and mask.dtype == bool and 0 < mask.mean() < 0.6
        louder.append(image[mask].std() / image[~mask].std())
    assert min(louder) > 1 and np.mean(louder) > 1.2


def test_textures_show_what_their_word_says() -> None:
    seen = set()
    for number in range(40):
        image, word = texture(numpy_stream(0, "texture", number), (48, 64))
        colours = len(np.unique(image.reshape(-1, 3), axis=0))
        assert image.shape == (48, 64, 3) and image.dtype == np.uint8
        assert colours > 10 if word == "gradient" else colours == 2
        seen.add(word)
    assert seen == {"stripes", "checkerboard", "blobs", "gradient"}


@pytest.mark.parametrize("count", [1, 2, 6, 10, 40, 254])
def test_palettes_keep_their_distances(count: int) -> None:
    greys = 0
    for number in range(60 if count < 50 else 8):
        palette = random_palette(numpy_stream(0, "palette", number), count)
        assert palette.shape == (count, 3) and palette.dtype == np.uint8
        colours = palette.astype(float)
        assert np.linalg.norm(colours[:, None] - RESERVED_COLOURS.astype(float), axis=2).min() >= 40
        grey = bool((np.ptp(colours, axis=1) == 0).all())
        greys += grey
        wanted = 0.5 * np.sqrt(3) * (255 / count - 2) if grey else palette_distance(count)
        for one, other in combinations(colours[:60], 2):
            assert np.linalg.norm(one - other) >= wanted
    assert count > 50 or 2 <= greys <= 18


def test_palette_of_too_many_colours_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 254"):
        random_palette(numpy_stream(0), 255)


def test_corpus_never_shows_a_reserved_colour_and_names_what_it_shows() -> None:
    corpus = Corpus(120, size=64, val=0)
    subjects = dict.fromkeys(SUBJECTS, 0)
    for name in corpus.names:
        image, regions, caption = corpus.read(name)
        assert image.shape == (64, 64, 3) and regions.shape == (64, 64)
        assert image.dtype == regions.dtype == np.uint8 and regions.max() < 254
        colours = np.unique(image.reshape(-1, 3), axis=0).astype(float)
        assert np.linalg.norm(colours[:, None] - RESERVED_COLOURS.astype(float), axis=2).min() >= 40
        (kind,) = [kind for kind, said in SUBJECTS.items() if any(f" {word}," in f" {caption}," for word in said)]
        subjects[kind] += 1
        flat = kind == "map" or (kind == "texture" and "gradient" not in caption)
        if flat:
            for region in np.unique(regions):
                assert len(np.unique(image[regions == region], axis=0)) == 1, "a region has two colours"
        if kind in ("section", "crater", "das"):
            assert (np.ptp(image, axis=2) == 0).all()
    assert 34 <= subjects["section"] <= 62 and 34 <= subjects["map"] <= 62
    assert min(subjects.values()) > 0
