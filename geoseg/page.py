"""Runs as one page that opens anywhere: no server, no network, no file beside it, and readable without JavaScript."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from geoseg.ablation import shown
from geoseg.record import write_atomically
from geoseg.report import Found, flattened, given
from geoseg.summary import first_line, settings

MOST_SHEETS = 24
"""Image sheets on a page unless told otherwise: some 100 kB each."""

SHEET_WIDTH = 1000
"""Pixels that a wider sheet is reduced to."""

MOST_VALUES = 12
"""Values of a setting that are listed; of the rest the number is given."""

MOST_ROWS = 500
"""Rows that JavaScript shows until asked for all: a browser takes a second to lay out thousands."""

LONG = 42
"""Letters beyond which a cell is broken into lines."""

COLUMNS = {
    "experiment": "experiment",
    "method": "method",
    "data": "data",
    "train": "num_train",
    "seed": "seed",
    "checkpoints": "checkpoints",
    "status": "status",
    "Dice loss label–generated ↓": "test/dice_loss/label_generated",
    "mean IoU ↑": "test/iou/mean",
    "matched mean IoU ↑": "test/matched/iou/mean",
    "boundary F1, 2 px ↑": "test/boundary_f1/mean",
    "final training loss ↓": "train/loss",
    "validation loss ↓": "val/loss",
    "minutes": "minutes",
    "how it was set": "settings",
    "commit": "commit",
    "run": "run_id",
}
"""Columns of the table of runs."""

CHOICES = ("experiment", "method", "data", "checkpoints", "status")
"""Columns that the page offers a choice of values for."""


class Table(NamedTuple):
    """A table for the page, every cell as text.

    Attributes:
        title: above it.
        head: titles of columns.
        rows: cells.
        note: what the numbers are.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Drawing(NamedTuple):
    """A figure for the page: its title and its PNG."""

    title: str
    path: Path


def write_page(
    path: Path,
    runs: Sequence[Found],
    losses: Mapping[str, Mapping[str, float]],
    tables: Sequence[Table] = (),
    drawings: Sequence[Drawing] = (),
    sheets: int = MOST_SHEETS,
) -> Path:
    """Writes all there is to see of many runs into one HTML file.

    It shows a table of runs that can be sorted and filtered, the given tables, the figures, the settings in which runs
    differ, image sheets of runs (``figures/stages.png``) and the errors of failed runs. Pictures lie inside the file,
    and a policy in its head forbids a browser to fetch anything.

    Args:
        path: the file.
        runs: in the order of the table.
        losses: fit id to final losses.
        tables: such as the summary.
        drawings: figures.
        sheets: at most so many runs' image sheets, taken from all methods and data sets in turn.
    """
    records = [run.record for run in runs]
    failed = [record for record in records if record["status"] == "failed"]
    done = sum(record["status"] == "done" for record in records)
    told = f"{len(runs)} runs, {done} of them finished, {len(failed)} failed"
    parts = {
        "Runs": _runs(records, losses),
        **{table.title: _table(table.head, table.rows) + _note(table.note) for table in tables},
        **{drawing.title: _drawing(drawing) for drawing in drawings},
        "Settings that differ": _differing(records),
        "Pictures": _sheets(runs, sheets),
    }
    if failed:
        parts["Failed runs"] = _failed(failed)
    parts = {title: part for title, part in parts.items() if part}
    links = "".join(f'<a href="#part{i}">{escape(title)}</a>' for i, title in enumerate(parts))
    body = "".join(
        f'<section id="part{i}"><h2>{escape(title)}</h2>{part}</section>'
        for i, (title, part) in enumerate(parts.items())
    )
    names = list(dict.fromkeys(str(record["experiment"]) for record in records))
    experiments = ", ".join(names)
    heading = experiments if len(names) < 4 else f"{len(names)} experiments"
    if len(names) > 3:
        told += f": {experiments}"
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>geoseg: {escape(heading)}</title><style>{STYLE}</style></head>"
        f"<body><header><h1>{escape(heading)}</h1><p>{escape(told)}.</p><nav>{links}</nav></header>"
        f"<main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )
    write_atomically(path, page)
    return path


