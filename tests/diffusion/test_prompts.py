from __future__ import annotations

import pytest

from geoseg.diffusion.prompts import AdapterWeight, parse_prompt


@pytest.mark.parametrize(
    ("tag", "text", "unet"),
    [
        ("<lora:vai1>", 1.0, 1.0),
        ("<lora:vai1:1>", 1.0, 1.0),
        ("<lora:vai1:0.5>", 0.5, 0.5),  # the denoising network follows the text encoder
        ("<lora:vai1:0.5:0.8>", 0.5, 0.8),
        ("<lora:vai1:te=0.5>", 0.5, 0.5),
        ("<lora:vai1:unet=0.8>", 1.0, 0.8),
        ("<lora:vai1:te=0:unet=0.8>", 0.0, 0.8),
        ("<lora:vai1:unet=0.8:te=0.2>", 0.2, 0.8),
        ("<lora:vai1:0.5:unet=0.8>", 0.5, 0.8),
        ("<lora: vai1 : -1 >", -1.0, -1.0),
    ],
)
def test_grammar_of_the_web_ui(tag: str, text: float, unet: float) -> None:
    prompt = parse_prompt(f"8 k, {tag}, Tile", ["vai1"])
    assert prompt.words == "8 k, Tile"
    assert prompt.weights == {"vai1": AdapterWeight(text, unet)}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (
            "8 k, Ultra-high resolution, <lora:vai1:1>, Tile, Smooth Edges",
            "8 k, Ultra-high resolution, Tile, Smooth Edges",
        ),
        ("<lora:vai1:1>, Tile", "Tile"),
        ("Tile <lora:vai1:1>", "Tile"),
        ("Tile, <lora:vai1:1>,", "Tile"),
        ("<lora:vai1:1>", ""),
        ("a <lora:vai1:1> b", "a b"),
        ("<lora:vai1:1><lora:b:1> b", "b"),
    ],
)
def test_what_a_tag_leaves_behind(prompt: str, words: str) -> None:
    assert parse_prompt(prompt, ["vai1", "b"]).words == words


@pytest.mark.parametrize("prompt", ["", "plain words,, with commas,", "depth < 3 km > 1 km", "(strong:1.2) words"])
def test_prompts_without_tags_are_left_alone(prompt: str) -> None:
    parsed = parse_prompt(prompt, [])
    assert parsed.words == prompt
    assert parsed.weights == {}


def test_two_adapters() -> None:
    prompt = parse_prompt("<lora:a:0.2> x <lora:b>", {"a", "b"})
    assert prompt.weights == {"a": AdapterWeight(0.2, 0.2), "b": AdapterWeight(1.0, 1.0)}


@pytest.mark.parametrize(
    "tag",
    [
        "<loravai1:1>",  # as printed in the second variant of the paper's prompt
        "<lora:vai:1>",
        "<lora vai1>",
        "<lora:vai1:one>",
        "<lora:vai1:nan>",
        "<lora:vai1:1:1:1>",
        "<lora:vai1:dyn=3>",
        "<lora:vai1:1",
        "<hypernet:vai1:1>",
        "<vai1>",
    ],
)
def test_a_tag_that_cannot_be_followed_says_the_right_spelling(tag: str) -> None:
    with pytest.raises(ValueError, match=r"write <lora:vai1:1>, or .*attached: other, vai1"):
        parse_prompt(f"8 k, {tag}, Tile", ["other", "vai1"])


def test_a_tag_without_a_name() -> None:
    with pytest.raises(ValueError, match=r"write <lora:other:1>, or .*attached: other, vai1"):
        parse_prompt("<lora::1>", ["other", "vai1"])


def test_without_adapters_the_remedy_is_another() -> None:
    with pytest.raises(ValueError, match="no adapter is attached: remove the tag"):
        parse_prompt("<lora:vai1:1>", [])


def test_the_same_adapter_twice() -> None:
    with pytest.raises(ValueError, match="'vai1' twice"):
        parse_prompt("<lora:vai1:1> <lora:vai1:0.5>", ["vai1"])
