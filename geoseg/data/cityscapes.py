"""Cityscapes (Cordts et al. 2016) as it is handed out, with the 27 classes of unsupervised segmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geoseg.data.squares import Squares, mapped

FIRST = 7
"""Label id of the first class: the ids before it are void, and the last, 33, is the 27th class."""

CLASS_NAMES = (
    "road",
    "sidewalk",
    "parking",
    "rail track",
    "building",
    "wall",
    "fence",
    "guard rail",
    "bridge",
    "tunnel",
    "pole",
    "pole group",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "caravan",
    "trailer",
    "train",
    "motorcycle",
    "bicycle",
)

IMAGES, LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"


class Cityscapes(Squares):
    """Pairs ``leftImg8bit/<part>/<city>/<name>_leftImg8bit.png`` with label ids.

    These are ``gtFine/<part>/<city>/<name>_gtFine_labelIds.png``.
    The published "val" is the test set; "train" serves to choose a threshold by, as validation set.

    Args:
        root: the folder that holds leftImg8bit and gtFine.
        side: of the squares that are cut out of the middle and scaled, pixels.

    Raises:
        ValueError: the folder holds no pictures in this layout.
    """

    def __init__(self, root: str, side: int = 512) -> None:
        top = Path(root).expanduser()
        files: dict[str, tuple[Path, Path]] = {}
        splits: dict[str, str] = {}
        for part, split in (("train", "val"), ("val", "test")):
            for picture in sorted((top / "leftImg8bit" / part).glob(f"*/*{IMAGES}")):
                name = picture.name.removesuffix(IMAGES)
                files[name] = picture, top / "gtFine" / part / picture.parent.name / f"{name}{LABELS}"
                splits[name] = split
        if "test" not in splits.values():
            raise ValueError(
                f"data.root={root}: there is no leftImg8bit/val/CITY/NAME{IMAGES} below it; give the folder that holds "
                "leftImg8bit and gtFine, both unpacked"
            )
        super().__init__("Cityscapes", files, splits, CLASS_NAMES, side)

    @property
    def table(self) -> np.ndarray:
        """Label ids 7 to 33 are the classes, all others void."""
        return mapped({FIRST + k: k for k in range(len(CLASS_NAMES))})
