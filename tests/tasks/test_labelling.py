"""Teaching a network its classes: the squares it sees, the losses it is given, and that it learns."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from geoseg.data.module import DataModule, Split
from geoseg.data.synthetic import SyntheticEarth
from geoseg.optim import adamw, constant
from geoseg.tasks.labelling import (
    Crops,
    LabellingTask,
    absolute_error,
    cross_entropy,
    cross_entropy_dice,
    dice,
    focal,
    weighted_dice,
)
from geoseg.tasks.task import Fit
from geoseg.types import IGNORE

KEYS = [(i, visit) for visit in range(4) for i in range(3)]


def crops(size: int = 12, flip: bool = True, phase: str = "train", seed: int = 0) -> Crops:
    source = SyntheticEarth(size=24, train=3, val=0, test=0)
    return Crops(Split(source, source.names), size, flip, phase, seed)


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a["name"] == b["name"] and torch.equal(a["image"], b["image"]) and torch.equal(a["target"], b["target"])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # workers of a DataLoader are forked
def test_an_item_is_the_same_in_any_order_and_any_worker() -> None:
    view = crops()
    wanted = {key: view[key] for key in KEYS}
    fresh = crops()
    assert all(equal(fresh[key], wanted[key]) for key in reversed(KEYS))
    batches = [KEYS[i : i + 2] for i in range(0, len(KEYS), 2)]
    for workers in (0, 2):
        for keys, batch in zip(batches, DataLoader(crops(), batch_sampler=batches, num_workers=workers), strict=True):
            for i, key in enumerate(keys):
                assert torch.equal(batch["image"][i], wanted[key]["image"])
                assert torch.equal(batch["target"][i], wanted[key]["target"])


def test_every_part_of_the_key_counts() -> None:
    made = [crops()[0, 0], crops()[0, 1], crops(seed=1)[0, 0], crops(phase="validation")[0, 0], crops()[1, 0]]
    assert all(not torch.equal(a["image"], b["image"]) for i, a in enumerate(made) for b in made[:i])


def test_squares_come_from_the_picture_and_half_of_them_are_mirrored() -> None:
    view, unflipped = crops(), crops(flip=False)
    whole, mirrored = view.split[0], []
    for visit in range(40):
        item, upright = view[0, visit], unflipped[0, visit]
        places = [
            (top, left)
            for top in range(13)
            for left in range(13)
            if all(
                torch.equal(whole[part][..., top : top + 12, left : left + 12], upright[part])
                for part in ("image", "target")
            )
        ]
        assert len(places) == 1
        turned = {key: value.flip(-1) if isinstance(value, Tensor) else value for key, value in upright.items()}
        assert equal(item, upright) or equal(item, turned)
        mirrored.append(equal(item, turned))
    assert 10 <= sum(mirrored) <= 30


def test_a_picture_smaller_than_the_square_is_mirrored() -> None:
    item, whole = crops(size=30, flip=False)[1, 0], crops().split[1]
    margins = ((0, 6), (0, 6))
    np.testing.assert_array_equal(item["target"].numpy(), np.pad(whole["target"].numpy(), margins, mode="symmetric"))
    np.testing.assert_array_equal(
        item["image"][0].numpy(), np.pad(whole["image"][0].numpy(), margins, mode="symmetric")
    )


def test_cross_entropy_is_torchs_without_the_ignored_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, 6, generator=generator)
    target = torch.randint(4, (3, 5, 6), generator=generator)
    target[0, :2] = IGNORE
    target[2] = IGNORE
    found = cross_entropy(logits, target)
    for i in range(2):
        wanted = F.cross_entropy(logits[i : i + 1], target[i : i + 1], ignore_index=IGNORE)
        torch.testing.assert_close(found[i], wanted)
    assert found[2] == 0


def test_soft_dice_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    target = torch.randint(2, (2, 4, 5), generator=generator)  # class 2 is never there
    target[0, 0] = IGNORE
    found = cross_entropy_dice(logits, target) - cross_entropy(logits, target)
    for i in range(2):
        probs = logits[i].softmax(0)
        terms = []
        for k in range(2):
            overlap = total = 0.0
            for y in range(4):
                for x in range(5):
                    if target[i, y, x] != IGNORE:
                        true = float(target[i, y, x] == k)
                        overlap += float(probs[k, y, x]) * true
                        total += float(probs[k, y, x]) + true
            terms.append((2 * overlap + 1) / (total + 1))
        assert float(found[i]) == pytest.approx(1 - sum(terms) / 2, rel=1e-5)


def answers(count: int = 3, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Logits and target of pictures with class 3 missing, some pixels of the first ignored, and all of the last."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, 5, 6, generator=generator)
    target = torch.randint(classes - 1, (count, 5, 6), generator=generator)
    target[0, :2] = IGNORE
    target[-1] = IGNORE
    return logits, target


def test_given_weights_are_torchs() -> None:
    logits, target = answers()
    weights = [0.5, 2.0, 1.0, 7.0]
    found = cross_entropy(logits, target, weights)
    for i in range(2):
        wanted = F.cross_entropy(logits[i : i + 1], target[i : i + 1], torch.tensor(weights), ignore_index=IGNORE)
        torch.testing.assert_close(found[i], wanted)
    assert found[2] == 0
    torch.testing.assert_close(cross_entropy(logits, target, [3.0] * 4), cross_entropy(logits, target))
    torch.testing.assert_close(
        cross_entropy_dice(logits, target, weights) - cross_entropy_dice(logits, target),
        found - cross_entropy(logits, target),
    )


def test_inverse_weights_count_every_class_the_same() -> None:
    logits, target = answers()
    found = cross_entropy(logits, target, "inverse")
    costs = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    for i in range(2):
        wanted = torch.stack([costs[i][target[i] == k].mean() for k in range(3)]).mean()
        torch.testing.assert_close(found[i], wanted)
    assert found[2] == 0


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, 1.0, 1.0, -1.0], "frequency"])
def test_impossible_weights(weights: Any) -> None:
    with pytest.raises(ValueError, match="weights must be 4 numbers"):
        cross_entropy(*answers(), weights)


def test_focal_by_its_formula() -> None:
    logits, target = answers()
    torch.testing.assert_close(focal(logits, target, gamma=0.0), cross_entropy(logits, target))
    found = focal(logits, target)
    for i in range(2):
        costs = [
            -((1 - p) ** 2) * p.log()
            for y in range(5)
            for x in range(6)
            if (k := int(target[i, y, x])) != IGNORE
            for p in [logits[i, :, y, x].softmax(0)[k]]
        ]
        torch.testing.assert_close(found[i], torch.stack(costs).mean())
    # two classes at even chances: (1/2)^gamma log 2
    even = focal(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.long), gamma=3.0)
    torch.testing.assert_close(even, torch.tensor([0.125 * np.log(2)], dtype=torch.float32))


def test_dice_alone() -> None:
    logits, target = answers()
    torch.testing.assert_close(dice(logits, target), cross_entropy_dice(logits, target) - cross_entropy(logits, target))
    # all four called 0, and two are: twice 2 of 4 + 2 for class 0, none of 0 + 2 for class 1
    sure = 100.0 * F.one_hot(torch.tensor([[[0, 0], [0, 0]]]), 2).movedim(-1, 1)
    found = dice(sure, torch.tensor([[[0, 0], [1, 1]]]))
    assert float(found[0]) == pytest.approx(1 - ((2 * 2 + 1) / (4 + 2 + 1) + 1 / (2 + 1)) / 2)


def test_weighted_dice_by_hand() -> None:
    logits = torch.zeros(1, 3, 1, 4)  # a third for every class everywhere
    target = torch.tensor([[[0, 0, 0, 1]]])
    weights = np.array([1 / 3, 1.0, 1e-10])
    weights /= weights.sum()
    overlap, size = np.array([3, 1, 0]) / 3, np.array([3, 1, 0]) + 4 / 3
    wanted = np.mean(1 - (2 * weights * overlap + 1) / (weights * size + 1))
    assert float(weighted_dice(logits, target)[0]) == pytest.approx(wanted, rel=1e-5)
    ignored = torch.cat([target, torch.full((1, 1, 4), IGNORE)], 1)
    more = torch.randn(1, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    more[:, :, :1] = logits
    assert float(weighted_dice(more, ignored)[0]) == pytest.approx(wanted, rel=1e-5)


def test_a_perfect_answer_costs_nothing() -> None:
    target = torch.randint(3, (2, 6, 6), generator=torch.Generator().manual_seed(0))
    logits = 100.0 * F.one_hot(target, 3).movedim(-1, 1)
    assert cross_entropy_dice(logits, target).abs().max() < 1e-5
    assert cross_entropy_dice(logits, torch.full_like(target, IGNORE)).isfinite().all()


class Shades(nn.Module):
    """A network of one hidden layer that sees one pixel at a time."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, num_classes, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


