"""Real and generated pictures in one training set."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geoseg.data.mixture import Mixture
from geoseg.data.module import DataModule
from geoseg.data.scene_classes import SceneClasses

SIDE = 16


@pytest.fixture(scope="module")
def real() -> SceneClasses:
    return SceneClasses(size=SIDE, train=80, val=10, test=20)


@pytest.fixture(scope="module")
def learnt(real: SceneClasses) -> list[str]:
    return [name for name in real.names if name.startswith("train")][:23]


def write_manifest(folder: Path, real: SceneClasses, learnt: list[str], **changes: Any) -> None:
    images = [
        {"file": f"{path.parent.name}/{path.name}", "near": {"name": learnt[0], "distance": 0.5}}
        for path in sorted(folder.glob("*/*.png"))
    ]
    trained_on = {"names": learnt, "digest": real.fingerprint(learnt)}
    manifest = {"status": "done", "images": images, "trained_on": trained_on, **changes}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def generated(tmp_path: Path, real: SceneClasses, learnt: list[str]) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "generated"
    for name in real.class_names:
        (folder / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}_{number:05d}.png")
    write_manifest(folder, real, learnt)
    return folder


def kinds(mixture: Mixture, seed: int = 0) -> Counter[str]:
    data = DataModule(mixture, num_train=None, seed=seed)
    data.prepare()
    assert set(data.names["val"] + data.names["test"]) <= set(mixture.source.names)
    assert len(data.names["val"]) == 10 and len(data.names["test"]) == 20
    return Counter(name.split("/")[0] if "/" in name else "real" for name in data.names["train"])


@pytest.mark.parametrize("share", [1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.0])
def test_the_published_shares_at_a_fixed_total(real: SceneClasses, generated: Path, share: float) -> None:
    mixture = Mixture(real, str(generated), total=45, real=share, choice_seed=2)
    wanted = Counter({"real": round(45 * share), "generated": 45 - round(45 * share)})
    assert kinds(mixture) == +wanted
    train = [name for name in mixture.names if mixture.split(name) == "train"]
    assert len(set(train)) == 45
    for some in (train, [n for n in train if "/" not in n], [n for n in train if "/" in n]):
        counts = Counter(map(mixture.label, some))
        assert not some or max(counts.values()) - min(counts.get(k, 0) for k in range(10)) <= 1


def test_a_generated_picture_has_the_class_and_caption_of_its_folder(real: SceneClasses, generated: Path) -> None:
    mixture = Mixture(real, str(generated), total=20, real=0.0)
    name = next(name for name in mixture.names if "runway" in name)
    sample = mixture.read(name)
    assert int(sample.target) == mixture.label(name) == real.class_names.index("runway")
    assert sample.caption == "a satellite image of runway"
    file = generated / name.removeprefix("generated/")
    assert (sample.image == np.asarray(Image.open(file))).all()


def test_the_real_part_is_that_of_the_mixture_and_smaller_ones_lie_in_larger(
    real: SceneClasses, generated: Path
) -> None:
    def part(share: float, rest: str, seed: int = 0) -> set[str]:
        mixture = Mixture(real, str(generated), total=40, real=share, rest=rest, choice_seed=seed)
        return {name for name in mixture.names if mixture.split(name) == "train" and "/" not in name}

    assert part(0.5, "generated") == part(0.5, "nothing") == part(0.5, "noised")
    assert part(0.2, "nothing") < part(0.5, "nothing") < part(1.0, "nothing")
    assert part(0.5, "nothing", seed=1) != part(0.5, "nothing")


def test_what_the_generator_saw_alone(real: SceneClasses, generated: Path, learnt: list[str]) -> None:
    mixture = Mixture(real, str(generated), real=1.0, seen=True)
    assert {name for name in mixture.names if mixture.split(name) == "train"} == set(learnt)
    with pytest.raises(ValueError, match="stands in data.source.synthetic; name it"):
        Mixture(real, seen=True)


def test_noised_copies_replace_the_generated_ones(real: SceneClasses) -> None:
    mixture = Mixture(real, total=40, real=0.3, rest="noised", noise=0.1)
    assert kinds(mixture) == {"real": 12, "noised": 28}
    noised = [name for name in mixture.names if name.startswith("noised/")]
    assert Counter(map(mixture.label, mixture.names[:40])) == dict.fromkeys(range(10), 4)
    clean = {name: mixture.read(name) for name in mixture.names[:12]}
    spreads = []
    for name in noised:
        origin, copy = clean[name.rpartition("/")[2]], mixture.read(name)
        assert int(copy.target) == int(origin.target) == mixture.label(name)
        middle = (origin.image > 90) & (origin.image < 165)  # 3.5 deviations away from being cut off
        spreads.append((copy.image.astype(float) - origin.image)[middle] / 255)
    assert np.concatenate(spreads).std() == pytest.approx(0.1, rel=0.05)
    assert (mixture.read(noised[0]).image == mixture.read(noised[0]).image).all()


def test_a_generator_that_has_seen_what_is_to_judge_it_is_refused(real: SceneClasses, generated: Path) -> None:
    write_manifest(generated, real, ["train_0000", "test_0003", "val_0001"])
    with pytest.raises(
        ValueError, match=r"has learnt from 2 pictures that are to choose or to judge by(.|\n)*test_0003"
    ):
        Mixture(real, str(generated), total=20, real=0.5)


def test_a_twin_of_a_test_picture_is_refused(real: SceneClasses, generated: Path, learnt: list[str]) -> None:
    manifest = json.loads((generated / "manifest.json").read_text())
    manifest["images"][0]["near"] = {"name": "test_0001", "distance": 0.0}
    (generated / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="nearest is test_0001"):
        Mixture(real, str(generated), total=60, real=0.0)
    Mixture(real, str(generated), total=60, real=1.0)  # it is not among them


def test_other_pictures_under_the_same_names_are_told(real: SceneClasses, generated: Path, learnt: list[str]) -> None:
    with pytest.raises(ValueError, match="are others by now, under the same names"):
        Mixture(SceneClasses(size=SIDE, train=80, val=10, test=20, seed=1), str(generated), total=20, real=0.5)
    write_manifest(
        generated, real, ["train_0000", "train_9999"][:1], trained_on={"names": ["train_9999"], "digest": ""}
    )
    with pytest.raises(ValueError, match="has not, so that nobody can say"):
        Mixture(real, str(generated), total=20, real=0.5)


def test_generated_pictures_of_another_size_are_told(real: SceneClasses, generated: Path) -> None:
    for path in generated.glob("fields/*_00000.png"):
        Image.open(path).resize((8, 8)).save(path)
    data = DataModule(Mixture(real, str(generated), total=60, real=0.0), num_train=None)
    (generated / "river" / "river_00001.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="2 of the generated pictures in .* cannot be used") as error:
        data.prepare()
    assert "river: river_00001.png: not a picture" in str(error.value)
    assert "fields_00000.png: [8, 8] pixels, and the real ones have [[16, 16]]" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"real": 1.2}, "real=1.2: a share of the training set is wanted"),
        ({"rest": "fake"}, "rest='fake': choose one of generated, nothing, noised"),
        ({"noise": -1}, "noise=-1: a standard deviation"),
        ({"total": 0}, "total=0: 1 picture or more"),
        ({"total": 90}, "90 real pictures are wanted, as many of every class, and there are 80"),
        ({"total": 20, "real": 0.5}, "synthetic is not given, and 10 of 20 pictures are to be generated"),
        ({"total": 20, "real": 0.1, "rest": "noised"}, "of 10 classes the real part has 2"),
    ],
)
def test_settings_that_cannot_be_are_told(real: SceneClasses, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(real, **options)


def test_what_was_learnt_from_is_found_again_in_a_larger_folder(
    real: SceneClasses, generated: Path, learnt: list[str]
) -> None:
    before = Mixture(real, str(generated), total=20, real=0.5)
    images = {name: before.read(name).image for name in before.names}
    for path in list(generated.glob("*/*_00000.png")):
        path.with_name(path.name.replace("00000", "00009")).write_bytes(path.read_bytes())
    write_manifest(generated, real, learnt)
    after = Mixture(real, str(generated), total=20, real=0.5)
    assert set(after.names) != set(before.names)
    assert all((after.read(name).image == image).all() for name, image in images.items())
    with pytest.raises(ValueError, match="80 generated pictures are wanted.* a larger total of geoseg synthesize"):
        Mixture(real, str(generated), total=80, real=0.0)


def test_folders_that_cannot_be_trusted_are_told(real: SceneClasses, generated: Path, learnt: list[str]) -> None:
    write_manifest(generated, real, learnt, status="unfinished")
    with pytest.raises(ValueError, match="says 'unfinished'; call geoseg synthesize once more"):
        Mixture(real, str(generated), total=20, real=0.5)
    write_manifest(generated, real, learnt, trained_on=None)
    with pytest.raises(ValueError, match="does not say what the generator has learnt from"):
        Mixture(real, str(generated), total=20, real=0.5)
    with pytest.raises(ValueError, match="nowhere: there is no such folder; geoseg synthesize fills one"):
        Mixture(real, str(generated.with_name("nowhere")), total=20, real=0.5)
    (generated / "manifest.json").unlink()
    with pytest.raises(ValueError, match="there is no manifest.json"):
        Mixture(real, str(generated), total=20, real=0.5)


def test_the_fingerprint_tells_mixtures_apart_and_equal_ones_not(real: SceneClasses, generated: Path) -> None:
    def told(**options: Any) -> str:
        mixture = Mixture(real, str(generated), total=20, **options)
        return mixture.fingerprint(mixture.names)

    assert told(real=1.0) == told(real=1.0, rest="nothing") == told(real=1.0, rest="noised", noise=0.3)
    different = [told(real=0.5), told(real=0.5, rest="nothing"), told(real=0.5, rest="noised"), told(real=1.0)]
    different.append(told(real=0.5, rest="noised", noise=0.2))
    assert len(set(different)) == 5
