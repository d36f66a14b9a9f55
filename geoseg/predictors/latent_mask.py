"""Labels by drawing them: a diffusion model that sees the profile paints its label map from noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geoseg import progress
from geoseg.crops import pad_to_multiple
from geoseg.diffusion.image_conditioned import ImageConditioned
from geoseg.diffusion.sampling import Denoiser, windowed
from geoseg.types import Prediction


class LatentMask(nn.Module):
    """Paints a label map from noise in a few steps and reads it with the model's palette.

    Args:
        model: an image-conditioned diffusion model.
        steps: of denoising, DDIM without further noise (Song et al. 2021, arXiv 2010.02502, equation 12); times are
            spread evenly from the noisiest to a clean latent, as diffusers spreads "trailing" ones.
        noise: start from noise; off: from none, so that every draw is the same, as the one-step variant is trained.
        tile: side in pixels of the square the network was trained on; larger profiles are denoised in overlapping
            windows, see ``windowed``. None shows it every profile whole.
        overlap: smallest share of its side that a window has in common with the next, 0 <= overlap < 1.
        batch: windows per call of the network, and pictures per call of the decoder.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        model: ImageConditioned,
        steps: int = 4,
        noise: bool = True,
        tile: int | None = None,
        overlap: float = 0.25,
        batch: int = 32,
    ) -> None:
        super().__init__()
        if not 1 <= steps <= model.objective.num_times:
            raise ValueError(f"steps must lie between 1 and {model.objective.num_times}, got {steps}")
        if not noise and steps != 1:
            raise ValueError(
                f"steps={steps} with noise=false: from no noise a network answers in one step, as the one-step variant "
                "is trained; set steps=1, or noise=true for a network that was trained to denoise"
            )
        if tile is not None and (tile < model.multiple or tile % model.multiple):
            raise ValueError(f"tile must be a multiple of {model.multiple} for this model, got {tile}; null: no tiles")
        if not 0 <= overlap < 1 or batch < 1:
            raise ValueError(f"wanted 0 <= overlap < 1 and batch >= 1, got overlap={overlap}, batch={batch}")
        self.model, self.num_classes = model, model.num_classes
        self.steps, self.noise = steps, noise
        self.tile, self.overlap, self.batch = tile, overlap, batch

    @torch.no_grad()
    def predict(self, image: Tensor, generator: Sequence[torch.Generator]) -> Prediction:
        """Labels a batch.

        Args:
            image: float [B, 3, H, W] or [B, 1, H, W] in [0, 1]; any size, padded to what the model reads and cut back.
                Neighbours that are the same picture are encoded once.
            generator: one per image, on the CPU; gives the noise that its label map is drawn from.

        Returns:
            probs [B, K, H, W], and ``painted``, the picture they were read from.

        Raises:
            ValueError: the wrong number of generators or channels.
        """
        if len(generator) != len(image):
            raise ValueError(f"wanted one generator per image, got {len(generator)} for {len(image)} images")
        if image.shape[1] not in (1, 3):
            raise ValueError(f"profiles have 1 or 3 channels, got {list(image.shape)}")
        height, width = image.shape[2:]
        pictures, which = torch.unique_consecutive(image, dim=0, return_inverse=True)
        pictures = pad_to_multiple(pictures.expand(-1, 3, -1, -1), self.model.multiple)
        shown = torch.cat([self.model.codec.encode(some) for some in pictures.split(self.batch)])[which]
        if self.noise:
            start = torch.stack([torch.randn(shown.shape[1:], generator=one) for one in generator]).to(shown)
        else:
            start = torch.zeros_like(shown)
        latent = self._drawn(shown, start)
        painted = torch.cat([self.model.codec.decode(some) for some in latent.split(self.batch)])
        painted = painted[..., :height, :width]
        return Prediction(probs=self.model.read(painted), painted=painted)

    def rehearse(self, picture: Tensor) -> None:
        """One step of ``predict`` for pictures without content, for ``geoseg.memory``."""
        latent = self.model.codec.encode(pad_to_multiple(picture.expand(-1, 3, -1, -1), self.model.multiple))
        self.model.denoise(latent, latent, torch.zeros((), dtype=torch.int64))
        self.model.codec.decode(latent)

    def _drawn(self, shown: Tensor, latent: Tensor) -> Tensor:
        """Latents of painted label maps [B, C, h, w] beside those of their profiles, from what they start as."""
        network: Denoiser = self.model.base.denoise
        if self.tile is not None:
            network = windowed(network, self.tile // self.model.codec.factor, self.overlap, self.batch)
        objective = self.model.objective
        # as many numbers as steps, whether or not they divide the schedule; the last step goes to a clean latent
        spread = torch.linspace(objective.num_times, 0, self.steps + 1, dtype=torch.float64)[:-1]
        times = (spread.round().long() - 1).to(latent.device).unbind()
        for now, then in zip(times, (*times[1:], None), strict=True):
            answers = [
                network(self.model.joined(image, noisy), now, self.model.empty.expand(len(noisy), -1, -1))
                for image, noisy in zip(shown.split(self.batch), latent.split(self.batch), strict=True)
            ]
            latent, noise = objective.estimates(latent, torch.cat(answers), now[None])
            if then is not None:
                latent = objective.add_noise(latent, noise, then[None])
            progress.advance("generation", len(latent) / self.steps)
        return latent
