"""The probe of frozen features counts as it says, on pictures that no encoder was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Model

from geoseg.data.synthetic import KINDS
from geoseg.demo import probe
from geoseg.demo.networks import vision_transformer
from geoseg.models.dinov2 import MEAN, STD
from geoseg.randomness import seeded

ASSETS = Path(probe.__file__).parents[1] / "assets"

TINY = {"width": 16, "layers": 4, "heads": 2, "patch": 16, "size": 128}


def test_a_patch_is_called_by_the_rarest_class_that_covers_an_eighth_of_it() -> None:
    targets = torch.zeros(1, 16, 32, dtype=torch.long)
    targets[0, 0, :8] = 1  # an eighth of the first patch of 8 x 8
    targets[0, 0, 8:15] = 1  # one pixel less of the second
    targets[0, 8:, 8:24] = 2  # two whole patches
    targets[0, 9, 16:24] = 1
    found = probe.patch_classes(targets, 8, 4)
    assert found.tolist() == [[[1, 0, 0, 0], [0, 2, 1, 0]]]


def test_what_features_hold_is_found_and_what_they_lack_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = (torch.rand(2000, generator=generator) < 0.1).long() * 2  # class 1 does not occur
    noise = torch.randn(2000, 6, generator=generator)
    told = noise + 6.0 * torch.nn.functional.one_hot(classes, 6)
    assert min(probe.probe((told[:1000], classes[:1000]), (told[1000:], classes[1000:]), 3)) > 0.95
    blind = probe.probe((noise[:1000], classes[:1000]), (noise[1000:], classes[1000:]), 3)
    assert len(blind) == 2 and sum(blind) / 2 == pytest.approx(0.5, abs=0.1)  # rare classes count as frequent ones


def test_pictures_of_every_kind_are_held_out_and_apart() -> None:
    for kind in KINDS:
        drawn = probe.profiles(kind, 2, 1)
        (known, _), (asked, targets) = drawn["train"], drawn["test"]
        assert known.shape == (2, 128, 128) and asked.shape == targets.shape == (1, 128, 128)
        assert not any(torch.equal(picture, asked[0]) for picture in known)


def test_features_lie_where_their_patches_do() -> None:
    with seeded(0, "tiny"):
        model = vision_transformer(**TINY).eval()
    pictures = torch.rand(2, 64, 96)
    found = probe.features(model, pictures)
    assert found.shape == (2, 4, 6, 16)
    with torch.inference_mode():
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        tokens = model((pictures[1:, None].repeat(1, 3, 1, 1) - mean) / std).last_hidden_state
    torch.testing.assert_close(found[1, 2, 3], tokens[0, 1 + 2 * 6 + 3], atol=1e-5, rtol=1e-5)


def test_the_card_names_every_encoder_and_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "vision_transformer", lambda: vision_transformer(**TINY))
    for name in probe.ENCODERS.values():
        vision_transformer(**TINY).half().save_pretrained(tmp_path / name)
    card = probe.examine(tmp_path, train=2, test=2)
    assert probe.summary(card["right"]) == card["summary"]
    assert len(card["summary"]) == 3 * len(KINDS) and all(0 <= value <= 1 for value in card["summary"].values())
    assert set(card["right"]) == {"nothing", *probe.ENCODERS}


def test_the_card_of_the_embedded_encoders_comes_again_for_one_kind() -> None:
    card = json.loads((ASSETS / "cards" / "probe.json").read_text())
    assert probe.summary(card["right"]) == pytest.approx(card["summary"])
    for words, name in probe.ENCODERS.items():
        model = Dinov2Model.from_pretrained(ASSETS / name, dtype=torch.float32)
        assert probe.score(model, "salt") == pytest.approx(card["right"][words]["salt"], abs=0.01)


def test_pretraining_is_seen_in_the_card() -> None:
    mean = json.loads((ASSETS / "cards" / "probe.json").read_text())["summary"]
    for kind in KINDS:
        nothing, elsewhere, here = (
            mean[f"patches of {kind} named right, pretrained on {words}"] for words in ("nothing", *probe.ENCODERS)
        )
        assert nothing < elsewhere < here
