"""Pictures from words, against diffusers' own pipeline."""

from __future__ import annotations

import diffusers
import pytest
import torch
from torch import Tensor

from geoseg import progress
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.diffusion.text2img import text2img
from geoseg.lora import LoRA, set_weight
from tests.tiny import pipeline_of, tiny_latent_diffusion

# diffusers hands torch tensors to numpy in the old way; nothing here can change that
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PROMPTS = ["seismic profile", "label map", "seismic profile"]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return tiny_latent_diffusion()


@pytest.mark.parametrize(
    ("name", "guidance"),
    [
        ("DDIMScheduler", 6.0),
        ("DDIMScheduler", 1.0),
        ("PNDMScheduler", 6.0),
        ("EulerDiscreteScheduler", 6.0),
        ("EulerAncestralDiscreteScheduler", 3.0),  # draws at every step
        ("DPMSolverMultistepScheduler", 6.0),
        ("HeunDiscreteScheduler", 6.0),  # two calls per step
        ("UniPCMultistepScheduler", 6.0),
    ],
)
def test_what_the_pipeline_of_diffusers_draws(model: LatentDiffusion, name: str, guidance: float) -> None:
    made = getattr(diffusers, name).from_config
    drawn = text2img(model, PROMPTS, generators(1, 2, 3), (16, 24), 5, guidance, "tile", made)
    pipeline = pipeline_of(model)
    pipeline.scheduler = made(model.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    noise, after = generators(1, 2, 3), None
    latents = torch.stack([torch.randn((4, 8, 12), generator=one) for one in noise])
    if name == "EulerAncestralDiscreteScheduler":
        after = noise  # went on to what the steps draw
    expected = pipeline(
        PROMPTS,
        negative_prompt=["tile"] * 3,
        latents=latents,
        generator=after,
        num_inference_steps=5,
        guidance_scale=guidance,
        output_type="pt",
    ).images
    assert drawn.shape == (3, 3, 16, 24) and drawn.dtype == torch.float32
    torch.testing.assert_close(drawn, expected, atol=2e-5, rtol=0)
    assert (drawn[0] - drawn[2]).abs().max() > 0.01  # one prompt, two generators


def test_draw_takes_the_scheduler_that_the_checkpoint_names() -> None:
    model = tiny_latent_diffusion()
    for scheduler in (diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler):
        model.scheduler = scheduler.from_config(model.scheduler.config)
        expected = text2img(model, ["tile"], generators(4), (16, 16), 4, 5.0, "", scheduler.from_config)
        assert torch.equal(model.draw(["tile"], generators(4), (16, 16), 4, 5.0), expected)


def test_a_picture_is_the_same_in_any_batch(model: LatentDiffusion) -> None:
    together = text2img(model, PROMPTS, generators(1, 2, 3), (16, 16), 4, 4.0)
    for i, seed in enumerate((1, 2, 3)):
        alone = text2img(model, [PROMPTS[i]], generators(seed), (16, 16), 4, 4.0)
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)


def test_a_prompt_is_read_once_and_anew_where_the_text_encoder_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = tiny_latent_diffusion(), []
    adapter = LoRA(rank=2, alpha=2)
    adapter.attach(model.parts())
    model.requires_grad_(False)
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda prompts: read.append(list(prompts)) or embed(prompts))

    def drawn() -> Tensor:
        return model.draw(PROMPTS, generators(1, 2, 3), (16, 16), 2, 4.0)

    first = drawn()
    assert torch.equal(drawn(), first) and read == [["seismic profile"], ["label map"], [""]]
    with torch.no_grad():
        next(p for name, p in model.text_encoder.named_parameters() if "lora_B" in name).add_(1.0)
    changed = drawn()
    assert len(read) == 6 and not torch.equal(changed, first)
    set_weight(model.text_encoder, "vai1", 0.0)
    assert torch.equal(drawn(), first) and len(read) == 9
    model.text_encoder.requires_grad_(True)  # what learns is read every time
    drawn(), drawn()
    assert len(read) == 9 + 6


def test_an_image_counts_one_in_the_progress(model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[float] = []
    monkeypatch.setattr(progress, "advance", lambda name, amount=1.0: moves.append(amount))
    text2img(model, PROMPTS, generators(1, 2, 3), (16, 16), 4, 4.0)
    assert sum(moves) == pytest.approx(3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": (16, 18)}, "multiples of 4, got 16 x 18"),
        ({"size": (0, 16)}, "multiples of 4, got 0 x 16"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"guidance": float("nan")}, "guidance must be a number from 0 on"),
        ({"generators": generators(1)}, "got 1 for 3 prompts"),
        ({"prompts": [], "generators": []}, "got 0 for 0 prompts"),
    ],
)
def test_what_cannot_be_drawn(model: LatentDiffusion, change: dict, said: str) -> None:
    asked = {"prompts": PROMPTS, "generators": generators(1, 2, 3), "size": (16, 16), "steps": 2, **change}
    with pytest.raises(ValueError, match=said):
        text2img(model, **asked)
