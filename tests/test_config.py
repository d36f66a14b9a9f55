"""Configuration: what may be named, what decides an identity, what is nobody's business."""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from geoseg.config import (
    build,
    check_targets,
    check_types,
    complete,
    conf_folder,
    identity,
    origin,
    plain,
    redact,
    register_resolvers,
)


def node(target: str, **more: Any) -> Any:
    return OmegaConf.create({"method": {"predictor": {"_target_": target, **more}}})


@pytest.mark.parametrize(
    "target",
    [
        "geoseg.optim.adamw",
        "geoseg.diffusion.latent_diffusion.LatentDiffusion.load",
        "torch.optim.AdamW",
        "diffusers.DDIMScheduler.from_config",
        "torchmetrics.classification.BinaryAUROC",
    ],
)
def test_trusted_objects(target: str) -> None:
    check_targets(node(target), [])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os.system", r"method\.predictor names os\.system.*outside geoseg.*trust=\[os\]"),
        ("builtins.eval", r"outside geoseg"),
        ("geosegment.steal", r"outside geoseg"),
        ("torch.load", r"outside geoseg"),
        ("torch.optimistic", r"outside geoseg"),
        # a trusted module that holds a reference to something else
        ("diffusers.utils.torch_utils.torch.load", r"really is torch\.serialization\.load and not trusted"),
        ("geoseg.config.hashlib.sha256", r"really is .*sha256 and not trusted"),
        ("geoseg.record.os.system", r"really is posix\.system and not trusted"),
        ("geoseg.record.subprocess.run", r"really is subprocess\.run and not trusted"),
        ("geoseg.config.functools", r"not trusted"),
        ("geoseg.optim.adamv", r"method\.predictor names geoseg\.optim\.adamv, which cannot be imported"),
        ("geoseg.nothing.here", r"cannot be imported"),
        ("geoseg.${name}", r"cannot be imported"),
        ("${target}", r"outside geoseg"),
    ],
)
def test_foreign_objects_are_refused(target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_targets(node(target), [])


def test_a_foreign_package_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"trust=\[stranger\]"):
        check_targets(node("stranger.Model"), [])
    assert "stranger" not in sys.modules


