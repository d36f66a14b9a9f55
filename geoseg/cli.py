"""The command line: the first word chooses a command, whose module of ``geoseg.commands`` is imported then."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

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
  geoseg synthesize run=RUN total=8000 out=...  pictures of classes, drawn by what a run has trained
  geoseg export RUN --to FILE         a run's LoRA as a file for A1111, ComfyUI, kohya or diffusers
  geoseg sync RUN ...                 a run in Weights & Biases, anew from its files; a whole experiment's summary
  geoseg doctor                       what this machine has and lacks, and the line that repairs it
  geoseg fetch checkpoints=hub        what the real checkpoints are and whether they are here; --yes fetches them

geoseg COMMAND --help tells more. Results go to the folder runs.
"""

COMMANDS = (
    "run",
    "demo",
    "evaluate",
    "predict",
    "synthesize",
    "report",
    "export",
    "sync",
    "doctor",
    "fetch",
    "status",
    "compare",
)
"""A module of ``geoseg.commands`` each, with ``command(words)``, which returns the exit code."""

# Threads of PyTorch wait this long, some 20 microseconds, before they sleep, unless the user says otherwise. A step of
# a small network is thousands of short pieces; with threads that sleep at once two cores take three times as long as
# one, and with threads that never sleep two runs at a time stand in each other's way. Read when PyTorch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"geoseg {version('geoseg')}")
        return 0
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"geoseg: no command {words[0]!r}; {hint}", file=sys.stderr)
        return 2
    try:
        code: int = import_module(f"geoseg.commands.{words[0]}").command(words[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our words, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
