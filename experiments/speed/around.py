"""What comes around the work: libraries that are loaded, runs that are begun and recorded, mistakes that are told."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from table import costs, faster
from torch.utils.data import DataLoader

import geoseg
from geoseg.cli import main
from geoseg.config import conf_folder, register_resolvers
from geoseg.job import Models
from geoseg.run import jobs_of

GEOSEG = str(Path(sys.executable).with_name("geoseg"))

SHORT = (
    *("method=label_lora", "trainer=cpu", "logger=files", "progress=false", "sample_every=0"),
    *("data.num_val=0", "data.num_test=2", "method.task.fit.epochs=1"),
    *("method.predictor.steps=6", "method.wrappers.sam.points_per_side=8"),
)
"""A label LoRA of four steps, two profiles redrawn in few steps and refined with few points: nothing is left out, but
all of it is short, so that what is measured is mostly what comes around the work."""

MINUTE = 60.0
"""Seconds of a job as they are in practice on the embedded checkpoints."""


def jobs(asked: argparse.Namespace) -> dict[str, Any]:
    """Jobs of label LoRA in one warm worker, and the same in a process each."""
    seeds = range(asked.jobs)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(Path(geoseg.__file__).parent)], check=True)
    with tempfile.TemporaryDirectory() as folder:
        alone, warm = f"runs={folder}/alone", f"runs={folder}/warm"
        _seconds(GEOSEG, "run", *SHORT, f"runs={folder}/first")  # files come from the disk once
        # the machine may slow down: half of them before the sweep, half after
        half = len(seeds) // 2
        before = [_seconds(GEOSEG, "run", *SHORT, alone, f"seed={seed}") for seed in seeds[:half]]
        words = ("run", "-m", *SHORT, warm, f"seed={','.join(map(str, seeds))}", "workers=1")
        together = _seconds(GEOSEG, *words)
        after = [_seconds(GEOSEG, "run", *SHORT, alone, f"seed={seed}") for seed in seeds[half:]]
        theirs, mine = _records(Path(folder, "alone")), _records(Path(folder, "warm"))
    assert theirs.keys() == mine.keys() == set(seeds)
    apart = 0.0
    for seed in seeds:
        pairs = [(theirs[seed]["scores"][name], score) for name, score in mine[seed]["scores"].items()]
        apart = max(apart, *(0.0 if a == b else abs((a or 0.0) - (b or 0.0)) or 1.0 for a, b in pairs))
    count, separate = len(seeds), sum([*before, *after])
    work = [60 * sum(sum(one["minutes"].values()) for one in side.values()) / count for side in (theirs, mine)]
    begun = [total / count - own for total, own in zip((separate, together), work, strict=True)]
    row = faster([separate], [together], apart, 0.0, aim=2.0) | {"own": work, "begun": begun}
    # counted, not measured: what comes around a job stays, whatever the job takes
    longer = faster([count * (begun[0] + MINUTE)], [count * (begun[1] + MINUTE)], apart, 0.0)
    return {
        f"{count} short jobs: a process each, or one warm worker": row,
        f"{count} jobs of a minute each, counted from these": longer,
    }


def overhead(asked: argparse.Namespace) -> dict[str, Any]:
    """A training as a run does it, and the bare loop of the same steps."""
    words = ["method=label_lora", "trainer=cpu", "logger=wandb", "sample_every=0", "data.num_val=0"]
    words += ["method.predictor=null", "method.wrappers.sam=null"]  # nothing is predicted: the run is its training
    register_resolvers()
    theirs, mine, wholes, bares, apart = [], [], [], [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        _run([*words, f"runs={folder}/first", "method.task.fit.epochs=1"])  # loads the libraries
        for i in range(asked.rounds):
            seconds, losses = _bare([*words, f"runs={folder}/bare"])
            runs = Path(folder, f"run_{i}")
            whole = _run([*words, f"runs={runs}"])
            (log,) = runs.glob("fits/*/metrics.jsonl")
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            apart = max(apart, *(abs(a - line["train/loss"]) for a, line in zip(losses, lines, strict=True)))
            theirs.append(seconds / len(losses))
            mine.append(1 / lines[-1]["train/samples_per_s"])  # batches of one, from the first step's start
            bares.append(seconds)
            wholes.append(whole)
    once = [whole - len(losses) * step for whole, step in zip(wholes, mine, strict=True)]
    return {
        "training step in a run": costs("bare step", theirs, mine, apart, aim=1.03),
        f"run of {len(losses)} steps, from command to record": costs("bare steps", bares, wholes, apart)
        | {"once": once},
    }


def commands(asked: argparse.Namespace) -> dict[str, Any]:
    """Help, and two mistakes, beside the import of the library that all work needs."""
    run = ("run", "experiment=label_lora")
    asked_for = {
        "`geoseg --help`": (("--help",), 0, 0.6),
        "a misspelt key is told": ((*run, "method.predictor.strenght=0.4"), 2, None),
        "a value of the wrong type is told": ((*run, "method.predictor.strength=abc"), 2, None),
    }
    torch_alone = (sys.executable, "-c", "import torch")
    _seconds(*torch_alone)
    theirs: list[float] = []
    mine: dict[str, list[float]] = {name: [] for name in asked_for}
    for _ in range(2 * asked.rounds):
        theirs.append(_seconds(*torch_alone))
        for name, (words, code, _) in asked_for.items():
            mine[name].append(_seconds(GEOSEG, *words, code=code))
    return {name: costs("`import torch`", theirs, mine[name], aim=aim) for name, (_, _, aim) in asked_for.items()}


def _seconds(*words: str, code: int = 0) -> float:
    """How long a command takes that ends with this code."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return seconds


def _records(folder: Path) -> dict[int, Any]:
    """The records below a folder by their seed."""
    found = [json.loads(path.read_text()) for path in folder.glob("*/*/record.json")]
    return {record["seed"]: record for record in found}


def _run(words: Sequence[str]) -> float:
    """Seconds of a run in this process, its libraries loaded."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        code = main(["run", *words])
    if code:
        raise RuntimeError(f"the run ended with {code}: {said.getvalue()}")
    return time.perf_counter() - started


def _bare(words: Sequence[str]) -> tuple[float, list[float]]:
    """Seconds of the steps alone, and their losses."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("run", overrides=list(words))
    job = jobs_of(cfg)[0]
    with job.assembled(Models()) as method:
        task = method.task
        assert task is not None
        visits = job.data.visits(task)
        loader = DataLoader(task.view(job.data.train, training=True), batch_sampler=visits)
        optimizer = task.optimizer()
        schedule = task._schedule(optimizer, len(visits))
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        task.train()
        losses = []
        started = time.perf_counter()
        for batch in loader:
            loss = task.loss(batch).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, task.fit.clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.detach())
        seconds = time.perf_counter() - started
        task.eval()
    return seconds, [float(loss) for loss in losses]
