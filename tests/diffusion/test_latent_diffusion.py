from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from geoseg.diffusion.latent_diffusion import PARTS, LatentDiffusion
from geoseg.lora import LoRA, detach
from tests.tiny import pipeline_of, tiny_latent_diffusion


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return tiny_latent_diffusion()


def same(a: LatentDiffusion, b: LatentDiffusion) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_embeds_as_the_pipeline_of_diffusers(model: LatentDiffusion) -> None:
    prompts = ["seismic profile", "", "label map " * 40]
    expected, _ = pipeline_of(model).encode_prompt(prompts, "cpu", 1, False)
    embedded = model.embed(prompts)
    assert embedded.shape == (3, 24, 16)
    assert torch.equal(embedded, expected)
    assert not torch.equal(embedded[0], embedded[1])


def test_cut_prompts_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_latent_diffusion()
    model.embed(["label map " * 40, "tile"])
    model.embed(["label map " * 40])
    assert caplog.text.count("only the first 22 tokens") == 1
    assert "'tile'" not in caplog.text


def test_a_prompt_that_just_fits_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_latent_diffusion()
    prompt = "tile " * 22
    assert len(model.tokenizer(prompt).input_ids) == 24  # the premise: begin, 22 words, end
    model.embed([prompt])
    assert caplog.text == ""


def test_is_frozen_and_in_eval_mode(model: LatentDiffusion) -> None:
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert model.multiple == 4
    assert list(model.parts()) == ["unet", "text"]


def test_denoise_is_the_network(model: LatentDiffusion) -> None:
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    condition, time = model.embed(["tile", "map"]), torch.tensor([10, 900])
    expected = model.unet(noisy, time, condition).sample
    assert torch.equal(model.denoise(noisy, time, condition), expected)


def test_denoise_answers_in_float32_under_autocast(model: LatentDiffusion) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = model.denoise(torch.zeros(1, 4, 8, 8), torch.tensor([10]), model.embed(["tile"]))
    assert answer.dtype == torch.float32


def test_save_and_load(model: LatentDiffusion, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    loaded = LatentDiffusion.load(tmp_path / "model")
    assert same(model, loaded)
    assert torch.equal(loaded.embed(["Smooth Edges"]), model.embed(["Smooth Edges"]))
    assert loaded.scheduler.config.beta_schedule == "scaled_linear"
    assert type(loaded.scheduler) is type(model.scheduler)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_diffusers_reads_what_is_saved(model: LatentDiffusion, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", use_safetensors=True)
    assert torch.equal(pipeline.unet.conv_in.weight, model.unet.conv_in.weight)
    assert pipeline.safety_checker is None


def test_half_precision_files_are_float32_in_memory(model: LatentDiffusion, tmp_path: Path) -> None:
    full, half = tmp_path / "full", tmp_path / "half"
    model.save(full)
    model.save(half, half=True)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (half / weights).stat().st_size < 0.7 * (full / weights).stat().st_size
    assert model.unet.dtype == torch.float32  # the model in memory is as it was
    loaded = LatentDiffusion.load(half)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.unet.conv_in.weight, model.unet.conv_in.weight.half().float())


def test_dtype_is_for_all_but_an_autoencoder_that_needs_float32(model: LatentDiffusion, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    loaded = LatentDiffusion.load(tmp_path / "model", dtype="bfloat16")
    assert loaded.unet.conv_in.weight.dtype == torch.bfloat16
    assert loaded.vae.dtype == torch.float32
    answer = loaded.denoise(torch.zeros(1, 4, 8, 8), torch.tensor([10]), loaded.embed(["tile"]))
    assert answer.dtype == torch.float32
    with pytest.raises(ValueError, match="dtype must be"):
        LatentDiffusion.load(tmp_path / "model", dtype="int8")


def test_save_replaces_an_earlier_save_and_nothing_else(model: LatentDiffusion, tmp_path: Path) -> None:
    other = tiny_latent_diffusion(seed=1)
    other.save(tmp_path / "model")
    model.save(tmp_path / "model")
    assert same(LatentDiffusion.load(tmp_path / "model"), model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds no saved model"):
        model.save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_save_refuses_an_attached_adapter(tmp_path: Path) -> None:
    model = tiny_latent_diffusion()
    LoRA(rank=2).attach(model.parts())
    with pytest.raises(ValueError, match="detach"):
        model.save(tmp_path / "model")
    detach(model.parts())
    model.save(tmp_path / "model")
    assert (tmp_path / "model" / "model_index.json").exists()


@pytest.mark.parametrize("where", ["/no/such/folder", "./missing", "a/b/c", ""])
def test_missing_folder(where: str) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        LatentDiffusion.load(where)


def test_folder_without_a_part(model: LatentDiffusion, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    with pytest.raises(ValueError, match=f"lacks {', '.join(PARTS[1:])}"):
        LatentDiffusion.load(tmp_path)


def test_weights_that_are_not_safetensors_are_not_read(model: LatentDiffusion, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"cannot read.*safetensors"):
        LatentDiffusion.load(tmp_path / "model")


def test_scheduler_of_the_checkpoint_is_kept(model: LatentDiffusion, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | {"_class_name": "PNDMScheduler", "prediction_type": "v_prediction"}
    path.write_text(json.dumps(config))
    loaded = LatentDiffusion.load(tmp_path / "model")
    assert type(loaded.scheduler).__name__ == "PNDMScheduler"
    assert loaded.scheduler.config.prediction_type == "v_prediction"


def test_a_saved_model_does_not_say_where_it_was_read(tmp_path: Path) -> None:
    tiny_latent_diffusion().save(tmp_path / "first")
    LatentDiffusion.load(tmp_path / "first").save(tmp_path / "second")
    for config in (tmp_path / "second").rglob("*.json"):
        assert str(tmp_path) not in config.read_text()
