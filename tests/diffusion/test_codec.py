from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from geoseg.diffusion.codec import Codec
from tests.tiny import tiny_latent_diffusion


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return tiny_latent_diffusion().vae


def test_moments_are_those_of_the_autoencoder_scaled(vae: AutoencoderKL) -> None:
    image = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    mean, std = Codec(vae).moments(image)
    expected = vae.encode(image * 2 - 1).latent_dist
    assert mean.shape == (2, 4, 8, 6)
    torch.testing.assert_close(mean, expected.mean * 0.7)
    torch.testing.assert_close(std, expected.std * 0.7)
    torch.testing.assert_close(Codec(vae).encode(image), mean)


def test_decode_is_the_autoencoder_in_the_range_of_pictures(vae: AutoencoderKL) -> None:
    latent = 3 * torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(1))
    painted = Codec(vae).decode(latent)
    expected = (vae.decode(latent / 0.7).sample / 2 + 0.5).clamp(0, 1)
    assert painted.shape == (1, 3, 16, 12)
    torch.testing.assert_close(painted, expected)


def test_shift_is_honoured() -> None:
    vae = tiny_latent_diffusion().vae
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before, painted = Codec(vae).encode(image), Codec(vae).decode(torch.ones(1, 4, 4, 4))
    vae.register_to_config(shift_factor=0.25)
    torch.testing.assert_close(Codec(vae).encode(image), before - 0.25 * 0.7)
    torch.testing.assert_close(Codec(vae).decode(torch.ones(1, 4, 4, 4) - 0.25 * 0.7), painted)


def test_factor_of_stable_diffusion_is_eight() -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    assert Codec(vae).factor == 8


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 3, 7, 8), (1, 3, 8, 9), (3, 8, 8)])
def test_wrong_pictures_are_refused(vae: AutoencoderKL, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"multiples of 2.*pad_to_multiple"):
        Codec(vae).encode(torch.zeros(shape))


def test_wrong_latents_are_refused(vae: AutoencoderKL) -> None:
    with pytest.raises(ValueError, match=r"\[B, 4, h, w\]"):
        Codec(vae).decode(torch.zeros(1, 3, 8, 8))


def test_runs_outside_autocast(vae: AutoencoderKL) -> None:
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = Codec(vae).encode(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Codec(vae).encode(image), plain)


def test_half_precision_that_overflows_is_run_again_in_float32(caplog: pytest.LogCaptureFixture) -> None:
    vae = tiny_latent_diffusion().vae
    vae.register_to_config(force_upcast=False)
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(3e5).clamp_(-6e4, 6e4)
    vae.half()
    latent = 20 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not vae.decode(latent.half()).sample.isfinite().all()  # the premise
    painted = Codec(vae).decode(latent)
    assert painted.isfinite().all()
    assert "overflowed" in caplog.text
    assert next(vae.parameters()).dtype == torch.float32


def test_force_upcast_runs_in_float32() -> None:
    vae = tiny_latent_diffusion().vae.half()
    assert vae.config.force_upcast
    Codec(vae).encode(torch.zeros(1, 3, 8, 8))
    assert next(vae.parameters()).dtype == torch.float32


def overflowing(half: bool) -> AutoencoderKL:
    """An autoencoder whose first convolution leaves the range of fp16 and, unless ``half``, the one of float32 too."""
    vae = tiny_latent_diffusion().vae
    vae.register_to_config(force_upcast=False)
    with torch.no_grad():
        vae.encoder.conv_in.weight.abs_().mul_(6e4 / vae.encoder.conv_in.weight.max())
        if not half:
            vae.encoder.conv_in.weight.fill_(3e38)
            vae.decoder.conv_in.weight.fill_(3e38)
    return vae.half() if half else vae


def test_an_encoder_that_overflows_in_half_precision_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    vae, image = overflowing(half=True), torch.ones(2, 3, 8, 8)
    assert not vae.encode(image.half()).latent_dist.parameters.isfinite().all()  # the premise
    first = Codec(vae).encode(image)
    assert first.isfinite().all()
    assert torch.equal(Codec(vae).encode(image), first)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["the autoencoder overflowed in torch.float16 and runs in float32 from here on"]


def test_what_is_not_finite_in_float32_either_is_an_error() -> None:
    vae = overflowing(half=False)
    with pytest.raises(OverflowError, match=r"gives inf or nan in torch\.float32; its weights are damaged"):
        Codec(vae).encode(torch.ones(1, 3, 8, 8))
    with pytest.raises(OverflowError, match=r"gives inf or nan in torch\.float32"):
        Codec(vae).decode(torch.ones(1, 4, 4, 4))


def test_a_latent_that_is_not_finite_is_not_the_autoencoders_fault(vae: AutoencoderKL) -> None:
    with pytest.raises(OverflowError, match=r"the denoising network overflowed; use trainer\.precision=32-true"):
        Codec(vae).decode(torch.full((1, 4, 4, 4), float("nan")))
