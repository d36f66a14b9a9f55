"""The cards' numbers are computed anew, and nothing that was examined had been seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from segment_anything import SamAutomaticMaskGenerator

from geoseg.config import conf_folder
from geoseg.data.earth import RESERVED_COLOURS, RESERVED_DISTANCE
from geoseg.data.synthetic import Corpus
from geoseg.demo import examination
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.models.sam import load_sam
from geoseg.palette import SFM_FACIES

ASSETS = Path(examination.__file__).parents[1] / "assets"


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((ASSETS / "cards" / "examination.json").read_text())
    return read


@pytest.fixture(scope="module")
def pictures() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return examination.held_out(3)


def test_held_out_pictures_have_numbers_and_colours_of_their_own(pictures: Any) -> None:
    recipes = [json.loads(path.read_text()) for path in (ASSETS / "cards").glob("demo_*.json")]
    assert {recipe["experiment"] for recipe in recipes} >= {f"demo_{name}" for name in ("autoencoder", "base", "sam")}
    assert examination.SEED not in {recipe[key] for recipe in recipes for key in ("seed",)}
    assert examination.SEED not in {recipe["source"]["seed"] for recipe in recipes}
    for _, label, target in pictures:
        assert {tuple(colour) for colour in label.reshape(-1, 3)} <= {tuple(colour) for colour in RESERVED_COLOURS}
        np.testing.assert_array_equal(label, RESERVED_COLOURS[target])
    assert [f"#{r:02X}{g:02X}{b:02X}" for r, g, b in RESERVED_COLOURS] == list(SFM_FACIES)


def test_no_flat_colour_of_the_corpus_comes_near_a_held_out_one(pictures: Any) -> None:
    corpus = Corpus(**{key: value for key, value in _source().items() if key != "_target_"})
    held_out = {image.tobytes() for image, _, _ in pictures}
    maps = 0
    for name in corpus.names[:150]:
        sample = corpus.read(name)
        assert sample.image.tobytes() not in held_out
        if not any(word in sample.caption for word in ("map", "tile")):
            continue
        maps += 1
        colours = np.unique(sample.image.reshape(-1, 3), axis=0).astype(float)
        gaps = np.linalg.norm(colours[:, None] - RESERVED_COLOURS.astype(float), axis=2)
        assert gaps.min() > RESERVED_DISTANCE
    assert maps > 30


def _source() -> dict[str, Any]:
    source: dict[str, Any] = json.loads((ASSETS / "cards" / "demo_base.json").read_text())["source"]
    return source


def test_the_summary_is_that_of_the_single_results(card: dict[str, Any]) -> None:
    assert card["seed"] == examination.SEED
    assert examination.summary(card) == card["summary"]
    readme = (ASSETS / "README.md").read_text()
    for name, value in card["summary"].items():
        assert f"| {name} | {value:.3f} |" in readme


def test_the_autoencoder_scores_what_its_card_says(card: dict[str, Any], pictures: Any) -> None:
    vae = LatentDiffusion.load(ASSETS / "stable-diffusion").vae
    for kind, which in (("profiles", 0), ("labels", 1)):
        again = examination.reconstruction(vae, [picture[which] for picture in pictures])
        assert again == pytest.approx(card["psnr"][kind][: len(pictures)], abs=0.05)
    assert card["summary"]["autoencoder: label maps, dB"] >= 27
    assert card["summary"]["autoencoder: profiles, dB"] >= 24


def test_the_segmenter_scores_what_its_card_says(card: dict[str, Any], pictures: Any) -> None:
    sam = load_sam(ASSETS / "sam")
    for (_, label, target), row in zip(pictures, card["clicks"], strict=False):
        again = examination.clicks(sam, label, target)
        assert [region["area"] for region in again] == [region["area"] for region in row]
        assert [region["iou"] for region in again] == pytest.approx([region["iou"] for region in row], abs=0.02)
    generator = SamAutomaticMaskGenerator(sam, points_per_batch=256, **examination.THRESHOLDS)
    again, row = examination.automatic_masks(generator, *pictures[0][1:]), card["automatic"]["labels"][0]
    assert (again["regions"], again["found"]) == (row["regions"], row["found"])
    for share in ("covered", "largest", "wrong"):
        assert again[share] == pytest.approx(row[share], abs=0.02)


def test_the_thresholds_are_those_of_the_method() -> None:
    text = (conf_folder() / "checkpoints" / "demo.yaml").read_text()
    wanted = examination.THRESHOLDS
    assert f"pred_iou: {wanted['pred_iou_thresh']}, stability: {wanted['stability_score_thresh']}" in text


def test_the_middle_of_a_mask() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[2:7, 1:6] = True
    assert examination.middle(mask) == (3, 4)


class Fixed:
    def __init__(self, *masks: np.ndarray) -> None:
        self.masks = masks

    def generate(self, picture: np.ndarray) -> list[dict[str, np.ndarray]]:
        return [{"segmentation": mask} for mask in self.masks]


def test_automatic_masks_counted_by_hand() -> None:
    target = np.zeros((10, 10), np.uint8)
    target[:, 6:] = 1
    target[0, 9] = 2  # one pixel: too small to be asked for
    left, rows = target == 0, np.zeros((10, 10), dtype=bool)
    rows[:3] = True
    found = examination.automatic_masks(Fixed(left, rows), target, target)  # type: ignore[arg-type]
    assert found == {"masks": 2, "covered": 0.72, "largest": 0.6, "wrong": 0.3, "regions": 2, "found": 1}
    nothing = examination.automatic_masks(Fixed(), target, target)  # type: ignore[arg-type]
    assert nothing == {"masks": 0, "covered": 0.0, "largest": 0.0, "wrong": 0.0, "regions": 2, "found": 0}


@pytest.mark.slow
def test_words_steer_as_the_card_says(card: dict[str, Any]) -> None:
    classifier = examination.train_classifier()
    known, classes = examination.examples("test", 32)
    words = list(examination.CLASSES)
    right = [name == words[k] for name, k in zip(classifier.names(known), classes, strict=True)]
    assert np.mean(right) == pytest.approx(card["summary"]["classifier on drawn pictures: right"], abs=0.04)
    model = LatentDiffusion.load(ASSETS / "stable-diffusion")
    agree = []
    for prompt, names in card["steering"]["generated"].items():
        again = classifier.names(examination.drawn_for(model, prompt, range(6)))
        agree += [a == b for a, b in zip(again, names[:6], strict=True)]
    assert np.mean(agree) >= 0.8
    assert card["summary"]["pictures for all prompts: named so"] >= 0.8
