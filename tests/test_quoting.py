"""Lines to type: through a shell and Hydra's grammar, the value comes out as it went in."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from geoseg.quoting import torn, typed

AWKWARD = [
    "8k, Ultra-high resolution, <lora:vai1:1>, Tile",
    "(smooth edges:1.3), ((flat)), [dull]",
    "key: value, {a: b}",
    "it's",
    'a "label map", flat',
    "both ' and \"",
    "back\\slash, C:\\maps\\",
    '\\"',
    "a=b",
    "données/línea 地層",
    "~/my survey#2",
    "50 %, $5, `x`, a!b; c & d | e > f",
    "",
    " ",
    "null",
    "7",
]


def read(line: str) -> object:
    (word,) = shlex.split(line)
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize("value", AWKWARD)
def test_a_value_arrives_as_it_stands(value: str) -> None:
    assert read(typed(f"prompt.text={value}")) == value


def test_names_of_a_list_arrive_one_by_one() -> None:
    assert read(typed("data.select=[x=1, línea 2,'7',\"a(b\"]")) == ["x=1", "línea 2", "7", "a(b"]
    assert read(typed("data.select=[a,b")) == ["a", "b"]


@pytest.mark.parametrize(
    "words",
    [
        ["seed=1", "data.root=x"],
        ["-m", "seed=0,1"],
        ["experiment=a", "--cfg", "job"],
        ["--config-dir", "own", "experiment=a"],
        ["a=b", "~method.wrappers.sam"],
        [],
    ],
    ids=" ".join,
)
def test_settings_that_are_whole(words: list[str]) -> None:
    assert torn(words) is None


def test_a_setting_that_the_shell_took_apart() -> None:
    line = torn(["seed=1", "prompt.text=8k,", "Ultra-high", "resolution", "name=x"])
    assert line is not None
    assert read(line) == "8k, Ultra-high resolution"
