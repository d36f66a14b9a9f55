"""One ``.safetensors`` file in the layout of CompVis and A1111's web UI, read without any network.

Such a file holds weights under CompVis's names and says nothing about the networks they belong to. Widths and depths
are read off the tensors; what no tensor shows stands here. diffusers' own converters rename the tensors.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors import SafetensorError, safe_open
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SUFFIX = ".safetensors"

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Files that can run any code while they are read; Stable Diffusion is not read from them."""

UNET, VAE, CLIP, OPEN_CLIP = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
)
"""How the names of each part begin; CLIP is the text encoder of Stable Diffusion 1, OPEN_CLIP that of 2."""

LAYERS = 2
"""Residual blocks per resolution, in the denoising network and the autoencoder alike (``num_res_blocks`` in
v1-inference.yaml and v2-inference.yaml of CompVis/stable-diffusion and Stability-AI/stablediffusion)."""

HEAD_WIDTH = 64
"""Channels per attention head: of both text encoders (openai/clip-vit-large-patch14: 768 / 12; OpenCLIP ViT-H/14:
1024 / 16) and of the denoising network of Stable Diffusion 2 (``num_head_channels`` in v2-inference.yaml)."""

SD1: dict[str, dict[str, Any]] = {
    # 8 heads at every width: num_heads in v1-inference.yaml, which diffusers calls attention_head_dim
    "unet": {"attention_head_dim": 8},
    "text": {"hidden_act": "quick_gelu"},  # openai/clip-vit-large-patch14
    "tokenizer": {"pad_token": "<|endoftext|>"},
}
SD2: dict[str, dict[str, Any]] = {
    # Stable Diffusion 2.1 overflows in half precision without it: unet/config.json of its published folder
    "unet": {"upcast_attention": True},
    "text": {"hidden_act": "gelu"},  # OpenCLIP ViT-H/14
    "tokenizer": {"pad_token": "!"},  # number 0, as open_clip pads and as its published folder says
}

TEXT_DEPTH = 23
"""Stable Diffusion 2 reads its text encoder after 23 of 24 blocks (``layer: penultimate`` in v2-inference.yaml)."""

SCALE = 0.18215
"""``scale_factor`` of the autoencoder in v1-inference.yaml and v2-inference.yaml."""

