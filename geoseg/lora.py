"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) and their kin: put in, weighed, saved, loaded and taken out.

The only place that knows peft. Functions take ``parts``: named modules, "unet" and "text", as
``LatentDiffusion.parts()`` gives them, "transformer" and "text", as ``FluxDiffusion.parts()`` does, or "encoder", as
``EncoderDecoder.parts()`` does, and change them in place. Files are for diffusion models: what adapts an encoder is
saved together with its decoder, which is of no use alone.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from geoseg.adapters import FILE, KIN_FILE, Adapter, Kin, Layer, made, pattern, read, read_kin, write, write_kin
from geoseg.randomness import key, stream

UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
"""Every linear layer and 1x1 convolution of the transformer blocks, as kohya-ss/sd-scripts networks/lora.py chooses
them: 192 in Stable Diffusion 1.5."""

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""Every linear layer of CLIP's attention and MLP, from the same source: 72 in Stable Diffusion 1.5."""

FLUX_TARGETS = (
    *("attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0"),
    *("attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)
"""Layers of a FLUX transformer as diffusers' train_dreambooth_lora_flux.py chooses them: 342 in FLUX.1-dev, twelve in
each of 19 blocks with two streams, the first three in each of 38 with one."""


class Plan(ABC):
    """The plan of an adapter; ``attach`` carries it out.

    Args:
        name: how prompts call it, ``<lora:name:1>``; letters, digits, "_" and "-".
        rank: inner width of its matrices.
        alpha: what they make counts alpha / rank times.
        targets: for each part, the layers that are adapted, by the end of their names.
        seed: start of the matrices. One of them starts at zero, so that a fresh adapter changes nothing.

    Raises:
        ValueError: a number out of range or an unusable name.
    """

    def __init__(self, name: str, rank: int, alpha: float, targets: Mapping[str, Sequence[str]], seed: int) -> None:
        _check_name(name)
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        if not alpha > 0:
            raise ValueError(f"alpha must be above 0, got {alpha}; alpha = rank leaves the product as it is")
        if not any(targets.values()):
            keys = [f"{part}_targets" for part in targets]
            raise ValueError(
                f"{', '.join(keys[:-1])} and {keys[-1]} are all empty; name layers in one, or use no adapter"
            )
        self.name, self.rank, self.alpha, self.seed = name, rank, alpha, seed
        self.targets = {part: tuple(layers) for part, layers in targets.items()}

    @abstractmethod
    def config(self, targets: Sequence[str]) -> PeftConfig:
        """What peft is told for one part."""

    @abstractmethod
    def start(self, layer: Any, part: str, path: str) -> None:
        """Gives the matrices of a layer that is not empty their first numbers, by seed and place alone."""

    def attach(self, parts: Mapping[str, nn.Module]) -> None:
        """Adds the adapter: float32 and trainable; all else in the parts it joins is frozen.

        Raises:
            ValueError: the name is taken, or a target fits no layer. Nothing has been changed then.
        """
        if self.name in adapter_names(parts):
            raise ValueError(f"an adapter called {self.name!r} is attached already; choose another lora name")
        _check_kind(parts, type(self.config(())))
        wanted = {part: targets for part, targets in self.targets.items() if targets}
        for part, targets in wanted.items():
            if part not in parts:
                raise ValueError(
                    f"there is no part {part!r} to adapt, as with finetune=full; set method.adapter=null, or "
                    f"method.adapter.{part}_targets=[] to adapt the other parts"
                )
            layers = {name for name, module in _plain(parts[part]) if isinstance(module, (nn.Linear, nn.Conv2d))}
            for target in targets:
                if not any(layer == target or layer.endswith(f".{target}") for layer in layers):
                    raise ValueError(
                        f"no linear or convolution layer of {part} is called {target!r}; such as "
                        f"{sorted({layer.rpartition('.')[2] for layer in layers})} are there"
                    )
        for part, targets in wanted.items():
            _inject(parts[part], self.name, self.config(targets))
            for path, layer in _layers(parts[part]):
                if any(matrix.device.type != "meta" for matrix in _matrices(layer, self.name).values()):
                    self.start(layer, part, path)


class LoRA(Plan):
    """Adds alpha / rank * up @ down to a weight.

    Args:
        name: see ``Plan``.
        rank: see ``Plan``.
        alpha: see ``Plan``.
        dropout: share of inputs hidden from the adapter while training, 0 to below 1.
        unet_targets: layers of the denoising network, by the end of their names; empty adds none.
        text_targets: layers of the text encoder, likewise.
        encoder_targets: layers of an image encoder, likewise.
        transformer_targets: layers of a FLUX transformer, likewise; see ``FLUX_TARGETS``.
        seed: start of the Gaussian first matrix (standard deviation 1 / rank); the second starts at zero.

    Raises:
        ValueError: a number out of range or an unusable name.
    """

    def __init__(
        self,
        name: str = "vai1",
        rank: int = 16,
        alpha: float = 16,
        dropout: float = 0.0,
        unet_targets: Sequence[str] = UNET_TARGETS,
        text_targets: Sequence[str] = TEXT_TARGETS,
        seed: int = 0,
        encoder_targets: Sequence[str] = (),
        transformer_targets: Sequence[str] = (),
    ) -> None:
        targets = {
            "unet": unet_targets,
            "text": text_targets,
            "encoder": encoder_targets,
            "transformer": transformer_targets,
        }
        super().__init__(name, rank, alpha, targets, seed)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.dropout = dropout

    def config(self, targets: Sequence[str]) -> PeftConfig:
        return LoraConfig(
            r=self.rank,
            lora_alpha=cast(int, self.alpha),
            lora_dropout=self.dropout,
            target_modules=list(targets),
            init_lora_weights="gaussian",
        )

    def start(self, layer: Any, part: str, path: str) -> None:
        weight = layer.lora_A[self.name].weight
        with torch.no_grad():
            generator = stream(self.seed, "lora", part, path)
            weight.copy_(torch.randn(weight.shape, generator=generator) / self.rank)


class LoHa(Plan):
    """Adds alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b), multiplied entry by entry.

    What it adds may have the square of ``rank`` as its rank (Hyeon-Woo et al. 2021, arXiv 2108.06098; Yeh et al. 2023,
    arXiv 2309.14859).

    Args:
        name: see ``Plan``.
        rank: see ``Plan``; twice as many numbers as a LoRA of this rank.
        alpha: see ``Plan``.
        unet_targets: see ``LoRA``.
        text_targets: see ``LoRA``.
        transformer_targets: see ``LoRA``.
        seed: see ``Plan``.

    Raises:
        ValueError: a number out of range or an unusable name.
    """

    def __init__(
        self,
        name: str = "vai1",
        rank: int = 8,
        alpha: float = 8,
        unet_targets: Sequence[str] = UNET_TARGETS,
        text_targets: Sequence[str] = TEXT_TARGETS,
        transformer_targets: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        targets = {"unet": unet_targets, "text": text_targets, "transformer": transformer_targets}
        super().__init__(name, rank, alpha, targets, seed)

    def config(self, targets: Sequence[str]) -> PeftConfig:
        return LoHaConfig(r=self.rank, alpha=cast(int, self.alpha), target_modules=list(targets))

    def start(self, layer: Any, part: str, path: str) -> None:
        _started(layer, self.name, self.seed, "loha", part, path)


class LoKr(Plan):
    """Adds alpha / rank times the Kronecker product of a small matrix and a large one.

    The large one is itself a product of two of ``rank`` where that is smaller (Yeh et al. 2023, arXiv 2309.14859); far
    fewer numbers than a LoRA of that rank.

    Args:
        name: see ``Plan``.
        rank: see ``Plan``.
        alpha: see ``Plan``; other programs take alpha / rank for 1 in a layer that is small enough for two full
            matrices, so keep alpha = rank where they are to read the file.
        factor: sides of the small matrix, the nearest divisors below of the layer's; None takes those nearest to the
            square root, which makes the adapter smallest.
        unet_targets: see ``LoRA``.
        text_targets: see ``LoRA``.
        transformer_targets: see ``LoRA``.
        seed: see ``Plan``.

    Raises:
        ValueError: a number out of range or an unusable name.
    """

    def __init__(
        self,
        name: str = "vai1",
        rank: int = 16,
        alpha: float = 16,
        factor: int | None = None,
        unet_targets: Sequence[str] = UNET_TARGETS,
        text_targets: Sequence[str] = TEXT_TARGETS,
        transformer_targets: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        targets = {"unet": unet_targets, "text": text_targets, "transformer": transformer_targets}
        super().__init__(name, rank, alpha, targets, seed)
        if factor is not None and factor < 1:
            raise ValueError(f"factor must be 1 or more, or null for the square root, got {factor}")
        self.factor = factor

    def config(self, targets: Sequence[str]) -> PeftConfig:
        return LoKrConfig(
            r=self.rank,
            alpha=cast(int, self.alpha),
            target_modules=list(targets),
            decompose_factor=-1 if self.factor is None else self.factor,
        )

    def start(self, layer: Any, part: str, path: str) -> None:
        _started(layer, self.name, self.seed, "lokr", part, path)


def adapter_names(parts: Mapping[str, nn.Module]) -> list[str]:
    """The adapters that are attached to any of the parts, oldest first."""
    return list(dict.fromkeys(name for part in parts.values() for name in getattr(part, "peft_config", {})))


def trainable(parts: Mapping[str, nn.Module]) -> dict[str, list[nn.Parameter]]:
    """The parameters that want gradients, by part; a part without any is left out."""
    wanted = {name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items()}
    return {name: parameters for name, parameters in wanted.items() if parameters}


def set_weight(part: nn.Module, name: str, weight: float) -> None:
    """Makes the adapter ``name`` count ``weight`` times its alpha / rank in one part.

    Args:
        part: one module of ``parts``.
        name: an attached adapter.
        weight: 1 as trained; 0 switches it off, so that the part answers bit for bit as without it; below 0 the
            adapter works in reverse.

    Raises:
        ValueError: no such adapter, or not a finite number.
    """
    if name not in adapter_names({"": part}):
        raise ValueError(f"no adapter {name!r} is attached here, only {adapter_names({'': part})}")
    if not math.isfinite(weight):
        raise ValueError(f"the weight of adapter {name!r} must be a finite number, got {weight}")
    for _, layer in _layers(part):
        layer.set_scale(name, weight)
        _activate(layer)


@contextmanager
def weighted(parts: Mapping[str, nn.Module], weights: Mapping[str, Mapping[str, float]]) -> Iterator[None]:
    """Weighs adapters for a while; whatever happens inside, the weights of before come back.

    Args:
        parts: where the adapters are attached.
        weights: adapter name to part name to weight, {"vai1": {"unet": 1.0, "text": 0.5}}. An adapter or part that
            is not named keeps its weight; a part that the adapter has no layers in is passed over.
    """
    layers = [layer for part in parts.values() for _, layer in _layers(part)]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for name, by_part in weights.items():
            for part, weight in by_part.items():
                if name in adapter_names({part: parts[part]}):
                    set_weight(parts[part], name, weight)
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)
            _activate(layer)


def save(parts: Mapping[str, nn.Module], folder: str | os.PathLike[str], name: str) -> Path:
    """Writes one adapter.

    A LoRA becomes ``pytorch_lora_weights.safetensors``, which diffusers reads too; LoHa and LoKr become
    ``lycoris_weights.safetensors`` in the names of LyCORIS, which ComfyUI reads and diffusers does not. The file
    appears whole or not at all.

    Args:
        parts: where the adapter is attached.
        folder: made when missing; a file of this name in it is replaced.
        name: which adapter; the file does not hold its name.

    Raises:
        ValueError: no such adapter.
    """
    if name in adapter_names(parts) and not isinstance(_config(parts, name), LoraConfig):
        return write_kin(_gathered_kin(parts, name), Path(folder) / KIN_FILE)
    return write(gathered(parts, name), Path(folder) / FILE, "diffusers")


def gathered(parts: Mapping[str, nn.Module], name: str) -> Adapter:
    """The matrices of one adapter by part and layer, ready to be written.

    Raises:
        ValueError: no such adapter.
    """
    if name not in adapter_names(parts):
        raise ValueError(f"no adapter {name!r} to save, only {adapter_names(parts)}")
    layers: dict[str, dict[str, Layer]] = {}
    options: dict[str, dict[str, Any]] = {}
    for part, module in parts.items():
        if name not in adapter_names({part: module}):
            continue
        config = cast(Any, module).peft_config[name]
        options[part] = {"target_modules": sorted(config.target_modules), "lora_dropout": config.lora_dropout}
        layers[part] = {
            _path_in_file(part, path): Layer(
                layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach(), layer.lora_alpha[name]
            )
            for path, layer in _layers(module)
            if name in layer.lora_A
        }
    return Adapter(layers, options, {}, flat=False)


def load(parts: Mapping[str, nn.Module], folder: str | os.PathLike[str], name: str) -> None:
    """Attaches an adapter from a file of this project, or a LoRA of diffusers or of kohya-ss/sd-scripts.

    It arrives in float32 and trainable, with weight 1, and everything else in its parts is frozen.

    Args:
        parts: where to attach it.
        folder: one that ``save`` wrote to; or the path of a ``.safetensors`` file.
        name: what to call it here.

    Raises:
        ValueError: no file, the name is taken, or something in the file has no place in these parts, such as that of
            another model. Nothing has been changed then.
    """
    _check_name(name)
    path = Path(folder)
    if path.suffix != ".safetensors":
        path = path / (KIN_FILE if (path / KIN_FILE).is_file() and not (path / FILE).is_file() else FILE)
    if not path.is_file():
        raise ValueError(f"there is no adapter file {path}; give the folder that an adapter was saved to")
    if name in adapter_names(parts):
        raise ValueError(f"an adapter called {name!r} is attached already; detach it or choose another name")
    kin = read_kin(path)
    if kin is not None:
        _load_kin(path, parts, kin, name)
        return
    adapter = read(path)
    if not adapter.layers:
        raise ValueError(f"{path} holds no adapter for {' or '.join(parts)}")
    plans: dict[str, dict[str, Layer]] = {}
    for part, layers in adapter.layers.items():
        if part not in parts:
            raise ValueError(f"{path} adapts the part {part!r}, which this model lacks")
        plans[part] = _placed(path, part, parts[part], layers, adapter)
    _check_kind(parts, LoraConfig)
    for part, layers in plans.items():
        dropout = adapter.options[part].get("lora_dropout", 0.0)
        _inject(parts[part], name, LoraConfig(target_modules=list(layers), lora_dropout=dropout, **pattern(layers)))
        for layer_path, layer in _layers(parts[part]):
            if name in layer.lora_A:
                with torch.no_grad():
                    layer.lora_A[name].weight.copy_(layers[layer_path].down)
                    layer.lora_B[name].weight.copy_(layers[layer_path].up)


def detach(parts: Mapping[str, nn.Module]) -> None:
    """Takes every adapter out, so that the parts are the very modules they were before."""
    for part in parts.values():
        for path, layer in list(_layers(part)):
            parent, _, last = path.rpartition(".")
            setattr(part.get_submodule(parent), last, layer.get_base_layer())
        if hasattr(part, "peft_config"):
            del part.peft_config


def _check_name(name: str) -> None:
    # a name that is part of "lora_" would confuse peft's search for its own parameters
    if not re.fullmatch(r"[\w-]+", name) or name in "lora_":
        raise ValueError(
            f"adapters are named with letters, digits, '_' and '-', such as 'vai1', and not {name!r}; a part of the "
            "word 'lora_' is no name either"
        )


def _check_kind(parts: Mapping[str, nn.Module], kind: type[PeftConfig]) -> None:
    there = {type(config) for part in parts.values() for config in getattr(part, "peft_config", {}).values()}
    if there - {kind}:
        raise ValueError(
            f"an adapter of another kind is attached already ({', '.join(sorted(k.__name__ for k in there))}); detach "
            "it first, or use one kind for all"
        )


def _config(parts: Mapping[str, nn.Module], name: str) -> PeftConfig:
    """What peft was told about an adapter that is attached."""
    return next(part.peft_config[name] for part in cast(Any, parts).values() if name in adapter_names({"": part}))


def _layers(part: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in part.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield path, module


def _matrices(layer: Any, name: str) -> dict[str, nn.Parameter]:
    """What one adapter holds in a layer, by the names that peft gives its matrices."""
    found: dict[str, Any] = {kind: getattr(layer, kind) for kind in layer.adapter_layer_names}
    held = {kind: by_name[name] for kind, by_name in found.items() if name in by_name}
    return {kind: getattr(matrix, "weight", matrix) for kind, matrix in held.items()}  # a LoRA's are modules


def _started(layer: Any, name: str, seed: int, *where: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, *where))
        layer.reset_adapter_parameters(name)  # peft's own, which draws from the global generator


def _plain(part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules under the names they have without adapters."""
    for path, module in part.named_modules():
        if ".lora_" not in path:
            yield path.replace(".base_layer", ""), module


def _activate(layer: Any) -> None:
    # not peft's set_adapter, which also switches gradients on and off
    layer._active_adapter = [name for name, scale in layer.scaling.items() if scale != 0]


def _inject(part: nn.Module, name: str, config: PeftConfig) -> None:
    training = part.training
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a second adapter is meant
        inject_adapter_in_model(config, part, adapter_name=name)
    part.requires_grad_(False)
    for _, layer in _layers(part):
        for matrix in _matrices(layer, name).values():
            matrix.data = matrix.data.float()
            matrix.requires_grad_(True)
        _activate(layer)
    part.train(training)  # new modules start in training mode, which would leave dropout on in a frozen model


def _gathered_kin(parts: Mapping[str, nn.Module], name: str) -> Kin:
    """The matrices of a LoHa or LoKr by part and layer, ready to be written."""
    config = cast(Any, _config(parts, name))
    options = {"rank": config.r, "alpha": config.alpha}
    if isinstance(config, LoKrConfig):
        options["factor"] = config.decompose_factor
    layers = {
        part: {
            _path_in_file(part, path): {kind: m.detach() for kind, m in _matrices(layer, name).items()}
            for path, layer in _layers(module)
            if _matrices(layer, name)
        }
        for part, module in parts.items()
        if name in adapter_names({part: module})
    }
    return Kin("lokr" if isinstance(config, LoKrConfig) else "loha", options, layers)


def _load_kin(path: Path, parts: Mapping[str, nn.Module], kin: Kin, name: str) -> None:
    """Attaches a LoHa or LoKr as its options say, and fills it with what the file holds."""
    options = dict(kin.options)
    kinds: dict[str, Any] = {"loha": LoHaConfig, "lokr": LoKrConfig}
    _check_kind(parts, kinds[kin.kind])
    if kin.kind == "lokr":
        options["decompose_factor"] = options.pop("factor")
    options["r"] = options.pop("rank")
    placed: dict[str, dict[str, dict[str, Tensor]]] = {}
    for part, layers in kin.layers.items():
        if part not in parts:
            raise ValueError(f"{path} adapts the part {part!r}, which this model lacks")
        there = {n: layer for n, layer in _plain(parts[part]) if isinstance(layer, nn.Linear | nn.Conv2d)}
        known = {_path_in_file(part, n).replace(".", "_"): n for n in there}
        strange = [
            layer
            for layer, matrices in layers.items()
            if layer not in known or made(kin.kind, matrices) != tuple(there[known[layer]].weight.flatten(1).shape)
        ]
        if strange:
            raise ValueError(
                f"{path} was trained on another model: for {part} it holds {len(strange)} of {len(layers)} layers that "
                f"are not there or have another size, such as {strange[0]}; load the checkpoint it was trained on"
            )
        placed[part] = {known[layer]: matrices for layer, matrices in layers.items()}
    for part, found in placed.items():
        _inject(parts[part], name, kinds[kin.kind](target_modules=list(found), **options))
        for layer_path, layer in _layers(parts[part]):
            with torch.no_grad():
                for kind, matrix in _matrices(layer, name).items():
                    matrix.copy_(found[layer_path][kind])


def _path_in_file(part: str, path: str) -> str:
    # the level that transformers 5 dropped
    return path.removeprefix("text_model.") if part == "text" else path


def _placed(
    path: Path, part: str, module: nn.Module, layers: Mapping[str, Layer], adapter: Adapter
) -> dict[str, Layer]:
    """The file's layers under the model's own paths; everything in the file must find its place."""
    there = {name: layer for name, layer in _plain(module) if isinstance(layer, nn.Linear | nn.Conv2d)}
    known = {_path_in_file(part, name).replace(".", "_"): name for name in there}
    origin = f"{path} was trained on another model ({adapter.base}): for {part}"
    remedy = "load the checkpoint it was trained on"
    extra = [name for name in layers if name.replace(".", "_") not in known]
    if extra:
        raise ValueError(
            f"{origin} it holds {len(extra)} of {len(layers)} layers that are not there, such as {extra[0]}; {remedy}"
        )
    placed = {known[name.replace(".", "_")]: layer for name, layer in layers.items()}
    for name, layer in placed.items():
        weight = there[name].weight  # [out, in], of a convolution [out, in, kernel, kernel]
        # down reads the layer's input with its kernel, up writes the output
        wanted = (layer.rank, *weight.shape[1:]), (weight.shape[0], layer.rank, *(1 for _ in weight.shape[2:]))
        found = tuple(layer.down.shape), tuple(layer.up.shape)
        if found != wanted:
            raise ValueError(f"{origin} {name} has matrices of {found}, but {wanted} are wanted here; {remedy}")
    options = adapter.options[part]
    targets = options.get("target_modules")
    if isinstance(targets, list) and not (options.get("exclude_modules") or options.get("layers_to_transform")):
        missing = [
            name
            for name in there
            if name not in placed and any(name == target or name.endswith(f".{target}") for target in targets)
        ]
        if missing:
            raise ValueError(
                f"{path} misses {len(missing)} layers of {part} that it says it adapts, such as {missing[0]}; the file "
                "is not whole, or was trained on a smaller model"
            )
    return placed
