"""Vision transformers as transformers writes them: a folder with config.json and model.safetensors, or its id."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

from geoseg.fetch import ask


def read_transformer(
    path_or_id: str | os.PathLike[str] | None,
    revision: str | None,
    kinds: Mapping[type[PreTrainedConfig], Callable[..., Any]],
    key: str,
    name: str,
) -> Any:
    """Reads a model of one of several kinds, in float32.

    Args:
        path_or_id: a folder with ``config.json`` and ``model.safetensors``, or the id of one on the Hugging Face hub.
        revision: branch, tag or commit on the hub; None is its main branch. Not for folders.
        kinds: what may be there: configuration to ``from_pretrained`` of a model.
        key: what the checkpoint is called below ``checkpoints``, for messages.
        name: what such a model is called, for messages.

    Raises:
        ValueError: nothing is there, it is another kind of model, or weights are missing.
    """
    types = " or ".join(repr(config.model_type) for config in kinds)
    setting = f"checkpoints.{key}.path_or_id"
    if path_or_id is None:
        raise ValueError(f"no {name} is chosen; give {setting}=FOLDER, or its id on the hub")
    where = os.path.expanduser(path_or_id)
    if not os.path.isdir(where) and (where.startswith((".", "/", "~")) or where.count("/") != 1):
        raise ValueError(
            f"there is no folder {where!r} with a {name} (config.json, model.safetensors); give "
            f"{setting}=FOLDER, or take checkpoints=hub"
        )
    if not os.path.isdir(where):
        ask(key, where, revision)
    at = {"revision": revision} if revision is not None else {}
    with _quiet():
        try:
            found = transformers.AutoConfig.from_pretrained(where, **at)
            if type(found) not in kinds:
                raise ValueError(f"{where} is a model of type {found.model_type!r}; one of type {types} is wanted")
            net, told = kinds[type(found)](
                where, config=found, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **at
            )
        except OSError as error:
            raise ValueError(
                f"cannot read {where!r} as a {name}: {str(error).rstrip('. ')}. It is neither a folder "
                "here nor, as far as this machine can reach, an id on the Hugging Face hub with safetensors weights at "
                "that revision; check the spelling, the network, or fetch it first (geoseg fetch)"
            ) from error
    lacking = sorted([*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])])
    if lacking:
        raise ValueError(
            f"{where} misses {len(lacking)} weights of a {name}, such as {lacking[0]}; the folder is not whole, or "
            "its config.json belongs to another model"
        )
    return net


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from reporting what ``read_transformer`` tells itself."""
    logger = logging.getLogger("transformers")
    level, bars = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
