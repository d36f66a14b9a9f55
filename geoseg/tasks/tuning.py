"""Tuning: what there is to learn for a method without gradients, a few settings and what its groups are called."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geoseg import progress
from geoseg.data.module import Split
from geoseg.metrics.matching import apply_matching, best_matching
from geoseg.metrics.score import confusion, iou
from geoseg.models.classical import Grouping, Rule


class Tuning:
    """Tries every combination of a small grid on the labelled training profiles, and keeps the best.

    Under every combination the groups of the rule get the classes that fit these profiles best, one each (see
    ``best_matching``); the combination with the highest mean IoU then stays, the first of equals. Validation and test
    profiles are not looked at.

    Args:
        model: sorts pixels into groups; its rule and the names of its groups are what is tuned.
        grid: setting of the rule to the values that are tried.

    Raises:
        ValueError: the rule has no such setting, no value is given for one, or a value cannot be.
    """

    def __init__(self, model: Grouping, grid: Mapping[str, Sequence[Any]]) -> None:
        self.model, self.grid = model, {name: list(values) for name, values in grid.items()}
        rule: Any = model.rule
        settings = [field.name for field in dataclasses.fields(rule)]
        for name, values in self.grid.items():
            if name not in settings:
                raise ValueError(
                    f"grid.{name}: {type(rule).__name__} has no such setting; it has {', '.join(settings)}"
                )
            if not values:
                raise ValueError(f"grid.{name} has no value to try; give one or more, or leave it away")
        self.trials: list[dict[str, Any]] = [
            dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())
        ]
        self._rules: list[Rule] = [dataclasses.replace(rule, **trial) for trial in self.trials]
        self.tuned: dict[str, Any] = {}

    @property
    def parameters(self) -> int:
        """How many settings of the rule are tuned."""
        return sum(len(values) > 1 for values in self.grid.values())

    def check_target(self, continuous: bool, per_image: bool = False) -> None:
        """Looks whether there are classes to tune for; see ``Task.check_target``.

        Raises:
            ValueError: there are mattes, or classes of whole images.
        """
        if per_image:
            raise ValueError(
                "the data set has one class per image, and a rule is tuned for pixels; methods that learn classes of "
                "images are vit, vit_lora and vit_scratch"
            )
        if continuous:
            raise ValueError(
                "the data set has mattes, and a rule is tuned for classes; methods that learn mattes are "
                "mask_diffusion_matte and unet_matte"
            )

    def tune(self, split: Split) -> None:
        """Chooses settings and names; ``tuned`` then says which, of how many, and how well they fit.

        Args:
            split: labelled profiles.
        """
        best = -1.0
        progress.expect("tuning", len(self.trials), "setting")
        for trial, rule in zip(self.trials, self._rules, strict=True):
            counts = torch.zeros(self.model.num_classes, self.model.num_classes, dtype=torch.int64)
            for i in range(len(split)):
                counts += self._counted(rule, split[i])
            progress.advance("tuning", 1)
            names = best_matching(counts)
            score = float(iou(apply_matching(counts, names)).nanmean().nan_to_num(0.0))  # nan: every pixel is ignored
            if score > best:
                best = score
                self.tuned = {"settings": trial, "names": names.tolist(), "train/iou/mean": score}
        self.tuned |= {"parameters": self.parameters, "trials": len(self.trials)}
        self._apply()

    def save(self, folder: Path) -> list[Path]:
        """Writes what was tuned and names the file."""
        folder.mkdir(parents=True, exist_ok=True)
        path, part = folder / "tuned.json", folder / "tuned.part"
        try:
            part.write_text(json.dumps(self.tuned, indent=1) + "\n")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return [path]

    def load(self, folder: Path) -> None:
        """Puts back what ``save`` wrote.

        Raises:
            ValueError: it was tuned for another rule, or another number of classes.
        """
        path = folder / "tuned.json"
        tuned = json.loads(path.read_text())
        if tuned["settings"].keys() != self.grid.keys() or len(tuned["names"]) != self.model.num_classes:
            raise ValueError(
                f"{path} holds {', '.join(tuned['settings'])} and {len(tuned['names'])} classes, this method tunes "
                f"{', '.join(self.grid)} for {self.model.num_classes}; force=true tunes anew"
            )
        self.tuned = tuned
        self._apply()

    def _apply(self) -> None:
        rule: Any = self.model.rule
        self.model.rule = dataclasses.replace(rule, **self.tuned["settings"])
        self.model.names = self.tuned["names"]

    def _counted(self, rule: Rule, item: Mapping[str, Any]) -> Tensor:
        """Pixels by target class and group, [K, K]."""
        return confusion(self.model.groups(item["image"], rule)[None], item["target"][None], self.model.num_classes)[0]
