"""Prompts in the grammar of AUTOMATIC1111's web UI: words, with tags that call adapters."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_TAG = re.compile(r"<(\w+):([^>]+)>")  # modules/extra_networks.py of the web UI
_BROKEN = re.compile(r"<\w[^<>]*>|<\s*lora\b[^<>]*", re.IGNORECASE)


@dataclass(frozen=True)
class AdapterWeight:
    """How much an adapter counts in the text encoder and in the denoising network; 1 is as trained, 0 is off."""

    text: float = 1.0
    unet: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """What is left of a prompt without its tags, and what the tags said, by adapter name."""

    words: str
    weights: dict[str, AdapterWeight]


def parse_prompt(text: str, adapters: Collection[str]) -> Prompt:
    """Separates the words of a prompt from its adapter tags.

    A tag is ``<lora:name>``, ``<lora:name:text>`` or ``<lora:name:text:unet>``; the last two numbers may also be
    written ``te=`` and ``unet=``. The weight in the text encoder is 1 when not given, and the one in the denoising
    network follows it.

    Args:
        text: the prompt.
        adapters: names that tags may use, those of the attached adapters.

    Raises:
        ValueError: an unknown adapter, another kind of tag, or a tag that cannot be read. The web UI passes over
            such tags, so that a run without its adapter looks like one with it.

    >>> parse_prompt("8 k, <lora:vai1:1>, Tile", ["vai1"])
    Prompt(words='8 k, Tile', weights={'vai1': AdapterWeight(text=1.0, unet=1.0)})
    """
    weights: dict[str, AdapterWeight] = {}
    for tag in _TAG.finditer(text):
        kind, arguments = tag.groups()
        if kind != "lora":
            raise ValueError(f"{tag.group()} in the prompt is not an adapter tag; {_advice(tag.group(), adapters)}")
        name, weight = _arguments(tag.group(), arguments, adapters)
        if name in weights:
            raise ValueError(f"the prompt calls adapter {name!r} twice; keep one of its tags")
        weights[name] = weight
    words = without_tags(text)
    if broken := _BROKEN.search(words):
        raise ValueError(f"{broken.group()} in the prompt cannot be read; {_advice(broken.group(), adapters)}")
    return Prompt(words, weights)


def without_tags(text: str) -> str:
    """The words of a prompt alone, whatever its tags say.

    >>> without_tags("8 k, <lora:vai1:1>, Tile")
    '8 k, Tile'
    """
    words, tags = _TAG.subn("", text)
    if tags:
        words = re.sub(r"\s*,(\s*,)+", ",", words)  # the comma before and the comma after a tag
        words = re.sub(r"\s{2,}", " ", words).strip(" ,")
    return words.strip()


def read_prompt(path: str) -> str:
    """A prompt from a text file, its line ends and indents made into single spaces.

    Raises:
        ValueError: no such file, no text in it, or text that would not arrive as it stands.
    """
    try:
        text = " ".join(Path(path).expanduser().read_text(encoding="utf-8-sig").split())
    except OSError as error:
        raise ValueError(f"prompt.path={path} cannot be read: {error.strerror}; give a text file") from None
    except UnicodeDecodeError:
        raise ValueError(f"prompt.path={path} is no text in UTF-8; save it as such") from None
    if not text:
        raise ValueError(f"prompt.path={path} is empty; write the prompt into it")
    if "${" in text:
        raise ValueError(f"prompt.path={path} holds '${{', which calls another setting; remove it")
    return text


def _arguments(tag: str, arguments: str, adapters: Collection[str]) -> tuple[str, AdapterWeight]:
    positional, named = [], {}
    for argument in arguments.split(":"):
        key, equals, value = argument.partition("=")
        if equals:
            named[key.strip()] = value
        else:
            positional.append(argument.strip())
    if not positional or len(positional) > 3 or set(named) - {"te", "unet"}:
        raise ValueError(f"{tag} in the prompt cannot be read; {_advice(tag, adapters)}")
    name = positional[0]
    if name not in adapters:
        raise ValueError(f"{tag} in the prompt calls an adapter that is not attached; {_advice(tag, adapters)}")
    try:
        text = float(named.get("te", positional[1] if len(positional) > 1 else 1.0))
        unet = float(named.get("unet", positional[2] if len(positional) > 2 else text))
    except ValueError:
        text = unet = math.nan
    if not math.isfinite(text) or not math.isfinite(unet):
        raise ValueError(f"{tag} in the prompt has a weight that is not a number; {_advice(tag, adapters)}")
    return name, AdapterWeight(text, unet)


def _advice(tag: str, adapters: Collection[str]) -> str:
    """The right spelling with the adapter that the tag most likely means."""
    if not adapters:
        return "no adapter is attached: remove the tag, or attach an adapter"
    inner = tag.strip("<> ").removeprefix("lora")
    words = [word for word in re.split(r"[:=\s]+", inner) if word]
    near = [match for word in words for match in difflib.get_close_matches(word, list(adapters), n=1, cutoff=0.5)]
    name = near[0] if near else next(iter(adapters))
    return f"write <lora:{name}:1>, or <lora:{name}:te=1:unet=0.8>; attached: {', '.join(adapters)}"
