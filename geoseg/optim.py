"""Optimizers and learning-rate schedules; the only place that knows bitsandbytes and prodigyopt."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Groups = Sequence[Mapping[str, Any]]
"""Parameter groups: "params", their "lr" and a "name" to log it under."""


def adamw(
    groups: Groups, weight_decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101), a learning rate per group.

    Raises:
        ValueError: a group without parameters or without a learning rate.
    """
    return torch.optim.AdamW(_checked(groups), weight_decay=weight_decay, betas=_pair(betas), eps=eps)


def adamw8bit(
    groups: Groups,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    min_8bit_size: int = 4096,
) -> Optimizer:
    """AdamW with its two running means in 8 bits (Dettmers et al. 2021, arXiv 2110.02861), a learning rate per group.

    Args:
        groups: see ``Groups``.
        weight_decay: see ``adamw``.
        betas: see ``adamw``.
        eps: see ``adamw``.
        min_8bit_size: tensors with fewer elements keep 32-bit means; 4096 is the library's value.

    Raises:
        ValueError: bitsandbytes is not installed, or a group lacks something.
    """
    checked = _checked(groups)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError("adamw8bit needs bitsandbytes: pip install bitsandbytes, or choose adamw") from error
    return AdamW8bit(checked, weight_decay=weight_decay, betas=_pair(betas), eps=eps, min_8bit_size=min_8bit_size)


def prodigy(
    groups: Groups,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    d_coef: float = 1.0,
    d0: float = 1e-6,
    growth_rate: float | None = None,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
) -> Optimizer:
    """Prodigy (Mishchenko and Defazio 2023, arXiv 2306.06101): Adam that finds its learning rate while it trains.

    Args:
        groups: see ``Groups``; every lr is 1, or another one for all, which multiplies the rate that is found.
        weight_decay: see ``adamw``.
        betas: see ``adamw``.
        eps: see ``adamw``.
        d_coef: multiplies the estimate of the rate; its authors' way to tune it, 0.5 to 2.
        d0: the estimate to begin with.
        growth_rate: largest factor by which the estimate grows in a step, such as 1.02; None sets no bound.
        use_bias_correction: Adam's own, which the library leaves off.
        safeguard_warmup: for schedules with a warm-up, whose small first rates would spoil the estimate.

    Raises:
        ValueError: prodigyopt is not installed, rates differ or are far from 1, or a group lacks something.
    """
    checked = _checked(groups)
    rates = {str(group.get("name", i)): float(group["lr"]) for i, group in enumerate(checked) if group["lr"]}
    told = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
    if len(set(rates.values())) > 1:
        raise ValueError(
            f"prodigy has one rate for all groups, got {told}; use 1 for each (method.task.lr.unet=1 "
            "method.task.lr.text=1), and 0 for one that is not to be trained"
        )
    if not all(0.1 <= rate <= 10 for rate in rates.values()):
        raise ValueError(f"prodigy finds the learning rate itself and lr multiplies it: 1 is wanted, got {told}")
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise ValueError("prodigy needs prodigyopt: pip install prodigyopt, or choose adamw") from error
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that its weight decay is decoupled
        return Prodigy(
            checked,
            lr=1.0,
            weight_decay=weight_decay,
            betas=_pair(betas),
            eps=eps,
            d_coef=d_coef,
            d0=d0,
            growth_rate=math.inf if growth_rate is None else growth_rate,
            use_bias_correction=use_bias_correction,
            safeguard_warmup=safeguard_warmup,
        )


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes that what an optimizer of this module keeps will take once it has moved.

    In 8 bits, a block of 256 elements has a factor of 32 bits, and two tables of 256 numbers serve all. Prodigy keeps
    four numbers per weight, and three where all weights of a tensor begin at 0, as half of a LoRA does.
    """
    if "d_coef" in optimizer.defaults:
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        # tensors without content are counted in full
        begun = {id(p): p.is_meta or bool(p.detach().any()) for p in weights}
        return sum(p.element_size() * (4 * p.numel() if begun[id(p)] else 3 * p.numel() + 1) for p in weights)
    numbers = [p.numel() for group in optimizer.param_groups for p in group["params"]]
    settings: Any = getattr(optimizer, "args", None)  # bitsandbytes
    if getattr(settings, "optim_bits", 32) != 8:
        return sum(8 * count + 4 for count in numbers)  # two means and the number of steps
    small = [count for count in numbers if count < settings.min_8bit_size]
    large = [count for count in numbers if count >= settings.min_8bit_size]
    return 8 * sum(small) + sum(2 * count + 8 * -(-count // 256) for count in large) + 2048 * bool(large)


def constant(optimizer: Optimizer, steps: int, warmup: int = 0) -> LambdaLR:
    """The same rate throughout, after a straight rise.

    Args:
        optimizer: its rates are the full ones.
        steps: length of the training.
        warmup: step i below this has i / warmup of the full rate, so the first has none.

    Raises:
        ValueError: no steps, or a warm-up that does not fit in them.
    """
    _check_steps(steps, warmup)
    return LambdaLR(optimizer, lambda step: _rise(step, warmup))


def cosine(optimizer: Optimizer, steps: int, warmup: int = 0) -> LambdaLR:
    """From the full rate to 0 along half a cosine, after a straight rise; arguments and errors as in ``constant``."""
    _check_steps(steps, warmup)

    def share(step: int) -> float:
        if step < warmup:
            return _rise(step, warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (steps - warmup))))

    return LambdaLR(optimizer, share)


def _rise(step: int, warmup: int) -> float:
    return min(1.0, step / warmup) if warmup else 1.0


def _check_steps(steps: int, warmup: int) -> None:
    if steps < 1:
        raise ValueError(f"a schedule needs at least one step, got {steps}")
    if not 0 <= warmup < steps:
        raise ValueError(
            f"warmup must be from 0 to below the {steps} steps of the training, got {warmup}; lower it, to 0 "
            "for none, or train for more epochs or steps"
        )


def _checked(groups: Groups) -> list[dict[str, Any]]:
    checked = []
    for group in groups:
        given = {**group, "params": list(group.get("params", ()))}
        if not given["params"] or "lr" not in given:
            raise ValueError(
                f"every parameter group needs params and an lr, got {sorted(group)} with {len(given['params'])} "
                f"parameters for {group.get('name', 'a group')!r}; make something trainable (an adapter) first"
            )
        checked.append(given)
    if not checked:
        raise ValueError("nothing to train: there is no parameter group; make something trainable (an adapter) first")
    return checked


def _pair(betas: Sequence[float]) -> tuple[float, float]:
    first, second = betas
    return float(first), float(second)
