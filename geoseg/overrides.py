"""Settings as they are typed: whether they exist, and what was meant by those that do not."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from geoseg.config import check_settings, check_types, conf_folder
from geoseg.quoting import typed
from geoseg.signatures import written_types

OWN = ("--config-dir", "-cd")
"""Options of Hydra that name a folder with a user's own experiments."""

TAKES_A_WORD = (*OWN, "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p", "--info", "-i")
"""Options of Hydra that the next word belongs to."""

SHOWN = 8
"""Options that a message names."""


def arguments(
    words: Sequence[str], target: str, needed: Mapping[str, str], such: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """What the words of a command say to the function that does its work, before its libraries are loaded.

    Args:
        words: typed key=value.
        target: the full name of a function of geoseg, whose parameters the keys are.
        needed: keys that have to be there, each with what to say where it is not.
        such: an example of a setting, for messages.

    Returns:
        Its arguments, and where checkpoints lie now, by their keys in a method.

    Raises:
        ValueError: a word that is no setting of it, or a value that it does not take; or one that is needed is missing.
    """
    declared = written_types(target)
    moved: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"a setting is typed key=value, such as {such}; got {word!r}")
        if key.startswith("method.") and "path" in key:
            moved[key] = value
        elif key not in declared:
            near = difflib.get_close_matches(key, declared, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(declared)}"
            raise ValueError(f"there is no setting {key}; {hint}")
        elif declared[key] == {str}:  # a path means what it says, whatever letters are in it
            settings[key] = value
        else:
            settings[key] = _value(word, key)
    for key, what in needed.items():
        if not settings.get(key):
            raise ValueError(what)
    check_types({"_target_": target, **settings}, declared=written_types)
    for key, value in settings.items():
        if isinstance(value, dict) or (isinstance(value, list) and list not in declared[key]):
            raise ValueError(f"{key}={value}: one value is wanted")
    return settings, moved


def _value(word: str, key: str) -> Any:
    """The value of key=value, read as YAML."""
    try:
        read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([word]))
    except Exception as error:  # OmegaConf's own, and those of the YAML reader that it uses
        raise ValueError(f"cannot read {word!r}: {str(error).splitlines()[0]}") from None
    return read[key]


def check_overrides(words: Sequence[str], multirun: bool = False, folders: Sequence[str] = ()) -> None:
    """Composes the configuration once, so that what is mistyped is told before anything heavy is imported.

    In a sweep, values of the wrong type are left to the jobs that have them.

    Raises:
        ValueError: an unknown key or option, with the nearest known one; a value of the wrong type; or a line that
            Hydra cannot read.
    """
    single = searching(folders)
    beyond: list[tuple[str, str]] = []  # values of sweeps but for the first
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException as error:
            if "=" not in word:
                options = conf_folder().glob("*/*.yaml")
                meant = [f"{path.parent.name}={path.stem}" for path in options if path.stem == word]
                such = " or ".join(sorted(meant)) or "seed=1"
                raise ValueError(f"a setting is typed key=value, such as {such}; got {word!r}") from None
            reason = str(error).splitlines()[0]
            raise ValueError(f"put quotes around the value: {typed(word)}\n  cannot read {word!r}: {reason}") from None
        if not multirun and override.is_sweep_override():
            line = f"one value is typed {typed(word)}"
            raise ValueError(f"{word!r} names several values: geoseg run -m runs one after the other; {line}")
        if not multirun and override.key_or_group == "hparams_search" and override.value() is not None:
            raise ValueError(f"{word!r} asks for a search, which makes several runs: geoseg run -m does them")
        if override.key_or_group == "rivals" and override.value() == {}:
            raise ValueError("rivals={} would change nothing, since mappings are merged; rivals=null leaves them out")
        if multirun and override.is_sweep_override():
            value = override.value()
            values: list[Any] = (
                [value.start] if isinstance(value, IntervalSweep) else [*override.sweep_string_iterator()]
            )
            beyond += [(str(override.key_or_group), str(other)) for other in values[1:]]
            first = next(iter(values), None)
            if first is None:
                raise ValueError(f"{word!r} names no value; the end of a range is left out, as Python has it")
            word = f"{override.get_key_element()}={first}"
        single.append(word)
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        try:
            composed = compose("run", overrides=single)
        except (HydraException, ValueError) as error:
            known: list[str] = []
            with contextlib.suppress(HydraException, ValueError):
                groups = [word for word in single if word.split("=")[0] in ("experiment", "method", "data")]
                known = list(_keys(OmegaConf.to_container(compose("run", overrides=groups), resolve=False)))
            raise ValueError(_suggest(str(error), known, {word.split("=")[0] for word in single})) from None
        for key, value in beyond:
            group, _, option = f"{key}/{value}".rpartition("/")
            there = GlobalHydra.instance().config_loader().get_group_options(group, overrides=searching(folders))
            if there and option not in there:
                raise ValueError(_no_option(group, option, there))
    if multirun:
        return
    with contextlib.suppress(InterpolationResolutionError):  # what cannot be resolved is told by whoever needs it
        settings: Any = OmegaConf.to_container(composed, resolve=True)
        check_settings(settings)


