"""Scores against hand counts, loops and torchmetrics' own."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassJaccardIndex

from geoseg.metrics.boundary import boundary_counts, boundary_f1
from geoseg.metrics.score import (
    SegmentationScore,
    batch_scores,
    confusion,
    dice,
    iou,
    mean_accuracy,
    pixel_accuracy,
    recall,
    small_regions,
)


def random_maps(seed: int, num_classes: int, shape: tuple[int, ...] = (3, 12, 14)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(num_classes, shape, generator=generator)
    wrong = torch.rand(shape, generator=generator) < 0.4
    labels = torch.where(wrong, torch.randint(num_classes, shape, generator=generator), target)
    return labels, target.masked_fill(torch.rand(shape, generator=generator) < 0.1, 255)


TARGET = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 2], [2, 2, 255, 255]]])
LABELS = torch.tensor([[[0, 0, 0, 1], [0, 1, 1, 1], [2, 2, 0, 2], [2, 2, 1, 0]]])


def test_a_map_counted_by_hand() -> None:
    assert confusion(LABELS, TARGET, 4).tolist() == [[[3, 1, 0, 0], [1, 3, 0, 0], [1, 0, 5, 0], [0, 0, 0, 0]]]


def test_scores_of_the_map_counted_by_hand() -> None:
    counts = confusion(LABELS, TARGET, 4)[0]
    np.testing.assert_allclose(iou(counts).numpy(), [3 / 6, 3 / 5, 5 / 6, np.nan])
    np.testing.assert_allclose(recall(counts).numpy(), [3 / 4, 3 / 4, 5 / 6, np.nan])
    np.testing.assert_allclose(dice(counts).numpy(), [6 / 9, 6 / 8, 10 / 11, np.nan])
    assert pixel_accuracy(counts).item() == pytest.approx(11 / 14)
    assert mean_accuracy(counts).item() == pytest.approx((3 / 4 + 3 / 4 + 5 / 6) / 3)


def test_confusion_is_that_of_a_loop() -> None:
    labels, target = random_maps(0, 5)
    expected = np.zeros((3, 5, 5), dtype=int)
    for place in np.ndindex(*labels.shape):
        if target[place] != 255:
            expected[place[0], target[place], labels[place]] += 1
    np.testing.assert_array_equal(confusion(labels, target, 5).numpy(), expected)


def test_whole_images_have_classes_too() -> None:
    counts = confusion(torch.tensor([1, 0]), torch.tensor([1, 255]), 2)
    assert counts.tolist() == [[[0, 0], [0, 1]], [[0, 0], [0, 0]]]


def test_a_label_under_an_ignored_pixel_is_not_looked_at() -> None:
    labels, target = torch.tensor([[0, 255]]), torch.tensor([[0, 255]])
    assert confusion(labels, target, 2).sum() == 1


def test_small_regions_are_connected_pieces_of_one_class() -> None:
    target = torch.zeros(2, 20, 20, dtype=torch.int64)
    target[0, 2, 3:6] = 1  # three pixels of 400: small
    target[0, 10, 3:7] = 1  # four of 400 are 1 %: not below it
    target[0, 3, 6] = 1  # touches the first by a corner only
    target[0, 19, 19] = 255
    target[1] = 2
    small = small_regions(target)
    assert small.sum() == 4
    assert small[0, 2, 3:6].all() and small[0, 3, 6]


def test_recall_of_small_regions_counted_by_hand() -> None:
    target = torch.zeros(1, 20, 20, dtype=torch.int64)
    target[0, 2, 3:6] = 1
    labels = torch.zeros_like(target)
    labels[0, 2, 3:5] = 1
    score = SegmentationScore(num_classes=2)
    score.update(labels, target)
    score.update(target, torch.zeros_like(target))  # without small regions
    assert score.compute()["small_regions/recall"].item() == pytest.approx(2 / 3)
    assert score.per_image()["small_regions/recall"] == pytest.approx([2 / 3, float("nan")], nan_ok=True)
    swapped = SegmentationScore(num_classes=2)
    swapped.update(1 - labels, target)
    scores = swapped.compute()
    assert scores["small_regions/recall"].item() == pytest.approx(1 / 3)
    assert scores["matched/small_regions/recall"].item() == pytest.approx(2 / 3)


def test_scores_agree_with_torchmetrics() -> None:
    score = SegmentationScore(num_classes=5)
    theirs = {
        "iou/mean": MulticlassJaccardIndex(5, ignore_index=255),
        "dice/mean": MulticlassF1Score(5, average="macro", ignore_index=255),
        "accuracy/pixel": MulticlassAccuracy(5, average="micro", ignore_index=255),
        "accuracy/mean": MulticlassAccuracy(5, average="macro", ignore_index=255),
    }
    for seed in range(3):
        labels, target = random_maps(seed, 5)
        score.update(labels, target)
        for metric in theirs.values():
            metric.update(labels, target)
    ours = score.compute()
    for name, metric in theirs.items():
        assert ours[name].item() == pytest.approx(metric.compute().item(), rel=1e-6), name


def test_scores_batch_by_batch_agree_with_torchmetrics() -> None:
    labels, target = random_maps(1, 5, (7, 12, 14))
    labels[labels == 4], target[target == 4] = 0, 0  # class 4 is nowhere,
    target[3:6][target[3:6] == 2] = 1  # and class 2 in one batch is only predicted
    found = batch_scores(confusion(labels, target, 5), 3)
    ious, recalls = [], []
    for a, b in ((0, 3), (3, 6), (6, 7)):
        ious.append(MulticlassJaccardIndex(5, ignore_index=255)(labels[a:b], target[a:b]).item())
        some = MulticlassAccuracy(5, average=None, ignore_index=255)(labels[a:b], target[a:b])
        recalls.append(some.nan_to_num(0).sum().item() / 5)
    assert found["iou/mean"].item() == pytest.approx(np.mean(ious), rel=1e-6)
    assert found["accuracy/mean"].item() == pytest.approx(np.mean(recalls), rel=1e-6)
    assert batch_scores(confusion(labels, target, 5), 7)["iou/mean"].item() != pytest.approx(np.mean(ious), abs=1e-4)


def test_absent_classes_are_left_out_of_the_mean() -> None:
    target = torch.tensor([[[0, 0, 1, 1]]])
    labels = torch.tensor([[[0, 0, 1, 0]]])
    few, many = SegmentationScore(2), SegmentationScore(9)
    few.update(labels, target)
    many.update(labels, target)
    for name, value in few.compute().items():
        assert many.compute()[name].item() == pytest.approx(value.item(), rel=0, abs=0, nan_ok=True), name
    assert many.compute()["iou/class_5"].isnan()
    assert few.compute()["iou/mean"].item() == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_class_that_is_only_predicted_counts_as_wrong() -> None:
    score = SegmentationScore(3)
    score.update(torch.tensor([[[0, 0, 1, 2]]]), torch.tensor([[[0, 0, 1, 1]]]))
    assert score.compute()["iou/mean"].item() == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_the_data_set_is_scored_by_summed_counts() -> None:
    labels, target = random_maps(3, 4)
    score = SegmentationScore(4)
    score.update(labels, target)
    whole = iou(confusion(labels.reshape(1, -1), target.reshape(1, -1), 4))[0].nanmean()
    assert score.compute()["iou/mean"].item() == pytest.approx(whole.item())
    per_image = score.per_image()["iou/mean"]
    assert np.mean(per_image) != pytest.approx(whole.item(), abs=1e-9)
    counts = boundary_counts(labels, target, 4, 2)
    f1 = boundary_f1(type(counts)(*(value.sum(0) for value in counts))).nanmean()
    assert score.compute()["boundary_f1/mean"].item() == pytest.approx(f1.item())


def test_images_are_scored_as_if_alone() -> None:
    labels, target = random_maps(4, 4)
    target[1] = target[1].masked_fill(target[1] == 2, 0)
    score = SegmentationScore(4)
    score.update(labels, target)
    together = score.per_image()
    for i in range(3):
        alone = SegmentationScore(4)
        alone.update(labels[i : i + 1], target[i : i + 1])
        for name, value in alone.compute().items():
            if not name.startswith("matched/"):
                np.testing.assert_allclose(together[name][i], value.item(), err_msg=name)


def renamed(labels: Tensor, order: list[int]) -> Tensor:
    return torch.tensor(order)[labels]


def test_matched_scores_do_not_depend_on_names() -> None:
    labels, target = random_maps(5, 4)
    plain, other = SegmentationScore(4), SegmentationScore(4)
    plain.update(labels, target)
    other.update(renamed(labels, [2, 0, 3, 1]), target)
    assert other.mapping()[[2, 0, 3, 1]].tolist() == plain.mapping().tolist() == [0, 1, 2, 3]
    for name, value in plain.compute().items():
        if name.startswith("matched/"):
            assert other.compute()[name].item() == pytest.approx(value.item()), name
            assert value.item() == pytest.approx(plain.compute()[name.removeprefix("matched/")].item()), name
            assert other.per_image()[name] == pytest.approx(plain.per_image()[name]), name
    assert other.compute()["iou/mean"] < other.compute()["matched/iou/mean"]


def test_one_matching_serves_the_data_set_or_the_image() -> None:
    target = torch.tensor([[[0, 0, 0, 1, 1]], [[0, 0, 1, 1, 1]]])
    labels = torch.stack([target[0], 1 - target[1]])  # the second image swaps its names
    labels[0, 0, 0] = 1
    whole, single = SegmentationScore(2), SegmentationScore(2, matching="image")
    whole.update(labels, target)
    single.update(labels, target)
    assert single.mapping().tolist() == [[0, 1], [1, 0]]
    assert single.per_image()["matched/iou/mean"][1] == 1.0
    assert single.compute()["matched/accuracy/pixel"].item() == pytest.approx(9 / 10)
    best = max(
        iou(confusion(renamed(labels, list(order)), target, 2).sum(0)).nanmean().item()
        for order in permutations(range(2))
    )
    assert whole.compute()["matched/iou/mean"].item() == pytest.approx(best)
    assert whole.compute()["matched/iou/mean"] < single.compute()["matched/iou/mean"]
    assert single.compute()["iou/mean"] == whole.compute()["iou/mean"]


@pytest.mark.parametrize("matching", ["dataset", "image"])
def test_updates_and_processes_add_up(matching: str) -> None:
    batches = [random_maps(seed, 4) for seed in (6, 7)]
    once, twice = SegmentationScore(4, matching=matching), SegmentationScore(4, matching=matching)
    once.update(torch.cat([labels for labels, _ in batches]), torch.cat([target for _, target in batches]))
    parts = []
    for labels, target in batches:
        twice.update(labels, target)
        part = SegmentationScore(4, matching=matching)
        part.update(labels, target)
        parts.append(part)
    # what gathering from several processes leaves behind: one concatenated tensor per state
    gathered = SegmentationScore(4, matching=matching)
    gathered.update(*batches[0])
    for state in ("counts", "small", "hits_pred", "total_pred", "hits_target", "total_target"):
        setattr(gathered, state, torch.cat([getattr(part, state)[0] for part in parts]))
    parts[1].merge_state(parts[0])  # puts the incoming state first
    for other in (twice, parts[1], gathered):
        assert {name: value.item() for name, value in other.compute().items()} == pytest.approx(
            {name: value.item() for name, value in once.compute().items()}, nan_ok=True
        )
        theirs, ours = other.per_image(), once.per_image()
        assert theirs.keys() == ours.keys()
        for name, values in ours.items():
            assert theirs[name] == pytest.approx(values, nan_ok=True), name


def test_reset_forgets() -> None:
    score = SegmentationScore(4)
    score.update(*random_maps(8, 4))
    score.reset()
    score.update(LABELS, TARGET)
    assert len(score.per_image()["iou/mean"]) == 1


def test_an_image_with_nothing_but_ignored_pixels_is_nan_and_harms_nobody() -> None:
    score = SegmentationScore(4)
    score.update(torch.cat([LABELS, LABELS]), torch.cat([TARGET, torch.full_like(TARGET, 255)]))
    alone = SegmentationScore(4)
    alone.update(LABELS, TARGET)
    assert np.isnan(score.per_image()["iou/mean"][1])
    assert score.compute()["iou/mean"] == alone.compute()["iou/mean"]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"labels holds classes 0\.\.4, wanted 0\.\.1"):
        confusion(torch.tensor([[0, 4]]), torch.tensor([[0, 1]]), 2)
    with pytest.raises(ValueError, match=r"target holds classes -1\.\.0"):
        confusion(torch.tensor([[0, 0]]), torch.tensor([[0, -1]]), 2)
    with pytest.raises(ValueError, match="one shape"):
        confusion(torch.tensor([[0]]), torch.tensor([[0, 1]]), 2)
    with pytest.raises(ValueError, match="argmax"):
        confusion(torch.tensor([[0.2, 0.8]]), torch.tensor([[0, 1]]), 2)
    with pytest.raises(ValueError, match="'dataset' or 'image'"):
        SegmentationScore(2, matching="best")
    with pytest.raises(ValueError, match="no image was scored"):
        SegmentationScore(2).per_image()
