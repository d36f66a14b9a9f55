from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.lora import FILE, LoRA, adapter_names, detach, load, save, set_weight, trainable, weighted
from tests.tiny import stable_diffusion_parts, tiny_latent_diffusion


@pytest.fixture
def model() -> LatentDiffusion:
    return tiny_latent_diffusion()


def answer(model: LatentDiffusion) -> Tensor:
    """What the text encoder and the denoising network say together."""
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.denoise(noisy, torch.tensor([100, 700]), model.embed(["seismic profile", "label map"]))


def adapters_of(model: LatentDiffusion) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def learn(model: LatentDiffusion, scale: float = 0.5) -> None:
    """Fills the trainable matrices, as a training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameters in trainable(model.parts()).values():
            for p in parameters:
                p.copy_(scale * torch.randn(p.shape, generator=generator))


def test_layers_of_stable_diffusion_are_those_of_kohya() -> None:
    parts = stable_diffusion_parts()
    with torch.device("meta"):
        LoRA(rank=16).attach(parts)
    count = [sum(isinstance(m, LoraLayer) for m in part.modules()) for part in parts.values()]
    assert count == [192, 72]
    # rank (in + out) per layer; text: 12 layers of 4 x 768/768, 768/3072 and 3072/768
    assert sum(p.numel() for p in trainable({"text": parts["text"]})["text"]) == 12 * 16 * (4 * 1536 + 2 * 3840)


def test_a_fresh_adapter_changes_nothing(model: LatentDiffusion) -> None:
    before = answer(model)
    LoRA(rank=4).attach(model.parts())
    assert adapters_of(model)
    assert torch.equal(answer(model), before)
    learn(model)
    assert not torch.allclose(answer(model), before, atol=1e-2)  # so the test could have failed


def test_first_matrix_is_gaussian_and_second_is_zero(model: LatentDiffusion) -> None:
    LoRA(rank=8).attach(model.parts())
    first = torch.cat([layer.lora_A["vai1"].weight.flatten() for layer in adapters_of(model)])
    assert all(not layer.lora_B["vai1"].weight.any() for layer in adapters_of(model))
    assert first.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert first.mean().item() == pytest.approx(0, abs=0.01)
    # a normal distribution has 4.6 % beyond two standard deviations, the uniform one of kaiming none
    assert (first.abs() > 2 / 8).float().mean().item() == pytest.approx(0.0455, abs=0.01)


def test_start_depends_on_the_seed_alone() -> None:
    def start(seed: int, noise: int) -> Tensor:
        model = tiny_latent_diffusion()
        torch.manual_seed(noise)
        LoRA(rank=2, seed=seed).attach(model.parts())
        return torch.cat([p.detach().flatten() for ps in trainable(model.parts()).values() for p in ps])

    assert torch.equal(start(0, 1), start(0, 2))
    assert not torch.equal(start(0, 1), start(1, 1))


def test_only_the_adapter_is_trainable(model: LatentDiffusion) -> None:
    model.unet.conv_in.requires_grad_(True)
    LoRA(rank=2).attach(model.parts())
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    assert wanted
    assert all(".lora_A." in name or ".lora_B." in name for name in wanted)
    by_part = trainable(model.parts())
    assert {name: len(parameters) for name, parameters in by_part.items()} == {
        "unet": 2 * sum(isinstance(m, LoraLayer) for m in model.unet.modules()),
        "text": 2 * 12,  # two layers of six matrices
    }


def test_adapter_is_float32_in_a_half_precision_model(model: LatentDiffusion) -> None:
    model.unet.to(torch.bfloat16)
    LoRA(rank=2, text_targets=[]).attach(model.parts())
    assert {p.dtype for p in trainable(model.parts())["unet"]} == {torch.float32}
    assert model.unet.conv_in.weight.dtype == torch.bfloat16


def test_a_part_without_targets_is_left_alone(model: LatentDiffusion) -> None:
    LoRA(rank=2, text_targets=[]).attach(model.parts())
    assert list(trainable(model.parts())) == ["unet"]
    assert not any(isinstance(m, LoraLayer) for m in model.text_encoder.modules())
    LoRA(name="text-only", rank=2, unet_targets=[]).attach(model.parts())
    assert adapter_names(model.parts()) == ["vai1", "text-only"]


def test_dropout_stays_off_in_a_frozen_model(model: LatentDiffusion) -> None:
    LoRA(rank=2, dropout=0.5).attach(model.parts())
    learn(model)
    assert torch.equal(answer(model), answer(model))
    model.train()
    assert not torch.equal(answer(model), answer(model))


def test_weight_zero_is_the_base_model_bit_for_bit(model: LatentDiffusion) -> None:
    before = answer(model)
    LoRA(rank=4).attach(model.parts())
    learn(model)
    with torch.no_grad():
        adapters_of(model)[0].lora_B["vai1"].weight.fill_(torch.inf)  # 0 * inf would not be 0
    for part in model.parts().values():
        set_weight(part, "vai1", 0.0)
    assert torch.equal(answer(model), before)
    assert trainable(model.parts())  # switched off, but not frozen


def test_weight_multiplies_alpha_over_rank() -> None:
    layer = nn.ModuleDict({"to_q": nn.Linear(3, 3, bias=False)})
    LoRA(rank=2, alpha=6, unet_targets=["to_q"], text_targets=[]).attach({"unet": layer})
    a, b = trainable({"unet": layer})["unet"]
    with torch.no_grad():
        b.copy_(torch.arange(6.0).view(3, 2))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    set_weight(layer, "vai1", 0.5)
    expected = x @ layer["to_q"].base_layer.weight.T + 0.5 * 6 / 2 * x @ a.T @ b.T
    torch.testing.assert_close(layer["to_q"](x), expected)


def test_weights_of_a_while_come_back(model: LatentDiffusion) -> None:
    base = answer(model)
    LoRA(rank=4).attach(model.parts())
    learn(model)
    set_weight(model.unet, "vai1", 0.3)
    before = answer(model)

    def stop() -> None:
        with weighted(model.parts(), {"vai1": {"unet": 0.0, "text": 0.0}}):
            assert torch.equal(answer(model), base)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert torch.equal(answer(model), before)
    assert not torch.equal(before, base)


def test_two_adapters_add_up(model: LatentDiffusion) -> None:
    layer = nn.ModuleDict({"to_q": nn.Linear(3, 3)})
    parts: dict[str, nn.Module] = {"unet": layer}
    plain = layer["to_q"]
    LoRA("one", rank=2, alpha=2, unet_targets=["to_q"], text_targets=[]).attach(parts)
    first = trainable(parts)["unet"]
    LoRA("two", rank=1, alpha=1, unet_targets=["to_q"], text_targets=[], seed=1).attach(parts)
    second = trainable(parts)["unet"]
    assert not any(p.requires_grad for p in first)
    with torch.no_grad():
        first[1].fill_(1.0)
        second[1].fill_(2.0)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    one, two = x @ first[0].T @ first[1].T, x @ second[0].T @ second[1].T
    torch.testing.assert_close(layer["to_q"](x), plain(x) + one + two)
    set_weight(layer, "one", 0.0)
    torch.testing.assert_close(layer["to_q"](x), plain(x) + two)
    set_weight(layer, "one", -1.0)
    torch.testing.assert_close(layer["to_q"](x), plain(x) - one + two)
    assert all(p.requires_grad for p in second)


def test_detach_gives_the_very_base_back(model: LatentDiffusion) -> None:
    before, names, state = answer(model), [n for n, _ in model.named_modules()], model.state_dict()
    LoRA(rank=4).attach(model.parts())
    learn(model)
    detach(model.parts())
    assert adapters_of(model) == []
    assert adapter_names(model.parts()) == []
    assert [n for n, _ in model.named_modules()] == names
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[key], state[key]) for key in state)
    assert torch.equal(answer(model), before)
    LoRA(rank=2).attach(model.parts())  # and again


@pytest.mark.parametrize("alpha", [4, 9])
def test_save_and_load_is_exact(model: LatentDiffusion, tmp_path: Path, alpha: float) -> None:
    LoRA(rank=4, alpha=alpha).attach(model.parts())
    learn(model)
    expected = answer(model)
    path = save(model.parts(), tmp_path / "adapter", "vai1")
    assert [entry.name for entry in path.parent.iterdir()] == [FILE]
    other = tiny_latent_diffusion()
    load(other.parts(), tmp_path / "adapter", "again")
    assert adapter_names(other.parts()) == ["again"]
    assert torch.equal(answer(other), expected)
    assert all(".lora_" in name for name, p in other.named_parameters() if p.requires_grad)
    assert len(trainable(other.parts())["unet"]) == len(trainable(model.parts())["unet"])


def test_load_into_half_precision_keeps_the_adapter_exact(model: LatentDiffusion, tmp_path: Path) -> None:
    LoRA(rank=4).attach(model.parts())
    learn(model)
    save(model.parts(), tmp_path, "vai1")
    other = tiny_latent_diffusion()
    other.unet.to(torch.bfloat16)
    load(other.parts(), tmp_path, "vai1")
    pairs = zip(trainable(other.parts())["unet"], trainable(model.parts())["unet"], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_adapter_of_one_part_only(model: LatentDiffusion, tmp_path: Path) -> None:
    LoRA(rank=4, text_targets=[]).attach(model.parts())
    learn(model)
    save(model.parts(), tmp_path, "vai1")
    assert all(key.startswith("unet.") for key in load_file(tmp_path / FILE))
    other = tiny_latent_diffusion()
    load(other.parts(), tmp_path, "vai1")
    assert torch.equal(answer(other), answer(model))


@pytest.mark.parametrize("alpha", [4, 9])
def test_diffusers_reads_the_file(model: LatentDiffusion, tmp_path: Path, alpha: float) -> None:
    LoRA(rank=4, alpha=alpha).attach(model.parts())
    learn(model)
    save(model.parts(), tmp_path, "vai1")
    other = tiny_latent_diffusion()
    base = answer(other)
    pipeline = StableDiffusionPipeline(
        vae=other.vae,
        unet=other.unet,
        text_encoder=other.text_encoder,
        tokenizer=other.tokenizer,
        scheduler=other.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.load_lora_weights(tmp_path)
    assert torch.equal(answer(other), answer(model))
    assert not torch.allclose(answer(other), base, atol=1e-2)


def test_reads_a_file_of_diffusers(model: LatentDiffusion, tmp_path: Path) -> None:
    """Written as the training examples of diffusers do: no metadata, rank = alpha."""
    from diffusers.utils import convert_state_dict_to_diffusers

    LoRA(rank=4, alpha=4).attach(model.parts())
    learn(model)
    layers = [
        convert_state_dict_to_diffusers(get_peft_model_state_dict(part, adapter_name="vai1"))
        for part in model.parts().values()
    ]
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers[0], text_encoder_lora_layers=layers[1])
    other = tiny_latent_diffusion()
    load(other.parts(), tmp_path, "vai1")
    assert torch.equal(answer(other), answer(model))


@pytest.mark.parametrize("rslora", [False, True])
def test_reads_what_diffusers_and_peft_say_of_rank_and_alpha(
    model: LatentDiffusion, tmp_path: Path, rslora: bool
) -> None:
    """Injected by peft and written by diffusers: patterns that set ranks and alphas apart, scaled by a square root."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=rslora,
        target_modules=["to_q", "to_k"],
        rank_pattern={"mid_block.*to_q": 2},
        alpha_pattern={"to_k": 3, "attn2.to_q": 5},
    )
    base = answer(model)
    inject_adapter_in_model(config, model.unet, adapter_name="theirs")
    learn(model)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(model.unet, adapter_name="theirs"),
        unet_lora_adapter_metadata={
            key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()
        },
    )
    other = tiny_latent_diffusion()
    load(other.parts(), tmp_path, "vai1")
    torch.testing.assert_close(answer(other), answer(model), atol=1e-5, rtol=0)
    assert not torch.allclose(answer(other), base, atol=1e-2)
    save(other.parts(), tmp_path / "again", "vai1")
    third = tiny_latent_diffusion()
    load(third.parts(), tmp_path / "again", "vai1")
    assert torch.equal(answer(third), answer(other))