def test_trust_opens_one_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "friend.py").write_text("class Model:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    check_targets(node("friend.Model"), ["friend"])
    with pytest.raises(ValueError, match="outside geoseg"):
        check_targets(node("friendly.Model"), ["friend"])
    sys.modules.pop("friend")


def test_targets_are_found_at_any_depth() -> None:
    deep = OmegaConf.create(
        {"a": [{"b": 1}, {"c": {"_target_": "geoseg.config.build", "d": [{"_target_": "os.abort"}]}}]}
    )
    with pytest.raises(ValueError, match=r"a\[1\]\.c\.d\[0\] names os\.abort"):
        check_targets(deep, [])
    with pytest.raises(ValueError, match=r"the configuration names os.abort"):
        check_targets({"_target_": "os.abort"}, [])


def test_build_completes_what_is_partial_with_what_it_has_names_for() -> None:
    config = {"_target_": "geoseg.tasks.task.Fit", "_partial_": True, "epochs": 3}
    made = build(config, "a", batch_size=2, palette="not asked for")
    assert (made.epochs, made.batch_size) == (3, 2)
    assert build(None, "a", batch_size=2) is None
    assert (
        build({"_target_": "geoseg.tasks.task.Fit"}, "a", epochs=9).epochs == 50
    )  # nothing partial, nothing completed


def test_build_hands_on_plain_containers() -> None:
    colours = ["#000000", "#FFFFFF"]
    made = build({"_target_": "geoseg.data.module.DataModule", "source": _Source(), "palette": colours}, "data")
    assert type(made.palette.hex) is tuple
    inner = build({"_target_": "geoseg.config.identity", "_args_": [{"a": [1]}]}, "a")
    assert inner == identity({"a": [1]})


class _Source:
    num_classes = 2
    class_names = ("a", "b")


def test_what_an_object_says_reaches_the_user_with_the_key_it_belongs_to() -> None:
    source = {"_target_": "geoseg.data.synthetic.SyntheticEarth", "kind": "coal"}
    with pytest.raises(ValueError, match=r"^data\.source: kind 'coal' is not drawn"):
        build({"_target_": "geoseg.data.module.DataModule", "source": source}, "data")
    with pytest.raises(ValueError, match=r"^data\.palette has 3 colours"):  # it names its key itself
        build(
            {
                "_target_": "geoseg.data.module.DataModule",
                "source": _Source(),
                "palette": ["#000000", "#FFFFFF", "#FF0000"],
            },
            "data",
        )
    partial = {"_target_": "geoseg.tasks.task.Fit", "_partial_": True, "epochs": 0}
    with pytest.raises(ValueError, match=r"^method\.task\.fit: epochs must be 1 or more"):
        build(partial, "method.task.fit")
    for more in ({}, {"_partial_": True}):
        with pytest.raises(ValueError, match=r"^a\.b: .*Fit.*unexpected keyword argument 'epoch'"):
            build({"_target_": "geoseg.tasks.task.Fit", "epoch": 3, **more}, "a.b")
        with pytest.raises(ValueError, match=r"^a\.b: --cfg job .*DataModule.*missing 1 required.*'source'"):
            build({"_target_": "geoseg.data.module.DataModule", **more}, "a.b")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("strength", "abc", "strength=abc: a number is wanted"),
        ("strength", True, "strength=True: a number is wanted"),
        ("strength", None, "strength=null: a number is wanted"),
        ("second_strength", "x", "second_strength=x: a number or null is wanted"),
        ("steps", 2.5, "steps=2.5: a whole number is wanted"),
        ("prompt", 8, "prompt=8: text is wanted"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_with_its_key(key: str, value: object, message: str) -> None:
    node = {"_target_": "geoseg.predictors.img2img.Img2Img", "_partial_": True, "strength": 1, "second_strength": None}
    check_types({"method": {"predictor": node}})
    with pytest.raises(ValueError, match=rf"^method\.predictor\.{message}"):
        check_types({"method": {"predictor": {**node, key: value}}})


def test_types_are_found_above_a_class_and_through_lists() -> None:
    task = {"_target_": "geoseg.tasks.denoising.DenoisingTask", "ema": 0.9, "lr": {"unet": 1e-4}, "fit": {}}
    check_types([task])
    with pytest.raises(ValueError, match=r"^\[1\]\.ema=much: a number or null"):  # declared by Task, which is above it
        check_types([task, {**task, "ema": "much"}])
    data = {"_target_": "geoseg.data.module.DataModule", "select": ["a", "b"]}
    check_types(data)
    with pytest.raises(ValueError, match=r"^select=4: text or a list"):
        check_types({**data, "select": 4})


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(Exception, match="ZeroDivisionError"):
        build({"_target_": "tests.test_config.divide"}, "a")
    with pytest.raises(TypeError, match="concatenate"):
        build({"_target_": "tests.test_config.mix", "_partial_": True}, "a")


def divide() -> float:
    return 1 / int("0")


def mix() -> str:
    return "a" + 1  # type: ignore[operator]


def test_complete_gives_only_what_is_wanted() -> None:
    def wants(a: int, b: int = 0) -> tuple[int, int]:
        return a, b

    assert complete(functools.partial(wants, b=5), a=1, c=2) == (1, 5)
    assert complete(functools.partial(wants, b=5), a=1, b=7) == (1, 5)  # what the configuration says counts


def test_plain_resolves_and_names_what_is_missing() -> None:
    config = OmegaConf.create({"a": {"b": "${c}"}, "c": [1, {"d": "x"}]})
    assert plain(config) == {"a": {"b": [1, {"d": "x"}]}, "c": [1, {"d": "x"}]}
    assert plain({"a": 1}) == {"a": 1}
    with pytest.raises(ValueError, match=r"a value for a\.b, a\.c; give it as key=value"):
        plain(OmegaConf.create({"a": {"b": "???", "c": "???"}}))
    with pytest.raises(ValueError, match=r"a value for root; give"):
        plain(OmegaConf.create({"root": "???", "source": {"root": "${root}"}}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"rivals": {"a": None, "b": {"x": "${rivals.a.x}"}, "c": {"y": {"z": "${rivals.a.y.z}"}}, "d": {"x": 1}}},
            "set rivals.b=null rivals.c=null too: they take settings from rivals.a, which is null",
        ),
        (
            {"rivals": {"b": {"title": "b", "x": "${rivals.a.x}"}}},
            "set rivals.b=null too: it takes settings from rivals.a, which is not there",
        ),
        (
            {"method": None, "rivals": {"b": {"x": "${method.x}"}}},
            "set rivals.b=null too: it takes settings from method, which is null",
        ),
        (
            {"prompt": {"text": "a"}, "method": {"prompt": "flat ${prompt.txt}"}},
            "method.prompt=flat ${prompt.txt}: there is no setting prompt.txt; did you mean ${prompt.text}?",
        ),
        ({"a": ["${nowhere}"]}, "a[0]=${nowhere}: there is no setting nowhere; --cfg job shows those that are there"),
        (
            {"a": "${nothing:3}"},
            "a=${nothing:3}: give the value itself, or the name of another setting inside ${} (Unsupported",
        ),
        ({"a": "${a}"}, "a=${a}: give the value itself, or the name of another setting inside ${} (Recursive"),
    ],
)
def test_a_reference_to_what_is_not_there_is_told_with_its_cure_first(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        plain(OmegaConf.create(config))


def test_a_setting_is_traced_to_where_it_is_typed() -> None:
    config = OmegaConf.create(
        {"a": {"b": {"c": 1}}, "m": {"w": "${a.b}"}, "r": {"w": "${m.w}", "own": 3}, "me": {"self": "${me.self}"}}
    )
    assert [origin(config, key) for key in ("r.w.c", "r.own", "r.nowhere.c", "a.b.c", "me.self")] == [
        "a.b.c",
        "r.own",
        "r.nowhere.c",
        "a.b.c",
        "me.self",
    ]


def test_identity_of_the_same_thing_said_otherwise() -> None:
    first = identity({"x": 1, "y": {"z": [1, 2], "path": "/a", "workers": 0}}, None, 3)
    assert first == identity({"y": {"workers": 8, "z": (1, 2), "path_or_id": "b"}, "x": 1}, None, 3)
    assert len(first) == 10
    int(first, 16)


def test_identity_sees_every_other_change() -> None:
    base = {"x": 1, "y": {"z": [1, 2]}}
    others = [
        {"x": 2, "y": {"z": [1, 2]}},
        {"x": 1, "y": {"z": [2, 1]}},
        {"x": 1, "y": {"z": [1, 2, 3]}},
        {"x": 1, "y": {"w": [1, 2]}},
        {"x": "1", "y": {"z": [1, 2]}},
        {"x": 1.5, "y": {"z": [1, 2]}},
        {"x": None, "y": {"z": [1, 2]}},
    ]
    made = {identity(one) for one in [base, *others]} | {identity(base, None), identity([base])}
    assert len(made) == len(others) + 3


def test_secrets_are_taken_out_and_nothing_else() -> None:
    config = {
        "api_key": "A1",
        "logger": [{"wandb_api_key": "A2", "project": "geoseg"}],
        "HF_TOKEN": "A3",
        "db": {"password": "A4", "passwd": "A5", "secret_of": "A6", "credentials": {"user": "A7"}},
        "root": "https://me:A8@host/path",
        "mirror": "https://host/file?a=1&access_token=A0&b=2",
        "proxies": ["socks5://A9@host:80"],
        "empty": {"token": None, "api_key": ""},
        "keyboard": "kept",
        "tokenizer": "kept",
        "path": "s3://bucket/a@b",
        "mail": "me@host",
        "points_per_side": 8,
        "frac": 0.5,
    }
    clean = redact(config)
    text = json.dumps(clean)
    assert not any(f"A{i}" in text for i in range(10))
    assert clean["root"] == "https://***@host/path"
    assert clean["mirror"] == "https://host/file?a=1&access_token=***&b=2"
    assert clean["empty"] == {"token": None, "api_key": ""}
    for name in ("keyboard", "tokenizer", "path", "mail", "points_per_side", "frac"):
        assert clean[name] == config[name]
    assert config["api_key"] == "A1"  # the given one is left alone


def test_the_configuration_is_found_in_a_checkout_and_in_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geoseg import config

    assert (conf_folder() / "run.yaml").is_file()
    package = tmp_path / "site-packages" / "geoseg"
    (package / "conf").mkdir(parents=True)
    monkeypatch.setattr(config, "PACKAGE", package)
    with pytest.raises(FileNotFoundError, match="install the package again"):
        conf_folder()
    (package / "conf" / "run.yaml").touch()
    assert conf_folder() == package / "conf"


def test_embedded_checkpoints_have_a_path() -> None:
    register_resolvers()
    path = Path(OmegaConf.create({"a": "${assets:sam}"}).a)
    assert path.is_absolute()
    assert path.parts[-3:] == ("geoseg", "assets", "sam")
