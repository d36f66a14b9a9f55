"""Real and generated pictures in any share: whether a classifier can learn from what another model has drawn."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geoseg.data.image_folder import ImageFolder
from geoseg.data.profiles import listed
from geoseg.data.sampling import balanced, choose_random
from geoseg.randomness import numpy_stream
from geoseg.types import Sample

RESTS = ("generated", "nothing", "noised")
"""What may stand beside the real pictures of a training set."""

MANIFEST = "manifest.json"

GENERATED = "generated/"
"""How names of generated pictures begin."""


class Mixture:
    """A data set of whole images whose training set is part real and part not; validation and test stay real.

    Classes take turns in both parts and over both together, so that their numbers differ by one at most. With one
    seed, the real pictures of a smaller share are among those of a larger one.

    The generated pictures lie in a folder that ``geoseg synthesize`` has filled. Its ``manifest.json`` says which real
    pictures the generator has learnt from: none of these may be one to choose or to judge by.

    Args:
        source: the real pictures; it says which are to choose and to judge by.
        synthetic: the folder of generated pictures; null where none are asked for.
        total: pictures of the training set; null: as many as there are real ones.
        real: share of these that is real, 0 to 1; published: 0.8 to 0.2.
        rest: what the others are: "generated"; "nothing", so that the real part is left alone; or "noised", copies of
            its real pictures under noise.
        noise: standard deviation of that noise, of values 0 to 1.
        seen: takes real pictures of those alone that the generator has learnt from; ``total`` null takes all of them.
        choice_seed: decides which pictures are taken.

    Raises:
        ValueError: a setting is out of range, there are too few pictures, the folder of generated ones does not fit
            the real ones, or their generator has seen what is to judge it.
    """

    per_image = True

    def __init__(
        self,
        source: Any,
        synthetic: str | None = None,
        total: int | None = None,
        real: float = 1.0,
        rest: str = "generated",
        noise: float = 0.1,
        seen: bool = False,
        choice_seed: int = 0,
    ) -> None:
        _check(source, real, rest, noise)
        self.source, self.noise, self.choice_seed = source, noise, choice_seed
        self.title, self.unit = source.title, source.unit
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self._held = [name for name in source.names if source.split(name) in ("val", "test")]
        pool = [name for name in source.names if source.split(name) == "train"]
        self._folder, self._manifest, self._drawn = None, dict[str, Any](), frozenset[str]()
        if synthetic is not None:
            self._manifest = _read_manifest(Path(synthetic).expanduser())
            self._folder = ImageFolder(synthetic, class_names=source.class_names)
            self._drawn = frozenset(self._folder.names)
            self._check_generator()
        if seen:
            pool = [name for name in pool if name in set(self._learnt("data.source.seen=true"))]
        total = len(pool) if total is None else total
        if total < 1:
            raise ValueError(f"data.source.total={total}: 1 picture or more is wanted, or null for all real ones")
        count = round(real * total)
        chosen = self._balanced("real", pool, source.label, count)
        self._parts: dict[str, tuple[str, str]] = {name: ("real", name) for name in chosen}
        if count < total and rest == "generated":
            if self._folder is None:
                raise ValueError(
                    f"data.source.synthetic is not given, and {total - count} of {total} pictures are to be generated "
                    "ones; name a folder that geoseg synthesize has filled, or data.source.rest=nothing for the real "
                    "part alone"
                )
            drawn = self._balanced("generated", self._folder.names, self._folder.label, total - count, count)
            self._check_twins(drawn)
            self._parts |= {f"{GENERATED}{name}": ("generated", name) for name in drawn}
        elif rest == "noised":
            self._parts |= self._noised(chosen, total - count)
        self.names = [*self._parts, *self._held]

    def read(self, name: str) -> Sample:
        """Reads one picture: image uint8 [H, W, 3], target uint8 [] with its class, and the caption of its class."""
        kind, where = self._part(name)
        if kind == "generated":
            assert self._folder is not None
            return self._folder.read(where)._replace(caption=self.words(self.label(name)))
        sample: Sample = self.source.read(where)
        if kind == "noised":
            rng = numpy_stream(self.choice_seed, "noised", name)
            noisy = sample.image + 255 * self.noise * rng.standard_normal(sample.image.shape)
            return sample._replace(image=np.rint(noisy.clip(0, 255)).astype(np.uint8))
        return sample

    def label(self, name: str) -> int:
        """The class of a picture, without reading it."""
        kind, where = self._part(name)
        if kind == "generated":
            assert self._folder is not None
            return self._folder.label(where)
        label: int = self.source.label(where)
        return label

    def words(self, class_index: int) -> str:
        """The caption of a class's pictures."""
        caption: str = self.source.words(class_index)
        return caption

    def shape(self, name: str) -> tuple[int, int]:
        """H and W of one picture."""
        kind, where = self._part(name)
        if kind == "generated":
            assert self._folder is not None
            return self._folder.shape(where)
        shape: tuple[int, int] = self.source.shape(where)
        return shape

    def split(self, name: str) -> str | None:
        """For training, or what the real pictures' source says."""
        if name in self._parts:
            return "train"
        split: str | None = self.source.split(name)
        return split

    def check(self, names: Sequence[str]) -> None:
        """Looks at every picture as its source does, and whether real and generated ones have the same size.

        Raises:
            ValueError: lists the first ten offenders.
        """
        real, generated = self._of("real", names), self._of("generated", names)
        self.source.check(real)
        if self._folder is None or not generated:
            return
        shapes = {self.source.shape(name) for name in real}
        wrong = []
        for name in generated:  # two that are the same are no leak, since none of them is to judge by
            try:
                found = self._folder.read(name).image.shape[:2]
            except ValueError as error:
                wrong.append(f"{Path(name).parent}: {error}")
                continue
            if found not in shapes:
                wrong.append(f"{name}: {list(found)} pixels, and the real ones have {sorted(map(list, shapes))}")
        if wrong:
            raise ValueError(
                listed(f"{len(wrong)} of the generated pictures in {self._folder.root} cannot be used", wrong)
            )

    def fingerprint(self, names: Sequence[str]) -> str:
        """Hash of the real and the generated pictures, of who is what, and of the noise."""
        told = [self._part(name) for name in names]
        noise = self.noise if any(kind == "noised" for kind, _ in told) else None
        drawn = self._of("generated", names)
        of_drawn = self._folder.fingerprint(drawn) if self._folder is not None and drawn else None
        parts = (self.source.fingerprint(self._of("real", names)), of_drawn, noise, told)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _part(self, name: str) -> tuple[str, str]:
        """What a picture is, "real", "generated" or "noised", and how its own source calls it.

        Generated ones may be others than those chosen: a run that has learnt from them is asked what it knows.
        """
        if name in self._parts:
            return self._parts[name]
        where = name.removeprefix(GENERATED)
        return ("generated", where) if where != name and where in self._drawn else ("real", name)

    def _of(self, kind: str, names: Sequence[str]) -> list[str]:
        """Pictures as their own source calls them; those that are noised are real ones."""
        found = [self._part(name) for name in names]
        return list(dict.fromkeys(name for of, name in found if ("generated" if of == "generated" else "real") == kind))

    def _balanced(self, what: str, pool: Sequence[str], label: Any, count: int, first: int = 0) -> list[str]:
        if count == len(pool):  # all there are, however even
            return choose_random(pool, count, self.choice_seed)
        try:
            return balanced(pool, [label(name) for name in pool], count, self.choice_seed, first)
        except ValueError:
            counts = Counter(label(name) for name in pool)
            fewest = min(counts, key=lambda k: counts[k])
            remedy = "a larger total of geoseg synthesize" if what == "generated" else "more for training in its source"
            raise ValueError(
                f"{count} {what} pictures are wanted, as many of every class, and there are {len(pool)}, of the class "
                f"{self.class_names[fewest]!r} {counts[fewest]}; lower data.source.total, or give more: {remedy}"
            ) from None

    def _noised(self, chosen: Sequence[str], count: int) -> dict[str, tuple[str, str]]:
        """Copies of the real part: every class's pictures in turn, as often as needed, the classes in turn."""
        by_class: dict[int, list[str]] = {}
        for name in chosen:
            by_class.setdefault(self.source.label(name), []).append(name)
        if count and len(by_class) < self.num_classes:
            raise ValueError(
                f"data.source.rest=noised copies real pictures, and of {self.num_classes} classes the real part has "
                f"{len(by_class)}; raise data.source.real or data.source.total"
            )
        order = list(by_class)  # as classes take turns
        met = Counter[int]()
        made = {}
        for turn in range(len(chosen), len(chosen) + count):
            label = order[turn % len(order)]
            name = by_class[label][met[label] % len(by_class[label])]
            made[f"noised/{met[label] // len(by_class[label])}/{name}"] = ("noised", name)
            met[label] += 1
        return made

    def _learnt(self, option: str) -> list[str]:
        """The real pictures that the generator has learnt from."""
        if self._folder is None:
            raise ValueError(
                f"{option}: which pictures the generator has seen stands in data.source.synthetic; name it"
            )
        names: list[str] = self._manifest["trained_on"]["names"]
        return names

    def _check_generator(self) -> None:
        """Whether the generator has learnt from pictures of this data set that are free to be learnt from."""
        assert self._folder is not None
        where, learnt = self._folder.root / MANIFEST, self._learnt("data.source.synthetic")
        if leaked := sorted(set(learnt) & set(self._held)):
            raise ValueError(
                listed(
                    f"{where}: the generator has learnt from {len(leaked)} pictures that are to choose or to judge by "
                    "here, so that a test would be no test; train it on the training split of these data",
                    [f"{name} ({self.source.split(name)})" for name in leaked],
                )
            )
        if strange := sorted(set(learnt) - set(self.source.names)):
            raise ValueError(
                listed(
                    f"{where}: the generator has learnt from {len(strange)} pictures that {self.title} has not, so "
                    "that nobody can say whether these are among those to judge by; give the data it was trained on",
                    strange,
                )
            )
        if self.source.fingerprint(learnt) != self._manifest["trained_on"]["digest"]:
            raise ValueError(
                f"{where}: the {len(learnt)} pictures that the generator has learnt from are others by now, under the "
                "same names; give data.source.source as it was then: the same files, or size, seed and template"
            )

    def _check_twins(self, drawn: Sequence[str]) -> None:
        """Whether a generated picture is most like one that is to judge by."""
        assert self._folder is not None
        near = {str(one["file"]): _name_of(one["near"]) for one in self._manifest["images"]}
        held = set(self._held)
        if leaked := [f"{name}: nearest is {near[name]}" for name in drawn if near.get(name) in held]:
            raise ValueError(
                listed(
                    "generated pictures whose nearest real one is to choose or to judge by must not be learnt", leaked
                )
            )
        if strange := [name for name in drawn if name not in near]:
            raise ValueError(
                listed(
                    f"{self._folder.root / MANIFEST} does not name pictures that lie beside it; move them away", strange
                )
            )


