"""Files that adapters lie in: the layout of diffusers and that of kohya-ss/sd-scripts, which A1111 and ComfyUI read.

Only names and numbers: neither a model nor peft is needed. A layer's path has dots in diffusers' layout and "_" in
kohya's, and never starts with the ``text_model`` level, which is there or not depending on the version of transformers.
"""

from __future__ import annotations

import json
import math
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FILE = "pytorch_lora_weights.safetensors"
"""The name diffusers looks for in an adapter folder."""

KIN_FILE = "lycoris_weights.safetensors"
"""The name of a file with a LoHa or LoKr."""

LAYOUTS = ("kohya", "diffusers")
"""Ways of naming the matrices in a file."""

_DIFFUSERS = {"unet": "unet.", "text": "text_encoder.text_model.", "transformer": "transformer."}
_STATED = {"unet": "unet.", "text": "text_encoder.", "transformer": "transformer."}  # how options and keys begin
# LyCORIS names a U-Net's and CLIP's layers as kohya does; those of a transformer in diffusers' layout as here
_LYCORIS = {"unet": "lora_unet_", "text": "lora_te_text_model_", "transformer": "lycoris_"}
# "lora_te1_" is SDXL's first text encoder: files of Stable Diffusion 1 that carry it are read, and none is written
_KOHYA = {"unet": "lora_unet_", "text": "lora_te_text_model_"}
_KOHYA_READ = {"lora_unet_": "unet", "lora_te_": "text", "lora_te1_": "text"}
_SIDES = {"lora_A.weight": "down", "lora_B.weight": "up", "lora_down.weight": "down", "lora_up.weight": "up"}
_KIN_OPTIONS = "geoseg.lycoris"
_OPTIONS = "lora_adapter_metadata"  # where diffusers keeps rank, alpha and targets in a file's header
_SD1_WIDTH = 768  # of CLIP ViT-L/14, whose words condition Stable Diffusion 1


class Layer(NamedTuple):
    """What is added to one weight: alpha / rank * up @ down.

    Attributes:
        down: [rank, in]; of a convolution [rank, in, kernel, kernel].
        up: [out, rank]; of a convolution [out, rank, 1, 1].
        alpha: above 0; equal to rank it leaves the product as it is.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Inner width of the two matrices."""
        return self.down.shape[0]


class Adapter(NamedTuple):
    """What a file holds.

    Attributes:
        layers: part ("unet", "text", "transformer") to path to layer.
        options: part to options of peft's LoraConfig that the file states, such as target_modules.
        metadata: the strings in the file's header.
        flat: paths have "_" for ".", which only the model's own paths can undo.
    """

    layers: dict[str, dict[str, Layer]]
    options: dict[str, dict[str, Any]]
    metadata: dict[str, str]
    flat: bool

    @property
    def modules(self) -> list[Layer]:
        """The layers of every part."""
        return [layer for layers in self.layers.values() for layer in layers.values()]

    @property
    def base(self) -> str:
        """The model it was trained on, as far as the file says."""
        return self.metadata.get("geoseg.base") or self.metadata.get("ss_sd_model_name") or "unknown"

    @property
    def fits_sd1(self) -> bool:
        """Whether widths are those of Stable Diffusion 1, judged by layers that read the condition."""
        ends = {
            "unet": ("attn2.to_k", "attn2.to_v", "attn2_to_k", "attn2_to_v"),
            "text": ("q_proj", "k_proj", "v_proj"),
        }
        widths = {
            layer.down.shape[1]
            for part, layers in self.layers.items()
            for path, layer in layers.items()
            if path.endswith(ends.get(part, ()))
        }
        return widths == {_SD1_WIDTH} and "transformer" not in self.layers  # FLUX has the same CLIP


