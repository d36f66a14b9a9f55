"""What a denoising network attends to: the self-attention maps of one step, all resolutions as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.functional import interpolate

from geoseg.crops import scaled_to_area
from geoseg.diffusion.latent_diffusion import LatentDiffusion

ROOM = 2**26
"""Attention weights computed at a time, 256 MiB of float32."""


class AttentionMaps(nn.Module):
    """Where every place of a picture looks while one denoising step is made of it, as DiffSeg does (arXiv 2308.12469).

    The picture's latent is shown to the network as if it were that noisy, without noise being added, and under one
    prompt. Every self-attention layer says for each of its places how much it looks at each other place; heads and
    layers of one resolution are averaged, maps of lower resolution are enlarged, and the resolutions averaged with
    weights that are proportional to their sides. Layers, heads and resolutions are those that the network has.

    Args:
        model: a latent diffusion model.
        side: pictures are scaled to the area of a square of this side in pixels, the one that the network was trained
            on; None shows them as they are. Their sides are rounded to what the network reads.
        time: timestep of the one step; published: 300.
        prompt: published: the empty one.
        strides: pixels that a place covers in each direction, in the scaled picture, for each resolution that is used,
            such as [8, 16, 32, 64] for all of Stable Diffusion's; None uses those that the network has.
        batch: pictures per call of the network, whose maps are held at the same time.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        side: int | None = None,
        time: int = 300,
        prompt: str = "",
        strides: Sequence[int] | None = None,
        batch: int = 4,
    ) -> None:
        super().__init__()
        steps = int(model.scheduler.config.num_train_timesteps)
        if not 0 <= time < steps:
            raise ValueError(f"time={time}: a timestep of this model is wanted, 0 to {steps - 1}")
        if batch < 1 or (side is not None and side < 1):
            raise ValueError(f"wanted batch >= 1 and side >= 1 or null, got batch={batch}, side={side}")
        if strides is not None and not strides:
            raise ValueError("strides is an empty list; name a resolution, or give null for all")
        model.check_prompt(prompt)
        self.model, self.side, self.time, self.prompt, self.batch = model, side, time, prompt, batch
        self.strides = None if strides is None else sorted(set(strides))
        self._embedded: tuple[Any, Tensor] | None = None

    @torch.inference_mode()
    def forward(self, image: Tensor) -> Iterator[Tensor]:
        """The maps of one picture after the other.

        Args:
            image: float [B, 1 or 3, H, W] in [0, 1].

        Yields:
            float32 [h, w, h * w] on the grid of the finest resolution that is used: for each place, how much it looks
            at each place, a distribution that sums to 1.

        Raises:
            ValueError: the pictures have two or more than three channels, or the network lacks a resolution.
        """
        if image.ndim != 4 or image.shape[1] not in (1, 3):
            raise ValueError(f"pictures are [B, 3, H, W] or grey [B, 1, H, W], got {list(image.shape)}")
        height, width = scaled_to_area((image.shape[2], image.shape[3]), self.side, self.model.multiple)
        for some in image.expand(-1, 3, -1, -1).split(self.batch):
            if some.shape[-2:] != (height, width):
                some = interpolate(some, (height, width), mode="bilinear", antialias=True).clamp(0, 1)
            latent = self.model.codec.encode(some)
            with recorded(self.model.unet) as found:
                self.model.denoise(latent, self._time(latent), self._condition().expand(len(some), -1, -1))
            by_stride = self._chosen({_stride(n, height, width): maps for n, maps in found().items()})
            for i in range(len(some)):
                yield combined({s: maps[i] for s, maps in by_stride.items()}, (height, width))

    def _time(self, latent: Tensor) -> Tensor:
        return torch.tensor(self.time, device=latent.device)

    def _condition(self) -> Tensor:
        """The prompt's embedding [1, N, D], computed once for a place and type of the text encoder."""
        weight = self.model.text_encoder.get_input_embeddings().weight
        key = (weight.device, weight.dtype, torch.is_autocast_enabled(weight.device.type))
        if self._embedded is None or self._embedded[0] != key:
            self._embedded = (key, self.model.embed([self.prompt]))
        return self._embedded[1]

    def _chosen(self, maps: dict[int, Tensor]) -> dict[int, Tensor]:
        strides = sorted(maps) if self.strides is None else self.strides
        if not set(strides) <= maps.keys():
            raise ValueError(
                f"strides={strides}: the self-attention of this network has places of {sorted(maps)} pixels"
            )
        return {s: maps[s] for s in strides}


