"""What training did to an encoder: its features of test profiles before and after, as colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from geoseg.figures import draw_features
from geoseg.predict import load
from geoseg.report import Found
from geoseg.sheet import read_again
from geoseg.summary import grouped

PROFILES = 4
"""Test profiles that are shown."""


def draw_adaptation(runs: Sequence[Found], folder: Path) -> list[tuple[str, Path]]:
    """Draws what training did to an encoder's deepest features, method by method (Figure 2 of Guo et al. 2024).

    Before is what the training found: the pretrained encoder, or the random one where it was trained from scratch. Of
    several runs of a method the one with the lowest seed is taken, with its first test profiles. Profiles
    are read anew from the data set that the run names.

    Args:
        runs: finished or not.
        folder: gets ``features.png``, or ``features_1.png`` and so on where there are several methods or data sets.

    Returns:
        Title and file of each.

    Raises:
        ValueError: no run trained an encoder, or something that one of them needs is not there.
    """
    folders = {run.record["run_id"]: run.folder for run in runs}
    found = []
    for row, members in grouped([run.record for run in runs]).items():
        record = min((member.record for member in members), key=lambda one: one["seed"])
        if not _has_encoder(record):
            continue
        names = record["units"]["names"][:PROFILES]
        images = [item["image"] for item in read_again(record, names, "--features")]
        pictures = [image.movedim(0, -1)[None].numpy() for image in images]
        where = folders[record["run_id"]]
        models = (load(where, trained=trained) for trained in (False, True))
        before, after = ([model.features(picture)[0] for picture in pictures] for model in models)
        if not all(map(torch.equal, before, after)):  # else it was frozen, and there is nothing to show
            note = f"{row.method} on {row.data}, checkpoints={row.checkpoints}, seed {record['seed']}"
            found.append((note, images, before, after))
    if not found:
        raise ValueError("--features: no finished run trained an encoder; runs of the methods dinov2_... do")
    drawn = []
    for i, (note, images, before, after) in enumerate(found):
        path = folder / (f"features_{i + 1}.png" if len(found) > 1 else "features.png")
        drawn.append((f"Features: {note}", draw_features(images, before, after, path, note)))
    return drawn


def _has_encoder(record: Mapping[str, Any]) -> bool:
    """Whether the method's model is put together from an encoder, which describes patches, and something else."""
    model = record["config"]["method"]["model"]
    whole = record["data"].get("per_image", False)  # described as one
    return isinstance(model, Mapping) and isinstance(model.get("encoder"), Mapping) and not whole
