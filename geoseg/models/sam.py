"""Segment-anything models: the published ones, and smaller ones of the same classes.

A small model lives in a folder with ``config.json`` (the keys of ``PUBLISHED`` and ``DEFAULTS``, in the
terms of segment_anything's constructors) and ``model.safetensors``.
"""

from __future__ import annotations

import difflib
import json
import os
import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

DEFAULTS: dict[str, Any] = {
    "image_size": 1024,
    "patch_size": 16,
    "window_size": 14,
    "mlp_ratio": 4,
    "prompt_embed_dim": 256,
    "mask_in_chans": 16,
    "transformer_depth": 2,
    "transformer_num_heads": 8,
    "transformer_mlp_dim": 2048,
    "num_multimask_outputs": 3,
    "iou_head_depth": 3,
    "iou_head_hidden_dim": 256,
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
}
"""What all published models share (segment_anything/build_sam.py); ``prompt_embed_dim`` is also the width of the
image encoder's output and of the mask decoder."""

PUBLISHED: dict[str, dict[str, Any]] = {
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_attn_indexes": [2, 5, 8, 11]},
    "vit_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "global_attn_indexes": [5, 11, 17, 23]},
    "vit_h": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attn_indexes": [7, 15, 23, 31]},
}
"""The image encoders of the published models (segment_anything/build_sam.py)."""

_REQUIRED = ("embed_dim", "depth", "num_heads", "global_attn_indexes")


def build_sam(config: Mapping[str, Any]) -> Sam:
    """A segment-anything model with random weights, in evaluation mode.

    Args:
        config: ``embed_dim``, ``depth``, ``num_heads`` and ``global_attn_indexes`` of the image encoder; any of
            ``DEFAULTS`` that differ.

    Raises:
        ValueError: a key is missing or unknown, or sizes do not fit together.
    """
    c = _complete(config)
    grid = c["image_size"] // c["patch_size"]
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=c["image_size"],
            patch_size=c["patch_size"],
            embed_dim=c["embed_dim"],
            depth=c["depth"],
            num_heads=c["num_heads"],
            mlp_ratio=c["mlp_ratio"],
            out_chans=c["prompt_embed_dim"],
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=c["window_size"],
            global_attn_indexes=tuple(c["global_attn_indexes"]),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=c["prompt_embed_dim"],
            image_embedding_size=(grid, grid),
            input_image_size=(c["image_size"], c["image_size"]),
            mask_in_chans=c["mask_in_chans"],
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=c["num_multimask_outputs"],
            transformer=TwoWayTransformer(
                depth=c["transformer_depth"],
                embedding_dim=c["prompt_embed_dim"],
                num_heads=c["transformer_num_heads"],
                mlp_dim=c["transformer_mlp_dim"],
            ),
            transformer_dim=c["prompt_embed_dim"],
            iou_head_depth=c["iou_head_depth"],
            iou_head_hidden_dim=c["iou_head_hidden_dim"],
        ),
        pixel_mean=list(c["pixel_mean"]),
        pixel_std=list(c["pixel_std"]),
    )
    return sam.eval()


def save_sam(sam: Sam, config: Mapping[str, Any], folder: str | Path) -> None:
    """Writes a model as float16, half the size and close enough for masks.

    Args:
        sam: built by ``build_sam(config)``.
        config: stored beside it, defaults filled in.
        folder: made where it is missing; a reader never sees a half-written file.

    Raises:
        ValueError: a weight does not fit float16, or the config is not that of the model.
    """
    config = _complete(config)
    expected = _shapes(config)
    state = {name: value.detach().cpu().contiguous() for name, value in sam.state_dict().items()}
    if {name: tuple(value.shape) for name, value in state.items()} != expected:
        raise ValueError("this config builds a model of other shapes; save a model with the config that built it")
    state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"weights beyond float16 (65504) or not finite: {broken[:3]}; the training diverged")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights, words = folder / "model.safetensors.tmp", folder / "config.json.tmp"
    save_file(state, weights)
    words.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(weights, folder / "model.safetensors")
    os.replace(words, folder / "config.json")


def load_sam(path: str | Path) -> Sam:
    """Reads a model; float32, frozen and in evaluation mode, on the CPU.

    Args:
        path: a folder written by ``save_sam``, or a published ``.pth`` file, whose size is read off its tensors.

    Raises:
        ValueError: nothing is there, or it is no segment-anything model.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        missing = [name for name in ("config.json", "model.safetensors") if not (path / name).is_file()]
        if missing:
            raise ValueError(f"{path} lacks {' and '.join(missing)}; give a folder that save_sam wrote")
        try:
            config = json.loads((path / "config.json").read_text())
            state = load_file(path / "model.safetensors")
        except (json.JSONDecodeError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read ({error}); write or fetch it again") from error
    elif path.is_file():
        try:
            # weights_only: a .pth file could otherwise run any code
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{path} holds no plain weights ({type(error).__name__}); fetch it again") from error
        config = PUBLISHED[published_name(state)]
    else:
        raise ValueError(
            f"no segment-anything model at {path}; give a folder with config.json and model.safetensors, or a "
            "published sam_vit_*.pth file"
        )
    sam = build_sam(config)
    _check_shapes(path, state, sam)
    sam.load_state_dict({name: value.float() for name, value in state.items()})
    return sam.requires_grad_(False)


def published_name(state: Mapping[str, Tensor]) -> str:
    """Which published model ("vit_b", "vit_l", "vit_h") weights belong to, by the width of their image encoder.

    Raises:
        ValueError: none of them.
    """
    position = state.get("image_encoder.pos_embed") if isinstance(state, Mapping) else None
    width = position.shape[-1] if isinstance(position, Tensor) else None
    for name, config in PUBLISHED.items():
        if config["embed_dim"] == width:
            return name
    raise ValueError(
        f"not a published segment-anything model: its image encoder is {width} wide, wanted one of "
        f"{[config['embed_dim'] for config in PUBLISHED.values()]}; put a smaller model into a folder with save_sam"
    )


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    known = [*_REQUIRED, *DEFAULTS]
    for key in config:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise ValueError(f"unknown key {key!r}{f', did you mean {near[0]!r}' if near else ''}; known: {known}")
    missing = [key for key in _REQUIRED if key not in config]
    if missing:
        raise ValueError(f"the config of a segment-anything model lacks {missing}")
    c = {**DEFAULTS, **config}
    for whole, part in (
        ("image_size", "patch_size"),
        ("embed_dim", "num_heads"),
        ("prompt_embed_dim", "transformer_num_heads"),
    ):
        if c[whole] % c[part]:
            raise ValueError(f"{whole} must be a multiple of {part}, got {c[whole]} and {c[part]}")
    if c["prompt_embed_dim"] % 8:
        raise ValueError(f"prompt_embed_dim must be a multiple of 8, got {c['prompt_embed_dim']}")
    return c


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build_sam(config).state_dict().items()}


def _check_shapes(path: Path, state: Mapping[str, Tensor], sam: Sam) -> None:
    found = {name: tuple(value.shape) for name, value in state.items()}
    wanted = {name: tuple(value.shape) for name, value in sam.state_dict().items()}
    wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{path}: {len(wrong)} tensors do not fit the model, such as {name} with shape {found.get(name)} where "
            f"{wanted.get(name)} was wanted; weights and config must come from one model"
        )
