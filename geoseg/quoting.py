"""How a setting is typed whose value the shell or Hydra's grammar would take apart."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence


def typed(word: str) -> str:
    """The setting ``key=value`` as a line to type, so that the value arrives as it stands, a list name by name.

    >>> print(typed("prompt.text=8k, <lora:vai1:1>"))
    'prompt.text="8k, <lora:vai1:1>"'
    >>> print(typed("data.select=[x=1, línea]"))
    'data.select=["x=1","línea"]'
    """
    key, _, value = word.partition("=")
    if not value.startswith("["):
        return shlex.quote(f"{key}={_quoted(value)}")
    names = [name.strip().strip("'\"") for name in value.removeprefix("[").removesuffix("]").split(",")]
    return shlex.quote(f"{key}=[{','.join(map(_quoted, names))}]")


def torn(words: Sequence[str]) -> str | None:
    """A setting that the shell took apart at its spaces, put together again as in ``typed``; None where there is none.

    >>> print(torn(["data.root=my", "survey", "seed=1"]))
    'data.root="my survey"'
    """
    for start, word in enumerate(words):
        if "=" not in word or word.startswith("-"):
            continue
        parts = [word]
        for after in words[start + 1 :]:
            if "=" in after or after.startswith(("-", "~")):
                break
            parts.append(after)
        if len(parts) > 1:
            return typed(" ".join(parts))
    return None


def _quoted(value: str) -> str:
    """In the quotes of Hydra's grammar, where a backslash counts only before a quote."""
    return '"' + re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + '\\"' * bool(found[2]), value) + '"'