class Recorder:
    """Stands before an attention processor of diffusers and adds up what it attends to; the answer stays the same.

    Args:
        processor: the one that does the work.
        sums: gets, by number of places, the sum of maps [B, N, N] and how many they are.
    """

    def __init__(self, processor: Any, sums: dict[int, tuple[Tensor, int]]) -> None:
        self.processor, self.sums = processor, sums

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if encoder_hidden_states is None:
            self._record(attn, hidden_states)
        answer: Tensor = self.processor(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        return answer

    def _record(self, attn: Attention, hidden: Tensor) -> None:
        if hidden.ndim == 4:
            hidden = hidden.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden = attn.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
        # [B, heads, N, d]
        query, key = (attn.head_to_batch_dim(to(hidden), out_dim=4).float() for to in (attn.to_q, attn.to_k))
        images, heads, places, _ = query.shape
        if places not in self.sums:
            self.sums[places] = (query.new_zeros(images, places, places), 0)
        total, layers = self.sums[places]
        rows = max(1, ROOM // (images * heads * places))
        with torch.autocast(query.device.type, enabled=False):
            for first in range(0, places, rows):
                scores = query[:, :, first : first + rows] @ key.transpose(-1, -2) * attn.scale
                total[:, first : first + rows] += scores.softmax(-1).mean(1)
        self.sums[places] = (total, layers + 1)


@contextmanager
def recorded(unet: nn.Module) -> Iterator[Callable[[], dict[int, Tensor]]]:
    """Watches the self-attention of a network of diffusers inside, and leaves it as it was.

    Yields:
        A function that hands out the maps of the last call, by the number N of their places: float32 [B, N, N], the
        mean over layers and heads; a row is where a place looks. It keeps none, so that they are there once.
    """
    sums: dict[int, tuple[Tensor, int]] = {}
    layers = [part for part in unet.modules() if isinstance(part, Attention) and not part.is_cross_attention]
    before = [layer.processor for layer in layers]

    def taken() -> dict[int, Tensor]:
        found = {places: total.div_(count) for places, (total, count) in sums.items()}
        sums.clear()
        return found

    try:
        for layer, processor in zip(layers, before, strict=True):
            layer.processor = Recorder(processor, sums)
        yield taken
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.processor = processor


def combined(maps: dict[int, Tensor], size: tuple[int, int]) -> Tensor:
    """Maps of one picture at all resolutions as one.

    Args:
        maps: by the pixels that a place covers, [N, N], N = (H / stride) * (W / stride); rows sum to 1.
        size: H and W of the picture in pixels.

    Returns:
        float32 [h, w, h * w] on the finest grid: maps of the others are enlarged bilinearly and made to sum to 1 again,
        a place takes that of the coarser place around it, and each resolution counts by the length of its side.
    """
    finest = min(maps)
    high, wide = (side // finest for side in size)
    total = next(iter(maps.values())).new_zeros(high, wide, high * wide)
    whole = sum(1 / stride for stride in maps)
    for stride, coarse in maps.items():
        rows, columns, times = size[0] // stride, size[1] // stride, stride // finest
        looked = interpolate(coarse.view(-1, 1, rows, columns), (high, wide), mode="bilinear").flatten(1)
        looked = (looked / looked.sum(1, keepdim=True)).view(rows, columns, -1) * (1 / stride / whole)
        for i in range(times):
            for j in range(times):
                total[i::times, j::times] += looked
    return total


def _stride(places: int, height: int, width: int) -> int:
    return round((height * width / places) ** 0.5)
