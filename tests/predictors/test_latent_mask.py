from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from geoseg.diffusion.codec import Codec
from geoseg.diffusion.image_conditioned import ImageConditioned
from geoseg.predictors.latent_mask import LatentMask
from geoseg.randomness import stream
from tests.tiny import tiny_latent_diffusion


@pytest.fixture(scope="module")
def model() -> ImageConditioned:
    return ImageConditioned(3, tiny_latent_diffusion())


def pictures(count: int = 3, height: int = 16, width: int = 12) -> Tensor:
    return torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(1))


def generators(count: int = 3, first: int = 0) -> list[torch.Generator]:
    return [stream(0, "test", first + i) for i in range(count)]


def ddim(model: ImageConditioned) -> DDIMScheduler:
    """diffusers' own, as label maps are drawn; right for numbers of steps that divide the schedule."""
    return DDIMScheduler.from_config(
        model.base.scheduler.config,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
    )


@torch.no_grad()
def test_the_steps_are_those_of_ddim_beside_the_profile(model: ImageConditioned) -> None:
    image = pictures()
    found = LatentMask(model, steps=4).predict(image, generators())
    shown = model.codec.encode(image.expand(-1, 3, -1, -1))
    noisy = torch.stack([torch.randn(4, 8, 6, generator=one) for one in generators()])
    scheduler = ddim(model)
    scheduler.set_timesteps(4)
    words = model.base.embed([""] * 3)
    for time in scheduler.timesteps:
        answer = model.unet(torch.cat([shown, noisy], 1), time, encoder_hidden_states=words).sample
        noisy = scheduler.step(answer, time, noisy).prev_sample
    painted = model.codec.decode(noisy)
    torch.testing.assert_close(found.painted, painted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.probs, model.palette.decode(painted), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("steps", [*range(1, 52), 61, 103, 372, 999, 1000])
def test_a_network_that_knows_the_answer_draws_it_in_any_number_of_steps(
    model: ImageConditioned, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    alphas = ddim(model).alphas_cumprod
    times: list[int] = []

    def velocity(joined: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        times.append(int(time))
        a = alphas[time]
        return (a.sqrt() * joined[:, 4:] - truth) / (1 - a).sqrt()

    monkeypatch.setattr(model.base, "denoise", velocity)
    drawn = LatentMask(model, steps=steps)._drawn(torch.zeros_like(truth), torch.randn(1, 4, 4, 4))
    torch.testing.assert_close(drawn, truth, atol=1e-3, rtol=1e-3)
    assert len(times) == steps and times[0] == 999 and min(times) >= 0
    assert all(before > after for before, after in pairwise(times))


def test_a_profile_is_answered_alike_in_any_batch(model: ImageConditioned) -> None:
    whole = LatentMask(model, steps=2).predict(pictures(), generators())
    alone = LatentMask(model, steps=2, batch=1).predict(pictures()[1:2], generators(1, first=1))
    torch.testing.assert_close(whole.probs[1:2], alone.probs, atol=1e-4, rtol=1e-4)
    other = LatentMask(model, steps=2).predict(pictures()[1:2], generators(1, first=7))
    assert not torch.allclose(alone.probs, other.probs, atol=1e-2)


def test_a_profile_is_encoded_once_for_all_its_members(
    model: ImageConditioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = Codec.encode

    def counted(self: Codec, image: Tensor) -> Tensor:
        sizes.append(len(image))
        return encode(self, image)

    monkeypatch.setattr(Codec, "encode", counted)
    LatentMask(model, steps=1).predict(pictures(2).repeat_interleave(3, 0), generators(6))
    assert sizes == [2]


def test_sizes_windows_and_no_noise(model: ImageConditioned) -> None:
    image = pictures(2, 21, 30)
    found = LatentMask(model, steps=2, tile=16, overlap=0.5).predict(image, generators(2))
    assert found.probs.shape == (2, 3, 21, 30)
    whole = LatentMask(model, steps=2).predict(image, generators(2))
    assert not torch.allclose(found.probs, whole.probs, atol=1e-3)
    still = LatentMask(model, steps=1, noise=False)
    assert torch.equal(still.predict(image, generators(2)).probs, still.predict(image, generators(2, 5)).probs)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": 0}, "steps must lie between 1 and 1000"),
        ({"tile": 6}, "tile must be a multiple of 4"),
        ({"batch": 0}, "batch >= 1"),
        ({"steps": 4, "noise": False}, "steps=4 with noise=false: from no noise a network answers in one step"),
    ],
)
def test_what_cannot_work_is_told(model: ImageConditioned, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LatentMask(model, **options)


def test_inputs_that_cannot_be(model: ImageConditioned) -> None:
    with pytest.raises(ValueError, match="one generator per image, got 2 for 3 images"):
        LatentMask(model).predict(pictures(), generators(2))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        LatentMask(model).predict(torch.rand(1, 2, 8, 8), generators(1))
