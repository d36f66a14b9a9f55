"""What comes around the work: libraries that are loaded, runs that are begun and recorded, mistakes that are told."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from table import costs, faster
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.utils import logging as transformers_logging

import geoseg
from geoseg.assembly import Models
from geoseg.cli import main
from geoseg.config import conf_folder, register_resolvers
from geoseg.data.synthetic import SyntheticEarth
from geoseg.demo.networks import vision_transformer
from geoseg.randomness import seeded
from geoseg.run import jobs_of

GEOSEG = str(Path(sys.executable).with_name("geoseg"))

SHORT = (
    *("method=label_lora", "trainer=cpu", "logger=files", "progress=false", "sample_every=0"),
    *("data.num_val=0", "data.num_test=2", "method.task.fit.epochs=1"),
    *("method.predictor.steps=6", "method.wrappers.sam.points_per_side=8"),
)
"""A label LoRA of four steps, two profiles redrawn in few steps and refined with few points: nothing is left out, but
all of it is short, so that what is measured is mostly what comes around the work."""

LABELLING = (
    *("experiment=foundation_models", "trainer=cpu", "logger=files", "progress=false"),
    *("data.num_val=0", "method.task.schedule.warmup=0"),
)
"""A labelling network on synthetic sections, squares of 128 pixels in batches of four, without a validation in between
and without a warm-up, which might be longer than a short training."""

LARGE, TILE, OVERLAP, BATCH = 768, 128, 0.25, 16
"""Sides of a large profile and its tiles in pixels, the share that tiles have in common, and tiles per call."""

ROUNDING = 1e-6
"""What may lie between probabilities that were blended in another order."""

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
    with tempfile.TemporaryDirectory() as folder:
        _run([*words, f"runs={folder}/first", "method.task.fit.epochs=1"])  # loads the libraries
        found = _rounds(words, Path(folder), asked.rounds)
    wholes, bares = found.wholes, [step * found.steps for step in found.bare]
    once = [whole - found.steps * step for whole, step in zip(wholes, found.mine, strict=True)]
    return {
        "training step in a run": costs("bare step", found.bare, found.mine, found.apart, aim=1.03),
        f"run of {found.steps} steps, from command to record": costs("bare steps", bares, wholes, found.apart)
        | {"once": once},
    }


def labelling(asked: argparse.Namespace) -> dict[str, Any]:
    """Trainings of labelling networks as a run does them, the bare loop of the same steps, and its wait for data."""
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, method) in enumerate(networks(Path(folder)).items()):
            words = [*LABELLING, *method, "method.predictor=null", f"method.task.fit.steps={asked.steps}"]
            _run([*words, f"runs={folder}/first", "method.task.fit.steps=1"])
            found = _rounds(words, Path(folder, str(i)), asked.rounds)
            made[f"{name}: training step in a run"] = costs("bare step", found.bare, found.mine, found.apart, aim=1.03)
            made[f"{name}: waiting for its data"] = costs("bare step", found.bare, found.waits, found.apart, aim=0.05)
    return made


def tiles(asked: argparse.Namespace) -> dict[str, Any]:
    """A large profile labelled in blended tiles by a finished run's network, and by a loop over tiles."""
    profile = SyntheticEarth(size=LARGE).read("test_0000").image
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, method) in enumerate(networks(Path(folder)).items()):
            runs = Path(folder, str(i))
            _run([*LABELLING, *method, "data.num_test=1", "method.task.fit.steps=2", f"runs={runs}"])
            (record,) = runs.glob("*/*/record.json")
            loaded = geoseg.load(record.parent)
            loaded.in_tiles(TILE, OVERLAP)
            theirs, mine, apart = [], [], 0.0
            for _ in range(asked.rounds + 1):  # the first warms both up
                started = time.perf_counter()
                looped = _in_a_loop(loaded._model, loaded.num_classes, profile)
                theirs.append(time.perf_counter() - started)
                started = time.perf_counter()
                found = loaded.predict(profile).probs
                mine.append(time.perf_counter() - started)
                apart = max(apart, float((looped - found).abs().max()))
            what = f"{name}: {LARGE} x {LARGE} pixels in tiles of {TILE}"
            made[what] = faster(theirs[1:], mine[1:], apart, ROUNDING, aim=0.97)
    return made