def read(path: str | os.PathLike[str]) -> Adapter:
    """Reads a file of this project, of diffusers or of kohya-ss/sd-scripts.

    Args:
        path: a ``.safetensors`` file.

    Raises:
        ValueError: it is not such a file, holds something beside plain low-rank matrices, or lacks some.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
        stated = json.loads(metadata.get(_OPTIONS, "{}"))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as an adapter in safetensors: {error}") from None
    flat = any(key.startswith("lora_") for key in state)
    found, strange = (_kohya_names if flat else _diffusers_names)(state)
    if strange:
        raise ValueError(
            f"{path} holds {len(strange)} entries that are no low-rank matrix of a U-Net, of a FLUX transformer or of "
            f"one text encoder, such as {strange[0]}; it was made for another kind of model (SDXL has lora_te2_), or "
            "is no plain LoRA"
        )
    options = {part: _below(stated, prefix) for part, prefix in _STATED.items()}
    layers: dict[str, dict[str, Layer]] = {}
    for (part, name), sides in found.items():
        layers.setdefault(part, {})[name] = _layer(f"{path}: {part} {name}", name, sides, options[part])
    adapter = Adapter(layers, {part: options[part] for part in layers}, metadata, flat)
    count = metadata.get("geoseg.modules")
    if count is not None and int(count) != len(adapter.modules):
        raise ValueError(
            f"{path} holds {len(adapter.modules)} of the {count} modules it was written with; export it again"
        )
    return adapter


def write(
    adapter: Adapter,
    path: str | os.PathLike[str],
    layout: str,
    dtype: torch.dtype = torch.float32,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Writes one file, which appears whole or not at all.

    Args:
        adapter: what to write.
        path: a ``.safetensors`` file; its folder is made when missing, a file that is there is replaced.
        layout: "kohya" or "diffusers".
        dtype: of the matrices; alphas stay float32. float32 keeps them exactly, and is what kohya-ss/sd-scripts writes
            unless told otherwise; float16 halves the file and changes every weight by up to 1 part in 2000.
        notes: further entries of the file's header.

    Raises:
        ValueError: numbers are too large for dtype, a file of kohya's is wanted in diffusers' layout, or an adapter
            of a FLUX transformer in kohya's.
    """
    path = Path(path)
    state = in_kohya_layout(adapter, dtype) if layout == "kohya" else in_diffusers_layout(adapter, dtype)
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{len(broken)} matrices are not finite in {dtype}, such as {broken[0]}; use float32, and where that says "
            "the same, the training diverged"
        )
    header = _kohya_header(adapter, path.stem) if layout == "kohya" else _diffusers_header(adapter)
    return _put(path, state, {**header, **(notes or {})})


