"""Pictures sorted into folders, each folder a class: what a classifier of whole pictures learns from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from geoseg.data.copies import Copies
from geoseg.data.pictures import read_profile, size
from geoseg.data.profiles import SUFFIXES, listed, natural
from geoseg.data.sampling import stratified
from geoseg.types import Sample

TEMPLATE = "a satellite image of {}"
"""What a caption says of a class."""

MARK = "{}"
"""Where a template has the name of the class."""


class ImageFolder:
    """Pictures in ``<root>/<class>/<file>``; a sample is called after both, such as ``airplane/airplane001.jpg``.

    Underscores in the name of a class's folder are read as spaces. Grey pictures become three equal channels.

    Args:
        root: the folder that holds the folders of the classes, or ``images``.
        images: a folder below root that holds them; None: root itself does.
        class_names: the classes there must be, in their order, with spaces or underscores; None takes every folder.
        val: pictures to choose by, a number, or a share of all below 1.
        test: pictures to judge by, likewise. Without both, the data module chooses them by its seed.
        split_seed: decides who is in which; each split has its share of every class.
        leave_out: samples that are not used, such as copies.
        template: a picture's caption, with {} where the name of its class stands.
        title: what tables call the data set; None: the name of root.

    Raises:
        ValueError: folders, classes or pictures are missing, the splits leave nothing to train on, or the template has
            no place for the class.
    """

    per_image = True
    unit = "image"

    def __init__(
        self,
        root: str,
        images: str | None = None,
        class_names: Sequence[str] | None = None,
        val: float | None = None,
        test: float | None = None,
        split_seed: int = 0,
        leave_out: Sequence[str] = (),
        template: str = TEMPLATE,
        title: str | None = None,
    ) -> None:
        check_template(template, "data.source.template")
        top = Path(root).expanduser()
        self.root = top / (images or "")
        if not top.is_dir():
            raise ValueError(f"data.root={root}: there is no such folder; give the one that holds those of the classes")
        if not self.root.is_dir():
            raise ValueError(
                f"data.root={root}: there is no folder {self.root}; give the one that holds the folder {images}, or "
                "data.source.images=null where the folders of the classes lie in it"
            )
        folders = _folders(self.root)
        wanted = [spaced(name) for name in class_names] if class_names is not None else sorted(folders)
        wrong = [f"no folder for the class {name!r}" for name in wanted if name not in folders]
        wrong += [f"{folders[name].name} is none of the {len(wanted)} classes" for name in folders.keys() - set(wanted)]
        if wrong:
            raise ValueError(listed(f"{self.root} does not hold the classes of this data set", sorted(wrong)))
        self.class_names, self.num_classes, self.template = wanted, len(wanted), template
        self.title = title or top.resolve().name
        self._files: dict[str, tuple[Path, int]] = {}
        for label, name in enumerate(wanted):
            found = [path for path in sorted(folders[name].iterdir()) if _is_picture(path)]
            if not found:
                raise ValueError(f"{folders[name]} holds no picture ({', '.join(SUFFIXES)})")
            self._files |= {f"{folders[name].name}/{path.name}": (path, label) for path in found}
        if strange := [name for name in leave_out if name not in self._files]:
            raise ValueError(listed(f"data.source.leave_out names what is not in {self.root}", strange))
        self._files = {name: found for name, found in self._files.items() if name not in set(leave_out)}
        self.names = list(self._files)
        self._splits = self._placed(val, test, split_seed)

    def read(self, name: str) -> Sample:
        """Reads one picture: image uint8 [H, W, 3], target uint8 [] with its class, and a caption."""
        path, label = self._files[name]
        image = read_profile(path)
        image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
        return Sample(image, np.array(label, np.uint8), self.words(label))

    def label(self, name: str) -> int:
        """The class of a picture, by its folder."""
        return self._files[name][1]

    def words(self, class_index: int) -> str:
        """The caption of a class's pictures."""
        return caption(self.template, self.class_names[class_index])

    def shape(self, name: str) -> tuple[int, int]:
        """H and W as a viewer shows the picture."""
        return size(self._files[name][0])

    def split(self, name: str) -> str | None:
        """Which split a picture is for, where that is not left to the data module."""
        return self._splits.get(name)

    def check(self, names: Sequence[str]) -> None:
        """Reads every named picture: readable, and in no other split as well.

        Raises:
            ValueError: lists the first ten offenders.
        """
        wrong, copies = [], Copies(self.split)
        for name in sorted(names, key=natural):
            try:
                other = copies.of(name, self.read(name).image)
            except ValueError as error:
                wrong.append(f"{Path(name).parent}: {error}")
                continue
            if other is not None:
                wrong.append(f"{name}: the same picture as {other}; name one of them in data.source.leave_out")
        if wrong:
            raise ValueError(listed(f"{len(wrong)} of the pictures in {self.root} cannot be used", wrong))

    def fingerprint(self, names: Sequence[str]) -> str:
        """Hash of names, classes, captions and file contents."""
        digest = hashlib.sha256(repr((self.class_names, self.template)).encode())
        for name in names:
            digest.update(f"{name}:{self.label(name)}:".encode())
            digest.update(self._files[name][0].read_bytes())
        return digest.hexdigest()

    def _placed(self, val: float | None, test: float | None, seed: int) -> dict[str, str]:
        if val is None and test is None:
            return {}
        counts = []
        for option, value in (("val", val or 0), ("test", test or 0)):
            if value < 0 or (value >= 1 and value != int(value)):
                raise ValueError(f"data.source.{option}={value}: a number of pictures is wanted, or a share below 1")
            counts.append(round(value * len(self.names)) if value < 1 else int(value))
        if sum(counts) >= len(self.names):
            raise ValueError(
                f"data.source.val={val} and test={test} are {sum(counts)} pictures, and {self.root} holds "
                f"{len(self.names)}, so that none is left to train on; lower them"
            )
        order = stratified(self.names, [self.label(name) for name in self.names], seed)
        begin = len(order) - sum(counts)
        parts = {"train": order[:begin], "val": order[begin : begin + counts[0]], "test": order[begin + counts[0] :]}
        return {name: split for split, names in parts.items() for name in names}


def spaced(name: str) -> str:
    """The name of a class as people write it.

    >>> spaced("storage_tank")
    'storage tank'
    """
    return name.replace("_", " ")


def caption(template: str, name: str) -> str:
    """What a template says of a class.

    >>> caption("a satellite image of {}", "storage_tank")
    'a satellite image of storage tank'
    """
    return template.replace(MARK, spaced(name))


def check_template(template: str, option: str) -> None:
    """Looks whether words tell classes apart.

    Raises:
        ValueError: the template has not one place for the name of a class; begins with the option.
    """
    if template.count(MARK) != 1:
        raise ValueError(f"{option}={template}: wanted is {MARK} once, where the name of the class is to stand")


def _folders(root: Path) -> dict[str, Path]:
    """Class to folder."""
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            if (name := spaced(path.name)) in found:
                raise ValueError(f"{found[name]} and {path} are both the class {name!r}; put their pictures together")
            found[name] = path
    if len(found) < 2:
        there = ", ".join(found) or "none"
        raise ValueError(
            f"{root} holds {len(found)} folder{'s' * (len(found) != 1)} ({there}), and each is a class, of which two "
            "or more are needed; give the folder that holds them as data.root"
        )
    return found


def _is_picture(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
