"""What stands between the composed configuration and plain objects: names, identity, trust.

Nothing below this floor ever sees a configuration object.
"""

from __future__ import annotations

import collections.abc
import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from geoseg.diffusion.prompts import read_prompt, without_tags
from geoseg.record import digest
from geoseg.signatures import written_types

TRUSTED = (
    "geoseg.",
    "torch.optim.",
    "pytorch_lightning.",
    "diffusers.",
    "transformers.",
    "peft.",
    "bitsandbytes.",
    "segmentation_models_pytorch.",
    "timm.",
    "torchmetrics.",
)
"""Packages whose objects a configuration may name; more come with trust=[package] or an installed entry point."""

ENTRY_POINTS = "geoseg.trust"
"""Group of entry points by which an installed package says that configurations may name its objects."""

PLACES = ("root", "path", "path_or_id", "workers")
"""Keys that say where or how fast, never what: they are no part of a run's identity."""

PATHS = ("path", "path_or_id")
"""Keys of checkpoints."""

TYPES: dict[str, type] = {
    **dict.fromkeys(("seed", "figure_rows", "sample_every", "sample_images", "workers"), int),
    **dict.fromkeys(("foresee", "force", "progress"), bool),
}
"""Types of the settings that belong to no object."""

PACKAGE = Path(__file__).resolve().parent


def conf_folder() -> Path:
    """The folder of configuration files: inside the package when installed, beside it in a checkout."""
    for folder in (PACKAGE / "conf", PACKAGE.parent / "conf"):
        if (folder / "run.yaml").is_file():
            return folder
    raise FileNotFoundError("geoseg's conf folder is missing; install the package again")


def register_resolvers() -> None:
    """Makes ``${assets:NAME}`` the path of an embedded checkpoint, and lets a prompt come from a text file."""
    OmegaConf.register_new_resolver("assets", lambda name: str(PACKAGE / "assets" / name), replace=True)
    OmegaConf.register_new_resolver("read_prompt", read_prompt, replace=True)
    OmegaConf.register_new_resolver("without_tags", without_tags, replace=True)


def plain(config: Any) -> Any:
    """A configuration node as plain containers with every interpolation resolved.

    Raises:
        ValueError: a value marked ??? was not given, a value refers to what is not there, or what a resolver says.
    """
    if not OmegaConf.is_config(config):
        return config
    missing = sorted(_missing(OmegaConf.to_container(config, resolve=False)))
    if missing:
        raise ValueError(f"the configuration needs a value for {', '.join(missing)}; give it as key=value")
    try:
        return OmegaConf.to_container(config, resolve=True)
    except InterpolationResolutionError as error:
        if said := _RESOLVING.search(str(error)):
            raise ValueError(said.group(1)) from None
        raise ValueError(_dangling(OmegaConf.to_container(config, resolve=False), error)) from None


def origin(config: Any, key: str) -> str:
    """Where a setting gets its value from, so that an error names the key that was typed.

    >>> origin({"method": {"sam": "${checkpoints.sam}"}, "checkpoints": {"sam": {"path": "x"}}}, "method.sam.path")
    'checkpoints.sam.path'
    """
    raw = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    for _ in range(10):  # a value may be handed on several times; one that refers to itself is told elsewhere
        node, parts = raw, key.split(".")
        for i, part in enumerate(parts):
            node = node.get(part) if isinstance(node, Mapping) else None
            if isinstance(node, str) and (whole := _REFERENCE.fullmatch(node)):
                key = ".".join([whole.group(1), *parts[i + 1 :]])
                break
        else:
            break
    return key


def check_targets(config: Any, trust: Sequence[str]) -> None:
    """Refuses objects from packages that nobody trusted, before any of them is imported.

    Args:
        config: a configuration node or plain containers.
        trust: packages beside ``TRUSTED`` and those whose entry point asks for it.

    Raises:
        ValueError: names the key, the object and how to trust its package.
    """
    installed = [point.module for point in importlib.metadata.entry_points(group=ENTRY_POINTS)]
    trusted = (*TRUSTED, *(f"{package}." for package in (*trust, *installed)))
    for where, target in _targets(config):
        if not str(target).startswith(trusted):
            raise ValueError(
                f"{where} names {target}, which is outside geoseg and the packages it trusts; "
                f"if you trust it, add trust=[{str(target).split('.')[0]}]"
            )
        try:
            found = get_object(target)
        except Exception as error:
            here = str(target).split(".")[0]
            hint = "" if importlib.util.find_spec(here) else f"; install {here}, or put its folder on PYTHONPATH"
            raise ValueError(f"{where} names {target}, which cannot be imported: {error}{hint}") from None
        home = f"{getattr(found, '__module__', '')}."
        if not home.startswith(trusted):  # a trusted module may hold a reference to something else, such as torch.load
            raise ValueError(
                f"{where} names {target}, which really is {home}{getattr(found, '__qualname__', '')} and not trusted"
            )


def own_packages(config: Any) -> list[str]:
    """The packages beside geoseg and those it trusts by itself whose objects a configuration names."""
    return sorted({target.split(".")[0] for _, target in _targets(config) if not target.startswith(TRUSTED)})


