"""Random models of the true classes, small enough for tests."""

from __future__ import annotations

import functools
from collections import Counter
from itertools import pairwise
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from geoseg.diffusion.flux import FluxDiffusion
from geoseg.diffusion.latent_diffusion import LatentDiffusion

WORDS = "8 k, Ultra-high resolution, Tile, Smooth Edges, seismic profile, label map, flat colours"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"

TINY_SAM: dict[str, Any] = {
    "image_size": 64,
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
    "global_attn_indexes": [0],
    "window_size": 2,
    "mlp_ratio": 2,
    "prompt_embed_dim": 32,
    "transformer_num_heads": 2,
    "transformer_mlp_dim": 32,
    "iou_head_hidden_dim": 32,
}
"""Sizes of a Sam that is built in a moment, for geoseg.models.sam."""


@functools.cache
def _vocabulary() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Byte pairs of ``WORDS``, the most frequent first; tokenizers' trainer chooses among equals anew each time."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(WORDS.lower())
    words = [[*word[:-1], f"{word[-1]}</w>"] for word, _ in split]
    tokens = [BEGIN, END, *sorted({*pre_tokenizers.ByteLevel.alphabet(), *(token for word in words for token in word)})]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in words for pair in pairwise(word)):
        first, second = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((first, second))
        tokens.append(first + second)
        for word in words:
            at = 0
            while at < len(word) - 1:
                if (word[at], word[at + 1]) == (first, second):
                    word[at : at + 2] = [first + second]
                at += 1
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, tuple(merges)


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of its own and prompts of 24 tokens."""
    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(vocab=dict(vocabulary), merges=list(merges), model_max_length=24)


def tiny_t5_tokenizer() -> T5TokenizerFast:
    """T5's tokenizer with a piece per letter: "</s>" ends a prompt, "<pad>" fills it."""
    letters = sorted({*WORDS, *WORDS.lower(), *"abcdefghijklmnopqrstuvwxyz", "\u2581"} - {" "})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=tokenizer, model_max_length=24, extra_ids=0)


def tiny_flux(seed: int = 0, guidance_embeds: bool = True, double: int = 1, single: int = 1) -> FluxDiffusion:
    """FLUX.1 in 0.1 M random weights: latents half as wide as pictures, sides in multiples of 4, 24 tokens."""
    tokenizer, tokenizer_2 = tiny_tokenizer(), tiny_t5_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.7,
            shift_factor=0.1,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=double,
            num_single_layers=single,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        )
        text = CLIPTextModel(_clip(tokenizer))
        words = T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer_2),
                d_model=32,
                d_kv=8,
                d_ff=32,
                num_layers=1,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                pad_token_id=0,
                eos_token_id=1,
            )
        )
        with torch.no_grad():
            text.get_input_embeddings().weight.mul_(20)  # as with CLIP alone
            vae.encoder.conv_out.bias[4:] = -10  # a trained autoencoder knows its latents, and adds no noise of its own
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    return FluxDiffusion(vae, transformer, text, tokenizer, words, tokenizer_2, scheduler, tokens=24)


def flux_pipeline_of(model: FluxDiffusion) -> FluxPipeline:
    """The same parts as diffusers puts them together."""
    return FluxPipeline(
        vae=model.vae,
        transformer=model.transformer,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=model.tokenizer_2,
        scheduler=model.scheduler,
    )


def _clip(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_latent_diffusion(seed: int = 0, prediction_type: str = "epsilon", in_channels: int = 4) -> LatentDiffusion:
    """Stable Diffusion in 0.1 M random weights: latents half as wide as pictures, sides in multiples of 4."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.7,
        )
        unet = UNet2DConditionModel(
            in_channels=in_channels,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=8,
            sample_size=16,
        )
        text = CLIPTextModel(_clip(tokenizer))
        with torch.no_grad():  # CLIP starts so small that prompts would hardly matter
            text.get_input_embeddings().weight.mul_(20)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return LatentDiffusion(vae, unet, text, tokenizer, scheduler)


def pipeline_of(model: LatentDiffusion) -> StableDiffusionPipeline:
    """The same parts as diffusers puts them together."""
    return StableDiffusionPipeline(
        vae=model.vae,
        unet=model.unet,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        scheduler=model.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_parts() -> dict[str, nn.Module]:
    """The parts of Stable Diffusion 1.5 that adapters change, without weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            layers_per_block=2,
            cross_attention_dim=768,
            attention_head_dim=8,
        )
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
    return {"unet": unet, "text": text}


def tiny_dinov2(patch: int = 8, depth: int = 4, seed: int = 0) -> Dinov2Model:
    """DINOv2 in 0.04 M random weights."""
    config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=depth,
        num_attention_heads=2,
        mlp_ratio=2,
        patch_size=patch,
        image_size=4 * patch,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Dinov2Model(config)
        with torch.no_grad():  # it starts so small that images would hardly matter
            for name, weight in net.named_parameters():
                if name.endswith("weight") and weight.ndim > 1:
                    weight.mul_(4)
    return net.eval()


def flux_transformer() -> FluxTransformer2DModel:
    """That of FLUX.1-dev, without weights."""
    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True)  # all else are the class's own defaults
