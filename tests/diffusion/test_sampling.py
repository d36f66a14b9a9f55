from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler
from torch import Tensor

from geoseg.diffusion.sampling import img2img, steps_run, windowed

# diffusers hands torch tensors to numpy in the old way; nothing here can change that
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CONDITION = torch.zeros(1, 3, 2)


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True)


@pytest.mark.parametrize(("steps", "strength", "run"), [(30, 0.53, 15), (10, 1.0, 10), (10, 0.05, 0), (50, 0.4, 20)])
def test_steps_run(steps: int, strength: float, run: int) -> None:
    seen: list[Tensor] = []

    def denoise(noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        seen.append(time)
        return torch.zeros_like(noisy)

    img2img(denoise, scheduler(), torch.zeros(1, 4, 4, 4), generators(1), CONDITION, steps=steps, strength=strength)
    assert len(seen) == steps_run(steps, strength) == run
    # the last `run` times of the schedule "leading", each 1000 // steps apart down to 0
    assert [int(time) for time in seen] == [i * (1000 // steps) for i in reversed(range(run))]


def test_a_network_that_knows_the_latent_gets_it_back() -> None:
    latent = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(9))
    plan = scheduler()

    def denoise(noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        alpha = plan.alphas_cumprod[time]
        return (noisy - alpha.sqrt() * latent) / (1 - alpha).sqrt()

    redrawn = img2img(denoise, plan, latent, generators(2), CONDITION, steps=20, strength=0.8)
    torch.testing.assert_close(redrawn, latent, atol=1e-4, rtol=0)


def test_guidance_is_one_call_and_its_closed_form() -> None:
    calls: list[tuple[int, ...]] = []

    def denoise(noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        calls.append((len(noisy), len(condition)))
        return condition.mean(dim=(1, 2)).view(-1, 1, 1, 1).expand_as(noisy)

    def run(positive: float, negative: float | None, guidance: float) -> Tensor:
        return img2img(
            denoise,
            scheduler(),
            torch.zeros(2, 4, 4, 4),
            generators(2),
            torch.full((1, 3, 2), positive),
            None if negative is None else torch.full((1, 3, 2), negative),
            guidance=guidance,
            steps=5,
            strength=0.6,
        )

    guided = run(0.3, 0.1, 4.0)
    assert calls == [(4, 4)] * 3
    torch.testing.assert_close(guided, run(0.1 + 4 * (0.3 - 0.1), None, 1.0), atol=1e-5, rtol=1e-5)
    assert calls[3:] == [(2, 2)] * 3
    with pytest.raises(ValueError, match="needs a negative condition"):
        run(0.3, None, 4.0)


@pytest.mark.parametrize("plan", [DDIMScheduler, HeunDiscreteScheduler])
@pytest.mark.parametrize("strength", [0.01, 0.5, 1.0])
def test_shares_of_the_steps_add_up(plan: type, strength: float) -> None:
    shares: list[float] = []
    img2img(
        lambda noisy, time, condition: torch.zeros_like(noisy),
        plan(),
        torch.zeros(1, 4, 4, 4),
        generators(1),
        CONDITION,
        steps=7,
        strength=strength,
        on_step=shares.append,
    )
    assert sum(shares) == pytest.approx(1)


def test_no_step_to_run_returns_the_latent() -> None:
    latent = torch.ones(1, 4, 4, 4)
    assert img2img(lambda *_: latent, scheduler(), latent, generators(1), CONDITION, steps=10, strength=0.05) is latent


def test_windows_give_exactly_what_the_whole_gives_where_pixels_do_not_see_each_other() -> None:
    def pointwise(noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        return torch.tanh(noisy) * time.view(-1, 1, 1, 1) + condition.mean((1, 2)).view(-1, 1, 1, 1)

    noisy = torch.randn(2, 4, 21, 50, generator=torch.Generator().manual_seed(0))
    time, condition = torch.tensor([3.0, 5.0]), torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(1))
    for overlap, batch in ((0.0, 32), (0.25, 5), (0.5, 1)):
        blended = windowed(pointwise, 16, overlap, batch)(noisy, time, condition)
        torch.testing.assert_close(blended, pointwise(noisy, time, condition), atol=1e-5, rtol=0)
    one_time = windowed(pointwise, 16)(noisy, torch.tensor(3.0), condition)
    torch.testing.assert_close(one_time, pointwise(noisy, torch.tensor([3.0, 3.0]), condition), atol=1e-5, rtol=0)


def test_the_network_sees_squares_of_its_own_size_only() -> None:
    seen: list[tuple[int, ...]] = []

    def denoise(noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        assert len(noisy) == len(time) == len(condition)
        seen.append(tuple(noisy.shape))
        return noisy

    time, condition = torch.tensor(0.0), torch.zeros(2, 3, 2)
    windowed(denoise, 16, overlap=0.25, batch=4)(torch.zeros(2, 4, 16, 40), time, condition)
    # along 40 cells windows of 16 begin at 0, 12 and 24: three of two pictures, four at a time
    assert seen == [(4, 4, 16, 16), (2, 4, 16, 16)]
    seen.clear()
    small = lambda noisy, time, condition: seen.append(tuple(noisy.shape)) or noisy  # noqa: E731
    windowed(small, 16)(torch.zeros(2, 4, 16, 12), time, condition)
    assert seen == [(2, 4, 16, 12)]


def test_neighbouring_windows_are_blended_without_a_step() -> None:
    levels = iter([0.0, 1.0])

    def denoise(noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        return torch.full_like(noisy, next(levels))

    row = windowed(denoise, 16, overlap=0.5, batch=1)(torch.zeros(1, 1, 16, 24), torch.tensor(0.0), CONDITION)[0, 0, 8]
    assert row[0] == 0
    assert row[-1] == 1
    assert 0 < row.diff().max() < 0.35
    assert (row.diff() >= 0).all()
