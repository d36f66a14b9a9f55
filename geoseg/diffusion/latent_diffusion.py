"""A text-conditioned latent diffusion model of the Stable Diffusion 1 and 2 family, as one module."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Hashable, Sequence
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from geoseg.diffusion import folders, single_file
from geoseg.diffusion.codec import Codec
from geoseg.diffusion.objectives import Objective
from geoseg.diffusion.text2img import text2img
from geoseg.fetch import ask

PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
"""Folders of a StableDiffusionPipeline that are read; a safety checker or feature extractor beside them is not."""

log = logging.getLogger("geoseg")


class LatentDiffusion(nn.Module):
    """Autoencoder, denoising network and text encoder of a diffusion model, all frozen and in eval mode.

    Args:
        vae: pictures to latents and back; use it through ``codec``.
        unet: the denoising network.
        text_encoder: prompts to condition.
        tokenizer: belongs to the text encoder.
        scheduler: any diffusers scheduler; its configuration carries the betas and the prediction type.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: Any,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.unet = unet
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.scheduler = scheduler
        self._noted: set[str] = set()
        self._embedded: tuple[Hashable, dict[str, Tensor]] = (None, {})
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(
        cls,
        path_or_id: str | os.PathLike[str] | None,
        revision: str | None = None,
        dtype: str | torch.dtype = torch.float32,
        prediction_type: str | None = None,
    ) -> LatentDiffusion:
        """Reads a StableDiffusionPipeline, or one file of Stable Diffusion 1 or 2 in CompVis's layout.

        Args:
            path_or_id: a folder with vae, unet, text_encoder, tokenizer and scheduler, the id of one on the Hugging
                Face hub, or a single file as A1111's web UI uses them. Weights are read from safetensors files only.
            revision: branch, tag or commit on the hub; None is its main branch. Not for folders and files.
            dtype: type of the weights in memory, whatever the files hold; "float32", "float16" or "bfloat16". The
                autoencoder stays in float32 where its configuration asks for that, as that of a single file does.
            prediction_type: "epsilon" or "v_prediction", for a single file that does not say which; None elsewhere,
                since a folder's scheduler says it.

        Raises:
            ValueError: nothing is there, or a part is missing.
        """
        dtype = folders.dtype_of(dtype)
        if prediction_type not in (None, *single_file.PREDICTION_TYPES):
            raise ValueError(f"prediction_type must be epsilon, v_prediction or null, got {prediction_type}")
        if path_or_id is None:
            raise ValueError(
                "no Stable Diffusion is chosen; give checkpoints.stable_diffusion.path_or_id=FOLDER, or take "
                "checkpoints=hub"
            )
        where = os.path.expanduser(path_or_id)
        if single_file.is_file(where):
            return cls(**single_file.read(where, prediction_type, dtype))
        if prediction_type is not None:
            raise ValueError("prediction_type is for single files; a folder says it in scheduler/scheduler_config.json")
        where = folders.place(where, PARTS, "StableDiffusionPipeline")
        if not os.path.isdir(where):
            ask("stable_diffusion", where, revision)
        options: dict[str, Any] = {"revision": revision} if revision is not None else {}
        weights = {"use_safetensors": True, **options}
        with folders.quiet():
            try:
                upcast = AutoencoderKL.load_config(where, subfolder="vae", **options).get("force_upcast", True)
                exact = torch.float32 if upcast else dtype
                vae = AutoencoderKL.from_pretrained(where, subfolder="vae", torch_dtype=exact, **weights)
                unet = UNet2DConditionModel.from_pretrained(where, subfolder="unet", torch_dtype=dtype, **weights)
                text = CLIPTextModel.from_pretrained(where, subfolder="text_encoder", dtype=dtype, **weights)
                tokenizer = CLIPTokenizer.from_pretrained(where, subfolder="tokenizer", **options)
                config = DDIMScheduler.load_config(where, subfolder="scheduler", **options)
            except OSError as error:
                raise ValueError(
                    f"cannot read {where!r} as a StableDiffusionPipeline: {str(error).rstrip('. ')}. It is neither a "
                    "folder here nor, as far as this machine can reach, an id on the Hugging Face hub with safetensors "
                    "weights at that revision; check the spelling, the network, or fetch the folder first"
                ) from error
        scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
        return cls(vae, unet, text, tokenizer, scheduler)

    def save(self, folder: str | os.PathLike[str], half: bool = False) -> None:
        """Writes a StableDiffusionPipeline folder that ``load`` and diffusers read back.

        Args:
            folder: a new or empty folder, or an earlier save, which is replaced whole once the new one is written.
            half: store weights as float16; the model in memory is not changed.

        Raises:
            ValueError: an adapter is attached, or the folder holds something else.
        """
        modules = {"vae": self.vae, "unet": self.unet, "text_encoder": self.text_encoder}
        if half:
            modules = {name: copy.deepcopy(module).half() for name, module in modules.items()}
        pipeline = StableDiffusionPipeline(
            **modules,
            tokenizer=self.tokenizer,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        folders.write(pipeline, folder, self)

    @property
    def codec(self) -> Codec:
        """The autoencoder, with scale and range taken care of."""
        return Codec(self.vae)

    @property
    def multiple(self) -> int:
        """Sides of a picture must be multiples of this, so that every halving in the network comes out even."""
        return self.codec.factor * int(2 ** (len(self.unet.config.block_out_channels) - 1))

    @property
    def device(self) -> torch.device:
        """Where the denoising network lives."""
        return self.unet.conv_in.weight.device

    def parts(self) -> dict[str, nn.Module]:
        """The modules that adapters and parameter groups are made for."""
        return {"unet": self.unet, "text": self.text_encoder}

    def objective(self, times: str = "uniform", min_snr_gamma: float | None = None) -> Objective:
        """What the denoising network is trained to answer, as its scheduler says; arguments as in ``Objective.of``."""
        return Objective.of(self.scheduler.config, min_snr_gamma, times)

    def checkpoint_activations(self) -> None:
        """Computes activations anew in the backward pass, rather than keep them."""
        self.unet.enable_gradient_checkpointing()
        text = self.text_encoder  # transformers is about to give it another name
        getattr(text, "activation_checkpointing_enable", text.gradient_checkpointing_enable)()

    def embed(self, prompts: list[str]) -> Tensor:
        """What the denoising network is told about each prompt.

        Args:
            prompts: B prompts; "" is the empty condition of classifier-free guidance. Words beyond the tokenizer's
                length are cut, with a note in the log.

        Returns:
            float [B, N, D], the text encoder's last hidden state, as in ``StableDiffusionPipeline``.
        """
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )  # [B, N]
        for prompt, full in zip(prompts, tokens.attention_mask[:, -1].tolist(), strict=True):
            if full and prompt not in self._noted:
                self._noted.add(prompt)
                pieces = self.tokenizer(prompt, truncation=True, max_length=length, return_overflowing_tokens=True)
                if len(pieces.input_ids) == 1:
                    continue  # fits to the last place
                log.warning("only the first %d tokens of this prompt are used: %r", length - 2, prompt)
        device = self.text_encoder.get_input_embeddings().weight.device
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(device) if masked else None
        return self.text_encoder(tokens.input_ids.to(device), attention_mask=mask).last_hidden_state

    def text_state(self) -> Hashable | None:
        """What the text encoder's answers depend on beside the prompt; None while it learns.

        8-bit optimizers change weights behind torch's version counter, so a change of what learns could not be seen.
        """
        text = self.text_encoder
        weights = list(text.parameters())
        if any(weight.requires_grad for weight in weights):
            return None
        kept = tuple((w.data_ptr(), 0 if w.is_inference() else w._version, w.device, w.dtype) for w in weights)
        scales = (getattr(module, "scaling", None) for module in text.modules())  # how much an adapter counts
        adapters = tuple(tuple(sorted(scale.items())) for scale in scales if isinstance(scale, dict))
        return kept, adapters, torch.is_autocast_enabled(self.device.type)

    def embedded(self, prompts: Sequence[str]) -> Tensor:
        """``embed``, but every prompt is read once, by itself, for as long as the text encoder stays what it is.

        Args:
            prompts: B prompts, as often as they may come.

        Returns:
            float [B, N, D]; what a prompt gives does not depend on those beside it.
        """
        state = self.text_state()
        if state is None or self._embedded[0] != state:
            self._embedded = (state, {})
        known = self._embedded[1]
        with torch.inference_mode(False), torch.no_grad():  # what is kept may be used where gradients are wanted
            for prompt in dict.fromkeys(prompts):
                if prompt not in known:
                    known[prompt] = self.embed([prompt])[0]
        return torch.stack([known[prompt] for prompt in prompts])

    def draw(
        self,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        size: tuple[int, int],
        steps: int = 30,
        guidance: float = 7.0,
        negative: str = "",
    ) -> Tensor:
        """Draws pictures from words alone, by the scheduler that the checkpoint names; see ``text2img``."""
        return text2img(self, prompts, generators, size, steps, guidance, negative)

    def embed_blank(self, count: int) -> Tensor:
        """``embed`` of so many prompts whose words do not matter, for ``geoseg.memory``."""
        tokens = torch.zeros(count, self.tokenizer.model_max_length, dtype=torch.int64)
        return self.text_encoder(tokens).last_hidden_state

    def check_prompt(self, prompt: str) -> None:
        """Counts a prompt's tokens before any work.

        Raises:
            ValueError: the text encoder would read its beginning only.
        """
        room = self.tokenizer.model_max_length - 2  # the marks of beginning and end
        tokens = self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        if len(tokens) > room:
            end = self.tokenizer.decode(tokens[:room])[-30:]
            raise ValueError(
                f"the text encoder reads {room} tokens and this prompt has {len(tokens)}; shorten it, it would end "
                f"after {end!r}"
            )

    def denoise(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """The denoising network's answer; what it means is the scheduler's prediction type.

        Args:
            noisy: float [B, C, h, w], C = 4 unless the network reads an image beside the noise.
            time: int64 [B], or one number for the whole batch.
            condition: float [B, N, D] from ``embed``.

        Returns:
            float32 [B, 4, h, w].
        """
        dtype = self.unet.conv_in.weight.dtype
        out = self.unet(noisy.to(dtype), time, encoder_hidden_states=condition.to(dtype), return_dict=False)[0]
        return out.to(torch.promote_types(out.dtype, torch.float32))