SCHEDULER: dict[str, Any] = {
    # linear_start, linear_end and timesteps of v1-inference.yaml and v2-inference.yaml
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    # scheduler_config.json of the published folders of 1.5 and 2.1
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

PREDICTION_TYPES = ("epsilon", "v_prediction")

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
"""CLIP's vocabulary as openai/CLIP published it: one line of title, then a pair of pieces per line."""

MERGES = 49152 - 256 - 2
"""How many of its pairs CLIP uses (openai/CLIP clip/simple_tokenizer.py): with 2 x 256 bytes, start and end they
make 49408 tokens."""


def is_file(where: str) -> bool:
    """Whether a path means a single file of weights, there or not, and no folder and no hub id."""
    return os.path.isfile(where) or where.lower().endswith((SUFFIX, *PICKLES))


def read(path: str | os.PathLike[str], prediction_type: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a Stable Diffusion 1 or 2 model.

    The trained weights are read, as every program that takes such files does; averaged ones beside them are not.

    Args:
        path: the file. CLIP's vocabulary is taken from beside it, or from the package open_clip_torch.
        prediction_type: "epsilon" or "v_prediction"; None reads it off the file, see ``prediction_type_of``.
        dtype: of the denoising network and the text encoder in memory; the autoencoder stays in float32.

    Returns:
        Arguments of ``LatentDiffusion``.

    Raises:
        ValueError: there is no such file, it is a pickle, or it holds no whole Stable Diffusion 1 or 2.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}; give a {SUFFIX} file, a pipeline folder or a hub id")
    if path.suffix.lower() != SUFFIX:
        raise ValueError(
            f"{path.name} is no {SUFFIX} file, and a pickle can run any code while it is read; fetch the model as "
            f"{SUFFIX}, or convert it where you trust it, such as with the web UI's checkpoint merger"
        )
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            text = _text_prefix(path, shapes)
            prediction_type = prediction_type or prediction_type_of(path, shapes, file.metadata() or {}, text)
            family = SD1 if text == CLIP else SD2
            tokenizer = read_tokenizer(vocabulary_beside(path), **family["tokenizer"])
            unet, vae, words = ({n: s for n, s in shapes.items() if n.startswith(part)} for part in (UNET, VAE, text))
            configs = unet_config(unet), vae_config(vae), text_config(words)
            unet, vae, words = ({n: file.get_tensor(n) for n in names} for names in (unet, vae, words))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch it again") from error
    except KeyError as error:
        raise ValueError(f"{path.name} lacks the tensor {error}; it holds no whole Stable Diffusion 1 or 2") from error
    unet_options = {**configs[0], **family["unet"]}
    text_options = CLIPTextConfig(
        **configs[2],
        **family["text"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.model_max_length = text_options.max_position_embeddings
    if text_options.hidden_size != unet_options["cross_attention_dim"]:
        raise ValueError(
            f"{path.name}: its denoising network reads prompts {unet_options['cross_attention_dim']} wide, its text "
            f"encoder writes {text_options.hidden_size}; they belong to different models"
        )
    if len(tokenizer) != text_options.vocab_size:
        raise ValueError(
            f"{path.name} has {text_options.vocab_size} tokens, the vocabulary {len(tokenizer)}; put the model's own "
            f"{VOCABULARY} beside it"
        )
    with torch.device("meta"):  # filled below, so no random weights are drawn
        network, autoencoder = UNet2DConditionModel(**unet_options), AutoencoderKL(**configs[1])
    with torch.random.fork_rng(devices=[]):
        encoder = CLIPTextModel(text_options)
    _fill(path, network, convert_ldm_unet_checkpoint(unet, unet_options), dtype)
    _fill(path, autoencoder, convert_ldm_vae_checkpoint(vae, configs[1]), torch.float32)
    renamed = convert_ldm_clip_checkpoint(words) if text == CLIP else convert_open_clip_checkpoint(encoder, words)
    if not any(
        name.startswith("text_model.") for name in encoder.state_dict()
    ):  # transformers before 5.6 had that level
        renamed = {name.removeprefix("text_model."): value for name, value in renamed.items()}
    # neither is a weight of this encoder: the numbers 0, 1, 2 ..., and a projection for comparing with pictures
    extra = ("embeddings.position_ids", "text_projection.weight")
    _fill(path, encoder, {name: value for name, value in renamed.items() if not name.endswith(extra)}, dtype)
    return {
        "vae": autoencoder,
        "unet": network,
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(**SCHEDULER, prediction_type=prediction_type),
    }


def prediction_type_of(path: Path, names: Mapping[str, Any], metadata: Mapping[str, str], text: str = OPEN_CLIP) -> str:
    """What the denoising network answers, "epsilon" or "v_prediction", as far as the file tells.

    No shape tells it; the tensor ``v_pred`` and the note ``modelspec.prediction_type`` do, which some programs write
    into the file. Stable Diffusion 1 is epsilon where neither is there.

    Raises:
        ValueError: Stable Diffusion 2, where both exist, and nothing says which.
    """
    if "v_pred" in names:
        return "v_prediction"
    said = metadata.get("modelspec.prediction_type", "").lower()
    if said:
        return "v_prediction" if said.startswith("v") else "epsilon"
    if text == CLIP:
        return "epsilon"
    raise ValueError(
        f"{path.name} is a Stable Diffusion 2 and does not say what it predicts; add prediction_type=v_prediction for "
        "a 768-pixel model (2.0-v, 2.1), prediction_type=epsilon for a 512-pixel one (2.0-base, 2.1-base)"
    )


def unet_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Widths and blocks of the denoising network, with the heads of Stable Diffusion 2.

    Args:
        shapes: of its tensors, under CompVis's names.
    """
    blocks = {name.split(".")[3] for name in shapes if name.startswith(f"{UNET}input_blocks.")}
    # 0 is the first convolution; then LAYERS residual blocks and a halving for each resolution
    firsts = [f"{UNET}input_blocks.{i}." for i in range(1, len(blocks), LAYERS + 1)]
    widths = tuple(shapes[f"{first}0.out_layers.3.weight"][0] for first in firsts)
    attends = [f"{first}1.proj_in.weight" in shapes for first in firsts]
    middle = f"{UNET}middle_block.1."
    return {
        "in_channels": shapes[f"{UNET}input_blocks.0.0.weight"][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": LAYERS,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        "cross_attention_dim": shapes[f"{middle}transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": len(shapes[f"{middle}proj_in.weight"]) == 2,  # 2 has layers where 1 has convolutions
        "attention_head_dim": tuple(max(width // HEAD_WIDTH, 1) for width in widths),  # diffusers means their number
        "sample_size": 64,  # what pipelines draw when nothing is asked; nothing here looks at it
    }


def vae_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Widths and blocks of the autoencoder.

    Args:
        shapes: of its tensors, under CompVis's names.
    """
    depth = len({name.split(".")[3] for name in shapes if name.startswith(f"{VAE}encoder.down.")})
    return {
        "in_channels": shapes[f"{VAE}encoder.conv_in.weight"][1],
        "out_channels": shapes[f"{VAE}decoder.conv_out.weight"][0],
        "latent_channels": shapes[f"{VAE}decoder.conv_in.weight"][1],
        "block_out_channels": tuple(shapes[f"{VAE}encoder.down.{i}.block.0.conv1.weight"][0] for i in range(depth)),
        "layers_per_block": LAYERS,
        "down_block_types": ("DownEncoderBlock2D",) * depth,
        "up_block_types": ("UpDecoderBlock2D",) * depth,
        "scaling_factor": SCALE,
        "sample_size": 512,  # as above
    }


def text_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Widths and depth of the text encoder; without the last block where only Stable Diffusion 2's others are used.

    Args:
        shapes: of its tensors, under the names of CLIP or OpenCLIP.
    """
    named = {name.removeprefix(CLIP).removeprefix("text_model."): shape for name, shape in shapes.items()}
    if f"{OPEN_CLIP}token_embedding.weight" in shapes:
        named = {name.removeprefix(OPEN_CLIP): shape for name, shape in shapes.items()}
        words, places, wide = (
            "token_embedding.weight",
            "positional_embedding",
            "transformer.resblocks.0.mlp.c_fc.weight",
        )
        block, deepest = "transformer.resblocks.", TEXT_DEPTH
    else:
        words, places = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
        wide, block, deepest = "encoder.layers.0.mlp.fc1.weight", "encoder.layers.", 10**6
    depth = len({name.removeprefix(block).split(".")[0] for name in named if name.startswith(block)})
    vocabulary, width = named[words]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": width,
        "max_position_embeddings": named[places][0],
        "intermediate_size": named[wide][0],
        "num_hidden_layers": min(depth, deepest),
        "num_attention_heads": max(width // HEAD_WIDTH, 1),
    }


def vocabulary_beside(path: Path) -> Path:
    """CLIP's vocabulary: beside the file of weights, or in the package open_clip_torch, which is not imported.

    Raises:
        ValueError: neither is there.
    """
    package = importlib.util.find_spec("open_clip")
    places = [path.parent, *map(Path, (package.submodule_search_locations or []) if package else [])]
    for place in places:
        if (place / VOCABULARY).is_file():
            return place / VOCABULARY
    raise ValueError(
        f"{path.name} carries no tokenizer: pip install open_clip_torch, which brings CLIP's vocabulary, or put "
        f"{VOCABULARY} beside the file"
    )


def read_tokenizer(path: Path, **options: Any) -> CLIPTokenizer:
    """CLIP's tokenizer from its published vocabulary: all bytes, all bytes that end a word, the pairs, start and end.

    Args:
        path: a file in the layout of ``VOCABULARY``.
        **options: further arguments of the tokenizer, such as ``pad_token``.

    Raises:
        ValueError: it holds something else.
    """
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
        merges = [(first, second) for first, second in (line.split() for line in lines if line)]
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} holds no vocabulary of CLIP ({error}); fetch it again") from error
    letters = sorted(ByteLevel.alphabet())
    ends = [f"{letter}</w>" for letter in letters]
    words = [*letters, *ends, *(first + second for first, second in merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=merges, **options)


def _text_prefix(path: Path, names: Mapping[str, Any]) -> str:
    parts = {"a denoising network": UNET, "an autoencoder": VAE}
    lacking = [what for what, prefix in parts.items() if not any(name.startswith(prefix) for name in names)]
    found = [prefix for prefix in (CLIP, OPEN_CLIP) if any(name.startswith(prefix) for name in names)]
    if not found:
        lacking.append("a text encoder")
    if lacking:
        like = next(iter(names), "nothing at all")
        raise ValueError(
            f"{path.name} lacks {', '.join(lacking)} of Stable Diffusion 1 or 2 in the layout of CompVis (it holds "
            f"{like}); give a whole checkpoint, no LoRA, no single part and no other model"
        )
    return found[0]


def _fill(path: Path, module: nn.Module, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise ValueError(
            f"{path.name}: {len(wrong)} tensors do not fit {type(module).__name__}, such as {wrong[0]} with shape "
            f"{found.get(wrong[0])} where {wanted.get(wrong[0])} was wanted; it is no Stable Diffusion 1 or 2"
        )
    module.load_state_dict({name: value.to(dtype).contiguous() for name, value in state.items()}, assign=True)
