"""Sharper borders: classes are averaged inside the segments that segment-anything finds in the generated picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from segment_anything.modeling import Sam
from torch import Tensor, nn

from geoseg import progress
from geoseg.models.automatic_masks import AutomaticMasks
from geoseg.palette import Palette
from geoseg.types import Prediction, Predictor


class SamRefined(nn.Module):
    """Lets every segment of the generated picture have one class.

    Segment-anything segments the picture without being told where to look; each pixel belongs to the uppermost mask
    that covers it (see ``partition``), the probabilities inside a segment are replaced by their mean, and pixels under
    no mask keep theirs. Settings after ``palette`` carry segment_anything's names and defaults, but for
    ``points_per_batch``, which decides speed and memory only.

    Args:
        predictor: what is refined; put it around a whole picture rather than a tile.
        sam: the loaded model.
        palette: colours of the classes, for the picture of an answer that has none and for the refined picture.
        points_per_side: the picture is asked at this many points squared.
        points_per_batch: points per call of the mask decoder at most.
        pred_iou_thresh: masks whose own estimate of their IoU is not above this are dropped, 0..1.
        stability_score_thresh: masks that change more than this when their threshold moves are dropped, 0..1.
        stability_score_offset: by how much the threshold moves.
        box_nms_thresh: of masks whose boxes overlap more than this (IoU) only the best stays.
        crop_n_layers: above 0, masks are also looked for in 2**i x 2**i crops for every layer i.
        min_mask_region_area: islands and holes below this many pixels are removed; needs OpenCV.

    Raises:
        ValueError: predictor and palette differ in their classes, or OpenCV is wanted and missing.
    """

    def __init__(
        self,
        predictor: Predictor,
        sam: Sam,
        palette: Palette,
        points_per_side: int = 32,
        points_per_batch: int = 256,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        min_mask_region_area: int = 0,
    ) -> None:
        super().__init__()
        if predictor.num_classes != palette.num_classes:
            raise ValueError(
                f"the predictor has {predictor.num_classes} classes and the palette {palette.num_classes} colours; "
                "give the palette one colour per class"
            )
        if min_mask_region_area > 0 and importlib.util.find_spec("cv2") is None:
            raise ValueError("min_mask_region_area needs OpenCV: install opencv-python-headless, or set it to 0")
        self.predictor = predictor
        self.sam = sam.eval().requires_grad_(False)
        self.palette = palette
        self.num_classes = predictor.num_classes
        self.mask_generator = AutomaticMasks(
            sam,
            points_per_side=points_per_side,
            points_per_batch=points_per_batch,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            stability_score_offset=stability_score_offset,
            box_nms_thresh=box_nms_thresh,
            crop_n_layers=crop_n_layers,
            min_mask_region_area=min_mask_region_area,
        )

    @torch.no_grad()
    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        """Labels a batch and refines the answer; refining needs no randomness.

        Args:
            image: float [B, C, H, W] in [0, 1].
            generator: one per image, for the predictor.

        Returns:
            The predictor's answer with refined ``probs``; ``painted`` and the last stage, "refined", are the refined
            labels in the palette's colours. Facts: ``sam/masks``, how many masks were found; ``sam/coverage``, the
            share of pixels under any mask; ``sam/largest``, the share under the largest one.

        Raises:
            ValueError: the predictor does not label pixels, or its picture has another size than its labels.
        """
        found = self.predictor.predict(image, generator)
        if found.probs.ndim != 4:
            raise ValueError(f"only labelled pixels [B, K, H, W] can be refined, got probs {list(found.probs.shape)}")
        painted = self.palette.paint(found.labels) if found.painted is None else found.painted
        if painted.shape[-2:] != found.probs.shape[-2:]:
            raise ValueError(
                f"painted {list(painted.shape)} and probs {list(found.probs.shape)} differ in size; "
                "the predictor must resize its picture to its labels"
            )
        height, width = painted.shape[-2:]
        refined, facts = [], []
        for picture, probs in zip(_pixels(painted), found.probs, strict=True):
            masks = self._masks(picture)
            segments = partition(masks, height, width)
            refined.append(average_inside(probs, segments))
            largest = max((int(mask["segmentation"].sum()) for mask in masks), default=0)
            facts.append((len(masks), float((segments >= 0).double().mean()), largest / (height * width)))
            progress.advance("refinement", 1)
        probs = torch.stack(refined)
        painted = self.palette.paint(probs.argmax(dim=1))
        numbers = torch.tensor(facts, dtype=torch.float32).reshape(-1, 3)
        return found.with_(
            probs=probs,
            painted=painted,
            stages={**found.stages, "refined": painted},
            facts={
                **found.facts,
                "sam/masks": numbers[:, 0],
                "sam/coverage": numbers[:, 1],
                "sam/largest": numbers[:, 2],
            },
        )

    def _masks(self, picture: np.ndarray) -> list[dict[str, Any]]:
        height, width = picture.shape[:2]
        # segment_anything shrinks the longer side to its square: of a picture thinner than that nothing would be left
        most = min(height, width) * self.sam.image_encoder.img_size
        size = min(height, most), min(width, most)
        if size != (height, width):
            picture = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BOX))
        # segment_anything turns its numbers into NumPy, which has no bfloat16
        with torch.autocast(device_type=torch.device(self.sam.device).type, enabled=False):
            masks: list[dict[str, Any]] = self.mask_generator.generate(picture)
        if size != (height, width):
            rows, columns = (np.arange(full) * small // full for full, small in zip((height, width), size, strict=True))
            for mask in masks:
                mask["segmentation"] = mask["segmentation"][np.ix_(rows, columns)]
        return masks


def partition(masks: Sequence[dict[str, Any]], height: int, width: int) -> Tensor:
    """Turns overlapping masks into segments: a pixel belongs to the uppermost mask that covers it.

    Smaller masks lie on top of larger ones; of equally large ones the one with the higher ``predicted_iou``, then the
    one whose ``bbox`` comes last in order (x, y, width, height). The order in which masks come changes nothing.

    Args:
        masks: records of segment_anything: ``segmentation`` bool [H, W], ``predicted_iou``, ``bbox``.
        height: H.
        width: W.

    Returns:
        int64 [H, W]: which mask, counted from the lowest, 0 <= segment < len(masks); -1 where no mask is.
    """
    segments = np.full((height, width), -1, dtype=np.int64)
    ordered = sorted(
        masks, key=lambda mask: (-int(mask["segmentation"].sum()), mask["predicted_iou"], list(mask["bbox"]))
    )
    for segment, mask in enumerate(ordered):
        segments[mask["segmentation"]] = segment
    return torch.from_numpy(segments)


def average_inside(probs: Tensor, segments: Tensor) -> Tensor:
    """Replaces the probabilities of a segment's pixels by their mean.

    Args:
        probs: float [K, H, W].
        segments: int64 [H, W], -1 = keep the pixel's own.

    Returns:
        As ``probs``: same shape, dtype and device.
    """
    # float64 on the CPU: a segment has up to millions of pixels, and there the order of the sum is fixed
    flat = probs.flatten(1).to("cpu", torch.float64)  # [K, H * W]
    where = segments.flatten().to("cpu") + 1
    sizes = torch.bincount(where)
    sums = torch.zeros(len(flat), len(sizes), dtype=torch.float64).index_add_(1, where, flat)
    mean = (sums / sizes.clamp(min=1))[:, where]
    return torch.where(where > 0, mean, flat).view_as(probs).to(probs)


def _pixels(painted: Tensor) -> list[np.ndarray]:
    """Pictures as segment_anything wants them: uint8 [H, W, 3]."""
    return list((painted.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().contiguous().numpy())
