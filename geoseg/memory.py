"""How much memory a method will take, counted before it starts, and how much it took.

Its operations run once on tensors without content, which takes seconds and hardly any memory. Weights and the state of
the optimizer are exact, and so are the tensors alive at the same time; what kernels need for themselves is not seen.
"""

from __future__ import annotations

import logging
import math
import os
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from geoseg.doctor import GIB, memory_here
from geoseg.optim import state_bytes
from geoseg.tasks.task import Task

log = logging.getLogger("geoseg")

CONTEXT = GIB // 2
"""About what CUDA and its libraries keep on a GPU beside all tensors."""


class Alive(TorchDispatchMode):
    """Adds up the bytes of all tensors that operations make and that are alive at the same time.

    Attributes:
        now: bytes alive.
        peak: the most that were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            # whoever asks for a value, such as whether all are finite, hears yes: there is none
            return args[0].dtype == torch.bool or 1.0
        made = func(*args, **(kwargs or {}))
        if not any(value.alias_info for value in func._schema.returns):  # a view, or the same tensor changed
            for tensor in tree_leaves(made):
                if isinstance(tensor, Tensor):
                    self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._known.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


def _exactly(module: nn.Module, given: tuple[Any, ...]) -> Any:
    """Lets norms compute in float32, as autocast does on a GPU and not on a CPU."""
    return (given[0].float(), *given[1:]) if isinstance(module, nn.GroupNorm | nn.LayerNorm) else given


class Peak:
    """The most memory that was taken while something was done.

    Attributes:
        bytes: of tensors on the GPU, or of this whole process, libraries included; None where it is not known.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None


@contextmanager
def measured(gpu: bool) -> Iterator[Peak]:
    """Measures the peak of what is done inside, which is there afterwards.

    On a CPU the process's own highest mark is set back first, so that what a warm worker did before does not count;
    systems other than Linux cannot do that, and nothing is known there.

    Args:
        gpu: whether it is done on one.
    """
    peak = Peak()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        yield peak
        return
    yield peak
    marks = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    peak.bytes = 1024 * int(marks[1]) if marks else None


def parameters(*modules: Any) -> int:
    """How many numbers the weights of these modules are, those that several modules share once."""
    found = {id(p): p.numel() for module in modules if isinstance(module, nn.Module) for p in module.parameters()}
    return sum(found.values())


def count(work: Callable[[], Any], precision: str = "32-true", gpu: bool = False) -> int:
    """Peak bytes of the tensors that ``work`` makes, without computing any of them.

    Args:
        work: goes the same way whatever values tensors hold; weights that it uses are not counted.
        precision: as Lightning calls it.
        gpu: where it will run; the count itself runs on the CPU.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # it imports a lot

    half = torch.bfloat16 if "bf16" in precision else torch.float16
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        alive = stack.enter_context(Alive())
        stack.enter_context(torch.autocast("cpu", half, enabled="mixed" in precision))
        if gpu and "mixed" in precision:
            stack.callback(register_module_forward_pre_hook(_exactly).remove)
        work()
    return alive.peak


def foresee(title: str, task: Task | None, predictor: Any, whole: Any, data: Any, **how: Any) -> dict[str, int]:
    """``expect``, told in one line, with a warning where it is more than there is; a failing count stops no run."""
    try:
        needs = expect(task, predictor, whole, data, **how)
    except Exception as error:  # whatever a model does with tensors that have no content
        log.warning("%s: its memory could not be counted (%s: %s)", title, type(error).__name__, error)
        return {}
    if not needs:
        return {}
    words = {"weights": "weights", "optimizer": "optimizer", "step": "a training step", "generation": "generation"}
    parts = ", ".join(f"{word} {needs[name] / GIB:.2f}" for name, word in words.items() if name in needs)
    there = f" of {needs['there'] / GIB:.1f}" if needs["there"] else ""
    log.info("%s: about %.1f%s GiB of memory at the peak (%s)", title, needs["peak"] / GIB, there, parts)
    if 0 < needs["there"] < needs["peak"]:
        log.warning(
            "that is more than there is: trainer=gpu_24gb and trainer=gpu_12gb take less, and so do the settings in "
            "conf/trainer/gpu_12gb.yaml on a CPU"
        )
    return needs


def expect(
    task: Task | None,
    predictor: Any,
    whole: Any,
    data: Any,
    sample_images: int,
    precision: str,
    gpu: bool,
    processes: int = 1,
) -> dict[str, int]:
    """Bytes that training and generation will take at their peaks, by what for; {} where a method cannot be counted.

    Args:
        task: what is learnt, or None.
        predictor: what generates, or None.
        whole: the same with its wrappers, whose weights count; what they do besides does not.
        data: a prepared data module; its largest pictures decide.
        sample_images: pictures drawn at a time where there is nothing to test on.
        precision: as Lightning calls it.
        gpu: whether it will run on one.
        processes: that train together, each on a GPU of its own or all on this CPU.

    Returns:
        ``weights``; ``gradients``, ``optimizer`` (with the running average) and ``step``, the tensors of a step with
        their gradients; ``generation``; ``program``, what is there before any of it; all that of one process;
        ``peak`` of all on a device; ``there``, what the device has, 0 where it does not tell.
    """
    weights = _bytes(task, whole)
    needs: dict[str, int] = {}
    tensors = count(lambda: step(task, data.train, processes), precision, gpu) if task is not None else 0
    if task is not None and tensors:
        needs["gradients"] = sum(p.numel() * p.element_size() for p in task.trainable().values())
        needs["optimizer"] = state_bytes(task.optimizer()) + needs["gradients"] * (task.ema is not None)
        # gradients are among the tensors of a step, but wait through the next ones where they are added up
        needs["step"] = tensors + needs["gradients"] * (task.fit.accumulate > 1)
    scored = data.palette is not None and len(data.test)
    if hasattr(predictor, "rehearse") and (scored or task is not None):  # else there is nothing to draw
        needs["generation"] = _generation(
            predictor, data.batch_size if scored else sample_images, _largest(task, data), precision, gpu
        )
    if not needs:
        return {}
    program = CONTEXT if gpu else max(0, _resident() - weights)
    working = needs.get("optimizer", 0) + max(needs.get("step", 0), needs.get("generation", 0))
    there = torch.cuda.mem_get_info()[1] if gpu else memory_here()
    peak = program + weights + working
    if processes > 1 and not gpu:
        peak = processes * peak + program + weights  # of the process that waits for them
    return {"weights": weights, **needs, "program": program, "peak": peak, "there": there or 0}


def step(task: Task, split: Any, processes: int = 1) -> None:
    """A training step without content, of one of so many processes: forward, backward, gradients that nobody keeps."""
    loss = task.rehearse(split, task.fit.batch_size // processes)
    if loss is not None:
        torch.autograd.grad(loss, list(task.trainable().values()), allow_unused=True)


def _generation(predictor: Any, images: int, shape: tuple[int, int], precision: str, gpu: bool) -> int:
    with torch.no_grad():
        return count(lambda: predictor.rehearse(torch.zeros(images, 3, *shape)), precision, gpu)


def _largest(task: Task | None, data: Any) -> tuple[int, int]:
    """H and W of the largest picture that will be generated."""
    split = data.test if len(data.test) else data.train
    shapes = map(split.source.shape, split.names) if data.palette is not None or task is None else task.buckets(split)
    return max(shapes, key=math.prod)


def _bytes(*modules: Any) -> int:
    """Bytes of all weights, those that several modules share once."""
    tensors = (t for module in modules if isinstance(module, nn.Module) for t in _tensors(module))
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _resident() -> int:
    """Bytes of this process in memory, 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
