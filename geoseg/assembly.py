"""Assembly: a method's settings as objects, with its adapter in the model for as long as they are needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from geoseg import lora
from geoseg.config import build
from geoseg.palette import Palette
from geoseg.randomness import seeded
from geoseg.tasks.task import Task
from geoseg.tasks.tuning import Tuning


class Models:
    """Keeps the last frozen model loaded, so that methods and runs that share one do not read it twice."""

    def __init__(self) -> None:
        self._key, self._model = "", None
        self._state: list[tuple[Any, ...]] = []

    def get(
        self, method: Mapping[str, Any], where: str, available: Mapping[str, Any], weights: Mapping[str, str]
    ) -> Any:
        """The model of a method; a model that training changes is always built anew.

        Args:
            method: its settings.
            where: its key in the configuration, for error messages.
            available: what the model may ask for.
            weights: digests of what the checkpoints hold, since a file may be replaced between two runs.
        """
        if method["model"] is None:
            return None
        palette = available["palette"]
        parts = [method["model"], weights, None if palette is None else palette.hex, available["num_classes"]]
        wanted = json.dumps(parts, sort_keys=True, default=str)
        by_seed = f"{wanted}, seed {available['seed']}"
        if self._key in (wanted, by_seed) and not _changes(method, self._model) and self._restored():
            return self._model
        if method["task"] is None or method["adapter"] is not None:  # it may be kept
            self._key, self._model = "", None  # room for the next one
        with seeded(available["seed"], "model"):
            before = torch.get_rng_state()
            model = build(method["model"], f"{where}.model", **available)
            drawn = not torch.equal(before, torch.get_rng_state())
        if not _changes(method, model):
            self._key, self._model = by_seed if drawn else wanted, model
            self._state = _state(model)
        return model

    def _restored(self) -> bool:
        """Puts the model back into the modes it arrived in; False where its weights were converted meanwhile."""
        now = _state(self._model)
        if [entry[:2] for entry in now] != [entry[:2] for entry in self._state]:
            return False
        for module, (*_, training, checkpointing) in zip(_modules(self._model), self._state, strict=True):
            module.training = training
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = checkpointing
        return True


def _changes(method: Mapping[str, Any], model: Any) -> bool:
    """Whether training changes the model itself: there is no adapter, or beside it something that wants gradients."""
    if method["task"] is None:
        return False
    whole = [weight for module in _modules(model)[:1] for weight in module.parameters()]
    return method["adapter"] is None or any(weight.requires_grad for weight in whole)


def _modules(model: Any) -> list[torch.nn.Module]:
    return list(model.modules()) if isinstance(model, torch.nn.Module) else []


def _state(model: Any) -> list[tuple[Any, ...]]:
    """What a run may change in a model and leave behind, for each of its modules."""
    return [
        (
            type(module),
            [weight.dtype for weight in module.parameters(recurse=False)],
            module.training,
            getattr(module, "gradient_checkpointing", False),
        )
        for module in _modules(model)
    ]


class Assembled(NamedTuple):
    """A method as objects.

    Attributes:
        model: the network or diffusion model, or None.
        task: what is learnt, or None.
        bare: the predictor without its wrappers, or None.
        predictor: the same with its wrappers.
    """

    model: Any
    task: Task | Tuning | None
    bare: Any
    predictor: Any


@contextmanager
def assembled(
    method: Mapping[str, Any],
    where: str,
    models: Models,
    palette: Palette | None,
    num_classes: int,
    seed: int,
    hashes: Mapping[str, str],
) -> Iterator[Assembled]:
    """A method's objects, its adapter attached to the model only inside.

    Args:
        method: its keys, as plain containers.
        where: its key in the configuration, for error messages.
        models: the model that is loaded already, where there is one.
        palette: which colour means which class, or None where there are none.
        num_classes: K.
        seed: of first weights and of the task.
        hashes: fingerprints of its checkpoints.

    Raises:
        ValueError: the configuration names something that cannot work.
    """
    available = {"palette": palette, "num_classes": num_classes, "seed": seed}
    of_model = {name: value for name, value in hashes.items() if name.startswith("model")}
    model = models.get(method, where, available, of_model)
    adapter = build(method["adapter"], f"{where}.adapter")
    try:
        if adapter is not None:
            adapter.attach(model.parts())
        bare = predictor = build(method["predictor"], f"{where}.predictor", model=model, **available)
        for name, wrapper in method["wrappers"].items():
            if wrapper is not None:  # method.wrappers.NAME=null leaves one out
                predictor = build(wrapper, f"{where}.wrappers.{name}", predictor=predictor, **available)
        task = build(method["task"], f"{where}.task", model=model, adapter=adapter, **available)
        yield Assembled(model, task, bare, predictor)
    finally:
        if adapter is not None:
            lora.detach(model.parts())
