"""The encoder DINOv2: which features it gives, for which images, from which files, and what LoRA adds to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

from geoseg.fetch import ENCODERS
from geoseg.lora import LoRA
from geoseg.models.dinov2 import MEAN, STD, DINOv2
from geoseg.models.encoder_decoder import EncoderDecoder
from tests.tiny import tiny_dinov2

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
PUBLISHED = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "giant": (1536, 40, 24)}


def published(size: str) -> Dinov2Model:
    """DINOv2 as it is published, without weights."""
    width, depth, heads = PUBLISHED[size]
    with torch.device("meta"):
        return Dinov2Model(
            Dinov2Config(
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                patch_size=14,
                image_size=518,
                use_swiglu_ffn=size == "giant",
            )
        )


def image(height: int = 24, width: int = 40, channels: int = 1) -> torch.Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("patch", [8, 14])
def test_features_are_those_of_the_blocks_after_the_last_norm(patch: int) -> None:
    net = tiny_dinov2(patch, depth=8)
    encoder = DINOv2(net).eval()
    assert encoder.blocks == (2, 4, 6, 8)
    given = image(3 * patch, 5 * patch)
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out, block=block: seen.update({block: out}))
        for block, layer in enumerate(net.encoder.layer, 1)
    ]
    features = encoder(given)
    for hook in hooks:
        hook.remove()
    normed = (given.repeat(1, 3, 1, 1) - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    whole = net(normed).last_hidden_state
    for block, feature in zip(encoder.blocks, features, strict=True):
        assert feature.shape == (2, 32, 3, 5)
        out = seen[block] if isinstance(seen[block], torch.Tensor) else seen[block][0]
        wanted = F.layer_norm(out, (32,), net.layernorm.weight, net.layernorm.bias, net.config.layer_norm_eps)
        # token 1 + 5 y + x is the patch of row y and column x
        torch.testing.assert_close(feature[:, :, 1, 3], wanted[:, 1 + 5 + 3])
        torch.testing.assert_close(feature[:, :, 2, 0], wanted[:, 1 + 10])
    torch.testing.assert_close(features[-1].flatten(2).mT, whole[:, 1:])


def test_a_published_one_gives_features_of_blocks_3_6_9_and_12() -> None:
    assert DINOv2(published("small")).blocks == (3, 6, 9, 12)
    assert DINOv2(published("large")).blocks == (6, 12, 18, 24)
    with pytest.raises(ValueError, match="4 depths, and this DINOv2 has only 3 blocks"):
        DINOv2(tiny_dinov2(depth=3))


def test_sides_are_mirrored_up_to_whole_patches() -> None:
    encoder = DINOv2(tiny_dinov2()).eval()
    odd = image(19, 30)
    padded = F.pad(odd, (0, 2, 0, 5), mode="replicate")
    padded[..., 19:, :] = padded[..., 14:19, :].flip(-2)
    padded[..., 30:] = padded[..., 28:30].flip(-1)
    for one, other in zip(encoder(odd), encoder(padded), strict=True):
        assert one.shape == (2, 32, 3, 4)
        torch.testing.assert_close(one, other)


def test_grey_is_three_times_the_same_and_normalising_can_be_left_out() -> None:
    encoder = DINOv2(tiny_dinov2()).eval()
    grey = image()
    torch.testing.assert_close(encoder(grey), encoder(grey.repeat(1, 3, 1, 1)))
    plain = DINOv2(tiny_dinov2(), normalise=False).eval()
    by_hand = (image(channels=3) - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    torch.testing.assert_close(encoder(image(channels=3)), plain(by_hand))
    with pytest.raises(ValueError, match="grey or RGB images, got 2 channels"):
        encoder(image(channels=2))


def test_a_frozen_encoder_prepares_no_gradients_and_stays_in_evaluation_mode() -> None:
    encoder = DINOv2(tiny_dinov2())
    assert all(feature.requires_grad for feature in encoder(image()))
    encoder.requires_grad_(False)
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(feature.requires_grad for feature in encoder(image()))


def test_from_a_folder(tmp_path: Path) -> None:
    net = tiny_dinov2()
    net.save_pretrained(tmp_path / "net")
    loaded = DINOv2.load(tmp_path / "net").eval()
    torch.testing.assert_close(loaded(image()), DINOv2(net).eval()(image()), rtol=0, atol=0)
    before = loaded(image())[-1]
    torch.manual_seed(0)
    loaded.redraw()
    assert not torch.allclose(loaded.eval()(image())[-1], before)


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no DINOv2 is chosen; give checkpoints.dinov2.path_or_id"):
        DINOv2.load(None)
    with pytest.raises(ValueError, match="there is no folder .*nowhere.* with a DINOv2"):
        DINOv2.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="facebook/dinov2-nothing: HF_HUB_OFFLINE is set"):
        DINOv2.load("facebook/dinov2-nothing")
    tiny_dinov2().save_pretrained(tmp_path / "net")
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    (tmp_path / "net" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(ValueError, match="misses .* weights of a DINOv2, such as encoder.layer.4"):
        DINOv2.load(tmp_path / "net")
    (tmp_path / "net" / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    with pytest.raises(ValueError, match="of type 'vit'; one of type 'dinov2' is wanted"):
        DINOv2.load(tmp_path / "net")


@pytest.mark.parametrize("size", PUBLISHED)
def test_numbers_of_the_published_ones(size: str) -> None:
    net = published(size)
    count = sum(p.numel() for p in net.parameters())
    assert ENCODERS[f"facebook/dinov2-{size}"].size == 4 * count
    if size == "small":  # 12 blocks of 4 (D^2 + D) attention, 8 D^2 + 5 D MLP, two norms and scales; embeddings; a norm
        d = 384
        blocks = 12 * (4 * (d * d + d) + 8 * d * d + 5 * d + 6 * d)
        assert count == blocks + (3 * 14 * 14 * d + d) + (37 * 37 + 1) * d + 2 * d + 2 * d == 22_056_576


@pytest.mark.parametrize(("size", "added"), [("small", 294_912), ("base", 589_824)])
def test_what_lora_adds(size: str, added: int) -> None:
    """Rank 8 on four square layers of 12 blocks; one layer for all of q, k and v has 221 184, as published."""
    width = PUBLISHED[size][0]
    model = EncoderDecoder(2, DINOv2(published(size)), torch.nn.Linear)
    LoRA("encoder", 8, 8, unet_targets=(), text_targets=(), encoder_targets=TARGETS).attach(model.parts())
    assert sum(p.numel() for p in model.encoder.parameters() if p.requires_grad) == added == 12 * 4 * 8 * 2 * width
    if size == "small":
        assert 12 * 8 * ((width + 3 * width) + 2 * width) == 221_184
