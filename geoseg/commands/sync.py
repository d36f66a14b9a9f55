"""geoseg sync: runs in Weights & Biases, made anew from their files."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path


def command(words: list[str]) -> int:
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
