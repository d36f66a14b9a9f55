"""Records as tables: on the terminal, and as results.csv for the folder of an experiment."""

from __future__ import annotations

import csv
import difflib
import gc
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from geoseg.record import read_record, write_atomically

DICE = {
    "dice_loss/original_label": "original\nlabel",
    "dice_loss/original_generated": "original\ngenerated",
    "dice_loss/label_generated": "label\ngenerated",
}
"""The paper's three soft Dice losses on grey intensities."""

CLASS = {
    "iou/mean": "mean\nIoU",
    "dice/mean": "mean\nDice",
    "accuracy/pixel": "pixel\naccuracy",
    "boundary_f1/mean": "boundary\nF1, 2 px",
}
"""Scores of the label map, each also after matching."""

IMAGES = {
    "accuracy/image": "accuracy ↑",
    "f1/mean": "macro F1 ↑",
    "cross_entropy": "cross-entropy ↓",
    "calibration/error": "calibration error ↓",
}
"""Scores of the classes of whole images."""


def rows(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """A record's table rows: its stages in order, or the one answer of a method without stages."""
    if record["stages"]:
        return [(stage, scores) for stage, scores in record["stages"].items()]
    return [(record["method"], record["scores"])]


SMALL = " These are the small embedded checkpoints; published ones may do otherwise."


def image_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """The table of a run on whole images: the main method, whose record comes first, and its rivals."""
    first = records[0]
    small = first["checkpoints"]["kind"].startswith("demo")
    table = Table(
        title=f"{first['experiment']} on {first['data']['name']}, seed {first['seed']}: "
        f"{len(first['data']['test'])} test images, checkpoints={first['checkpoints']['kind']}",
        caption="Macro F1 is the mean over classes. Cross-entropy is that of the truth, in nats. Calibration error is "
        "how far probabilities are from shares of right answers." + SMALL * small,
        box=box.SIMPLE,
    )
    table.add_column("method")
    table.add_column("trained on")
    for title in IMAGES.values():
        table.add_column(title, justify="right")
    for record in records:
        cells = [_number(record["scores"], f"test/{score}") for score in IMAGES]
        table.add_row(record["method"], given(record), *cells)
    return table


def main_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """The table of a run: controls, the main method's stages, and the rivals; the main method's record comes first."""
    first, *rivals = records
    if first["data"].get("per_image"):
        return image_table(records)
    controls = [record for record in rivals if not record["given"]["labels"]]
    trained = [record for record in rivals if record["given"]["labels"]]
    count = len(first["data"]["test"])
    small = first["checkpoints"]["kind"].startswith("demo")
    table = Table(
        title=f"{first['experiment']} on {first['data']['name']}, seed {first['seed']}: "
        f"{count} test profile{'s' * (count != 1)}, checkpoints={first['checkpoints']['kind']}",
        caption="Dice loss on grey values: original label is the same for all methods, original generated tells how "
        "far a picture moved, in label generated ↓ lower is better. Label map, ↑ higher is better: first as drawn, "
        "then after the best one-to-one matching of classes." + SMALL * small,
        box=box.SIMPLE,
    )
    table.add_column("method")
    table.add_column("trained on")
    for name, title in DICE.items():
        # the first is one number per data set, and doing nothing is best in the second
        arrow = " ↓" if name == "dice_loss/label_generated" else ""
        table.add_column(f"Dice loss\n{title}{arrow}", justify="right")
    for title in CLASS.values():
        table.add_column(f"{title} ↑", justify="right")
    for record in [*controls, first, *trained]:
        for i, (name, scores) in enumerate(rows(record) if record is first else [last_row(record)]):
            drawn = [_number(scores, f"test/{score}") for score in CLASS]
            matched = [_number(scores, f"test/matched/{score}") for score in CLASS]
            table.add_row(
                name,
                given(record) if i == 0 or record is not first else "",
                *(_number(scores, f"test/{loss}") for loss in DICE),
                *(f"{a}\n{b}" for a, b in zip(drawn, matched, strict=True)),
            )
    return table


def last_row(record: Mapping[str, Any]) -> tuple[str, Mapping[str, float]]:
    """The answer of a rival under its own name."""
    return record["method"], record["scores"]


def given(record: Mapping[str, Any]) -> str:
    """What a method was given, in words."""
    labels, images = record["given"]["labels"], record["given"]["images"]
    if not labels:
        return "nothing"
    if record["data"].get("per_image"):
        return f"{labels} image{'s' * (labels > 1)}\nand their classes"
    maps = f"{labels} label map{'s' * (labels > 1)}"
    return f"{maps}\nand {'their profiles' if labels > 1 else 'its profile'}" if images else f"{maps} alone"


def further(record: Mapping[str, Any]) -> list[str]:
    """What a method's scores say that a table of label maps has no room for, a line each."""
    lines = []

    def number(name: str) -> str:
        return _number(record["scores"], f"test/{name}")

    if "test/regions/count" in record["scores"]:
        each, once = (
            f"mean IoU {number(f'regions/{way}/iou')}, pixel accuracy {number(f'regions/{way}/accuracy')}"
            for way in ("per_image", "once")
        )
        lines.append(
            f"its {number('regions/count')} regions per picture have no names, so that the table says little of them; "
            f"matched to the classes of every picture {each}, once for all pictures {once}"
        )
    if "test/uncertainty/own/auroc" in record["scores"]:
        alone = record["members"]["alone/iou/mean"]
        lines.append(
            f"mean IoU of its {len(alone)} members, each alone, {sum(alone) / len(alone):.3f}, of their mean "
            f"{number('iou/mean')}; their variance ranks wrong pixels with AUROC {number('uncertainty/own/auroc')}, "
            f"one member's entropy with {number('uncertainty/one_member/auroc')} (0.5 is a coin); calibration error "
            f"{number('calibration/error')}"
        )
    return lines


def print_run(records: Sequence[Mapping[str, Any]], folder: Path, console: Console | None = None) -> None:
    """Prints the table of a run and where everything was written."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=max(120, console.width), file=console.file)
    first = records[0]
    if any(name.startswith("test/") for name in first["scores"]):
        console.print(main_table(records))
    else:
        for name, value in first["scores"].items():
            console.print(f"{name:<32} {value:.4f}", highlight=False)
    for record in records:
        for line in further(record):
            console.print(f"{record['method']}: {line}", highlight=False)
    if any("test/uncertainty/own/auroc" in record["scores"] for record in records):
        console.print(
            f"geoseg report {folder.parent} --to FOLDER --uncertainty compares all uncertainties", highlight=False
        )
    if "sam/masks" in first.get("facts", {}):
        facts = first["facts"]
        console.print(
            f"Segment Anything, mean per picture: masks {facts['sam/masks']:.3g}, covered "
            f"{facts['sam/coverage']:.0%}, by the largest {facts['sam/largest']:.0%}"
        )
    runs = folder.parent
    for record in records:
        where = runs / str(record["run_id"])
        lines = [("record", where / "record.json")]
        fit = runs.parent / "fits" / str(record["fit_id"])
        lines += [("trained", fit / "adapter" / file) for file in record.get("adapter", [])]
        lines += [("samples", fit / "samples")] * (fit / "samples").is_dir()
        if record["scores"].keys() & {"test/iou/mean"}:
            lines.append(("label maps", where / "predictions" / "labels"))
        if record["scores"].keys() & {"test/accuracy/image"}:
            lines.append(("classes", where / "predictions" / "classes.csv"))
        lines += [(f"figure {Path(figure).stem}", where / figure) for figure in record.get("figures", [])]
        console.print(record["method"], style="bold", highlight=False)
        for what, path in lines:
            console.print(f"  {what:<16} {path}", soft_wrap=True, highlight=False)
    # methods that share a training were trained once
    trained = {record["fit_id"]: record["minutes"]["fit"] for record in records if "evaluates" not in record}
    training = sum(trained.values())
    minutes = training + sum(record["minutes"]["predict"] + record["minutes"]["score"] for record in records)
    console.print(f"{minutes:.1f} minutes in all, {training:.1f} of them training", highlight=False)


def stage_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a record's scores: a row per stage, and one for the answer."""
    columns = [name for name in record["scores"] if name.startswith("test/")]
    named = {**record["stages"], record["method"]: record["scores"]}
    return ["stage", *columns], [[stage, *(scores.get(name) for name in columns)] for stage, scores in named.items()]


COSTS = ("trainable_parameters", "decoder_parameters", "parameters", "ms_per_image", "fit_bytes", "predict_bytes")
"""What a run keeps of what its method takes beside minutes; records of earlier versions do not have it."""

COLUMNS = (
    "run_id",
    "experiment",
    "method",
    "stage",
    "data",
    "num_train",
    "train",
    "seed",
    "checkpoints",
    "status",
    "commit",
    "device",
    "minutes",
    *COSTS,
    "settings",
)


NAMES_IN_A_CELL = 100
"""Spreadsheets cut cells at 32 767 characters, which 10 000 training pictures are far above."""


def result_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A record as rows of results.csv, one per stage and one for the answer of a method without stages."""
    facts = {
        "run_id": record["run_id"],
        "experiment": record["experiment"],
        "method": record["method"],
        "data": record["data"]["name"],
        "num_train": record["num_train"],
        "train": _told(record["data"]["train"]),
        "seed": record["seed"],
        "checkpoints": record["checkpoints"]["kind"],
        "status": record["status"],
        "commit": record["commit"],
        "device": record["device"],
        "minutes": round(sum(record.get("minutes", {}).values()), 3),
        **{name: record.get("costs", {}).get(name) for name in COSTS},
    }
    if record["status"] != "done":
        return [{**facts, "stage": ""}]
    made = []
    for stage, scores in rows(record):
        numbers = {name.removeprefix("test/"): value for name, value in scores.items() if name.startswith("test/")}
        made.append({**facts, "stage": stage if record["stages"] else "", **numbers})
    return made


def _told(names: Sequence[str]) -> str:
    """Names for one cell of a table, or how many and a digest where they would be too long for one."""
    if len(names) <= NAMES_IN_A_CELL:
        return " ".join(names)
    return f"{len(names)} names in record.json, SHA-256 {hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]}"


class Found(NamedTuple):
    """A record and the folder of the run that left it."""

    folder: Path
    record: dict[str, Any]

    @property
    def fit(self) -> Path:
        """The folder of the training that the run scored; runs share it, and it need not exist."""
        return self.folder.parent.parent / "fits" / str(self.record["fit_id"])


def find(folders: Iterable[Path]) -> list[Found]:
    """Every run below the given folders, once each, sorted by experiment, method, seed and identity."""
    found = []
    collects = gc.isenabled()
    gc.disable()  # records are millions of small objects without a circle: looking for one doubles the time
    try:
        for top in folders:
            for folder, below, files in os.walk(top):
                if "record.json" in files:
                    below.clear()  # a run holds no other run, but thousands of pictures
                    record = read_record(Path(folder))
                    assert record is not None
                    found.append(Found(Path(folder), record))
    finally:
        if collects:
            gc.enable()
    each: dict[str, Found] = {}
    for one in sorted(found, key=lambda one: _place(one.record)):
        each.setdefault(one.record["run_id"], one)  # one that stands in several experiments says the same in each
    return list(each.values())


def _place(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["experiment"], record["method"], record["data"]["train"], record["seed"], record["run_id"]


def collect(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Every record below the given folders, in the order of ``find``."""
    return [one.record for one in find(folders)]


def write_results(
    records: Sequence[Mapping[str, Any]], path: Path, settings: Sequence[str] = (), keys: Sequence[str] = ()
) -> Path:
    """Writes results.csv from records.

    Args:
        records: a row per stage of each.
        path: the file.
        settings: a column of that name, one entry per record: how it differs from others of its name.
        keys: settings that get a column of their own, by their full names, such as "data.select".
    """
    keys = [key for key in keys if key.removeprefix("data.") not in COLUMNS]
    told = settings or [""] * len(records)
    lines = []
    for record, said in zip(records, told, strict=True):
        flat = dict(flattened(record.get("config", {}))) if keys else {}
        asked = {key: flat[key] for key in keys if key in flat}
        lines += [{**row, "settings": said, **asked} for row in result_rows(record)]
    scores = sorted({name for row in lines for name in row} - {*COLUMNS, *keys})
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *keys, *scores], lineterminator="\n")
    writer.writeheader()
    for row in lines:
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
    write_atomically(path, text.getvalue())
    return path


