"""The four decoders: sizes of what they make, numbers of weights counted by hand, and what was published."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from geoseg.models.decoders import DPT, MLA, PUP, Linear

D, K = 32, 5


def conv(into: int, out: int, kernel: int, bias: bool = True) -> int:
    return into * out * kernel**2 + bias * out


def double(into: int, out: int) -> int:
    """Two convolutions with BatchNorm, which has two numbers per channel."""
    return conv(into, out, 3) + 2 * out + conv(out, out, 3) + 2 * out


def dpt(channels: int) -> int:
    unit = 2 * (conv(channels, channels, 3, bias=False) + 2 * channels)
    entries = 4 * conv(D, channels, 3, bias=False)
    fusions = 7 * unit + 4 * conv(channels, channels, 1)  # the deepest has nothing to be added to
    return entries + fusions + conv(channels, channels // 2, 3) + conv(channels // 2, 32, 3) + conv(32, K, 1)


COUNTS = {
    Linear: conv(D, K, 1),
    PUP: double(D, D // 4) + 3 * double(D // 4, D // 4) + conv(D // 4, K, 1),
    MLA: 4 * double(D, D // 2)
    + 3 * double(D // 2, D // 2)
    + 4 * (double(D // 2, D // 2) + double(D // 2, D // 4) + double(D // 4, D // 4))
    + conv(D, K, 1),
    DPT: dpt(256),
}


def features(grid: tuple[int, int] = (3, 4)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, D, *grid, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("decoder", COUNTS)
def test_numbers_of_weights(decoder: type[nn.Module]) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in decoder(D, K).parameters()) == COUNTS[decoder]


@pytest.mark.parametrize("patch", [8, 14, 16])
@pytest.mark.parametrize("decoder", [Linear, PUP, MLA, DPT])
def test_sizes_on_the_way(decoder: type[nn.Module], patch: int) -> None:
    height, width = 3 * patch, 4 * patch
    made = decoder(D, K, channels=16) if decoder is DPT else decoder(D, K)
    sizes: list[tuple[int, ...]] = []
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[2:])))
    assert made(features(), (height, width)).shape == (2, K, height, width)
    shares = [(height // n, width // n) for n in (16, 8, 4, 2, 1)]
    if decoder is PUP:
        assert sizes == [(3, 4)] * 2 + [size for size in shares[1:-1] for _ in range(2)] + [shares[-1]]
    elif decoder is MLA:
        assert set(sizes) == {(3, 4), (12, 16)}
        assert sizes.count((12, 16)) == 9  # a double convolution per depth, and the head
    elif decoder is DPT:
        # the smallest is refined at patches, every fusion ends in a convolution at its own size
        assert [size for size in sizes if size in shares][-3:] == [shares[3], shares[4], shares[4]]
        assert {size for size in shares if size not in sizes} == set()
    else:
        assert sizes == [(3, 4)]


def test_linear_is_one_layer_and_an_interpolation() -> None:
    made, given = Linear(D, K), features()
    by_hand = torch.einsum("bdhw,kd->bkhw", given[3], made.head.weight[:, :, 0, 0]) + made.head.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(made(given, (24, 32)), F.interpolate(by_hand, scale_factor=8, mode="bilinear"))
    made = Linear(D, K, "nearest")
    made.load_state_dict({"head.weight": made.head.weight, "head.bias": made.head.bias})
    steps = made(given, (24, 32))
    torch.testing.assert_close(steps, made(given, (3, 4)).repeat_interleave(8, 2).repeat_interleave(8, 3))
    with pytest.raises(ValueError, match="bilinear or nearest, got 'cubic'"):
        Linear(D, K, "cubic")


@pytest.mark.parametrize(("decoder", "depths"), [(Linear, [3]), (PUP, [3]), (MLA, [0, 1, 2, 3]), (DPT, [0, 1, 2, 3])])
def test_which_depths_are_read(decoder: type[nn.Module], depths: list[int]) -> None:
    made, given = decoder(D, K).eval(), features()
    before = made(given, (24, 32))
    read = []
    for i in range(4):
        changed = [feature + 1 if i == j else feature for j, feature in enumerate(given)]
        if not torch.equal(made(changed, (24, 32)), before):
            read.append(i)
    assert read == depths


def test_published_dpt_cannot_rule_a_class_out() -> None:
    torch.manual_seed(0)
    made = DPT(D, K, channels=16, interpolation="nearest", relu_logits=True).eval()
    assert made(features(), (24, 32)).min() == 0
    made.head = made.head[:-1]
    assert made(features(), (24, 32)).min() < 0
