"""Training folders as kohya's scripts read them: pictures with captions, and how often an epoch meets each."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from geoseg.data.pictures import read_profile, size
from geoseg.data.profiles import SHOWN, SUFFIXES, listed
from geoseg.types import IGNORE, Sample

log = logging.getLogger("geoseg")

PICTURES = (*SUFFIXES, ".webp")

FOLDER = re.compile(r"(\d+)(?:_(.*))?")
"""``<repeats>_<words>``; the words are the caption of pictures that have none of their own."""


class KohyaFolder:
    """Pictures in ``<root>/<repeats>_<words>/``, each with an optional caption file of the same stem.

    The first line of a caption file counts. A sample's name is its place below the root. There are no classes: what is
    to be learnt are the pictures themselves.

    Args:
        root: the folder that holds those folders.
        captions: suffixes of caption files.

    Raises:
        ValueError: there is no such folder with a picture in it, and what is there instead.
    """

    def __init__(self, root: str, captions: Sequence[str] = (".txt", ".caption")) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise ValueError(
                f"data.root={root} is no folder; give the one that holds folders such as '10_vai1 label map'"
            )
        self.title, self.unit = self.root.resolve().name, "picture"
        self.num_classes, self.class_names = 0, list[str]()
        self._suffixes = tuple(captions)
        folders = [path for path in sorted(self.root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        self._repeats = {path.name: int(found[1]) for path in folders if (found := FOLDER.fullmatch(path.name))}
        if not self._repeats:
            raise ValueError(f"{self.root} holds no folder named <repeats>_<words>, {self._instead(folders)}")
        others = [path.name for path in folders if path.name not in self._repeats]
        if others:
            log.warning("%s: left out, since no number stands before '_': %s", self.root, ", ".join(others[:SHOWN]))
        self._files = {name: _visible(self.root / name) for name in self._repeats}
        self._paths = {
            f"{folder}/{path.name}": path
            for folder, files in self._files.items()
            for path in files
            if path.suffix.lower() in PICTURES
        }
        self.names = list(self._paths)
        if not self.names:
            empty = ", ".join(self._repeats)
            raise ValueError(f"there is no picture ({', '.join(PICTURES)}) in {empty} below {self.root}")

    def read(self, name: str) -> Sample:
        """Reads one picture with its caption; image uint8 [H, W] or [H, W, 3], target all ignore."""
        image = read_profile(self._paths[name])
        return Sample(image, np.full(image.shape[:2], IGNORE, np.uint8), self._caption(name))

    def repeats(self, name: str) -> int:
        """How often an epoch meets a picture: the number of its folder."""
        return self._repeats[self._paths[name].parent.name]

    def shape(self, name: str) -> tuple[int, int]:
        """H and W as a viewer shows the picture."""
        return size(self._paths[name])

    def split(self, name: str) -> str | None:
        """None: the split is chosen by the data module."""
        return None

    def check(self, names: Sequence[str]) -> None:
        """Looks at every folder, picture and caption.

        Raises:
            ValueError: lists the first ten offenders.
        """
        wrong = []
        for folder, repeats in self._repeats.items():
            if not repeats:
                wrong.append(f"{folder}: 0 repeats, so it would never be learnt; rename it, or move it away")
            if not any(name.startswith(f"{folder}/") for name in self.names):
                wrong.append(f"{folder}: no picture in it ({', '.join(PICTURES)})")
            wrong += self._strays(folder)
        for name in names:
            for look in (lambda name=name: read_profile(self._paths[name]), lambda name=name: self._caption(name)):
                try:
                    look()
                except ValueError as error:
                    wrong.append(f"{Path(name).parent}: {error}")
        if wrong:
            raise ValueError(
                listed(f"{self.root} cannot be trained on, for {len(wrong)} reason{'s' * (len(wrong) > 1)}", wrong)
            )

    def fingerprint(self, names: Sequence[str]) -> str:
        """Hash of names, which hold the repeats, of file contents and captions."""
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name}:{self._caption(name)}:".encode())
            digest.update(self._paths[name].read_bytes())
        return digest.hexdigest()

    def _caption(self, name: str) -> str:
        """A picture's own caption, else the words of its folder."""
        path = self._paths[name]
        files = [path.with_suffix(suffix) for suffix in self._suffixes if path.with_suffix(suffix).is_file()]
        if len(files) > 1:
            raise ValueError(f"{files[0].name} and {files[1].name} are both captions of {path.name}; keep one of them")
        if not files:
            words = (FOLDER.fullmatch(path.parent.name) or [""])[2] or ""
            if not words.strip():
                raise ValueError(f"{path.name}: no caption, and its folder's name holds no words after the number")
            return words.strip()
        try:
            lines = files[0].read_text(encoding="utf-8-sig").splitlines()  # editors on Windows begin with a mark
        except UnicodeDecodeError:
            raise ValueError(f"{files[0].name}: not in UTF-8; save it as UTF-8 text") from None
        if not lines or not lines[0].strip():
            raise ValueError(f"{files[0].name}: no words in its first line; write some, or delete the file")
        return lines[0].strip()

    def _strays(self, folder: str) -> list[str]:
        """Captions whose picture is missing or misspelt: that picture would quietly take its folder's words."""
        pictures = {Path(name).stem for name in self.names if name.startswith(f"{folder}/")}
        return [
            f"{folder}: {path.name} is the caption of no picture; rename it, or move it away"
            for path in self._files[folder]
            if path.suffix.lower() in self._suffixes and path.stem not in pictures
        ]

    def _instead(self, folders: list[Path]) -> str:
        """What a folder without the pattern holds, and what to do."""
        if any(path.suffix.lower() in PICTURES for path in self.root.iterdir()):
            if FOLDER.fullmatch(self.root.resolve().name):
                return f"but pictures; data.root is the folder above it, {self.root.resolve().parent}"
            return "but pictures; put them into a folder inside it, such as '10_vai1 label map'"
        if not folders:
            return "but nothing; make one such as '10_vai1 label map' and put pictures into it"
        names = ", ".join(path.name for path in folders[:SHOWN])
        return f"only {names}; write how often to repeat before the name, such as '10_{folders[0].name}'"


def _visible(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
