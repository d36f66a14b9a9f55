"""LoHa and LoKr, and all kinds of adapters on FLUX: what they add, their files, and that they leave no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from geoseg.adapters import KIN_FILE, made
from geoseg.diffusion.flux import FluxDiffusion
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.lora import (
    FILE,
    FLUX_TARGETS,
    LoHa,
    LoKr,
    LoRA,
    Plan,
    adapter_names,
    detach,
    load,
    save,
    set_weight,
    trainable,
)
from tests.tiny import tiny_flux, tiny_latent_diffusion

KINDS = (LoRA, LoHa, LoKr)
TEXT = ("q_proj", "fc1")


def plan_of(kind: Any, model: LatentDiffusion | FluxDiffusion, **options: Any) -> Plan:
    flux = isinstance(model, FluxDiffusion)
    targets = {"unet_targets": [], "transformer_targets": FLUX_TARGETS} if flux else {}
    plan: Plan = kind(**{"rank": 3, "alpha": 6, "text_targets": TEXT, **targets, **options})
    return plan


def answer(model: LatentDiffusion | FluxDiffusion) -> Tensor:
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.denoise(noisy, torch.tensor([100, 700]), model.embed(["a river", "label map"]))


def learn(model: LatentDiffusion | FluxDiffusion) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameters in trainable(model.parts()).values():
            for p in parameters:
                p.copy_(0.5 * torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("make", [tiny_latent_diffusion, tiny_flux])
@pytest.mark.parametrize("kind", KINDS)
def test_put_in_weighed_saved_loaded_and_taken_out(make: Any, kind: Any, tmp_path: Path) -> None:
    model = make()
    before, names = answer(model), [name for name, _ in model.named_modules()]
    plan_of(kind, model).attach(model.parts())
    assert torch.equal(answer(model), before)  # a fresh one changes nothing
    assert {p.dtype for ps in trainable(model.parts()).values() for p in ps} == {torch.float32}
    learn(model)
    after = answer(model)
    assert (after - before).abs().max() > 1e-2
    path = save(model.parts(), tmp_path, "vai1")
    assert path == tmp_path / (FILE if kind is LoRA else KIN_FILE)
    for part in model.parts().values():
        set_weight(part, "vai1", 0.0)
    assert torch.equal(answer(model), before)
    detach(model.parts())
    assert torch.equal(answer(model), before) and [name for name, _ in model.named_modules()] == names
    for where in (tmp_path, path):
        again = make()
        load(again.parts(), where, "again")
        assert torch.equal(answer(again), after)
        assert adapter_names(again.parts()) == ["again"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_depends_on_the_seed_alone(kind: Any) -> None:
    def start(seed: int, noise: int) -> Tensor:
        model = tiny_flux()
        torch.manual_seed(noise)
        plan_of(kind, model, seed=seed).attach(model.parts())
        return torch.cat([p.detach().flatten() for ps in trainable(model.parts()).values() for p in ps])

    assert torch.equal(start(0, 1), start(0, 2))
    assert not torch.equal(start(0, 1), start(1, 1))


@pytest.mark.parametrize("rank", [2, 9])
def test_what_is_added_by_hand(rank: int, tmp_path: Path) -> None:
    """Against products written down here; a LoKr of rank 9 has two full matrices, of 2 one that is a product."""
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    for kind in (LoHa, LoKr):
        layer = nn.ModuleDict({"to_q": nn.Linear(12, 30)})
        kind(rank=rank, alpha=4, unet_targets=["to_q"], text_targets=[]).attach({"unet": layer})
        with torch.no_grad():
            for i, p in enumerate(trainable({"unet": layer})["unet"]):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        state = load_file(save({"unet": layer}, tmp_path, "vai1"))
        held = {key.removeprefix("lora_unet_to_q."): value for key, value in state.items()}
        assert held.pop("alpha") == 4
        if kind is LoHa:
            added = (held["hada_w1_a"] @ held["hada_w1_b"]) * (held["hada_w2_a"] @ held["hada_w2_b"])
        else:
            assert held["lokr_w1"].shape == (5, 3)  # of 30 = 5 x 6 and 12 = 3 x 4
            full = held["lokr_w2"] if rank == 9 else held["lokr_w2_a"] @ held["lokr_w2_b"]
            added = torch.kron(held["lokr_w1"], full)
        assert made(kind.__name__.lower(), held) == (30, 12)
        plain = layer["to_q"].get_base_layer()
        torch.testing.assert_close(layer["to_q"](x), plain(x) + 4 / rank * x @ added.T, atol=1e-4, rtol=1e-4)


def test_names_in_a_file_are_those_that_other_programs_know(tmp_path: Path) -> None:
    model = tiny_flux()
    plan_of(LoKr, model, text_targets=[]).attach(model.parts())
    names = {key.partition(".")[0] for key in load_file(save(model.parts(), tmp_path, "vai1"))}
    assert {
        "lycoris_transformer_blocks_0_attn_to_out_0",
        "lycoris_transformer_blocks_0_ff_context_net_0_proj",
        "lycoris_single_transformer_blocks_0_attn_to_q",
    } < names
    assert len(names) == 12 + 3


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    model = tiny_latent_diffusion()
    plan_of(LoHa, model).attach(model.parts())
    with pytest.raises(ValueError, match="an adapter of another kind is attached already"):
        LoRA(name="second").attach(model.parts())
    path = save(model.parts(), tmp_path, "vai1")
    other = tiny_flux()
    before = answer(other)
    with pytest.raises(ValueError, match="adapts the part 'unet', which this model lacks"):
        load(other.parts(), path, "vai1")
    whole = load_file(path)
    key = next(key for key in whole if key.endswith("to_q.hada_w1_a"))
    header = {"geoseg.lycoris": '{"kind": "loha", "rank": 3, "alpha": 6}'}
    save_file({**whole, key: whole[key][:-1].contiguous()}, tmp_path / "cut.safetensors", header)
    save_file({key: whole[key]}, tmp_path / "foreign.safetensors")
    again = tiny_latent_diffusion()
    unchanged = answer(again)
    for name, message in (("cut", "1 of .* layers that are not there or have another size"), ("foreign", "no plain")):
        with pytest.raises(ValueError, match=message):
            load(again.parts(), tmp_path / f"{name}.safetensors", "vai1")
    assert adapter_names(again.parts()) == adapter_names(other.parts()) == []
    assert torch.equal(answer(again), unchanged) and torch.equal(answer(other), before)


def test_t5_reads_without_dropout_while_the_rest_trains() -> None:
    model = tiny_flux()
    still = model.embed(["a river"])
    model.train()
    assert model.transformer.training and torch.equal(model.embed(["a river"]), still)
    model.text_encoder_2.train()
    assert not torch.equal(model.embed(["a river"]), still)  # it has dropout


@pytest.mark.parametrize(("kind", "options"), [(LoKr, {"factor": 0}), (LoHa, {"rank": 0}), (LoHa, {"alpha": 0})])
def test_impossible_numbers(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        kind(**options)
