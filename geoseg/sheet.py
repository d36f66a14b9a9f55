"""What several runs said of the same profiles, side by side, from the label maps that they left on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from geoseg.config import build, check_targets
from geoseg.data.module import Split
from geoseg.figures import draw_results
from geoseg.palette import data_palette
from geoseg.report import Found
from geoseg.summary import grouped
from geoseg.types import classes_of

PROFILES = 4
"""Profiles on a sheet unless some are named."""


def draw_sheets(runs: Sequence[Found], folder: Path, names: Sequence[str] = ()) -> list[tuple[str, Path]]:
    """Draws a sheet per data set: image and label of some test profiles, with every method's label map and its errors.

    A method's map is that of its run of the lowest seed that tested the profile. Images and labels are read anew from
    the data set that the runs name.

    Args:
        runs: finished or not.
        folder: gets ``results.png``, or ``results_1.png`` and so on where there are several data sets.
        names: test profiles; none takes the first that most methods were tested on.

    Returns:
        Title and file of each.

    Raises:
        ValueError: no run left a label map, none of a named profile, or a data set is not there.
    """
    folders = {run.record["run_id"]: run.folder for run in runs}
    sets: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row, members in grouped([run.record for run in runs]).items():
        records = sorted((member.record for member in members), key=lambda record: record["seed"])
        sets.setdefault(row.data, {}).setdefault(f"{row.method}, {row.given}", records)  # the same for every stage
    drawn = []
    for data, methods in sets.items():
        maps = {method: _maps(records, folders) for method, records in methods.items()}
        there = list(dict.fromkeys(name for records in methods.values() for one in records for name in _tested(one)))
        # sorted keeps the order of those that equally many methods were tested on
        most = sorted(there, key=lambda name: -sum(name in files for files in maps.values()))
        chosen = [name for name in names if name in there] if names else most[:PROFILES]
        if any(name in files for files in maps.values() for name in chosen):
            record = next(iter(methods.values()))[0]
            drawn.append((data, record, _short(maps), chosen))
    if not drawn:
        wanted = f"of the profiles {', '.join(names)}" if names else "of any profile"
        raise ValueError(f"--sheet: no finished run left a label map {wanted} in its folder predictions/labels")
    made = []
    for i, (data, record, maps, chosen) in enumerate(drawn):
        path = folder / (f"results_{i + 1}.png" if len(drawn) > 1 else "results.png")
        made.append((f"Results on {data}", _draw(data, record, maps, chosen, path)))
    return made


def _tested(record: Mapping[str, Any]) -> list[str]:
    names: list[str] = record["units"]["names"]
    return names


def _maps(records: Sequence[Mapping[str, Any]], folders: Mapping[str, Path]) -> dict[str, Path]:
    """Label maps by profile, those of the first record that has one."""
    found: dict[str, Path] = {}
    for record in records:
        for name in _tested(record):
            path = folders[record["run_id"]] / "predictions" / "labels" / f"{name}.png"
            if name not in found and path.is_file():
                found[name] = path
    return found


def _short(maps: Mapping[str, dict[str, Path]]) -> dict[str, dict[str, Path]]:
    """The same by the methods' names alone, where what they were given does not tell them apart."""
    bare = [name.rpartition(", ")[0] for name in maps]
    names = [short if bare.count(short) == 1 else name for short, name in zip(bare, maps, strict=True)]
    return dict(zip(names, maps.values(), strict=True))


def _draw(
    data: str, record: Mapping[str, Any], maps: Mapping[str, Mapping[str, Path]], names: Sequence[str], path: Path
) -> Path:
    rows = []
    for item in read_again(record, names, "--sheet"):
        item["target"] = classes_of(item["target"])
        found = {method: _read(files[item["name"]]) for method, files in maps.items() if item["name"] in files}
        wrong = [method for method, labels in found.items() if labels.shape != item["target"].shape]
        if wrong:
            raise ValueError(f"--sheet: {data} has another {item['name']} today than {', '.join(wrong)} was tested on")
        rows.append({**item, "found": found})
    classes = record["data"]["class_names"]
    palette = data_palette(record["config"]["data"]["palette"], len(classes), record["data"].get("continuous", False))
    return draw_results(rows, palette, classes, path)


def read_again(record: Mapping[str, Any], names: Sequence[str], option: str) -> list[dict[str, Any]]:
    """Profiles of a run from the data set that it names, as ``Split`` gives them.

    Args:
        record: the run's.
        names: of the profiles.
        option: of ``geoseg report``, for error messages.

    Raises:
        ValueError: the data set is not there any more.
    """
    node = record["config"]["data"]["source"]
    try:
        check_targets({"data": {"source": node}}, ())
        split = Split(build(node, "data.source"), names)
        return [split[i] for i in range(len(split))]
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(
            f"{option}: profiles and labels of {record['data']['name']} cannot be read again ({error}); run geoseg "
            "report where the runs were made"
        ) from error


def _read(path: Path) -> torch.Tensor:
    with Image.open(path) as picture:
        return torch.from_numpy(np.asarray(picture).astype(np.int64))  # indices, whatever their colours