def build(node: Any, where: str, /, **available: Any) -> Any:
    """Instantiates a node (None stays None); a partial is completed with what its signature names of ``available``.

    Args:
        node: plain containers.
        where: its key in the configuration, named in errors.
        **available: what partials may ask for.

    Raises:
        ValueError: what the object said, or a key that it has no argument for.
    """
    if node is None:
        return None
    try:
        made = instantiate(node, _convert_="all")
        return complete(made, **available) if isinstance(made, functools.partial) else made
    except (InstantiationException, TypeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        inside = _INSIDE.search(str(error)) if isinstance(error, InstantiationException) else None
        key = f"{where}.{inside.group(1)}" if inside else where
        if isinstance(cause, ValueError):
            names_itself = str(cause).startswith(f"{where}.")
            raise ValueError(str(cause) if names_itself else f"{key}: {cause}") from error
        if isinstance(cause, TypeError) and _ARGUMENTS.search(str(cause)):
            raise ValueError(f"{key}: --cfg job shows the keys it takes ({cause})") from error
        raise


def check_settings(settings: Mapping[str, Any]) -> None:
    """Compares all settings with their types, without importing the objects they are meant for.

    Those of other packages and what classes leave to classes above them are left to ``check_types``.

    Args:
        settings: the whole configuration as plain containers; what is not given yet may be ``???`` in it.

    Raises:
        ValueError: names the key, its value and what was wanted.
    """
    for name, kind in TYPES.items():
        check_type(name, settings[name], kind)
    check_types(settings, declared=written_types)


def check_types(
    config: Any, where: str = "", declared: Callable[[str], Mapping[str, Collection[type]]] | None = None
) -> None:
    """Compares words and numbers with the types that the objects they are meant for declare.

    Args:
        config: plain containers.
        where: their key in the configuration.
        declared: types of an object's parameters by its name; None imports the object.

    Raises:
        ValueError: names the key, its value and what was wanted.
    """
    if isinstance(config, list):
        for i, value in enumerate(config):
            check_types(value, f"{where}[{i}]", declared)
    if not isinstance(config, Mapping):
        return
    wanted = (declared or _declared)(config["_target_"]) if "_target_" in config else {}
    for name, value in config.items():
        key = f"{where}.{name}" if where else str(name)
        if name in wanted and not isinstance(value, Mapping | list) and value != "???":
            check_type(key, value, *wanted[name])
        check_types(value, key, declared)


def check_type(key: str, value: Any, *kinds: type) -> None:
    """Compares one value with the types it may have; a whole number is a number, but no truth value is.

    Raises:
        ValueError: names the key, its value and what was wanted.
    """
    if type(value) not in kinds and not (type(value) is int and float in kinds):
        words = " or ".join(word for kind, word in _WORDS.items() if kind in kinds)
        raise ValueError(f"{key}={'null' if value is None else value}: {words} is wanted")


_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    type(None): "null",
}
"""The types that a value on the command line can have, and what to call them."""


def _declared(name: str) -> dict[str, set[type]]:
    """Types of those parameters of a function or class that take plain values only."""
    target, found = get_object(name), dict[str, set[type]]()
    # what a class hands on as **keywords is declared by the classes above it
    above = [one.__dict__.get("__init__") for one in target.__mro__] if inspect.isclass(target) else [target]
    for function in above:
        if not (inspect.isfunction(function) or inspect.ismethod(function)):
            continue
        try:
            hints = get_type_hints(function)
        except (NameError, TypeError):  # a library that imports its types for checkers only
            continue
        for parameter, hint in hints.items():
            kinds = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
            plain_kinds = {list if get_origin(kind) in _LISTS else kind for kind in kinds}
            if parameter != "return" and plain_kinds <= _WORDS.keys():
                found.setdefault(parameter, plain_kinds)
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
            break
    return found


_LISTS = (list, tuple, collections.abc.Sequence)


def complete(partial: functools.partial[Any], /, **available: Any) -> Any:
    """Calls ``partial`` with those of ``available`` that it has a parameter for and no value yet."""
    wanted = inspect.signature(partial.func).parameters.keys() - partial.keywords.keys()
    return partial(**{name: value for name, value in available.items() if name in wanted})


