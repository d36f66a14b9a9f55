from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from geoseg.diffusion.objectives import TIMES, FlowMatching, Objective

TIME = torch.tensor([0, 250, 999])
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 5, 6, generator=generator), torch.randn(3, 4, 5, 6, generator=generator)


def test_closed_forms(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    latent, noise = pair
    objective = Objective(torch.tensor([0.64, 0.36]), "v_prediction", min_snr_gamma=1.0)
    time = torch.tensor([0, 1, 0])
    signal, spread = torch.tensor([0.8, 0.6, 0.8]), torch.tensor([0.6, 0.8, 0.6])
    shape = (3, 1, 1, 1)
    torch.testing.assert_close(
        objective.add_noise(latent, noise, time), signal.view(shape) * latent + spread.view(shape) * noise
    )
    torch.testing.assert_close(
        objective.target(latent, noise, time), signal.view(shape) * noise - spread.view(shape) * latent
    )
    # signal-to-noise 0.64 / 0.36 = 16 / 9 and 9 / 16: min(s, 1) / (s + 1)
    torch.testing.assert_close(objective.weight(time), torch.tensor([9 / 25, 9 / 25, 9 / 25]))
    epsilon = Objective(torch.tensor([0.64, 0.36]), "epsilon", min_snr_gamma=1.0)
    torch.testing.assert_close(epsilon.weight(time), torch.tensor([9 / 16, 1.0, 9 / 16]))
    assert torch.equal(epsilon.target(latent, noise, time), noise)


def test_agrees_with_diffusers(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    latent, noise = pair
    scheduler = DDPMScheduler(**CONFIG)
    objective = Objective.of({**CONFIG, "prediction_type": "v_prediction"})
    torch.testing.assert_close(
        objective.add_noise(latent, noise, TIME), scheduler.add_noise(latent, noise, TIME), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        objective.target(latent, noise, TIME), scheduler.get_velocity(latent, noise, TIME), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_agrees_with_diffusers(prediction_type: str) -> None:
    snr = compute_snr(DDPMScheduler(**CONFIG), TIME)
    base = snr if prediction_type == "epsilon" else snr + 1  # as the training examples of diffusers write it
    expected = torch.stack([snr, 5 * torch.ones_like(snr)], dim=1).min(dim=1)[0] / base
    objective = Objective.of({**CONFIG, "prediction_type": prediction_type}, min_snr_gamma=5.0)
    torch.testing.assert_close(objective.weight(TIME), expected, rtol=1e-4, atol=0)


def test_velocity_turns_the_noisy_latent_back(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    latent, noise = pair
    objective = Objective.of({**CONFIG, "prediction_type": "v_prediction"})
    noisy, velocity = objective.add_noise(latent, noise, TIME), objective.target(latent, noise, TIME)
    alpha = objective.alphas_cumprod[TIME].view(3, 1, 1, 1)
    torch.testing.assert_close(alpha.sqrt() * noisy - (1 - alpha).sqrt() * velocity, latent, atol=1e-5, rtol=0)


def test_weight_without_gamma_is_one() -> None:
    assert Objective.of(CONFIG).weight(TIME).tolist() == [1, 1, 1]


def test_schedule_without_signal_at_the_end() -> None:
    config = {**CONFIG, "rescale_betas_zero_snr": True}
    epsilon = Objective.of(config, min_snr_gamma=5.0)
    velocity = Objective.of({**config, "prediction_type": "v_prediction"}, min_snr_gamma=5.0)
    assert epsilon.weight(TIME)[-1] == 1
    assert velocity.weight(TIME)[-1] == pytest.approx(0, abs=1e-6)


def test_reads_the_config_of_another_scheduler() -> None:
    objective = Objective.of(DDIMScheduler(beta_schedule="linear", beta_start=0.1, beta_end=0.1).config)
    assert objective.num_times == 1000
    assert objective.alphas_cumprod[2].item() == pytest.approx(0.9**3)
    assert objective.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction_type": "sample"}, "'sample' is not known.*epsilon, v_prediction"),
        ({"prediction_type": "epsilon", "min_snr_gamma": 0.0}, "min_snr_gamma"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(torch.tensor([0.5]), **options)


FLUX = {
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": True,
    "shift": 3.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
"""Scheduler of FLUX.1-dev."""


def drawn(times: str, cells: int = 64 * 64, config: dict[str, object] = FLUX) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    found = FlowMatching.of(config, times=times).times
    return torch.stack([found.drawn(generator, cells) for _ in range(4000)])


def test_flow_matching_is_what_diffusers_does() -> None:
    """Against its scheduler, whose numbers train_dreambooth_lora_flux.py takes."""
    generator = torch.Generator().manual_seed(0)
    latent, noise = (torch.randn(3, 4, 6, 6, generator=generator) for _ in range(2))
    objective = FlowMatching.of(FLUX)
    for config in (FLUX, {**FLUX, "use_dynamic_shifting": False}):
        scheduler = FlowMatchEulerDiscreteScheduler(**config)
        found = torch.stack([FlowMatching.of(config).times.at(i / 1000) for i in range(1000)])
        torch.testing.assert_close(found, scheduler.timesteps.flip(0), atol=1e-4, rtol=1e-6)
    scheduler = FlowMatchEulerDiscreteScheduler(**FLUX)
    time = scheduler.timesteps[[0, 400, 999]]
    torch.testing.assert_close(
        objective.add_noise(latent, noise, time), scheduler.scale_noise(latent, time, noise), atol=1e-6, rtol=1e-6
    )
    # the target is how the noisy latent moves with the share of noise, and leads from any of them to both ends
    step = (objective.add_noise(latent, noise, time + 1) - objective.add_noise(latent, noise, time)) * 1000
    target = objective.target(latent, noise, time)
    torch.testing.assert_close(step, target, atol=2e-3, rtol=1e-3)
    assert objective.weight(time).tolist() == [1, 1, 1]


def test_times_of_a_flow_are_distributed_as_said() -> None:
    uniform, normal, shifted = (drawn(way) / 1000 for way in TIMES)
    for share in (uniform, normal, shifted):
        assert share.min() > 0 and share.max() <= 1
    assert uniform.mean() == pytest.approx(0.5, abs=0.02) and uniform.std() == pytest.approx(12**-0.5, abs=0.01)
    # odds that are lognormal: the logarithm has mean 0 and deviation 1, and shifting moves the mean alone
    for share, mean in ((normal, 0.0), (shifted, 0.5 + (1024 - 256) * 0.65 / 3840)):  # 64 x 64 cells are 1024 places
        odds = torch.logit(share.clamp(1e-4, 1 - 1e-4))
        assert odds.mean() == pytest.approx(mean, abs=0.06) and odds.std() == pytest.approx(1, abs=0.05)
    assert (drawn("shifted", 128 * 128) / 1000).mean() > shifted.mean() + 0.05


def test_a_flow_has_no_noise_levels_to_weigh_and_stable_diffusion_no_other_times() -> None:
    with pytest.raises(ValueError, match="min_snr_gamma=5.0 weighs the noise levels of Stable Diffusion"):
        FlowMatching.of(FLUX, min_snr_gamma=5.0)
    with pytest.raises(ValueError, match="times must be one of uniform, logit_normal, shifted, got 'cosmap'"):
        FlowMatching.of(FLUX, times="cosmap")
    with pytest.raises(ValueError, match="times='shifted' is for models of flow matching"):
        Objective.of(CONFIG, times="shifted")
