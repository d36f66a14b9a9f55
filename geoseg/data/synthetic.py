"""Sources of drawn pictures: data that needs no download, for tests, demonstrations and the embedded base model."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from geoseg.data import scenes
from geoseg.data.earth import (
    FACIES_NAMES,
    TEXTURES,
    Section,
    crater_field,
    das_record,
    random_palette,
    section,
    texture,
)
from geoseg.randomness import numpy_stream
from geoseg.types import Sample

VERSION = 1
"""Changes whenever a picture of the same name would look different; part of every fingerprint."""


class Kind(NamedTuple):
    """One question that can be asked of a drawn picture.

    Attributes:
        scene: what is drawn, and whose random numbers it uses; questions about one scene share their pictures.
        draw: makes image and target from random numbers and a size in pixels.
        class_names: what the classes are called, background first where there is one.
    """

    scene: str
    draw: Callable[[np.random.Generator, tuple[int, int]], tuple[np.ndarray, np.ndarray]]
    class_names: tuple[str, ...]


def _of_section(field: str) -> Callable[[np.random.Generator, tuple[int, int]], tuple[np.ndarray, np.ndarray]]:
    """Draws a section and keeps one of its truths."""

    def draw(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        drawn = section(rng, size)
        return drawn.image, getattr(drawn, field)

    return draw


KINDS = {
    "facies": Kind("section", _of_section("labels"), FACIES_NAMES),
    "salt": Kind("section", _of_section("salt"), ("sediment", "salt")),
    "fault": Kind("section", _of_section("fault"), ("rock", "fault")),
    "crater": Kind("crater", crater_field, ("plain", "crater")),
    "das": Kind("das", das_record, ("noise", "event")),
}


class Drawn(ABC):
    """What all drawn sources share: a size, a seed, and names such as ``train_0000`` that say which number to draw.

    Args:
        title: what tables call the data set.
        counts: how many samples each split has.
        digits: length of the number in a name.
        size: height and width, pixels.
        seed: another seed gives other pictures.
        unit: what an independent unit is.
        classes: what the classes are called.
    """

    def __init__(
        self,
        title: str,
        counts: dict[str, int],
        digits: int,
        size: int,
        seed: int,
        unit: str,
        classes: Sequence[str],
    ) -> None:
        self.title = title
        self.counts, self.digits, self.size, self.seed, self.unit = counts, digits, size, seed, unit
        self.names = [f"{split}_{number:0{digits}d}" for split, count in counts.items() for number in range(count)]
        self.class_names = list(classes)
        self.num_classes = len(classes)

    @abstractmethod
    def read(self, name: str) -> Sample:
        """Draws one sample; pure, so that any worker may draw any sample at any time."""

    @abstractmethod
    def parameters(self) -> tuple[str | int, ...]:
        """What decides a picture besides its name."""

    def where(self, name: str) -> tuple[str, int]:
        """Split and number of a sample.

        Raises:
            ValueError: there is no such sample.
        """
        split, _, digits = name.partition("_")
        number = int(digits) if digits.isdecimal() else 0
        if digits != f"{number:0{self.digits}d}" or number >= self.counts.get(split, 0):
            have = ", ".join(f"{count} of {split!r}" for split, count in self.counts.items())
            raise ValueError(f"there is no sample {name!r}; this source has {have}, such as {self.names[:1]}")
        return split, number

    def shape(self, name: str) -> tuple[int, int]:
        """H and W, the same for all samples."""
        return self.size, self.size

    def split(self, name: str) -> str | None:
        """Which split a sample belongs to."""
        return self.where(name)[0]

    def fingerprint(self, names: Sequence[str]) -> str:
        """Identifies the content behind these names: hex SHA-256 of what is drawn and of the first three drawings."""
        digest = hashlib.sha256(repr((type(self).__name__, VERSION, self.parameters(), list(names))).encode())
        for name in names[:3]:
            sample = self.read(name)
            digest.update(sample.image.tobytes() + sample.target.tobytes() + sample.caption.encode())
        return digest.hexdigest()

    def check(self, names: Sequence[str]) -> None:
        """Makes sure that the names exist; drawn pictures cannot be missing or damaged."""
        for name in names:
            self.where(name)


class SyntheticEarth(Drawn):
    """Labelled pictures of drawn ground; the same names give the same bytes on every machine.

    Args:
        kind: what is asked of them: "facies" (six classes), "salt", "fault" (of the same sections), "crater" or "das".
        size: height and width, pixels.
        train: how many samples to learn from.
        val: how many to choose by.
        test: how many to judge by.
        seed: another seed is another earth.
    """

    def __init__(
        self, kind: str = "facies", size: int = 128, train: int = 64, val: int = 8, test: int = 8, seed: int = 0
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is not drawn; choose one of {', '.join(KINDS)}")
        self.kind = kind
        counts = {"train": train, "val": val, "test": test}
        super().__init__(f"synthetic {kind}", counts, 4, size, seed, KINDS[kind].scene, KINDS[kind].class_names)

    def read(self, name: str) -> Sample:
        """Draws one sample: image uint8 [size, size], target uint8 [size, size] with class indices."""
        asked = KINDS[self.kind]
        rng = numpy_stream(self.seed, "earth", asked.scene, *self.where(name))
        image, target = asked.draw(rng, (self.size, self.size))
        return Sample(image, target.astype(np.uint8))

    def parameters(self) -> tuple[str | int, ...]:
        """Kind, size and seed; how many there are changes no picture."""
        return self.kind, self.size, self.seed


class SyntheticScenes(Drawn):
    """Drawn scenes of no ground at all, with the exact region of every material.

    A material is one class wherever it occurs in a scene; between scenes classes have nothing in common but their
    order, by the area they cover. The same name is the same division in flat colours and in textures.

    Args:
        look: "flat" or "textured".
        materials: in a scene, 2 to so many.
        size: height and width, pixels.
        train: how many samples to learn from.
        val: how many to choose by.
        test: how many to judge by.
        seed: another seed gives other scenes.

    Raises:
        ValueError: another look, or fewer than two materials.
    """

    def __init__(
        self,
        look: str = "textured",
        materials: int = 6,
        size: int = 128,
        train: int = 0,
        val: int = 24,
        test: int = 24,
        seed: int = 0,
    ) -> None:
        if look not in ("flat", "textured"):
            raise ValueError(f"look {look!r} is not drawn; choose flat or textured")
        if materials < 2:
            raise ValueError(f"materials={materials}: a scene has two at least")
        self.look, self.materials = look, materials
        classes = ["largest", *(f"{k + 1}. largest" for k in range(1, materials))]
        counts = {"train": train, "val": val, "test": test}
        super().__init__(f"{look} scenes", counts, 4, size, seed, "scene", classes)

    def read(self, name: str) -> Sample:
        """Draws one sample: image uint8 [size, size, 3], target uint8 [size, size] with class indices."""
        rng = numpy_stream(self.seed, "labelled scenes", *self.where(name))
        image, target = scenes.regions(rng, (self.size, self.size), self.look == "textured", self.materials)
        return Sample(image, target)

    def parameters(self) -> tuple[str | int, ...]:
        """Look, materials, size and seed; how many there are changes no picture."""
        return self.look, self.materials, self.size, self.seed


class SyntheticMattes(Drawn):
    """Drawn things with soft edges, hairs or glass over textured grounds, and the exact matte that composed them.

    Args:
        size: height and width, pixels.
        train: how many samples to learn from.
        val: how many to choose by.
        test: how many to judge by.
        seed: another seed gives other pictures.
    """

    continuous = True

    def __init__(self, size: int = 128, train: int = 64, val: int = 8, test: int = 8, seed: int = 0) -> None:
        counts = {"train": train, "val": val, "test": test}
        super().__init__("synthetic mattes", counts, 4, size, seed, "picture", ("ground", "thing"))

    def read(self, name: str) -> Sample:
        """Draws one sample: image uint8 [size, size, 3], target float32 [size, size], alpha in [0, 1]."""
        rng = numpy_stream(self.seed, "mattes", *self.where(name))
        return Sample(*scenes.matte(rng, (self.size, self.size)))

    def parameters(self) -> tuple[str | int, ...]:
        """Size and seed; how many there are changes no picture."""
        return self.size, self.seed


QUALITIES = ("", "8k, ", "ultra-high resolution, ", "8k, ultra-high resolution, ", "high quality, ")

SUBJECTS = {
    "section": ("seismic profile", "seismic section", "grayscale seismic image", "geological profile"),
    "map": (
        "label map",
        "flat colour tiles",
        "segmentation map",
        "tile",
        "tile, smooth edges",
        "label map, tile, smooth edges",
    ),
    "crater": ("lunar surface, craters", "craters"),
    "das": ("das record, seismic events", "distributed acoustic sensing record"),
    "texture": ("abstract texture",),
}
"""What a caption calls each kind of picture."""


class Picture(NamedTuple):
    """A picture on its way into a corpus.

    Attributes:
        image: uint8 [H, W] or [H, W, 3].
        regions: uint8 [H, W].
        subject: key of ``SUBJECTS``.
        words: what is in it.
    """

    image: np.ndarray
    regions: np.ndarray
    subject: str
    words: tuple[str, ...] = ()


def _section_picture(rng: np.random.Generator, size: tuple[int, int]) -> Picture:
    """A grey section; its regions are the single beds."""
    drawn = section(rng, size)
    return Picture(drawn.image, drawn.regions, "section", drawn.words)


def draw_map(rng: np.random.Generator, size: tuple[int, int]) -> Picture:
    """A label map in colours of its own: of the facies in their order, or of beds in any order."""
    drawn = section(rng, size)
    if rng.random() < 0.5:
        return Picture(random_palette(rng, len(FACIES_NAMES))[drawn.labels], drawn.labels, "map", drawn.words)
    regions, paint = shuffle_beds(rng, drawn)
    return Picture(random_palette(rng, int(paint.max()) + 1)[paint], regions, "map", drawn.words)


def shuffle_beds(rng: np.random.Generator, drawn: Section) -> tuple[np.ndarray, np.ndarray]:
    """Merges neighbouring beds at random and gives the stacks shuffled classes, so that order says nothing.

    Returns:
        uint8 [H, W] twice: the merged regions, and their classes, which differ between neighbours in the stack.
    """
    beds = int(drawn.regions.max()) + 1
    starts = rng.random(beds) < rng.uniform(0.1, 0.6)
    starts[0] = False
    if drawn.salt.any():
        starts[-1] = True  # salt is the last region
    merged = np.cumsum(starts)
    colours = int(rng.integers(3, 10))
    steps = rng.integers(1, colours, int(merged.max()) + 1)
    classes = np.cumsum(steps) % colours
    if drawn.salt.any():
        classes[-1] = colours
    return merged.astype(np.uint8)[drawn.regions], classes.astype(np.uint8)[merged[drawn.regions]]


def _crater_picture(rng: np.random.Generator, size: tuple[int, int]) -> Picture:
    """Cratered ground."""
    image, mask = crater_field(rng, size)
    return Picture(image, mask.astype(np.uint8), "crater")


def _das_picture(rng: np.random.Generator, size: tuple[int, int]) -> Picture:
    """A fibre-optic record."""
    image, mask = das_record(rng, size)
    return Picture(image, mask.astype(np.uint8), "das")


def _texture_picture(rng: np.random.Generator, size: tuple[int, int]) -> Picture:
    """A texture; its regions are its colours."""
    image, word = texture(rng, size)
    flat = word != TEXTURES[-1]  # a gradient is one region
    regions = (image != image[0, 0]).any(axis=2) & flat
    return Picture(image, regions.astype(np.uint8), "texture", (word,))


MIXTURE = (
    (0.40, _section_picture),
    (0.40, draw_map),
    (0.08, _crater_picture),
    (0.06, _das_picture),
    (0.06, _texture_picture),
)
"""Share of each kind of picture in a corpus."""


class Corpus(Drawn):
    """Captioned pictures of many kinds, from which an image model learns what the words look like.

    It has regions but no classes. Reserved colours never occur in it, so that painting with them is new to its models.

    Args:
        count: how many pictures to learn from.
        size: height and width, pixels.
        seed: another seed is another corpus.
        val: how many pictures to watch the training with.
    """

    def __init__(self, count: int, size: int = 128, seed: int = 0, val: int = 64) -> None:
        super().__init__("synthetic corpus", {"train": count, "val": val}, 6, size, seed, "image", ())

    def read(self, name: str) -> Sample:
        """Draws one picture: image uint8 [size, size, 3], target uint8 [size, size] with its regions, and a caption."""
        rng = numpy_stream(self.seed, "corpus", *self.where(name))
        draw = MIXTURE[int(rng.choice(len(MIXTURE), p=[share for share, _ in MIXTURE]))][1]
        image, regions, subject, words = draw(rng, (self.size, self.size))
        quality = QUALITIES[int(rng.integers(len(QUALITIES)))]
        subjects = SUBJECTS[subject]
        said = [subjects[int(rng.integers(len(subjects)))], *(words[i] for i in rng.permutation(len(words)))]
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        return Sample(image, regions, quality + ", ".join(said))

    def parameters(self) -> tuple[str | int, ...]:
        """Size and seed; how many there are changes no picture."""
        return self.size, self.seed
