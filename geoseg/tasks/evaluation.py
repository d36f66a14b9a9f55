"""The evaluation task: every method, trained or not, is scored by the same few lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn

from geoseg.metrics.intensity import IntensityDice
from geoseg.metrics.matte import MATTES, MatteError, matte_errors
from geoseg.metrics.regions import RegionScore
from geoseg.metrics.score import SegmentationScore, batch_scores, confusion, dice, iou, pixel_accuracy
from geoseg.metrics.uncertainty import COVERAGES, CalibrationError, Ranking, entropy, vote_entropy
from geoseg.palette import Palette
from geoseg.randomness import stream
from geoseg.types import Batch, Prediction, Predictor, Told, classes_of

READING = "read as classes"
"""Name of the column with the label map, where the last stage is a picture."""


SHOWN = 4
"""Members of an ensemble that are kept for the figure."""


class Published(NamedTuple):
    """How the authors of a data set count, so that their numbers can be compared with; see ``EvaluationTask``.

    Attributes:
        batch: images per batch, mirrored ones not counted.
        flips: count mirrored images as well.
    """

    batch: int
    flips: bool = False


class Evaluation(pl.LightningModule):
    """What every evaluation shares: it predicts the test set once, and keeps what came of it.

    After ``Trainer.test``, ``scores`` holds flat names to numbers, ``per_unit`` the same per image, ``stages`` the
    scores of each named intermediate picture, ``seconds`` the time spent predicting, ``ms_per_image`` that of an image
    once the method is warm, ``facts`` the mean of every fact and ``pictures`` the first few images for a figure.
    ``risk_coverage`` holds the share of wrong pixels among the surest ones for every uncertainty there is, and
    ``members`` the scores of the mean of an ensemble's first 1, 2, ... members, and of each of them alone.

    Args:
        predictor: the method.
        seed: together with an image's name the only source of its randomness.
        keep: number of images that are kept for the figure.
        folder: gets the answers; None writes nothing.
    """

    def __init__(self, predictor: Predictor, seed: int, keep: int, folder: Path | None) -> None:
        super().__init__()
        self.predictor, self.seed, self.keep, self.folder = predictor, seed, keep, folder
        self.risk_coverage: dict[str, list[float]] = {}
        self.members: dict[str, list[float]] = {}
        self.scores: dict[str, float] = {}
        self.per_unit: dict[str, list[float]] = {}
        self.stages: dict[str, dict[str, float]] = {}
        self.stages_per_unit: dict[str, dict[str, list[float]]] = {}
        self.facts: dict[str, float] = {}
        self.pictures: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.seconds = 0.0
        self._times: list[tuple[float, int]] = []  # seconds and images of every batch

    @property
    def ms_per_image(self) -> float | None:
        """Milliseconds that an image takes, the first batch left out, which warms up; None where there is no other."""
        warm = self._times[1:]
        return 1000 * sum(seconds for seconds, _ in warm) / sum(images for _, images in warm) if warm else None

    def answered(self, batch: Batch) -> Prediction:
        """What the method says of a batch, timed.

        Raises:
            ValueError: the method cannot answer, or labels pixels where images are to be labelled, or the reverse.
        """
        image, truth = batch["image"], batch["target"]
        started = time.perf_counter()
        try:
            generators = [stream(self.seed, "predict", name) for name in batch["name"]]
            prediction = self.informed(truth).predict(image, generators)
        except OverflowError as error:
            raise ValueError(f"{', '.join(batch['name'])}: {error}") from error
        if image.is_cuda:
            torch.cuda.synchronize(image.device)  # a GPU is still at work when ``predict`` returns
        if prediction.probs.ndim - 2 != truth.ndim - 1:
            labelled, known = (
                "images" if axes == 0 else "pixels" for axes in (prediction.probs.ndim - 2, truth.ndim - 1)
            )
            raise ValueError(
                f"the method labels {labelled}, and the data set has classes of {known}; methods that label images are "
                "vit, vit_lora and vit_scratch, all others label pixels"
            )
        self._times.append((time.perf_counter() - started, len(image)))
        self.seconds += self._times[-1][0]
        self.names += batch["name"]
        return prediction

    def informed(self, target: Tensor) -> Predictor:
        """The method, or what it becomes where it is a control that is told something of the truth."""
        return self.predictor.told(target) if isinstance(self.predictor, Told) else self.predictor


class EvaluationTask(Evaluation):
    """Predicts the test set once and scores the label map and every stage on the way to it; see ``Evaluation``.

    ``pictures`` holds the first few images with all their stages.

    Continuous targets are scored by the errors of mattes, and by class scores of what more than half of a pixel is of.
    Shares of two classes say nothing about how sure a method is, so none of the scores of that are taken there.

    Args:
        predictor: the method.
        palette: paints labels and reads paintings.
        seed: together with an image's name the only source of its randomness.
        keep: number of images whose pictures are kept for the figure.
        folder: gets every label map as ``labels/NAME.png`` and every stage's picture as ``STAGE/NAME.png``; None writes
            nothing.
        score: builds the class scores from the number of classes.
        intensity: builds the Dice losses between pictures.
        published: counts the answer also as ``geoseg.metrics.score.batch_scores`` does, ``test/published/...``:
            ``batch`` says how many images make a batch there, however many are predicted at a time here; ``flips``:
            beside these, once more with every image followed by its mirror image (left to right), which is predicted
            for this alone, ``test/published/with_flips/...``.
    """

    def __init__(
        self,
        predictor: Predictor,
        palette: Palette,
        seed: int,
        keep: int = 6,
        folder: Path | None = None,
        score: Callable[..., SegmentationScore] = SegmentationScore,
        intensity: Callable[[], IntensityDice] = IntensityDice,
        published: Published | None = None,
    ) -> None:
        super().__init__(predictor, seed, keep, folder)
        self.palette = palette
        self._score, self._intensity, self.published = score, intensity, published
        self._counts: list[Tensor] = []  # of every image, [K, K], where something is published
        self._mirrored: list[Tensor] = []
        self._meters = nn.ModuleDict()
        self._regions: RegionScore | None = None  # of a method that finds regions without names
        self._mattes = MatteError()
        self._facts: dict[str, list[Tensor]] = {}
        self._calibration = CalibrationError()
        self._rankings: dict[str, Ranking] = {}
        self._together: Tensor | None = None  # [M, K, K], of the mean of the first 1, 2, ... members
        self._alone: Tensor | None = None  # [M, K, K], of each member
        self._matted: list[Tensor] = []  # of every image [2, M, 2], SAD and MSE of the same

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        image, truth = batch["image"], batch["target"]
        target = classes_of(truth)
        prediction = self.answered(batch)
        continuous = truth.is_floating_point()
        found = prediction.values if continuous else prediction.labels
        label_picture = self.palette.paint(truth)
        answer = prediction.painted if prediction.painted is not None else self.palette.paint(found)
        self._meter("answer")(prediction.labels, target, image, answer, label_picture)
        for stage, picture in prediction.stages.items():
            labels = self.palette.decode(picture).argmax(1)
            self._meter(stage)(labels, target, image, picture, label_picture)
        if prediction.regions is not None:
            if self._regions is None:
                self._regions = RegionScore(self.palette.num_classes).to(self.device)
            self._regions.update(prediction.regions, target)
        for fact, values in prediction.facts.items():
            self._facts.setdefault(fact, []).append(values.float().cpu())
        if self.published is not None:
            self._count(self.published, batch, prediction)
        if continuous:
            self._mattes.update(prediction.values, truth)
        self._doubt(prediction, truth)
        self._remember(batch, prediction, answer, label_picture)
        if self.folder is not None:
            self._write(self.folder, batch["name"], prediction)
            if continuous:
                self._write_pictures(self.folder / "mattes", batch["name"], prediction.values[:, None])

    def on_test_epoch_end(self) -> None:
        self.facts = {fact: float(torch.cat(values).mean()) for fact, values in self._facts.items()}
        for stage, meter in self._meters.items():
            assert isinstance(meter, Meter)
            scores, per_unit = meter.results()
            if stage == "answer":
                self.scores = {f"test/{name}": value for name, value in scores.items()}
                self.per_unit = {f"test/{name}": values for name, values in per_unit.items()}
            else:
                self.stages[_spaced(stage)] = {f"test/{name}": value for name, value in scores.items()}
                self.stages_per_unit[_spaced(stage)] = {f"test/{name}": values for name, values in per_unit.items()}
        if self._regions is not None:
            self.scores |= {f"test/regions/{name}": float(value) for name, value in self._regions.compute().items()}
            self.per_unit |= {f"test/regions/{name}": values for name, values in self._regions.per_image().items()}
        self._doubts()
        if self.published is not None:
            flipped = [one for pair in zip(self._counts, self._mirrored, strict=False) for one in pair]
            for name, counts, batch in (
                ("published", self._counts, self.published.batch),
                ("published/with_flips", flipped, 2 * self.published.batch),
            ):
                found = batch_scores(torch.stack(counts), batch) if counts else {}
                self.scores |= {f"test/{name}/{score}": float(value) for score, value in found.items()}
        self.log_dict(self.scores)
        self.log_dict({f"test/{fact}": value for fact, value in self.facts.items()})

    def _doubt(self, prediction: Prediction, truth: Tensor) -> None:
        """How sure the answer is, beside where it is wrong; ``truth`` is the target as the data has it."""
        labels, members = prediction.labels, prediction.members
        continuous, target = truth.is_floating_point(), classes_of(truth)
        unsure = {} if continuous else {"entropy": entropy(prediction.probs)}
        if prediction.uncertainty is not None and not continuous:
            unsure["own"] = prediction.uncertainty
        if members is not None:
            if not continuous:
                unsure |= {"votes": vote_entropy(members), "one_member": entropy(members[:, 0])}
            # a member at a time: their means at once would take as much memory again
            mean, counted, matted = torch.zeros_like(members[:, 0]), [], []
            for m in range(members.shape[1]):
                mean = mean + members[:, m]
                both = (mean.argmax(1), members[:, m].argmax(1))
                if continuous:
                    matted.append([matte_errors(one[:, 1], truth) for one in (mean / (m + 1), members[:, m])])
                counted.append([confusion(one.to(target.device), target, members.shape[2]).sum(0) for one in both])
            together, alone = (torch.stack(some).cpu() for some in zip(*counted, strict=True))
            self._together = together if self._together is None else self._together + together
            self._alone = alone if self._alone is None else self._alone + alone
            if continuous:
                errors = torch.stack([torch.stack(some) for some in matted])  # [M, 2, 2, B]
                self._matted += errors.permute(3, 1, 0, 2).unbind()
        for name, values in unsure.items():
            self._rankings.setdefault(name, Ranking()).update(values, labels, target)
        if not continuous:
            self._calibration.update(prediction.probs, target)

    def _doubts(self) -> None:
        """Scores of how sure the answers were."""
        found: dict[str, float] = {}
        per_unit: dict[str, list[float]] = {}
        if self._mattes.errors:
            found |= {name: float(value) for name, value in self._mattes.compute().items()}
            per_unit |= self._mattes.per_image()
        else:
            found["calibration/error"] = float(self._calibration.compute())
            per_unit["calibration/error"] = self._calibration.per_image()
        for name, ranking in self._rankings.items():
            found |= {f"uncertainty/{name}/{score}": float(value) for score, value in ranking.compute().items()}
            per_unit |= {f"uncertainty/{name}/{score}": values for score, values in ranking.per_image().items()}
            self.risk_coverage[name] = ranking.curve()
        self.scores |= {f"test/{name}": value for name, value in found.items()}
        self.per_unit |= {f"test/{name}": values for name, values in per_unit.items()}
        if self.risk_coverage:
            self.risk_coverage = {"coverage": list(COVERAGES), **self.risk_coverage}
        for name, counts in (("", self._together), ("alone/", self._alone)):
            if counts is not None:
                scores = {"iou/mean": iou(counts), "dice/mean": dice(counts)}
                self.members |= {f"{name}{score}": values.nanmean(-1).tolist() for score, values in scores.items()}
                self.members[f"{name}accuracy/pixel"] = pixel_accuracy(counts).tolist()
        if self._matted:
            for name, errors in zip(("", "alone/"), torch.stack(self._matted).nanmean(0), strict=True):
                self.members |= {f"{name}{score}": errors[:, i].tolist() for i, score in enumerate(MATTES)}

    def _count(self, published: Published, batch: Batch, prediction: Prediction) -> None:
        """What ``published`` asks for of a batch."""
        classes, target = self.palette.num_classes, classes_of(batch["target"])
        self._counts += confusion(prediction.labels.to(target.device), target, classes).cpu()
        if published.flips:
            generators = [stream(self.seed, "predict mirrored", name) for name in batch["name"]]
            mirrored = self.informed(batch["target"].flip(-1)).predict(batch["image"].flip(-1), generators).labels
            self._mirrored += confusion(mirrored.to(target.device), target.flip(-1), classes).cpu()

    def _meter(self, stage: str) -> Meter:
        name = stage.replace(" ", "_")  # a module's name takes no spaces in a state dict
        if name not in self._meters:
            self._meters[name] = Meter(self._score(num_classes=self.palette.num_classes), self._intensity()).to(
                self.device
            )
        meter = self._meters[name]
        assert isinstance(meter, Meter)
        return meter

    def _write(self, folder: Path, names: Sequence[str], prediction: Prediction) -> None:
        (folder / "labels").mkdir(parents=True, exist_ok=True)
        for name, labels in zip(names, prediction.labels, strict=True):
            self.palette.write(labels, folder / "labels" / f"{name}.png")
        for stage, pictures in prediction.stages.items():
            self._write_pictures(folder / stage.replace(" ", "_"), names, pictures)

    def _write_pictures(self, folder: Path, names: Sequence[str], pictures: Tensor) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (255 * pictures.float().clamp(0, 1)).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        for name, picture in zip(names, pixels, strict=True):
            Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(folder / f"{name}.png")

    def _remember(self, batch: Batch, prediction: Prediction, answer: Tensor, label_picture: Tensor) -> None:
        continuous = batch["target"].is_floating_point()
        for i in range(min(len(batch["name"]), self.keep - len(self.pictures))):
            stages = {stage: picture[i].float().cpu() for stage, picture in prediction.stages.items()}
            answered = prediction.values if continuous else prediction.labels
            found = self.palette.paint(answered[i : i + 1])[0].float().cpu()
            if stages and not torch.equal(list(stages.values())[-1], found):
                stages[READING] = found  # what is scored, where the last stage is a picture
            ensemble = {}
            if prediction.members is not None and prediction.uncertainty is not None:
                members = prediction.members[i, :SHOWN]
                ensemble = {
                    "target": batch["target"][i].cpu(),
                    "labels": answered[i].cpu(),
                    "members": (members[:, 1] if continuous else members.argmax(1)).cpu(),
                    "uncertainty": prediction.uncertainty[i].float().cpu(),
                }
            self.pictures.append(
                {
                    **ensemble,
                    "name": batch["name"][i],
                    "original": batch["image"][i].cpu(),
                    "stages": stages or {"prediction": answer[i].float().cpu()},
                    "label": label_picture[i].cpu(),
                }
            )


class Meter(nn.Module):
    """Class scores and intensity scores of one picture per image."""

    def __init__(self, score: SegmentationScore, intensity: IntensityDice) -> None:
        super().__init__()
        self.score, self.intensity = score, intensity

    def forward(self, labels: Tensor, target: Tensor, original: Tensor, generated: Tensor, label: Tensor) -> None:
        self.score.update(labels, target)
        self.intensity.update(original, label, generated)

    def results(self) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Scores of the data set and scores per image."""
        scores = {name: float(value) for part in (self.score, self.intensity) for name, value in part.compute().items()}
        per_unit = {**self.score.per_image(), **self.intensity.per_image()}
        return scores, per_unit


def _spaced(stage: str) -> str:
    return stage.replace("_", " ")