def networks(folder: Path) -> dict[str, list[str]]:
    """Settings of the networks whose speed is asked for, by name; a random encoder is put into the folder for one.

    Its sizes are those of the embedded one, whose weights make no step faster or slower.
    """
    transformers_logging.disable_progress_bar()
    with seeded(0, "encoder"):
        vision_transformer().save_pretrained(folder / "encoder")
    encoder = f"checkpoints.dinov2.path_or_id={folder / 'encoder'}"
    return {"U-Net": ["method=unet"], "DINOv2, MLA": ["method=dinov2_mla", encoder]}


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


class Rounds(NamedTuple):
    """Trainings as a run does them and the bare loop of the same steps, each a number per round.

    Attributes:
        steps: of one training.
        bare: seconds per step of the bare loop.
        waits: seconds per step that the bare loop waits for its batches.
        mine: seconds per step of the run.
        wholes: seconds of the run.
        apart: the largest difference between two losses of one step.
    """

    steps: int
    bare: list[float]
    waits: list[float]
    mine: list[float]
    wholes: list[float]
    apart: float


def _rounds(words: Sequence[str], folder: Path, rounds: int) -> Rounds:
    """Trains so many times, each time first by the bare loop."""
    register_resolvers()
    bare, waits, mine, wholes, apart = [], [], [], [], 0.0
    for i in range(rounds):
        seconds, waited, losses = _bare([*words, f"runs={folder}/bare"])
        runs = folder / f"run_{i}"
        wholes.append(_run([*words, f"runs={runs}"]))
        (log,) = runs.glob("fits/*/metrics.jsonl")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        apart = max(apart, *(abs(a - line["train/loss"]) for a, line in zip(losses, lines, strict=True)))
        bare.append(seconds / len(losses))
        waits.append(waited / len(losses))
        (record,) = runs.glob("*/*/record.json")
        size = json.loads(record.read_text())["config"]["method"]["task"]["fit"]["batch_size"]
        mine.append(size / lines[-1]["train/samples_per_s"])  # from the training's start
    return Rounds(len(losses), bare, waits, mine, wholes, apart)


def _bare(words: Sequence[str]) -> tuple[float, float, list[float]]:
    """Seconds of the steps alone, how much of that is waiting for batches, and the losses."""
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
        started, waited = time.perf_counter(), 0.0
        batches = iter(loader)
        for _ in range(len(visits)):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            loss = task.loss(batch).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, task.fit.clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.detach())
        seconds = time.perf_counter() - started
        task.eval()
    return seconds, waited, [float(loss) for loss in losses]


@torch.inference_mode()
def _in_a_loop(model: nn.Module, classes: int, profile: np.ndarray) -> Tensor:
    """Class probabilities [1, K, H, W] of a profile [H, W] by a loop over tiles, blended by a raised cosine."""
    picture = torch.from_numpy(profile).float()[None] / 255
    side = math.ceil((len(profile) - TILE) / (TILE * (1 - OVERLAP)))  # steps along a side
    starts = [i * (len(profile) - TILE) // side for i in range(side + 1)]
    corners = [(top, left) for top in starts for left in starts]
    wave = 0.5 - 0.5 * torch.cos(2 * math.pi * (torch.arange(TILE) + 0.5) / TILE)
    weight = torch.outer(wave, wave)
    total, weights = torch.zeros(classes, *profile.shape), torch.zeros(profile.shape)
    for first in range(0, len(corners), BATCH):
        chunk = corners[first : first + BATCH]
        crops = torch.stack([picture[:, top : top + TILE, left : left + TILE] for top, left in chunk])
        probs = model(crops).softmax(1)
        for (top, left), tile in zip(chunk, probs, strict=True):
            total[:, top : top + TILE, left : left + TILE] += tile * weight
            weights[top : top + TILE, left : left + TILE] += weight
    return (total / weights)[None]
