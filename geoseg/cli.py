"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import math
import os
import re
import sys
import tempfile
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

USAGE = """\
geoseg: which way of segmenting my profiles works, with the few labels I have?

  geoseg demo                         the main job on embedded checkpoints and synthetic profiles, offline
  geoseg run experiment=label_lora    train, predict, score, record
  geoseg run --help                   groups and settings; with experiment=... before it, those of that experiment
  geoseg run -m ... seed=0,1,2        one run per combination; repeated, it does what is left; workers=2 shares the work
  geoseg compare data=...             which method with how many labels: all of them, planned, run and ranked
  geoseg status [runs]                what is done, failed, running or interrupted
  geoseg report runs --to FOLDER      gather records into results.csv and one table
  geoseg evaluate run=RUN data=...    score what a run has trained on other data
  geoseg predict run=RUN input=... output=...  label maps of profiles without any: pictures, a folder, SEG-Y
  geoseg export RUN --to FILE         a run's LoRA as a file for A1111, ComfyUI, kohya or diffusers
  geoseg sync RUN ...                 a run in Weights & Biases, anew from its files; a whole experiment's summary
  geoseg doctor                       what this machine has and lacks, and the line that repairs it
  geoseg fetch checkpoints=hub        what the real checkpoints are and whether they are here; --yes fetches them

geoseg COMMAND --help tells more. Results go to the folder runs.
"""


DEMO = """\
geoseg demo [key=value ...]

The main job on checkpoints and ground that travel with geoseg: a LoRA learns from four painted label maps, eight
profiles are redrawn with it and refined, and everything is scored beside two controls and a U-Net. No network, no GPU;
two to six minutes on two cores. It is short for

  geoseg run experiment=label_lora data=synthetic checkpoints=demo trainer=auto

and takes the same settings, such as seed=1, data.num_train=2 or method.predictor.strength=0.4; see
geoseg run experiment=label_lora --help. Records and figures go to the folder runs.
"""


EVALUATE = """\
geoseg evaluate run=RUN [data=... data.root=... key=value ...]

Scores what a finished run has trained on other data, with its predictor and without training: all samples that have a
label map, or the test set where the data prescribes one. Pictures that the run was trained on are left out. It leaves a
record of its own in runs/evaluate, or in runs/NAME with name=NAME; classes have to be those of the run. Without data=
it shows what the run recorded; with force=true besides, it predicts the run's own test set anew.

RUN is a run's folder, or its id or the beginning of it below runs=FOLDER. Other settings it takes are those of data,
trainer and logger, such as trainer=cpu or logger=files, and name, tags, force, progress, figure_rows, foresee, trust;
method.model.path_or_id=FOLDER and the like say where a checkpoint of the method lies now.

  geoseg evaluate run=32d1375255 data=profiles data.root=FOLDER name=other_survey
"""


PREDICT = """\
geoseg predict run=RUN input=FILE|FOLDER output=FOLDER [key=value ...]

Labels profiles that nobody has labelled, by the method of a finished run. The input is a picture, a SEG-Y file (.sgy,
.segy), or a folder of them. FOLDER gets labels/NAME.png (class indices in the palette's colours, 255 where there is no
trace), overlays/NAME.png and manifest.json, which says "unfinished" until all is there. The same command goes on where
an interrupted one stopped; a folder that holds something else is refused.

  probs=true uncertainty=true   both as numbers (.npy) and as a grey picture, black 0 and white 1
  every=10                      every tenth section of a SEG-Y volume
  direction=crossline           its crosslines in place of its inlines
  points=[[111,875],[133,892]]  one line through these corners, [inline,crossline]
  inline_byte=9 crossline_byte=21   where trace headers hold the numbers (189 and 193)
  endian=little                 the other order of bytes
  ignore_geometry=true          a 2-D line: all traces in the order of the file
  clip=98 per=section grey_range=[-5000,5000] turn=true   from amplitudes to greys, where the run's rule is not meant
  tile=512 overlap=0.25         large pictures in blended tiles
  batch=4 seed=1 accelerator=cpu progress=false runs=FOLDER trust=[PACKAGE]

RUN is a run's folder, or its id or the beginning of it; method.model.path_or_id=FOLDER says where a checkpoint lies.

  geoseg predict run=32d1375255 input=survey.sgy output=labelled every=10
"""


COMPARE = """\
geoseg compare [data=... key=value ...] [--dry]

Which method should I use with the labels that I have? Runs every method of experiment=comparison with few to many
labelled images and several seeds, on the same splits and test set, and ranks them. First it says what will be run and
about how long that takes, from earlier runs or from a few steps of each method; --dry stops there. The same command
goes on where an interrupted one stopped, and repeats nothing that is finished.

  methods=unet,dinov2_mla       some methods, as method=... of geoseg run names them; otherwise those of the experiment
  num_train=1,2,4               numbers of labelled images; those that the data set does not have are left out
  seeds=5                       so many seeds, from 0 on
  baseline=unet                 what the others are compared with; otherwise the best of each number of images
  to=FOLDER                     where ranking, figures, sheet and page go; otherwise runs/comparison/report/DATA

Other settings are those of geoseg run, such as data.root=FOLDER, checkpoints=hub, trainer=cpu, workers=2, name=mine;
method.KEY=VALUE holds for all methods trained in steps, such as method.task.fit.steps=200 for trainings of one length.
Where a data set prescribes no split, a quarter of it is kept for the test, unless data.num_test says how many.

  geoseg compare data=profiles data.root=FOLDER num_train=1,2,4,8 seeds=3 workers=2
"""