def task(model: nn.Module, seed: int = 0, epochs: int = 30) -> LabellingTask:
    return LabellingTask(
        model,
        cross_entropy,
        seed,
        crop=16,
        fit=Fit(epochs=epochs, batch_size=2),
        lr=0.05,
        optimizer=functools.partial(adamw, weight_decay=0.0),
        schedule=constant,
    )


def fitted(seed: int = 0, workers: int = 0, val: int = 1) -> LabellingTask:
    data = DataModule(SyntheticEarth("crater", size=24, train=2, val=val, test=1), num_train=2, workers=workers)
    data.prepare()
    made = task(Shades(), seed)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(made, datamodule=data)
    return made


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*is deprecated")
def test_it_learns_and_is_repeatable_and_comes_back_from_disk(tmp_path: Path) -> None:
    first = fitted()
    batch = next(
        iter(DataLoader(first.view(Split(SyntheticEarth("crater", size=24), ["train_0000"]), False), sampler=[(0, 0)]))
    )
    before, after = task(Shades()).loss(batch), first.loss(batch)
    assert after < 0.8 * before
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), fitted().model.parameters(), strict=True))
    assert not all(
        torch.equal(a, b) for a, b in zip(first.model.parameters(), fitted(seed=1).model.parameters(), strict=True)
    )
    assert first.save(tmp_path / "a") == [tmp_path / "a" / "model.safetensors"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model.safetensors"]
    loaded = task(Shades())
    loaded.load(tmp_path / "a")
    assert torch.equal(loaded.loss(batch), after)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*is deprecated")
def test_validation_counts_the_squares_together() -> None:
    made = fitted(val=3)
    logged = made.trainer.callback_metrics
    split = Split(SyntheticEarth("crater", size=24, train=2, val=3, test=1), ["val_0000", "val_0001", "val_0002"])
    view = made.view(split, training=False)
    items = [view[i, visit] for i in range(3) for visit in range(made.fit.validation_visits)]
    with torch.no_grad():
        found = torch.cat([made.model(item["image"][None]).argmax(1) for item in items])
    target = torch.stack([item["target"] for item in items])
    shares = [((found == k) & (target == k)).sum() / ((found == k) | (target == k)).sum() for k in range(2)]
    assert float(logged["val/iou/mean"]) == pytest.approx(float(sum(shares)) / 2, abs=1e-6)
    assert 0 < float(logged["val/iou/mean"]) < 1 and float(logged["val/loss"]) > 0


@pytest.mark.parametrize("crop", [0, -8])
def test_a_square_without_pixels_is_refused(crop: int) -> None:
    with pytest.raises(ValueError, match=f"crop is the side of a training square in pixels, 1 or more, got {crop}"):
        LabellingTask(Shades(), cross_entropy, 0, crop=crop, fit=Fit(), lr=0.05, optimizer=adamw, schedule=constant)


def test_training_squares_are_flipped_and_validation_squares_are_not() -> None:
    source = SyntheticEarth(size=24, train=3, val=0, test=0)
    made = task(Shades())
    train, validation = (made.view(Split(source, source.names), training=t) for t in (True, False))
    assert (train.flip, train.phase) == (True, "train")
    assert (validation.flip, validation.phase) == (False, "validation")


def test_the_absolute_error_is_over_pixels_that_count() -> None:
    draws = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 2, 4, 5, generator=draws), torch.rand(2, 4, 5, generator=draws)
    target[0, 0] = torch.nan
    shares = (1 / (1 + (logits[:, 0] - logits[:, 1]).exp())).tolist()
    for found, one, wanted in zip(absolute_error(logits, target), shares, target.tolist(), strict=True):
        pairs = [
            (s, t) for a, b in zip(one, wanted, strict=True) for s, t in zip(a, b, strict=True) if not math.isnan(t)
        ]
        assert float(found) == pytest.approx(sum(abs(s - t) for s, t in pairs) / len(pairs), rel=1e-5)
    mask = (target > 0.5).long().masked_fill(target.isnan(), IGNORE)
    torch.testing.assert_close(
        absolute_error(logits, mask), absolute_error(logits, mask.float().masked_fill(mask == IGNORE, torch.nan))
    )
