"""Raw files without a header, one number after the other: how several published data sets are handed out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geoseg.data.amplitudes import Amplitudes
from geoseg.data.profiles import SHOWN
from geoseg.data.recorded import Recorded, Values


class RawFolder(Recorded):
    """Pairs ``<root>/<images>/<number>.dat`` with ``<root>/<labels>/<number>.dat``, row after row.

    Args:
        root: the folder that holds all others.
        parts: "train", "val" and "test" to ``images`` and ``labels``, folders inside root, and ``indices``, the first
            and the last number of the part; null takes all files, which are then numbered without a gap.
        shape: H and W of every file.
        class_names: K names, in the order of the label values.
        dtype: type of the amplitudes, such as float32; ">f4" for the other order of bytes.
        label_dtype: type of the label values, such as int8.
        label_offset: label value of the first class.
        amplitudes: the rule from amplitudes to greys; null measures a scale on the training sections.
        leave_out: samples that are not used, such as copies.
        title: what tables call the data set; null: the name of root.
        unit: what an independent unit is.

    Raises:
        ValueError: names the setting that does not fit what is there.
    """

    def __init__(
        self,
        root: str,
        parts: Mapping[str, Mapping[str, Any] | None],
        shape: Sequence[int],
        class_names: Sequence[str],
        dtype: str = "float32",
        label_dtype: str = "int8",
        label_offset: int = 0,
        amplitudes: Amplitudes | None = None,
        leave_out: Sequence[str] = (),
        title: str | None = None,
        unit: str = "section",
    ) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise ValueError(f"data.root={root} is no folder; give the one that holds the folders of data.source.parts")
        if len(shape) != 2 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"data.source.shape={list(shape)}: height and width are wanted, such as [512,512]")
        self._shape = (shape[0], shape[1])
        self._dtypes = {"dtype": _dtype("dtype", dtype), "label_dtype": _dtype("label_dtype", label_dtype)}
        title = title or self.root.resolve().name
        super().__init__(title, parts, class_names, label_offset, amplitudes or Amplitudes(), leave_out, unit)

    def shape(self, name: str) -> tuple[int, int]:
        """H and W, the same for all."""
        return self._shape

    def _find(self, split: str, part: Mapping[str, Any]) -> Mapping[int, Hashable]:
        images, labels = (self._numbered(split, part, kind) for kind in ("images", "labels"))
        if alone := sorted(images.keys() ^ labels.keys()):
            shown = ", ".join(f"{i}.dat" for i in alone[:SHOWN]) + ", ..." * (len(alone) > SHOWN)
            where = part["labels"] if alone[0] in images else part["images"]
            raise ValueError(
                f"{shown} of {split} lack their partner in {self.root / where}; fetch what is missing, or correct "
                f"data.source.parts.{split}.images and .labels"
            )
        return {i: (images[i], labels[i]) for i in images}

    def _numbered(self, split: str, part: Mapping[str, Any], kind: str) -> dict[int, Path]:
        option = f"data.source.parts.{split}.{kind}"
        if not isinstance(part.get(kind), str):
            raise ValueError(f"{option} is missing; name the folder inside data.root={self.root}")
        folder = self.root / part[kind]
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; {option} names the one inside data.root={self.root}")
        found = {int(path.stem): path for path in sorted(folder.glob("*.dat")) if path.stem.isdecimal()}
        if not found:
            raise ValueError(f"{folder} holds no file such as 0.dat; {option} names the folder that does")
        return found

    def _stored(self, place: Hashable) -> Values:
        assert isinstance(place, tuple)
        image, label = place
        return Values(self._array(image, "dtype"), self._array(label, "label_dtype"))

    def _array(self, path: Path, option: str) -> np.ndarray:
        height, width = self._shape
        dtype = self._dtypes[option]
        wanted, size = height * width * dtype.itemsize, path.stat().st_size
        if size != wanted:
            per_pixel = size / (height * width)
            guess = f", {per_pixel:g} bytes per pixel" if per_pixel in (1, 2, 4, 8) else ""
            raise ValueError(
                f"{path.parent.name}/{path.name} holds {size} bytes{guess}, and {height} x {width} of {dtype.name} "
                f"take {wanted}; set data.source.shape or data.source.{option}, or fetch a torn file again"
            )
        array = np.fromfile(path, dtype).reshape(height, width)
        return array.astype(dtype.newbyteorder("="), copy=False)


def _dtype(option: str, name: str) -> np.dtype:
    try:
        dtype = np.dtype(name)
        if dtype.kind not in "iuf":
            raise TypeError
    except TypeError:
        raise ValueError(f"data.source.{option}={name}: a type of numbers is wanted, such as float32 or int8") from None
    return dtype
