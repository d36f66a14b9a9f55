"""Hands what a run trained to other programs."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from geoseg.adapters import FILE, KIN_FILE, Adapter, read, write
from geoseg.record import find_run, read_record


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: the file.
        adapter: what is in it.
        base: the model it was trained on, as far as that is known.
    """

    path: Path
    adapter: Adapter
    base: str


def export(
    source: str | os.PathLike[str],
    to: str | os.PathLike[str],
    layout: str = "kohya",
    dtype: str = "float32",
    force: bool = False,
) -> Exported:
    """Writes the LoRA of a run as one file, without loading the model it belongs to.

    Args:
        source: a run's folder, or its id or the beginning of it below the folder runs; or a folder that an adapter was
            saved to, or such a file.
        to: the ``.safetensors`` file to write.
        layout: "kohya", which kohya-ss/sd-scripts, A1111, ComfyUI and diffusers read, or "diffusers".
        dtype: of the matrices, "float32" or "float16".
        force: replace a file that is there.

    Raises:
        ValueError: the run is not finished or trained no LoRA, the file cannot be read, or is not to be replaced.
    """
    to = Path(to).expanduser()
    if to.suffix != ".safetensors":
        raise ValueError(f"--to {to}: the file's name ends in .safetensors, such as {to.stem or 'vai1'}.safetensors")
    if to.is_dir() or (to.exists() and not force):
        raise ValueError(f"{to} is there already; choose another name" + ("" if to.is_dir() else ", or add --force"))
    source = Path(source).expanduser()
    path, record = find(source)
    if to.exists() and to.samefile(path):
        raise ValueError(f"{to} is the very file to export; choose another name")
    beside = [file.name for file in path.parent.glob("*.safetensors") if file.name != path.name]
    if record is not None and beside:
        raise ValueError(
            f"the LoRA of {record['method']!r} is of no use without {beside[0]}, which was trained with it and which "
            "no other program reads; geoseg.load reads both"
        )
    adapter = read(path)
    if not adapter.layers:
        raise ValueError(f"{path} holds no layer of a LoRA")
    base = adapter.base
    notes = {key: value for key, value in adapter.metadata.items() if key.startswith("geoseg.")}
    notes |= {"geoseg.version": importlib.metadata.version("geoseg"), "geoseg.modules": str(len(adapter.modules))}
    if record is not None:
        kind, name = record["checkpoints"]["kind"], record["checkpoints"]["ids"].get("model", base)
        base = name if kind == "hub" else f"{name} (checkpoints={kind})"  # the name of a folder says little alone
        notes |= {f"geoseg.{key}": str(record[key]) for key in ("experiment", "run_id", "fit_id")}
    if base != "unknown":
        notes |= {"geoseg.base": base, "ss_sd_model_name": base}
    write(adapter, to, layout, getattr(torch, dtype), notes)
    return Exported(to, adapter, base)


def find(source: Path) -> tuple[Path, dict[str, Any] | None]:
    """The adapter file that a run or folder holds, and the run's record where it is one.

    Raises:
        ValueError: there is none, and why.
    """
    if source.is_file():
        if source.suffix != ".safetensors":
            raise ValueError(f"{source} is no .safetensors file; give a run's folder, an adapter folder or such a file")
        return source, None
    if not source.is_dir():
        if source.suffix or source.parent != Path():
            raise ValueError(f"there is no file or folder {source}; a run's folder is runs/EXPERIMENT/RUN_ID")
        source, _ = find_run(source)
    if (source / FILE).is_file():
        return source / FILE, None
    record = read_record(source)
    if record is None:
        runs = sorted(path.parent.as_posix() for path in source.glob("*/record.json"))
        if runs:
            raise ValueError(f"{source} is no run; name one of those in it: {', '.join(runs[:5])}")
        if (source / "config.yaml").is_file():
            raise ValueError(f"the run in {source} is not finished: it has no record.json; repeat its command first")
        raise ValueError(f"{source} holds neither a run's record.json nor {FILE}")
    title = record["method"]
    if record["fit_id"] is None:
        raise ValueError(f"{source} is a run of {title!r}, which trains nothing; there is no LoRA to export")
    fit = source.resolve().parent.parent / "fits" / str(record["fit_id"])
    path = fit / "adapter" / FILE
    trained = (fit / "fit.json").is_file() and path.is_file()
    if record["status"] != "done":
        hint = f"; its training did come to an end, so {path.parent} can be exported" if trained else ""
        raise ValueError(f"the run in {source} is not finished ({record.get('error', record['status'])}){hint}")
    if KIN_FILE in record.get("adapter", []):
        raise ValueError(
            f"{source} trained a LoHa or LoKr; {fit / 'adapter' / KIN_FILE} has LyCORIS's names already, copy it"
        )
    if FILE not in record.get("adapter", []):
        raise ValueError(f"{source} is a run of {title!r}, which trains a network and no LoRA to export")
    if not trained:
        raise ValueError(
            f"what {source} trained is not in {fit}: it was moved, deleted or is just being trained anew; repeat the "
            "run's command with force=true"
        )
    return path, record
