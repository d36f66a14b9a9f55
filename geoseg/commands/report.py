"""geoseg report: records as tables, figures and a page."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.commands.shell import prepared

if TYPE_CHECKING:
    from geoseg.losses import Curve
    from geoseg.page import Table
    from geoseg.report import Found

Records = Sequence[Mapping[str, Any]]
Drawn = tuple[str, list[Path]]
"""A figure's title and its files."""


def command(words: list[str]) -> int:
    """Gathers records."""
    parser = _parser()
    try:
        options = parser.parse_args(words)
    except argparse.ArgumentError as error:
        wanted = {
            "--compare": "two rows of the table by their names, such as --compare 'label LoRA: pass 2' 'without LoRA'; "
            "the table that geoseg report writes names them in its column method",
            "--map": "two settings of a sweep, such as --map method.predictor.strength method.predictor.guidance",
        }
        cure = wanted.get(error.argument_name or "")
        told = f"{error.argument_name} takes {cure}" if cure else str(error)
        print(f"geoseg report: {told}", file=sys.stderr)
        return 2
    if options.to is None:
        print(
            "geoseg report: --to is missing, the folder that results.csv and figures are written to, such as\n"
            f"  geoseg report {' '.join(words)} --to summary",
            file=sys.stderr,
        )
        return 2
    if options.by and not options.over:
        parser.error("--by needs --over")
    from geoseg.report import find, write_results
    from geoseg.summary import settings

    runs = find(Path(folder) for folder in options.runs)
    if not runs:
        print(f"geoseg report: no record.json below {', '.join(options.runs)}", file=sys.stderr)
        return 2
    records = [run.record for run in runs]
    folder = Path(options.to)
    asked = [key for key in (options.over, options.by) if key]
    print(f"{len(records)} records -> {write_results(records, folder / 'results.csv', settings(records), asked)}")
    try:
        _write_tables(options, records, folder / "README.md")
        if options.map:
            for path in _draw_maps(records, [Path(runs) for runs in options.runs], tuple(options.map), folder):
                print(f"figure -> {path}")
        _write_files(options, records, folder)
        read_anew = options.sheet is not None or options.features
        if (
            options.mixtures
            or options.figures
            or options.over
            or options.html
            or options.distance is not None
            or read_anew
        ):
            _draw(options, runs, folder)
    except ValueError as error:
        print(f"geoseg report: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "geoseg report",
        description="Gathers records: one row per run and stage in FOLDER/results.csv, and a summary table over runs. "
        "Where FOLDER holds a README.md, the table replaces what stands there between the lines "
        "'<!-- table -->' and '<!-- end of table -->'; otherwise it is printed.",
        exit_on_error=False,
    )
    parser.add_argument("runs", nargs="+", help="folders to search for record.json")
    parser.add_argument("--to", metavar="FOLDER", help="where results.csv is written")
    parser.add_argument(
        "--map",
        nargs=2,
        metavar=("X", "Y"),
        help="two settings of a sweep, such as method.predictor.strength method.predictor.guidance: draws heat maps of "
        "the scores over them, and sheets of what came of a profile, as PNG files in FOLDER",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        action="append",
        metavar=("A", "B"),
        default=[],
        help="two rows of the table by their names, such as 'label LoRA: pass 2' 'without LoRA: pass 2': the "
        "difference of their scores with a 95 %% interval over profiles, between '<!-- comparisons -->' and "
        "'<!-- end of comparisons -->' in README.md or printed; may be given several times",
    )
    parser.add_argument("--tex", action="store_true", help="the summary as LaTeX too, FOLDER/table.tex (booktabs)")
    parser.add_argument(
        "--csv",
        action="store_true",
        help="the summary as CSV too, FOLDER/table.csv: mean, deviation, 95 %% interval and n of every score",
    )
    parser.add_argument(
        "--figures",
        action="store_true",
        help="losses and learning rates of all trainings, cost against score, and scores of single profiles, as PNG "
        "and PDF in FOLDER",
    )
    parser.add_argument(
        "--costs",
        action="store_true",
        help="a second table, what methods cost: minutes, parameters, milliseconds per image, memory; between "
        "'<!-- costs -->' and '<!-- end of costs -->' in README.md or printed",
    )
    parser.add_argument(
        "--domains",
        action="store_true",
        help="what methods take, and what they reach on the data they were trained on and on those they were evaluated "
        "on besides (geoseg evaluate name=EXPERIMENT); between '<!-- domains -->' and '<!-- end of domains -->' in "
        "README.md or printed",
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="whether methods know where they are wrong, and what an ensemble gains by its members; between "
        "'<!-- uncertainty -->' and '<!-- end of uncertainty -->' in README.md or printed",
    )
    parser.add_argument(
        "--mixtures",
        action="store_true",
        help="what classifiers learnt from mixtures of real and generated pictures: a table with differences to all "
        "real ones and to each real part alone, between '<!-- mixtures -->' and '<!-- end of mixtures -->' in "
        "README.md or printed, and figures, FOLDER/mixtures and FOLDER/mixture_curves",
    )
    parser.add_argument(
        "--sheet",
        nargs="*",
        metavar="PROFILE",
        help="image, label, and every method's label map and errors of these test profiles, or of four, side by side: "
        "FOLDER/results.png, one per data set",
    )
    parser.add_argument(
        "--features",
        action="store_true",
        help="what training did to an encoder: its features of the first test profiles before and after, as colours, "
        "one figure per method and data set, FOLDER/features.png",
    )
    parser.add_argument(
        "--distance",
        nargs="?",
        type=float,
        const=math.nan,  # no number: the nearest training profile
        metavar="NUMBER",
        help="scores of profiles over their distance from the training data, by the last number in their names, such "
        "as 199 in test2_199: from the nearest training profile of the same name but for that number, or from NUMBER",
    )
    parser.add_argument(
        "--over",
        metavar="KEY",
        help="num_train or a setting, such as data.num_train: draws the scores over it, and says whether the loss of a "
        "training tells how good its answers are, between '<!-- correlation -->' and '<!-- end of correlation -->' in "
        "README.md or printed",
    )
    parser.add_argument("--by", metavar="KEY", help="with --over: a line per value of a second setting")
    parser.add_argument(
        "--html",
        action="store_true",
        help="everything, figures as well, as one page that needs neither server nor network, FOLDER/report.html",
    )
    parser.add_argument(
        "--sheets", type=int, default=24, metavar="N", help="image sheets of at most N runs on the page (24)"
    )
    return parser


