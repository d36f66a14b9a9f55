"""Every kind of picture file that people have: what is read, and what is answered before any work."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geoseg.data.module import DataModule
from geoseg.data.profiles import ProfileFolder
from tests.data.test_profiles import folder, offenders

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG put together by hand, such as PIL does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def profile(root: Path, write: Callable[[Path], Any], suffix: str = ".png", **options: Any) -> np.ndarray:
    """What is read of a profile, put in the place of the first of a folder."""
    folder(root)
    (root / "images" / "line0.png").unlink()
    write((root / "images" / "line0.png").with_suffix(suffix))
    source = ProfileFolder(str(root), **options)
    source.check(source.names)
    image = source.read("line0").image
    fresh = ProfileFolder(str(root), **options)  # which has read no pixel yet
    assert fresh.shape("line0") == source.shape("line0") == image.shape[:2]
    return image


def refusal(root: Path, write: Callable[[Path], Any], suffix: str = ".png", part: str = "images") -> str:
    """What is said of such a file, which neither its size nor its pixels can be had of."""
    folder(root)
    (root / part / "line0.png").unlink()
    write((root / part / "line0.png").with_suffix(suffix))
    with pytest.raises(ValueError, match="cannot be used") as error:
        DataModule(ProfileFolder(str(root), num_classes=3), num_train=1).prepare()
    return str(error.value)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "PA"])
def test_profiles_of_8_bits_are_what_a_viewer_shows(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(GREY).convert("RGB" if mode == "P" else mode)
    if mode == "P":
        picture = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    if mode == "PA":
        picture = Image.fromarray(GREY).convert("P")
        picture.info["transparency"] = bytes([255] * 256)
    found = profile(tmp_path, lambda path: picture.save(path))
    wanted = np.asarray(picture.convert("RGBA"))[..., :3]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found if found.ndim == 3 else np.repeat(found[..., None], 3, axis=2), wanted)


def test_a_palette_of_colours_is_colour(tmp_path: Path) -> None:
    picture = Image.frombytes("P", (8, 6), (GREY % 3).tobytes())
    picture.putpalette([240, 10, 10, 10, 240, 10, 10, 10, 240])
    found = profile(tmp_path, lambda path: picture.save(path))
    np.testing.assert_array_equal(found, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "L"])
def test_see_through_profiles_are_refused(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(GREY).convert(mode)
    options: dict[str, Any] = {}
    if mode in ("LA", "RGBA"):
        picture.putpixel((3, 3), (*picture.getpixel((3, 3))[:-1], 254))
    else:
        options["transparency"] = picture.getpixel((3, 3))
    said = refusal(tmp_path, lambda path: picture.save(path, **options))
    assert "line0.png: parts of it are see-through" in said
    assert "save it without transparency" in said


def test_a_transparent_class_of_a_label_map_is_a_class(tmp_path: Path) -> None:
    folder(tmp_path)
    indices = GREY % 3
    picture = Image.frombytes("P", (8, 6), indices.tobytes())
    picture.putpalette([240, 10, 10, 10, 240, 10, 10, 10, 240])
    picture.save(tmp_path / "labels" / "line0.png", transparency=0)
    np.testing.assert_array_equal(ProfileFolder(str(tmp_path)).read("line0").target, indices)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("I;16", ".png"), ("I;16", ".tif"), ("I", ".tif"), ("F", ".tif"), ("I;16B", ".tif")]
)
def test_deep_profiles_are_read_by_one_stated_rule(tmp_path: Path, mode: str, suffix: str) -> None:
    deep = np.arange(48).reshape(6, 8) * 1000
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}[mode]
    found = profile(
        tmp_path, lambda path: Image.fromarray(deep.astype(dtype)).save(path), suffix, grey_range=[1000, 41000]
    )
    np.testing.assert_array_equal(found, [[round(255 * min(max(v - 1000, 0), 40000) / 40000) for v in r] for r in deep])
    assert found.dtype == np.uint8


def test_the_rule_may_turn_the_polarity_and_is_part_of_the_data(tmp_path: Path) -> None:
    amplitudes = np.linspace(-1, 1, 48, dtype=np.float32).reshape(6, 8)
    found = profile(tmp_path, lambda path: Image.fromarray(amplitudes).save(path), ".tif", grey_range=[1.0, -1])
    np.testing.assert_array_equal(found, np.rint(255 * (1 - amplitudes.astype(np.float64)) / 2))
    prints = [
        ProfileFolder(str(tmp_path), grey_range=rule).fingerprint(["line0"])
        for rule in (None, [0, 1], [0.0, 1.0], [0, 2])
    ]
    assert prints[1] == prints[2]
    assert len(set(prints)) == 3


def test_a_pixel_that_is_no_number(tmp_path: Path) -> None:
    holes = np.full((6, 8), np.nan, np.float32)
    said = refusal(tmp_path, lambda path: Image.fromarray(holes).save(path), ".tif")
    assert "line0.tif: some of its pixels are not a number; fill them" in said


@pytest.mark.parametrize("rule", [[0], [3, 3], [0, "a"], [0, float("nan")], [0, 1, 2]])
def test_rules_that_say_nothing(tmp_path: Path, rule: list[Any]) -> None:
    folder(tmp_path)
    with pytest.raises(ValueError, match=r"data\.source\.grey_range=.*two different numbers are wanted"):
        ProfileFolder(str(tmp_path), grey_range=rule)


def deep_folder(root: Path, *ranges: tuple[int, int]) -> None:
    """Profiles of 16 bits, the first from value to value."""
    folder(root)
    for i, (low, high) in enumerate(ranges):
        values = np.linspace(low, high, 48).round().astype(np.uint16).reshape(6, 8)
        Image.fromarray(values).save(root / "images" / f"line{i}.png")


def test_the_rule_to_type_is_told_with_the_values_of_all_profiles(tmp_path: Path) -> None:
    deep_folder(tmp_path, (40, 4000), (100, 5000))
    said = offenders(tmp_path)
    assert "line0.png: pixels are of type I;16, with values 40 to 4000; say for all profiles" in said
    assert "'data.source.grey_range=[40,5000]' takes all values" in said.splitlines()[0]


@pytest.mark.parametrize("rule", [[10000, 65535], [65535, 10000]])
def test_a_rule_beside_the_values_is_refused(tmp_path: Path, rule: list[float]) -> None:
    deep_folder(tmp_path, (40, 4000), (100, 20000))
    ends = "[40,20000]" if rule[0] < rule[1] else "[20000,40]"
    source = ProfileFolder(str(tmp_path), grey_range=rule)
    with pytest.raises(ValueError, match="black or white throughout") as error:
        source.check(source.names)
    headline, *lines = str(error.value).splitlines()
    assert headline.startswith(f"data.source.grey_range=[{rule[0]},{rule[1]}] makes")
    assert f"'data.source.grey_range={ends}' takes all values" in headline
    assert lines == ["  line0.png: values 40 to 4000"]


@pytest.mark.parametrize(
    ("rule", "hint"),
    [
        ([0, 65535], "the profiles hold values 40 to 5000, 7.6 % of it, and come out nearly flat; 'data.source.grey_r"),
        ([0, 1000], "the profiles hold values 40 to 5000, and 78 % of the pixels are cut off; 'data.source.grey_range"),
        ([0, 8000], None),
        ([5000, 40], None),
    ],
)
def test_a_rule_that_hardly_fits_is_hinted_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rule: list[float], hint: str | None
) -> None:
    deep_folder(tmp_path, (40, 4000), (100, 5000))
    source = ProfileFolder(str(tmp_path), grey_range=rule)
    source.check(source.names)
    assert (hint in caplog.text and "grey_range=[40,5000]'" in caplog.text) if hint else not caplog.text


@pytest.mark.parametrize("colour", [2, 4, 6], ids=["RGB", "LA", "RGBA"])
def test_16_bits_in_several_channels_are_not_cut_in_silence(tmp_path: Path, colour: int) -> None:
    row = b"\0" + bytes(range(8 * 2 * {2: 3, 4: 2, 6: 4}[colour]))
    said = refusal(tmp_path, lambda path: path.write_bytes(png(8, 6, 16, colour, row * 6)))
    assert (
        "line0.png: 16 bits per channel in several channels are not read; save it as 8-bit, or as 16-bit grey" in said
    )


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", ".jpg"), ("CMYK", ".tif"), ("LAB", ".tif"), ("YCbCr", ".tif")])
def test_colours_of_print_are_refused(tmp_path: Path, mode: str, suffix: str) -> None:
    picture = Image.new(mode, (8, 6))
    said = refusal(tmp_path, lambda path: picture.save(path), suffix)
    assert f"line0{suffix}: pixels are of type {mode}; save it as 8-bit grey or RGB" in said


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_held_sideways_is_used_as_it_is_shown(tmp_path: Path, suffix: str, orientation: int) -> None:
    shown = np.kron(np.arange(6).reshape(2, 3) * 40, np.ones((8, 8))).astype(np.uint8)  # [16, 24], survives JPEG
    # what a camera stores so that its reader, following the tag, comes out at ``shown``
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.T,
        6: shown.T[::-1],
        7: shown[::-1, ::-1].T,
        8: shown.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    folder(tmp_path, size=(16, 24))
    (tmp_path / "images" / "line0.png").unlink()
    picture = Image.fromarray(np.ascontiguousarray(stored))
    picture.save(
        (tmp_path / "images" / "line0").with_suffix(suffix), exif=exif, **({"quality": 100} if suffix == ".jpg" else {})
    )
    source = ProfileFolder(str(tmp_path))
    assert source.shape("line0") == (16, 24)
    source.check(source.names)
    image = source.read("line0").image
    assert image.shape == (16, 24)
    assert np.abs(image.astype(int) - shown).max() <= (3 if suffix == ".jpg" else 0)


def test_a_turned_tiff_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    said = refusal(tmp_path, lambda path: Image.fromarray(GREY).save(path, exif=exif), ".tif")
    assert "line0.tif: a TIFF that is stored mirrored or turned; save it upright" in said


@pytest.mark.parametrize("part", ["images", "labels"])
@pytest.mark.parametrize(("kind", "suffix"), [("PNG", ".png"), ("GIF", ".png"), ("TIFF", ".tif")])
def test_several_pictures_in_one_file(tmp_path: Path, kind: str, suffix: str, part: str) -> None:
    pages = [Image.fromarray(GREY % 3), Image.fromarray((GREY + 1) % 3), Image.fromarray((GREY + 2) % 3)]
    said = refusal(
        tmp_path, lambda path: pages[0].save(path, kind, save_all=True, append_images=pages[1:]), suffix, part
    )
    assert f"line0{suffix}: holds 3 pictures (pages or an animation); save the one you mean as its own file" in said


@pytest.mark.parametrize("part", ["images", "labels"])
@pytest.mark.parametrize("side", [10_000, 14_000, 1_000_000])
def test_a_picture_that_would_fill_the_memory_is_never_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, part: str
) -> None:
    load = Image.Image.load

    def small_only(self: Image.Image) -> Any:
        assert self.width < 100, "decoded"
        return load(self)

    monkeypatch.setattr(Image.Image, "load", small_only)
    said = refusal(tmp_path, lambda path: path.write_bytes(png(side, side, 8, 0, b"\0")), part=part)
    assert "line0.png: more than 89478485 pixels by its header, so it was not decoded; cut it into several" in said
    with pytest.raises(ValueError, match="more than 89478485 pixels"):
        ProfileFolder(str(tmp_path), num_classes=3, images=part).shape("line0")


@pytest.mark.parametrize("at", [30, 60, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".bmp"])
def test_a_torn_file_never_passes(tmp_path: Path, suffix: str, at: float) -> None:
    def write(path: Path) -> None:
        Image.fromarray(np.random.default_rng(3).integers(0, 256, (60, 80), dtype=np.uint8)).save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(at if at > 1 else at * len(content))])

    said = refusal(tmp_path, write, suffix)
    assert f"line0{suffix}: unreadable or truncated" in said or f"line0{suffix}: not a picture" in said


NAMES = ["a b", "é地", "x=1", "p,q", "[1]", "12", "$a_$b", "007", "it's", '"q"', "a{b}", "n:o", "true"]


def test_names_of_any_kind_are_names(tmp_path: Path) -> None:
    folder(tmp_path, count=len(NAMES))
    for i, name in enumerate(NAMES):
        for part in ("images", "labels"):
            (tmp_path / part / f"line{i}.png").rename(tmp_path / part / f"{name}.png")
    source = ProfileFolder(str(tmp_path))
    source.check(source.names)
    assert source.names == sorted(NAMES)
    for name in NAMES:
        assert source.read(name).image.shape == (6, 8)
    data = DataModule(source, select=["p,q", 12])  # type: ignore[list-item]  # as the command line reads it
    data.prepare()
    assert data.names["train"] == ["p,q", "12"]


def test_faults_are_listed_as_people_number_files(tmp_path: Path) -> None:
    folder(tmp_path, count=12)
    for i in (2, 10):
        (tmp_path / "images" / f"line{i}.png").write_bytes(b"")
    lines = offenders(tmp_path).splitlines()
    assert [line.split(".")[0].strip() for line in lines[1:]] == ["line2", "line10"]
    with pytest.raises(ValueError, match=r"it has \['line0', 'line1', 'line2', .*, 'line9'\] \.\.\."):
        DataModule(ProfileFolder(str(tmp_path)), select=["line"]).prepare()


def test_the_fault_of_every_file_is_told_at_once(tmp_path: Path) -> None:
    folder(tmp_path)
    Image.fromarray(GREY).convert("CMYK").save(tmp_path / "images" / "line0.tif")
    (tmp_path / "images" / "line0.png").unlink()
    (tmp_path / "images" / "line1.png").write_bytes(png(9999, 9999, 8, 0, b""))
    said = offenders(tmp_path)
    assert said.startswith("2 of the samples")
    assert "line0.tif: pixels are of type CMYK" in said
    assert "line1.png: more than" in said
