"""The evaluation task: scores recomputed from what the predictor said, and no score that depends on the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchmetrics.functional.classification import binary_auroc

from geoseg.data.module import DataModule
from geoseg.data.synthetic import SyntheticEarth, SyntheticMattes
from geoseg.metrics.score import batch_scores, confusion
from geoseg.palette import Palette, facies_palette
from geoseg.predictors.ensemble import Ensemble
from geoseg.predictors.unchanged import InputAsIs
from geoseg.randomness import stream
from geoseg.tasks.evaluation import EvaluationTask, Published
from geoseg.types import IGNORE, Prediction, Sample

PALETTE = Palette(facies_palette(6))


class Guess(nn.Module):
    """Random pictures in two stages, one generator per image; remembers what it said."""

    num_classes = 6

    def __init__(self, painting: bool = True) -> None:
        super().__init__()
        self.painting = painting
        self.pictures: list[list[Tensor]] = []

    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        first = torch.stack([torch.rand(3, *image.shape[-2:], generator=one) for one in generator])
        second = torch.stack([torch.rand(3, *image.shape[-2:], generator=one) for one in generator])
        self.pictures += [list(pair) for pair in zip(first, second, strict=True)]
        facts = {"n": torch.arange(len(image), dtype=torch.float32)}
        if not self.painting:
            return Prediction(PALETTE.decode(second), facts=facts)
        return Prediction(
            PALETTE.decode(second), painted=second, stages={"pass 1": first, "pass 2": second}, facts=facts
        )


class Edged(SyntheticEarth):
    """Sections with a border that is to be ignored."""

    def read(self, name: str) -> Sample:
        sample = super().read(name)
        target = sample.target.copy()
        target[:3] = IGNORE
        return sample._replace(target=target)


def evaluated(predictor: Any, batch_size: int = 2, seed: int = 0, **options: Any) -> tuple[EvaluationTask, DataModule]:
    data = DataModule(Edged(size=20, train=1, val=0, test=5), num_train=1, batch_size=batch_size)
    data.prepare()
    task = EvaluationTask(predictor, PALETTE, seed, **options)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.test(task, datamodule=data, verbose=False)
    return task, data


def by_hand(labels: Sequence[Tensor], targets: Sequence[Tensor]) -> dict[str, float]:
    """Scores from one confusion matrix, in NumPy."""
    counts = np.zeros((6, 6))
    for one, target in zip(labels, targets, strict=True):
        for true, guess in zip(target.flatten().tolist(), one.flatten().tolist(), strict=True):
            if true != IGNORE:
                counts[true, guess] += 1

    def scores(c: np.ndarray) -> dict[str, float]:
        union = c.sum(0) + c.sum(1) - c.diagonal()
        there = union > 0
        return {
            "iou/mean": float((c.diagonal()[there] / union[there]).mean()),
            "dice/mean": float((2 * c.diagonal()[there] / (c.sum(0) + c.sum(1))[there]).mean()),
            "accuracy/pixel": float(c.diagonal().sum() / c.sum()),
        }

    union = counts.sum(0)[None] + counts.sum(1)[:, None] - counts
    rows, columns = linear_sum_assignment(-counts / np.maximum(union, 1))
    matched = np.zeros_like(counts)
    matched[:, rows] = counts[:, columns]
    return scores(counts) | {f"matched/{name}": value for name, value in scores(matched).items()}


def grey_dice_loss(a: Tensor, b: Tensor) -> float:
    """1 - 2 sum(ab) / (sum(a) + sum(b)) on grey values."""
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    flat = [x[0].double() if len(x) == 1 else torch.einsum("chw,c->hw", x.double(), luma) for x in (a, b)]
    return float(1 - 2 * (flat[0] * flat[1]).sum() / (flat[0].sum() + flat[1].sum()))


def test_scores_are_those_of_the_saved_predictions() -> None:
    predictor = Guess()
    task, data = evaluated(predictor)
    assert task.names == data.names["test"]
    assert task.seconds > 0
    assert list(task.stages) == ["pass 1", "pass 2"]
    items = [data.test[i] for i in range(5)]
    targets = [item["target"] for item in items]
    labels = [PALETTE.paint(target[None])[0] for target in targets]
    answers = [[PALETTE.decode(p[None]).argmax(1)[0] for p in pair] for pair in predictor.pictures]
    for which, scores, per_unit in (
        (0, task.stages["pass 1"], task.stages_per_unit["pass 1"]),
        (1, task.stages["pass 2"], task.stages_per_unit["pass 2"]),
        (1, task.scores, task.per_unit),
    ):
        for name, value in by_hand([pair[which] for pair in answers], targets).items():
            assert scores[f"test/{name}"] == pytest.approx(value, abs=1e-9)
        drawn, originals = [pair[which] for pair in predictor.pictures], [item["image"] for item in items]
        for name, first, second in (
            ("original_label", originals, labels),
            ("original_generated", originals, drawn),
            ("label_generated", labels, drawn),
        ):
            losses = [grey_dice_loss(a, b) for a, b in zip(first, second, strict=True)]
            assert scores[f"test/dice_loss/{name}"] == pytest.approx(np.mean(losses), rel=1e-5)
            assert per_unit[f"test/dice_loss/{name}"] == pytest.approx(losses, rel=1e-5)
    for name in ("iou/mean", "dice/mean", "accuracy/pixel"):
        alone = [by_hand([answers[i][1]], [targets[i]])[name] for i in range(5)]
        assert task.per_unit[f"test/{name}"] == pytest.approx(alone, abs=1e-9)
    assert all(len(values) == 5 for values in task.per_unit.values())
    assert task.facts == {"n": pytest.approx((0 + 1 + 0 + 1 + 0) / 5)}


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_neither_batch_size_nor_neighbours_change_an_image(batch_size: int) -> None:
    first, _ = evaluated(Guess(), batch_size=2)
    other, _ = evaluated(Guess(), batch_size=batch_size)
    assert first.scores.keys() == other.scores.keys() and first.per_unit.keys() == other.per_unit.keys()
    for name, values in first.per_unit.items():
        # a softmax over a larger batch may differ in the last digit of a probability, but in no label
        near = 1e-3 if "uncertainty" in name else 1e-6 if "calibration" in name else 0
        np.testing.assert_allclose(other.per_unit[name], values, rtol=near, err_msg=name)  # there nan equals nan
        np.testing.assert_allclose(other.scores[name], first.scores[name], rtol=near, err_msg=name)


class Mirrored(Guess):
    """Answers by the image alone, so that a mirrored one has an answer of its own."""

    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        ramp = torch.linspace(0, 1, image.shape[-1])
        self.pictures += [[one, one] for one in image]
        return Prediction(PALETTE.decode((image + ramp).clamp(0, 1)))


def test_published_ways_of_counting_do_not_depend_on_the_batches_predicted() -> None:
    def labelled(image: Tensor) -> Tensor:
        return Mirrored().predict(image[None], []).labels

    several: list[dict[str, float]] = []
    for batch_size in (2, 5):
        task, data = evaluated(Mirrored(), batch_size=batch_size, published=Published(3, flips=True))
        several.append({name: value for name, value in task.scores.items() if "published" in name})
    plain, both = [], []
    for i in range(5):
        image, target = data.test[i]["image"], data.test[i]["target"][None]
        plain.append(confusion(labelled(image), target, 6)[0])
        both += [plain[-1], confusion(labelled(image.flip(-1)), target.flip(-1), 6)[0]]
    wanted = {f"test/published/{name}": value.item() for name, value in batch_scores(torch.stack(plain), 3).items()}
    wanted |= {
        f"test/published/with_flips/{name}": value.item() for name, value in batch_scores(torch.stack(both), 6).items()
    }
    assert several[0] == several[1] == pytest.approx(wanted)
    assert wanted["test/published/iou/mean"] != wanted["test/published/with_flips/iou/mean"]
    assert task.ms_per_image is None  # one batch, the one that warms up
    alone, _ = evaluated(Mirrored(), published=Published(3))
    assert {name for name in alone.scores if "published" in name} == {name for name in wanted if "flips" not in name}
    assert alone.ms_per_image == pytest.approx(1000 * sum(seconds for seconds, _ in alone._times[1:]) / 3)


def test_randomness_is_that_of_seed_and_name() -> None:
    predictor = Guess()
    _, data = evaluated(predictor, seed=7)
    for name, pair in zip(data.names["test"], predictor.pictures, strict=True):
        generator = stream(7, "predict", name)
        assert torch.equal(torch.rand(3, 20, 20, generator=generator), pair[0])
    assert evaluated(Guess(), seed=8)[0].scores != evaluated(Guess(), seed=7)[0].scores


def test_the_input_as_it_is() -> None:
    task, data = evaluated(InputAsIs(PALETTE))
    labels = []
    for i in range(5):
        grey = data.test[i]["image"][0]
        distance = (grey[None] - PALETTE.colours[:, :, None, None].transpose(0, 1)).square().sum(0)
        labels.append(distance.argmin(0))
    for name, value in by_hand(labels, [data.test[i]["target"] for i in range(5)]).items():
        assert task.scores[f"test/{name}"] == pytest.approx(value, abs=1e-9)
    assert task.stages == {}
    same = [grey_dice_loss(data.test[i]["image"], data.test[i]["image"]) for i in range(5)]
    assert task.scores["test/dice_loss/original_generated"] == pytest.approx(np.mean(same), rel=1e-6)


def test_every_answer_is_written(tmp_path: Path) -> None:
    predictor = Guess()
    _, data = evaluated(predictor, folder=tmp_path, keep=1)
    for stage in ("labels", "pass_1", "pass_2"):
        assert [path.stem for path in sorted((tmp_path / stage).iterdir())] == data.names["test"]
    answers = [PALETTE.decode(pair[1][None]).argmax(1)[0] for pair in predictor.pictures]
    for name, answer, pair in zip(data.names["test"], answers, predictor.pictures, strict=True):
        with Image.open(tmp_path / "labels" / f"{name}.png") as picture:
            assert np.array_equal(np.asarray(picture), answer.numpy())
        with Image.open(tmp_path / "pass_1" / f"{name}.png") as picture:
            drawn = np.asarray(picture).transpose(2, 0, 1) / 255
        assert np.abs(drawn - pair[0].numpy()).max() < 0.51 / 255


def test_what_only_labels_is_painted_for_the_intensity_scores() -> None:
    predictor = Guess(painting=False)
    task, data = evaluated(predictor)
    answers = [PALETTE.paint(PALETTE.decode(pair[1][None]).argmax(1))[0] for pair in predictor.pictures]
    losses = [grey_dice_loss(data.test[i]["image"], answers[i]) for i in range(5)]
    assert task.scores["test/dice_loss/original_generated"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert [list(picture["stages"]) for picture in task.pictures] == [["prediction"]] * 5
    assert torch.equal(task.pictures[3]["stages"]["prediction"], answers[3])


@pytest.mark.parametrize("keep", [0, 3, 9])
def test_the_first_pictures_are_kept(keep: int) -> None:
    predictor = Guess()
    task, data = evaluated(predictor, keep=keep)
    assert [picture["name"] for picture in task.pictures] == data.names["test"][:keep]
    for i, picture in enumerate(task.pictures):
        assert torch.equal(picture["original"], data.test[i]["image"])
        assert torch.equal(picture["stages"]["pass 1"], predictor.pictures[i][0])
        assert torch.equal(picture["label"], PALETTE.paint(data.test[i]["target"][None])[0])


class Gapped(SyntheticMattes):
    """Mattes with a border that is to be ignored."""

    def read(self, name: str) -> Sample:
        sample = super().read(name)
        target = sample.target.copy()
        target[:3] = np.nan
        return sample._replace(target=target)


class Draws(nn.Module):
    """Random shares; remembers them."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.said: list[Tensor] = []

    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        one = torch.stack([torch.rand(image.shape[2:], generator=each) for each in generator])
        self.said += one.unbind()
        return Prediction(torch.stack([1 - one, one], 1))


