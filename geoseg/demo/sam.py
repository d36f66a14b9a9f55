"""Trains the small segment-anything model: one click, one region."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from segment_anything.modeling import MaskDecoder, Sam
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.utils.data import Dataset

from geoseg.data.earth import random_palette
from geoseg.data.module import Split
from geoseg.demo.autoencoder import is_about
from geoseg.demo.networks import sam_config
from geoseg.models.sam import build_sam, load_sam, save_sam
from geoseg.randomness import key, numpy_stream
from geoseg.tasks.task import Task


class Clicks(Dataset[dict[str, Any]]):
    """Pictures with clicks and the regions that were meant; item (index, visit) is a pure function of its key.

    Item: ``image`` float32 [3, H, W] in [0, 1], ``points`` float32 [N, 2] (x, y in pixels), ``masks`` bool [N, H, W],
    ``name`` and ``caption``.

    Args:
        split: the pictures; their targets are region maps.
        count: clicks per picture, N.
        training: change pictures (see ``repaint`` and ``degrade``) and seek out pieces; otherwise pictures stay as
            they are and every pixel is as likely to be clicked as any other.
        repaint: share of the pictures that are no label map and become one.
        seek: how many of the clicks of a training picture go to pieces, small ones as often as large ones.
        seed: key of all randomness.
    """

    def __init__(self, split: Split, count: int, training: bool, repaint: float, seek: int, seed: int) -> None:
        self.split, self.count, self.training, self.seed = split, count, training, seed
        self.repaint, self.seek = repaint, seek

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, where: tuple[int, int]) -> dict[str, Any]:
        index, visit = where
        item = self.split[index]
        rng = numpy_stream(self.seed, "clicks", "train" if self.training else "validation", index, visit)
        image = item["image"].expand(3, -1, -1).numpy().transpose(1, 2, 0)  # [H, W, 3]
        regions = item["target"].numpy()
        if self.training:
            if rng.random() < self.repaint and not is_about(item["caption"], "map"):
                image = repaint(rng, regions)
            flip = (slice(None, None, int(rng.choice([-1, 1]))), slice(None, None, int(rng.choice([-1, 1]))))
            image, regions = image[flip], regions[flip]
        found = pieces(image, regions)
        rows, columns = self._points(rng, found)
        masks = found[None] == found[rows, columns][:, None, None]
        if self.training:
            image = degrade(rng, image)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)),
            "points": torch.from_numpy(np.stack([columns, rows], 1).astype(np.float32)),
            "masks": torch.from_numpy(masks),
            "name": item["name"],
            "caption": item["caption"],
        }

    def _points(self, rng: np.random.Generator, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = (rng.integers(0, side, self.count) for side in found.shape)
        if self.training:
            # to any piece, and not to its rim: large ones would get nearly all clicks otherwise
            large_enough = np.flatnonzero(np.bincount(found.ravel()) >= SPECK)
            for i in range(self.seek):
                inside = found == large_enough[rng.integers(len(large_enough))]
                depth = ndimage.distance_transform_cdt(np.pad(inside, 1))[1:-1, 1:-1]
                where = np.argwhere(depth > rng.uniform(0, depth.max()))
                rows[i], columns[i] = where[rng.integers(len(where))]
        return rows, columns


SPECK = 9
"""Training does not seek out pieces of fewer pixels: at half the picture's size they are two pixels or less."""