def identity(*parts: Any) -> str:
    """Ten hex digits that depend on what decides a result, and neither on places nor on the order of keys.

    >>> identity({"a": 1, "path": "x"}) == identity({"path": "y", "a": 1})
    True
    """
    text = json.dumps([_without_places(part) for part in parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def weights_of(method: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Names and digests of every checkpoint that a method reads.

    Raises:
        ValueError: a file or folder is not there; told before anything is read or fetched. Begins with its key.
    """
    ids: dict[str, str] = {}
    hashes: dict[str, str] = {}

    def walk(node: Any, where: str) -> None:
        if isinstance(node, Mapping):
            for name, value in node.items():
                if name in PATHS and isinstance(value, str):
                    path = Path(value).expanduser()
                    if name == "path" and not path.exists():
                        raise ValueError(
                            f"{where}.{name}={value}: there is no such file or folder; give one that is there. "
                            "geoseg fetch tells where published checkpoints are to be had"
                        )
                    ids[where] = path.name if path.exists() else value
                    hashes[where] = digest(path) if path.exists() else f"{value}, revision {node.get('revision')}"
                else:
                    walk(value, f"{where}.{name}" if where else str(name))

    for part in ("model", "predictor", "wrappers"):
        walk(method[part], part)
    return {"ids": ids, "hashes": hashes}


def embedded_here(node: Any) -> Any:
    """The same containers with paths to checkpoints that are embedded in geoseg as they are on this machine."""
    if isinstance(node, Mapping):
        return {
            name: _embedded(value) if name in PATHS and isinstance(value, str) else embedded_here(value)
            for name, value in node.items()
        }
    return [embedded_here(value) for value in node] if isinstance(node, list) else node


def redact(config: Any) -> Any:
    """The same containers without secrets: keys, tokens, passwords, and credentials inside addresses."""
    if isinstance(config, Mapping):
        return {
            key: "***" if _SECRET.search(str(key)) and value not in (None, "") else redact(value)
            for key, value in config.items()
        }
    if isinstance(config, list):
        return [redact(value) for value in config]
    if isinstance(config, str):
        return _QUERY.sub(r"\1***", _CREDENTIALS.sub(r"\1***@", config))
    return config


_SECRET = re.compile(r"(^|_)(api_?key|token|password|passwd|secret|credentials?)($|_)", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(\w+://)[^/@\s]+@")
_INSIDE = re.compile(r"^full_key: (\S+)$", re.MULTILINE)
_RESOLVING = re.compile(r"^ValueError raised while resolving interpolation: (.*)\n    full_key: ", re.DOTALL)
_REFERENCE = re.compile(r"\$\{([\w.-]+)\}")
_ARGUMENTS = re.compile(r"unexpected keyword argument|missing \d+ required")
_QUERY = re.compile(r"([?&](?:\w+_)?(?:api_?key|token|password|secret|signature)=)[^&\s]+", re.IGNORECASE)


def _missing(node: Any, where: str = "") -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _missing(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _missing(value, f"{where}[{i}]")
    elif node == "???":
        yield where


def _dangling(raw: Any, error: InterpolationResolutionError) -> str:
    """What to do about a value that refers to what is not there; OmegaConf's own words come last."""
    said = str(error).splitlines()[0]
    flat = dict(_leaves(raw))
    key = str(error.full_key or "")
    value = flat.get(key)
    gone = [name for name in _REFERENCE.findall(str(value)) if not _known(raw, name)]
    if not gone:
        return f"{key}={value}: give the value itself, or the name of another setting inside ${{}} ({said})"
    name = gone[0]
    lost = next((up for up in _ups(name) if not isinstance(_at(raw, up), Mapping)), name)
    # a rival is left out as a whole, whatever it takes from elsewhere
    rivals = dict.fromkeys(
        ".".join(leaf.split(".")[:2])
        for leaf, held in flat.items()
        if leaf.startswith("rivals.")
        and any(f"{found}.".startswith(f"{lost}.") for found in _REFERENCE.findall(str(held)))
    )
    if key.startswith("rivals.") and _at(raw, lost) is None:
        cure = " ".join(f"{rival}=null" for rival in rivals)
        they = "it takes" if len(rivals) == 1 else "they take"
        return f"set {cure} too: {they} settings from {lost}, which is {'null' if _known(raw, lost) else 'not there'}"
    near = difflib.get_close_matches(name, flat, n=1)
    hint = f"did you mean ${{{near[0]}}}?" if near else "--cfg job shows those that are there"
    return f"{key}={value}: there is no setting {name}; {hint}"


def _leaves(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Full names and values of all settings that hold no others."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _leaves(value, f"{where}.{name}" if where else str(name))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _leaves(value, f"{where}[{i}]")
    else:
        yield where, node


def _ups(key: str) -> list[str]:
    """a.b.c: a, a.b"""
    parts = key.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _at(raw: Any, key: str) -> Any:
    for part in key.split("."):
        raw = raw.get(part) if isinstance(raw, Mapping) else None
    return raw


def _known(raw: Any, key: str) -> bool:
    above, _, last = key.rpartition(".")
    node = _at(raw, above) if above else raw
    # what stands behind a reference is not looked into
    return (isinstance(node, Mapping) and last in node) or isinstance(node, str)


def _embedded(path: str) -> str:
    _, inside, rest = path.rpartition("/geoseg/assets/")
    here = PACKAGE / "assets" / rest
    return str(here) if inside and not Path(path).exists() and here.exists() else path


def _without_places(part: Any) -> Any:
    if isinstance(part, Mapping):
        return {str(key): _without_places(value) for key, value in part.items() if key not in PLACES}
    if isinstance(part, list | tuple):
        return [_without_places(value) for value in part]
    return part


def _targets(config: Any, where: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=False)
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield where or "the configuration", str(config["_target_"])
        for key, value in config.items():
            yield from _targets(value, f"{where}.{key}" if where else str(key))
    elif isinstance(config, list):
        for i, value in enumerate(config):
            yield from _targets(value, f"{where}[{i}]")
