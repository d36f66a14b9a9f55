"""Tables for papers: every cell where it belongs, every letter as it was."""

from __future__ import annotations

import re

from geoseg.latex import SIGNS, escape, table
from geoseg.summary import summary_cells
from tests.made_records import record


def unescape(text: str) -> str:
    """What a reader of the printed page sees."""
    back = {sign: letter for letter, sign in SIGNS.items() if letter != "\n"}
    return re.sub("|".join(re.escape(sign) for sign in sorted(back, key=len, reverse=True)), lambda m: back[m[0]], text)


def test_letters_that_latex_would_take_for_commands() -> None:
    text = r"50 % of a_b & c #1, {x} ~ y^2 \ $5 <lora:vai1:1> [0.1] – ± ↓ ↑ | é"
    escaped = escape(text)
    assert unescape(escaped) == text
    rest = re.sub("|".join(re.escape(sign) for sign in sorted(SIGNS.values(), key=len, reverse=True)), "", escaped)
    assert not set(rest) & set(r"%_&#{}~^\$<>[]|–±↓↑")
    assert escape("-0.2, a-b, x-1") == "$-$0.2, a-b, x-1"


def test_the_summary_as_latex() -> None:
    many = [
        record("input as is", start=0.5, labels=0, kind="none"),
        record("label_LoRA & more", start=0.2, seed=0, stages=("pass 1", "pass 2")),
        record("label_LoRA & more", start=0.3, seed=1, stages=("pass 1", "pass 2")),
    ]
    head, rows = summary_cells(many)
    text = table(head, rows, texts=4)
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    assert lines[0] == rf"\begin{{tabular}}{{lll{'r' * (len(head) - 4)}}}"
    assert [line for line in lines if re.fullmatch(r"\\(top|mid|bottom)rule", line)] == [
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
    ]
    assert rf"\multicolumn{{{len(head) - 1}}}{{l}}{{\textit{{earth}}}} \\" in lines
    cells = [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in lines if " & " in line]
    assert [unescape(cell) for cell in cells[0]] == head[1:]
    printed = [[unescape(cell).replace("−", "-") for cell in row] for row in cells[1:]]
    assert printed == [[cell.replace("−", "-") for cell in row[1:]] for row in rows]
    assert any("label_LoRA & more: pass 2" in row for row in printed)
