"""Pipeline folders in diffusers' layout: reading them without noise, and writing them whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """The type that a word stands for.

    Raises:
        ValueError: it is none that weights can have here.
    """
    dtype = getattr(torch, name, None) if isinstance(name, str) else name
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype must be float32, float16 or bfloat16, got {name}")
    return dtype


def place(path_or_id: str | os.PathLike[str], parts: tuple[str, ...], kind: str) -> str:
    """The folder or hub id that is meant, looked at as far as this disk tells.

    Args:
        path_or_id: what was given.
        parts: folders that such a pipeline holds.
        kind: what the pipeline is called in diffusers.

    Raises:
        ValueError: there is no such folder, or it lacks a part.
    """
    where = os.path.expanduser(path_or_id)
    if os.path.isdir(where):
        missing = [part for part in parts if not os.path.isdir(os.path.join(where, part))]
        if missing:
            raise ValueError(
                f"{where} lacks {', '.join(missing)}: a {kind} folder holds {', '.join(parts)}; "
                "write one with its save_pretrained, or give the id of one on the hub"
            )
    elif where.startswith((".", "/", "~")) or where.count("/") > 1 or not where:
        raise ValueError(f"there is no folder {where!r}; give a {kind} folder or a hub id")
    return where


def write(pipeline: Any, folder: str | os.PathLike[str], model: nn.Module) -> None:
    """Writes a pipeline as a folder, which appears whole or not at all.

    Args:
        pipeline: a pipeline of diffusers.
        folder: a new or empty folder, or an earlier save, which is replaced whole once the new one is written.
        model: whose parts they are.

    Raises:
        ValueError: an adapter is attached, or the folder holds something else.
    """
    if any(".base_layer." in name for name, _ in model.named_parameters()):
        raise ValueError("an adapter is attached; detach it first, and save it with geoseg.lora.save")
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "model_index.json").exists():
        raise ValueError(f"{folder} is not empty and holds no saved model; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch, quiet():
        written = Path(scratch) / "new"
        pipeline.save_pretrained(written, safe_serialization=True)
        for config in written.rglob("config.json"):  # diffusers writes down where a part was read from
            entries = json.loads(config.read_text(encoding="utf-8"))
            entries.pop("_name_or_path", None)
            config.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        os.replace(written, folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars that transformers and diffusers show for every file they read or write.

    Nor with the notice that diffusers passes an argument that the hub's client no longer heeds.
    """
    bars = [transformers.utils.logging, diffusers.utils.logging]
    shown = [bar for bar in bars if bar.is_progress_bar_enabled()]
    for bar in shown:
        bar.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument")
            yield
    finally:
        for bar in shown:
            bar.enable_progress_bar()