def put_between(readme: Path, marks: str, table: str) -> Path:
    """Puts a table where a README.md has the lines ``<!-- marks -->`` and ``<!-- end of marks -->``.

    Raises:
        ValueError: the file has no such lines.
    """
    text = readme.read_text(encoding="utf-8")
    first, last = f"<!-- {marks} -->\n", f"<!-- end of {marks} -->"
    if first not in text or last not in text:
        raise ValueError(f"{readme} needs the lines {first.strip()!r} and {last!r} around its {marks}")
    before, rest = text.split(first, 1)
    after = rest.split(last, 1)[1]
    write_atomically(readme, before + first + "\n" + table + "\n" + last + after)
    return readme


class Grid(NamedTuple):
    """Runs of one method over two settings.

    Attributes:
        method: whose runs they are.
        scores: values of both settings to the mean of every score over runs.
        folders: values of both settings to the folder of one run, that of the lowest seed.
    """

    method: str
    scores: dict[tuple[Any, Any], dict[str, float]]
    folders: dict[tuple[Any, Any], Path]


MAPPED = {
    "test/dice_loss/label_generated": "Dice loss label–generated",
    "test/matched/iou/mean": "matched mean IoU",
    "test/matched/boundary_f1/mean": "matched boundary F1",
    "sam/masks": "masks per picture",
    "sam/coverage": "share under masks",
}
"""Scores and facts that are drawn over two settings."""


