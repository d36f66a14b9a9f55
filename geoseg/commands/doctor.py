"""geoseg doctor: what the machine has and lacks."""

from __future__ import annotations

import argparse
from pathlib import Path


def command(words: list[str]) -> int:
    """Looks at the machine; 0 when the demo can run."""
    parser = argparse.ArgumentParser(
        "geoseg doctor",
        description="Looks at system, memory, disk, libraries, GPU and embedded checkpoints, without network, and says "
        "of each problem how to repair it. The exit code is 0 when geoseg demo can run, else 1.",
    )
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="where results will be written")
    options = parser.parse_args(words)
    from geoseg.doctor import diagnose, print_findings

    return 0 if print_findings(diagnose(Path(options.runs))) else 1
