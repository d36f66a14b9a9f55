"""Pictures of classes, drawn by what a run has trained: an image folder to train other methods on."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import pkgutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import interpolate

from geoseg import progress as bars
from geoseg.assembly import Models, assembled
from geoseg.config import build, check_targets
from geoseg.crops import bucket
from geoseg.data.image_folder import MARK, caption, check_template
from geoseg.data.likeness import MEASURE, Likeness, Nearest
from geoseg.data.pictures import read_profile
from geoseg.figures import draw_beside
from geoseg.manifest import SAVED, clear_parts, earlier, put, save
from geoseg.places import LEAST, check_writable, full_disk_told, locked
from geoseg.predict import checked, trainer_of
from geoseg.randomness import key, stream
from geoseg.record import device, find_run, loaded_code, runs_of, versions
from geoseg.tasks.denoising import DenoisingTask

log = logging.getLogger("geoseg")

SCHEMA = 1
"""Version of the layout of manifest.json."""

SHOWN = 3
"""Drawn and real pictures of every class on the sheet."""


@dataclass(frozen=True)
class Planned:
    """One picture to draw.

    Attributes:
        name: of its class.
        number: among those of its class, from 0 on.
        prompt: what it is drawn from.
    """

    name: str
    number: int
    prompt: str

    @property
    def file(self) -> str:
        """Where it lies in the output folder."""
        return f"{self.name}/{self.name}_{self.number:05d}.png"

    def where(self) -> tuple[str, str, int]:
        """Its place among all random numbers, whatever else is drawn."""
        return "synthesize", self.name, self.number


def synthesize(
    run: str,
    total: int,
    out: str,
    runs: str = "runs",
    classes: Sequence[str] | None = None,
    template: str = "",
    size: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str = "",
    batch: int = 4,
    seed: int | None = None,
    accelerator: str | None = None,
    progress: bool = True,
    trust: Sequence[str] = (),
    moved: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Draws ``total`` pictures, equally many of every class but for one, into an image folder.

    A picture is a function of the training, the settings, its class and its number alone. What was drawn by an earlier,
    interrupted call with the same arguments is not drawn again; a larger ``total`` adds to what is there.

    Args:
        run: a finished training of a ``DenoisingTask``, see ``geoseg.predict.load``.
        total: how many pictures.
        out: a folder of its own; made when missing.
        runs: where runs are looked for by their id.
        classes: which classes; None takes all that the run's data has.
        template: the prompt, with {} for the name of the class; "" takes the words that the run's data has for it.
        size: side of the pictures as they are written; None takes that of the training pictures.
        steps: of the schedule; None takes the model's own number.
        guidance: of the prompt; None takes the model's own.
        negative: what to move away from, for models that have such a prompt.
        batch: pictures per call of the model.
        seed: of what is drawn at random; None takes the run's.
        accelerator: see ``geoseg.predict.load``, as for ``trust`` and ``moved``.
        progress: show a progress bar.
        trust: as above.
        moved: as above.

    Returns:
        The manifest, which is written to ``out/manifest.json`` too.

    Raises:
        ValueError: an argument cannot be used, the run has not learnt to draw pictures of classes, or ``out`` holds
            something else.
    """
    numbers = {"total": total, "batch": batch, "size": size, "steps": steps}
    if wrong := [f"{name}={number}" for name, number in numbers.items() if number is not None and number < 1]:
        raise ValueError(f"{', '.join(wrong)}: whole numbers from 1 on are wanted")
    place = Path(out).expanduser()
    folder, record = find_run(run, runs)
    method = _drawing_method(folder, record, trust, moved)
    source = _source(record, trust)
    prompts = _prompts(record, source, classes, template)
    if total < len(prompts):
        raise ValueError(f"total={total}: there are {len(prompts)} classes, and each needs a picture at least")
    learnt = list(record["data"]["train"])
    shape = (size, size) if size is not None else _shape(source, learnt)
    seed = record["config"]["seed"] if seed is None else seed
    plan = planned(prompts, total)
    adapter = runs_of(folder, record) / "fits" / record["fit_id"] / "adapter"
    asked = {
        "run": record["run_id"],
        "adapter": _digests(adapter),
        "prompts": prompts,
        "negative": negative,
        "size": list(shape),
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
    }
    asked = json.loads(json.dumps(asked))  # as it will be read back
    left = sum(not (place / one.file).is_file() for one in plan)
    check_writable(place, "out", LEAST + left * 3 * shape[0] * shape[1])  # PNG is seldom larger than bare pixels
    with bars.display(progress), full_disk_told(place), locked(place, f"what {place} holds"):
        manifest = earlier(place, asked, SCHEMA, "out", "pictures")
        before = {} if manifest is None else {entry["file"]: entry for entry in manifest["images"]}
        if surplus := len(before.keys() - {one.file for one in plan}):
            raise ValueError(
                f"out={place} holds {len(before)} pictures, {surplus} of which total={total} would not draw; name a "
                "new folder, or ask for as many as there are"
            )
        if manifest is not None and manifest["status"] == "done" and _whole(place, plan, before):
            log.info("%s: all %d pictures are there already", place, total)
            return manifest
        with _drawer(method, folder, record, adapter, accelerator) as drawer:
            drawer.check(prompts.values(), negative, shape)
            likeness, real = _training(source, learnt)
            said = {"steps": steps, "guidance": guidance, "negative": negative or None}
            given = {name: value for name, value in said.items() if value is not None}
            manifest = {
                "schema": SCHEMA,
                "status": "unfinished",
                **_described(record, adapter, asked),
                "settings": drawer.settings(given, shape, batch),
                "trained_on": {"names": learnt, "digest": source.fingerprint(learnt)},
                "near_duplicates": {"distance": MEASURE, "threshold": likeness.threshold},
                "made_by": _made_by(drawer.device),
                "images": list(before.values()),
            }
            _work(drawer, plan, manifest, place, likeness, batch, given)
        _sheet(place, manifest, real)
        manifest["status"] = "done"
        save(place, manifest)
    return manifest