def grids(records: Sequence[Mapping[str, Any]], runs: Mapping[str, Path], keys: tuple[str, str]) -> list[Grid]:
    """Sorts finished, tested runs by the values of two settings, method by method.

    Args:
        records: of a sweep.
        runs: run id to its folder.
        keys: the settings' full names, such as method.predictor.strength.

    Raises:
        ValueError: no run has these settings; with the nearest names.
    """
    found: dict[str, dict[tuple[Any, Any], list[Mapping[str, Any]]]] = {}
    known: set[str] = set()
    for record in records:
        if record["status"] != "done" or "units" not in record:
            continue
        flat = dict(flattened(record["config"]))
        known |= flat.keys()
        if flat.get(keys[0]) is not None and flat.get(keys[1]) is not None:
            found.setdefault(record["method"], {}).setdefault((flat[keys[0]], flat[keys[1]]), []).append(record)
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            raise ValueError(f"no finished run has the setting {key}" + (f"; did you mean {near[0]}?" if near else ""))
    made = []
    for method, cells in found.items():
        scores: dict[tuple[Any, Any], dict[str, float]] = {}
        for pair, members in cells.items():
            numbers = [{**member["scores"], **member.get("facts", {})} for member in members]
            values = {
                title: [one[name] for one in numbers if one.get(name) is not None] for name, title in MAPPED.items()
            }
            scores[pair] = {title: fmean(some) for title, some in values.items() if some}
        first = {pair: min(members, key=lambda one: one["seed"]) for pair, members in cells.items()}
        made.append(Grid(method, scores, {pair: runs[one["run_id"]] for pair, one in first.items()}))
    return made


