"""Sampling: from noise, or from a picture with noise added, back to a latent."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from geoseg.crops import starts, window

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noisy [B, C, h, w], time [] or [B], condition [B, N, D]) to the network's answer [B, 4, h, w]."""


def steps_run(steps: int, strength: float) -> int:
    """How many of ``steps`` are run at a strength: min(int(steps * strength), steps), as diffusers and the web UI.

    >>> steps_run(30, 0.53), steps_run(30, 1.0), steps_run(30, 0.01)
    (15, 30, 0)
    """
    return min(int(steps * strength), steps)


def windowed(denoise: Denoiser, side: int, overlap: float = 0.25, batch: int = 32) -> Denoiser:
    """Lets a network denoise latents larger than the square it was made for (MultiDiffusion, Bar-Tal et al. 2023).

    At every step overlapping windows are denoised and their answers blended, so that a large picture is drawn as one:
    one field of noise, no seams, and neighbours that agree.

    Args:
        denoise: the network.
        side: side of its square in latent cells; smaller latents are passed on as they are.
        overlap: smallest share of its side that a window has in common with the next, 0 <= overlap < 1.
        batch: windows per call of the network, from one picture or several.
    """

    def blended(noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        height, width = noisy.shape[-2:]
        if height <= side and width <= side:
            return denoise(noisy, time, condition)
        count, high, wide = len(noisy), min(side, height), min(side, width)
        places = [(y, x) for y in starts(height, high, overlap) for x in starts(width, wide, overlap)]
        cut = torch.cat([noisy[..., y : y + high, x : x + wide] for y, x in places])  # [T * B, C, high, wide]
        times, conditions = time.expand(count).repeat(len(places)), condition.repeat(len(places), 1, 1)
        parts = zip(cut.split(batch), times.split(batch), conditions.split(batch), strict=True)
        answers = torch.cat([denoise(*part) for part in parts]).split(count)
        share = window(high, wide).to(noisy)
        # a network that reads a picture beside the noise answers in fewer channels than it is given
        total, weight = noisy.new_zeros(count, answers[0].shape[1], height, width), torch.zeros_like(noisy[:1, :1])
        for (y, x), answer in zip(places, answers, strict=True):
            total[..., y : y + high, x : x + wide] += share * answer
            weight[..., y : y + high, x : x + wide] += share
        return total / weight

    return blended


def img2img(
    denoise: Denoiser,
    scheduler: Any,
    latent: Tensor,
    generator: Sequence[torch.Generator],
    condition: Tensor,
    negative: Tensor | None = None,
    guidance: float = 1.0,
    steps: int = 30,
    strength: float = 0.5,
    on_step: Callable[[float], None] | None = None,
) -> Tensor:
    """Redraws latents: adds noise for the last part of a schedule, then takes it away step by step (SDEdit).

    One call of the network serves the whole batch and both halves of classifier-free guidance. Nothing waits for the
    device between steps.

    Args:
        denoise: the network.
        scheduler: any diffusers scheduler, new or unused; it holds state while it runs.
        latent: float32 [B, 4, h, w], scaled as the network expects.
        generator: one per image, on the CPU; gives first its noise, then what its steps draw.
        condition: [B, N, D] or [1, N, D].
        negative: the same for the unconditional half; needed where guidance is above 1.
        guidance: 1 or less takes the condition alone; above, the answer is moved away from the unconditional one by
            this factor (Ho and Salimans 2022, arXiv 2207.12598).
        steps: length of the whole schedule.
        strength: share of it that is run, (0, 1]; 1 forgets the latent.
        on_step: told after each call of the network which share of the whole it was, 1 in all.

    Returns:
        float32 [B, 4, h, w]; ``latent`` itself where the strength leaves no step to run.

    Raises:
        ValueError: guidance without a negative condition.
    """
    _check_guidance(guidance, negative)
    batch, run = len(latent), steps_run(steps, strength)
    if run < 1:
        if on_step is not None:
            on_step(1.0)
        return latent
    # on the CPU, where a scheduler can look at its times without stopping the device
    scheduler.set_timesteps(steps, device="cpu")
    start = (steps - run) * scheduler.order
    times = scheduler.timesteps[start:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    noise = torch.stack([torch.randn(latent.shape[1:], generator=one) for one in generator]).to(latent)
    noisy = scheduler.add_noise(latent, noise, times[:1].repeat(batch))
    return _denoised(denoise, scheduler, noisy, times, generator, condition, negative, guidance, on_step)


def from_noise(
    denoise: Denoiser,
    scheduler: Any,
    noise: Tensor,
    generator: Sequence[torch.Generator],
    condition: Tensor,
    negative: Tensor | None = None,
    guidance: float = 1.0,
    steps: int = 30,
    on_step: Callable[[float], None] | None = None,
) -> Tensor:
    """Draws latents from noise alone, as ``StableDiffusionPipeline`` does; calls and guidance as in ``img2img``.

    Args:
        denoise: the network.
        scheduler: any diffusers scheduler, new or unused.
        noise: float32 [B, 4, h, w], standard normal; the scheduler says how much of it there is at first.
        generator: one per image, on the CPU; gives what its steps draw.
        condition: [B, N, D] or [1, N, D].
        negative: the same for the unconditional half; needed where guidance is above 1.
        guidance: see ``img2img``.
        steps: length of the schedule, all of which is run.
        on_step: see ``img2img``.

    Returns:
        float32 [B, 4, h, w].

    Raises:
        ValueError: guidance without a negative condition.
    """
    _check_guidance(guidance, negative)
    scheduler.set_timesteps(steps, device="cpu")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    noisy, times = noise * scheduler.init_noise_sigma, scheduler.timesteps
    return _denoised(denoise, scheduler, noisy, times, generator, condition, negative, guidance, on_step)


def _check_guidance(guidance: float, negative: Tensor | None) -> None:
    if guidance > 1 and negative is None:
        raise ValueError(f"guidance {guidance} needs a negative condition; embed the empty prompt for it")


def _denoised(
    denoise: Denoiser,
    scheduler: Any,
    noisy: Tensor,
    times: Tensor,
    generator: Sequence[torch.Generator],
    condition: Tensor,
    negative: Tensor | None,
    guidance: float,
    on_step: Callable[[float], None] | None,
) -> Tensor:
    """Takes the noise of latents away, from the first of these times of the scheduler to the last."""
    batch, guided = len(noisy), guidance > 1
    condition = condition.expand(batch, -1, -1)
    if guided and negative is not None:
        condition = torch.cat([negative.expand(batch, -1, -1), condition])
    options = {"generator": list(generator)} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for time, on_device in zip(times, times.to(noisy.device), strict=True):
        model_input = scheduler.scale_model_input(torch.cat([noisy, noisy]) if guided else noisy, time)
        answer = denoise(model_input, on_device, condition)
        if guided:
            without, with_ = answer.chunk(2)
            answer = without + guidance * (with_ - without)
        noisy = scheduler.step(answer, time, noisy, **options, return_dict=False)[0]
        if on_step is not None:
            on_step(1 / len(times))
    return noisy
