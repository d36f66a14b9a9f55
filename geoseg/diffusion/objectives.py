"""The training side of a noise schedule: how noisy a latent is made, what the network must answer, what it counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

PREDICTION_TYPES = ("epsilon", "v_prediction")

TIMES = ("uniform", "logit_normal", "shifted")
"""Ways to choose how noisy a training latent is made: all times alike; the middle more often (Esser et al. 2024, arXiv
2403.03206, section 3.1); or that, moved to noisier times the larger a picture is (kohya-ss/sd-scripts' flux_shift)."""

PACKED = 2
"""Cells of a latent, in each direction, that FLUX reads as one place."""


@dataclass(frozen=True)
class Steps:
    """The times of a schedule with numbered noise levels, as of Stable Diffusion.

    Attributes:
        count: how many; time 0 is the least noisy, ``count - 1`` the noisiest.
    """

    count: int

    def drawn(self, generator: torch.Generator, cells: int) -> Tensor:
        """One of them at random, int64 []; the ``cells`` of the latent do not matter."""
        return torch.randint(self.count, (), generator=generator)

    def at(self, share: float) -> Tensor:
        """The one at a share of the schedule, int64 []; share in [0, 1), 0 the least noisy."""
        return torch.tensor(int(share * self.count))


@dataclass(frozen=True)
class FlowTimes:
    """The times of a flow from pictures to noise: ``count`` times the share of noise, above 0 and at most ``count``.

    Attributes:
        count: how many the schedule has; networks are told times on this scale.
        way: one of ``TIMES``.
        shift: moves all times by this factor of their odds, as the schedule of the checkpoint does; 1 for none.
        base_shift, max_shift: logarithms of the factor at ``base_places`` and ``max_places``, see ``log_shift``.
        base_places, max_places: numbers of places that a picture is read in.
    """

    count: int
    way: str
    shift: float
    base_shift: float
    max_shift: float
    base_places: int
    max_places: int

    def drawn(self, generator: torch.Generator, cells: int) -> Tensor:
        """One at random, float32 [].

        Args:
            generator: gives it.
            cells: of the latent, h * w; only "shifted" depends on them.
        """
        if self.way == "shifted":
            share = torch.sigmoid(torch.randn((), generator=generator))
            return self.count * shifted(share, math.exp(self.log_shift(cells // PACKED**2)))
        if self.way == "uniform":
            number = torch.randint(self.count, (), generator=generator)
        else:
            number = (torch.sigmoid(torch.randn((), generator=generator)) * self.count).long().clamp(max=self.count - 1)
        return self._numbered(number)

    def at(self, share: float) -> Tensor:
        """The one at a share of the schedule, float32 []; share in [0, 1), 0 the least noisy."""
        return self._numbered(torch.tensor(int(share * self.count)))

    def log_shift(self, places: int) -> float:
        """Logarithm of the factor for a picture of so many places, along a line: larger pictures need more noise."""
        slope = (self.max_shift - self.base_shift) / (self.max_places - self.base_places)
        return self.base_shift + slope * (places - self.base_places)

    def _numbered(self, number: Tensor) -> Tensor:
        return self.count * shifted((number + 1) / self.count, self.shift)


def shifted(share: Tensor, factor: float) -> Tensor:
    """Shares of noise in (0, 1] whose odds are ``factor`` times as large (arXiv 2403.03206, equation 23)."""
    return factor * share / (1 + (factor - 1) * share)


class Objective(nn.Module):
    """What a denoising network is trained to answer.

    Args:
        alphas_cumprod: float [T] in [0, 1), the share of signal variance left at each time, falling.
        prediction_type: "epsilon" (the noise) or "v_prediction" (the velocity, Salimans and Ho 2022, arXiv
            2202.00512).
        min_snr_gamma: None weighs all times alike; 5 is the value of Hang et al. 2023 (arXiv 2303.09556).
        times: "uniform"; ``FlowMatching`` knows other ways.

    Raises:
        ValueError: a prediction type that is not known, or a number out of range.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        alphas_cumprod: Tensor,
        prediction_type: str,
        min_snr_gamma: float | None = None,
        times: str = "uniform",
    ) -> None:
        super().__init__()
        if times != "uniform":
            raise ValueError(f"times={times!r} is for models of flow matching such as FLUX; use uniform for this one")
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type {prediction_type!r} is not known; use a checkpoint whose scheduler states one of "
                f"{', '.join(PREDICTION_TYPES)}"
            )
        if min_snr_gamma is not None and min_snr_gamma <= 0:
            raise ValueError(f"min_snr_gamma must be above 0, got {min_snr_gamma}; null switches the weighting off")
        self.register_buffer("alphas_cumprod", alphas_cumprod.detach().float().clone(), persistent=False)
        self.prediction_type = prediction_type
        self.min_snr_gamma = min_snr_gamma

    @classmethod
    def of(cls, config: Mapping[str, Any], min_snr_gamma: float | None = None, times: str = "uniform") -> Objective:
        """The objective that a checkpoint was trained with.

        Args:
            config: configuration of its scheduler (betas, number of times, prediction type).
            min_snr_gamma: see the class.
            times: see the class.
        """
        schedule = DDPMScheduler.from_config(dict(config))
        return cls(schedule.alphas_cumprod, config.get("prediction_type", "epsilon"), min_snr_gamma, times)

    @property
    def num_times(self) -> int:
        """T, the number of noise levels; 1000 for Stable Diffusion."""
        return len(self.alphas_cumprod)

    @property
    def times(self) -> Steps:
        """The times that a latent may be noised to."""
        return Steps(self.num_times)

    def add_noise(self, latent: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """sqrt(a) latent + sqrt(1 - a) noise, with a = ``alphas_cumprod[time]``.

        Args:
            latent: float [B, C, h, w].
            noise: float [B, C, h, w], standard normal.
            time: int64 [B] in 0..T-1; larger is noisier.
        """
        signal, spread = self._amounts(latent, time)
        return signal * latent + spread * noise

    def target(self, latent: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """What the network should answer to ``add_noise(latent, noise, time)``, float [B, C, h, w]."""
        if self.prediction_type == "epsilon":
            return noise
        signal, spread = self._amounts(latent, time)
        return signal * noise - spread * latent

    def estimates(self, noisy: Tensor, answer: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """The latent and the noise that an answer stands for, float [B, C, h, w] each.

        Args:
            noisy: float [B, C, h, w], what the network was shown.
            answer: float [B, C, h, w], what it said.
            time: int64 [B]; where no signal is left, the answer must be the velocity.
        """
        signal, spread = self._amounts(noisy, time)
        if self.prediction_type == "epsilon":
            return (noisy - spread * answer) / signal, answer
        return signal * noisy - spread * answer, spread * noisy + signal * answer

    def weight(self, time: Tensor) -> Tensor:
        """How much the squared error at each time counts, float32 [B], arXiv 2303.09556 section 3.4.

        With s the signal-to-noise ratio a / (1 - a): min(s, gamma) / s where the network predicts the noise, and
        min(s, gamma) / (s + 1) where it predicts the velocity.
        """
        if self.min_snr_gamma is None:
            return torch.ones(len(time), device=time.device)
        alpha = self.alphas_cumprod[time]
        ratio = alpha / (1 - alpha)
        if self.prediction_type == "epsilon":
            return (self.min_snr_gamma / ratio).clamp(max=1.0)  # the same, and defined where no signal is left
        return ratio.clamp(max=self.min_snr_gamma) / (ratio + 1)

    def _amounts(self, latent: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas_cumprod[time].view(-1, *[1] * (latent.ndim - 1))
        return alpha.sqrt().to(latent.dtype), (1 - alpha).sqrt().to(latent.dtype)


class FlowMatching(nn.Module):
    """Teaches a network the straight way from a latent to noise (Lipman et al. 2022, arXiv 2210.02747), as FLUX.

    Args:
        times: how noisy latents are made.
    """

    def __init__(self, times: FlowTimes) -> None:
        super().__init__()
        self.times = times

    @classmethod
    def of(cls, config: Mapping[str, Any], min_snr_gamma: float | None = None, times: str = "uniform") -> FlowMatching:
        """The objective that a checkpoint was trained with.

        Args:
            config: configuration of its ``FlowMatchEulerDiscreteScheduler``.
            min_snr_gamma: None; there is no such weight here.
            times: one of ``TIMES``. "uniform" and "logit_normal" take the times of the checkpoint's own schedule, as
                diffusers' train_dreambooth_lora_flux.py with ``--weighting_scheme`` none and logit_normal.

        Raises:
            ValueError: a word that is not known, or a weight.
        """
        if times not in TIMES:
            raise ValueError(f"times must be one of {', '.join(TIMES)}, got {times!r}")
        if min_snr_gamma is not None:
            raise ValueError(
                f"min_snr_gamma={min_snr_gamma} weighs the noise levels of Stable Diffusion, and this model is trained "
                "by flow matching; set it to null, and choose noise levels with times"
            )
        own = {**FlowMatchEulerDiscreteScheduler().config, **config}
        return cls(
            FlowTimes(
                count=own["num_train_timesteps"],
                way=times,
                shift=1.0 if own["use_dynamic_shifting"] else own["shift"],
                base_shift=own["base_shift"],
                max_shift=own["max_shift"],
                base_places=own["base_image_seq_len"],
                max_places=own["max_image_seq_len"],
            )
        )

    def add_noise(self, latent: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """(1 - s) latent + s noise, with s the share of noise.

        Args:
            latent: float [B, C, h, w].
            noise: float [B, C, h, w], standard normal.
            time: float [B], s times ``times.count``.
        """
        share = (time / self.times.count).view(-1, *[1] * (latent.ndim - 1)).to(latent.dtype)
        return (1 - share) * latent + share * noise

    def target(self, latent: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """What the network should answer, float [B, C, h, w]: the way from the latent to the noise, at any time."""
        return noise - latent

    def weight(self, time: Tensor) -> Tensor:
        """How much the squared error at each time counts, float32 [B]: all alike."""
        return torch.ones(len(time), device=time.device)