def pieces(image: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """What a click can mean: the connected pieces of ground that look or are the same.

    Args:
        image: [H, W, 3]; where regions have one flat colour, all that touches in that colour belongs together.
        regions: [H, W], integers from 0.

    Returns:
        int64 [H, W], pieces counted from 0 in the order of their first pixel's region.
    """
    same = np.empty(regions.shape, np.int64)
    colours: dict[bytes, int] = {}
    for region in np.unique(regions):
        inside = regions == region
        looks = image[inside]
        flat = bool((looks == looks[0]).all())
        kind = looks[0].tobytes() if flat else b"region %d" % region
        same[inside] = colours.setdefault(kind, len(colours))
    found = np.empty_like(same)
    count = 0
    for kind in range(len(colours)):
        labels, more = ndimage.label(same == kind)
        found[labels > 0] = labels[labels > 0] + (count - 1)
        count += more
    return found


def repaint(rng: np.random.Generator, regions: np.ndarray) -> np.ndarray:
    """Turns a region map into a label map: merges neighbouring regions at random and gives the rest random colours.

    Returns:
        float32 [H, W, 3] in [0, 1].
    """
    count = int(regions.max()) + 1
    starts = rng.random(count) < rng.uniform(0.1, 0.6)
    colours = int(rng.integers(3, 10))
    classes = np.cumsum(np.where(starts, rng.integers(1, colours, count), 0)) % colours
    painted: np.ndarray = random_palette(rng, colours)[classes][regions].astype(np.float32) / 255
    return painted


def degrade(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Makes two of three pictures as soft and uneven as generated pictures are.

    Args:
        rng: where all its numbers come from.
        image: float [H, W, 3] in [0, 1].
    """
    if rng.random() < 1 / 3:
        return image
    picture = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float()
    size = picture.shape[-2:]
    finer = int(rng.choice([1, 2, 4], p=[0.4, 0.4, 0.2]))
    if finer > 1:
        picture = F.interpolate(F.avg_pool2d(picture, finer), size=size, mode="bicubic", align_corners=False)
    shade = torch.from_numpy(rng.standard_normal((1, 3, 4, 4)).astype(np.float32))
    picture = picture + rng.uniform(0, 0.05) * F.interpolate(shade, size=size, mode="bicubic", align_corners=False)
    noise = torch.from_numpy(rng.standard_normal(tuple(picture.shape)).astype(np.float32))
    picture = (picture + rng.uniform(0, 0.06) * noise).clamp(0, 1)
    return picture[0].numpy().transpose(1, 2, 0)


def segmenter(config: Mapping[str, Any] | None = None, start: str | Path | None = None) -> Sam:
    """A small model to train: an untrained one whose parts already hand on what the others need, or an earlier one.

    With random weights a click first has to find out which of the image's cells it lies in, and its answer is blurred
    on the way to the mask; that takes longer to learn than all the rest. So

    - the blocks of the image encoder start as identities: a cell starts as the picture's pixels;
    - queries and keys of the attention between clicks and image start equal and orthogonal: equal positions attract;
    - values and outputs of all attention in the decoder start as each other's inverse: what is looked at arrives;
    - the networks that turn tokens into masks keep the size of what they are given.

    Args:
        config: sizes as in ``geoseg.models.sam``; None takes ``sam_config()``.
        start: folder of a model of these sizes to go on from; None begins anew.
    """
    sam = build_sam(config if config is not None else sam_config())
    if start is not None:
        sam.load_state_dict(load_sam(start).state_dict())
        return sam
    decoder = sam.mask_decoder
    between = [decoder.transformer.final_attn_token_to_image]
    for layer in decoder.transformer.layers:
        between += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    with torch.no_grad():
        for block in sam.image_encoder.blocks:
            for last in (block.attn.proj, block.mlp.lin2):
                last.weight.zero_()
                last.bias.zero_()
        for attention in between:
            nn.init.orthogonal_(attention.q_proj.weight, gain=2.5)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.q_proj.bias.zero_()
            attention.k_proj.bias.zero_()
            _hand_on(attention, 1.0)
        for layer in decoder.transformer.layers:
            _hand_on(layer.self_attn, 2.0)  # a token's share of what another one knows is small: they are seven
            layer.mlp.lin2.weight.zero_()
            layer.mlp.lin2.bias.zero_()
            for norm in (layer.norm1, layer.norm3, layer.norm4):
                norm.weight.fill_(0.3)
        for network in decoder.output_hypernetworks_mlps:
            for linear in network.layers:
                nn.init.orthogonal_(linear.weight, gain=2**0.5)
                linear.bias.zero_()
        # what something is and which kind of prompt it is must not drown where it is
        sam.image_encoder.neck[-1].weight.fill_(0.3)
        for embedding in [*sam.prompt_encoder.point_embeddings, sam.prompt_encoder.no_mask_embed]:
            embedding.weight.mul_(0.1)
    return sam


def _hand_on(attention: Attention, gain: float) -> None:
    nn.init.orthogonal_(attention.v_proj.weight)
    attention.out_proj.weight.copy_(gain * attention.v_proj.weight.T)
    attention.v_proj.bias.zero_()
    attention.out_proj.bias.zero_()


class SamTask(Task):
    """Trains a segment-anything model with clicks on the regions of a corpus.

    Args:
        model: built with ``config``.
        seed: key of all randomness.
        config: sizes of the model, stored beside its weights; None means ``sam_config()``.
        clicks: per picture and visit; they share one reading of the picture.
        repaint: share of the pictures other than label maps that are turned into label maps.
        seek: how many of a training picture's clicks go to its pieces, small ones as often as large ones; the others
            fall anywhere.
        hints: weight at the start of being asked for colours directly: a click's tokens for the mean colour of what is
            meant, the decoder's cells for the picture. Without, no mask depends on its click for very long; the
            weight falls to 0 half way through the training.
        task: what every task needs, see ``Task``.
    """

    def __init__(
        self,
        model: Sam,
        seed: int,
        config: Mapping[str, Any] | None = None,
        clicks: int = 8,
        repaint: float = 0.7,
        seek: int = 4,
        hints: float = 10.0,
        **task: Any,
    ) -> None:
        decoder = model.mask_decoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(seed, "hints"))
            of_tokens = nn.Linear(decoder.transformer_dim, 3)
            of_cells = nn.Conv2d(decoder.transformer_dim // 8, 3, 1)
        heads = nn.ModuleList([of_tokens, of_cells])
        if not 0 <= seek <= clicks:
            raise ValueError(f"seek must be from 0 to the {clicks} clicks of a picture, got {seek}")
        super().__init__(groups={"sam": [*model.train().parameters(), *heads.parameters()]}, seed=seed, **task)
        self.heads, self.hints = heads, hints
        self.model, self.config = model, dict(config if config is not None else sam_config())
        self.clicks, self.repaint, self.seek = clicks, repaint, seek

    def view(self, split: Split, training: bool) -> Clicks:
        return Clicks(split, self.clicks, training, self.repaint, self.seek, self.seed)

    def forward(self, image: Tensor, points: Tensor) -> Decoded:
        """Masks for every click.

        Args:
            image: float [B, 3, H, W] in [0, 1], square; it is resized to the model's S as the predictor does.
            points: float [B, N, 2], x and y in pixels.

        Returns:
            For P = B * N clicks and a grid of h x w patches; see ``Decoded``.

        Raises:
            ValueError: the pictures are not square.
        """
        side = self.model.image_encoder.img_size
        if image.shape[-2] != image.shape[-1]:
            raise ValueError(f"this task learns from square pictures, got {tuple(image.shape[-2:])}")
        points = points * (side / image.shape[-1])
        if image.shape[-1] != side:
            image = F.interpolate(image, (side, side), mode="bilinear", align_corners=False, antialias=True)
        embedding = self.model.image_encoder(self.model.preprocess(255 * image))  # [B, C, h, w]
        points = points.flatten(0, 1)[:, None]  # [B * N, 1, 2]
        sparse, dense = self.model.prompt_encoder(
            points=(points, torch.ones(points.shape[:2], device=points.device)), boxes=None, masks=None
        )
        repeats = len(points) // len(image)
        position = self.model.prompt_encoder.get_dense_pe().expand(len(points), -1, -1, -1)
        return decode(self.model.mask_decoder, embedding.repeat_interleave(repeats, 0) + dense, position, sparse)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        found = self(batch["image"], batch["points"])
        logits = found.logits
        masks = batch["masks"].flatten(0, 1)[:, None].float()  # [P, 1, H, W]
        masks = F.interpolate(masks, size=logits.shape[-2:], mode="area")
        costs = mask_loss(logits, masks)  # [P, 4]
        meanings = costs[:, 1:]
        with torch.no_grad():
            overlap = iou(logits > 0, masks > 0.5)
        # one of three meanings has to be right (Kirillov et al. 2023); a little of the mean keeps the others alive
        best = meanings.min(1).values + 0.1 * meanings.mean(1)
        total = costs[:, 0] + best + (found.quality - overlap).square().mean(1)
        weight = self._hints()
        if weight:
            total = total + weight * self._colour_errors(found, batch["image"], masks)
        self.told["train/iou"] = overlap[:, 0].mean()
        return total.unflatten(0, batch["points"].shape[:2]).mean(1)

    def _hints(self) -> float:
        if self._trainer is None or not self.training:
            return self.hints
        done = self.trainer.global_step / float(self.trainer.estimated_stepping_batches)
        return self.hints * max(0.0, 1 - 2 * done)

    def _colour_errors(self, found: Decoded, image: Tensor, masks: Tensor) -> Tensor:
        """How badly tokens and cells can say which colours there are, [P]."""
        of_tokens, of_cells = self.heads
        small = F.interpolate(image, size=masks.shape[-2:], mode="area")
        small = small.repeat_interleave(len(masks) // len(image), 0)  # [P, 3, 4h, 4w]
        meant_colour = (small * masks).sum((2, 3)) / masks.sum((2, 3)).clamp(min=1e-3)  # [P, 3]
        tokens = (of_tokens(found.tokens).float() - meant_colour[:, None]).square().mean((1, 2))
        cells = (of_cells(found.cells).float() - small).square().mean((1, 2, 3))
        return tokens + cells

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        logits, quality, *_ = self(batch["image"], batch["points"])
        side = self.model.image_encoder.img_size
        found = self.model.postprocess_masks(logits, (side, side), tuple(batch["masks"].shape[-2:])) > 0
        overlap = iou(found, batch["masks"].flatten(0, 1)[:, None])  # [B * N, 4]
        chosen = overlap[:, 1:].gather(1, quality[:, 1:].argmax(1, keepdim=True))[:, 0]
        scores = {"one": overlap[:, 0], "chosen": chosen, "estimate": quality[:, 1:].max(1).values}
        for kind, subject in (("labels", "map"), ("profiles", "section"), ("craters", "crater")):
            pictures = [i for i, caption in enumerate(batch["caption"]) if is_about(caption, subject)]
            for score, values in scores.items():
                if pictures:
                    value = values.unflatten(0, batch["points"].shape[:2])[pictures].mean()
                    name = f"val/iou/{kind}" if score == "one" else f"val/iou/{kind}/{score}"
                    self.log(name, value, batch_size=len(pictures))

    def save(self, folder: Path) -> list[Path]:
        """Writes ``config.json`` and ``model.safetensors`` in float16."""
        save_sam(self.model, self.config, folder)
        return [folder / "config.json", folder / "model.safetensors"]

    def load(self, folder: Path) -> None:
        """Puts back what ``save`` wrote."""
        self.model.load_state_dict(load_sam(folder).state_dict())


class Decoded(NamedTuple):
    """What the mask decoder makes of P clicks.

    Attributes:
        logits: float32 [P, 4, 4h, 4w], the first for a click that means one thing, the others for three meanings.
        quality: float32 [P, 4], estimated IoU.
        tokens: [P, 4, C], what each mask knows of its click.
        cells: [P, C/8, 4h, 4w], the picture that a mask is a weighted sum of.
    """

    logits: Tensor
    quality: Tensor
    tokens: Tensor
    cells: Tensor


def decode(decoder: MaskDecoder, embedding: Tensor, position: Tensor, prompts: Tensor) -> Decoded:
    """``MaskDecoder.predict_masks`` for clicks on many pictures; the original takes one picture at a time.

    Args:
        decoder: the mask decoder.
        embedding: float [P, C, h, w], a picture per click.
        position: float [P, C, h, w].
        prompts: float [P, n, C], n tokens per click.
    """
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(len(prompts), -1, -1), prompts.to(own.dtype)], 1)
    tokens, cells = decoder.transformer(embedding, position, tokens)
    cells = decoder.output_upscaling(cells.transpose(1, 2).reshape(embedding.shape))
    quality, tokens = decoder.iou_prediction_head(tokens[:, 0]), tokens[:, 1 : 1 + decoder.num_mask_tokens]
    weights = torch.stack([network(tokens[:, i]) for i, network in enumerate(decoder.output_hypernetworks_mlps)], 1)
    logits = torch.einsum("pkc,pchw->pkhw", weights, cells)
    return Decoded(logits.float(), quality.float(), tokens, cells)


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Focal loss (Lin et al. 2017, gamma 2, times 10) plus cross-entropy (times 0.5) plus Dice loss per mask, [P, K].

    Focal and Dice alone leave the slope at a border low; cross-entropy makes masks that stay when their threshold
    moves, which is what the automatic mask generator asks for.

    Args:
        logits: float [P, K, h, w].
        masks: float [P, 1, h, w], share of each cell that the region covers.
    """
    wanted = masks.expand_as(logits)
    probs = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    focal = (entropy * (probs - wanted).square()).mean((2, 3))
    overlap = (probs * wanted).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (probs.sum((2, 3)) + wanted.sum((2, 3)) + 1)
    return 10 * focal + 0.5 * entropy.mean((2, 3)) + dice


def iou(found: Tensor, wanted: Tensor) -> Tensor:
    """Intersection over union of boolean masks [P, K, h, w] and [P, 1, h, w]: [P, K]; 0 where both are empty."""
    both = (found & wanted).sum((2, 3))
    either = (found | wanted).sum((2, 3))
    return both / either.clamp(min=1)
