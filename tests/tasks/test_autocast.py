"""Attention under autocast on a CPU: in float32, with the gradients of plain arithmetic."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from geoseg.data.module import DataModule
from geoseg.data.synthetic import SyntheticEarth
from geoseg.palette import Palette, facies_palette
from geoseg.tasks import autocast
from geoseg.tasks.autocast import ExactAttention, slow_attention
from tests.training import fit, label_lora


def plain(query, key, value):
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value


@pytest.mark.parametrize("named", [False, True])
def test_answers_and_gradients_are_those_of_exact_arithmetic_in_the_type_of_the_query(named):
    torch.manual_seed(0)
    given = [(3 * torch.randn(2, 3, 40, 8)).bfloat16().requires_grad_() for _ in range(3)]
    exact = [tensor.detach().float().requires_grad_() for tensor in given]
    with torch.autocast("cpu", torch.bfloat16), ExactAttention():
        call = dict(zip(("query", "key", "value"), given, strict=True)) if named else {}
        answer = scaled_dot_product_attention(*([] if named else given), **call)
    wanted = plain(*exact)
    assert answer.dtype == torch.bfloat16
    torch.testing.assert_close(answer, wanted.bfloat16(), rtol=0.01, atol=1e-3)
    answer.float().square().sum().backward()
    wanted.bfloat16().float().square().sum().backward()
    for rounded, full in zip(given, exact, strict=True):
        torch.testing.assert_close(rounded.grad, full.grad.bfloat16(), rtol=0.02, atol=0.02)


def test_attention_of_whole_layers_is_not_the_fused_one():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    tokens = torch.randn(2, 5, 8)

    def kernels(context):
        watched = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        with watched, torch.autocast("cpu", torch.bfloat16), context:
            answer = layer(tokens, tokens, tokens, need_weights=False)[0]
        return answer, {event.key for event in watched.key_averages()}

    fused, before = kernels(nullcontext())
    apart, after = kernels(ExactAttention())
    assert any("flash" in name for name in before) and not any("flash" in name for name in after)
    torch.testing.assert_close(apart.float(), fused.float(), rtol=0.05, atol=0.01)


def test_it_is_for_autocast_on_a_cpu_alone_and_not_where_activations_are_computed_anew():
    module, cpu = nn.Sequential(nn.Linear(2, 2)), torch.device("cpu")
    assert not slow_attention(module, cpu)
    with torch.autocast("cpu", torch.bfloat16):
        assert slow_attention(module, cpu)
        assert not slow_attention(module, torch.device("cuda"))
        module[0].gradient_checkpointing = True
        assert not slow_attention(module, cpu)


@pytest.mark.filterwarnings("ignore:.*in eval mode:UserWarning")  # frozen models arrive so
@pytest.mark.parametrize(("precision", "used"), [("bf16-mixed", True), ("32-true", False)])
def test_a_training_uses_it_where_it_is_slow(precision, used, monkeypatch):
    seen = []
    exact = autocast._exact
    monkeypatch.setattr(autocast, "_exact", lambda value: seen.append(value) or exact(value))
    data = DataModule(SyntheticEarth(size=16, train=1, val=0, test=1), num_train=1)
    fit(label_lora(Palette(facies_palette(6)), epochs=1), data, precision=precision)
    assert bool(seen) is used
