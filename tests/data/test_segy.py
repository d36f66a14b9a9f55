"""SEG-Y against files whose every byte is written here."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from geoseg.data.amplitudes import Amplitudes
from geoseg.data.segy import MOST, SegyFile

IBM = {100.0: 0x42640000, -118.625: 0xC276A000, 1.0: 0x41100000, 0.5: 0x40800000, 0.0: 0}
"""Numbers and what System/360 wrote for them."""

REAL = Path(os.environ.get("GEOSEG_SEGY", Path(__file__).resolve().parents[3] / "shared/data/segy"))


def write_segy(
    path: Path,
    traces: Sequence[tuple[int, int, bytes]],
    samples: int,
    code: int = 5,
    order: str = ">",
    where: tuple[int, int] = (189, 193),
) -> Path:
    """A file of traces (inline, crossline, samples as bytes)."""
    head = bytearray(3600)
    for byte, value in ((3217, 4000), (3221, samples), (3225, code)):
        head[byte - 1 : byte + 1] = struct.pack(f"{order}h", value)
    content = bytes(head)
    for inline, crossline, values in traces:
        header = bytearray(240)
        header[114:118] = struct.pack(f"{order}hh", samples, 4000)
        for byte, value in zip(where, (inline, crossline), strict=True):
            header[byte - 1 : byte + 3] = struct.pack(f"{order}i", value)
        content += bytes(header) + values
    path.write_bytes(content)
    return path


def floats(*values: float, order: str = ">") -> bytes:
    return struct.pack(f"{order}{len(values)}f", *values)


def volume(path: Path, left_out: Sequence[tuple[int, int]] = (), **more: object) -> Path:
    """Inlines 10, 12, 14 and crosslines 5 to 8, three samples each: inline, crossline and 1."""
    places = [(i, x) for i in (10, 12, 14) for x in (5, 6, 7, 8) if (i, x) not in left_out]
    return write_segy(path, [(i, x, floats(i, x, 1)) for i, x in places], 3, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "content", "wanted"),
    [
        (1, struct.pack(">5I", *IBM.values()), list(IBM)),
        (2, struct.pack(">5i", 7, -8, 100000, 0, -1), [7, -8, 100000, 0, -1]),
        (3, struct.pack(">5h", 7, -8, -32768, 0, -1), [7, -8, -32768, 0, -1]),
        (5, floats(7, -8, 0.25, 0, -1), [7, -8, 0.25, 0, -1]),
        (6, struct.pack(">5d", 7, -8, 0.25, 0, 1e300), [7, -8, 0.25, 0, np.nan]),
        (8, struct.pack(">5b", 7, -8, -128, 0, 127), [7, -8, -128, 0, 127]),
        (10, struct.pack(">5I", 7, 8, 100000, 0, 1), [7, 8, 100000, 0, 1]),
        (11, struct.pack(">5H", 7, 8, 65535, 0, 1), [7, 8, 65535, 0, 1]),
        (16, struct.pack(">5B", 7, 8, 255, 0, 1), [7, 8, 255, 0, 1]),
    ],
)
def test_every_sample_format(code: int, content: bytes, wanted: list[float], tmp_path: Path) -> None:
    file = SegyFile(write_segy(tmp_path / "line.sgy", [(1, 1, content), (1, 2, content)], 5, code))
    assert file.names == ["line_inline_1"] and file.shape("line_inline_1") == (5, 2)
    found = file.read("line_inline_1")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([wanted, wanted]).T)


def test_a_volume_by_inlines_crosslines_and_along_a_line(tmp_path: Path) -> None:
    path = volume(tmp_path / "cube.sgy")
    inlines = SegyFile(path)
    assert inlines.names == ["cube_inline_10", "cube_inline_12", "cube_inline_14"]
    np.testing.assert_array_equal(inlines.read("cube_inline_12"), [[12] * 4, [5, 6, 7, 8], [1] * 4])
    np.testing.assert_array_equal(inlines.read("cube_inline_12", every=2)[1], [5, 7])
    assert inlines.facts["inlines"] == [10, 14, 2] and inlines.facts["missing_traces"] == 0
    crosslines = SegyFile(path, direction="crossline")
    assert len(crosslines.names) == 4
    np.testing.assert_array_equal(crosslines.read("cube_crossline_6"), [[10, 12, 14], [6] * 3, [1] * 3])
    line = SegyFile(path, points=[[10, 5], [14, 7], [14, 8]])
    assert line.names == ["cube_line"]
    np.testing.assert_array_equal(line.read("cube_line")[:2], [[10, 12, 14, 14], [5, 6, 7, 8]])
    whole = SegyFile(path, ignore_geometry=True)
    assert whole.names == ["cube"] and whole.shape("cube") == (3, 12)
    np.testing.assert_array_equal(whole.read("cube")[1], [5, 6, 7, 8] * 3)


def test_other_bytes_and_the_other_order_of_bytes(tmp_path: Path) -> None:
    traces = [(i, x, floats(i, x, order="<")) for x in (3, 4) for i in (2, 1)]  # sorted by neither
    path = write_segy(tmp_path / "little.sgy", traces, 2, order="<", where=(9, 21))
    with pytest.raises(ValueError, match="endian=little reads it"):
        SegyFile(path)
    with pytest.raises(ValueError, match="3 of 4 traces stand where another one does; inline_byte=.*ignore_geometry=t"):
        SegyFile(path, endian="little")
    file = SegyFile(path, endian="little", inline_byte=9, crossline_byte=21)
    np.testing.assert_array_equal(file.read("little_inline_2"), [[2, 2], [3, 4]])


@pytest.mark.parametrize(("code", "width"), [(1, 4), (3, 2), (8, 1), (6, 8)])
@pytest.mark.parametrize("order", [">", "<"])
def test_numbers_are_written_with_the_headers_of_the_file(code: int, width: int, order: str, tmp_path: Path) -> None:
    places = [(1, 1), (1, 2), (2, 2)]
    path = write_segy(tmp_path / "in.sgy", [(i, x, bytes(2 * width)) for i, x in places], 2, code, order)
    long = bytearray(path.read_bytes())
    long[3504:3506], long[3600:3600] = struct.pack(f"{order}h", 1), b"a" * 3200  # a further header of text
    path.write_bytes(long)
    file = SegyFile(path, direction="crossline", endian={">": "big", "<": "little"}[order])
    assert file.names == ["in_crossline_1", "in_crossline_2"]
    answers = {"in_crossline_1": np.array([[3, 9], [255, 9]]), "in_crossline_2": np.array([[0.5, 1], [2, 3]])}
    file.write(tmp_path / "out.sgy", file.names, answers.__getitem__)
    written = (tmp_path / "out.sgy").read_bytes()
    head = bytes(long[:3224]) + struct.pack(f"{order}h", 5) + bytes(long[3226:6800])
    headers = [bytes(long[6800 + i * (240 + 2 * width) :][:240]) for i in range(3)]
    values = [floats(3, 255, order=order), floats(0.5, 2, order=order), floats(1, 3, order=order)]
    assert written == head + b"".join(header + value for header, value in zip(headers, values, strict=True))


def test_missing_and_empty_traces_are_dead(tmp_path: Path) -> None:
    path = volume(tmp_path / "gaps.sgy", left_out=[(12, 6), (12, 8), (10, 7)])
    file = SegyFile(path)
    assert file.facts["missing_traces"] == 3
    np.testing.assert_array_equal(np.isnan(file.read("gaps_inline_12")), [[False, True, False, True]] * 3)
    np.testing.assert_array_equal(file.read("gaps_inline_12")[0, ::2], [12, 12])
    zeros = write_segy(tmp_path / "zeros.sgy", [(1, 1, floats(0, 0)), (1, 2, floats(0, np.inf))], 2)
    assert np.isnan(SegyFile(zeros).read("zeros_inline_1")).all()


def test_a_scale_is_measured_on_a_part_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traces = [(i, x, floats(i, -x)) for i in range(1, 101) for x in range(1, 5)]
    file = SegyFile(write_segy(tmp_path / "large.sgy", traces, 2))
    names, nth = file.measured_on()
    assert (len(names), nth) == (32, 1)
    assert (names[0], names[-1]) == ("large_inline_001", "large_inline_100")
    assert Amplitudes(clip=100).limit(file.read(name) for name in names) == 100
    monkeypatch.setattr("geoseg.data.segy.MOST", 100)
    assert MOST > 100 and file.measured_on()[1] == 3  # 32 * 4 * 2 values


def test_the_lowest_integer_has_a_size() -> None:
    assert Amplitudes(clip=100).limit([np.array([[-32768, 1]], np.int16)]) == 32768


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"direction": "depth"}, "inline or crossline is wanted"),
        ({"endian": "middle"}, "big or little is wanted"),
        ({"ignore_geometry": True, "direction": "crossline"}, "leave direction and points away"),
        ({"inline_byte": 190}, "no field of a trace header begins at byte 190; inline_byte="),
        ({"points": [[10, 5]]}, "two or more corners"),
        ({"points": [10, 5]}, "two or more corners"),
        ({"points": [[10, 5], [12]]}, "two or more corners"),
        ({"points": [[10, 5], [14, 5]], "direction": "crossline"}, "direction=crossline: points make one line"),
        ({"points": [["a", 5], [10, 6]]}, "two or more corners"),
        ({"points": [[10, 5], [16, 5]]}, "has inlines 10 to 14"),
        ({"inline_byte": 1, "crossline_byte": 193}, "8 of 12 traces stand where another one does"),
        ({"inline_byte": 193, "crossline_byte": 9}, "8 of 12 traces"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        SegyFile(volume(tmp_path / "cube.sgy"), **options)  # type: ignore[arg-type]


def test_numbers_that_are_no_survey(tmp_path: Path) -> None:
    far = [(1000 * i * i + i, 7000 * i, floats(1, 2)) for i in range(1, 60)]
    with pytest.raises(ValueError, match="which is no survey of 59 traces; inline_byte="):
        SegyFile(write_segy(tmp_path / "far.sgy", far, 2))
    thin = write_segy(tmp_path / "thin.sgy", [(i, 1, floats(1, 2)) for i in range(5)], 2)
    with pytest.raises(ValueError, match="single trace; direction=crossline reads"):
        SegyFile(thin)
    assert SegyFile(thin, direction="crossline").shape("thin_crossline_1") == (2, 5)


def test_files_that_are_broken(tmp_path: Path) -> None:
    whole = volume(tmp_path / "cube.sgy").read_bytes()
    damage: dict[str, tuple[bytes, str]] = {
        "short": (whole[:100], "100 bytes are too few"),
        "torn": (whole[:-5], "truncated, or its traces differ in length"),
        "code": (whole[:3224] + struct.pack(">h", 99) + whole[3226:], "sample format 99; read are 1 .IBM float."),
    }
    for name, (content, said) in damage.items():
        path = tmp_path / f"{name}.sgy"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.sgy: .*{said}"):
            SegyFile(path)
    with pytest.raises(ValueError, match="No such file"):
        SegyFile(tmp_path / "nowhere.sgy")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not here")
@pytest.mark.parametrize(
    ("name", "options", "facts", "sections", "shape", "lowest"),
    [
        ("f3_crop_int16", {}, {"missing_traces": 0, "traces": 414}, 23, (75, 18), -8148),
        ("f3_il105-106_ibm", {}, {"missing_traces": 0, "inlines": [105, 106, 1]}, 2, (463, 100), -29237),
        ("f3_withdead_ibm", {"direction": "crossline"}, {"missing_traces": 175}, 18, (75, 23), -7394),
        ("volve_twt_arbline_ieee", {"ignore_geometry": True}, {"format": "IEEE float"}, 1, (850, 225), -39.269745),
    ],
)
def test_recorded_files(
    name: str,
    options: dict[str, object],
    facts: dict[str, object],
    sections: int,
    shape: tuple[int, int],
    lowest: float,
) -> None:
    file = SegyFile(REAL / f"{name}.sgy", **options)  # type: ignore[arg-type]
    assert facts.items() <= file.facts.items()
    assert (len(file.names), file.shape(file.names[0])) == (sections, shape)
    assert np.nanmin(file.read(file.names[0])) == pytest.approx(lowest)


def _own_ibm(word: int) -> float:
    sign = -1.0 if word >> 31 else 1.0
    return float(sign * (word & 0xFFFFFF) / 2**24 * 16.0 ** ((word >> 24 & 0x7F) - 64))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not here")
def test_recorded_ibm_floats_against_their_bytes() -> None:
    path = REAL / "f3_il105-106_ibm.sgy"
    trace: Callable[[int], bytes] = lambda i: path.read_bytes()[3600 + i * (240 + 463 * 4) + 240 :][: 463 * 4]  # noqa: E731
    found = SegyFile(path).read("f3_il105-106_ibm_inline_106")
    np.testing.assert_array_equal(found[:, 3], [_own_ibm(word) for word in struct.unpack(">463I", trace(103))])