def _put(path: Path, state: Mapping[str, Tensor], header: Mapping[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with open(scratch, "wb") as file:  # safetensors' own save_file would let nobody else read it
            file.write(save(dict(state), {"format": "pt", **header}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


class Kin(NamedTuple):
    """A LoHa or LoKr.

    Attributes:
        kind: "loha" or "lokr".
        options: rank and alpha; for LoKr also factor, -1 for the square root.
        layers: part to path to matrix by its name, such as "hada_w1_a" or "lokr_w2", of LyCORIS and peft alike.
    """

    kind: str
    options: dict[str, Any]
    layers: dict[str, dict[str, dict[str, Tensor]]]


def write_kin(kin: Kin, path: str | os.PathLike[str]) -> Path:
    """Writes a LoHa or LoKr in the names of LyCORIS, float32; the file appears whole or not at all.

    Options stand in the header, since a LoKr's matrices do not tell all of them.
    """
    state: dict[str, Tensor] = {}
    for part, layers in kin.layers.items():
        for name, matrices in layers.items():
            layer = _LYCORIS[part] + name.replace(".", "_")
            state |= {f"{layer}.{matrix}": value.float().contiguous() for matrix, value in matrices.items()}
            state[f"{layer}.alpha"] = torch.tensor(float(kin.options["alpha"]))
    header = {_KIN_OPTIONS: json.dumps({"kind": kin.kind, **kin.options})}
    return _put(Path(path), state, {**header, "ss_network_module": "lycoris.kohya"})


def read_kin(path: str | os.PathLike[str]) -> Kin | None:
    """Reads a LoHa or LoKr of this project; None where the file is something else. Paths have "_" for ".".

    Raises:
        ValueError: it cannot be read, or another program wrote it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if not any(".hada_" in name or ".lokr_" in name for name in names):
                return None
            stated = json.loads((file.metadata() or {}).get(_KIN_OPTIONS, "null"))
            state = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as an adapter in safetensors: {error}") from None
    if stated is None:
        raise ValueError(
            f"{path} is no plain LoRA but a LoHa or LoKr of another program, without its options; train one here"
        )
    layers: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, value in state.items():
        name, _, matrix = key.partition(".")
        part = next((part for part, prefix in _LYCORIS.items() if name.startswith(prefix)), None)
        if part is None:
            raise ValueError(f"{path} holds {key}, which is of no known part of a model; the file is damaged")
        if matrix != "alpha":
            layers.setdefault(part, {}).setdefault(name.removeprefix(_LYCORIS[part]), {})[matrix] = value
    return Kin(stated.pop("kind"), stated, layers)


def made(kind: str, matrices: Mapping[str, Tensor]) -> tuple[int, int]:
    """Rows and columns of what the matrices of one layer of a LoHa or LoKr make together."""
    if kind == "loha":
        return matrices["hada_w1_a"].shape[0], matrices["hada_w1_b"].shape[1]
    rows, columns = 1, 1
    for side in ("lokr_w1", "lokr_w2"):
        whole = side in matrices
        rows *= matrices[side if whole else f"{side}_a"].shape[0]
        columns *= matrices[side if whole else f"{side}_b"].flatten(1).shape[1]
    return rows, columns


def in_kohya_layout(adapter: Adapter, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Three tensors per layer: ``lora_down.weight``, ``lora_up.weight`` and the scalar ``alpha``.

    Raises:
        ValueError: kohya's names for FLUX take three of diffusers' layers for one.
    """
    if "transformer" in adapter.layers:
        raise ValueError(
            "the layers of a FLUX transformer have no names of their own in kohya's layout; write diffusers' "
            "(--format diffusers), which ComfyUI reads too"
        )
    state: dict[str, Tensor] = {}
    for part, layers in adapter.layers.items():
        for name, layer in layers.items():
            key = _KOHYA[part] + name.replace(".", "_")
            state[f"{key}.lora_down.weight"] = layer.down.to(dtype).contiguous()
            state[f"{key}.lora_up.weight"] = layer.up.to(dtype).contiguous()
            state[f"{key}.alpha"] = torch.tensor(float(layer.alpha))
    return state


def in_diffusers_layout(adapter: Adapter, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Two tensors per layer, ``lora_A.weight`` and ``lora_B.weight``; alpha stands in the header.

    Raises:
        ValueError: the paths came from a file of kohya's.
    """
    if adapter.flat:
        raise ValueError(
            "names in kohya's layout cannot be turned back into diffusers' without the model; keep kohya's"
        )
    state: dict[str, Tensor] = {}
    for part, layers in adapter.layers.items():
        for name, layer in layers.items():
            state[f"{_DIFFUSERS[part]}{name}.lora_A.weight"] = layer.down.to(dtype).contiguous()
            state[f"{_DIFFUSERS[part]}{name}.lora_B.weight"] = layer.up.to(dtype).contiguous()
    return state


def pattern(layers: Mapping[str, Layer]) -> dict[str, Any]:
    """Ranks and alphas of one part as options of peft's LoraConfig."""
    first = next(iter(layers.values()))
    return {
        "r": first.rank,
        "lora_alpha": first.alpha,
        "rank_pattern": {path: layer.rank for path, layer in layers.items() if layer.rank != first.rank},
        "alpha_pattern": {path: layer.alpha for path, layer in layers.items() if layer.alpha != first.alpha},
    }


def _below(stated: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in stated.items() if key.startswith(prefix)}


_Found = dict[tuple[str, str], dict[str, Tensor]]  # (part, path) to side to tensor


def _kohya_names(state: Mapping[str, Tensor]) -> tuple[_Found, list[str]]:
    """A file's tensors by part, path and side, and the keys that are nothing of the kind."""
    found: _Found = {}
    strange = []
    for key, value in state.items():
        name, _, rest = key.partition(".")
        start = next((start for start in _KOHYA_READ if name.startswith(start)), None)
        side = "alpha" if rest == "alpha" else _SIDES.get(rest)
        if start is None or side is None:
            strange.append(key)
            continue
        part = _KOHYA_READ[start]
        name = name.removeprefix(start)
        found.setdefault((part, name.removeprefix("text_model_") if part == "text" else name), {})[side] = value
    return found, strange


def _diffusers_names(state: Mapping[str, Tensor]) -> tuple[_Found, list[str]]:
    found: _Found = {}
    strange = [key for key in state if not key.startswith(tuple(_STATED.values()))]
    for part, prefix in _STATED.items():
        mine = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if not all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in mine):
            mine = _renamed(mine, part)
        for key, value in mine.items():
            name, _, rest = key.rpartition(".lora_")
            side = _SIDES.get(f"lora_{rest}")
            if side is None or not name:
                strange.append(prefix + key)
                continue
            found.setdefault((part, name.removeprefix("text_model.") if part == "text" else name), {})[side] = value
    return found, strange


def _renamed(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The names of today for a part of an older file of diffusers."""
    # a second to import, and few files need it
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    try:
        if part in ("unet", "transformer"):
            return convert_unet_state_dict_to_peft(state)
        return convert_state_dict_to_peft(convert_state_dict_to_diffusers(state))
    except ValueError:  # nothing that diffusers ever wrote
        return state


def _layer(where: str, name: str, sides: Mapping[str, Tensor], options: Mapping[str, Any]) -> Layer:
    missing = [side for side in ("down", "up") if side not in sides]
    if missing:
        raise ValueError(f"{where} misses its matrix {' and '.join(missing)}; the file is not whole")
    down, up = sides["down"], sides["up"]
    if down.ndim < 2 or down.ndim != up.ndim or down.shape[0] != up.shape[1]:
        raise ValueError(
            f"{where} holds matrices of {list(down.shape)} and {list(up.shape)}, which do not make a product"
        )
    rank = down.shape[0]
    if rank == 0:
        raise ValueError(f"{where} has rank 0: there is nothing in it; train with a rank of at least 1")
    if options and options.get("r", rank) != rank and not options.get("rank_pattern"):
        raise ValueError(f"{where} has rank {rank}, but the file's header says {options['r']}; the file is damaged")
    alpha = float(sides["alpha"]) if "alpha" in sides else _stated_alpha(name, rank, options)
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"{where} has alpha {alpha}; a finite number above 0 is wanted")
    return Layer(down, up, alpha)


def _stated_alpha(name: str, rank: int, options: Mapping[str, Any]) -> float:
    """The alpha that counts as alpha / rank; where nothing is stated that is the rank."""
    # peft takes keys of a pattern for regular expressions that end a path
    patterns: Mapping[str, float] = options.get("alpha_pattern") or {}
    matching = (value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", name))
    alpha = float(next(matching, options.get("lora_alpha", rank)))
    return alpha * math.sqrt(rank) if options.get("use_rslora") else alpha  # which counts alpha / sqrt(rank)


def _kohya_header(adapter: Adapter, title: str) -> dict[str, str]:
    """Entries under kohya-ss/sd-scripts' names (train_network.py, sai_model_spec.py); all are strings."""
    ranks = {layer.rank for layer in adapter.modules}
    alphas = {float(layer.alpha) for layer in adapter.modules}
    header = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(min(ranks)) if len(ranks) == 1 else "Dynamic",  # its resize_lora.py says so
        "ss_network_alpha": str(min(alphas)) if len(alphas) == 1 else "Dynamic",
        "ss_output_name": title,
        "geoseg.modules": str(len(adapter.modules)),
    }
    if adapter.fits_sd1:
        header |= {
            "ss_v2": "False",
            "ss_base_model_version": "sd_v1",
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": "stable-diffusion-v1/lora",
            "modelspec.implementation": "diffusers",
            "modelspec.title": title,
        }
    return header


def _diffusers_header(adapter: Adapter) -> dict[str, str]:
    """Rank and alpha; without them a reader would take alpha for the rank."""
    stated: dict[str, Any] = {}
    for part, layers in adapter.layers.items():
        options = {"target_modules": list(layers), **adapter.options.get(part, {}), **pattern(layers)}
        options.pop("use_rslora", None)  # alpha says it already
        stated |= {f"{_STATED[part]}{key}": value for key, value in options.items()}
    return {_OPTIONS: json.dumps(stated, indent=2, sort_keys=True)}
