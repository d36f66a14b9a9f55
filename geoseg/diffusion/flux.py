"""A text-conditioned latent diffusion model of the FLUX.1 family, with the words of ``LatentDiffusion``."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from geoseg.diffusion import folders
from geoseg.diffusion.codec import Codec
from geoseg.diffusion.objectives import PACKED, FlowMatching
from geoseg.fetch import ask

PARTS = ("vae", "transformer", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
"""Folders of a FluxPipeline."""

log = logging.getLogger("geoseg")


class FluxDiffusion(nn.Module):
    """Autoencoder, transformer and both text encoders of a FLUX.1 model, all frozen and in eval mode.

    Args:
        vae: pictures to latents and back; use it through ``codec``.
        transformer: the denoising network.
        text_encoder: CLIP, which says what a prompt is about as a whole.
        tokenizer: belongs to it.
        text_encoder_2: T5, which reads a prompt word by word; never trained.
        tokenizer_2: belongs to it.
        scheduler: its configuration carries the times and their shift.
        guidance: what a network that was distilled with guidance is told while it is trained; 1 is what diffusers
            advises. It answers as if it had been moved away from the empty prompt by this factor. Networks without
            such an input (FLUX.1-schnell) are told nothing.
        tokens: how many tokens of a prompt T5 reads; 512 in FLUX.1-dev. Fewer take less memory and time, and are not
            what the network was trained with.

    Raises:
        ValueError: the parts do not belong together.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        transformer: FluxTransformer2DModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        text_encoder_2: T5EncoderModel,
        tokenizer_2: T5TokenizerFast,
        scheduler: FlowMatchEulerDiscreteScheduler,
        guidance: float = 1.0,
        tokens: int = 512,
    ) -> None:
        super().__init__()
        channels, config = PACKED**2 * vae.config.latent_channels, transformer.config
        widths = (text_encoder_2.config.d_model, text_encoder.config.hidden_size, channels)
        wanted = (config.joint_attention_dim, config.pooled_projection_dim, config.in_channels)
        if widths != wanted or widths[1] > widths[0]:
            raise ValueError(
                f"T5, CLIP and latents are {widths} wide, and the transformer reads {wanted}; the parts are not those "
                "of one FLUX.1 model"
            )
        if tokens < 1:
            raise ValueError(f"tokens must be 1 or more, got {tokens}; FLUX.1-dev reads 512")
        self.vae = vae
        self.transformer = transformer
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.text_encoder_2 = text_encoder_2
        self.tokenizer_2 = tokenizer_2
        self.scheduler = scheduler
        self.guidance, self.tokens = guidance, tokens
        self._noted: set[str] = set()
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(
        cls,
        path_or_id: str | os.PathLike[str] | None,
        revision: str | None = None,
        dtype: str | torch.dtype = torch.float32,
        guidance: float = 1.0,
        tokens: int = 512,
    ) -> FluxDiffusion:
        """Reads a FluxPipeline.

        Args:
            path_or_id: a folder with the ``PARTS``, or the id of one on the Hugging Face hub; None is an error that
                says how to choose one. Weights are read from safetensors files only.
            revision: branch, tag or commit on the hub; None is its main branch. Not for folders.
            dtype: type of the weights in memory, whatever the files hold; "float32", "float16" or "bfloat16". The
                autoencoder stays in float32 where its configuration asks for that.
            guidance: see the class.
            tokens: see the class.

        Raises:
            ValueError: nothing is there, a part is missing, or the hub asks for an agreement first.
        """
        dtype = folders.dtype_of(dtype)
        if path_or_id is None:
            raise ValueError("no FLUX is chosen; give checkpoints.flux.path_or_id=FOLDER, or take checkpoints=hub_flux")
        where = folders.place(path_or_id, PARTS, "FluxPipeline")
        options: dict[str, Any] = {"revision": revision} if revision is not None else {}
        weights = {"use_safetensors": True, **options}
        if not os.path.isdir(where):
            try:
                ask("flux", where, revision)
            except ValueError as error:
                raise ValueError(_not_fetched(where, str(error))) from None
        with folders.quiet():
            try:
                config = FlowMatchEulerDiscreteScheduler.load_config(where, subfolder="scheduler", **options)
                upcast = AutoencoderKL.load_config(where, subfolder="vae", **options).get("force_upcast", True)
                tokenizers = {
                    "tokenizer": CLIPTokenizer.from_pretrained(where, subfolder="tokenizer", **options),
                    "tokenizer_2": T5TokenizerFast.from_pretrained(where, subfolder="tokenizer_2", **options),
                }
                exact = torch.float32 if upcast else dtype
                parts = {
                    "vae": AutoencoderKL.from_pretrained(where, subfolder="vae", torch_dtype=exact, **weights),
                    "transformer": FluxTransformer2DModel.from_pretrained(
                        where, subfolder="transformer", torch_dtype=dtype, **weights
                    ),
                    "text_encoder": CLIPTextModel.from_pretrained(
                        where, subfolder="text_encoder", dtype=dtype, **weights
                    ),
                    "text_encoder_2": T5EncoderModel.from_pretrained(
                        where, subfolder="text_encoder_2", dtype=dtype, **weights
                    ),
                }
            except OSError as error:
                if os.path.isdir(where):
                    raise ValueError(f"cannot read {where!r} as a FluxPipeline: {str(error).rstrip('. ')}") from error
                raise ValueError(_not_fetched(where, str(error).splitlines()[0])) from error
        scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
        return cls(**parts, **tokenizers, scheduler=scheduler, guidance=guidance, tokens=tokens)

    def save(self, folder: str | os.PathLike[str], half: bool = False) -> None:
        """Writes a FluxPipeline folder that ``load`` and diffusers read back.

        Args:
            folder: a new or empty folder, or an earlier save, which is replaced whole once the new one is written.
            half: store weights as bfloat16, in which FLUX.1 is published; the model in memory is not changed.

        Raises:
            ValueError: an adapter is attached, or the folder holds something else.
        """
        names = ("vae", "transformer", "text_encoder", "text_encoder_2")
        modules = {name: getattr(self, name) for name in names}
        if half:
            modules = {name: copy.deepcopy(module).bfloat16() for name, module in modules.items()}
        pipeline = FluxPipeline(
            **modules, tokenizer=self.tokenizer, tokenizer_2=self.tokenizer_2, scheduler=self.scheduler
        )
        folders.write(pipeline, folder, self)

    def train(self, mode: bool = True) -> FluxDiffusion:
        """As of every module, but T5 stays as it reads best: its dropout would spoil embeddings that are kept."""
        super().train(mode)
        self.text_encoder_2.eval()
        return self

    @property
    def codec(self) -> Codec:
        """The autoencoder, with scale and range taken care of."""
        return Codec(self.vae)

    @property
    def multiple(self) -> int:
        """Sides of a picture must be multiples of this, so that its latent falls into whole places."""
        return self.codec.factor * PACKED

    @property
    def device(self) -> torch.device:
        """Where the transformer lives."""
        return self.transformer.x_embedder.weight.device

    def parts(self) -> dict[str, nn.Module]:
        """The modules that adapters and parameter groups are made for."""
        return {"transformer": self.transformer, "text": self.text_encoder}

    def objective(self, times: str = "uniform", min_snr_gamma: float | None = None) -> FlowMatching:
        """What the transformer is trained to answer; arguments and errors as in ``FlowMatching.of``."""
        return FlowMatching.of(self.scheduler.config, min_snr_gamma, times)

    def checkpoint_activations(self) -> None:
        """Computes activations anew in the backward pass, rather than keep them."""
        self.transformer.enable_gradient_checkpointing()
        text = self.text_encoder  # transformers is about to give it another name
        getattr(text, "activation_checkpointing_enable", text.gradient_checkpointing_enable)()

    def embed(self, prompts: list[str]) -> Tensor:
        """What the transformer is told about each prompt.

        Args:
            prompts: B prompts. T5 reads the first ``tokens`` tokens, with a note in the log where that is not all; CLIP
                as many as it can, as in ``FluxPipeline``.

        Returns:
            float [B, 1 + N, D]: CLIP's word for the whole prompt, filled with zeros up to T5's width D, and T5's last
            hidden states for N tokens.
        """
        whole = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        words = self.tokenizer_2(
            prompts, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        ).input_ids
        for prompt in set(prompts) - self._noted:
            self._noted.add(prompt)
            if self._count(prompt) > self.tokens:
                log.warning("only the first %d tokens of this prompt are used: %r", self.tokens, prompt)
        device = self.text_encoder.get_input_embeddings().weight.device
        pooled = self.text_encoder(whole.to(device)).pooler_output
        with torch.no_grad():
            return _joined(pooled, self.text_encoder_2(words.to(device))[0])

    def embed_blank(self, count: int) -> Tensor:
        """As ``LatentDiffusion.embed_blank``; T5, which is never trained, is left out."""
        whole = torch.zeros(count, self.tokenizer.model_max_length, dtype=torch.int64)
        pooled = self.text_encoder(whole).pooler_output
        words = pooled.new_zeros(count, self.tokens, self.text_encoder_2.config.d_model)
        return _joined(pooled, words)

    def check_prompt(self, prompt: str) -> None:
        """Counts a prompt's tokens before any work.

        Raises:
            ValueError: T5 would read its beginning only.
        """
        count = self._count(prompt)
        if count > self.tokens:
            raise ValueError(
                f"the text encoder reads {self.tokens} tokens and this prompt has {count}; shorten it, or raise "
                "checkpoints.flux.tokens up to what the model was trained with"
            )

    def denoise(self, noisy: Tensor, time: Tensor, condition: Tensor, guidance: float | None = None) -> Tensor:
        """The transformer's answer: the way from the latent to the noise.

        Args:
            noisy: float [B, C, h, w] with even h and w; C = 16.
            time: float [B], or one number for the whole batch; 1000 times the share of noise.
            condition: float [B, 1 + N, D] from ``embed``.
            guidance: what a distilled network is told; None is the model's own.

        Returns:
            float32 [B, C, h, w].
        """
        batch, _, height, width = noisy.shape
        dtype = self.transformer.x_embedder.weight.dtype
        told = None
        if self.transformer.config.guidance_embeds:
            told = torch.full((batch,), self.guidance if guidance is None else guidance, device=noisy.device)
        out = self.transformer(
            hidden_states=packed(noisy).to(dtype),
            timestep=(time / self.scheduler.config.num_train_timesteps).expand(batch),
            guidance=told,
            pooled_projections=condition[:, 0, : self.transformer.config.pooled_projection_dim].to(dtype),
            encoder_hidden_states=condition[:, 1:].to(dtype),
            txt_ids=torch.zeros(condition.shape[1] - 1, 3, device=noisy.device),
            img_ids=places(height, width, noisy.device),
            return_dict=False,
        )[0]
        answer = unpacked(out, height, width)
        return answer.to(torch.promote_types(answer.dtype, torch.float32))

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        size: tuple[int, int],
        steps: int = 28,
        guidance: float = 3.5,
        negative: str = "",
    ) -> Tensor:
        """Draws pictures from words, as ``FluxPipeline`` does.

        Args:
            prompts: B prompts.
            generators: one per picture, on the CPU; gives its noise.
            size: H and W in pixels, multiples of ``multiple``.
            steps: calls of the transformer; 28 is what the card of FLUX.1-dev takes with 3.5.
            guidance: what a distilled network is told; one without that input ignores it.
            negative: "" - there is no negative prompt, since guidance is built in.

        Returns:
            float32 [B, 3, H, W] in [0, 1].

        Raises:
            ValueError: an impossible size, no steps, a negative prompt, or another number of generators than prompts.
        """
        if len(prompts) != len(generators) or not prompts:
            raise ValueError(f"wanted one generator per prompt, got {len(generators)} for {len(prompts)}")
        if any(side < 1 or side % self.multiple for side in size):
            raise ValueError(f"size={tuple(size)}: sides must be multiples of {self.multiple} for this model")
        if steps < 1:
            raise ValueError(f"steps must be 1 or more, got {steps}")
        if negative:
            raise ValueError(
                f"FLUX has its guidance built in and reads no negative prompt, got {negative!r}; leave it out"
            )
        spoken = list(dict.fromkeys(prompts))
        condition = self.embed(spoken)[[spoken.index(prompt) for prompt in prompts]]
        height, width = (side // self.codec.factor for side in size)
        shape = (self.codec.channels, height, width)
        latent = torch.stack([torch.randn(shape, generator=one) for one in generators]).to(self.device)
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        # the pipeline passes these to every scheduler; one without dynamic shifting ignores the second
        shift = self.objective().times.log_shift(height * width // PACKED**2)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=shift, device="cpu")
        scheduler.set_begin_index(0)
        for time in scheduler.timesteps:
            answer = self.denoise(latent, time.to(self.device), condition, guidance)
            latent = scheduler.step(answer, time, latent, return_dict=False)[0]
        return self.codec.decode(latent)

    def _count(self, prompt: str) -> int:
        """Tokens of a prompt for T5, with the mark of the end."""
        return len(self.tokenizer_2(prompt, verbose=False).input_ids)


def _not_fetched(where: str, why: str) -> str:
    return (
        f"cannot fetch {where!r} from the Hugging Face hub: {why.rstrip('. ')}. FLUX.1-dev is gated: accept its "
        f"licence form on the page of {where} at the hub, run hf auth login on this machine, and geoseg fetch "
        "checkpoints=hub_flux --yes; for any other, check the spelling and the network, or give a FluxPipeline folder"
    )


def packed(latent: Tensor) -> Tensor:
    """A latent as the transformer reads it, 2 x 2 cells as one place: [B, C, h, w] to [B, h/2 * w/2, 4 C]."""
    batch, channels, height, width = latent.shape
    cells = latent.view(batch, channels, height // PACKED, PACKED, width // PACKED, PACKED)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PACKED**2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The latent [B, C, h, w] that ``packed`` makes [B, h/2 * w/2, 4 C] of."""
    batch, _, channels = tokens.shape
    cells = tokens.view(batch, height // PACKED, width // PACKED, channels // PACKED**2, PACKED, PACKED)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height, width)


def places(height: int, width: int, device: torch.device) -> Tensor:
    """Where each place of a latent of h x w cells lies, float32 [h/2 * w/2, 3]: nothing, row, column."""
    rows = torch.arange(height // PACKED, device=device, dtype=torch.float32)
    columns = torch.arange(width // PACKED, device=device, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)
    return pad(grid, (1, 0))


def _joined(pooled: Tensor, words: Tensor) -> Tensor:
    first = pad(pooled, (0, words.shape[-1] - pooled.shape[-1]))[:, None].to(words.dtype)
    return torch.cat([first, words], dim=1)
