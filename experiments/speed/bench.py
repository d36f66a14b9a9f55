"""How fast geoseg is: every number beside another one that was measured next to it on the same machine.

    python experiments/speed/bench.py [--only step evaluation jobs overhead labelling tiles ensemble
        commands] [--to experiments/speed]

A ratio counts only where both sides give the same numbers. With --to, speed.json there keeps what was measured, each
part with the code and machine it was measured on, and the tables of README.md are written from it; parts that are left
out stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

# before PyTorch is loaded, as geoseg's command line does it
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["WANDB_MODE"] = "offline"

PARTS = ("step", "evaluation", "jobs", "overhead", "labelling", "tiles", "ensemble", "commands")


def main() -> None:
    """Measures, prints the tables, and keeps them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profiles", type=int, default=8, help="of the evaluation")
    parser.add_argument("--steps", type=int, default=60, help="of the trainings against plain loops")
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--members", type=int, default=16, help="of the ensemble")
    parser.add_argument("--to", type=Path, help="folder of speed.json and README.md")
    asked = parser.parse_args()

    import around
    import members
    import plain
    from rich.console import Console
    from table import tables

    from geoseg.record import device, loaded_code, versions, write_atomically
    from geoseg.report import put_between
    from geoseg.sweep import quieten

    quieten()
    measures = (
        *(plain.step, plain.scoring, around.jobs, around.overhead),
        *(around.labelling, around.tiles, members.ensemble, around.commands),
    )
    kept = asked.to / "speed.json" if asked.to else None
    measured = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.is_file() else {}
    code, dirty = loaded_code()
    facts = {"commit": code, "dirty": dirty, "device": device(gpu=False), "versions": versions()}
    for part, measure in zip(PARTS, measures, strict=True):
        if part not in asked.only:
            continue
        measured[part] = {**facts, "rows": measure(asked)}
        measured = {name: measured[name] for name in PARTS if name in measured}
        for table in tables({part: measured[part]}).values():
            Console(soft_wrap=True).print(table, markup=False, highlight=False)
        if kept:  # part by part, since one takes minutes
            write_atomically(kept, json.dumps(measured, indent=1) + "\n")
            for marks, table in tables(measured).items():
                put_between(asked.to / "README.md", marks, table)


if __name__ == "__main__":
    main()
