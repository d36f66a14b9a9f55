"""Examines the embedded checkpoints on pictures that none of them has seen, and keeps every single result.

Held out are the numbers (``SEED``; trainings use 0), the streams they come from, and the colours: label maps are
painted with the reserved ones, which no corpus contains.
``python -m geoseg.demo.examination geoseg/assets`` writes the card.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler
from rich.progress import track
from scipy import ndimage
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from torch import Tensor, nn

from geoseg.data.earth import RESERVED_COLOURS, crater_field, das_record, section, texture
from geoseg.data.synthetic import Picture, SyntheticEarth, draw_map
from geoseg.demo.autoencoder import psnr
from geoseg.demo.networks import PICTURE
from geoseg.demo.sam import decode, degrade, iou, pieces
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.diffusion.sampling import img2img
from geoseg.models.sam import load_sam
from geoseg.randomness import numpy_stream, seeded, stream

SEED = 7919
"""Key of all held-out pictures; no training uses it."""

THRESHOLDS = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.7}
"""Of the automatic masks, as in conf/checkpoints/demo.yaml."""

REDRAWN = 0.4
"""Strength at which label maps are redrawn for the automatic masks, that of label LoRA's second pass."""

LEAST = 10
"""Pixels of a region that automatic masks are expected to find."""

PROMPTS = {
    "seismic profile": "section",
    "label map, tile, smooth edges": "map",
    "craters": "crater",
    "checkerboard": "checkerboard",
}
"""Words, and what a picture drawn for them has to be taken for."""

GUIDANCE, STEPS = 7.0, 30
"""How pictures are drawn for words; label LoRA's settings."""


