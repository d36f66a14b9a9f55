"""A latent diffusion model that reads a picture beside the noise: its first convolution widened, all else unchanged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from geoseg.diffusion.codec import Codec
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.diffusion.objectives import PREDICTION_TYPES, Objective
from geoseg.palette import SOFTNESS, Palette, separated_palette

FINETUNE = ("lora", "full", "conv_in")
"""What is trained of the denoising network; the widened convolution always is."""

ORDERS = ("image_first", "target_first")
"""Which half of the widened convolution reads the picture; Marigold's checkpoints read it first."""


class ImageConditioned(nn.Module):
    """Draws the latent of a painted label map from noise, while it looks at the latent of the profile.

    The widened convolution has the base's weights twice, so that a network that is given the same latent in both halves
    starts as the base itself (``weight`` 0.5 and ``bias`` 1). Prompts are empty; the empty one is read once.

    Args:
        num_classes: K.
        base: what is adapted; it is changed in place.
        finetune: what is trained of the denoising network beside the widened convolution: "lora", an adapter that the
            method attaches to the part "unet"; "full", all of it; "conv_in", nothing.
        order: "image_first" or "target_first".
        weight: factor of the copied weights.
        bias: factor of the bias; 1 keeps it (Marigold), 0.5 halves it with the weights (Martin Garcia et al. 2024).
        prediction_type: what the network is taught to answer, "epsilon" or "v_prediction"; None keeps the base's.
        zero_snr: lets the noisiest time hold no signal at all (Lin et al. 2023, arXiv 2305.08891), as drawing starts
            from noise alone; needs "v_prediction".
        colours: K colours "#RRGGBB" that label maps are painted in; None takes ``separated_palette``. Those of the data
            set may not do: a border between two classes is drawn in colours between theirs.
        softness: temperature of the probabilities that are read from colours, see ``Palette``; None, for mattes and
            other continuous targets, reads mixtures of two colours as shares.
        even: side in pixels of the square over which probabilities are averaged; 1 averages none. None: 3 where a
            border may be read as a third class (``Palette.seams``), which leaves a line too thin for a mean; else 1.
        margin: smallest RMS distance (0..1 per channel) of a colour to the line between two others.

    Raises:
        ValueError: an unknown word, a base that reads a picture already, zero_snr for a network that predicts noise, or
            colours that lie too close to the line between two others.
    """

    empty: Tensor

    def __init__(
        self,
        num_classes: int,
        base: LatentDiffusion,
        finetune: str = "lora",
        order: str = "image_first",
        weight: float = 0.5,
        bias: float = 1.0,
        prediction_type: str | None = "v_prediction",
        zero_snr: bool = True,
        colours: Sequence[str] | None = None,
        softness: float | None = SOFTNESS,
        even: int | None = None,
        margin: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value, known in (("finetune", finetune, FINETUNE), ("order", order, ORDERS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if prediction_type not in (None, *PREDICTION_TYPES):
            raise ValueError(f"prediction_type must be {', '.join(PREDICTION_TYPES)} or null, got {prediction_type!r}")
        if even is not None and (even < 1 or not even % 2):
            raise ValueError(f"even must be an odd number of pixels, 1 for none, or null; got {even}")
        channels, own = base.codec.channels, base.unet.config.in_channels
        if own != channels:
            raise ValueError(
                f"the base reads {own} channels and its latents have {channels}, so it was widened before; give the "
                "text-conditioned base"
            )
        learnt = prediction_type or base.scheduler.config.get("prediction_type", "epsilon")
        if zero_snr and learnt == "epsilon":
            raise ValueError(
                "zero_snr=true asks for an answer where there is nothing but noise, and a network that predicts the "
                "noise says nothing about the picture there; use prediction_type=v_prediction, or zero_snr=false"
            )
        self.palette = Palette(separated_palette(num_classes) if colours is None else colours, softness)
        if self.palette.num_classes != num_classes:
            raise ValueError(f"colours: {self.palette.num_classes} for {num_classes} classes; give one per class")
        self.palette.check_separated(margin)
        self.num_classes, self.finetune, self.order = num_classes, finetune, order
        self.even = even if even is not None else 3 if self.palette.seams else 1
        self.base = base
        _widen(base, weight, bias)
        base.unet.requires_grad_(finetune == "full")
        base.unet.conv_in.requires_grad_(True)
        schedule = DDPMScheduler.from_config(
            base.scheduler.config, prediction_type=learnt, rescale_betas_zero_snr=zero_snr
        )
        self.objective = Objective.of(schedule.config)
        with torch.no_grad():
            self.register_buffer("empty", base.embed([""]).float(), persistent=False)  # [1, N, D]

    @property
    def codec(self) -> Codec:
        """The base's autoencoder."""
        return self.base.codec

    @property
    def multiple(self) -> int:
        """Sides of a picture must be multiples of this."""
        return self.base.multiple

    @property
    def unet(self) -> nn.Module:
        """The denoising network."""
        return self.base.unet

    def read(self, painted: Tensor) -> Tensor:
        """Class probabilities [B, K, H, W] of what was painted, [B, 3, H, W] in [0, 1], each that of its square."""
        probs = self.palette.decode(painted)
        if self.even == 1:
            return probs
        return avg_pool2d(pad(probs, (self.even // 2,) * 4, mode="replicate"), self.even, stride=1)

    def parts(self) -> dict[str, nn.Module]:
        """What an adapter may be attached to; nothing where the network is trained, or kept, as it is."""
        return {"unet": self.base.unet} if self.finetune == "lora" else {}

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """What is trained: "conv_in", and "unet" where more than that is.

        Raises:
            ValueError: an adapter is announced and none is attached.
        """
        widened = list(self.base.unet.conv_in.parameters())
        if self.finetune == "conv_in":
            return {"conv_in": widened}
        own = {id(parameter) for parameter in widened}
        rest = [p for p in self.base.unet.parameters() if p.requires_grad and id(p) not in own]
        if not rest:
            raise ValueError(
                "finetune=lora, but no adapter is attached; give the method one, or choose finetune=conv_in to train "
                "the widened convolution alone"
            )
        return {"unet": rest, "conv_in": widened}

    def joined(self, image: Tensor, noisy: Tensor) -> Tensor:
        """What the widened convolution reads, [B, 2C, h, w]: the latents of picture and target, [B, C, h, w] each."""
        return torch.cat([image, noisy] if self.order == "image_first" else [noisy, image], dim=1)

    def denoise(self, image: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """The network's answer; what it means is the scheduler's prediction type.

        Args:
            image: float [B, C, h, w], latents of the profiles.
            noisy: float [B, C, h, w], latents of painted label maps with noise.
            time: int64 [B], or one number for the whole batch.

        Returns:
            float32 [B, C, h, w].
        """
        return self.base.denoise(self.joined(image, noisy), time, self.empty.expand(len(noisy), -1, -1))


def _widen(base: LatentDiffusion, weight: float, bias: float) -> None:
    old = base.unet.conv_in
    new = nn.Conv2d(
        2 * old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None
    ).to(old.weight)
    with torch.no_grad():
        new.weight.copy_(weight * torch.cat([old.weight, old.weight], dim=1))
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(bias * old.bias)
    base.unet.conv_in = new.train(old.training)
    base.unet.register_to_config(in_channels=new.in_channels)
