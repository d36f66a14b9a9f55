"""Pictures to latents and back: the autoencoder of a latent diffusion model, with its conventions hidden."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor

log = logging.getLogger("geoseg")


class Codec:
    """Reads and writes the latents of an ``AutoencoderKL``.

    The autoencoder always runs outside autocast, in the type of its own weights. Weights in half precision are turned
    into float32 where the checkpoint asks for it (``force_upcast``) or where a result is not finite; what is not finite
    in float32 either raises ``OverflowError``, for whoever knows which files were meant to name them.

    Args:
        vae: the autoencoder; its configuration gives scale, shift and size factor.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae

    @property
    def factor(self) -> int:
        """How many pixels one latent cell covers in each direction; 8 for Stable Diffusion."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def channels(self) -> int:
        """Channels of a latent; 4 for Stable Diffusion."""
        return int(self.vae.config.latent_channels)

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution of latents that a picture stands for.

        Args:
            image: float [B, 3, H, W] in [0, 1]; H and W must be multiples of ``factor``.

        Returns:
            mean and standard deviation, float32 [B, 4, h, w] each, scaled as the diffusion model expects.

        Raises:
            ValueError: the picture has the wrong number of channels or a side that does not divide.
            OverflowError: the latent would hold inf or nan.
        """
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % self.factor or image.shape[3] % self.factor:
            raise ValueError(
                f"the autoencoder reads [B, 3, H, W] with sides that are multiples of {self.factor}, "
                f"got {list(image.shape)}; expand grey pictures to 3 channels and pad with geoseg.crops.pad_to_multiple"
            )
        parameters = self._finite(self._run(self._encode, 2 * image - 1))
        mean, logvar = parameters.chunk(2, dim=1)
        # the clamp is part of the model: diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
        std = (0.5 * logvar.clamp(-30.0, 20.0)).exp()
        return (mean - self._shift) * self._scale, std * self._scale

    def encode(self, image: Tensor) -> Tensor:
        """The most likely latent of a picture, float32 [B, 4, h, w]; arguments and errors as in ``moments``."""
        return self.moments(image)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """Draws a latent.

        Args:
            latent: float [B, 4, h, w], scaled as ``encode`` returns it.

        Returns:
            float32 [B, 3, H, W] in [0, 1].

        Raises:
            ValueError: the latent has the wrong number of channels.
            OverflowError: the latent or the picture holds inf or nan.
        """
        if not bool(latent.isfinite().all()):
            raise OverflowError(
                "the latent to be drawn holds inf or nan, so the denoising network overflowed; use "
                "trainer.precision=32-true or bf16-mixed, a lower guidance or a lower learning rate"
            )
        return self._finite(self.decode_for_loss(latent)).clamp(0, 1)

    def decode_for_loss(self, latent: Tensor) -> Tensor:
        """Draws a latent for a loss: what lies beyond 0 and 1 stays, since clipping has no gradient there.

        Inf and nan stay too, and nothing waits for the device to look for them: a training leaves such a step out.

        Args:
            latent: float [B, 4, h, w], scaled as ``encode`` returns it.

        Returns:
            float32 [B, 3, H, W], about [0, 1].

        Raises:
            ValueError: the latent has the wrong number of channels.
        """
        if latent.ndim != 4 or latent.shape[1] != self.channels:
            raise ValueError(f"the autoencoder draws latents [B, {self.channels}, h, w], got {list(latent.shape)}")
        return self._run(self._decode, latent.float() / self._scale + self._shift) / 2 + 0.5

    @property
    def _scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def _shift(self) -> float:
        return float(self.vae.config.shift_factor or 0.0)

    def _encode(self, x: Tensor) -> Tensor:
        return self.vae.encode(x).latent_dist.parameters

    def _decode(self, x: Tensor) -> Tensor:
        return self.vae.decode(x, return_dict=False)[0]

    def _run(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """One direction of the autoencoder in a type that works, where there is one; float32 in any case comes back."""
        if self._half and self.vae.config.force_upcast:
            self.vae.float()
        with torch.autocast(x.device.type, enabled=False):
            y = function(x.to(self._dtype))
            if self._half and bool(x.isfinite().all()) and not bool(y.isfinite().all()):
                log.warning("the autoencoder overflowed in %s and runs in float32 from here on", self._dtype)
                self.vae.float()
                y = function(x.to(self._dtype))
        return y.float()

    def _finite(self, y: Tensor) -> Tensor:
        if not bool(y.isfinite().all()):
            raise OverflowError(
                f"the autoencoder gives inf or nan in {self._dtype}; its weights are damaged, or not meant for such "
                "pictures"
            )
        return y

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    @property
    def _half(self) -> bool:
        return self._dtype == torch.float16
