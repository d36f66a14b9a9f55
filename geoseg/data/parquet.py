"""Parquet files whose columns hold pictures, as data sets on the Hugging Face hub are stored."""

from __future__ import annotations

import io
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geoseg.data.amplitudes import Amplitudes
from geoseg.data.recorded import Recorded, Values

EXTRA = "parquet files are read by pyarrow; pip install 'geoseg[parquet]'"


class ParquetFiles(Recorded):
    """Rows with a number ``id``, a picture ``seismic`` and a label map ``label``, each a struct that holds ``bytes``.

    A group of rows is read at once and kept until another is asked for.

    Args:
        root: the folder that holds the files, or folders with them.
        parts: "train", "val" and "test" to ``files``, a pattern such as "data/train-*.parquet" below root, and
            ``indices``, the first and the last id of the part; null takes all rows.
        class_names: K names, in the order of the label values.
        image: column with the profiles.
        label: column with the label maps.
        id: column with the numbers.
        label_offset: label value of the first class.
        amplitudes: the rule from amplitudes to greys; null measures a scale on the training sections.
        leave_out: samples that are not used, such as copies.
        title: what tables call the data set; null: the name of root.
        unit: what an independent unit is.

    Raises:
        ValueError: names the setting that does not fit what is there, or says how to install pyarrow.
    """

    def __init__(
        self,
        root: str,
        parts: Mapping[str, Mapping[str, Any] | None],
        class_names: Sequence[str],
        image: str = "seismic",
        label: str = "label",
        id: str = "id",
        label_offset: int = 0,
        amplitudes: Amplitudes | None = None,
        leave_out: Sequence[str] = (),
        title: str | None = None,
        unit: str = "section",
    ) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise ValueError(f"data.root={root} is no folder; give the one that holds the files of data.source.parts")
        self._columns = {"image": image, "label": label, "id": id}
        self._group: tuple[tuple[Path, int], Mapping[str, list[Any]]] | None = None
        self._shapes: dict[str, tuple[int, int]] = {}
        title = title or self.root.resolve().name
        super().__init__(title, parts, class_names, label_offset, amplitudes or Amplitudes(), leave_out, unit)

    def shape(self, name: str) -> tuple[int, int]:
        """H and W of a profile, from the header of its picture."""
        if name not in self._shapes:
            with _picture(self._cell(self._places[name], "image")) as picture:
                self._shapes[name] = (picture.height, picture.width)
        return self._shapes[name]

    def _find(self, split: str, part: Mapping[str, Any]) -> Mapping[int, Hashable]:
        option = f"data.source.parts.{split}.files"
        if not isinstance(part.get("files"), str):
            raise ValueError(f"{option} is missing; give a pattern below data.root, such as data/{split}-*.parquet")
        paths = sorted(self.root.glob(part["files"]))
        if not paths:
            raise ValueError(f"no file below data.root={self.root} fits {option}={part['files']}")
        found: dict[int, Hashable] = {}
        for path in paths:
            for group, numbers in enumerate(self._numbers(path)):
                for row, number in enumerate(numbers):
                    if number in found:
                        raise ValueError(
                            f"{path.name} and {found[number][0].name} both hold {self._columns['id']} {number}; "  # type: ignore[index]
                            f"{option}={part['files']} takes in files of another part, or data.source.id is wrong"
                        )
                    found[int(number)] = (path, group, row)
        return found

    def _numbers(self, path: Path) -> list[list[int]]:
        """The ids of a file, group by group."""
        file = _opened(path)
        if missing := [
            f"data.source.{key}={name}" for key, name in self._columns.items() if name not in file.schema_arrow.names
        ]:
            have = ", ".join(file.schema_arrow.names)
            raise ValueError(f"{path.name} has no column for {', '.join(missing)}; its columns are {have}")
        column = self._columns["id"]
        return [
            file.read_row_group(group, columns=[column]).column(column).to_pylist()
            for group in range(file.num_row_groups)
        ]

    def _cell(self, place: Hashable, column: str) -> Any:
        assert isinstance(place, tuple)
        path, group, row = place
        if self._group is None or self._group[0] != (path, group):
            wanted = [self._columns["image"], self._columns["label"]]
            # one thread: a loader's processes are forked from this one
            table = _opened(path).read_row_group(group, columns=wanted, use_threads=False)
            self._group = (path, group), {name: table.column(name) for name in wanted}
        return self._group[1][self._columns[column]][row].as_py()

    def _stored(self, place: Hashable) -> Values:
        found = []
        for column in ("image", "label"):
            with _picture(self._cell(place, column)) as picture:
                try:
                    found.append(np.asarray(picture))
                except OSError as error:
                    raise ValueError(f"the picture in {self._columns[column]} is torn ({error})") from None
        image, label = found
        if image.ndim == 3 and (image == image[..., :1]).all():
            image = image[..., 0]
        if image.ndim != 2 or label.ndim != 2:
            raise ValueError(f"grey pictures are wanted, these have {image.shape[2:]} and {label.shape[2:]} channels")
        if image.shape != label.shape:
            raise ValueError(f"the profile is {image.shape} and its label map {label.shape}; they must have one size")
        return Values(image, label)


def _opened(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(EXTRA) from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path.name}: no parquet file, or a torn one ({error}); fetch it again") from None


def _picture(cell: Any) -> Image.Image:
    stored = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(stored, bytes):
        raise ValueError("holds no bytes of a picture; it may name a file outside, which is not looked for")
    try:
        return Image.open(io.BytesIO(stored))
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"holds no picture that can be read ({error})") from None