def _write_tables(options: argparse.Namespace, records: Records, readme: Path) -> None:
    """The tables that were asked for, and those that the records or the folder call for, in README.md or printed."""
    from geoseg.report import put_between
    from geoseg.summary import (
        COST_NOTE,
        DOMAIN_NOTE,
        DOUBT_NOTE,
        QUOTED_NOTE,
        REGION_NOTE,
        comparisons,
        cost_cells,
        domain_cells,
        doubt_cells,
        quoted_cells,
        region_cells,
        summary,
    )

    tables = {"table": summary(records)}
    if options.compare:
        tables["comparisons"] = comparisons(records, options.compare)
    if options.costs:
        tables["costs"] = _noted(*cost_cells(records), COST_NOTE)
    if options.domains:
        tables["domains"] = _noted(*domain_cells(records), DOMAIN_NOTE)
    if options.uncertainty:
        tables["uncertainty"] = _noted(*doubt_cells(records), DOUBT_NOTE)
    # nobody asked for the other two by an option, so that a README.md need not have room for them
    if any("test/regions/count" in record.get("scores", {}) for record in records):
        found = _noted(*region_cells(records), REGION_NOTE)
        if _has_room(readme, "regions"):
            tables["regions"] = found
        else:
            print(found)
    published = readme.with_name("published.csv")
    if published.is_file():
        quoted = _noted(*quoted_cells(published, records), QUOTED_NOTE)
        if _has_room(readme, "published"):
            tables["published"] = quoted
        else:
            print(quoted)
    for marks, table in tables.items():
        print(f"{marks} -> {put_between(readme, marks, table)}" if readme.is_file() else table)


