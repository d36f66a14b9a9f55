"""Refinement: the partition by loops, the averages by hand, and the real mask generator on a tiny model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from geoseg import progress
from geoseg.models.sam import build_sam
from geoseg.palette import Palette
from geoseg.predictors.sam_refined import SamRefined, average_inside, partition
from geoseg.randomness import stream
from geoseg.types import Prediction
from tests.tiny import TINY_SAM

PALETTE = Palette(["#000000", "#FFFFFF", "#FF0000"])


class Given(nn.Module):
    """Answers what it was given."""

    num_classes = 3

    def __init__(self, probs: Tensor, painted: Tensor | None = None) -> None:
        super().__init__()
        self.probs, self.painted = probs, painted

    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        stages = {} if self.painted is None else {"drawn": self.painted}
        return Prediction(
            probs=self.probs, painted=self.painted, stages=stages, facts={"passes": torch.full((len(image),), 2.0)}
        )


class Stub:
    """A mask generator that gives prepared masks, picture by picture, and keeps what it was shown."""

    def __init__(self, *answers: list[dict[str, Any]]) -> None:
        self.answers = list(answers)
        self.pictures: list[np.ndarray] = []

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        self.pictures.append(image)
        return self.answers.pop(0)


def mask(segmentation: np.ndarray, quality: float = 0.9, bbox: tuple[float, ...] = (0, 0, 1, 1)) -> dict[str, Any]:
    return {"segmentation": segmentation, "predicted_iou": quality, "bbox": list(bbox)}


def box(y0: int, y1: int, x0: int, x1: int, quality: float = 0.9, size: tuple[int, int] = (8, 10)) -> dict[str, Any]:
    segmentation = np.zeros(size, dtype=bool)
    segmentation[y0:y1, x0:x1] = True
    return mask(segmentation, quality, (x0, y0, x1 - x0 - 1, y1 - y0 - 1))


def random_probs(count: int = 1, size: tuple[int, int] = (8, 10)) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0)).mul(2).softmax(1)


def tiny_sam() -> Any:
    torch.manual_seed(0)
    return build_sam(TINY_SAM)


def refined(inner: Given, *answers: list[dict[str, Any]]) -> tuple[SamRefined, Stub]:
    predictor, stub = SamRefined(inner, tiny_sam(), PALETTE), Stub(*answers)
    predictor.mask_generator = stub  # type: ignore[assignment]
    return predictor, stub


def streams(count: int = 1) -> list[torch.Generator]:
    return [stream(0, i) for i in range(count)]


def test_smaller_masks_lie_on_top() -> None:
    large, small = box(0, 6, 0, 6), box(2, 4, 2, 8)
    expected = np.full((8, 10), -1)
    expected[:6, :6], expected[2:4, 2:8] = 0, 1
    for masks in ([large, small], [small, large]):
        np.testing.assert_array_equal(partition(masks, 8, 10).numpy(), expected)


def test_ties_go_to_the_better_mask_then_to_the_box() -> None:
    better, worse = box(0, 4, 0, 4, 0.95), box(2, 6, 2, 6, 0.9)
    for masks in ([better, worse], [worse, better]):
        assert partition(masks, 8, 10)[3, 3] == 1
        assert partition(masks, 8, 10)[0, 0] == 1
    left, right = box(0, 4, 0, 4), box(0, 4, 2, 6)
    for masks in ([left, right], [right, left]):
        segments = partition(masks, 8, 10)
        assert segments[0, 2] == segments[0, 5] == 1
        assert segments[0, 0] == 0


@pytest.mark.parametrize("count", [0, 1, 7, 2000])
def test_the_partition_is_that_of_a_loop_in_any_order(count: int) -> None:
    rng = np.random.default_rng(count)
    masks = []
    for _ in range(count):
        y, x = rng.integers(0, 7), rng.integers(0, 9)
        masks.append(box(y, y + rng.integers(1, 5), x, x + rng.integers(1, 6), float(rng.random())))
    expected = np.full((8, 10), -1.0)
    for place in np.ndindex(8, 10):
        over = [m for m in masks if m["segmentation"][place]]
        if over:
            smallest = min(m["segmentation"].sum() for m in over)
            expected[place] = max(m["predicted_iou"] for m in over if m["segmentation"].sum() == smallest)
    for order in (range(count), rng.permutation(count)):
        shuffled = [masks[i] for i in order]
        segments = partition(shuffled, 8, 10).numpy()
        quality = sorted(masks, key=lambda m: (-m["segmentation"].sum(), m["predicted_iou"], m["bbox"]))
        found = np.array([m["predicted_iou"] for m in quality] + [-1.0])[segments]
        np.testing.assert_array_equal(found, expected)


def test_segments_are_averaged_and_the_rest_is_kept() -> None:
    probs = random_probs()[0]
    segments = partition([box(0, 4, 0, 5), box(3, 8, 4, 9)], 8, 10)
    averaged = average_inside(probs, segments)
    for segment in (0, 1):
        inside = segments == segment
        torch.testing.assert_close(averaged[:, inside], probs[:, inside].mean(1, keepdim=True).expand(-1, inside.sum()))
    assert torch.equal(averaged[:, segments == -1], probs[:, segments == -1])
    torch.testing.assert_close(averaged.sum(0), torch.ones(8, 10))
    assert averaged.dtype == probs.dtype
    assert average_inside(probs.bfloat16(), segments).dtype == torch.bfloat16


def test_no_mask_changes_no_label() -> None:
    probs = random_probs()
    predictor, _ = refined(Given(probs), [])
    prediction = predictor.predict(torch.rand(1, 1, 8, 10), streams())
    assert torch.equal(prediction.probs, probs)
    assert {name: values.tolist() for name, values in prediction.facts.items()} == {
        "passes": [2.0],
        "sam/masks": [0.0],
        "sam/coverage": [0.0],
        "sam/largest": [0.0],
    }


def test_one_mask_over_everything_leaves_one_class() -> None:
    probs = random_probs()
    predictor, _ = refined(Given(probs), [box(0, 8, 0, 10)])
    prediction = predictor.predict(torch.rand(1, 1, 8, 10), streams())
    torch.testing.assert_close(prediction.probs, probs.mean((2, 3), keepdim=True).expand_as(probs))
    assert prediction.labels.unique().numel() == 1
    assert prediction.facts["sam/coverage"].tolist() == prediction.facts["sam/largest"].tolist() == [1.0]


def test_thousands_of_masks() -> None:
    rng = np.random.default_rng(0)
    masks = [mask(rng.random((8, 10)) < rng.random(), float(rng.random())) for _ in range(3000)]
    predictor, _ = refined(Given(random_probs()), masks)
    prediction = predictor.predict(torch.rand(1, 1, 8, 10), streams())
    assert prediction.facts["sam/masks"].tolist() == [3000]
    torch.testing.assert_close(prediction.probs.sum(1), torch.ones(1, 8, 10))


def test_images_of_a_batch_have_their_own_masks_and_facts() -> None:
    probs = random_probs(2)
    predictor, stub = refined(Given(probs), [box(0, 8, 0, 10), box(0, 4, 0, 5)], [box(0, 4, 0, 10)])
    prediction = predictor.predict(torch.rand(2, 1, 8, 10), streams(2))
    assert prediction.facts["sam/masks"].tolist() == [2, 1]
    assert prediction.facts["sam/coverage"].tolist() == [1.0, 0.5]
    assert prediction.facts["sam/largest"].tolist() == [1.0, 0.5]
    assert torch.equal(prediction.probs[1, :, 4:], probs[1, :, 4:])
    assert len(stub.pictures) == 2


def test_the_generated_picture_is_what_is_segmented() -> None:
    painted = torch.rand(1, 3, 8, 10, generator=torch.Generator().manual_seed(2))
    predictor, stub = refined(Given(random_probs(), painted), [box(0, 4, 0, 5)])
    prediction = predictor.predict(torch.rand(1, 1, 8, 10), streams())
    picture = stub.pictures[0]
    assert picture.dtype == np.uint8
    assert picture.shape == (8, 10, 3)
    np.testing.assert_allclose(picture, painted[0].permute(1, 2, 0).numpy() * 255, atol=0.5)
    assert list(prediction.stages) == ["drawn", "refined"]
    assert torch.equal(prediction.stages["refined"], PALETTE.paint(prediction.labels))
    assert prediction.painted is prediction.stages["refined"]


def test_labels_are_painted_where_no_picture_was() -> None:
    probs = random_probs()
    predictor, stub = refined(Given(probs), [])
    predictor.predict(torch.rand(1, 1, 8, 10), streams())
    expected = PALETTE.paint(probs.argmax(1))[0].permute(1, 2, 0).numpy() * 255
    np.testing.assert_array_equal(stub.pictures[0], expected)


def loose(inner: Given, **settings: Any) -> SamRefined:
    """A random model finds nothing by the usual thresholds."""
    settings = {"pred_iou_thresh": -1e9, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0, **settings}
    return SamRefined(inner, tiny_sam(), PALETTE, points_per_side=3, **settings)


@pytest.mark.parametrize("size", [(64, 64), (40, 56)])
def test_the_real_mask_generator_on_a_random_model(size: tuple[int, int]) -> None:
    painted = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(3))
    inner = Given(random_probs(1, size), painted)
    predictor = loose(inner)
    first, second = (predictor.predict(torch.rand(1, 1, *size), streams()) for _ in range(2))
    assert torch.equal(first.probs, second.probs)
    assert first.facts["sam/masks"].item() > 1
    assert 0 < first.facts["sam/largest"].item() <= first.facts["sam/coverage"].item() <= 1
    assert not torch.equal(first.probs, inner.probs)
    torch.testing.assert_close(first.probs.sum(1), torch.ones(1, *size))


def test_the_picture_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = loose(Given(random_probs(1, (64, 64))), points_per_batch=2)
    calls = []
    predictor.sam.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    predictor.predict(torch.rand(1, 1, 64, 64), streams())
    assert len(calls) == 1


def test_autocast_around_the_prediction_does_no_harm() -> None:
    predictor = loose(Given(random_probs(1, (64, 64))))
    plain = predictor.predict(torch.rand(1, 1, 64, 64), streams())
    with torch.autocast("cpu", torch.bfloat16):
        cast = predictor.predict(torch.rand(1, 1, 64, 64), streams())
    assert torch.equal(plain.probs, cast.probs)


def test_the_usual_thresholds_may_leave_no_mask() -> None:
    probs = random_probs(1, (64, 64))
    predictor = SamRefined(Given(probs), tiny_sam(), PALETTE, points_per_side=2, pred_iou_thresh=1e9)
    prediction = predictor.predict(torch.rand(1, 1, 64, 64), streams())
    assert prediction.facts["sam/masks"].item() == 0
    assert torch.equal(prediction.probs, probs)


def test_small_islands_and_crops_are_options() -> None:
    predictor = loose(Given(random_probs(1, (64, 64))), min_mask_region_area=20, crop_n_layers=1)
    prediction = predictor.predict(torch.rand(1, 1, 64, 64), streams())
    torch.testing.assert_close(prediction.probs.sum(1), torch.ones(1, 64, 64))


def test_an_image_counts_once_on_the_bar() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    predictor, _ = refined(Given(random_probs(2)), [], [box(0, 4, 0, 5)])
    with progress.display(console=console):
        progress.expect("refinement", 2)
        predictor.predict(torch.rand(2, 1, 8, 10), streams(2))
    assert "2/2 image" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_model_is_frozen_and_moves_with_the_predictor() -> None:
    predictor = SamRefined(Given(random_probs()), tiny_sam().train(), PALETTE)
    assert not predictor.sam.training
    assert not any(parameter.requires_grad for parameter in predictor.sam.parameters())
    assert predictor.mask_generator.predictor.model is predictor.sam


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="one colour per class"):
        SamRefined(Given(random_probs()), tiny_sam(), Palette(["#000000", "#FFFFFF"]))
    with pytest.raises(ValueError, match="differ in size"):
        refined(Given(random_probs(), torch.rand(1, 3, 4, 4)), [])[0].predict(torch.rand(1, 1, 8, 10), streams())
    with pytest.raises(ValueError, match="only labelled pixels"):
        refined(Given(torch.full((1, 3), 1 / 3)), [])[0].predict(torch.rand(1, 1, 8, 10), streams())
