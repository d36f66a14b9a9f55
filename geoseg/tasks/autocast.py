"""What autocast to bfloat16 leaves slow on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class ExactAttention(TorchFunctionMode):
    """Inside, attention is computed in float32, and its answer has the type of its query as ever.

    In bfloat16 the backward pass of PyTorch's fused attention on a CPU takes five to ten times as long as in float32,
    which eats up what matrix units win elsewhere.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is multi_head_attention_forward:  # calls the fused one where it cannot be seen from here
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **given)
        if func is not scaled_dot_product_attention:
            return func(*args, **given)
        query: Tensor = args[0] if args else given["query"]
        with torch.autocast(query.device.type, enabled=False):
            answer: Tensor = func(*map(_exact, args), **{name: _exact(value) for name, value in given.items()})
        return answer.to(query.dtype)


def slow_attention(module: nn.Module, device: torch.device) -> bool:
    """Whether ``ExactAttention`` is worth its while and allowed where a module is about to compute its loss.

    Activations that are computed anew in the backward pass would come without it, and no longer fit.
    """
    fused = device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return fused and not any(getattr(part, "gradient_checkpointing", False) for part in module.modules())


def _exact(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
