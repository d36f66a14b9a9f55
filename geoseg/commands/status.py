"""geoseg status: what became of the runs in a folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def command(words: list[str]) -> int:
    """Looks at records and locks."""
    parser = argparse.ArgumentParser(
        "geoseg status",
        description="Says how many runs of each experiment are done, failed, pruned (given up by a search), running (a "
        "live process holds their lock) or interrupted (no finished record, and nobody at it). Reads records and "
        "locks, changes nothing.",
    )
    parser.add_argument("runs", nargs="?", default="runs", help="the folder of runs, or that of one experiment")
    options = parser.parse_args(words)
    from geoseg.status import look, print_status

    folder = Path(options.runs)
    if not folder.is_dir():
        print(f"geoseg status: there is no folder {folder}; name the one that runs=... names", file=sys.stderr)
        return 2
    print_status(look(folder))
    return 0