def held_out(count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Held-out pictures: section uint8 [H, W, 3], label map uint8 [H, W, 3] and its classes uint8 [H, W] of each."""
    earth = SyntheticEarth(size=PICTURE, train=0, val=0, test=count, seed=SEED)
    found = []
    for name in earth.names:
        image, target, _ = earth.read(name)
        found.append((np.repeat(image[..., None], 3, axis=2), RESERVED_COLOURS[target], target))
    return found


def reconstruction(vae: AutoencoderKL, pictures: Sequence[np.ndarray]) -> list[float]:
    """PSNR in dB of every picture [H, W, 3] after a way through the autoencoder, without noise."""
    values: list[float] = []
    with torch.inference_mode():
        for some in _tensor(pictures).split(8):
            drawn = vae.decode(vae.encode(2 * some - 1).latent_dist.mode()).sample / 2 + 0.5
            values += psnr(drawn.clamp(0, 1), some).tolist()
    return values


def clicks(sam: Sam, picture: np.ndarray, target: np.ndarray) -> list[dict[str, Any]]:
    """One click into the middle of every connected region of a label map, where it is farthest from any border.

    Args:
        sam: the model.
        picture: uint8 [H, W, 3].
        target: uint8 [H, W].

    Returns:
        Per region its ``area`` in pixels, the ``iou`` of the mask for a click that means one thing, and ``chosen``,
        that of the best of three masks by the model's own estimate.
    """
    found = pieces(picture / np.float32(255), target)
    masks = torch.from_numpy(np.stack([found == k for k in range(int(found.max()) + 1)]))[:, None]  # [P, 1, H, W]
    points = torch.tensor([middle(mask[0].numpy()) for mask in masks], dtype=torch.float32)[:, None]  # [P, 1, 2]
    side, image = sam.image_encoder.img_size, _tensor([picture])
    with torch.inference_mode():
        small = F.interpolate(image, (side, side), mode="bilinear", align_corners=False, antialias=True)
        embedding = sam.image_encoder(sam.preprocess(255 * small))
        scaled = points * (side / image.shape[-1])
        sparse, dense = sam.prompt_encoder((scaled, torch.ones(scaled.shape[:2])), boxes=None, masks=None)
        position = sam.prompt_encoder.get_dense_pe().expand(len(points), -1, -1, -1)
        answer = decode(sam.mask_decoder, embedding + dense, position, sparse)
        full = sam.postprocess_masks(answer.logits, (side, side), tuple(image.shape[-2:]))
        overlap = iou(full > 0, masks)
    best = 1 + answer.quality[:, 1:].argmax(1)
    return [
        {"area": int(mask.sum()), "iou": float(row[0]), "chosen": float(row[k])}
        for mask, row, k in zip(masks, overlap, best, strict=True)
    ]


def middle(mask: np.ndarray) -> tuple[int, int]:
    """x and y of the pixel that lies deepest inside a boolean mask [H, W]."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return int(column), int(row)


def automatic_masks(generator: SamAutomaticMaskGenerator, picture: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """What segment-anything finds without being told where to look.

    Args:
        generator: with the thresholds that count.
        picture: uint8 [H, W, 3], the label map itself or what a model made of it.
        target: uint8 [H, W], classes of the label map.

    Returns:
        ``masks``, their number; ``covered`` and ``largest``, the share of pixels under any and under the largest one;
        ``wrong``, the share under the largest one that is no region (IoU 0.5 or less with all of them); ``regions``,
        how many have at least ten pixels, and how many of these were ``found``: have a mask of IoU above 0.5.
    """
    masks = [record["segmentation"] for record in generator.generate(picture)]
    regions = _regions(target)
    overlap = np.array([[_overlap(mask, region) for region in regions] for mask in masks]).reshape(
        len(masks), len(regions)
    )
    right = overlap > 0.5
    shares = [float(mask.mean()) for mask in masks]
    return {
        "masks": len(masks),
        "covered": float(np.any(masks, axis=0).mean()) if masks else 0.0,
        "largest": max(shares, default=0.0),
        "wrong": max((share for share, fits in zip(shares, right, strict=True) if not fits.any()), default=0.0),
        "regions": len(regions),
        "found": int(right.any(axis=0).sum()),
    }


def drawn_for(model: LatentDiffusion, prompt: str, numbers: Iterable[int]) -> np.ndarray:
    """Pictures from noise under a prompt, one per number: uint8 [n, H, W, 3]."""
    keys = [stream(SEED, "steering", prompt, number) for number in numbers]
    empty = torch.zeros(len(keys), 4, PICTURE // model.codec.factor, PICTURE // model.codec.factor)
    return _redrawn(model, empty, prompt, keys, 1.0)


def redrawn(model: LatentDiffusion, picture: np.ndarray, number: int) -> np.ndarray:
    """A label map [H, W, 3] redrawn under the prompt for label maps, uint8 [H, W, 3]."""
    with torch.inference_mode():
        latent = model.codec.encode(_tensor([picture]))
    prompt = "label map, tile, smooth edges"
    return _redrawn(model, latent, prompt, [stream(SEED, "redrawn", number)], REDRAWN)[0]


def _redrawn(
    model: LatentDiffusion, latent: Tensor, prompt: str, keys: list[torch.Generator], strength: float
) -> np.ndarray:
    with torch.inference_mode():
        negative, condition = model.embed(["", prompt]).split(1)
        scheduler = DDIMScheduler.from_config(model.scheduler.config)
        latent = img2img(model.denoise, scheduler, latent, keys, condition, negative, GUIDANCE, STEPS, strength)
        picture = model.codec.decode(latent)
    pixels: np.ndarray = (255 * picture.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels


def _of_texture(word: str) -> Callable[[np.random.Generator], np.ndarray]:
    def draw(rng: np.random.Generator) -> np.ndarray:
        while True:
            image, found = texture(rng, (PICTURE, PICTURE))
            if found == word:
                return image

    return draw


def _grey(draw: Callable[..., Any]) -> Callable[[np.random.Generator], np.ndarray]:
    def draw_grey(rng: np.random.Generator) -> np.ndarray:
        drawn = draw(rng, (PICTURE, PICTURE))
        return np.repeat(drawn[0][..., None], 3, axis=2)

    return draw_grey


def _map(rng: np.random.Generator) -> np.ndarray:
    picture: Picture = draw_map(rng, (PICTURE, PICTURE))
    return picture.image


CLASSES = {
    "section": _grey(section),
    "map": _map,
    "crater": _grey(crater_field),
    "das": _grey(das_record),
    **{word: _of_texture(word) for word in ("stripes", "checkerboard", "blobs", "gradient")},
}
"""What the classifier tells apart, and how an example is drawn."""


class Classifier(nn.Module):
    """Names drawn pictures: uint8 [B, H, W, 3] to logits [B, 8], in the order of ``CLASSES``."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.AvgPool2d(2)]
        before = 3
        for width in (24, 48, 64, 96):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            before = width
        layers += [nn.Conv2d(before, before, 3, padding=1), nn.BatchNorm2d(before), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(2 * before, len(CLASSES))

    def forward(self, pictures: np.ndarray) -> Tensor:
        cells = self.layers(2 * _tensor(pictures) - 1)
        logits: Tensor = self.last(torch.cat([cells.mean((2, 3)), cells.amax((2, 3))], 1))
        return logits

    def names(self, pictures: np.ndarray) -> list[str]:
        """The most likely class of every picture."""
        words = list(CLASSES)
        with torch.inference_mode():
            return [words[k] for k in self.eval()(pictures).argmax(1).tolist()]


def examples(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` drawn pictures of every class, some of them made soft and uneven: uint8 [n, H, W, 3], int64 [n]."""
    pictures = []
    for word, draw in CLASSES.items():
        for number in range(count):
            rng = numpy_stream(SEED, "classifier", split, word, number)
            pictures.append((255 * degrade(rng, draw(rng) / np.float32(255))).round().astype(np.uint8))
    return np.stack(pictures), np.repeat(np.arange(len(CLASSES)), count)


def train_classifier(count: int = 160, epochs: int = 10, batch: int = 32) -> Classifier:
    """Trains the classifier on ``count`` drawn pictures of every class; no generated picture is ever shown to it.

    Their colours are shuffled and half of them are mirrored, so that shapes have to be learnt.
    """
    pictures, classes = examples("train", count)
    with seeded(SEED, "classifier"):
        classifier = Classifier().train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    steps = epochs * -(-len(classes) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for epoch in range(epochs):
        order = torch.randperm(len(classes), generator=stream(SEED, "order", epoch)).numpy()
        for chosen in np.split(order, range(batch, len(order), batch)):
            rng = numpy_stream(SEED, "views", epoch, int(chosen[0]))
            some = pictures[chosen][..., rng.permutation(3)][:, :, :: int(rng.choice([-1, 1]))]
            loss = F.cross_entropy(classifier(np.ascontiguousarray(some)), torch.from_numpy(classes[chosen]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


def examine(assets: Path, maps: int = 48, automatic: int = 16, drawn: int = 25) -> dict[str, Any]:
    """All examinations, some six minutes on one core.

    Args:
        assets: the folder of embedded checkpoints.
        maps: how many held-out sections and label maps.
        automatic: how many of them get automatic masks, as they are and redrawn.
        drawn: pictures per prompt.

    Returns:
        Per examination every single result, in the order of the pictures, and under ``summary`` what they come to.
    """
    model, sam = LatentDiffusion.load(assets / "stable-diffusion"), load_sam(assets / "sam")
    generator = SamAutomaticMaskGenerator(sam, points_per_batch=256, **THRESHOLDS)
    pictures = held_out(maps)
    some = pictures[:automatic]
    classifier = train_classifier()
    known, classes = examples("test", 32)
    words = list(CLASSES)
    results: dict[str, Any] = {
        "seed": SEED,
        "psnr": {
            "profiles": reconstruction(model.vae, [image for image, _, _ in pictures]),
            "labels": reconstruction(model.vae, [label for _, label, _ in pictures]),
        },
        "clicks": [clicks(sam, label, target) for _, label, target in track(pictures, "clicks")],
        "automatic": {
            "labels": [automatic_masks(generator, label, target) for _, label, target in track(some, "masks")],
            "redrawn": [
                automatic_masks(generator, redrawn(model, label, number), target)
                for number, (_, label, target) in enumerate(track(some, "masks of redrawn maps"))
            ],
        },
        "steering": {
            "drawn": [name == words[k] for name, k in zip(classifier.names(known), classes, strict=True)],
            "generated": {
                prompt: classifier.names(drawn_for(model, prompt, range(drawn))) for prompt in track(PROMPTS, "prompts")
            },
        },
    }
    return {"summary": summary(results), **results}


def summary(results: dict[str, Any]) -> dict[str, float]:
    """What single results come to, in the words of the table."""
    regions = [region for picture in results["clicks"] for region in picture]
    answers = results["steering"]["generated"]
    right = {prompt: np.mean([name == PROMPTS[prompt] for name in names]) for prompt, names in answers.items()}
    lines = {
        "autoencoder: profiles, dB": np.mean(results["psnr"]["profiles"]),
        "autoencoder: label maps, dB": np.mean(results["psnr"]["labels"]),
        "one click per region: IoU": np.mean([region["iou"] for region in regions]),
        "one click per region: IoU, best of three": np.mean([region["chosen"] for region in regions]),
        f"one click per region of {LEAST} pixels or more: IoU": np.mean(
            [region["iou"] for region in regions if region["area"] >= LEAST]
        ),
    }
    for kind, title in (("labels", "label maps"), ("redrawn", f"label maps redrawn at {REDRAWN}")):
        rows = results["automatic"][kind]
        found = sum(row["found"] for row in rows) / sum(row["regions"] for row in rows)
        lines[f"automatic masks of {title}: regions found"] = found
        lines[f"automatic masks of {title}: pixels covered"] = np.mean([row["covered"] for row in rows])
        lines[f"automatic masks of {title}: largest mask"] = max(row["largest"] for row in rows)
        lines[f"automatic masks of {title}: largest mask that is no region"] = max(row["wrong"] for row in rows)
    lines["classifier on drawn pictures: right"] = np.mean(results["steering"]["drawn"])
    for prompt, share in right.items():
        lines[f"pictures for '{prompt}': named so"] = share
    lines["pictures for all prompts: named so"] = np.mean(list(right.values()))
    return {name: float(value) for name, value in lines.items()}


def _regions(target: np.ndarray) -> list[np.ndarray]:
    found = []
    for k in np.unique(target):
        labels, count = ndimage.label(target == k)
        found += [labels == piece for piece in range(1, count + 1)]
    return [region for region in found if region.sum() >= LEAST]


def _overlap(mask: np.ndarray, region: np.ndarray) -> float:
    return float((mask & region).sum() / (mask | region).sum())


def _tensor(pictures: Sequence[np.ndarray] | np.ndarray) -> Tensor:
    """uint8 [n, H, W, 3] to float [n, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).float() / 255


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    card = examine(folder)
    part = folder / "cards" / "examination.json.part"
    part.write_text(json.dumps(card, indent=1) + "\n")
    part.replace(part.with_suffix(""))
    for line, number in card["summary"].items():
        print(f"{line}: {number:.3f}")
