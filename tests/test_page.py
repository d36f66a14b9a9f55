"""The page: everything inside it, nothing outside it, readable without JavaScript."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geoseg.page import COLUMNS, MOST_VALUES, SHEET_WIDTH, Drawing, Table, write_page
from geoseg.report import Found
from tests.made_records import failed, record


class Read(HTMLParser):
    """What a reader without JavaScript sees: tables as cells, pictures, words; and that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.pictures: list[dict[str, str | None]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words = ""
        self.code = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "img":
            self.pictures.append(dict(attrs))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.code += data
        elif self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        else:
            self.words += data


def found(tmp_path: Path, *records: dict[str, Any], pictures: bool = True) -> list[Found]:
    runs = []
    for i, one in enumerate(records):
        folder = tmp_path / "runs" / "asked" / str(i)
        (folder / "figures").mkdir(parents=True)
        if pictures and one["status"] == "done":
            Image.new("RGB", (2 * SHEET_WIDTH, 300), (10 * i, 200, 0)).save(folder / "figures" / "stages.png")
        runs.append(Found(folder, one))
    return runs


def read(path: Path) -> Read:
    return Read(path.read_text(encoding="utf-8"))


NASTY = "</script><script>alert(1)</script><img src=http://x.y/z>"


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), (1, 2, 3)).save(tmp_path / "a.png")
    broken = {**failed(), "error": f"ValueError: {NASTY}", "traceback": f"Traceback {NASTY}"}
    runs = found(
        tmp_path, record(NASTY, config={"data": {"root": NASTY}}), record(config={"data": {"root": "b"}}), broken
    )
    tables = [Table(NASTY, [NASTY, "n"], [[NASTY, "1"]], NASTY)]
    page = write_page(tmp_path / "report.html", runs, {}, tables, [Drawing(NASTY, tmp_path / "a.png")])
    text, seen = page.read_text(encoding="utf-8"), read(page)
    for tag, name, value in seen.attributes:
        assert name in ("alt",) or not re.search(r"https?:|^//", value or ""), (tag, name, value)
        assert name not in ("srcset", "data", "action", "poster") and not name.startswith("on")
        assert name != "src" or str(value).startswith("data:image/")
        assert name != "href" or str(value).startswith("#")
    assert {tag for tag, _, _ in seen.attributes} <= {
        *("html", "meta", "section", "a", "div", "table", "th", "td", "p", "img", "details")
    }
    assert not re.search(r"@import|url\(|https?:|fetch\(|XMLHttp|import\(|WebSocket", seen.code)
    assert "default-src 'none'" in text
    assert text.count("<script>") == text.count("</script>") == 1
    assert "alert(1)" in seen.words  # shown as it stands, run by nobody
    assert "alert(1)" not in seen.code
    ids = [value for _, name, value in seen.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    assert {value for _, name, value in seen.attributes if name == "href"} <= {f"#{i}" for i in ids}


def test_a_row_per_run_with_its_numbers(tmp_path: Path) -> None:
    runs = found(tmp_path, record(start=0.25, seed=3), failed(), pictures=False)
    page = write_page(tmp_path / "report.html", runs, {"f1": {"train/loss": 0.0123456}})
    head, first, second = read(page).tables[0]
    assert head == [title for title in COLUMNS if title != "how it was set"]  # there is nothing to say in it
    row = dict(zip(head, first, strict=True))
    assert (row["seed"], row["status"], row["minutes"]) == ("3", "done", "2")
    assert float(row["matched mean IoU ↑"]) == pytest.approx(0.257)
    assert float(row["final training loss ↓"]) == pytest.approx(0.01235)
    assert row["validation loss ↓"] == "0.9"  # of the record, where the training's log is not there
    lost = dict(zip(head, second, strict=True))
    assert (lost["status"], lost["matched mean IoU ↑"], lost["minutes"]) == ("failed", "-", "-")
    assert "2 runs, 1 of them finished, 1 failed" in read(page).words
    assert "label LoRA, seed 7: ValueError: no" in read(page).words


def test_settings_that_differ(tmp_path: Path) -> None:
    many = [record(config={"data": {"root": "a", "crop": i, "names": ["x", "y"]}}) for i in range(MOST_VALUES + 3)]
    many[0]["config"]["data"].update(names=None, crop=1)
    for i, one in enumerate(many):
        one["config"]["data"]["source"] = {"_target_": f"some.where.{'Folder' if i else 'Earth'}"}
    page = write_page(tmp_path / "report.html", found(tmp_path, *many, pictures=False), {})
    (_, *rows) = read(page).tables[-1]
    told = dict(rows)
    assert set(told) == {"data.crop", "data.names", "data.source"}
    assert told["data.source"] == f"Folder ({MOST_VALUES + 2}), Earth (1)"
    assert told["data.names"] == f"x y ({MOST_VALUES + 2}), null (1)"
    assert told["data.crop"].startswith("1 (2), 2 (1), ") and told["data.crop"].endswith("and 2 other values")


def test_sheets_come_from_all_methods_in_turn_and_small(tmp_path: Path) -> None:
    many = [record(seed=i, run_id=f"l{i}") for i in range(5)] + [
        record("U-Net", seed=i, run_id=f"u{i}") for i in range(2)
    ]
    page = write_page(tmp_path / "report.html", found(tmp_path, *many), {}, sheets=3)
    seen = read(page)
    shown = [str(picture["alt"]) for picture in seen.pictures]
    assert shown == [
        f"{name}, earth, trained on 4 label maps alone, seed {i}"
        for name, i in (("label LoRA", 0), ("label LoRA", 1), ("U-Net", 0))
    ]
    assert "3 of 7 sheets" in seen.words
    colours = []
    for picture in seen.pictures:
        kind, content = str(picture["src"]).split(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert image.size == (SHEET_WIDTH, 150) == (int(picture["width"] or 0), int(picture["height"] or 0))
            colours.append(np.asarray(image)[70, 500, 0])
    assert colours == pytest.approx([0, 10, 50], abs=3)
    assert "All 7 sheets" in read(write_page(tmp_path / "b.html", found(tmp_path / "b", *many), {})).words
    assert (
        "Pictures"
        not in read(write_page(tmp_path / "c.html", found(tmp_path / "c", record(), pictures=False), {})).words
    )
    assert not read(write_page(tmp_path / "d.html", found(tmp_path / "d", *many), {}, sheets=0)).pictures
