"""Masks of everything in a picture: segment_anything's generator, with less to compute for the same masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention, TwoWayTransformer
from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score
from torch import Tensor
from torchvision.ops import batched_nms

CACHED = 2**20
"""Numbers that a tensor of P x m x C may hold on a CPU: 32 points of the embedded model, one of a published model.

Measured on one core: 4 MiB stay in its cache, and the embedded model needs a third less time than with 32 MiB.
"""

ENLARGED = 2**26
"""Numbers that masks may hold at the picture's size at a time, 256 MiB: large pictures take one after another."""


class AutomaticMasks(SamAutomaticMaskGenerator):
    """The generator of segment_anything under the same settings; only the order of float sums differs.

    What does not depend on a point is computed once, and a mask is drawn only where its estimated IoU is good enough.
    Crops and the removal of small regions are left to the original. On a CPU ``points_per_batch`` is an upper bound.
    """

    @torch.no_grad()
    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        """Finds masks.

        Args:
            image: uint8 [H, W, 3].

        Returns:
            Records as the original's, the best first: ``segmentation`` bool [H, W]; ``area`` in pixels; ``bbox`` and
            ``crop_box`` (x, y, width, height) in pixels; ``predicted_iou`` and ``stability_score``, 0..1;
            ``point_coords``, the one point (x, y) that led to the mask.
        """
        if self.crop_n_layers > 0 or self.min_mask_region_area > 0:
            records: list[dict[str, Any]] = super().generate(image)
            return records
        (height, width), level = image.shape[:2], self.predictor.model.mask_threshold
        self.predictor.set_image(image)
        points = self.point_grids[0] * [[width, height]]
        logits, quality, stability, boxes, which = self._candidates(points)
        kept = batched_nms(boxes.float(), quality, torch.zeros_like(which), self.box_nms_thresh)
        # drawn a second time: candidates are many, and at the picture's size each takes megabytes
        drawn = (self._enlarge(logits[some]) > level for some in kept.cpu().split(max(1, ENLARGED // (height * width))))
        masks = [mask for batch in drawn for mask in batch.cpu().numpy()]
        self.predictor.reset_image()
        numbers = (values[kept].tolist() for values in (quality, stability, boxes, which))
        return [
            {
                "segmentation": mask,
                "area": int(mask.sum()),
                "bbox": [left, top, right - left, bottom - top],
                "predicted_iou": iou,
                "point_coords": [points[point].tolist()],
                "stability_score": stable,
                "crop_box": [0, 0, width, height],
            }
            for mask, iou, stable, (left, top, right, bottom), point in zip(masks, *numbers, strict=True)
        ]

    def _candidates(self, points: np.ndarray) -> tuple[Tensor, ...]:
        """The N masks of all points [P, 2] that pass both thresholds.

        Logits float [N, 4h, 4w] as the decoder gives them, on the CPU; estimated IoU [N]; stability [N]; boxes [N, 4],
        left, top, right, bottom; whose mask it is, int64 [N].
        """
        model, given, level = self.predictor.model, self.predictor, self.predictor.model.mask_threshold
        where = torch.as_tensor(given.transform.apply_coords(points, given.original_size), device=given.device)
        labels = torch.ones(len(where), 1, dtype=torch.int, device=given.device)
        prompts, dense = model.prompt_encoder((where[:, None], labels), boxes=None, masks=None)
        cells, position = given.features + dense[:1], model.prompt_encoder.get_dense_pe()
        size = self.points_per_batch
        if cells.device.type == "cpu":
            size = min(size, max(1, CACHED // cells.numel()))
        most = max(1, ENLARGED // math.prod(given.original_size))
        found, first = [], 0
        for some in prompts.split(size):
            answers = decode(model.mask_decoder, cells, position, some, self.pred_iou_thresh)
            for logits, quality, which in zip(*(values.split(most) for values in answers), strict=True):
                large = self._enlarge(logits)
                stability = calculate_stability_score(large, level, self.stability_score_offset)
                # 0 keeps also masks without a pixel, whose stability is not a number
                stable = (stability >= self.stability_score_thresh) | (self.stability_score_thresh <= 0)
                boxes = batched_mask_to_box((large > level)[stable])
                # the CPU waits for every batch anyway; the memory of a GPU is left to the next one
                found.append((logits[stable].cpu(), quality[stable], stability[stable], boxes, which[stable] + first))
            first += len(some)
        return tuple(torch.cat(values) for values in zip(*found, strict=True))

    def _enlarge(self, logits: Tensor) -> Tensor:
        """Logits [N, h, w] at the picture's size, [N, H, W]."""
        given = self.predictor
        logits = logits[:, None].to(given.device)
        large: Tensor = given.model.postprocess_masks(logits, given.input_size, given.original_size)[:, 0]
        return large


def decode(
    decoder: MaskDecoder, embedding: Tensor, position: Tensor, prompts: Tensor, least: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``MaskDecoder.predict_masks`` for many points of one picture, without the masks that are not good enough.

    Args:
        decoder: the mask decoder.
        embedding: float [1, C, h, w], the picture with the embedding of "no mask given".
        position: float [1, C, h, w].
        prompts: float [P, n, C], n tokens per point.
        least: masks whose estimated IoU is not above this are left out; 0 or less keeps all.

    Returns:
        Logits [N, 4h, 4w]; estimated IoU [N]; which point asked, int64 [N]: the three meanings of the first point, as
        far as they are good enough, then those of the next.
    """
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(len(prompts), -1, -1), prompts], 1)
    tokens, cells = two_way(decoder.transformer, embedding[0].flatten(1).T, position[0].flatten(1).T, tokens)
    quality = decoder.iou_prediction_head(tokens[:, 0])[:, 1:]  # the first mask is for prompts that mean one thing
    good = (quality > least) | (least <= 0)
    asked = good.any(1)
    cells, good = cells[asked], good[asked]
    meanings = enumerate(decoder.output_hypernetworks_mlps[1:], start=2)
    weights = torch.stack([network(tokens[asked, i]) for i, network in meanings], 1)  # [K, 3, C/8]
    logits = weights @ upscale(decoder.output_upscaling, cells).mT  # [K, 3, h * w * 16]
    blocks = logits[good].unflatten(1, (*embedding.shape[-2:], 2, 2, 2, 2))
    logits = blocks.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 6).flatten(1, 3)
    which = asked.nonzero() + torch.zeros_like(good, dtype=torch.int64)
    return logits, quality[asked][good], which[good]


def two_way(transformer: TwoWayTransformer, cells: Tensor, position: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """``TwoWayTransformer.forward`` for many points of one picture.

    Args:
        transformer: that of the mask decoder.
        cells: float [m, C], the picture.
        position: float [m, C].
        tokens: float [P, n, C].

    Returns:
        Tokens [P, n, C] and cells [P, m, C] that know of each other.
    """
    queries, keys = tokens, cells  # keys stay the same for all points until the first layer has written to them
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.norm1(layer.self_attn(q=queries, k=queries, v=queries))
        else:
            own = queries + tokens
            queries = layer.norm1(queries + layer.self_attn(q=own, k=own, v=queries))
        looks = keys + position
        queries = layer.norm2(queries + read(layer.cross_attn_token_to_image, queries + tokens, looks, keys))
        queries = layer.norm3(queries + layer.mlp(queries))
        keys = layer.norm4(write(layer.cross_attn_image_to_token, keys, looks, queries + tokens, queries))
    answer = read(transformer.final_attn_token_to_image, queries + tokens, keys + position, keys)
    return transformer.norm_final_attn(queries + answer), keys


def read(attention: Attention, tokens: Tensor, looks: Tensor, cells: Tensor) -> Tensor:
    """``Attention`` of few tokens [P, n, C] to many cells, [P, m, C] or [m, C]; projects tokens instead of cells.

    q (k W)^T = (q W^T) k^T, and the bias of k shifts all scores of a token alike, which softmax does not see.
    """
    heads = (attention.num_heads, -1)
    queries = attention.q_proj(tokens).unflatten(-1, heads)  # [P, n, heads, d]
    queries = queries / math.sqrt(attention.internal_dim // attention.num_heads)
    queries = torch.einsum("pnhd,hdc->pnhc", queries, attention.k_proj.weight.unflatten(0, heads))
    scores = queries.flatten(1, 2) @ looks.mT  # [P, n * heads, m]
    seen = (scores.softmax(-1) @ cells).unflatten(1, (-1, attention.num_heads))  # [P, n, heads, C]
    values = torch.einsum("pnhc,hdc->pnhd", seen, attention.v_proj.weight.unflatten(0, heads))
    answer: Tensor = attention.out_proj(values.flatten(2) + attention.v_proj.bias)
    return answer


def write(attention: Attention, cells: Tensor, looks: Tensor, tokens: Tensor, values: Tensor) -> Tensor:
    """Adds to many cells their ``Attention`` to few tokens [P, n, C]; projects tokens instead of cells.

    Cells and their looks are [P, m, C] or [m, C], the sum [P, m, C].
    """
    heads = (attention.num_heads, -1)
    keys = attention.k_proj(tokens).unflatten(-1, heads) / math.sqrt(attention.internal_dim // attention.num_heads)
    shift = torch.einsum("pnhd,hd->pnh", keys, attention.q_proj.bias.unflatten(0, heads))
    keys = torch.einsum("pnhd,hdc->pnhc", keys, attention.q_proj.weight.unflatten(0, heads))
    scores = (keys.flatten(1, 2) @ looks.mT).unflatten(1, shift.shape[1:]) + shift[..., None]  # [P, n, heads, m]
    given = attention.v_proj(values).unflatten(-1, heads)
    given = torch.einsum("pnhd,chd->pnhc", given, attention.out_proj.weight.unflatten(1, heads))
    # the weights of each head sum to 1, so this adds the bias once without another pass over all cells
    given = given + attention.out_proj.bias / attention.num_heads
    return torch.baddbmm(cells, scores.softmax(1).flatten(1, 2).mT, given.flatten(1, 2))


def upscale(upscaling: Any, cells: Tensor) -> Tensor:
    """``MaskDecoder.output_upscaling`` with channels last: a cell [K, m, C] becomes 2 x 2 of 2 x 2, [K, 16 m, C/8]."""
    first, norm, bend, second, bend_again = upscaling
    cells = F.layer_norm(spread(first, cells), norm.weight.shape, norm.weight, norm.bias, norm.eps)
    fine: Tensor = bend_again(spread(second, bend(cells))).flatten(1, -2)
    return fine


def spread(layer: Any, cells: Tensor) -> Tensor:
    """A transposed convolution whose stride is its size is a linear layer: [..., C] to [..., 4, D], rows first."""
    return F.linear(cells, layer.weight.permute(2, 3, 1, 0).flatten(0, 2), layer.bias.repeat(4)).unflatten(-1, (4, -1))
