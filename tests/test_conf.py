"""Every file of the configuration composes, and every key in it is an argument of what it configures."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from geoseg.config import check_targets, conf_folder, plain

FILES = sorted(path.relative_to(conf_folder()) for path in conf_folder().rglob("*.yaml") if path.name != "run.yaml")
OPTIONS = [
    f"{path.parts[0]}={Path(*path.parts[1:]).with_suffix('').as_posix()}" for path in FILES if path.parts[0] != "hydra"
]
WORDS = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}

HANDED = {"palette", "num_classes", "seed"}
"""What a run hands to every part of a method that has an argument for it."""

ROLES = {
    "model": HANDED,
    "predictor": HANDED | {"model"},
    "wrappers": HANDED | {"predictor"},
    "task": HANDED | {"model", "adapter", "groups"},  # a task finds its groups of parameters itself
    "wandb": {"folder", "run_id", "group", "title", "tags", "config"},
}
"""What is given to a partial node later, by the last key but names of wrappers that leads to it."""


A_TEXT = str(conf_folder() / "prompt" / "tile.yaml")
"""A prompt is read while the configuration is resolved, so its file must be there."""


def filled(cfg: DictConfig) -> Any:
    """Plain containers, with a word in the place of every value that only a user can give."""
    try:
        return plain(cfg)
    except ValueError as error:
        keys = re.search(r"needs a value for (.*); give", str(error))
        assert keys is not None
        for key in keys.group(1).split(", "):
            OmegaConf.update(cfg, key, A_TEXT if key == "prompt.path" else "given")
        return plain(cfg)


def nodes(config: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if isinstance(config, dict):
        if "_target_" in config:
            yield where, config
        for key, value in config.items():
            yield from nodes(value, (*where, str(key)))
    elif isinstance(config, list):
        for i, value in enumerate(config):
            yield from nodes(value, (*where, str(i)))


def arguments(target: Any) -> tuple[set[str], set[str]]:
    """Names that a callable takes, and those of them that it cannot do without; ``**`` hands on to the parent class."""
    if not inspect.isclass(target):
        kinds = inspect.signature(target).parameters.values()
        takes = {p.name for p in kinds if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        return takes, {p.name for p in kinds if p.name in takes and p.default is p.empty}
    takes, needs = set(), set()
    for parent in target.__mro__:
        if "__init__" not in vars(parent):
            continue
        parameters = list(inspect.signature(parent.__init__).parameters.values())[1:]
        named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if parent is not target and not parent.__module__.startswith("geoseg."):
            break
        # what a child sets itself it does not take from the configuration
        takes |= named.keys()
        needs |= {name for name, p in named.items() if p.default is p.empty}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return takes, needs


def test_there_are_files() -> None:
    assert {"experiment=label_lora", "method=unet", "checkpoints=hub", "data=profiles", "trainer=gpu"} <= set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_resolves(compose: Callable[[list[str]], DictConfig], option: str) -> None:
    settings = filled(compose([option]))
    for name in ("title", "given", "model", "adapter", "predictor", "wrappers", "task"):
        for method in [settings["method"], *settings["rivals"].values()]:
            assert name in method
    parts = {"stable_diffusion", "flux", "sam", "sam_thresholds", "dinov2", "dpt_channels", "vit", "vit_lr"}
    assert set(settings["checkpoints"]) == {"kind", "licence", "size", *parts}
    assert settings["checkpoints"]["licence"].keys() == {"name", "commercial", "note"}
    if option.startswith("experiment="):
        assert settings["name"] != "run"


@pytest.mark.parametrize("option", OPTIONS)
def test_every_target_is_trusted_and_every_key_is_an_argument(
    compose: Callable[[list[str]], DictConfig], option: str
) -> None:
    settings = filled(compose([option]))
    check_targets(settings, [])
    for where, node in nodes(settings):
        takes, needs = arguments(get_object(node["_target_"]))
        keys = node.keys() - WORDS
        assert keys <= takes, f"{'.'.join(where)}: {keys - takes} are no arguments of {node['_target_']}"
        role = "wrappers" if "wrappers" in where[:-1] and where[-2] == "wrappers" else where[-1]
        if not node.get("_partial_"):
            assert needs <= keys, f"{'.'.join(where)}: {needs - keys} are missing"
        elif role in ROLES:
            assert needs <= keys | ROLES[role], f"{'.'.join(where)}: {needs - keys - ROLES[role]} are missing"


def test_the_test_of_keys_can_fail() -> None:
    from geoseg.optim import adamw
    from geoseg.tasks.denoising import DenoisingTask

    takes, needs = arguments(DenoisingTask)
    assert {"min_snr_gamma", "ema", "schedule"} <= takes
    assert {"model", "fit", "optimizer"} <= needs
    assert "gamma" not in takes
    assert arguments(adamw) == ({"groups", "weight_decay", "betas", "eps"}, {"groups"})


@pytest.mark.parametrize("path", [Path("run.yaml"), *FILES], ids=str)
def test_every_file_begins_by_saying_what_it_is(path: Path) -> None:
    lines = (conf_folder() / path).read_text(encoding="utf-8").splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert first.startswith("# ")
    assert len(first) > 12


def test_the_published_settings_are_the_defaults(compose: Callable[[list[str]], DictConfig]) -> None:
    method = plain(compose(["experiment=label_lora"]))["method"]
    assert method["adapter"]["rank"] == 16
    assert method["task"]["lr"] == {"unet": 1e-4, "text": 1e-5}
    assert method["task"]["optimizer"]["_target_"] == "geoseg.optim.adamw8bit"
    assert method["task"]["schedule"]["_target_"] == "geoseg.optim.constant"
    assert method["task"]["fit"]["epochs"] == 50
    assert method["predictor"]["strength"] == 0.53
    assert method["predictor"]["guidance"] == 7.0
    assert "<lora:vai1:1>" in method["predictor"]["prompt"]
    assert "<lora" not in method["task"]["caption"]
    assert list(method["wrappers"]) == ["sam"]


def test_the_control_follows_the_main_method(compose: Callable[[list[str]], DictConfig]) -> None:
    changed = ["method.predictor.strength=0.4", "method.predictor.second_strength=null", "method.predictor.steps=9"]
    settings = plain(compose(["experiment=label_lora", *changed, "seed=3"]))
    assert list(settings["rivals"]) == ["input_as_is", "without_lora", "unet", "label_lora_tuned", "blinded"]
    control = settings["rivals"]["without_lora"]
    shared = ("strength", "second_strength", "guidance", "steps", "negative_prompt", "scheduler")
    assert {k: control["predictor"][k] for k in shared} == {k: settings["method"]["predictor"][k] for k in shared}
    assert control["model"] == settings["method"]["model"]
    for name in ("tile", "overlap", "steps", "guidance"):
        assert control["predictor"][name] == settings["method"]["predictor"][name]
    assert settings["data"]["seed"] == settings["method"]["adapter"]["seed"] == 3


def test_the_tuned_preset_differs_in_what_it_says_and_nothing_else(compose: Callable[[list[str]], DictConfig]) -> None:
    settings = plain(compose(["experiment=label_lora"]))
    published, tuned = settings["method"], settings["rivals"]["label_lora_tuned"]
    assert (published["task"]["lr"], published["predictor"]["strength"]) == ({"unet": 1e-4, "text": 1e-5}, 0.53)
    differing = {
        name
        for part in ("predictor", "task", "wrappers", "adapter")
        for name in published[part]
        if published[part][name] != tuned[part][name]
    }
    assert differing == {"strength", "guidance", "noise_offset", "lr", "fit"}


@pytest.mark.parametrize("changed", [[], ["method.adapter.rank=4", "method.predictor.strength=0.9"]])
def test_the_blinded_control_shares_the_training(
    compose: Callable[[list[str]], DictConfig], changed: list[str]
) -> None:
    settings = plain(compose(["experiment=label_lora_tuned", *changed]))
    method, blinded = settings["method"], settings["rivals"]["blinded"]
    for part in ("model", "adapter", "task", "predictor"):
        assert blinded[part] == method[part]
    assert [name for name, node in blinded["wrappers"].items() if node is not None] == ["blinded"]
    assert settings["rivals"]["without_lora"]["predictor"]["strength"] == method["predictor"]["strength"]


def test_words_and_lora_are_switched_one_by_one(compose: Callable[[list[str]], DictConfig]) -> None:
    settings = plain(compose(["experiment=label_lora_prompt", "method.predictor.guidance=3"]))
    methods = {"both": settings["method"], **settings["rivals"]}
    prompts = {name: methods[name]["predictor"]["prompt"] for name in ("both", "lora_alone", "words_alone", "neither")}
    tag = "<lora:vai1:1>"
    assert tag in prompts["both"] and "Tile" in prompts["both"]
    assert (prompts["lora_alone"], prompts["neither"]) == (tag, "")
    assert tag not in prompts["words_alone"] and "Tile" in prompts["words_alone"]
    assert [methods[name]["adapter"] is None for name in prompts] == [False, False, True, True]
    assert all(methods[name]["predictor"]["guidance"] == 3 for name in prompts)
    assert all(methods[name]["wrappers"] == methods["both"]["wrappers"] for name in prompts)


def test_numbers_stand_once(compose: Callable[[list[str]], DictConfig]) -> None:
    settings = plain(compose(["experiment=label_lora", "checkpoints.size=64"]))
    assert settings["method"]["task"]["crop"] == settings["method"]["predictor"]["tile"] == 64


def test_files_are_plain_yaml() -> None:
    for path in FILES:
        loaded = yaml.safe_load((conf_folder() / path).read_text(encoding="utf-8"))
        assert isinstance(loaded, dict), path


@pytest.mark.parametrize("option", ["trainer=gpu_12gb", "trainer=gpu_24gb"])
def test_presets_for_a_gpu_change_neither_numbers_nor_what_is_left_out(
    compose: Callable[[list[str]], DictConfig], option: str
) -> None:
    first, frugal = (plain(compose(["experiment=label_lora", *words])) for words in (["trainer=gpu"], [option]))
    assert frugal["trainer"] == first["trainer"]
    changed = {
        "method.task": {"gradient_checkpointing"},
        "method.predictor": {"batch"},
        "method.wrappers.sam": {"points_per_batch"},
    }
    for where, allowed in changed.items():
        a, b = first, frugal
        for key in where.split("."):
            a, b = a[key], b[key]
        assert {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)} <= allowed
    alone = plain(compose(["experiment=lora_only", "data.root=here", "checkpoints=hub", option]))  # asks for no SAM
    assert alone["method"]["wrappers"] == {"sam": None}
    assert alone["method"]["predictor"]["batch"] == frugal["method"]["predictor"]["batch"]
