"""``geoseg predict``: label maps of profiles without any, through the command line."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segyio
import torch
from PIL import Image

import geoseg
from geoseg import label_maps as module
from geoseg.data.amplitudes import Amplitudes
from geoseg.data.segy import SegyFile
from geoseg.label_maps import _rule
from geoseg.metrics.uncertainty import entropy
from geoseg.predict import LoadedMethod
from tests.data.test_segy import floats, write_segy

AS_IS = ["run", "method=input_as_is", "data.source.size=32", "data.source.train=4", "data.source.val=2"]
AS_IS += ["data.source.test=2", "data.num_train=2", "logger=files", "progress=false", "trainer=cpu", "foresee=false"]
QUIET = ["progress=false", "accelerator=cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that labels every pixel by its grey."""
    from geoseg.cli import main

    folder = tmp_path_factory.mktemp("labelled")
    with contextlib.chdir(folder):
        assert main(AS_IS) == 0
    (record,) = folder.rglob("record.json")
    return record.parent


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    """Inlines 1 to 6 of 8 traces and 12 samples; one trace is missing in inline 3, one holds zeros in inline 4."""
    rng = np.random.default_rng(0)
    traces = []
    for inline in range(1, 7):
        for crossline in range(1, 9):
            values = np.zeros(12) if (inline, crossline) == (4, 5) else rng.normal(size=12)
            if (inline, crossline) != (3, 2):
                traces.append((inline, crossline, floats(*values)))
    return write_segy(tmp_path / "survey.sgy", traces, 12)