def own_folders(words: Sequence[str]) -> list[str]:
    """What --config-dir names."""
    own = [after for word, after in pairwise(words) if word in OWN]
    return own + [word.partition("=")[2] for word in words if word.partition("=")[0] in OWN and "=" in word]


def without_options(words: Sequence[str]) -> list[str]:
    """The words that are no option, and no folder that --config-dir names."""
    before_each = zip(["", *words], words, strict=False)
    return [word for last, word in before_each if last not in OWN and not word.startswith("-")]


def users_folder() -> list[str]:
    """The user's own folder, where settings of a site lie, if there is one; what --config-dir names comes before it."""
    folder = os.path.join(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "geoseg")
    return [folder] if os.path.isdir(folder) else []


def searching(folders: Sequence[str]) -> list[str]:
    """The setting that makes Hydra look in a user's folders too."""
    return [f"hydra.searchpath=[{','.join(os.path.abspath(folder) for folder in folders)}]"] if folders else []


def _no_option(group: str, option: str, known: Sequence[str]) -> str:
    """What to say of an option that a group does not have."""
    near = difflib.get_close_matches(option, known, n=1)
    hint = f"did you mean {group}={near[0]}?" if near else f"there are {', '.join(known)}"
    return f"there is no {group}={option}; {hint}"


def _suggest(message: str, keys: list[str], chosen: Collection[str] = ()) -> str:
    """Hydra's message, made short, with the nearest setting or option; ``chosen`` are groups with an option typed."""
    wrong_key = re.search(r"Could not (?:override|append to config|delete from config\.) '([^']+)'", message)
    if wrong_key:
        key = wrong_key.group(1)
        by_last: dict[str, str] = {}
        for name in keys:
            by_last.setdefault(name.rsplit(".", 1)[-1], name)
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
        last = difflib.get_close_matches(key.rsplit(".", 1)[-1], by_last, n=1, cutoff=0.75)
        found = near[0] if near else by_last[last[0]] if last else ""
        hint = f"did you mean {found}?" if found else "geoseg run experiment=... --help lists those of an experiment"
        others = _elsewhere(key)
        if others:
            more = [f"{len(others) - SHOWN} more"] if len(others) > SHOWN else []
            which = others[0] if len(others) == 1 else "the one you mean"
            group = others[0].partition("=")[0]
            add = "which was not asked for" if group in chosen else f"so add {which}"
            hint = f"{' or '.join([*others[:SHOWN], *more])} has it, {add}"
        return f"there is no setting {key}; {hint}"
    wrong_option = re.search(r"Could not (?:find|load) '([^']+)'", message)
    options = re.search(r"Available options in '([^']+)':\n((?:\t.*\n?)+)", message)
    if wrong_option and options:
        group, known = options.group(1), options.group(2).split()
        option = wrong_option.group(1).removeprefix(f"{group}/")
        return _no_option(group, option, known)
    there = re.search(r"Either remove \+ prefix: '(.+)'", message) or re.search(r"use 'override (.+)'", message)
    if there:
        return f"leave the + away, since it is there already: {there.group(1).replace(': ', '=')}"
    if wrong_option:  # one of several that were asked for
        group, _, option = wrong_option.group(1).rpartition("/")
        return f"there is no {group}={option}; geoseg run --help lists the options of every group"
    said = re.split(r"\n+(?:Set the environment variable|Config search path)", message)[0].strip()
    if said.startswith("Config group override must be"):
        return f"a group takes the name of one of its options, such as experiment=label_lora ({said})"
    return said


def _elsewhere(key: str) -> list[str]:
    """The options of a group that have this setting, as group=option."""
    group, _, rest = key.partition(".")
    return [
        f"{group}={path.relative_to(conf_folder() / group).with_suffix('').as_posix()}"
        for path in sorted((conf_folder() / group).glob("**/*.yaml"))
        if path.parent.name != "shared"  # by several options, and none itself
        if rest in _keys(OmegaConf.to_container(OmegaConf.load(path), resolve=False))
    ]


def _keys(node: Any, where: str = "") -> Iterator[str]:
    """Every setting below a node, a.b.c, those that hold others too."""
    if isinstance(node, dict):
        for name, value in node.items():
            path = f"{where}.{name}" if where else str(name)
            yield path
            yield from _keys(value, path)
