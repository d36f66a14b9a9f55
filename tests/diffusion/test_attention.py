from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor

from geoseg.diffusion import attention
from geoseg.diffusion.attention import AttentionMaps, combined, recorded
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from tests.tiny import tiny_latent_diffusion


@pytest.fixture
def model() -> LatentDiffusion:
    """With self-attention at two resolutions: places of 4 and of 2 pixels, the finer by a layer put in."""
    made = tiny_latent_diffusion()
    # the first block has no attention; a resnet's own attention of the kind that older networks have is put behind it
    made.unet.conv_norm_out = torch.nn.Sequential(
        made.unet.conv_norm_out, _Place(Attention(16, heads=2, dim_head=8, norm_num_groups=8, residual_connection=True))
    )
    return made.eval()


class _Place(torch.nn.Module):
    """A layer on pictures [B, C, h, w]."""

    def __init__(self, layer: Attention) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            for weight in layer.parameters():
                weight.data.normal_(0, 0.5)
        self.layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layer(hidden)


class Watching(AttnProcessor):
    """The plain processor of diffusers, which computes its weights by ``get_attention_scores``."""

    def __init__(self, found: list[Tensor]) -> None:
        self.found = found

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        if encoder_hidden_states is None:
            scores = attn.get_attention_scores
            attn.get_attention_scores = lambda *a: self.found.append(scores(*a)) or self.found[-1]
        answer = super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        attn.__dict__.pop("get_attention_scores", None)
        return answer


def pictures(count: int = 3, channels: int = 3, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def asked(model: LatentDiffusion, count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return model.codec.encode(pictures(count)), torch.tensor(300), model.embed([""]).expand(count, -1, -1)


@torch.inference_mode()
def test_maps_are_those_of_diffusers_and_the_answer_stays_the_same(model: LatentDiffusion) -> None:
    plain = model.denoise(*asked(model))
    layers = [part for part in model.unet.modules() if isinstance(part, Attention)]
    before = [layer.processor for layer in layers]
    with recorded(model.unet) as found:
        assert torch.equal(model.denoise(*asked(model)), plain)
        maps = found()
    assert [layer.processor for layer in layers] == before
    weights: list[Tensor] = []
    for layer in layers:
        layer.processor = Watching(weights)
    model.denoise(*asked(model))
    by_places: dict[int, list[Tensor]] = {}
    for one in weights:
        by_places.setdefault(one.shape[-1], []).append(one.view(2, -1, *one.shape[1:]).mean(1))  # over heads
    assert maps.keys() == by_places.keys() == {24, 96}
    assert {places: len(each) for places, each in by_places.items()} == {24: 4, 96: 1}
    for places, each in by_places.items():
        torch.testing.assert_close(maps[places], torch.stack(each).mean(0))


def test_neither_batch_nor_room_changes_the_maps(model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(AttentionMaps(model, batch=3)(pictures()))
    monkeypatch.setattr(attention, "ROOM", 1000)  # a few rows at a time
    for one, other in zip(whole, AttentionMaps(model, batch=1)(pictures()), strict=True):
        assert one.shape == (8, 12, 96)
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one.sum(-1), torch.ones(8, 12))
        assert one.std() > 0


def test_one_resolution_alone_and_pictures_of_other_sizes(model: LatentDiffusion) -> None:
    both, fine, coarse = (next(iter(AttentionMaps(model, strides=s)(pictures(1)))) for s in (None, [2], [4]))
    assert both.shape == fine.shape == (8, 12, 96)
    assert coarse.shape == (4, 6, 24)
    looked = torch.nn.functional.interpolate(coarse.view(1, 24, 4, 6), (8, 12), mode="bilinear").view(4, 6, 96)
    looked = looked / looked.sum(-1, keepdim=True)
    # by the sides, 2 to 1
    torch.testing.assert_close(both[5, 7], (2 * fine[5, 7] + looked[2, 3]) / 3)
    grey = pictures(1, channels=1, height=37, width=90)
    scaled = next(iter(AttentionMaps(model, side=24)(grey)))
    assert scaled.shape == (8, 18, 144)  # 16 x 36 pixels: the area of a square of 24, as wide as the picture is
    colour = next(iter(AttentionMaps(model, side=24)(grey.expand(-1, 3, -1, -1))))
    assert torch.equal(scaled, colour)


def test_the_prompt_is_read_once(model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda prompts: said.append(prompts) or embed(prompts))
    maps = AttentionMaps(model, batch=1)
    first = list(maps(pictures()))
    list(maps(pictures()))
    assert said == [[""]]
    with_words = list(AttentionMaps(model, prompt="Tile")(pictures()))
    later = list(AttentionMaps(model, time=900)(pictures()))
    assert not torch.allclose(first[0], with_words[0], atol=1e-5)
    assert not torch.allclose(first[0], later[0], atol=1e-5)


def test_resolutions_as_one_by_hand() -> None:
    fine = torch.eye(16)  # every place looks at itself
    coarse = torch.full((4, 4), 0.25)  # or everywhere alike
    one = combined({2: fine, 4: coarse}, (8, 8))
    expected = torch.full((16, 16), 1 / 3 / 16) + torch.eye(16) * 2 / 3
    torch.testing.assert_close(one.view(16, 16), expected)
    alone = combined({4: torch.eye(4)}, (8, 8))
    assert torch.equal(alone.view(4, 4), torch.eye(4))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"time": 1000}, r"time=1000: .* 0 to 999"),
        ({"batch": 0}, "batch >= 1"),
        ({"side": 0}, "side >= 1"),
        ({"strides": []}, "empty list"),
        ({"prompt": "Tile " * 40}, "shorten it"),
    ],
)
def test_options_that_cannot_be(model: LatentDiffusion, options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        AttentionMaps(model, **options)


def test_pictures_and_resolutions_that_cannot_be(model: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match=r"strides=\[2, 8\]: .* has places of \[2, 4\] pixels"):
        next(iter(AttentionMaps(model, strides=[8, 2])(pictures())))
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\] or grey"):
        next(iter(AttentionMaps(model)(pictures(channels=2))))