@pytest.fixture
def predict(run: Path, run_cli: Callable[..., int]) -> Callable[..., int]:
    return lambda *words: run_cli("predict", f"run={run}", *QUIET, *words)


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def label(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_volume(
    predict: Callable[..., int], run: Path, survey: Path, tmp_path: Path, caplog: Any, capsys: Any
) -> None:
    with caplog.at_level(logging.INFO, logger="geoseg"):
        assert predict(f"input={survey}", "output=out", "every=2", "batch=2", "probs=true", "uncertainty=true") == 0
    assert "3 label maps by input as is -> out" in capsys.readouterr().out
    assert "the usual rule, since the run was trained on pictures: clip=99.0, per=survey" in caplog.text
    assert "1 traces of its grid are missing" in caplog.text
    out = tmp_path / "out"
    manifest = manifest_of(out)
    names = ["survey_inline_1", "survey_inline_3", "survey_inline_5"]
    assert list(manifest["sections"]) == names and manifest["status"] == "done"
    assert manifest["run"]["run_id"] == run.name
    (entry,) = manifest["inputs"]
    assert entry["amplitude"]["measured_on"] == "6 of 6 sections" and len(entry["sha256"]) == 64
    method, file = geoseg.load(run), SegyFile(survey)
    values = np.concatenate([file.read(name).ravel() for name in file.names])
    white = np.percentile(np.abs(values[~np.isnan(values)]), 99)
    assert entry["amplitude"]["white"] == pytest.approx(white)
    for name in names:
        greys = Amplitudes().greys(file.read(name), entry["amplitude"]["white"])
        found = method.predict(greys, name)
        wanted, dead = found.labels[0].numpy().astype(np.uint8), np.isnan(file.read(name)).all(0)
        wanted[:, dead] = 255
        assert np.array_equal(label(out / "labels" / f"{name}.png"), wanted)
        # another batch size rounds otherwise
        # and where there is no trace there is no answer
        probs = np.where(dead, 0, found.probs[0].numpy().astype(np.float64))
        np.testing.assert_allclose(np.load(out / "probs" / f"{name}.npy"), probs, atol=1e-5)
        unsure = np.where(dead, 1, -(probs * np.log(probs + 1e-300)).sum(0) / np.log(6))
        np.testing.assert_allclose(np.load(out / "uncertainty" / f"{name}.npy"), unsure, atol=1e-5)
        said = manifest["sections"][name]
        assert said["dead_traces"] == int(dead.sum()) == (name == "survey_inline_3")
        counts = np.bincount(wanted[wanted != 255], minlength=6)
        np.testing.assert_allclose(list(said["shares"].values()), counts / counts.sum(), atol=1e-6)
        assert sorted(said["files"]) == sorted(
            path.relative_to(out).as_posix() for path in out.rglob(f"{name}.*") if path.is_file()
        )
        with Image.open(out / "overlays" / f"{name}.png") as overlay:
            # 12 samples and 8 traces, enlarged forty times: half profile, half colour, nothing where no trace is
            shown = np.asarray(overlay)[28 + 20 :: 40, 8 + 20 :: 40][:12, :8].astype(float)
        colours = 255 * method.palette.paint(torch.from_numpy(wanted)[None].long())[0].permute(1, 2, 0).numpy()
        share = np.where(wanted == 255, 0, 0.45)[..., None]
        np.testing.assert_allclose(shown, (1 - share) * greys[..., None] + share * colours, atol=0.51)
    assert not list(out.rglob("*part*"))


def test_shares_of_a_run_on_mattes(run_cli: Callable[..., int], tmp_path: Path) -> None:
    """Input as is reads brightness as a share, so that the matte of a grey picture is that picture."""
    assert run_cli(*AS_IS, "data=mattes", "data.source.train=2", "runs=runs") == 0
    (record,) = Path("runs").rglob("record.json")
    grey = np.arange(32 * 32, dtype=np.uint32).reshape(32, 32) // 4
    Image.fromarray(grey.astype(np.uint8)).save("line.png")
    assert run_cli("predict", f"run={record.parent}", *QUIET, "input=line.png", "output=out") == 0
    shares = np.asarray(Image.open("out/mattes/line.png"))
    np.testing.assert_allclose(shares, grey, atol=1)
    labels = Image.open("out/labels/line.png")
    np.testing.assert_array_equal(np.asarray(labels), grey > 127.5)
    assert labels.getpalette()[:6] == [0, 0, 0, 255, 255, 255]


def test_it_goes_on_where_it_was_stopped(
    predict: Callable[..., int], survey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert predict(f"input={survey}", "output=whole", "direction=crossline") == 0
    words = [f"input={survey}", "output=out", "direction=crossline", "batch=1"]
    seen: list[str] = []
    true = LoadedMethod.predict

    def spied(self: LoadedMethod, array: Any, name: Any = None, seed: Any = None) -> Any:
        if len(seen) == 3:
            seen.append("stopped")
            raise KeyboardInterrupt
        seen.extend(name)
        return true(self, array, name, seed)

    monkeypatch.setattr(LoadedMethod, "predict", spied)
    assert predict(*words) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    out = tmp_path / "out"
    assert manifest_of(out)["status"] == "unfinished"
    assert list(manifest_of(out)["sections"]) == seen[:3]
    (out / "labels" / ".survey_crossline_4.part.png").write_bytes(b"torn")  # as a killed process leaves it
    (out / "overlays" / "survey_crossline_2.png").unlink()
    assert predict(*words) == 0
    assert seen[4:] == ["survey_crossline_2", *(f"survey_crossline_{i}" for i in range(4, 9))]
    assert manifest_of(out)["status"] == "done"
    for path in sorted((tmp_path / "whole").rglob("*.png")):
        assert path.read_bytes() == (out / path.relative_to(tmp_path / "whole")).read_bytes()
    assert len(list(out.rglob("*.png"))) == 16 and list(out.rglob(".*")) == [out / ".lock"]
    del seen[:]
    assert predict(*words) == 0 and seen == []  # nothing is left
    for other, said in (
        ("every=2", "segy.every was"),
        ("clip=90", "amplitudes.clip was"),
        ("probs=true", "probs was false"),
    ):
        assert predict(*words, other) == 2
        assert f"made otherwise: {said}" in capsys.readouterr().err
    survey.write_bytes(survey.read_bytes()[:-4] + floats(9.0))
    assert predict(*words) == 2
    assert "made otherwise: inputs.survey.sgy was" in capsys.readouterr().err


def test_answers_as_segy(predict: Callable[..., int], survey: Path, tmp_path: Path, capsys: Any) -> None:
    asked = [f"input={survey}", "output=out", "every=2", "probs=true", "uncertainty=true"]
    assert predict(*asked) == 0
    out, before = tmp_path / "out", (tmp_path / "out/labels/survey_inline_1.png").stat().st_mtime_ns
    assert not (out / "segy").exists()
    assert predict(*asked, "segy=true") == 0  # of a finished folder
    assert (out / "labels/survey_inline_1.png").stat().st_mtime_ns == before
    kinds = ["labels", "probability", "uncertainty"]
    assert manifest_of(out)["segy"] == [f"segy/survey_{kind}.sgy" for kind in kinds]
    # every byte by hand: traces of 240 and 12 * 4 bytes behind 3600; inline 3 lacks its second trace, the 18th of all
    there = survey.read_bytes()
    numbers = [*range(8), *range(16, 23), *range(31, 39)]
    for kind in kinds:
        found = (out / f"segy/survey_{kind}.sgy").read_bytes()
        assert found[:3600] == there[:3600] and len(found) == 3600 + len(numbers) * 288
        columns = []
        for i, number in enumerate(numbers):
            assert found[3600 + i * 288 :][:240] == there[3600 + number * 288 :][:240]
            columns.append(np.frombuffer(found[3600 + i * 288 + 240 :][:48], ">f4"))
        whole = {"labels": lambda name: label(out / f"labels/{name}.png"),
                 "probability": lambda name: np.load(out / f"probs/{name}.npy").max(0),
                 "uncertainty": lambda name: np.load(out / f"uncertainty/{name}.npy")}[kind]  # fmt: skip
        wanted = [whole(f"survey_inline_{i}") for i in (1, 3, 5)]
        wanted[1] = np.delete(wanted[1], 1, axis=1)
        np.testing.assert_array_equal(np.stack(columns, 1), np.concatenate(wanted, 1))
    with segyio.open(out / "segy/survey_labels.sgy", strict=False) as file:
        assert file.attributes(segyio.TraceField.INLINE_3D)[:].tolist() == [1] * 8 + [3] * 7 + [5] * 8
    (out / "segy/survey_labels.sgy").unlink()
    (out / "labels/survey_inline_3.png").write_bytes(b"x")
    capsys.readouterr()
    assert predict(*asked) == 2  # what the manifest names is made again
    assert "survey_inline_3.png is damaged" in (said := capsys.readouterr().err) and "delete it" in said
    (out / "labels/survey_inline_3.png").unlink()
    assert predict(*asked, "segy=true") == 0
    assert "SEG-Y -> out/segy/survey_labels.sgy" in capsys.readouterr().out
    Image.new("L", (16, 16)).save(tmp_path / "line.png")
    assert predict("input=line.png", "output=other", "segy=true") == 2
    assert "segy=true writes answers on SEG-Y files as SEG-Y, and line.png is none" in capsys.readouterr().err


def test_a_line_through_a_volume_is_drawn_as_its_inlines_are(
    predict: Callable[..., int], survey: Path, tmp_path: Path, capsys: Any
) -> None:
    line = [f"input={survey}", "points=[[2,1],[2,8]]"]
    assert predict(f"input={survey}", "output=inlines") == predict(*line, "output=line") == 0
    found = [label(tmp_path / name) for name in ("inlines/labels/survey_inline_2.png", "line/labels/survey_line.png")]
    assert np.array_equal(*found)
    (entry,) = manifest_of(tmp_path / "line")["inputs"]
    assert entry["amplitude"]["measured_on"] == "6 of 6 sections"
    assert predict(*line, "output=other", "every=2") == 2
    assert predict(f"input={survey}", "output=inlines", "every=2") == 2
    said = capsys.readouterr().err
    assert "points or ignore_geometry leave one line" in said and "made otherwise: segy.every was 1, is 2." in said


def test_samples_that_are_no_numbers_and_three_traces_are_no_colours(
    predict: Callable[..., int], tmp_path: Path, caplog: Any
) -> None:
    traces = [(1, x, floats(*([np.nan, np.inf] if x == 2 else [1, -1]), 0.5, -0.5)) for x in (1, 2, 3)]
    path = write_segy(tmp_path / "damaged.sgy", traces, 4)
    assert predict(f"input={path}", "output=out", "probs=true") == 0
    assert "damaged_inline_1: 2 samples are no numbers; their labels are 255" in caplog.text
    said = manifest_of(tmp_path / "out")["sections"]["damaged_inline_1"]
    assert (said["damaged_samples"], said["dead_traces"]) == (2, 0)
    unknown = np.zeros((4, 3), bool)
    unknown[:2, 1] = True
    assert np.array_equal(label(tmp_path / "out/labels/damaged_inline_1.png") == 255, unknown)
    assert np.array_equal(np.load(tmp_path / "out/probs/damaged_inline_1.npy").sum(0) == 0, unknown)


def test_a_folder_of_pictures_in_tiles(
    predict: Callable[..., int], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    rng = np.random.default_rng(1)
    (tmp_path / "in").mkdir()
    pictures = {"line2": rng.integers(0, 256, (50, 70), np.uint8), "line10": rng.integers(0, 256, (33, 20), np.uint8)}
    pictures |= {"line3": rng.integers(0, 256, (50, 70), np.uint8)}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "notes.txt").write_text("x")
    sizes: list[tuple[int, ...]] = []
    true = LoadedMethod.predict
    monkeypatch.setattr(
        LoadedMethod, "predict", lambda self, array, *rest: sizes.append(array.shape) or true(self, array, *rest)
    )
    assert predict("input=in", "output=whole", "batch=8") == 0
    assert sizes == [(2, 50, 70, 1), (1, 33, 20, 1)]
    assert "left out, since they are neither pictures nor SEG-Y: notes.txt" in caplog.text
    assert list(manifest_of(tmp_path / "whole")["sections"]) == ["line2", "line3", "line10"]
    assert predict("input=in", "output=tiled", "tile=16", "overlap=0.5") == 0
    method = geoseg.load(run)
    method.in_tiles(24)
    for name, picture in pictures.items():
        # a method that looks at single pixels says the same, however the picture is cut
        whole = label(tmp_path / "whole" / "labels" / f"{name}.png")
        assert np.array_equal(label(tmp_path / "tiled" / "labels" / f"{name}.png"), whole)
        assert np.array_equal(whole, geoseg.load(run).predict(picture, name).labels[0].numpy())
        torch.testing.assert_close(true(method, picture, name).probs, true(geoseg.load(run), picture, name).probs)
    with pytest.raises(ValueError, match="goes through large pictures in blended windows of 24 pixels already"):
        method.in_tiles(16)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["output=out"], "label what? input="),
        (["input=in.png"], "where to? output="),
        (["input=in.png", "output=out", "evry=2"], "there is no setting evry; did you mean every?"),
        (["input=in.png", "output=out", "every=two"], "every=two: a whole number is wanted"),
        (["input=in.png", "output=out", "every=[2]"], "every=[2]: one value is wanted"),
        (["input=in.png", "output=out", "every=[1"], "cannot read 'every=[1': while parsing"),
        (["input=in.png", "output=out", "every"], "a setting is typed key=value"),
        (["input=in.png", "output=out", "every=2"], "every=2 takes every n-th section of a SEG-Y volume"),
        (["input=in.png", "output=out", "every=0"], "every=0: a whole number from 1 on"),
        (["input=in.png", "output=out", "tile=0"], "wanted tile >= 1"),
        (["input=nowhere", "output=out"], "there is no such file or folder"),
        (["input=.", "output=here"], "output=here holds other files (notes.txt)"),
        (["input=here", "output=out"], "holds no picture and no SEG-Y file"),
        (["input=deep.png", "output=out"], "grey_range=[BLACK,WHITE] says that"),
        (["input=in.png", "output=out", "run=xyz"], "no run below runs is xyz"),
        (["input=in.png", "output=out", "method.model.path=x"], "method.model.path=x: this run has no such file"),
    ],
)
def test_what_cannot_be_labelled(
    words: list[str], said: str, predict: Callable[..., int], tmp_path: Path, capsys: Any
) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "in.png")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "notes.txt").write_text("x")
    if "input=deep.png" in words:
        Image.fromarray(np.full((8, 8), 999, np.uint16)).save(tmp_path / "deep.png")
    assert predict(*words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_deep_pictures_with_a_rule(predict: Callable[..., int], tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 999, np.uint16)).save(tmp_path / "deep.png")
    assert predict("input=deep.png", "output=out", "grey_range=[0,1000]") == 0
    assert manifest_of(tmp_path / "out")["asked"]["grey_range"] == [0, 1000]