def flattened(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Full names and values of all settings that are no mapping."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from flattened(value, f"{where}.{name}" if where else str(name))
    else:
        yield where, tuple(node) if isinstance(node, list) else node


def write_cards(folders: Mapping[str, Path], assets: Path) -> list[Path]:
    """Says where embedded checkpoints come from: ``cards/<experiment>.json`` and the tables in README.md.

    The table has a row for every card there is, those of other trainings included. Below stand the summaries of
    ``cards/examination.json`` and ``cards/probe.json``, where these are.

    Args:
        folders: name of a part, as the table calls it, to the folder of the run that trained it.
        assets: the folder of embedded checkpoints; its README.md has the marks for the table.

    Returns:
        The files written.

    Raises:
        ValueError: a run has no record or is not finished.
    """
    written = []
    for part, folder in folders.items():
        record = read_record(folder)
        if record is None or record["status"] != "done":
            raise ValueError(f"{folder} holds no finished run; train {part} first")
        fit = record["config"]["method"]["task"]["fit"]
        steps = fit.get("steps") or fit["epochs"] * fit["repeats"] * -(-record["num_train"] // fit["batch_size"])
        card = {
            "part": part,
            **{
                name: record[name]
                for name in ("experiment", "run_id", "commit", "dirty", "device", "precision", "seed")
            },
            "minutes": record["minutes"]["fit"],
            "steps": steps,
            "batch_size": fit["batch_size"],
            "source": record["config"]["data"]["source"],
            "scores": record["scores"],
        }
        path = assets / "cards" / f"{record['experiment']}.json"
        write_atomically(path, json.dumps(card, indent=1) + "\n")
        written.append(path)
    lines = ["| part | experiment | training | commit | validation |", "|---|---|---|---|---|"]
    for path in sorted((assets / "cards").glob("*.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        if "part" in card:
            scores = ", ".join(f"{name.removeprefix('val/')} {value:.4g}" for name, value in card["scores"].items())
            training = f"{card['steps']} steps of {card['batch_size']}, {card['minutes']:.0f} minutes, {card['device']}"
            code = f"`{card['commit']}`{' with changes' * card['dirty']}"
            lines.append(f"| {card['part']} | `{card['experiment']}` | {training} | {code} | {scores} |")
        else:  # an examination
            summary = [f"| {name} | {value:.3f} |" for name, value in card["summary"].items()]
            text = "\n".join(["| on held-out pictures | |", "|---|---|", *summary]) + "\n"
            put_between(assets / "README.md", path.stem, text)
    written.append(put_between(assets / "README.md", "table", "\n".join(lines) + "\n"))
    return written


def _number(scores: Mapping[str, float | None], name: str) -> str:
    value = scores.get(name)
    return "-" if value is None else f"{value:.3f}"
