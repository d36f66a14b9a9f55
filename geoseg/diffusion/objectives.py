"""The training side of a noise schedule: how noisy a latent is made, what the network must answer, what it counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

PREDICTION_TYPES = ("epsilon", "v_prediction")


class Objective(nn.Module):
    """What a denoising network is trained to answer.

    Args:
        alphas_cumprod: float [T] in (0, 1), the share of signal variance left at each time, falling.
        prediction_type: "epsilon" (the noise) or "v_prediction" (the velocity, Salimans and Ho 2022, arXiv
            2202.00512).
        min_snr_gamma: None weighs all times alike; 5 is the value of Hang et al. 2023 (arXiv 2303.09556).

    Raises:
        ValueError: a prediction type that is not known, or a number out of range.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        alphas_cumprod: Tensor,
        prediction_type: str,
        min_snr_gamma: float | None = None,
    ) -> None:
        super().__init__()
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
    def of(cls, config: Mapping[str, Any], min_snr_gamma: float | None = None) -> Objective:
        """The objective that a checkpoint was trained with.

        Args:
            config: configuration of its scheduler (betas, number of times, prediction type).
            min_snr_gamma: see the class.
        """
        schedule = DDPMScheduler.from_config(dict(config))
        return cls(schedule.alphas_cumprod, config.get("prediction_type", "epsilon"), min_snr_gamma)

    @property
    def num_times(self) -> int:
        """T, the number of noise levels; 1000 for Stable Diffusion."""
        return len(self.alphas_cumprod)

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
