from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from geoseg.diffusion.image_conditioned import ImageConditioned
from geoseg.diffusion.noise import multi_resolution
from geoseg.diffusion.objectives import Objective
from geoseg.lora import LoRA
from geoseg.randomness import stream
from tests.tiny import tiny_latent_diffusion


def conditioned(**options: Any) -> ImageConditioned:
    return ImageConditioned(3, tiny_latent_diffusion(), **options)


def latents(count: int = 2) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("order", ["image_first", "target_first"])
def test_the_same_latent_in_both_halves_is_the_base(order: str) -> None:
    model, base, x = conditioned(order=order), tiny_latent_diffusion(), latents()
    with torch.no_grad():
        wanted = base.denoise(x, torch.tensor(7), base.embed(["", ""]))
        torch.testing.assert_close(model.denoise(x, x, torch.tensor(7)), wanted)
        other = model.denoise(x, x.flip(0), torch.tensor(7))
    assert not torch.allclose(other, wanted, atol=1e-3)
    assert model.unet.config.in_channels == 8


def test_order_and_rule_of_the_widened_convolution() -> None:
    base = tiny_latent_diffusion().unet.conv_in
    model = conditioned(order="target_first", weight=0.25, bias=0.5)
    image, noisy = latents(), latents().flip(0)
    assert torch.equal(model.joined(image, noisy), torch.cat([noisy, image], 1))
    with torch.no_grad():
        model.unet.conv_in.weight[:, 4:] = 0  # the half of the image
        told = model.unet.conv_in(model.joined(image, noisy))
        torch.testing.assert_close(told, torch.nn.functional.conv2d(noisy, base.weight / 4, base.bias / 2, padding=1))


def test_the_noisiest_time_holds_no_signal_and_drawing_starts_there() -> None:
    model = conditioned()
    objective = model.objective
    assert objective.prediction_type == "v_prediction" and float(objective.alphas_cumprod[-1]) == 0
    x, noise = latents(1), latents(1).flip(-1)
    last = torch.tensor([999])
    assert torch.equal(objective.add_noise(x, noise, last), noise)
    rescaled = DDIMScheduler.from_config(model.base.scheduler.config, rescale_betas_zero_snr=True)
    torch.testing.assert_close(objective.alphas_cumprod, rescaled.alphas_cumprod)
    plain = conditioned(zero_snr=False).objective
    torch.testing.assert_close(plain.alphas_cumprod, model.base.scheduler.alphas_cumprod)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_estimates_undo_the_target(prediction_type: str) -> None:
    objective = Objective(torch.tensor([0.9, 0.5, 0.01]), prediction_type)
    x, noise, time = latents(3), latents(3).flip(0), torch.tensor([0, 1, 2])
    noisy, answer = objective.add_noise(x, noise, time), objective.target(x, noise, time)
    for found, wanted in zip(objective.estimates(noisy, answer, time), (x, noise), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_what_is_trained() -> None:
    model = conditioned()
    with pytest.raises(ValueError, match="finetune=lora, but no adapter is attached"):
        model.groups()
    LoRA(rank=2, text_targets=()).attach(model.parts())
    assert set(model.groups()) == {"unet", "conv_in"}
    assert all(".lora_" in n for n, p in model.unet.named_parameters() if any(p is q for q in model.groups()["unet"]))
    full = conditioned(finetune="full")
    assert sum(p.numel() for some in full.groups().values() for p in some) == sum(
        p.numel() for p in full.unet.parameters()
    )
    assert not any(p.requires_grad for p in full.base.vae.parameters())
    assert set(conditioned(finetune="conv_in").groups()) == {"conv_in"}
    with pytest.raises(ValueError, match="no part 'unet' to adapt"):
        LoRA(text_targets=()).attach(full.parts())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"finetune": "all"}, "finetune must be one of lora, full, conv_in, got 'all'"),
        ({"order": "noise_first"}, "order must be one of"),
        ({"prediction_type": "x0"}, "prediction_type must be epsilon, v_prediction or null"),
        ({"prediction_type": None}, "zero_snr=true asks for an answer where there is nothing but noise"),
        ({"colours": ["#000000", "#FFFFFF"]}, "colours: 2 for 3 classes"),
        ({"colours": ["#000000", "#FFFFFF", "#888888"]}, "#888888 .class 2. lies 0.00 from the line between"),
    ],
)
def test_what_cannot_work_is_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        conditioned(**options)


def test_a_widened_base_is_not_widened_again() -> None:
    with pytest.raises(ValueError, match="the base reads 8 channels"):
        ImageConditioned(3, tiny_latent_diffusion(in_channels=8))


def test_multi_resolution_noise_is_coarse_and_of_unit_spread() -> None:
    plain = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(0))
    assert multi_resolution(plain, 0.0, stream(0, "a")) is plain
    made = multi_resolution(plain, 0.9, stream(0, "a"))
    assert torch.equal(made, multi_resolution(plain, 0.9, stream(0, "a")))
    assert float(made.std()) == pytest.approx(1, abs=1e-5)

    def coarse(noise: Tensor) -> float:
        return float(torch.nn.functional.avg_pool2d(noise[None], 8).var())

    assert coarse(plain) < 0.03 < 0.1 < coarse(made)


def test_multi_resolution_noise_is_the_sum_written_out() -> None:
    plain = torch.randn(2, 12, 20, generator=torch.Generator().manual_seed(0))
    draws, sizes = stream(0, "b"), []
    total, high, wide = plain.double(), 12, 20
    for level in range(10):
        ratio = (2 + 2 * float(torch.rand((), generator=draws))) ** level
        high, wide = max(1, int(high / ratio)), max(1, int(wide / ratio))
        sizes.append((high, wide))
        field = torch.randn(1, 2, high, wide, generator=draws)
        # bilinear, cell by cell: a field's value lies in the middle of its cell
        rows, columns = (
            ((torch.arange(long) + 0.5) * short / long - 0.5).clamp(0, short - 1)
            for long, short in ((12, high), (20, wide))
        )
        up, left = rows.floor().long(), columns.floor().long()
        down, right = (up + 1).clamp(max=high - 1), (left + 1).clamp(max=wide - 1)
        y, x = (rows - up)[:, None], columns - left
        top = (1 - x) * field[0][:, up][:, :, left] + x * field[0][:, up][:, :, right]
        bottom = (1 - x) * field[0][:, down][:, :, left] + x * field[0][:, down][:, :, right]
        total = total + 0.7**level * ((1 - y) * top + y * bottom)
        if 1 in (high, wide):
            break
    assert sizes[0] == (12, 20) and 1 in sizes[-1]
    made = multi_resolution(plain, 0.7, stream(0, "b"))
    torch.testing.assert_close(made, (total / total.std()).float(), atol=1e-5, rtol=1e-4)
