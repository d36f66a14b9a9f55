from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr

from geoseg.diffusion.objectives import Objective

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
