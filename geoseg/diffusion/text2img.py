"""Pictures from words: what a latent diffusion model draws when it is shown nothing but noise and a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from geoseg import progress
from geoseg.diffusion.sampling import from_noise

if TYPE_CHECKING:
    from geoseg.diffusion.latent_diffusion import LatentDiffusion


def text2img(
    model: LatentDiffusion,
    prompts: Sequence[str],
    generators: Sequence[torch.Generator],
    size: tuple[int, int],
    steps: int = 30,
    guidance: float = 7.0,
    negative: str = "",
    scheduler: Callable[[Any], Any] | None = None,
) -> Tensor:
    """Draws a batch of pictures, each from its own prompt and its own generator alone.

    A picture is the same in any batch, but for rounding. Every prompt is embedded once, see
    ``LatentDiffusion.embedded``; one call of the network serves the batch and both halves of the guidance.

    Args:
        model: a model of the Stable Diffusion family, with its adapters attached.
        prompts: B prompts; tags such as ``<lora:vai1:1>`` have no meaning here.
        generators: one per picture, on the CPU; gives first its noise, then what its steps draw.
        size: H and W in pixels, multiples of ``model.multiple``.
        steps: length of the schedule.
        guidance: classifier-free guidance; 1 or less is none.
        negative: what to move away from.
        scheduler: makes a scheduler from the model's scheduler configuration, such as
            ``diffusers.EulerDiscreteScheduler.from_config``; None makes the one that the configuration names.

    Returns:
        float32 [B, 3, H, W] in [0, 1].

    Raises:
        ValueError: a number out of range, or not one generator per prompt.
    """
    _check(len(prompts), len(generators), size, steps, guidance, model.multiple)
    made = (scheduler or type(model.scheduler).from_config)(model.scheduler.config)
    codec = model.codec
    shape = (codec.channels, size[0] // codec.factor, size[1] // codec.factor)
    with torch.no_grad():
        noise = torch.stack([torch.randn(shape, generator=one) for one in generators]).to(model.device)
        condition = model.embedded(prompts)
        latent = from_noise(
            model.denoise,
            made,
            noise,
            generators,
            condition,
            model.embedded([negative]) if guidance > 1 else None,
            guidance,
            steps,
            on_step=lambda share: progress.advance("generation", len(prompts) * share),
        )
        return codec.decode(latent)


def _check(prompts: int, generators: int, size: tuple[int, int], steps: int, guidance: float, multiple: int) -> None:
    if prompts != generators or not prompts:
        raise ValueError(f"one generator per prompt is needed, got {generators} for {prompts} prompts")
    if any(side < multiple or side % multiple for side in size):
        raise ValueError(
            f"this model draws pictures whose sides are multiples of {multiple}, got {size[0]} x {size[1]}"
        )
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= guidance < float("inf"):
        raise ValueError(f"guidance must be a number from 0 on, got {guidance}; 1 switches it off")
