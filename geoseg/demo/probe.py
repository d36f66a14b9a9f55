"""How much a frozen encoder's patch features say about the ground: a linear probe on held-out synthetic profiles.

``python -m geoseg.demo.probe geoseg/assets`` writes the card of the embedded encoders, beside one with first weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor
from transformers import Dinov2Model

from geoseg.data.synthetic import KINDS, SyntheticEarth
from geoseg.demo.examination import SEED
from geoseg.demo.networks import PICTURE, vision_transformer
from geoseg.models.dinov2 import DINOv2
from geoseg.randomness import seeded

LEAST = 1 / 8
"""Share of a patch that a class must cover to be what the patch is called by: faults are thinner than patches."""

ENCODERS = {"other domains": "dinov2", "the synthetic earth": "dinov2_in_domain"}
"""What an encoder was pretrained on, and its folder."""


def features(model: Dinov2Model, pictures: Tensor) -> Tensor:
    """Patch features [B, h, w, C] of grey pictures [B, H, W] in [0, 1], as the last layer leaves them."""
    encoder = DINOv2(model)
    with torch.inference_mode():
        return torch.cat([encoder(part[:, None])[-1] for part in pictures.split(16)]).movedim(1, -1)


def patch_classes(targets: Tensor, patch: int, count: int) -> Tensor:
    """What every patch is called: of the classes that cover an eighth of it, the one that is rarest in all of them.

    Args:
        targets: int64 [B, H, W].
        patch: side of a patch in pixels.
        count: how many classes there are.

    Returns:
        int64 [B, h, w].
    """
    shares = F.avg_pool2d(F.one_hot(targets, count).permute(0, 3, 1, 2).float(), patch)
    often = shares.mean((0, 2, 3))[:, None, None]
    chosen: Tensor = torch.where(shares >= LEAST, often, torch.inf).argmin(1)
    return chosen


def probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], count: int, ridge: float = 1e-2) -> list[float]:
    """Fits a linear map from features to classes, all classes with equal weight, and says how often it is right.

    Args:
        train: features [n, C] and their classes int64 [n].
        test: the same of other pictures.
        count: how many classes there are.
        ridge: added to the second moments of features that have variance 1.

    Returns:
        Per class that occurs in both, which share of its test patches is named right; chance is 1 / classes.
    """
    known, classes = train
    mean, spread = known.mean(0), known.std(0) + 1e-6
    known, asked = (torch.cat([(x - mean) / spread, torch.ones(len(x), 1)], 1).double() for x in (known, test[0]))
    amount = torch.bincount(classes, minlength=count).double()
    present = amount > 0
    weight = (1 / amount.clamp(min=1) / present.sum())[classes][:, None]
    moments = known.T @ (weight * known) + ridge * torch.eye(known.shape[1], dtype=torch.double)
    solution = torch.linalg.solve(moments, known.T @ (weight * F.one_hot(classes, count).double()))
    named = torch.where(present, asked @ solution, -torch.inf).argmax(1)
    return [
        float((named[test[1] == k] == k).double().mean())
        for k in range(count)
        if present[k] and bool((test[1] == k).any())
    ]


def profiles(kind: str, train: int, test: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Held-out pictures [n, H, W] in [0, 1] and targets int64 [n, H, W] of one kind, by split."""
    earth = SyntheticEarth(kind, PICTURE, train, 0, test, SEED)
    found = {}
    for split in ("train", "test"):
        samples = [earth.read(name) for name in earth.names if earth.split(name) == split]
        images, targets = (np.stack([sample[k] for sample in samples]) for k in (0, 1))
        found[split] = (torch.from_numpy(images).float() / 255, torch.from_numpy(targets).long())
    return found


def score(model: Dinov2Model, kind: str, train: int = 32, test: int = 32) -> list[float]:
    """Probes a model on one kind of the synthetic earth; see ``probe``."""
    count, patch = len(KINDS[kind].class_names), model.config.patch_size
    drawn = profiles(kind, train, test)
    sides = [
        (features(model.eval(), images).flatten(0, 2), patch_classes(targets, patch, count).flatten())
        for images, targets in (drawn["train"], drawn["test"])
    ]
    return probe(sides[0], sides[1], count)


def examine(assets: Path, train: int = 32, test: int = 32) -> dict[str, Any]:
    """Probes every embedded encoder and one with first weights on every kind; two minutes on one core.

    Args:
        assets: the folder of embedded checkpoints.
        train: profiles that a probe is fitted on, per kind.
        test: profiles that it is asked about.

    Returns:
        Under ``right`` the share of each class that is named right, by encoder and kind; under ``summary`` their means.
    """
    with seeded(SEED, "first weights"):
        models = {"nothing": vision_transformer()}
    models |= {
        words: Dinov2Model.from_pretrained(assets / name, dtype=torch.float32) for words, name in ENCODERS.items()
    }
    right = {
        words: {kind: score(model, kind, train, test) for kind in track(KINDS, f"pretrained on {words}")}
        for words, model in models.items()
    }
    return {"summary": summary(right), "seed": SEED, "right": right}


def summary(right: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Mean share of patches named right over the classes, in the words of the table."""
    return {
        f"patches of {kind} named right, pretrained on {words}": float(np.mean(shares))
        for words, kinds in right.items()
        for kind, shares in kinds.items()
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    card = examine(folder)
    part = folder / "cards" / "probe.json.part"
    part.write_text(json.dumps(card, indent=1) + "\n")
    part.replace(part.with_suffix(""))
    for line, number in card["summary"].items():
        print(f"{line}: {number:.3f}")
