"""COCO-Stuff (Caesar et al. 2018) as it is handed out, its 182 classes as the 27 of unsupervised segmentation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from geoseg.data.profiles import listed
from geoseg.data.squares import Squares, mapped

CLASS_NAMES = (
    "electronic",
    "appliance",
    "food-things",
    "furniture-things",
    "indoor",
    "kitchen",
    "accessory",
    "animal",
    "outdoor",
    "person",
    "sports",
    "vehicle",
    "ceiling",
    "floor",
    "food-stuff",
    "furniture-stuff",
    "rawmaterial",
    "textile",
    "wall",
    "window",
    "building",
    "ground",
    "plant",
    "sky",
    "solid",
    "structural",
    "water",
)

# fmt: off
COARSE = (
    9, 11, 11, 11, 11, 11, 11, 11, 11, 8, 8, 8, 8, 8, 8, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 6,
    6, 6, 6, 6, 6, 6, 6, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 5, 5, 5, 5, 5, 5, 5, 5, 2,
    2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 1,
    1, 1, 1, 1, 1, 4, 4, 4, 4, 4, 4, 4, 4, 17, 17, 22, 20, 20, 22, 15, 25, 16, 13, 12, 12, 17,
    17, 23, 15, 15, 17, 15, 21, 15, 25, 13, 13, 13, 13, 13, 22, 26, 14, 14, 15, 22, 21, 21, 24, 20, 22, 15,
    17, 16, 15, 22, 24, 21, 17, 25, 16, 21, 17, 22, 16, 21, 21, 25, 21, 26, 21, 24, 20, 17, 14, 21, 26, 15,
    23, 20, 21, 24, 15, 24, 22, 25, 15, 20, 17, 17, 22, 14, 18, 18, 18, 18, 18, 18, 18, 26, 26, 19, 19, 24,
)
# fmt: on
"""The coarse class of every fine one, 0 to 181 in the order of COCO-Stuff, as IIC and PiCIE join them."""


class CocoStuff27(Squares):
    """Pairs ``val2017/<id>.jpg`` with ``annotation_val2017/<id>.png``, the stuff-and-thing maps of values 0 to 181.

    The published test set is a list of picture ids among them; with ``train2017`` and ``annotation_train2017`` beside
    it, those serve to choose a threshold by, as validation set.

    Args:
        root: the folder that holds val2017 and annotation_val2017.
        ids: a text file in root, or anywhere, with an id in each line, the published list of 2175; None takes all
            pictures of val2017, which are not the published ones.
        side: of the squares that are cut out of the middle and scaled, pixels.

    Raises:
        ValueError: the folder holds no pictures in this layout, or lacks some of the list.
    """

    def __init__(self, root: str, ids: str | None = None, side: int = 512) -> None:
        top = Path(root).expanduser()
        files: dict[str, tuple[Path, Path]] = {}
        splits: dict[str, str] = {}
        for part, split in (("train2017", "val"), ("val2017", "test")):
            for picture in sorted((top / part).glob("*.jpg")):
                files[picture.stem] = picture, top / f"annotation_{part}" / f"{picture.stem}.png"
                splits[picture.stem] = split
        if "test" not in splits.values():
            raise ValueError(
                f"data.root={root}: there is no val2017/ID.jpg below it; give the folder that holds val2017 and "
                "annotation_val2017, both unpacked"
            )
        if ids is not None:
            wanted = set(_read_ids(top / Path(ids).expanduser()))
            if absent := sorted(wanted - {name for name in files if splits[name] == "test"}):
                raise ValueError(listed(f"data.source.ids={ids} names pictures that val2017 does not hold", absent))
            files = {name: both for name, both in files.items() if name in wanted or splits[name] == "val"}
        super().__init__("COCO-Stuff-27", files, splits, CLASS_NAMES, side)

    @property
    def table(self) -> np.ndarray:
        """The coarse class of every label value; 255 and whatever else is not among the 182 are ignored."""
        return mapped(dict(enumerate(COARSE)))


def _read_ids(path: Path) -> Iterable[str]:
    if not path.is_file():
        raise ValueError(f"data.source.ids: there is no file {path}; give the published list, or null for all pictures")
    return filter(None, (line.strip() for line in path.read_text(encoding="utf-8").splitlines()))
