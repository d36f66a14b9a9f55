"""FLUX.1: what is drawn against diffusers' own pipeline, and what is told before any work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError
from torch import Tensor

from geoseg.diffusion.flux import FluxDiffusion, packed, unpacked
from tests.tiny import flux_pipeline_of, tiny_flux

PROMPTS = ["a river", "flat colours"]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def by_diffusers(model: FluxDiffusion, height: int, width: int, steps: int, guidance: float) -> Tensor:
    pipeline = flux_pipeline_of(model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators(3, 4),
        max_sequence_length=24,
        output_type="pt",
    ).images


@pytest.mark.parametrize(("guidance_embeds", "guidance"), [(True, 3.5), (False, 1.0)])
def test_the_pictures_are_those_of_diffusers(guidance_embeds: bool, guidance: float) -> None:
    model = tiny_flux(guidance_embeds=guidance_embeds)
    drawn = model.draw(PROMPTS, generators(3, 4), (48, 32), steps=4, guidance=guidance)
    assert drawn.shape == (2, 3, 48, 32) and drawn.std() > 0.05
    torch.testing.assert_close(drawn, by_diffusers(model, 48, 32, 4, guidance), atol=1e-6, rtol=0)
    alone = model.draw(PROMPTS[1:], generators(4), (48, 32), steps=4, guidance=guidance)
    torch.testing.assert_close(alone, drawn[1:], atol=1e-5, rtol=0)  # whatever is drawn beside it
    other = model.draw(PROMPTS, generators(3, 4), (48, 32), steps=4, guidance=guidance + 40)
    assert bool((other - drawn).abs().max() > 1e-4) == guidance_embeds


def test_words_matter() -> None:
    model = tiny_flux()
    one, two = (model.draw([prompt], generators(3), (32, 32), steps=2) for prompt in PROMPTS)
    assert (one - two).abs().max() > 1e-4
    condition = model.embed(PROMPTS)
    assert condition.shape == (2, 1 + 24, 32)
    tokens = model.tokenizer(PROMPTS, padding="max_length", max_length=24, return_tensors="pt").input_ids
    torch.testing.assert_close(condition[:, 0, :16], model.text_encoder(tokens).pooler_output)
    assert not condition[:, 0, 16:].any()


def test_places_are_two_by_two_cells() -> None:
    latent = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    tokens = packed(latent)
    assert tokens.shape == (2, 6, 12)
    assert torch.equal(tokens[1, 4], latent[1, :, 2:4, 2:4].flatten())  # the second row, the second column
    assert torch.equal(unpacked(tokens, 4, 6), latent)


def test_saved_and_loaded_it_draws_the_same(tmp_path: Path) -> None:
    model = tiny_flux()
    model.save(tmp_path / "flux")
    again = FluxDiffusion.load(tmp_path / "flux", tokens=24)
    drawn = [m.draw(PROMPTS, generators(1, 2), (32, 32), steps=2) for m in (model, again)]
    assert torch.equal(*drawn)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    half = FluxDiffusion.load(tmp_path / "flux", dtype="bfloat16", tokens=24)
    assert half.transformer.x_embedder.weight.dtype == half.text_encoder_2.dtype == torch.bfloat16
    assert half.vae.dtype == torch.float32  # its configuration asks for that
    assert half.denoise(torch.zeros(1, 4, 8, 8), torch.tensor(500.0), half.embed(["a"])).dtype == torch.float32
    (tmp_path / "flux" / "tokenizer_2").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="lacks tokenizer_2: a FluxPipeline folder holds vae, transformer"):
        FluxDiffusion.load(tmp_path / "flux")


def test_a_model_that_is_gated_or_missing_is_told_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no FLUX is chosen; .* or take checkpoints=hub_flux"):
        FluxDiffusion.load(None)
    with pytest.raises(ValueError, match="there is no folder './nothing'"):
        FluxDiffusion.load("./nothing")
    told = "(?s)cannot fetch 'black-forest-labs/FLUX.1-dev'.*accept its licence form .* hf auth login"
    with pytest.raises(ValueError, match=told):  # nothing in the cache, and no network
        FluxDiffusion.load("black-forest-labs/FLUX.1-dev")

    def refuse(*words: Any, **named: Any) -> None:
        raise GatedRepoError("Access to model is restricted.", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(HfApi, "model_info", lambda *words, **named: None)  # anybody may read that it is there
    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", refuse)
    with pytest.raises(ValueError, match=told):
        FluxDiffusion.load("black-forest-labs/FLUX.1-dev")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": (32, 30)}, "multiples of 4"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"negative": "blurred"}, "reads no negative prompt"),
        ({"generators": []}, "one generator per prompt"),
    ],
)
def test_what_cannot_be_drawn(options: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"prompts": ["a"], "generators": generators(0), "size": (32, 32), "steps": 1}
    with pytest.raises(ValueError, match=said):
        tiny_flux().draw(**{**given, **options})


def test_long_prompts_and_parts_of_two_models() -> None:
    model = tiny_flux()
    model.check_prompt("a" * 22)  # a mark before, and one behind
    with pytest.raises(ValueError, match="reads 24 tokens and this prompt has 25"):
        model.check_prompt("a" * 23)
    parts = {name: getattr(model, name) for name in ("vae", "transformer", "text_encoder", "tokenizer")}
    parts |= {"text_encoder_2": model.text_encoder_2, "tokenizer_2": model.tokenizer_2, "scheduler": model.scheduler}
    parts["text_encoder_2"].config.d_model = 16
    with pytest.raises(ValueError, match="not those of one FLUX.1 model"):
        FluxDiffusion(**parts)