def _write_files(options: argparse.Namespace, records: Records, folder: Path) -> None:
    """The summary for papers and for programs."""
    from geoseg import latex
    from geoseg.record import write_atomically
    from geoseg.summary import summary_cells, write_spread

    if options.tex:
        write_atomically(folder / "table.tex", latex.table(*summary_cells(records), texts=4))
        print(f"table -> {folder / 'table.tex'}")
    if options.csv:
        print(f"table -> {write_spread(records, folder / 'table.csv')}")


def _draw(options: argparse.Namespace, runs: Sequence[Found], folder: Path) -> None:
    """Figures, with the correlation of losses and scores, and the page that holds all."""
    from geoseg.losses import final_losses, read_curves

    records = [run.record for run in runs]
    trainings = {run.record["fit_id"]: run for run in reversed(runs) if "fit_id" in run.record}
    curves = {fit: read_curves(run.fit / "metrics.jsonl") for fit, run in reversed(trainings.items())}
    losses = {fit: final_losses(logged) for fit, logged in curves.items() if logged}
    drawings: list[Drawn] = []
    tables: list[Table] = []
    if options.over:
        drawings += _draw_over(options, records, losses, folder)
        tables.append(_correlation(records, losses, folder / "README.md"))
    if options.mixtures:
        tables.append(_mixtures(records, curves, folder, drawings))
    if options.figures or options.html:
        drawings += _draw_costs_and_scores(records, folder)
        drawings += _draw_trainings({fit: trainings[fit].record["method"] for fit in losses}, curves, folder)
    if options.distance is not None:
        drawings.append(_draw_distances(records, options.distance, folder))
    if options.sheet is not None:
        from geoseg.sheet import draw_sheets

        drawings += [(title, [path]) for title, path in draw_sheets(runs, folder, options.sheet)]
    if options.features:
        prepared()  # a model is loaded
        from geoseg.features import draw_adaptation

        drawings += [(title, [path]) for title, path in draw_adaptation(runs, folder)]
    for _, files in drawings:
        print(f"figure -> {', '.join(map(str, files))}")
    if options.html:
        print(f"page -> {_write_page(options, runs, losses, tables, drawings, folder)}")


def _draw_over(
    options: argparse.Namespace, records: Records, losses: Mapping[str, Mapping[str, float]], folder: Path
) -> list[Drawn]:
    """Scores over a setting."""
    from geoseg.ablation import ablations
    from geoseg.charts import draw_ablations

    made = ablations(records, losses, options.over, options.by)
    return draw_ablations(made, folder, options.over.rpartition(".")[2])


def _mixtures(
    records: Records, curves: Mapping[str, Mapping[str, Curve]], folder: Path, drawings: list[Drawn]
) -> Table:
    """The table of mixtures, in README.md or printed, for the page too; their figures are added to ``drawings``."""
    from geoseg.charts import draw_mixture_curves, draw_mixture_shares
    from geoseg.mixtures import NOTE, mixture_cells, mixtures
    from geoseg.page import Table
    from geoseg.report import put_between

    found = mixtures(records, curves)
    head, rows = mixture_cells(found)
    text = _noted(head, rows, NOTE)
    if _has_room(folder / "README.md", "mixtures"):
        print(f"mixtures -> {put_between(folder / 'README.md', 'mixtures', text)}")
    else:
        print(text)
    drawings.append(("Real and generated pictures", draw_mixture_shares(found, folder / "mixtures")))
    if files := draw_mixture_curves(found, folder / "mixture_curves"):
        drawings.append(("Losses and accuracies over epochs", files))
    return Table("Real and generated pictures", head, rows, NOTE)


def _correlation(records: Records, losses: Mapping[str, Mapping[str, float]], readme: Path) -> Table:
    """Whether a training's loss tells how good its answers are, in README.md or printed; for the page too."""
    from geoseg.ablation import CORRELATION_NOTE, correlations
    from geoseg.page import Table
    from geoseg.report import put_between

    head, rows = correlations(records, losses)
    text = _noted(head, rows, CORRELATION_NOTE)
    if _has_room(readme, "correlation"):
        print(f"correlation -> {put_between(readme, 'correlation', text)}")
    else:
        print(text)
    return Table("Loss and score", head, rows, CORRELATION_NOTE)


