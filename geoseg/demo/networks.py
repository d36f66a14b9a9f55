"""Constructors of the small networks: real classes of diffusers, transformers and segment-anything, sized for a CPU.

All are made for pictures of 128 x 128, and their weights are random until a task has trained them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, Dinov2Config, Dinov2Model

from geoseg.data.source import Source
from geoseg.demo.tokenizer import corpus_tokenizer
from geoseg.diffusion.latent_diffusion import LatentDiffusion

PICTURE = 128
"""Side of the pictures that the networks are made for, pixels."""

_CONDITION = 96  # width of the text encoder, and of what the denoising network reads from it


def autoencoder(channels: tuple[int, ...] = (16, 32, 64), groups: int = 1) -> AutoencoderKL:
    """Pictures [B, 3, H, W] in [-1, 1] to latents [B, 4, H/4, W/4] and back; 0.65 million weights.

    Args:
        channels: width of every resolution, multiples of 8; each further one halves the latent once more.
        groups: channels are normalised in so many groups. A group forgets the level of its channels, and with two
            channels per group, as 8 groups would have, there is no way left to say how bright a flat colour is.
    """
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=groups,
        sample_size=PICTURE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        for block in vae.modules():
            # every block starts as its shortcut, so that colours pass through from the first step on; behind random
            # blocks they are mixed up and normalised away, and the network settles for brightness
            if isinstance(block, ResnetBlock2D):
                block.conv2.weight.zero_()
                block.conv2.bias.zero_()
        # latents start sharp: a spread of exp(-3) rather than 1, which would drown them in noise
        vae.quant_conv.bias[vae.config.latent_channels :] = -6
    return vae


def unet(channels: tuple[int, int, int] = (48, 96, 144)) -> UNet2DConditionModel:
    """Predicts the noise of latents [B, 4, h, w]; 6 million weights, attention everywhere but at full resolution.

    Args:
        channels: width of the three resolutions, multiples of 8.
    """
    return UNet2DConditionModel(
        sample_size=PICTURE // 4,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=_CONDITION,
        attention_head_dim=4,  # diffusers reads this as the number of heads, as Stable Diffusion 1 does
        norm_num_groups=8,
    )


def text_encoder(tokenizer: CLIPTokenizer, layers: int = 3) -> CLIPTextModel:
    """Reads prompts of ``tokenizer``; answers [B, N, 96].

    Args:
        tokenizer: gives the vocabulary, its special tokens and the longest prompt.
        layers: depth.
    """
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_CONDITION,
            intermediate_size=4 * _CONDITION,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=_CONDITION,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1 (Rombach et al. 2022): 1000 steps, scaled linear betas, epsilon."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def latent_diffusion(path: str | Path, source: Source, captions: int = 2000) -> LatentDiffusion:
    """An untrained denoising network and text encoder around a trained autoencoder.

    Args:
        path: folder of the autoencoder, as ``AutoencoderTask`` writes it.
        source: the corpus whose captions the tokenizer is made for.
        captions: how many of them it looks at.

    Raises:
        ValueError: the folder is missing.
    """
    if not Path(path).is_dir():
        raise ValueError(f"there is no autoencoder in {str(path)!r}; train it first, and give the folder vae of it")
    tokenizer = corpus_tokenizer(source, captions)
    return LatentDiffusion(AutoencoderKL.from_pretrained(path), unet(), text_encoder(tokenizer), tokenizer, scheduler())


def vision_transformer(
    width: int = 128, layers: int = 8, heads: int = 4, patch: int = 8, size: int = PICTURE
) -> Dinov2Model:
    """Reads pictures [B, 3, H, W] in [0, 1]; answers tokens [B, 1 + N, width]; 1.6 million weights.

    Args:
        width: of the tokens, a multiple of 4 and of ``heads``.
        layers: depth; decoders read every quarter of it.
        heads: of the attention.
        patch: side of a patch in pixels.
        size: side in pixels of the pictures that positions are stored for; for others they are interpolated.
    """
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            mlp_ratio=4,
            image_size=size,
            patch_size=patch,
        )
    )
    with torch.no_grad():
        for part in model.modules():
            # the published spread of 0.02 is meant for widths of several hundred and makes this one learn late
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
        patches = model.embeddings.patch_embeddings.projection
        nn.init.xavier_uniform_(patches.weight.view(width, -1))
        # places are told from the first step on, but quietly: from eight profiles, a decoder learns loud ones by heart
        model.embeddings.position_embeddings.zero_()[0, 1:] = 0.1 * sine_positions(size // patch, width)
    return model


def sine_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of the place in a square grid, float32 [side side, width], row by row; Vaswani et al. 2017."""
    rates = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    along = torch.cat([angles.sin(), angles.cos()], 1)  # [side, width / 2]
    rows, columns = along[:, None].expand(-1, side, -1), along[None].expand(side, -1, -1)
    return torch.cat([rows, columns], 2).flatten(0, 1)


def sam_config() -> dict[str, Any]:
    """Sizes of the small segment-anything model, in the terms of ``geoseg.models.sam``.

    It reads pictures at half their size: its masks have a quarter of a patch per cell, which is then one pixel, and a
    patch of 4 x 4 pixels holds no more numbers than its decoder can carry.
    """
    return {
        "image_size": PICTURE // 2,
        "patch_size": 4,
        "embed_dim": 192,
        "depth": 6,
        "num_heads": 6,
        "mlp_ratio": 3,
        "global_attn_indexes": [1, 3, 5],
        "window_size": 8,
        "prompt_embed_dim": 128,  # a mask is a weighted sum of an eighth as many pictures; 8 are too few for thin beds
        "transformer_num_heads": 4,
        "transformer_mlp_dim": 256,
        "iou_head_hidden_dim": 64,
    }
