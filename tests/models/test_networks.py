"""What every network of this package promises to tasks and predictors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from geoseg.lora import LoRA
from geoseg.models import convolutional, decoders
from geoseg.models.convolutional import Convolutional
from geoseg.models.dinov2 import DINOv2
from geoseg.models.encoder_decoder import EncoderDecoder
from geoseg.models.unet import UNet
from geoseg.optim import adamw, constant
from geoseg.tasks.labelling import LabellingTask, cross_entropy
from geoseg.tasks.task import Fit
from tests.tiny import tiny_dinov2

K = 3
SMALL = {"encoder_name": "resnet18", "encoder_weights": None}
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "deeplabv3plus": functools.partial(smp.DeepLabV3Plus, **SMALL),
    "pspnet": functools.partial(smp.PSPNet, **SMALL),
    "fcn": convolutional.FCN,
    "segnet": convolutional.SegNet,
    "unet_published": convolutional.PublishedUNet,
}
DECODERS: dict[str, Callable[..., nn.Module]] = {
    "dinov2_linear": decoders.Linear,
    "dinov2_pup": decoders.PUP,
    "dinov2_mla": decoders.MLA,
    "dinov2_dpt": functools.partial(decoders.DPT, channels=16),
}
LORA = functools.partial(LoRA, "encoder", 2, 2, unet_targets=(), text_targets=())
NEVER_ASKED = {"pspnet": ("net.encoder.layer3.", "net.encoder.layer4.")}
"""Layers that segmentation-models-pytorch builds and does not use: PSPNet reads 1/8 of an image."""


def model(name: str, in_channels: int = 1, finetune: str = "lora", patch: int = 14) -> nn.Module:
    torch.manual_seed(0)
    if name == "unet":
        return UNet(K, in_channels=in_channels)
    if name in NETWORKS:
        return Convolutional(K, NETWORKS[name], in_channels=in_channels, multiple=16)
    made = EncoderDecoder(K, DINOv2(tiny_dinov2(patch)), DECODERS[name], finetune)
    if finetune == "lora":
        LORA(encoder_targets=("q_proj", "v_proj")).attach(made.parts())
    return made


def task(net: nn.Module, lr: Any = 1e-3) -> LabellingTask:
    return LabellingTask(net, cross_entropy, 0, lr=lr, fit=Fit(), optimizer=adamw, schedule=constant)


def image(height: int, width: int, channels: int = 1, count: int = 2) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


ALL = ["unet", *NETWORKS, *DECODERS]


@pytest.mark.parametrize("name", ALL)
def test_any_size_grey_and_colour_and_evaluation_is_repeatable(name: str) -> None:
    net = model(name).eval()
    with torch.no_grad():
        for height, width in [(32, 32), (33, 47), (50, 21)]:
            given = image(height, width)
            logits = net(given)
            assert logits.shape == (2, K, height, width)
            assert logits.isfinite().all()
            assert torch.equal(net(given), logits)
            # an image's answer does not depend on those beside it
            torch.testing.assert_close(net(given[1:]), logits[1:], rtol=1e-4, atol=1e-4)
        colour = net if name in DECODERS else model(name, in_channels=3).eval()
        assert colour(image(32, 40, 3)).shape == (2, K, 32, 40)
        torch.testing.assert_close(colour(image(32, 40)), colour(image(32, 40).repeat(1, 3, 1, 1)))
        if name not in DECODERS:
            with pytest.raises(ValueError, match="takes 1 channels, the images have 3"):
                net(image(32, 32, 3))


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_what_is_trained_and_a_single_image_will_do(name: str) -> None:
    made = task(model(name)).train()
    before = {key: value.clone() for key, value in made.state_dict().items()}
    target = torch.randint(K, (1, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # LoRA's second matrix begins at zero, where the first gets no gradient
        for key, weight in made.named_parameters():
            if "lora_B" in key:
                weight.add_(0.1)
    made.loss({"image": image(64, 64, count=1), "target": target}).mean().backward()
    for key, weight in made.named_parameters():
        asked = not key.removeprefix("model.").startswith(NEVER_ASKED.get(name, ("-",)))
        assert (weight.grad is not None) == (weight.requires_grad and asked), key
    assert set(made.trainable()) <= made.kept() <= before.keys()


@pytest.mark.parametrize("finetune", ["lora", "full", "frozen", "scratch"])
def test_what_is_trained_of_an_encoder(finetune: str) -> None:
    net = model("dinov2_mla", finetune=finetune)
    made = task(net, lr={"encoder": 1e-4, "decoder": 1e-3}).train()
    trained = {key.removeprefix("model.") for key in made.trainable()}
    inside = {key for key in trained if key.startswith("encoder.")}
    assert all(key in trained for key, _ in net.named_parameters() if key.startswith("decoder."))
    weights = {key for key, _ in net.named_parameters() if key.startswith("encoder.") and "mask_token" not in key}
    lora = {key for key in weights if ".lora_" in key}
    assert inside == {"lora": lora, "full": weights, "frozen": set(), "scratch": weights}[finetune]
    assert len(lora) == (4 * 2 * 2 if finetune == "lora" else 0)
    assert list(made.groups) == (["decoder"] if finetune == "frozen" else ["encoder", "decoder"])
    rates = {group["name"]: group["lr"] for group in made.optimizer().param_groups}
    assert rates == {name: {"encoder": 1e-4, "decoder": 1e-3}[name] for name in made.groups}
    first, wanted = (part.embeddings.patch_embeddings.projection.weight for part in (net.encoder.net, tiny_dinov2(14)))
    assert torch.equal(first, wanted) == (finetune != "scratch")
    made.loss({"image": image(28, 28), "target": torch.zeros(2, 28, 28, dtype=torch.long)}).mean().backward()
    assert {key for key, p in net.named_parameters() if p.grad is not None} == trained


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="one of lora, full, frozen, scratch, got 'all'"):
        model("dinov2_pup", finetune="all")
    bare = EncoderDecoder(K, DINOv2(tiny_dinov2()), decoders.PUP)
    with pytest.raises(ValueError, match="finetune=lora, but no adapter is attached"):
        task(bare)
    whole = model("dinov2_pup", finetune="full")
    with pytest.raises(ValueError, match="no part 'encoder' to adapt, .* set method.adapter=null"):
        LORA(encoder_targets=("q_proj",)).attach(whole.parts())
    with pytest.raises(ValueError, match=r"lr names the groups \['decoder', 'encoder', 'head'\]"):
        task(whole, lr={"encoder": 1.0, "decoder": 1.0, "head": 1.0})
    with pytest.raises(ValueError, match="nothing of the model wants gradients"):
        task(UNet(K, depth=3).requires_grad_(False))


@pytest.mark.parametrize("name", ["unet", "segnet", "dinov2_linear", "dinov2_mla"])
def test_what_was_trained_comes_back(name: str, tmp_path: Path) -> None:
    made = task(model(name)).train()
    with torch.no_grad():
        made.model(image(32, 32))  # means of BatchNorm move
        for weight in made.trainable().values():
            weight.add_(0.01)
    made.save(tmp_path)
    other = task(model(name))
    other.load(tmp_path)
    assert torch.equal(other.eval().model(image(40, 32)), made.eval().model(image(40, 32)))
    with pytest.raises(ValueError, match="and this model differ in .* tensors, such as"):
        task(model("dinov2_pup" if name in DECODERS else "unet_published")).load(tmp_path)


def test_a_file_holds_what_is_trained_and_nothing_else(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    (path,) = task(model("dinov2_mla")).save(tmp_path)
    saved = load_file(path)
    assert {key for key in saved if key.startswith("encoder.")} == {key for key in saved if ".lora_" in key}
    assert any(key.endswith("running_mean") for key in saved)
    net = UNet(K, depth=3)
    (path,) = task(net).save(tmp_path)
    assert load_file(path).keys() == net.state_dict().keys()


@pytest.mark.parametrize("name", ["unet_published", "segnet", *DECODERS])
def test_one_picture_is_learnt_by_heart(name: str) -> None:
    rows = torch.arange(32)[:, None].expand(32, 32)
    given = (0.3 + 0.2 * (rows // 16) + 0.2 * (rows.T // 16)).expand(2, 1, 32, 32)
    target = (rows // 16 + rows.T // 16).expand(2, 32, 32)
    made = task(model(name, patch=8), lr=1e-2).train()
    optimizer = made.optimizer()
    for _ in range(60):
        optimizer.zero_grad()
        loss = made.loss({"image": given, "target": target}).mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.25  # log 3 = 1.1 at the start; borders of patches stay soft


def test_published_unet_by_hand() -> None:
    net = convolutional.PublishedUNet(1, K)
    pairs = [(1, 32, 32), (32, 64, 64), (64, 128, 128), (128, 256, 256), (256, 256, 256)]
    pairs += [(512, 256, 128), (256, 128, 64), (128, 64, 32), (64, 32, 32)]
    wanted = sum(9 * (a * b + b * c) + 2 * (b + c) for a, b, c in pairs) + 32 * K + K
    assert sum(p.numel() for p in net.parameters()) == wanted
    assert net(torch.rand(2, 1, 37, 50)).shape == (2, K, 37, 50)


def test_segnet_puts_pixels_back_where_they_were() -> None:
    net = convolutional.SegNet(1, K, widths=(4, 8))
    found: list[torch.Tensor] = []
    net.down[-1].register_forward_hook(lambda _m, _i, out: found.append(out))
    net.up[0].register_forward_pre_hook(lambda _m, given: found.append(given[0]))
    net(torch.rand(1, 1, 16, 16))
    before, after = found
    kept = after != 0
    assert kept.float().mean() <= 0.25
    torch.testing.assert_close(after[kept], before[kept])