def _draw_costs_and_scores(records: Records, folder: Path) -> Iterator[Drawn]:
    """What methods cost against their scores, and the scores of single profiles."""
    from geoseg.charts import MEASURES, costs, draw_costs, draw_spreads, spreads

    for measure, title in MEASURES.items():
        if found := costs(records, measure):
            stem = folder / ("cost" if measure == "minutes" else f"cost_{measure}")
            yield f"Cost and score: {title}", draw_costs(found, stem, measure)
    if scattered := spreads(records):
        yield "Scores of single profiles", draw_spreads(scattered, folder / "spread")


def _draw_trainings(
    methods: Mapping[str, str], curves: Mapping[str, Mapping[str, Curve]], folder: Path
) -> Iterator[Drawn]:
    """Losses and learning rates of the trainings that have logged some; ``methods`` says whose they are."""
    from geoseg.charts import draw_losses

    by_method: dict[str, list[Mapping[str, Curve]]] = {}
    for fit, method in methods.items():
        by_method.setdefault(method, []).append(curves[fit])
    if by_method:
        yield "Losses and learning rates", draw_losses(by_method, folder / "losses")


def _draw_distances(records: Records, start: float, folder: Path) -> Drawn:
    """Scores over the distance from the training data, or from a number where it is one."""
    from geoseg.charts import draw_distances, spreads

    placed = spreads(records, None if math.isnan(start) else start)
    return "Distance from the training data", draw_distances(placed, folder / "distance")


def _write_page(
    options: argparse.Namespace,
    runs: Sequence[Found],
    losses: Mapping[str, Mapping[str, float]],
    tables: Sequence[Table],
    drawings: Sequence[Drawn],
    folder: Path,
) -> Path:
    """Everything as one page."""
    from geoseg.page import Drawing, Table, write_page
    from geoseg.summary import COST_NOTE, comparison_cells, cost_cells, summary_cells, summary_note

    records = [run.record for run in runs]
    summaries = [Table("Means over runs", *summary_cells(records), summary_note(records))]
    if options.compare:
        summaries.append(Table("Comparisons", *comparison_cells(records, options.compare)))
    summaries.append(Table("What it costs", *cost_cells(records), COST_NOTE))
    pictures = [Drawing(title, files[0]) for title, files in drawings]
    return write_page(folder / "report.html", runs, losses, [*summaries, *tables], pictures, options.sheets)


def _draw_maps(records: Records, runs: Sequence[Path], keys: Any, folder: Path) -> Iterator[Path]:
    """A heat map per method, and for every method that draws a sheet of its first profile per stage."""
    from geoseg.figures import draw_map, draw_sheet
    from geoseg.report import grids

    places = {path.parent.name: path.parent for root in runs for path in root.rglob("record.json")}
    short = tuple(key.rpartition(".")[2] for key in keys)
    for grid in grids(records, places, keys):
        name = grid.method.replace(" ", "_").lower()
        yield draw_map(grid.scores, short, folder / f"map_{name}.png", f"{grid.method}, last stage")
        first = next(iter(grid.folders.values())) / "predictions"
        for stage in sorted(path for path in first.glob("*") if path.name != "labels"):
            picture = min(stage.iterdir()).name
            files = {pair: place / "predictions" / stage.name / picture for pair, place in grid.folders.items()}
            there = {pair: file for pair, file in files.items() if file.is_file()}
            title = f"{grid.method}, {stage.name.replace('_', ' ')}, {picture.removesuffix('.png')}"
            yield draw_sheet(there, short, folder / f"sheet_{name}_{stage.name}.png", title)


def _noted(head: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    """A table in Markdown, and below it what the numbers are."""
    from geoseg.summary import markdown

    return "\n".join([*markdown(head, rows), "", note]) + "\n"


def _has_room(readme: Path, marks: str) -> bool:
    """Whether there is a README.md with these marks for a table."""
    return readme.is_file() and f"<!-- {marks} -->" in readme.read_text(encoding="utf-8")