def _runs(records: Sequence[Mapping[str, Any]], losses: Mapping[str, Mapping[str, float]]) -> str:
    rows = []
    for record, how in zip(records, settings(records), strict=True):
        facts = {
            **record,
            **losses.get(str(record.get("fit_id")), {}),
            **record.get("scores", {}),
            "settings": how,
            "data": record["data"]["name"],
            "checkpoints": record["checkpoints"]["kind"],
            "minutes": sum(record["minutes"].values()) if "minutes" in record else None,
        }
        rows.append([_cell(facts.get(name)) for name in COLUMNS.values()])
    told = [i for i in range(len(COLUMNS)) if any(row[i] not in ("", "-") for row in rows)]
    return _table([list(COLUMNS)[i] for i in told], [[row[i] for i in told] for row in rows], "runs")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text.split(" ")[0] or "x")
    except ValueError:
        return text == "-"
    return True


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], name: str = "") -> str:
    """Columns of numbers stand right, those of long texts are broken; only a table with a name can be sorted."""
    right = [all(_is_number(row[i]) for row in rows) for i in range(len(head))]
    long = [any(len(row[i]) > LONG for row in rows) for i in range(len(head))]
    classes = [' class="n"' if n else ' class="w"' if w else "" for n, w in zip(right, long, strict=True)]
    titles = "".join(
        f'<th scope="col"{style}{" data-choose" * bool(name and title in CHOICES)}>{escape(title)}</th>'
        for title, style in zip(head, classes, strict=True)
    )
    lines = [
        "<tr>" + "".join(f"<td{style}>{escape(cell)}</td>" for cell, style in zip(row, classes, strict=True)) + "</tr>"
        for row in rows
    ]
    named = f' id="{name}"' if name else ""
    # a line per row keeps the file readable, and tools that compare files useful
    return (
        f'<div class="wide" tabindex="0"><table{named}><thead><tr>{titles}</tr></thead>'
        "<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
    )


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def _drawing(drawing: Drawing) -> str:
    return f'<img src="{_inline(drawing.path.read_bytes(), "png")}" alt="{escape(drawing.title)}">'


def _inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _differing(records: Sequence[Mapping[str, Any]]) -> str:
    """Settings that are not the same in all runs that have them, each with its values and their numbers of runs."""
    seen: dict[str, dict[str, int]] = {}
    for record in records:
        for name, value in flattened(record.get("config", {})):
            text = shown(value)
            if name.endswith("._target_"):  # the class alone says enough
                name, text = name.removesuffix("._target_"), text.rpartition(".")[2]
            values = seen.setdefault(name, {})
            values[text] = values.get(text, 0) + 1
    rows = []
    for name, values in sorted(seen.items()):
        if len(values) > 1:
            most = sorted(values.items(), key=lambda pair: -pair[1])
            told = ", ".join(f"{value if value else '(empty)'} ({count})" for value, count in most[:MOST_VALUES])
            more = f", and {len(most) - MOST_VALUES} other values" if len(most) > MOST_VALUES else ""
            rows.append([name, told + more])
    if not rows:
        return ""
    note = "Numbers of runs in brackets. Settings of which all runs that have them have the same value are left out."
    return _table(["setting", "values"], rows) + _note(note)


def _sheets(runs: Sequence[Found], most: int) -> str:
    """Image sheets of runs: first one of every method on every data set, then the next of each."""
    groups: dict[tuple[str, str], list[Found]] = {}
    for run in runs:
        if (run.folder / "figures" / "stages.png").is_file():
            groups.setdefault((run.record["data"]["name"], run.record["method"]), []).append(run)
    there = sum(map(len, groups.values()))
    if not there:
        return ""
    turns = [
        run for i in range(max(map(len, groups.values()))) for group in groups.values() for run in group[i : i + 1]
    ]
    chosen = {id(run) for run in turns[:most]}
    figures = [_sheet(run) for group in groups.values() for run in group if id(run) in chosen]
    told = f"All {there} sheets."
    if there > most:
        told = f"{most} of {there} sheets, taken from all methods and data sets in turn; --sheets N shows more."
    told += f" Reduced to a width of {SHEET_WIDTH} pixels; the originals are figures/stages.png in the runs' folders."
    return _note(told) + "".join(figures)


def _sheet(run: Found) -> str:
    record = run.record
    with Image.open(run.folder / "figures" / "stages.png") as picture:
        sheet = picture.convert("RGB")
    sheet.thumbnail((SHEET_WIDTH, 20 * SHEET_WIDTH), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=82, subsampling=0)  # full colour: label maps have sharp edges
    labels = given(record).replace("\n", " ")
    title = f"{record['method']}, {record['data']['name']}, trained on {labels}, seed {record['seed']}"
    size = f'width="{sheet.width}" height="{sheet.height}"'
    return (
        f"<details open><summary>{escape(title)} <code>{escape(str(record['experiment']))}/{escape(record['run_id'])}"
        f'</code></summary><img src="{_inline(content.getvalue(), "jpeg")}" {size} alt="{escape(title)}"></details>'
    )