def test_reads_a_file_of_kohya(model: LatentDiffusion, tmp_path: Path) -> None:
    LoRA(rank=4, alpha=2).attach(model.parts())
    learn(model)
    state = {}
    for start, part in (("lora_unet_", model.unet), ("lora_te_text_model_", model.text_encoder)):
        for name, module in part.named_modules():
            if isinstance(module, LoraLayer):
                key = start + name.replace(".", "_")
                state[f"{key}.lora_down.weight"] = module.lora_A["vai1"].weight.detach().clone()
                state[f"{key}.lora_up.weight"] = module.lora_B["vai1"].weight.detach().clone()
                state[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(state, tmp_path / "vai1.safetensors")
    other = tiny_latent_diffusion()
    load(other.parts(), tmp_path / "vai1.safetensors", "vai1")
    torch.testing.assert_close(answer(other), answer(model), atol=1e-5, rtol=0)


def test_a_file_of_another_model_is_refused_and_leaves_no_trace(model: LatentDiffusion, tmp_path: Path) -> None:
    LoRA(rank=2).attach(model.parts())
    save(model.parts(), tmp_path, "vai1")
    state = load_file(tmp_path / FILE)
    key = next(key for key in state if key.startswith("text_encoder") and "lora_A" in key)
    for name, changed in (
        ("wide", {key: torch.zeros(2, 99)}),
        ("odd", {f"text_encoder.nowhere.lora_{x}.weight": torch.zeros(2, 2) for x in "AB"}),
    ):
        save_file({**state, **changed}, tmp_path / f"{name}.safetensors")
        other = tiny_latent_diffusion()
        with pytest.raises(ValueError, match="another model"):
            load(other.parts(), tmp_path / f"{name}.safetensors", "vai1")
        assert adapters_of(other) == []
        assert adapter_names(other.parts()) == []


def test_mistakes(model: LatentDiffusion, tmp_path: Path) -> None:
    parts = model.parts()
    with pytest.raises(ValueError, match=r"no linear.*'to_x'"):
        LoRA(unet_targets=["to_q", "to_x"]).attach(parts)
    with pytest.raises(ValueError, match=r"method.adapter.text_targets=\[\] to adapt the other parts"):
        LoRA().attach({"unet": model.unet})
    assert adapters_of(model) == []
    with pytest.raises(ValueError, match="no adapter file"):
        load(parts, tmp_path, "vai1")
    LoRA(rank=2).attach(parts)
    with pytest.raises(ValueError, match="attached already"):
        LoRA(rank=2).attach(parts)
    with pytest.raises(ValueError, match=r"no adapter 'vai2' is attached here, only \['vai1'\]"):
        set_weight(model.unet, "vai2", 1.0)
    with pytest.raises(ValueError, match="finite"):
        set_weight(model.unet, "vai1", float("nan"))
    with pytest.raises(ValueError, match="no adapter 'vai2' to save"):
        save(parts, tmp_path, "vai2")
    save(parts, tmp_path, "vai1")
    with pytest.raises(ValueError, match="attached already"):
        load(parts, tmp_path, "vai1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"alpha": 0}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"name": "a:b"}, "adapters are named"),
        ({"name": "lora"}, "adapters are named"),
        ({"unet_targets": [], "text_targets": []}, "all empty"),
    ],
)
def test_wrong_plans(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRA(**options)