class Says(nn.Module):
    """Probabilities of six classes that lean to the truth, three answers to each picture in turn; it remembers them."""

    num_classes = 6

    def __init__(self, truth: Tensor) -> None:
        super().__init__()
        self.lean = one_hot(truth.clamp(max=5), 6).movedim(-1, 1)
        self.said: list[Tensor] = []

    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        turn = range(len(self.said), len(self.said) + len(image))
        logits = [
            torch.randn(6, *image.shape[2:], generator=one) + self.lean[i // 3]
            for i, one in zip(turn, generator, strict=True)
        ]
        self.said += [one.softmax(0) for one in logits]
        return Prediction(torch.stack(logits).softmax(1))


def test_doubts_of_an_ensemble_rank_the_errors_of_its_mean() -> None:
    source = Edged(size=20, train=1, val=0, test=5)
    target = torch.stack([torch.from_numpy(source.read(f"test_000{i}").target).long() for i in range(5)])
    says = Says(target)
    task, _ = evaluated(Ensemble(says, members=3))
    said = torch.stack(says.said).view(5, 3, 6, 20, 20)
    keep, mean = target != IGNORE, said.mean(1)
    wrong = (mean.argmax(1) != target)[keep]
    votes = torch.stack([(said.argmax(2) == k).double().mean(1) for k in range(6)], 1)
    unsure = {
        "entropy": torch.special.entr(mean).sum(1),
        "own": ((said - mean[:, None]) ** 2).mean(1).sum(1),
        "votes": torch.special.entr(votes).sum(1).float(),
        "one_member": torch.special.entr(said[:, 0]).sum(1),  # the control, of the same errors
    }
    for name, values in unsure.items():
        wanted = float(binary_auroc(values[keep] / values.max(), wrong.long()))
        assert task.scores[f"test/uncertainty/{name}/auroc"] == pytest.approx(wanted, abs=2e-3)
    assert len({round(task.scores[f"test/uncertainty/{name}/auroc"], 3) for name in unsure}) == 4
    for m in range(3):
        for name, probs in (("", said[:, : m + 1].mean(1)), ("alone/", said[:, m])):
            wanted = by_hand(probs.argmax(1).unbind(), target.unbind())
            for score in ("iou/mean", "accuracy/pixel"):
                assert task.members[f"{name}{score}"][m] == pytest.approx(wanted[score], rel=1e-5)


def test_mattes_are_scored_by_their_errors(tmp_path: Path) -> None:
    data = DataModule(Gapped(size=20, train=1, val=0, test=3), num_train=1, batch_size=2)
    data.prepare()
    assert data.palette is not None
    draws = Draws()
    task = EvaluationTask(Ensemble(draws, members=4), data.palette, 0, folder=tmp_path)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.test(task, datamodule=data, verbose=False)
    said = torch.stack(draws.said).view(3, 4, 20, 20).double().numpy()
    truth = np.stack([data.test[i]["target"].numpy() for i in range(3)]).astype(float)[:, 3:]

    def errors(found: np.ndarray) -> tuple[float, float]:
        apart = found[:, 3:] - truth
        return np.abs(apart).sum((1, 2)).mean() / 1000, (apart**2).mean() * 1000

    assert (task.scores["test/matte/sad"], task.scores["test/matte/mse"]) == pytest.approx(
        errors(said.mean(1)), rel=1e-4
    )
    for i, name in enumerate(("matte/sad", "matte/mse")):
        together = [errors(said[:, : m + 1].mean(1))[i] for m in range(4)]
        assert task.members[name] == pytest.approx(together, rel=1e-4)
        assert task.members[f"alone/{name}"] == pytest.approx([errors(said[:, m])[i] for m in range(4)], rel=1e-4)
        assert len(task.per_unit[f"test/{name}"]) == 3
    right = (said.mean(1)[:, 3:] > 0.5) == (truth > 0.5)
    assert task.scores["test/accuracy/pixel"] == pytest.approx(right.mean())
    assert not [name for name in task.scores if "uncertainty" in name or "calibration" in name]
    # an ensemble has the variance of both shares, which vary alike
    kept = task.pictures[0]
    np.testing.assert_allclose(kept["uncertainty"].numpy(), 2 * said[0].var(0), atol=1e-5)
    np.testing.assert_allclose(kept["labels"].numpy(), said[0].mean(0), atol=1e-5)
    with Image.open(tmp_path / "mattes" / f"{task.names[1]}.png") as picture:
        assert picture.mode == "L" and np.abs(np.asarray(picture) / 255 - said[1].mean(0)).max() <= 0.51 / 255
