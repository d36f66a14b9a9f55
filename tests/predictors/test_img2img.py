from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img
from torch import Tensor

from geoseg import progress
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.lora import LoRA, set_weight, trainable
from geoseg.palette import Palette
from geoseg.predictors.img2img import Img2Img
from geoseg.randomness import stream
from tests.tiny import tiny_latent_diffusion

# diffusers hands torch tensors to numpy in the old way; nothing here can change that
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PALETTE = Palette(["#000000", "#FFFFFF", "#FF0000"])
SCHEDULERS = [DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler]
WORDS = "seismic profile, Smooth Edges"


@pytest.fixture
def model() -> LatentDiffusion:
    return tiny_latent_diffusion()


@pytest.fixture
def adapted(model: LatentDiffusion) -> LatentDiffusion:
    """With an adapter that has learnt something and is frozen again."""
    LoRA(rank=4, alpha=8).attach(model.parts())
    generator = torch.Generator().manual_seed(5)
    for parameters in trainable(model.parts()).values():
        for p in parameters:
            p.data.copy_(0.3 * torch.randn(p.shape, generator=generator))
            p.requires_grad_(False)
    return model


def pictures(count: int = 3, channels: int = 3, height: int = 16, width: int = 12) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def generators(count: int = 3, first: int = 0) -> list[torch.Generator]:
    return [stream(0, "test", first + i) for i in range(count)]


