"""Adapter files: names against those written down here by hand, numbers against sums done by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_unet_state_dict_to_peft
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from geoseg.adapters import Adapter, Layer, in_diffusers_layout, in_kohya_layout, read, write
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.lora import LoRA, adapter_names, detach, gathered, load, set_weight, trainable
from tests.tiny import pipeline_of, stable_diffusion_parts, tiny_latent_diffusion


def answer(model: LatentDiffusion) -> Tensor:
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.denoise(noisy, torch.tensor([100, 700]), model.embed(["seismic profile", "label map"]))


def trained(alpha: float, rank: int = 4) -> LatentDiffusion:
    """A model with an adapter "vai1" that changes what it says."""
    model = tiny_latent_diffusion()
    LoRA(rank=rank, alpha=alpha).attach(model.parts())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameters in trainable(model.parts()).values():
            for p in parameters:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.fixture(scope="module")
def sd15() -> Adapter:
    """An adapter of rank 2 and alpha 1 for every layer of Stable Diffusion 1.5 that kohya adapts, all zero."""
    parts = stable_diffusion_parts()
    with torch.device("meta"):
        LoRA(rank=2, alpha=1).attach(parts)
    empty = gathered(parts, "vai1")
    layers = {
        part: {
            path: Layer(torch.zeros(layer.down.shape), torch.zeros(layer.up.shape), layer.alpha)
            for path, layer in found.items()
        }
        for part, found in empty.layers.items()
    }
    return empty._replace(layers=layers)


# module, input width, output width, dimensions of its weight
SD15 = [
    ("lora_unet_down_blocks_0_attentions_0_proj_in", 320, 320, 4),
    ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 320, 320, 2),
    ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768, 320, 2),
    ("lora_unet_down_blocks_1_attentions_1_transformer_blocks_0_attn1_to_out_0", 640, 640, 2),
    ("lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj", 1280, 10240, 2),
    ("lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_2", 1280, 320, 2),
    ("lora_unet_up_blocks_3_attentions_2_proj_out", 320, 320, 4),
    ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768, 768, 2),
    ("lora_te_text_model_encoder_layers_11_self_attn_out_proj", 768, 768, 2),
    ("lora_te_text_model_encoder_layers_0_mlp_fc1", 768, 3072, 2),
    ("lora_te_text_model_encoder_layers_11_mlp_fc2", 3072, 768, 2),
]


def test_names_and_shapes_of_stable_diffusion_are_those_of_kohya(sd15: Adapter) -> None:
    state = in_kohya_layout(sd15)
    names = {key.split(".")[0] for key in state}
    assert (len(names), len(state)) == (264, 792)
    assert sum(name.startswith("lora_unet_") for name in names) == 192
    assert sum(name.startswith("lora_te_text_model_encoder_layers_") for name in names) == 72
    assert {key.partition(".")[2] for key in state} == {"lora_down.weight", "lora_up.weight", "alpha"}
    for name, wide, out, ndim in SD15:
        kernel = [1] * (ndim - 2)
        assert list(state[f"{name}.lora_down.weight"].shape) == [2, wide, *kernel], name
        assert list(state[f"{name}.lora_up.weight"].shape) == [out, 2, *kernel], name
        assert state[f"{name}.alpha"].shape == ()
        assert state[f"{name}.alpha"].item() == 1
    assert sum(value.ndim == 4 for value in state.values()) == 2 * 32  # 16 transformers, one layer in and one out


def test_diffusers_turns_every_name_of_stable_diffusion_back(sd15: Adapter) -> None:
    state, alphas = StableDiffusionPipeline.lora_state_dict(in_kohya_layout(sd15))
    assert (len(state), len(alphas)) == (528, 264)
    unet = {key.removeprefix("unet."): value for key, value in state.items() if key.startswith("unet.")}
    found = {key.rpartition(".lora_")[0] for key in convert_unet_state_dict_to_peft(unet)}
    layers = {name for name, _ in stable_diffusion_parts()["unet"].named_modules()}
    assert len(found) == 192
    assert found <= layers


def test_a_file_for_stable_diffusion_is_read_into_it(sd15: Adapter, tmp_path: Path) -> None:
    path = write(sd15, tmp_path / "sd.safetensors", "kohya", torch.float16)
    said = header(path)
    assert said == {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "1.0",
        "ss_output_name": "sd",
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "sd",
        "geoseg.modules": "264",
    }
    parts = stable_diffusion_parts()
    with torch.device("meta"):
        load(parts, path, "again")
    count = [sum(isinstance(module, LoraLayer) for module in part.modules()) for part in parts.values()]
    assert count == [192, 72]
    again = read(path)
    assert in_kohya_layout(again).keys() == load_file(path).keys()
    assert again.fits_sd1


@pytest.mark.parametrize("alpha", [4, 9, 2.5])
def test_a_kohya_file_means_what_its_numbers_say(tmp_path: Path, alpha: float) -> None:
    """The base model with alpha / rank * up @ down added to its weights by hand says what the adapted one says."""
    model = trained(alpha)
    path = write(gathered(model.parts(), "vai1"), tmp_path / "a.safetensors", "kohya")
    assert header(path)["ss_network_alpha"] == str(float(alpha))
    assert "ss_base_model_version" not in header(path)  # a tiny model is no Stable Diffusion 1
    state = load_file(path)
    by_hand = tiny_latent_diffusion()
    for start, part in (("lora_unet_", by_hand.unet), ("lora_te_text_model_", by_hand.text_encoder)):
        for name, module in part.named_modules():
            key = start + name.replace(".", "_")
            if f"{key}.alpha" not in state:
                continue
            down, up = state.pop(f"{key}.lora_down.weight"), state.pop(f"{key}.lora_up.weight")
            product = up.flatten(1) @ down.flatten(1) * state.pop(f"{key}.alpha") / 4
            with torch.no_grad():
                module.weight.add_(product.view(module.weight.shape))
    assert state == {}
    base = answer(tiny_latent_diffusion())
    torch.testing.assert_close(answer(by_hand), answer(model), atol=1e-5, rtol=0)
    assert (answer(model) - base).abs().max() > 0.1  # so the test could have failed


@pytest.mark.parametrize("alpha", [4, 9])
def test_export_and_import_agree(tmp_path: Path, alpha: float) -> None:
    model = trained(alpha)
    adapter = gathered(model.parts(), "vai1")
    for layout, dtype in (("kohya", torch.float32), ("diffusers", torch.float32), ("kohya", torch.float16)):
        path = write(adapter, tmp_path / f"{layout}-{dtype}.safetensors", layout, dtype)
        other = tiny_latent_diffusion()
        base = answer(other)
        load(other.parts(), path, "again")
        error = answer(other) - answer(model)
        if dtype == torch.float32:
            assert error.abs().max() < 1e-5
        else:  # which is why float32 is the default
            assert 1e-4 < error.norm() / (answer(model) - base).norm() < 0.02
        # a file that went through kohya's layout can go through it once more
        if layout == "kohya":
            once_more = write(read(path), tmp_path / "more.safetensors", "kohya", dtype)
            first, second = load_file(path), load_file(once_more)
            assert first.keys() == second.keys()
            assert all(torch.equal(first[key], second[key]) for key in first)
        for part in other.parts().values():
            set_weight(part, "again", 0.0)
        assert torch.equal(answer(other), base)


@pytest.mark.parametrize("alpha", [4, 9])
def test_diffusers_reads_a_kohya_file(tmp_path: Path, alpha: float) -> None:
    model = trained(alpha)
    write(gathered(model.parts(), "vai1"), tmp_path / "vai1.safetensors", "kohya")
    other = tiny_latent_diffusion()
    pipeline = pipeline_of(other)
    pipeline.load_lora_weights(tmp_path, weight_name="vai1.safetensors")
    torch.testing.assert_close(answer(other), answer(model), atol=1e-5, rtol=0)


def test_layers_keep_their_own_ranks_and_alphas(tmp_path: Path) -> None:
    """As in a file that kohya-ss/sd-scripts resized; it also writes a text encoder as lora_te1_, here and there."""
    state = in_kohya_layout(gathered(trained(4).parts(), "vai1"))
    name = "lora_te_text_model_encoder_layers_1_mlp_fc1"
    state[f"{name}.lora_down.weight"] = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    state[f"{name}.lora_up.weight"] = torch.randn(32, 2, generator=torch.Generator().manual_seed(2))
    state[f"{name}.alpha"] = torch.tensor(3.0)
    del state["lora_unet_mid_block_attentions_0_proj_in.alpha"]  # which then counts as the rank
    state = {key.replace("lora_te_", "lora_te1_"): value for key, value in state.items()}
    save_file(state, tmp_path / "mixed.safetensors")
    adapter = read(tmp_path / "mixed.safetensors")
    layer = adapter.layers["text"]["encoder_layers_1_mlp_fc1"]
    assert (layer.rank, layer.alpha) == (2, 3)
    assert adapter.layers["unet"]["mid_block_attentions_0_proj_in"].alpha == 4
    said = header(write(adapter, tmp_path / "again.safetensors", "kohya"))
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("Dynamic", "Dynamic")
    assert not any("lora_te1_" in key for key in load_file(tmp_path / "again.safetensors"))

    answers = []
    for file in ("mixed", "again"):
        model = tiny_latent_diffusion()
        load(model.parts(), tmp_path / f"{file}.safetensors", "vai1")
        answers.append(answer(model))
        fc1 = model.text_encoder.get_submodule("encoder.layers.1.mlp.fc1")
        x = torch.randn(5, 16, generator=torch.Generator().manual_seed(4))
        down, up = (state[f"{name.replace('te_', 'te1_')}.lora_{side}.weight"] for side in ("down", "up"))
        torch.testing.assert_close(fc1(x), fc1.base_layer(x) + 3 / 2 * x @ down.T @ up.T)
    assert torch.equal(*answers)
    # and the other layout keeps them too
    from geoseg.lora import save

    save(model.parts(), tmp_path / "diffusers", "vai1")
    third = tiny_latent_diffusion()
    load(third.parts(), tmp_path / "diffusers", "one")
    assert torch.equal(answer(third), answers[0])
    load(third.parts(), tmp_path / "diffusers", "two")  # beside the first
    assert adapter_names(third.parts()) == ["one", "two"]
    assert not torch.allclose(answer(third), answers[0], atol=1e-2)
    detach(third.parts())
    assert torch.equal(answer(third), answer(tiny_latent_diffusion()))


UNET = "lora_unet_mid_block_attentions_0_proj_in"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # another base
        ({f"{TEXT}.lora_down.weight": torch.zeros(4, 768)}, r"another model \(unknown\).*fc1 has matrices of"),
        ({f"{TEXT}.lora_up.weight": torch.zeros(99, 4)}, "another model"),
        ({f"{UNET}.lora_down.weight": torch.zeros(4, 32, 3, 3)}, "another model"),
        (
            {f"{UNET}.lora_down.weight": torch.zeros(4, 32), f"{UNET}.lora_up.weight": torch.zeros(32, 4)},
            "another model",
        ),
        # layers that are not there
        (
            {
                "lora_unet_down_blocks_9_x.lora_down.weight": torch.zeros(4, 16),
                "lora_unet_down_blocks_9_x.lora_up.weight": torch.zeros(16, 4),
            },
            "holds 1 of .* layers that are not there, such as down_blocks_9_x",
        ),
        (
            {
                "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(4, 16),
                "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.zeros(32, 4),
            },
            "2 entries that are no low-rank matrix.*lora_te2_",
        ),
        ({f"{TEXT}.dora_scale": torch.zeros(32, 1)}, "no plain LoRA"),
        ({f"{TEXT}.hada_w1_a": torch.zeros(32, 1)}, "no plain LoRA"),
        ({"loss": torch.zeros(1)}, "such as loss"),
        # not whole
        ({f"{TEXT}.lora_up.weight": None}, "text encoder_layers_0_mlp_fc1 misses its matrix up"),
        ({f"{UNET}.lora_down.weight": None, f"{UNET}.lora_up.weight": None}, "misses its matrix down and up"),
        (
            {f"{UNET}.lora_down.weight": None, f"{UNET}.lora_up.weight": None, f"{UNET}.alpha": None},
            r"holds \d+ of the \d+ modules it was written with",
        ),
        # numbers that mean nothing
        ({f"{TEXT}.lora_down.weight": torch.zeros(0, 16), f"{TEXT}.lora_up.weight": torch.zeros(32, 0)}, "rank 0"),
        ({f"{TEXT}.lora_down.weight": torch.zeros(3, 16)}, "do not make a product"),
        ({f"{TEXT}.lora_down.weight": torch.zeros(4)}, "do not make a product"),
        ({f"{TEXT}.alpha": torch.tensor(0.0)}, "alpha 0"),
        ({f"{TEXT}.alpha": torch.tensor(torch.nan)}, "alpha nan"),
    ],
)
def test_a_kohya_file_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    state: dict[str, Any] = {**in_kohya_layout(gathered(trained(4).parts(), "vai1")), **change}
    count = str(len({key.split(".")[0] for key in state}))
    save_file({key: value for key, value in state.items() if value is not None}, tmp_path / "bad.safetensors")
    if "written with" in message:
        kept = load_file(tmp_path / "bad.safetensors")
        save_file(kept, tmp_path / "bad.safetensors", {"geoseg.modules": count})
    model = tiny_latent_diffusion()
    before = answer(model)
    with pytest.raises(ValueError, match=message):
        load(model.parts(), tmp_path / "bad.safetensors", "vai1")
    assert adapter_names(model.parts()) == []
    assert torch.equal(answer(model), before)


@pytest.mark.parametrize(
    ("change", "says", "message"),
    [
        ({"unet.mid_block.attentions.0.proj_in.lora_A.weight": None}, {}, "misses its matrix down"),
        (
            {f"unet.mid_block.attentions.0.proj_in.lora_{x}.weight": None for x in "AB"},
            {},
            "misses 1 layers of unet that it says it adapts, such as mid_block.attentions.0.proj_in",
        ),
        ({}, {"unet.r": 8}, "has rank 4, but the file's header says 8"),
        ({}, {"text_encoder.lora_alpha": -1}, "alpha -1"),
        (
            {"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_magnitude_vector": torch.ones(32)},
            {},
            "no plain LoRA",
        ),
        ({"text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": torch.ones(4, 16)}, {}, "no low-rank"),
    ],
)
def test_a_diffusers_file_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Tensor | None], says: dict[str, Any], message: str
) -> None:
    path = write(gathered(trained(4).parts(), "vai1"), tmp_path / "bad.safetensors", "diffusers")
    stated = {**json.loads(header(path)["lora_adapter_metadata"]), **says}
    state = {key: value for key, value in {**load_file(path), **change}.items() if value is not None}
    save_file(state, path, {"lora_adapter_metadata": json.dumps(stated)})
    model = tiny_latent_diffusion()
    with pytest.raises(ValueError, match=message):
        load(model.parts(), path, "vai1")
    assert adapter_names(model.parts()) == []


def test_a_part_that_the_model_lacks_and_files_that_are_none(tmp_path: Path) -> None:
    model = trained(4)
    path = write(gathered(model.parts(), "vai1"), tmp_path / "a.safetensors", "kohya", notes={"geoseg.base": "mine"})
    with pytest.raises(ValueError, match="adapts the part 'text', which this model lacks"):
        load({"unet": tiny_latent_diffusion().unet}, path, "vai1")
    assert read(path).base == "mine"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read as an adapter"):
        read(path)
    path.write_text("no tensors")
    with pytest.raises(ValueError, match="cannot be read as an adapter"):
        load(tiny_latent_diffusion().parts(), path, "vai1")
    save_file({}, path)
    with pytest.raises(ValueError, match="holds no adapter for unet or text"):
        load(tiny_latent_diffusion().parts(), path, "vai1")


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    adapter = gathered(trained(4).parts(), "vai1")
    path = write(adapter, tmp_path / "new" / "a.safetensors", "kohya")
    before = path.read_bytes()
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode  # others may read it where they may read others
    layer = adapter.layers["text"]["encoder.layers.0.mlp.fc1"]
    for factor, dtype in ((1e6, torch.float16), (torch.inf, torch.float32)):
        large = {"text": {"encoder.layers.0.mlp.fc1": layer._replace(up=layer.up.abs() * factor + factor)}}
        with pytest.raises(ValueError, match="not finite"):
            write(adapter._replace(layers=large), path, "kohya", dtype)
    with pytest.raises(TypeError):
        write(adapter, path, "kohya", notes={"number": 1})  # type: ignore[dict-item]
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["a.safetensors"]
    with pytest.raises(ValueError, match="cannot be turned back"):
        in_diffusers_layout(read(path))