def _failed(failed: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for record in failed:
        title = f"{record['method']}, seed {record['seed']}: {first_line(record.get('error', ''))}"
        trace = record.get("traceback") or record.get("error") or "no error was recorded"
        parts.append(
            f"<details><summary>{escape(title)} <code>{escape(str(record['experiment']))}/"
            f"{escape(str(record['run_id']))}</code></summary><pre>{escape(str(trace))}</pre></details>"
        )
    return "".join(parts)


STYLE = """
:root { color-scheme: light dark; --edge: #d0d4d9; --soft: #f3f5f7; --link: #0058a3; --text: #1b1f24; --back: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --edge: #3c434c; --soft: #22272e; --link: #7ab8ff; --text: #dfe4ea; --back: #15191e; }
}
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back); }
header, section { padding: 0 1.5rem; max-width: 110rem; margin: 0 auto; }
h1 { font-size: 1.5rem; margin: 1.2rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
header p { margin: .3rem 0 .6rem; }
nav a { display: inline-block; margin: 0 1.1rem .3rem 0; color: var(--link); }
.wide { overflow: auto; max-height: 75vh; border: 1px solid var(--edge); border-radius: 4px; contain: layout; }
table { border-collapse: separate; border-spacing: 0; font-size: .85rem; }
th, td { padding: .28rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--edge); }
th { position: sticky; top: 0; background: var(--soft); vertical-align: bottom; min-width: 4.5rem; max-width: 9rem; }
td { white-space: nowrap; }
td.w { white-space: normal; min-width: 22rem; max-width: 44rem; overflow-wrap: anywhere; }
tbody tr:hover { background: var(--soft); }
.n { text-align: right; font-variant-numeric: tabular-nums; }
th button { all: unset; cursor: pointer; display: block; width: 100%; }
th button:focus-visible { outline: 2px solid var(--link); }
th[aria-sort=ascending] button::after { content: " ▲"; font-size: .7em; }
th[aria-sort=descending] button::after { content: " ▼"; font-size: .7em; }
.tools { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; margin-bottom: .6rem; }
.tools input, .tools select { font: inherit; padding: .25rem .4rem; max-width: 15rem; }
.tools input { width: 22rem; max-width: 100%; }
.note { color: color-mix(in srgb, var(--text) 75%, var(--back)); font-size: .85rem; max-width: 60rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
summary { cursor: pointer; padding: .35rem 0; }
code { font-size: .8rem; opacity: .75; }
pre { overflow: auto; padding: .8rem; background: var(--soft); font-size: .8rem; }
footer { height: 3rem; }
@media print { .wide { max-height: none; overflow: visible; } .tools { display: none; } }
"""

SCRIPT = """
"use strict";
(() => {
  const table = document.getElementById("runs");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows].map(row => {
    const cells = [...row.cells].map(cell => cell.textContent);
    return { row, cells, text: cells.join("\\n").toLowerCase() };
  });
  const tools = document.createElement("div");
  tools.className = "tools";
  const words = document.createElement("input");
  words.type = "search";
  words.placeholder = "words that a row must hold";
  words.setAttribute("aria-label", "filter runs by words");
  const count = document.createElement("output");
  tools.append(words);
  const choices = [];
  heads.forEach((head, i) => {
    if (!head.hasAttribute("data-choose")) return;
    const values = [...new Set(rows.map(one => one.cells[i]))].sort();
    if (values.length < 2 || values.length > 100) return;
    const choice = document.createElement("select");
    choice.setAttribute("aria-label", head.textContent);
    choice.add(new Option(head.textContent + ": all", ""));
    values.forEach(value => choice.add(new Option(value, "=" + value)));
    choice.onchange = filter;
    choices.push({ i, choice });
    tools.append(choice);
  });
  tools.append(count);
  table.parentElement.before(tools);

  let most = MOST_ROWS;
  const more = document.createElement("button");
  more.onclick = () => { most = Infinity; filter(); };
  tools.append(more);
  function filter() {
    const wanted = words.value.toLowerCase().split(/\\s+/).filter(Boolean);
    const found = rows.filter(one => wanted.every(word => one.text.includes(word))
      && choices.every(({ i, choice }) => !choice.value || "=" + one.cells[i] === choice.value));
    const left = found.length;
    body.replaceChildren(...found.slice(0, most).map(one => one.row));
    count.textContent = left + " of " + rows.length + " runs" + (left > most ? ", the first " + most + " shown" : "");
    more.textContent = "show all " + left;
    more.hidden = left <= most;
  }
  let waiting = 0;
  words.oninput = () => { clearTimeout(waiting); waiting = setTimeout(filter, 80); };

  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    const numbers = head.classList.contains("n");
    button.onclick = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      // what has no number stays at the end, whichever way
      const keyed = rows.map(one => [numbers ? parseFloat(one.cells[i]) : one.cells[i], one]);
      const order = new Intl.Collator(undefined, { numeric: true });
      keyed.sort(numbers
        ? ([a], [b]) => isNaN(a) - isNaN(b) || sign * (a - b) || 0
        : ([a], [b]) => sign * order.compare(a, b));
      keyed.forEach(([, one], at) => { rows[at] = one; });
      filter();
    };
  });
  filter();
})();
""".replace("MOST_ROWS", str(MOST_ROWS))