def planned(prompts: Mapping[str, str], total: int) -> list[Planned]:
    """What is to be drawn, the first of every class first; a larger total begins with the same pictures.

    >>> [one.file for one in planned({"river": "a river", "coast": "a coast"}, 3)]
    ['river/river_00000.png', 'coast/coast_00000.png', 'river/river_00001.png']
    """
    names = list(prompts)
    return [Planned(names[i % len(names)], i // len(names), prompts[names[i % len(names)]]) for i in range(total)]


def summary(manifest: Mapping[str, Any]) -> Table:
    """What was drawn of every class, as the terminal shows it."""
    table = Table(box=box.SIMPLE)
    table.add_column("class")
    for name in ("pictures", "near-duplicates", "s per picture"):
        table.add_column(name, justify="right")
    groups: dict[str, list[Mapping[str, Any]]] = {name: [] for name in manifest["asked"]["prompts"]}
    for entry in manifest["images"]:
        groups[entry["class"]].append(entry)
    for name, entries in [*groups.items(), ("all", manifest["images"])]:
        if name == "all":
            table.add_section()
        seconds = [entry["seconds"] for entry in entries if entry["seconds"] is not None]
        mean = f"{sum(seconds) / len(seconds):.2f}" if seconds else "-"
        table.add_row(name, str(len(entries)), str(sum(entry["flagged"] for entry in entries)), mean)
    return table


class _Drawer:
    """The model of a run with what it has trained, where it computes."""

    def __init__(self, task: DenoisingTask, trainer: Any) -> None:
        self.model: Any = task.model
        self.side = task.crop
        self._precision = trainer.precision_plugin
        assert isinstance(self.model, nn.Module)
        self.model.requires_grad_(False)  # what learns would be embedded anew for every picture
        self._precision.convert_module(self.model).to(trainer.strategy.root_device).eval()
        self.device = device(gpu=trainer.strategy.root_device.type == "cuda")

    def drawn(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The size that pictures are drawn in: that of the training, in the aspect of what is wanted."""
        return bucket(*shape, self.side, self.model.multiple, upscale=True).cut

    def check(self, prompts: Any, negative: str, shape: tuple[int, int]) -> None:
        """Looks whether the model can read all words before it draws any; says where pictures are enlarged."""
        for prompt in [*prompts, negative]:
            self.model.check_prompt(prompt)
        drawn = self.drawn(shape)
        if shape[0] > drawn[0] or shape[1] > drawn[1]:
            log.warning("drawn in %d x %d, as learnt, and enlarged to %d x %d", *drawn, *shape)

    def settings(self, given: Mapping[str, Any], shape: tuple[int, int], batch: int) -> dict[str, Any]:
        """With what pictures are drawn, the model's own choices included."""
        own = inspect.signature(self.model.draw).parameters
        used = {name: given.get(name, own[name].default) for name in ("steps", "guidance", "negative")}
        scheduler = type(self.model.scheduler).__name__
        return {**used, "scheduler": scheduler, "drawn": list(self.drawn(shape)), "size": list(shape), "batch": batch}

    def draw(self, group: Sequence[Planned], seed: int, shape: tuple[int, int], given: Mapping[str, Any]) -> Tensor:
        """Pictures of one group, uint8 [B, H, W, 3] on the CPU."""
        generators = [stream(seed, *one.where()) for one in group]
        drawn = self.drawn(shape)
        try:
            with torch.no_grad(), bars.silent(), self._precision.test_step_context():
                found = self.model.draw([one.prompt for one in group], generators, drawn, **given)
        except OverflowError as error:
            raise ValueError(f"{group[0].file}: {error}") from error
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"batch={len(group)}: so many pictures of {drawn[0]} x {drawn[1]} do not fit into memory "
                f"({str(error).splitlines()[0]}); the same command with a smaller batch goes on from here"
            ) from error
        found = found.float()
        if drawn != shape:
            found = interpolate(found, shape, mode="bilinear", antialias=True)
        return (255 * found.clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


@contextmanager
def _drawer(
    method: Mapping[str, Any], folder: Path, record: Mapping[str, Any], adapter: Path, accelerator: str | None
) -> Iterator[_Drawer]:
    trainer = trainer_of(record, accelerator)
    seed, hashes = record["config"]["seed"], record["checkpoints"]["hashes"]
    with assembled(method, "method", Models(), None, 0, seed, hashes) as made:
        assert isinstance(made.task, DenoisingTask)
        made.task.load(adapter)
        yield _Drawer(made.task, trainer)


def _work(
    drawer: _Drawer,
    plan: Sequence[Planned],
    manifest: dict[str, Any],
    place: Path,
    likeness: Likeness,
    batch: int,
    given: Mapping[str, Any],
) -> None:
    """Draws what is left, and keeps the manifest up to date."""
    clear_parts(place)
    asked = manifest["asked"]
    done = _there(place, plan, {entry["file"]: entry for entry in manifest["images"]}, likeness, asked["seed"])
    left = len(plan) - len(done)
    if done:
        log.info("%s: %d of %d pictures are there already", place, len(done), len(plan))
    bars.section("synthesis")
    bars.expect("pictures", left, "picture")

    def written() -> None:
        manifest["images"] = [done[one.file] for one in plan if one.file in done]
        manifest["minutes"] = round(sum(entry["seconds"] or 0.0 for entry in done.values()) / 60, 4)
        save(place, manifest)

    written()
    saved = time.monotonic()
    try:
        # the same groups in every call: rounding depends on what is drawn together
        for group in (plan[i : i + batch] for i in range(0, len(plan), batch)):
            new = [one for one in group if one.file not in done]
            if not new:
                continue
            begun = time.perf_counter()
            pictures = drawer.draw(group, asked["seed"], tuple(asked["size"]), given).numpy()
            seconds = round((time.perf_counter() - begun) / len(group), 4)
            near = likeness.nearest(list(pictures))
            for one, picture, nearest in zip(group, pictures, near, strict=True):
                if one in new:
                    put(place / one.file, Image.fromarray(picture).save)
                    done[one.file] = _entry(one, nearest, likeness.threshold, asked["seed"], seconds)
            bars.advance("pictures", len(new))
            if time.monotonic() - saved > SAVED:
                written()
                saved = time.monotonic()
    finally:
        written()


def _there(
    place: Path, plan: Sequence[Planned], known: Mapping[str, Any], likeness: Likeness, seed: int
) -> dict[str, dict[str, Any]]:
    """What the manifest would say of pictures that are there, also of those that a kill left it no time to name."""
    done = {}
    for one in plan:
        if not (place / one.file).is_file():
            continue
        if one.file in known:
            done[one.file] = known[one.file]
            continue
        try:
            (nearest,) = likeness.nearest([read_profile(place / one.file)])
        except ValueError:  # a machine that went down may leave a name without content
            continue
        done[one.file] = _entry(one, nearest, likeness.threshold, seed, None)
    return done


def _entry(one: Planned, nearest: Nearest, threshold: float, seed: int, seconds: float | None) -> dict[str, Any]:
    return {
        "file": one.file,
        "class": one.name,
        "prompt": one.prompt,
        "seed": key(seed, *one.where()),
        "near": {"name": nearest.name, "distance": nearest.distance},
        "flagged": nearest.distance < threshold,
        "seconds": seconds,
    }


def _whole(place: Path, plan: Sequence[Planned], known: Mapping[str, Any]) -> bool:
    return all(one.file in known and (place / one.file).is_file() for one in plan)


def _drawing_method(
    folder: Path, record: Mapping[str, Any], trust: Sequence[str], moved: Mapping[str, str] | None
) -> dict[str, Any]:
    """The run's method without what it labels with.

    Raises:
        ValueError: it has not learnt to draw pictures, or for the reasons of ``geoseg.predict.checked``.
    """
    recorded = {**record["config"]["method"], "predictor": None, "wrappers": {}}
    method = checked(folder, record, recorded, trust, moved)
    task = method["task"]
    learns = None if task is None else pkgutil.resolve_name(task["_target_"])
    if not (isinstance(learns, type) and issubclass(learns, DenoisingTask)) or not record["data"]["train"]:
        raise ValueError(
            f"the run in {folder} ({record['method']}) has not learnt to draw pictures; name a finished training of a "
            "diffusion model by geoseg.tasks.denoising.DenoisingTask, such as that of experiment=synthetic_generator"
        )
    if task.get("paint", True):
        raise ValueError(
            f"the run in {folder} ({record['method']}) has learnt to paint label maps, no pictures of classes; train "
            "one with method.task.paint=false"
        )
    return method


def _source(record: Mapping[str, Any], trust: Sequence[str]) -> Any:
    """The run's data.

    Raises:
        ValueError: it is not there any more.
    """
    node = record["config"]["data"]["source"]
    check_targets({"data": {"source": node}}, trust)
    try:
        return build(node, "data.source")
    except (ValueError, OSError) as error:
        raise ValueError(
            f"what the run was trained on, {record['data']['name']}, cannot be read again ({error}); its words for "
            "classes are needed, and its pictures to find near-duplicates of them: run geoseg synthesize where they are"
        ) from error


def _prompts(record: Mapping[str, Any], source: Any, classes: Sequence[str] | None, template: str) -> dict[str, str]:
    """Class to prompt.

    Raises:
        ValueError: an unknown class, or nothing says which classes there are or what they are called.
    """
    known = list(source.class_names)
    words = getattr(source, "words", None)
    if template:
        check_template(template, "template")
    if not known and classes is None:
        raise ValueError(
            f"the run's data, {source.title}, has no classes; say which to draw, classes=[river,coast], and with what "
            f"words, template='a satellite image of {MARK}'"
        )
    names = known if classes is None else [str(name) for name in classes]
    if not names or len(set(names)) < len(names) or any(not name or "/" in name or name[0] == "." for name in names):
        raise ValueError(f"classes={names}: names of folders are wanted, each once")
    if known and (strange := [name for name in names if name not in known]):
        near = get_close_matches(strange[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
        raise ValueError(f"classes: {strange[0]!r} is no class of {source.title}; {hint}")
    if not template and words is None:
        raise ValueError(
            f"the run's data, {source.title}, has no words for its classes; say how to ask for one, "
            f"template='a satellite image of {MARK}'"
        )
    fixed = record["config"]["method"]["task"].get("caption")
    if fixed is not None and len(names) > 1:
        raise ValueError(
            f"the run was trained with one caption for all pictures, {fixed!r}, so that words tell it no class from "
            "another; train one with method.task.caption=null"
        )
    if template:
        return {name: caption(template, name) for name in names}
    return {name: words(known.index(name)) for name in names}  # type: ignore[misc]


def _shape(source: Any, names: Sequence[str]) -> tuple[int, int]:
    """H and W of the training pictures.

    Raises:
        ValueError: there is more than one size.
    """
    shapes = sorted({tuple(source.shape(name)) for name in names})
    if len(shapes) > 1:
        shown = ", ".join(f"{high} x {wide}" for high, wide in shapes[:3])
        raise ValueError(f"training pictures have {len(shapes)} sizes ({shown} ...); size=256 says how large to write")
    return shapes[0]


def _training(source: Any, names: Sequence[str]) -> tuple[Likeness, dict[str, list[np.ndarray]]]:
    """The training pictures, to compare with, and the first of every class, to show."""
    shown: dict[str, list[np.ndarray]] = {}

    def pictures() -> Iterator[np.ndarray]:
        for name in names:
            sample = source.read(name)
            if sample.target.ndim == 0:  # one class for the whole picture
                of_class = shown.setdefault(source.class_names[int(sample.target)], [])
                of_class += [sample.image] * (len(of_class) < SHOWN)
            yield sample.image
            bars.advance("training pictures", 1)

    bars.expect("training pictures", len(names), "picture")
    return Likeness(names, pictures()), shown


def _sheet(place: Path, manifest: Mapping[str, Any], real: Mapping[str, Sequence[np.ndarray]]) -> None:
    """The first drawn and real pictures of every class side by side; none is chosen."""
    rows = {}
    for name in manifest["asked"]["prompts"]:
        files = [entry["file"] for entry in manifest["images"] if entry["class"] == name][:SHOWN]
        rows[name] = ([read_profile(place / file) for file in files], real.get(name, []))
    base, settings = manifest["base"], manifest["settings"]
    note = f"{base['id']} (checkpoints={base['kind']}), run {manifest['run']['run_id']}, {settings['steps']} steps, "
    draw_beside(rows, place / "sheet.png", f"{note}guidance {settings['guidance']:g}, seed {manifest['seed']}")


def _digests(adapter: Path) -> dict[str, str]:
    """SHA-256 of every file that the training left."""
    files = [adapter] if adapter.is_file() else sorted(file for file in adapter.rglob("*") if file.is_file())
    return {file.relative_to(adapter).as_posix(): _sha256(file) for file in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _described(record: Mapping[str, Any], adapter: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the manifest that says by what the pictures were drawn, and what may be done with them."""
    checkpoints = record["checkpoints"]
    return {
        "method": record["method"],
        "run": {name: record[name] for name in ("run_id", "fit_id", "experiment", "seed", "commit")},
        "adapter": {"path": f"fits/{record['fit_id']}/{adapter.name}", "sha256": asked["adapter"]},
        "base": {
            "id": checkpoints["ids"].get("model"),
            "fingerprint": checkpoints["hashes"].get("model"),
            "kind": checkpoints["kind"],
        },
        "licence": record["config"]["checkpoints"].get("licence", "unknown"),
        "seed": asked["seed"],
        "asked": dict(asked),
    }


def _made_by(where: str) -> dict[str, Any]:
    commit, dirty = loaded_code()
    return {"commit": commit, "dirty": dirty, "versions": versions(), "device": where}