def pipeline_of(model: LatentDiffusion, scheduler: type) -> Callable[..., Tensor]:
    """The second implementation; it encodes pictures to the mean latent here, as Img2Img does."""
    pipeline = StableDiffusionImg2ImgPipeline(
        vae=model.vae,
        unet=model.unet,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        scheduler=scheduler.from_config(model.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def run(image: Tensor, words: str, **options: object) -> Tensor:
        negative = options.pop("negative_prompt", "")
        return pipeline(
            prompt=[words] * len(image),
            negative_prompt=[negative] * len(image),
            image=image,
            output_type="pt",
            **options,
        ).images

    return run


@pytest.fixture
def mean_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pipeline_stable_diffusion_img2img,
        "retrieve_latents",
        lambda encoded, generator=None: encoded.latent_dist.mode(),
    )


@pytest.mark.usefixtures("mean_latents")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("guidance", [1.0, 7.0])
def test_agrees_with_the_pipeline_of_diffusers(model: LatentDiffusion, scheduler: type, guidance: float) -> None:
    image = pictures()
    predictor = Img2Img(
        model,
        PALETTE,
        WORDS,
        negative_prompt="flat colours",
        strength=0.6,
        second_strength=0.35,
        guidance=guidance,
        steps=9,
        scheduler=scheduler.from_config,
    )
    prediction = predictor.predict(image, generators())
    run = pipeline_of(model, scheduler)
    options = {"negative_prompt": "flat colours", "guidance_scale": guidance, "num_inference_steps": 9}
    drawn = generators()
    first = run(image, WORDS, strength=0.6, generator=drawn, **options)
    second = run(first, WORDS, strength=0.35, generator=drawn, **options)
    assert list(prediction.stages) == ["pass 1", "pass 2"]
    # one float32 network run twice; differences come from the order of additions and grow with guidance and steps
    torch.testing.assert_close(prediction.stages["pass 1"], first, atol=5e-5, rtol=0)
    torch.testing.assert_close(prediction.stages["pass 2"], second, atol=5e-5, rtol=0)
    assert (first - image).abs().mean() > 0.05
    assert (second - first).abs().mean() > 0.01


@pytest.mark.usefixtures("mean_latents")
@pytest.mark.parametrize(("text", "unet"), [(1.0, 1.0), (1.0, 0.5), (0.0, 1.0), (0.5, 0.0)])
def test_adapter_tags_agree_with_the_pipeline_of_diffusers(adapted: LatentDiffusion, text: float, unet: float) -> None:
    image = pictures(2)
    predictor = Img2Img(adapted, PALETTE, f"{WORDS}, <lora:vai1:{text}:{unet}>", second_strength=None, steps=6)
    painted = predictor.predict(image, generators(2)).painted
    set_weight(adapted.unet, "vai1", unet)
    set_weight(adapted.text_encoder, "vai1", text)
    run = pipeline_of(adapted, DDIMScheduler)
    expected = run(image, WORDS, strength=0.53, guidance_scale=7.0, num_inference_steps=6, generator=generators(2))
    torch.testing.assert_close(painted, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_an_image_gives_the_same_answer_in_any_batch(model: LatentDiffusion, scheduler: type) -> None:
    predictor = Img2Img(model, PALETTE, WORDS, steps=8, scheduler=scheduler.from_config)
    image = pictures()
    together = predictor.predict(image, generators())
    for i in range(3):
        alone = predictor.predict(image[i : i + 1], generators(1, first=i))
        # convolutions of another batch size add in another order; 30 calls of the network amplify it
        torch.testing.assert_close(alone.painted, together.painted[i : i + 1], atol=5e-5, rtol=0)
        torch.testing.assert_close(alone.probs, together.probs[i : i + 1], atol=1e-3, rtol=0)
    other = predictor.predict(image[:1], generators(1, first=7))
    assert (other.painted - together.painted[:1]).abs().max() > 0.01


def test_what_a_prediction_holds(model: LatentDiffusion) -> None:
    predictor = Img2Img(model, PALETTE, WORDS, steps=6)
    prediction = predictor.predict(pictures(), generators())
    assert predictor.num_classes == 3
    assert prediction.probs.shape == (3, 3, 16, 12)
    torch.testing.assert_close(prediction.probs.sum(1), torch.ones(3, 16, 12))
    assert prediction.painted is prediction.stages["pass 2"]
    assert torch.equal(prediction.probs, PALETTE.decode(prediction.painted))
    assert prediction.painted.min() >= 0
    assert prediction.painted.max() <= 1
    one = Img2Img(model, PALETTE, WORDS, steps=6, second_strength=None).predict(pictures(), generators())
    assert list(one.stages) == ["pass 1"]
    assert torch.equal(one.painted, prediction.stages["pass 1"])


def test_grey_is_three_equal_channels(model: LatentDiffusion) -> None:
    predictor = Img2Img(model, PALETTE, WORDS, steps=4)
    grey = pictures(2, channels=1)
    a, b = predictor.predict(grey, generators(2)), predictor.predict(grey.repeat(1, 3, 1, 1), generators(2))
    assert torch.equal(a.painted, b.painted)


@pytest.mark.parametrize(("height", "width"), [(13, 10), (3, 2), (1, 17)])
def test_any_size_comes_back_as_it_went_in(model: LatentDiffusion, height: int, width: int) -> None:
    predictor = Img2Img(model, PALETTE, WORDS, steps=4)
    prediction = predictor.predict(pictures(1, height=height, width=width), generators(1))
    assert prediction.painted.shape == (1, 3, height, width)
    assert prediction.probs.shape == (1, 3, height, width)


def test_padding_is_a_mirror_that_is_cut_off(model: LatentDiffusion) -> None:
    predictor = Img2Img(model, PALETTE, WORDS, steps=4, second_strength=None)
    image = pictures(1, height=8, width=6)
    mirrored = torch.cat([image, image[..., [5, 4]]], dim=-1)
    expected = predictor.predict(mirrored, generators(1)).painted[..., :6]
    assert torch.equal(predictor.predict(image, generators(1)).painted, expected)


def test_a_large_picture_is_drawn_as_one(model: LatentDiffusion) -> None:
    image = pictures(2, height=24, width=40)
    whole = Img2Img(model, PALETTE, WORDS, steps=4)
    tiled = Img2Img(model, PALETTE, WORDS, steps=4, tile=16, batch=3)
    answer = tiled.predict(image, generators(2)).painted
    assert answer.shape == image.shape
    assert not torch.equal(answer, whole.predict(image, generators(2)).painted)
    alone = tiled.predict(image[1:], generators(2)[1:]).painted
    torch.testing.assert_close(answer[1:], alone, atol=5e-5, rtol=0)
    small = image[..., :16, :16]
    assert torch.equal(tiled.predict(small, generators(2)).painted, whole.predict(small, generators(2)).painted)


@pytest.mark.parametrize("options", [{"tile": 7}, {"tile": 0}, {"tile": 16, "overlap": 1.0}, {"tile": 16, "batch": 0}])
def test_windows_that_cannot_be(model: LatentDiffusion, options: dict) -> None:
    with pytest.raises(ValueError, match="tile|overlap"):
        Img2Img(model, PALETTE, WORDS, **options)


def test_a_prompt_has_to_call_the_adapter(adapted: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match="does not call the adapter 'vai1'.* add <lora:vai1:1>"):
        Img2Img(adapted, PALETTE, WORDS)
    off = Img2Img(adapted, PALETTE, f"{WORDS}, <lora:vai1:0>", steps=4).predict(pictures(1), generators(1)).painted
    on = Img2Img(adapted, PALETTE, f"{WORDS}, <lora:vai1:1>", steps=4).predict(pictures(1), generators(1)).painted
    assert off is not None and on is not None and not torch.equal(off, on)


def test_weights_come_back_after_a_prediction_and_after_a_failure(
    adapted: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_weight(adapted.unet, "vai1", 0.3)
    predictor = Img2Img(adapted, PALETTE, "<lora:vai1:0.9>", steps=4)

    def scales() -> list[dict]:
        return [dict(m.scaling) for part in adapted.parts().values() for m in part.modules() if hasattr(m, "scaling")]

    seen = []
    denoise = adapted.denoise
    monkeypatch.setattr(adapted, "denoise", lambda *args: seen.append(scales()[0]) or denoise(*args))
    before = scales()
    predictor.predict(pictures(1), generators(1))
    assert scales() == before
    assert seen[0]["vai1"] == pytest.approx(0.9 * 8 / 4)

    def fail(*args: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(adapted, "denoise", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        predictor.predict(pictures(1), generators(1))
    assert scales() == before


def test_text_is_embedded_once_until_something_changes(
    adapted: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = []
    embed = adapted.embed
    monkeypatch.setattr(adapted, "embed", lambda prompts: count.append(prompts) or embed(prompts))
    predictor = Img2Img(adapted, PALETTE, f"{WORDS}, <lora:vai1:0.5>", negative_prompt="tile", steps=4)
    first = predictor.predict(pictures(1), generators(1)).painted
    assert torch.equal(predictor.predict(pictures(1), generators(1)).painted, first)
    assert count == [["tile", WORDS]]
    predictor.prompt = f"{WORDS}, <lora:vai1:0.7>"
    assert not torch.equal(predictor.predict(pictures(1), generators(1)).painted, first)
    assert len(count) == 2
    with torch.no_grad():
        next(adapted.text_encoder.parameters()).mul_(1.5)
    changed = predictor.predict(pictures(1), generators(1)).painted
    assert len(count) == 3
    assert torch.equal(
        changed,
        Img2Img(adapted, PALETTE, predictor.prompt, negative_prompt="tile", steps=4)
        .predict(pictures(1), generators(1))
        .painted,
    )


def test_nothing_is_kept_while_the_text_encoder_learns(adapted: LatentDiffusion) -> None:
    p = next(p for name, p in adapted.text_encoder.named_parameters() if "lora_B" in name)
    p.requires_grad_(True)
    predictor = Img2Img(adapted, PALETTE, f"{WORDS}, <lora:vai1>", steps=4)
    before = predictor.predict(pictures(1), generators(1)).painted
    p.data.mul_(5)  # unseen by the version counter, as an 8-bit optimizer's step
    assert not torch.equal(predictor.predict(pictures(1), generators(1)).painted, before)


def test_one_call_of_the_network_per_step(model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    denoise = model.denoise
    monkeypatch.setattr(model, "denoise", lambda noisy, *args: sizes.append(len(noisy)) or denoise(noisy, *args))
    Img2Img(model, PALETTE, WORDS, steps=10, strength=0.55, second_strength=0.3).predict(pictures(), generators())
    assert sizes == [6] * (5 + 3)
    sizes.clear()
    Img2Img(model, PALETTE, WORDS, steps=10, guidance=1.0, second_strength=None).predict(pictures(), generators())
    assert sizes == [3] * 5


@pytest.mark.parametrize("second_strength", [0.4, 0.05, None])
def test_an_image_counts_one_in_the_progress(
    model: LatentDiffusion, second_strength: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = []
    monkeypatch.setattr(progress, "advance", lambda name, amount=1.0: moves.append((name, amount)))
    Img2Img(model, PALETTE, WORDS, steps=10, second_strength=second_strength).predict(pictures(), generators())
    assert {name for name, _ in moves} == {"generation"}
    assert sum(amount for _, amount in moves) == pytest.approx(3)


def test_no_step_to_run_is_the_autoencoder_alone(model: LatentDiffusion, caplog: pytest.LogCaptureFixture) -> None:
    predictor = Img2Img(model, PALETTE, WORDS, steps=5, strength=0.1, second_strength=None)
    image = pictures()
    with torch.no_grad():
        expected = model.codec.decode(model.codec.encode(image))
    for _ in range(2):
        assert torch.equal(predictor.predict(image, generators()).painted, expected)
    assert caplog.text.count("int(5 * 0.1) = 0 steps") == 1


def test_runs_under_autocast(model: LatentDiffusion) -> None:
    predictor = Img2Img(model, PALETTE, WORDS, steps=5)
    exact = predictor.predict(pictures(), generators()).painted
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = predictor.predict(pictures(), generators()).painted
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, atol=0.1, rtol=0)


def test_velocity_checkpoints_work(model: LatentDiffusion) -> None:
    other = tiny_latent_diffusion(prediction_type="v_prediction")
    image = pictures(1)
    a = Img2Img(model, PALETTE, WORDS, steps=5).predict(image, generators(1)).painted
    b = Img2Img(other, PALETTE, WORDS, steps=5).predict(image, generators(1)).painted
    assert not torch.allclose(a, b, atol=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.0}, r"^strength must be above 0 and at most 1, got 0.0"),
        ({"strength": 1.5}, r"^strength must be"),
        ({"strength": float("nan")}, r"^strength must be"),
        ({"second_strength": 0.0}, r"^second_strength must be .*null makes one pass"),
        ({"steps": 0}, r"^steps must be at least 1"),
        ({"guidance": -1.0}, r"^guidance must be .*1 switches it off"),
    ],
)
def test_wrong_options(model: LatentDiffusion, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Img2Img(model, PALETTE, WORDS, **options)


def test_wrong_tags(model: LatentDiffusion, adapted: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match="write <lora:vai1:1>"):
        Img2Img(adapted, PALETTE, "<loravai1:1>")
    plain = Img2Img(tiny_latent_diffusion(), PALETTE, "<lora:vai1:1>")  # an adapter may still come
    with pytest.raises(ValueError, match="no adapter is attached"):
        plain.predict(pictures(1), generators(1))
    with pytest.raises(ValueError, match="belong in the prompt"):
        Img2Img(adapted, PALETTE, "<lora:vai1:1>", negative_prompt="<lora:vai1:1>")


def test_wrong_inputs(model: LatentDiffusion) -> None:
    predictor = Img2Img(model, PALETTE, WORDS, steps=4)
    with pytest.raises(ValueError, match="one generator per image is needed, got 2 for 3"):
        predictor.predict(pictures(), generators(2))
    with pytest.raises(ValueError, match=r"grey \[B, 1, H, W\], got \[3, 2, 16, 12\]"):
        predictor.predict(pictures(channels=2), generators())