FETCH = """\
geoseg fetch [checkpoints=hub] [--yes] [key=value ...]

Lists what a choice of checkpoints needs from elsewhere, with revision, licence and size, and whether it is here. With
--yes it is fetched from the Hugging Face hub, the files that geoseg reads and no others, so that a node without
internet can run with HF_HUB_OFFLINE=1. Segment Anything's file you fetch yourself: its address and checksum are shown,
and a file that checkpoints.sam.path=FILE names is compared with them.
"""


# Threads of PyTorch wait this long, some 20 microseconds, before they sleep, unless the user says otherwise. A step of
# a small network is thousands of short pieces; with threads that sleep at once two cores take three times as long as
# one, and with threads that never sleep two runs at a time stand in each other's way. Read when PyTorch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {
        "run": _run,
        "demo": _demo,
        "evaluate": _evaluate,
        "predict": _predict,
        "report": _report,
        "export": _export,
        "sync": _sync,
        "doctor": _doctor,
        "fetch": _fetch,
        "status": _status,
        "compare": _compare,
    }
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"geoseg {version('geoseg')}")
        return 0
    if words[0] not in commands:
        near = difflib.get_close_matches(words[0], commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(commands)}"
        print(f"geoseg: no command {words[0]!r}; {hint}", file=sys.stderr)
        return 2
    try:
        code = commands[words[0]](words[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our words, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _demo(words: list[str]) -> int:
    """The main job with its defaults spelt out."""
    if any(word in ("-h", "--help") for word in words):
        print(DEMO)
        return 0
    return _run(["experiment=label_lora", "data=synthetic", "checkpoints=demo", "trainer=auto", *words])


def _report(words: list[str]) -> int:
    """Gathers records."""
    parser = argparse.ArgumentParser(
        "geoseg report",
        description="Gathers records: one row per run and stage in FOLDER/results.csv, and a summary table over runs. "
        "Where FOLDER holds a README.md, the table replaces what stands there between the lines "
        "'<!-- table -->' and '<!-- end of table -->'; otherwise it is printed.",
        exit_on_error=False,
    )
    parser.add_argument("runs", nargs="+", help="folders to search for record.json")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="where results.csv is written")
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
    try:
        options = parser.parse_args(words)
    except argparse.ArgumentError as error:
        wanted = {
            "--compare": "two rows of the table by their names, such as --compare 'label LoRA: pass 2' 'without LoRA'; "
            "the table that geoseg report writes names them in its column method",
            "--map": "two settings of a sweep, such as --map method.predictor.strength method.predictor.guidance",
        }
        cure = wanted.get(error.argument_name or "")
        print(f"geoseg report: {f'{error.argument_name} takes {cure}' if cure else error}", file=sys.stderr)
        return 2
    if options.by and not options.over:
        parser.error("--by needs --over")
    from pathlib import Path

    from geoseg.report import find, put_between, write_results
    from geoseg.summary import (
        COST_NOTE,
        DOMAIN_NOTE,
        QUOTED_NOTE,
        REGION_NOTE,
        comparisons,
        cost_cells,
        domain_cells,
        markdown,
        quoted_cells,
        region_cells,
        settings,
        summary,
    )

    runs = find(Path(folder) for folder in options.runs)
    if not runs:
        print(f"geoseg report: no record.json below {', '.join(options.runs)}", file=sys.stderr)
        return 2
    records = [run.record for run in runs]
    folder = Path(options.to)
    asked = [key for key in (options.over, options.by) if key]
    print(f"{len(records)} records -> {write_results(records, folder / 'results.csv', settings(records), asked)}")
    readme = folder / "README.md"
    try:
        tables = {"table": summary(records)}
        if options.compare:
            tables["comparisons"] = comparisons(records, options.compare)
        if options.costs:
            tables["costs"] = "\n".join([*markdown(*cost_cells(records)), "", COST_NOTE]) + "\n"
        if options.domains:
            tables["domains"] = "\n".join([*markdown(*domain_cells(records)), "", DOMAIN_NOTE]) + "\n"
        if any("test/regions/count" in record.get("scores", {}) for record in records):
            found = "\n".join([*markdown(*region_cells(records)), "", REGION_NOTE]) + "\n"
            if readme.is_file() and "<!-- regions -->" in readme.read_text(encoding="utf-8"):
                tables["regions"] = found
            else:
                print(found)
        published = folder / "published.csv"
        if published.is_file():
            cells = quoted_cells(published, records)
            quoted = "\n".join([*markdown(*cells), "", QUOTED_NOTE]) + "\n"
            if readme.is_file() and "<!-- published -->" in readme.read_text(encoding="utf-8"):
                tables["published"] = quoted
            else:  # nobody asked for it by an option, so that a README.md need not have room for it
                print(quoted)
        for marks, table in tables.items():
            print(f"{marks} -> {put_between(readme, marks, table)}" if readme.is_file() else table)
        if options.map:
            for path in _draw_maps(records, [Path(runs) for runs in options.runs], tuple(options.map), folder):
                print(f"figure -> {path}")
        _report_more(options, runs, folder, readme)
    except ValueError as error:
        print(f"geoseg report: {error}", file=sys.stderr)
        return 2
    return 0


def _report_more(options: argparse.Namespace, runs: Any, folder: Any, readme: Any) -> None:
    """What is written on demand: the summary for papers and programs, figures, correlation, page."""
    from geoseg import latex
    from geoseg.record import write_atomically
    from geoseg.report import put_between
    from geoseg.summary import (
        COST_NOTE,
        NOTE,
        comparison_cells,
        cost_cells,
        markdown,
        summary_cells,
        write_spread,
    )

    records = [run.record for run in runs]
    if options.tex:
        write_atomically(folder / "table.tex", latex.table(*summary_cells(records), texts=4))
        print(f"table -> {folder / 'table.tex'}")
    if options.csv:
        print(f"table -> {write_spread(records, folder / 'table.csv')}")
    far = options.distance is not None
    read_anew = options.sheet is not None or options.features
    if not (options.figures or options.over or options.html or far or read_anew):
        return
    from geoseg.ablation import CORRELATION_NOTE, ablations, correlations
    from geoseg.charts import (
        MEASURES,
        costs,
        draw_ablations,
        draw_costs,
        draw_distances,
        draw_losses,
        draw_spreads,
        spreads,
    )
    from geoseg.losses import final_losses, read_curves
    from geoseg.page import Drawing, Table, write_page

    trainings = {run.record["fit_id"]: run for run in reversed(runs) if "fit_id" in run.record}
    curves = {fit: read_curves(run.fit / "metrics.jsonl") for fit, run in reversed(trainings.items())}
    losses = {fit: final_losses(logged) for fit, logged in curves.items() if logged}
    drawings, tables = [], []
    if options.over:
        made = ablations(records, losses, options.over, options.by)
        drawings += draw_ablations(made, folder, options.over.rpartition(".")[2])
        head, rows = correlations(records, losses)
        tables.append(Table("Loss and score", head, rows, CORRELATION_NOTE))
        text = "\n".join([*markdown(head, rows), "", CORRELATION_NOTE]) + "\n"
        if readme.is_file() and "<!-- correlation -->" in readme.read_text(encoding="utf-8"):
            print(f"correlation -> {put_between(readme, 'correlation', text)}")
        else:
            print(text)
    if options.figures or options.html:
        for measure in MEASURES:
            if found := costs(records, measure):
                stem = folder / ("cost" if measure == "minutes" else f"cost_{measure}")
                drawings.append((f"Cost and score: {MEASURES[measure]}", draw_costs(found, stem, measure)))
        if scattered := spreads(records):
            drawings.append(("Scores of single profiles", draw_spreads(scattered, folder / "spread")))
        by_method: dict[str, list[Any]] = {}
        for fit in losses:
            by_method.setdefault(trainings[fit].record["method"], []).append(curves[fit])
        if by_method:
            drawings.append(("Losses and learning rates", draw_losses(by_method, folder / "losses")))
    if far:
        placed = spreads(records, None if math.isnan(options.distance) else options.distance)
        drawings.append(("Distance from the training data", draw_distances(placed, folder / "distance")))
    if options.sheet is not None:
        from geoseg.sheet import draw_sheets

        drawings += [(title, [path]) for title, path in draw_sheets(runs, folder, options.sheet)]
    if options.features:
        from geoseg.features import draw_adaptation

        drawings += [(title, [path]) for title, path in draw_adaptation(runs, folder)]
    for _, files in drawings:
        print(f"figure -> {', '.join(map(str, files))}")
    if options.html:
        summaries = [Table("Means over runs", *summary_cells(records), NOTE)]
        if options.compare:
            summaries.append(Table("Comparisons", *comparison_cells(records, options.compare)))
        summaries.append(Table("What it costs", *cost_cells(records), COST_NOTE))
        pictures = [Drawing(title, files[0]) for title, files in drawings]
        page = write_page(folder / "report.html", runs, losses, [*summaries, *tables], pictures, options.sheets)
        print(f"page -> {page}")


def _draw_maps(records: Any, runs: Any, keys: Any, folder: Any) -> Any:
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


def _status(words: list[str]) -> int:
    """Looks at records and locks."""
    parser = argparse.ArgumentParser(
        "geoseg status",
        description="Says how many runs of each experiment are done, failed, pruned (given up by a search), running (a "
        "live process holds their lock) or interrupted (no finished record, and nobody at it). Reads records and "
        "locks, changes nothing.",
    )
    parser.add_argument("runs", nargs="?", default="runs", help="the folder of runs, or that of one experiment")
    options = parser.parse_args(words)
    from pathlib import Path

    from geoseg.status import look, print_status

    folder = Path(options.runs)
    if not folder.is_dir():
        print(f"geoseg status: there is no folder {folder}; name the one that runs=... names", file=sys.stderr)
        return 2
    print_status(look(folder))
    return 0


EVALUATED = (
    "data",
    "trainer",
    "logger",
    "name",
    "tags",
    "runs",
    "force",
    "trust",
    "progress",
    "figure_rows",
    "foresee",
)
"""Settings, and groups of them, that an evaluation takes; all others are those of the run it evaluates."""


def _evaluate(words: list[str]) -> int:
    """Scores a finished run on other data."""
    if any(word in ("-h", "--help") for word in words):
        print(EVALUATE)
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    from geoseg.config import conf_folder, register_resolvers
    from geoseg.places import DiskFull
    from geoseg.quiet import quieten
    from geoseg.record import find_run

    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    register_resolvers()
    quieten()
    own = _own_folders(words)
    before_each = zip(["", *words], words, strict=False)
    rest = [word for last, word in before_each if last not in OWN and not word.startswith("-")]
    given = {word.partition("=")[0].lstrip("+"): word.partition("=")[2] for word in rest}
    moved = {key: value for key, value in given.items() if key.startswith("method.") and "path" in key}
    overrides = [word for word in rest if word.partition("=")[0] not in ("run", *moved)]
    try:
        if not given.get("run"):
            raise ValueError("which run? run=RUN names its folder, runs/EXPERIMENT/RUN_ID, or its id")
        for key in given.keys() - moved.keys() - {"run"}:
            if key.split(".")[0] not in EVALUATED:
                raise ValueError(
                    f"{key}: an evaluation takes that from the run; leave it away, or train anew with geoseg run. "
                    f"What can be set: {', '.join(EVALUATED)}"
                )
        if "data" not in given and any(key.startswith("data.") for key in given):
            raise ValueError("name the data in full, its group too, such as data=profiles data.root=FOLDER")
        folder, record = find_run(given["run"], given.get("runs", "runs"))
        overrides += ["name=evaluate"] * ("name" not in given) + [f"seed={record['config']['seed']}", "rivals=null"]
        check_overrides(overrides, folders=own)
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            cfg = compose("run", overrides=[*_searching(own), *overrides])

        from geoseg.evaluate import evaluate
        from geoseg.report import print_run

        found, place = evaluate(folder, record, cfg, "data" in given, moved)
    except (HydraException, ValueError, DiskFull) as error:
        print(f"geoseg evaluate: {error}", file=sys.stderr)
        return 4 if isinstance(error, DiskFull) else 2
    print_run([found], place)
    return 0


def _predict(words: list[str]) -> int:
    """Labels profiles without label maps."""
    if not words or any(word in ("-h", "--help") for word in words):
        print(PREDICT)
        return 0 if words else 2
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from geoseg.config import check_types
    from geoseg.places import DiskFull
    from geoseg.quiet import quieten
    from geoseg.signatures import written_types

    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    quieten()
    target = "geoseg.label_maps.label_maps"
    declared = written_types(target)
    moved: dict[str, str] = {}
    settings: dict[str, Any] = {}
    try:
        for word in words:
            key, equals, value = word.partition("=")
            if not equals:
                raise ValueError(f"a setting is typed key=value, such as every=10; got {word!r}")
            if key.startswith("method.") and "path" in key:
                moved[key] = value
            elif key not in declared:
                near = difflib.get_close_matches(key, declared, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(declared)}"
                raise ValueError(f"there is no setting {key}; {hint}")
            elif declared[key] == {str}:  # a path means what it says, whatever letters are in it
                settings[key] = value
            else:
                try:
                    read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([word]))
                except (OmegaConfBaseException, ValueError) as error:
                    raise ValueError(f"cannot read {word!r}: {str(error).splitlines()[0]}") from None
                settings[key] = read[key]
        for key, what in (
            ("run", "which run? run=RUN names its folder, runs/EXPERIMENT/RUN_ID, or its id"),
            ("input", "label what? input=FILE or FOLDER names pictures or SEG-Y"),
            ("output", "where to? output=FOLDER names a new folder"),
        ):
            if not settings.get(key):
                raise ValueError(what)
        check_types({"_target_": target, **settings}, declared=written_types)
        for key, value in settings.items():
            if isinstance(value, dict) or (isinstance(value, list) and list not in declared[key]):
                raise ValueError(f"{key}={value}: one value is wanted")

        from geoseg.label_maps import label_maps

        manifest = label_maps(**settings, moved=moved)
    except (ValueError, DiskFull) as error:
        print(f"geoseg predict: {error}", file=sys.stderr)
        return 4 if isinstance(error, DiskFull) else 2
    except KeyboardInterrupt:
        print("geoseg predict: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    count = len(manifest["sections"])
    print(f"{count} label map{'s' if count > 1 else ''} by {manifest['method']} -> {settings['output']}")
    return 0


def _own_folders(words: Sequence[str]) -> list[str]:
    """What --config-dir names."""
    own = [after for word, after in pairwise(words) if word in OWN]
    return own + [word.partition("=")[2] for word in words if word.partition("=")[0] in OWN and "=" in word]


def _users_folder() -> list[str]:
    """The user's own folder, where settings of a site lie, if there is one; what --config-dir names comes before it."""
    folder = os.path.join(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "geoseg")
    return [folder] if os.path.isdir(folder) else []


def _searching(folders: Sequence[str]) -> list[str]:
    """The setting that makes Hydra look in a user's folders too."""
    return [f"hydra.searchpath=[{','.join(os.path.abspath(folder) for folder in folders)}]"] if folders else []


def _export(words: list[str]) -> int:
    """Writes a LoRA for other programs."""
    parser = argparse.ArgumentParser(
        "geoseg export",
        description="Writes the LoRA that a run trained as one file that other programs load. No model is loaded.",
        epilog="A1111 and ComfyUI look for it in their folder models/Lora or models/loras; a prompt calls it by the "
        "file's name, <lora:NAME:1>. It fits the base model it was trained on, and no other.",
    )
    parser.add_argument(
        "source", metavar="RUN", help="a run's folder, or its id below runs; or an adapter's folder or file"
    )
    parser.add_argument("--to", required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument(
        "--format",
        choices=("kohya", "diffusers"),
        default="kohya",
        help="kohya (default) is read by kohya-ss/sd-scripts, A1111, ComfyUI and diffusers",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="float32 (default) keeps every weight exactly; float16 halves the file and rounds to 1 part in 2000",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE where it exists")
    options = parser.parse_args(words)
    from geoseg.export import export

    try:
        done = export(options.source, options.to, options.format, options.dtype, options.force)
    except (ValueError, OSError) as error:
        print(f"geoseg export: {error}", file=sys.stderr)
        return 2
    modules = done.adapter.modules
    ranks = ", ".join(str(rank) for rank in sorted({module.rank for module in modules}))
    alphas = ", ".join(f"{alpha:g}" for alpha in sorted({module.alpha for module in modules}))
    print(done.path)
    print(f"  {len(modules)} modules, rank {ranks}, alpha {alphas}")
    size = "" if done.adapter.fits_sd1 else "; other programs need that very model, since it is no Stable Diffusion 1"
    print(f"  trained on {done.base}{size}")
    print(f"  in a prompt: <lora:{done.path.stem}:1>")
    return 0


def _compare(words: list[str]) -> int:
    """Plans, runs and reports a comparison of methods."""
    if any(word in ("-h", "--help") for word in words):
        print(COMPARE)
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see _run
    from pathlib import Path

    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    from geoseg.config import conf_folder, register_resolvers
    from geoseg.places import DiskFull
    from geoseg.quiet import quieten

    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    register_resolvers()
    quieten()
    own = _own_folders(words)
    folders = [*own, *_users_folder()]
    before_each = zip(["", *words], words, strict=False)
    rest = [word for last, word in before_each if last not in OWN and not word.startswith("-")]
    asked = {word.partition("=")[0]: word.partition("=")[2] for word in rest if word.partition("=")[0] in COMPARISON}
    others = [word for word in rest if word.partition("=")[0] not in COMPARISON]
    of_methods = [word for word in others if word.lstrip("+~").startswith("method.")]
    base = [word for word in others if word not in of_methods]
    if not any(word.startswith("experiment=") for word in base):
        base.insert(0, "experiment=comparison")

    def composed(method: str, *more: str, hydra: bool = False) -> Any:
        line = [*base, *([f"method={method}"] if method else []), *more]
        try:
            with initialize_config_dir(str(conf_folder()), version_base="1.3"):
                return compose("run", overrides=[*_searching(folders), *line], return_hydra_config=hydra)
        except HydraException:
            check_overrides(line, folders=folders)  # says what is wrong in its own words
            raise

    try:
        unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in ("--dry", *OWN)]
        if unknown:
            raise ValueError(f"there is no option {unknown[0]}; --dry shows the plan and the estimate alone")
        if fixed := [word for word in base if word.partition("=")[0] in ("method", "seed", "data.num_train")]:
            raise ValueError(f"{fixed[0]}: a comparison has several; type methods=..., seeds=..., num_train=...")
        check_overrides(base, folders=folders)
        swept: Any = composed("", hydra=True).hydra.sweeper.params or {}
        if not asked.get("methods", swept.get("method")):
            raise ValueError("which methods? methods=unet,dinov2_mla names them")
        methods = [name.strip() for name in str(asked.get("methods") or swept["method"]).split(",") if name.strip()]
        sizes = sorted(set(_numbers("num_train", asked.get("num_train") or swept.get("data.num_train", 4))))
        seeds = _numbers("seeds", swept.get("seed", 0), least=0)
        if "seeds" in asked:
            seeds = list(range(_numbers("seeds", asked["seeds"])[0]))
        configs = {method: composed(method) for method in methods}
        learning = [method for method in methods if configs[method].method.task is not None]
        trained = [method for method in learning if "fit" in configs[method].method.task]  # the others are tuned

        from geoseg.compare import entries, print_plan, room, speeds, title_of, write_comparison
        from geoseg.ranking import print_ranking

        there = room(configs[methods[0]])
        if there.num_test is not None:
            base.append(f"data.num_test={there.num_test}")
            print(f"{there.title} prescribes no split: {there.num_test} profiles are kept for the test")
        if beyond := [size for size in sizes if size > there.images]:
            what = f"{there.title} has {there.images} labelled images to train on"
            if len(beyond) == len(sizes):
                raise ValueError(f"num_train={','.join(map(str, sizes))}: {what}; ask for 1 to {there.images}")
            print(f"left out: {', '.join(map(str, beyond))} labelled images, since {what}")
            sizes = [size for size in sizes if size not in beyond]

        def configured(method: str, *more: str) -> Any:
            return composed(method, *(of_methods if method in trained else ()), *more)

        if of_methods or there.num_test is not None:
            configs = {method: configured(method) for method in methods}
        planned = entries(configs, sizes, seeds)
        title = title_of(asked.get("baseline"), planned)
        config = configs[methods[0]]
        print_plan(planned, speeds(planned, Path(config.runs), configured), config.workers)
        if "--dry" in words:
            return 0
        codes = [0]
        flags = [option for folder in own for option in ("--config-dir", folder)]
        for those, more, numbers in (
            ([method for method in methods if method not in learning], [], sizes[:1]),
            ([method for method in learning if method not in trained], [], sizes),
            (trained, of_methods, sizes),
        ):
            if all(entry.finished for entry in planned if entry.method in those):
                continue
            line = [f"method={','.join(those)}", f"data.num_train={','.join(map(str, numbers))}"]
            code = _run(["-m", *flags, *base, *more, f"seed={','.join(map(str, seeds))}", *line])
            if code >= 128:  # somebody stopped it
                return code
            codes.append(code)
        place = Path(config.runs) / config.name / "report" / re.sub(r"\W+", "_", there.title)
        places, made = write_comparison(planned, Path(asked.get("to") or place), asked.get("baseline"))
    except (HydraException, ValueError, DiskFull) as error:
        print(f"geoseg compare: {error}", file=sys.stderr)
        return 4 if isinstance(error, DiskFull) else 2
    except KeyboardInterrupt:
        print("geoseg compare: interrupted; the same command goes on with what is left", file=sys.stderr)
        return 130
    print_ranking(places, title)
    for name, files in made.items():
        print(f"{name} -> {', '.join(map(str, files))}")
    return max(codes)


COMPARISON = ("methods", "num_train", "seeds", "baseline", "to")
"""Words of geoseg compare that are no settings of a run."""


def _numbers(key: str, text: Any, least: int = 1) -> list[int]:
    """1,2,4 as whole numbers.

    Raises:
        ValueError: they are none, or too small.
    """
    try:
        found = [int(part) for part in str(text).split(",")]
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise ValueError(f"{key}={text}: whole numbers from {least} on are wanted, with commas between them")
    return found


def _sync(words: list[str]) -> int:
    """Makes runs in Weights & Biases anew."""
    parser = argparse.ArgumentParser(
        "geoseg sync",
        description="Tells Weights & Biases finished runs anew from their files, each under its own id and in place of "
        "what was there: offline parts of a run that was interrupted do not become one run there. An experiment's "
        "folder, runs/EXPERIMENT, stands for its summary: one run with the table and figures over all of its runs.",
        epilog="Offline unless WANDB_MODE=online; the line that sends an offline run is shown. Parts that were written "
        "before stay where they are; do not send them afterwards.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="runs/EXPERIMENT/RUN_ID, or a run id below --runs; runs/EXPERIMENT for the summary",
    )
    parser.add_argument("--runs", default="runs", metavar="FOLDER", dest="below", help="the folder of runs")
    options = parser.parse_args(words)
    from pathlib import Path

    from geoseg.record import find_run
    from geoseg.sync import summarize, sync

    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    code = 0
    for run in options.runs:
        try:
            folder = Path(run)
            whole = not (folder / "record.json").is_file() and any(folder.glob("*/record.json"))
            files = summarize(folder) if whole else sync(*find_run(run, options.below))
        except ValueError as error:
            print(f"geoseg sync: {error}", file=sys.stderr)
            code = 2
            continue
        offline = files.name.startswith("offline-")
        print(f"{run}: {f'written; wandb sync {files} sends it' if offline else 'sent'}")
    return code


def _doctor(words: list[str]) -> int:
    """Looks at the machine; 0 when the demo can run."""
    parser = argparse.ArgumentParser(
        "geoseg doctor",
        description="Looks at system, memory, disk, libraries, GPU and embedded checkpoints, without network, and says "
        "of each problem how to repair it. The exit code is 0 when geoseg demo can run, else 1.",
    )
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="where results will be written")
    options = parser.parse_args(words)
    from pathlib import Path

    from geoseg.doctor import diagnose, print_findings

    return 0 if print_findings(diagnose(Path(options.runs))) else 1


def _fetch(words: list[str]) -> int:
    """Lists the checkpoints of an option, and fetches them."""
    if any(word in ("-h", "--help") for word in words):
        print(FETCH)
        return 0
    overrides = [word for word in words if word not in ("-y", "--yes")]
    agreed = len(overrides) < len(words)
    if not any(word.startswith("checkpoints=") for word in overrides):
        overrides.insert(0, "checkpoints=hub")
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from geoseg.config import conf_folder, register_resolvers
    from geoseg.fetch import cache, fetch, items, print_items
    from geoseg.quiet import quieten

    register_resolvers()
    quieten()
    try:
        check_overrides(overrides)
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            checkpoints: Any = OmegaConf.to_container(compose("run", overrides=overrides).checkpoints, resolve=True)
        found = items(checkpoints)
        print_items(found)
        missing = [item for item in found if item.hub and not item.here]
        if missing and not agreed:
            print(f"geoseg fetch --yes {' '.join(overrides)} fetches what the hub has, into {cache()}")
        for item in missing if agreed else []:
            print(f"{item.name} -> {fetch(item.part, item.name, checkpoints[item.part].get('revision'))}")
    except (HydraException, ValueError) as error:
        print(f"geoseg fetch: {error}", file=sys.stderr)
        return 2
    return 0


def _run(words: list[str]) -> int:
    """Composes the configuration and hands it to ``geoseg.run``."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # waiting threads that spin cost a factor of ten as soon as two processes share the cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import hydra
    from hydra.errors import HydraException

    from geoseg import sweep
    from geoseg.config import conf_folder, register_resolvers
    from geoseg.quiet import quieten
    from geoseg.quoting import torn
    from geoseg.workers import WorkerEnded

    sweep.register()
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    quieten()  # before libraries are imported, some of which speak then
    register_resolvers()
    multirun = "-m" in words or "--multirun" in words
    # a word behind an option without = is that option's own
    before_each = zip(["", *words], words, strict=False)
    overrides = [w for last, w in before_each if not w.startswith("-") and ("=" in w or last not in TAKES_A_WORD)]
    asked = any(word in ("-h", "--help", "--hydra-help") for word in words)
    own = _own_folders(words)
    users = [] if any(word.startswith("hydra.searchpath=") for word in words) else _users_folder()
    try:
        if line := torn(words):
            raise ValueError(f"a value with spaces needs quotes: {line}")
        shown = asked or any(word.startswith(("--cfg", "-c", "--info", "-i")) for word in words)
        queue = [word for word in overrides if word.startswith("hydra/launcher=slurm")]
        if queue and not multirun and not shown:
            raise ValueError(
                f"{queue[-1]} is for sweeps; geoseg run -m, with one value for all settings, submits one run"
            )
        check_overrides(overrides, multirun, [*own, *users])
    except (HydraException, ValueError) as error:
        print(f"geoseg: {error}", file=sys.stderr)
        return 2
    codes: list[int] = []

    def single(cfg: Any) -> float | None:
        try:
            return sweep.job(cfg)
        except Exception as error:
            failed = sweep.describe(error)
            if failed.code == 1 and not isinstance(error, WorkerEnded):  # which says all that is known
                raise
            print(f"geoseg: {failed.text}", file=sys.stderr)
            codes.append(failed.code)
            return None

    before = sys.argv
    try:
        with tempfile.TemporaryDirectory(prefix="geoseg-") as scratch:
            # Hydra writes a sweep's whole configuration beside its results, secrets included; runs keep a redacted one
            places = [] if asked else [f"hydra.run.dir={scratch}", f"hydra.sweep.dir={scratch}"]
            places += _searching(users)
            # argparse wants all settings side by side and -m before them
            flags = [word for word in words if word in ("-m", "--multirun")]
            rest = [word for word in words if word not in flags]
            first = next((i for i, word in enumerate(rest) if word in overrides), len(rest))
            sys.argv = ["geoseg run", *flags, *rest[:first], *places, *rest[first:]]
            job = sweep.job if multirun else single  # a sweep's workers find it by its name
            hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="run")(job)()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return max(codes, default=0)


OWN = ("--config-dir", "-cd")
"""Options of Hydra that name a folder with a user's own experiments."""

TAKES_A_WORD = (*OWN, "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p", "--info", "-i")
"""Options of Hydra that the next word belongs to."""


def check_overrides(words: Sequence[str], multirun: bool = False, folders: Sequence[str] = ()) -> None:
    """Composes the configuration once, so that what is mistyped is told before anything heavy is imported.

    In a sweep, values of the wrong type are left to the jobs that have them.

    Raises:
        ValueError: an unknown key or option, with the nearest known one; a value of the wrong type; or a line that
            Hydra cannot read.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError

    from geoseg.config import check_settings, conf_folder
    from geoseg.quoting import typed

    single = _searching(folders)
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException as error:
            if "=" not in word:
                options = conf_folder().glob("*/*.yaml")
                meant = [f"{path.parent.name}={path.stem}" for path in options if path.stem == word]
                such = " or ".join(sorted(meant)) or "seed=1"
                raise ValueError(f"a setting is typed key=value, such as {such}; got {word!r}") from None
            reason = str(error).splitlines()[0]
            raise ValueError(f"put quotes around the value: {typed(word)}\n  cannot read {word!r}: {reason}") from None
        if not multirun and override.is_sweep_override():
            line = f"one value is typed {typed(word)}"
            raise ValueError(f"{word!r} names several values: geoseg run -m runs one after the other; {line}")
        if not multirun and override.key_or_group == "hparams_search" and override.value() is not None:
            raise ValueError(f"{word!r} asks for a search, which makes several runs: geoseg run -m does them")
        if override.key_or_group == "rivals" and override.value() == {}:
            raise ValueError("rivals={} would change nothing, since mappings are merged; rivals=null leaves them out")
        if multirun and override.is_sweep_override():
            value = override.value()
            if isinstance(value, IntervalSweep):
                first: Any = value.start
            else:
                first = next(iter(override.sweep_string_iterator()), None)
            if first is None:
                raise ValueError(f"{word!r} names no value; the end of a range is left out, as Python has it")
            word = f"{override.get_key_element()}={first}"
        single.append(word)
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        try:
            composed = compose("run", overrides=single)
        except (HydraException, ValueError) as error:
            known: list[str] = []
            with contextlib.suppress(HydraException, ValueError):
                groups = [word for word in single if word.split("=")[0] in ("experiment", "method", "data")]
                known = list(_keys(OmegaConf.to_container(compose("run", overrides=groups), resolve=False)))
            raise ValueError(_suggest(str(error), known, {word.split("=")[0] for word in single})) from None
    if multirun:
        return
    with contextlib.suppress(InterpolationResolutionError):  # what cannot be resolved is told by whoever needs it
        settings: Any = OmegaConf.to_container(composed, resolve=True)
        check_settings(settings)


SHOWN = 8
"""Options that a message names."""


def _elsewhere(key: str) -> list[str]:
    """The options of a group that have this setting, as group=option."""
    from omegaconf import OmegaConf

    from geoseg.config import conf_folder

    group, _, rest = key.partition(".")
    return [
        f"{group}={path.relative_to(conf_folder() / group).with_suffix('').as_posix()}"
        for path in sorted((conf_folder() / group).glob("**/*.yaml"))
        if path.parent.name != "shared"  # by several options, and none itself
        if rest in _keys(OmegaConf.to_container(OmegaConf.load(path), resolve=False))
    ]


def _keys(node: Any, where: str = "") -> Any:
    if isinstance(node, dict):
        for name, value in node.items():
            path = f"{where}.{name}" if where else str(name)
            yield path
            yield from _keys(value, path)


def _suggest(message: str, keys: list[str], chosen: Collection[str] = ()) -> str:
    """Hydra's message, made short, with the nearest setting or option; ``chosen`` are groups with an option typed."""
    wrong_key = re.search(r"Could not (?:override|append to config|delete from config\.) '([^']+)'", message)
    if wrong_key:
        key = wrong_key.group(1)
        by_last: dict[str, str] = {}
        for name in keys:
            by_last.setdefault(name.rsplit(".", 1)[-1], name)
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
        last = difflib.get_close_matches(key.rsplit(".", 1)[-1], by_last, n=1, cutoff=0.75)
        found = near[0] if near else by_last[last[0]] if last else ""
        hint = f"did you mean {found}?" if found else "geoseg run experiment=... --help lists those of an experiment"
        others = _elsewhere(key)
        if others:
            more = [f"{len(others) - SHOWN} more"] if len(others) > SHOWN else []
            which = others[0] if len(others) == 1 else "the one you mean"
            group = others[0].partition("=")[0]
            add = "which was not asked for" if group in chosen else f"so add {which}"
            hint = f"{' or '.join([*others[:SHOWN], *more])} has it, {add}"
        return f"there is no setting {key}; {hint}"
    wrong_option = re.search(r"Could not (?:find|load) '([^']+)'", message)
    options = re.search(r"Available options in '([^']+)':\n((?:\t.*\n?)+)", message)
    if wrong_option and options:
        group, known = options.group(1), options.group(2).split()
        option = wrong_option.group(1).removeprefix(f"{group}/")
        near = difflib.get_close_matches(option, known, n=1)
        hint = f"did you mean {group}={near[0]}?" if near else f"there are {', '.join(known)}"
        return f"there is no {group}={option}; {hint}"
    there = re.search(r"Either remove \+ prefix: '(.+)'", message) or re.search(r"use 'override (.+)'", message)
    if there:
        return f"leave the + away, since it is there already: {there.group(1).replace(': ', '=')}"
    if wrong_option:  # one of several that were asked for
        group, _, option = wrong_option.group(1).rpartition("/")
        return f"there is no {group}={option}; geoseg run --help lists the options of every group"
    said = re.split(r"\n+(?:Set the environment variable|Config search path)", message)[0].strip()
    if said.startswith("Config group override must be"):
        return f"a group takes the name of one of its options, such as experiment=label_lora ({said})"
    return said


if __name__ == "__main__":
    sys.exit(main())
