"""The evaluation of classes of whole images."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from geoseg.metrics.classification import ImageScore
from geoseg.metrics.uncertainty import CalibrationError
from geoseg.tasks.evaluation import Evaluation
from geoseg.types import Batch, Predictor


class ImageEvaluation(Evaluation):
    """Predicts the test set once and scores the class of every image.

    After ``Trainer.test``, ``confusion`` holds how often each class (a row each) was called which; ``pictures`` the
    first few images as dicts with ``name``, ``original``, ``target``, ``label`` and ``sure``, the probability of the
    answer.

    Args:
        predictor: the method.
        class_names: K names.
        seed: together with an image's name the only source of its randomness.
        keep: number of images kept for the figure.
        folder: gets ``classes.csv`` with the answer of every image; None writes nothing.
    """

    def __init__(
        self, predictor: Predictor, class_names: Sequence[str], seed: int, keep: int = 24, folder: Path | None = None
    ) -> None:
        super().__init__(predictor, seed, keep, folder)
        self.class_names = list(class_names)
        self._score = ImageScore(len(self.class_names))
        self._calibration = CalibrationError()
        self._rows: list[tuple[str, str, str, str]] = []
        self.confusion: list[list[int]] = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        prediction, target = self.answered(batch), batch["target"]
        self._score.update(prediction.probs, target)
        self._calibration.update(prediction.probs, target)
        sure, labels = (part.cpu() for part in prediction.probs.float().max(dim=1))
        for i, name in enumerate(batch["name"]):
            truth, answer = int(target[i]), int(labels[i])
            known = self.class_names[truth] if truth < len(self.class_names) else ""
            self._rows.append((name, known, self.class_names[answer], f"{float(sure[i]):.4f}"))
            if len(self.pictures) < self.keep:
                shown = {"name": name, "original": batch["image"][i].cpu(), "sure": float(sure[i])}
                self.pictures.append({**shown, "target": known, "label": self.class_names[answer]})

    def on_test_epoch_end(self) -> None:
        scores = {**self._score.compute(), "calibration/error": self._calibration.compute()}
        self.scores = {f"test/{name}": float(value) for name, value in scores.items()}
        self.per_unit = {f"test/{name}": values for name, values in self._score.per_image().items()}
        self.confusion = self._score.matrix.tolist()
        self.log_dict(self.scores)
        if self.folder is not None:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(("name", "class", "answer", "probability"))
            writer.writerows(self._rows)
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "classes.csv").write_text(text.getvalue(), encoding="utf-8")