def _check(source: Any, real: float, rest: str, noise: float) -> None:
    """Looks at the settings that can be judged by themselves."""
    if not getattr(source, "per_image", False):
        raise ValueError(f"data.source.source ({source.title}) has a class per pixel; a mixture is of whole images")
    if not 0 <= real <= 1:
        raise ValueError(f"data.source.real={real}: a share of the training set is wanted, 0 to 1")
    if rest not in RESTS:
        raise ValueError(f"data.source.rest={rest!r}: choose one of {', '.join(RESTS)}")
    if noise < 0:
        raise ValueError(f"data.source.noise={noise}: a standard deviation is wanted, of values 0 to 1")
    if not any(source.split(name) == "test" for name in source.names):
        raise ValueError(
            f"{source.title} does not say which pictures are to judge by, and a mixture must never learn from them; "
            "give data.source.source.val and data.source.source.test a number of pictures, or a share"
        )


def _read_manifest(folder: Path) -> dict[str, Any]:
    """What generated the pictures of a folder.

    Raises:
        ValueError: there is no such folder or manifest, it is not finished, or does not say what is needed.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ValueError(f"data.source.synthetic={folder}: there is no such folder; geoseg synthesize fills one")
    if not path.is_file():
        raise ValueError(
            f"data.source.synthetic={folder}: there is no {MANIFEST}, which says what its pictures were generated "
            "from; fill the folder with geoseg synthesize"
        )
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("status", "done") != "done":
        raise ValueError(f"{path} says {manifest['status']!r}; call geoseg synthesize once more, which goes on with it")
    learnt = manifest.get("trained_on")
    if not isinstance(learnt, Mapping) or not {"names", "digest"} <= learnt.keys() or "images" not in manifest:
        raise ValueError(
            f"{path} does not say what the generator has learnt from (trained_on: names, digest) and which pictures it "
            "made (images); fill the folder with geoseg synthesize"
        )
    return manifest


def _name_of(near: Mapping[str, Any] | str | None) -> str | None:
    return near["name"] if isinstance(near, Mapping) else near
