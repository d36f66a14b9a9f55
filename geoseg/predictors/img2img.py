"""Labels by redrawing: a diffusion model turns the picture into one painted in the colours of a palette."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from geoseg import progress
from geoseg.crops import pad_to_multiple
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.diffusion.prompts import Prompt, parse_prompt, without_tags
from geoseg.diffusion.sampling import Denoiser, img2img, steps_run, windowed
from geoseg.lora import adapter_names, weighted
from geoseg.palette import Palette
from geoseg.types import Prediction

log = logging.getLogger("geoseg")


class Img2Img(nn.Module):
    """Redraws a picture once or twice under a prompt and reads the result with a palette.

    Args:
        model: a latent diffusion model, with its adapters attached.
        palette: what the colours mean; None only draws, and has no class to read.
        prompt: calls the attached adapter, ``<lora:vai1:1>``; weight 0 switches it off while predicting.
        negative_prompt: what to move away from; tags have no place in it, and it is read with the adapters of the
            prompt.
        strength: share of the schedule that the first pass runs, (0, 1]; larger keeps less of the picture. 0.53 is
            the value of the label LoRA paper, which found 0.4 to 0.6 best.
        second_strength: the same for a second pass over the painted result of the first; None makes one pass. The
            paper lowers it without saying to what.
        guidance: classifier-free guidance; the paper's 7, 7 to 8 being best; 1 or less is none.
        steps: length of the whole schedule, of which int(steps * strength) are run.
        scheduler: makes a scheduler from the model's scheduler configuration, such as
            ``diffusers.EulerAncestralDiscreteScheduler.from_config``.
        tile: side in pixels of the square the network was trained on; larger pictures are denoised in overlapping
            windows, see ``windowed``. None shows it every picture whole.
        overlap: smallest share of its side that a window has in common with the next, 0 <= overlap < 1.
        batch: windows per call of the network.

    Raises:
        ValueError: a number out of range, a tag that calls nothing, or a prompt too long for the text encoder.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        palette: Palette | None,
        prompt: str,
        negative_prompt: str = "",
        strength: float = 0.53,
        second_strength: float | None = 0.40,
        guidance: float = 7.0,
        steps: int = 30,
        scheduler: Callable[[Any], Any] = DDIMScheduler.from_config,
        tile: int | None = None,
        overlap: float = 0.25,
        batch: int = 32,
    ) -> None:
        super().__init__()
        for name, value in (("strength", strength), ("second_strength", second_strength)):
            if value is not None and not 0 < value <= 1:
                null = "; null makes one pass" if name == "second_strength" else ""
                raise ValueError(f"{name} must be above 0 and at most 1, got {value}{null}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if tile is not None and (tile < model.multiple or tile % model.multiple):
            raise ValueError(f"tile must be a multiple of {model.multiple} for this model, got {tile}; null: no tiles")
        if not 0 <= overlap < 1 or batch < 1:
            raise ValueError(f"wanted 0 <= overlap < 1 and batch >= 1, got overlap={overlap}, batch={batch}")
        if not 0 <= guidance < float("inf"):
            raise ValueError(f"guidance must be a number from 0 on, got {guidance}; 1 switches it off")
        self.model = model
        self.palette = palette
        self.prompt = prompt
        self.negative_prompt = negative_prompt
        self.strengths = [strength] if second_strength is None else [strength, second_strength]
        self.guidance = guidance
        self.steps = steps
        self.scheduler = scheduler
        self.tile, self.overlap, self.batch = tile, overlap, batch
        self._noted: set[str] = set()
        self._embedded: tuple[Any, Tensor] | None = None
        if adapter_names(model.parts()):
            self._parse()  # a wrong tag is better found before the training than after it
        for name, words in (("prompt", without_tags(prompt)), ("negative_prompt", negative_prompt)):
            try:
                model.check_prompt(words)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

    @property
    def num_classes(self) -> int:
        """K, the number of colours; 0 without a palette."""
        return self.palette.num_classes if self.palette is not None else 0

    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        """Redraws and reads a batch.

        Args:
            image: float [B, 3, H, W] or [B, 1, H, W] in [0, 1]; any size, padded to what the model reads and cut back.
            generator: one per image, on the CPU.

        Returns:
            probs [B, K, H, W]; ``painted`` and the last of the stages "pass 1", "pass 2" are the picture they were
            read from.

        Raises:
            ValueError: the wrong number of generators or channels, or a tag that calls nothing.
        """
        if len(generator) != len(image):
            raise ValueError(f"one generator per image is needed, got {len(generator)} for {len(image)} images")
        if image.ndim != 4 or image.shape[1] not in (1, 3):
            raise ValueError(f"pictures are [B, 3, H, W] or grey [B, 1, H, W], got {list(image.shape)}")
        parts = self.model.parts()
        prompt = self._parse()
        weights = {
            name: {"text": prompt.weights[name].text, "unet": prompt.weights[name].unet}
            if name in prompt.weights
            else {"text": 0.0, "unet": 0.0}
            for name in adapter_names(parts)
        }
        with torch.inference_mode(), weighted(parts, weights):
            condition = self._embed(prompt)
            picture = image.expand(-1, 3, -1, -1)
            stages: dict[str, Tensor] = {}
            for number, strength in enumerate(self.strengths, start=1):
                if not steps_run(self.steps, strength):
                    self._note(
                        f"pass {number} runs int({self.steps} * {strength}) = 0 steps and only passes the picture "
                        "through the autoencoder; raise steps or strength"
                    )
                picture = self._redraw(picture, condition, strength, generator)
                stages[f"pass {number}"] = picture
            probs = self.palette.decode(picture) if self.palette is not None else picture[:, :0]
            return Prediction(probs=probs, painted=picture, stages=stages)

    def rehearse(self, picture: Tensor) -> None:
        """One step of ``predict`` for pictures without content, for ``geoseg.memory``."""
        latent = self.model.codec.encode(pad_to_multiple(picture.expand(-1, 3, -1, -1), self.model.multiple))
        both = torch.cat([latent, latent]) if self.guidance > 1 else latent
        words, wide = self.model.tokenizer.model_max_length, self.model.text_encoder.config.hidden_size
        time = torch.zeros((), dtype=torch.int64)
        self._denoiser()(both, time, torch.zeros(len(both), words, wide))
        self.model.codec.decode(latent)

    def _redraw(
        self, picture: Tensor, condition: Tensor, strength: float, generator: Sequence[torch.Generator]
    ) -> Tensor:
        height, width = picture.shape[2:]
        latent = self.model.codec.encode(pad_to_multiple(picture, self.model.multiple))
        scheduler = self.scheduler(self.model.scheduler.config)
        images = len(picture) / len(self.strengths)
        latent = img2img(
            self._denoiser(),
            scheduler,
            latent,
            generator,
            condition[1:],
            condition[:1],
            self.guidance,
            self.steps,
            strength,
            on_step=lambda share: progress.advance("generation", images * share),
        )
        return self.model.codec.decode(latent)[..., :height, :width]

    def _denoiser(self) -> Denoiser:
        if self.tile is None:
            return self.model.denoise
        return windowed(self.model.denoise, self.tile // self.model.codec.factor, self.overlap, self.batch)

    def _parse(self) -> Prompt:
        adapters = adapter_names(self.model.parts())
        if "<lora:" in self.negative_prompt:
            raise ValueError("adapter tags belong in the prompt, not in negative_prompt; the prompt's count for both")
        prompt = parse_prompt(self.prompt, adapters)
        if adapters and not prompt.weights:
            raise ValueError(
                f"the prompt {self.prompt!r} does not call the adapter {adapters[0]!r}, so the base would draw alone; "
                f"add <lora:{adapters[0]}:1> to it, or <lora:{adapters[0]}:0> if that is meant"
            )
        return prompt

    def _embed(self, prompt: Prompt) -> Tensor:
        """Negative and positive prompt [2, N, D], kept from call to call while the text encoder stays the same."""
        state = self.model.text_state()
        if state is None:
            self._embedded = None
            return self.model.embed([self.negative_prompt, prompt.words])
        key = (self.negative_prompt, prompt.words, state)
        if self._embedded is None or self._embedded[0] != key:
            self._embedded = (key, self.model.embed([self.negative_prompt, prompt.words]))
        return self._embedded[1]

    def _note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            log.warning(text)
