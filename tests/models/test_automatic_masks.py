"""Automatic masks against the generator of segment_anything, which repeats everything for every point."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from torch import Tensor

import geoseg
from geoseg.data.synthetic import draw_map
from geoseg.models import automatic_masks
from geoseg.models.automatic_masks import AutomaticMasks, decode
from geoseg.models.sam import build_sam, load_sam
from tests.tiny import TINY_SAM

ALL: dict[str, Any] = {"pred_iou_thresh": -1e9, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
"""A random model finds nothing by the usual thresholds."""


@functools.cache
def embedded() -> Sam:
    return load_sam(Path(geoseg.__file__).parent / "assets" / "sam")


@functools.cache
def tiny() -> Sam:
    """Every weight counts: fresh norms have none, and another size of heads and of the picture than the embedded."""
    torch.manual_seed(0)
    sam = build_sam({**TINY_SAM, "transformer_depth": 3, "transformer_num_heads": 4}).requires_grad_(False)
    for value in sam.parameters():
        value += 0.1 * torch.randn_like(value)
    return sam


def picture(kind: str, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height + width)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels = draw_map(rng, (height, width)).image
    if kind == "rough map":
        pixels = (pixels + rng.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)
    return pixels


def both(sam: Sam, image: np.ndarray, **settings: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    settings = {"points_per_side": 8, **settings}
    return AutomaticMasks(sam, **settings).generate(image), SamAutomaticMaskGenerator(sam, **settings).generate(image)


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        one, other = mine["segmentation"], theirs["segmentation"]
        assert one.shape == other.shape and one.dtype == other.dtype == bool
        assert (one & other).sum() >= 0.999 * (one | other).sum()
        assert mine["area"] == one.sum()
        assert mine["predicted_iou"] == pytest.approx(theirs["predicted_iou"], abs=1e-4)
        assert mine["stability_score"] == pytest.approx(theirs["stability_score"], abs=1e-2, nan_ok=True)
        for place in ("bbox", "point_coords", "crop_box"):
            assert mine[place] == theirs[place]


@pytest.mark.parametrize(
    ("kind", "size"), [("map", (128, 128)), ("map", (96, 160)), ("rough map", (150, 70)), ("rough map", (128, 128))]
)
@pytest.mark.parametrize("thresholds", [(0.5, 0.7), (0.3, 0.0), (0.0, 0.8)])
def test_the_embedded_model_finds_the_same_masks(
    kind: str, size: tuple[int, int], thresholds: tuple[float, float]
) -> None:
    iou, stability = thresholds
    found, expected = both(
        embedded(), picture(kind, *size), pred_iou_thresh=iou, stability_score_thresh=stability, points_per_batch=50
    )
    assert_same(found, expected)
    assert found


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (31, 20)])
def test_a_model_with_random_weights_finds_the_same_masks(size: tuple[int, int]) -> None:
    found, expected = both(tiny(), picture("noise", *size), points_per_side=5, **ALL)
    assert len(found) > 3
    assert_same(found, expected)


@pytest.mark.parametrize(
    "setting",
    [
        {"points_per_side": 3},
        {"pred_iou_thresh": 0.6},
        {"stability_score_thresh": 0.8},
        {"stability_score_offset": 3.0},
        {"box_nms_thresh": 0.3},
        {"crop_n_layers": 1, "points_per_side": 4},
        {"min_mask_region_area": 60},
    ],
    ids=str,
)
def test_every_setting_does_what_it_does_there(setting: dict[str, Any]) -> None:
    usual = {"pred_iou_thresh": 0.3, "stability_score_thresh": 0.6, "points_per_side": 6}
    image = picture("map", 128, 128)
    found, expected = both(embedded(), image, **{**usual, **setting})
    assert_same(found, expected)
    without = AutomaticMasks(embedded(), **usual).generate(image)
    assert [mask["area"] for mask in found] != [mask["area"] for mask in without]


@pytest.mark.parametrize("setting", [{"crop_n_layers": 1}, {"min_mask_region_area": 20}], ids=str)
def test_crops_and_small_regions_are_left_to_the_original(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = AutomaticMasks(tiny(), points_per_side=2, **ALL, **setting)
    monkeypatch.setattr(generator, "_candidates", None)
    assert generator.generate(picture("noise", 64, 64))


def test_neither_batch_nor_cache_changes_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture("noise", 64, 64)
    expected = SamAutomaticMaskGenerator(tiny(), points_per_side=5, **ALL).generate(image)
    for points, cached in ((1, 2**20), (7, 2**20), (1000, 2**30), (1000, 1)):
        monkeypatch.setattr(automatic_masks, "CACHED", cached)
        assert_same(AutomaticMasks(tiny(), 5, points_per_batch=points, **ALL).generate(image), expected)


@pytest.mark.parametrize("setting", [{"pred_iou_thresh": 1e9}, {"stability_score_thresh": 2.0}], ids=str)
def test_nothing_is_found_where_nothing_is_good_enough(setting: dict[str, Any]) -> None:
    found, expected = both(tiny(), picture("noise", 64, 64), points_per_side=3, **{**ALL, **setting})
    assert found == expected == []


def test_only_good_masks_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    sam, drawn = embedded(), []
    real = sam.postprocess_masks

    def counted(masks: Tensor, *sizes: Any) -> Tensor:
        drawn.append(masks.shape[0] * masks.shape[1])
        return real(masks, *sizes)

    settings = {"pred_iou_thresh": 0.5, "points_per_side": 8, "box_nms_thresh": 1.0}
    image = picture("map", 128, 128)
    good = len(AutomaticMasks(sam, stability_score_thresh=0.0, **settings).generate(image))
    monkeypatch.setattr(sam, "postprocess_masks", counted)
    kept = len(AutomaticMasks(sam, stability_score_thresh=0.8, **settings).generate(image))
    assert 0 < kept < good < 3 * 64
    assert sum(drawn) <= 3 * good


@pytest.mark.parametrize("name", ["tiny", "embedded"])
def test_the_decoder_gives_the_numbers_of_the_original(name: str) -> None:
    sam, rng = {"tiny": tiny, "embedded": embedded}[name](), torch.Generator().manual_seed(0)
    side, grid = sam.image_encoder.img_size, sam.prompt_encoder.image_embedding_size
    points = torch.rand(6, 1, 2, generator=rng) * side
    prompts, dense = sam.prompt_encoder((points, torch.ones(6, 1)), boxes=None, masks=None)
    embedding = torch.randn(1, prompts.shape[-1], *grid, generator=rng)
    position = sam.prompt_encoder.get_dense_pe()
    logits, quality = sam.mask_decoder(embedding, position, prompts, dense, multimask_output=True)
    mine = decode(sam.mask_decoder, embedding + dense[:1], position, prompts, least=0.0)
    torch.testing.assert_close(mine[0], logits.flatten(0, 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine[1], quality.flatten(), rtol=1e-4, atol=1e-4)
    assert mine[2].tolist() == [point for point in range(6) for _ in range(3)]
    # between two values, so that the last bit of neither counts
    least = float(quality.flatten().sort().values[-7:-5].mean())
    assert least > 0
    good = quality.flatten() > least
    fewer = decode(sam.mask_decoder, embedding + dense[:1], position, prompts, least)
    torch.testing.assert_close(fewer[0], mine[0][good], rtol=1e-4, atol=1e-4)
    assert fewer[2].tolist() == mine[2][good].tolist()