def test_the_rule_of_the_run_and_what_is_asked_for() -> None:
    recorded = {"_target_": "geoseg.data.amplitudes.Amplitudes", "clip": 95.0, "per": "section", "turn": True}
    nothing = dict.fromkeys(("clip", "per", "grey_range", "turn"))
    rule, why = _rule({"amplitudes": recorded}, nothing)
    assert vars(rule) == {"clip": 95.0, "per": "section", "grey_range": None, "turn": True}
    assert why == "the run's own rule"
    rule, why = _rule({"amplitudes": recorded}, {**nothing, "turn": False})
    assert (rule.clip, rule.turn) == (95.0, False) and why.endswith("but turn as asked for")
    assert vars(_rule({}, nothing)[0]) == vars(Amplitudes())


def test_entropy_of_what_is_sure_and_of_what_is_open() -> None:
    probs = torch.tensor([[1.0, 0.25, 0.5], [0.0, 0.25, 0.5], [0.0, 0.25, 0.0], [0.0, 0.25, 0.0]])[None, :, None]
    torch.testing.assert_close(entropy(probs), torch.tensor([[[0.0, 1.0, 0.5]]]))


def test_its_help(run_cli: Callable[..., int], capsys: Any) -> None:
    assert run_cli("predict", "--help") == 0
    told = capsys.readouterr().out
    for key in ("every", "direction", "points", "inline_byte", "endian", "ignore_geometry", "clip", "tile", "seed"):
        assert f"{key}=" in told
    assert module.SCHEMA == 1
