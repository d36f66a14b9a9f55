"""Label maps of pictures and SEG-Y sections that nobody has labelled, by the method of a finished run."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geoseg import progress as bars
from geoseg.data.amplitudes import Amplitudes
from geoseg.data.pictures import read_profile
from geoseg.data.profiles import SUFFIXES, listed, natural
from geoseg.data.segy import SUFFIXES as SEGY
from geoseg.data.segy import SegyFile
from geoseg.manifest import SAVED, clear_parts, earlier, put, save
from geoseg.metrics.uncertainty import entropy
from geoseg.overlays import draw_overlay
from geoseg.places import check_writable, full_disk_told, locked
from geoseg.predict import LoadedMethod, load
from geoseg.record import find_run, loaded_code, versions
from geoseg.types import IGNORE, Prediction

log = logging.getLogger("geoseg")

SCHEMA = 1
"""Version of the layout of manifest.json."""

MIB = 1 << 20

LARGE = 256
"""MiB of input from which it takes seconds to read them for their fingerprint, and a bar is worth its place."""


@dataclass(frozen=True)
class Section:
    """One picture to label.

    Attributes:
        name: of the files that are written, and key of its randomness.
        file: name of the file it comes from.
        shape: H and W.
        read: gives it as uint8 [H, W] or [H, W, 3], and where it holds no sample, bool [H, W].
        volume: the SEG-Y file it is a section of.
    """

    name: str
    file: str
    shape: tuple[int, int]
    read: Callable[[], tuple[np.ndarray, np.ndarray]]
    volume: SegyFile | None = None


def label_maps(
    run: str,
    input: str,
    output: str,
    runs: str = "runs",
    every: int = 1,
    direction: str = "inline",
    points: Sequence[Sequence[int]] | None = None,
    inline_byte: int = 189,
    crossline_byte: int = 193,
    endian: str = "big",
    ignore_geometry: bool = False,
    clip: float | None = None,
    per: str | None = None,
    grey_range: Sequence[float] | None = None,
    turn: bool | None = None,
    tile: int | None = None,
    overlap: float = 0.25,
    batch: int | None = None,
    seed: int | None = None,
    probs: bool = False,
    uncertainty: bool = False,
    segy: bool = False,
    accelerator: str | None = None,
    progress: bool = True,
    trust: Sequence[str] = (),
    moved: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Labels every picture or section of ``input`` and writes what it finds to ``output``.

    A section that was written by an earlier, interrupted call with the same arguments is not labelled again.

    Args:
        run: a finished run, see ``geoseg.predict.load``.
        input: a picture, a SEG-Y file, or a folder of them.
        output: a folder of its own; made when missing.
        runs: where runs are looked for by their id.
        every: take every n-th section of a SEG-Y volume.
        direction: see ``SegyFile``, as for ``points``, ``inline_byte``, ``crossline_byte``, ``endian`` and
            ``ignore_geometry``.
        points: as above.
        inline_byte: as above.
        crossline_byte: as above.
        endian: as above.
        ignore_geometry: as above.
        clip: of the rule from amplitudes to greys, see ``Amplitudes``, as ``per``, ``grey_range`` and ``turn``. What is
            None is that of the run, where it was trained on amplitudes, and that of ``Amplitudes`` otherwise.
        per: as above.
        grey_range: as above; serves pictures of more than 8 bits too.
        turn: as above.
        tile: side of the tiles that large pictures are labelled in, see ``LoadedMethod.in_tiles``; None: whole ones.
        overlap: of the tiles.
        batch: pictures of one size per call of the method; None takes the batch size of the run's data.
        seed: of what is drawn at random; None takes the run's.
        probs: write class probabilities too.
        uncertainty: write uncertainties too: the method's own, or where it has none the entropy of its probabilities.
        segy: write what was found in SEG-Y files as SEG-Y too, see ``_as_segy``.
        accelerator: see ``geoseg.predict.load``, as for ``trust`` and ``moved``.
        progress: show a progress bar.
        trust: as above.
        moved: as above.

    Returns:
        The manifest, which is written to ``output/manifest.json`` too.

    Raises:
        ValueError: an argument or a file cannot be used, or ``output`` holds something else.
    """
    for word, number in (("every", every), ("batch", batch)):
        if number is not None and number < 1:
            raise ValueError(f"{word}={number}: a whole number from 1 on is wanted")
    if every > 1 and (points is not None or ignore_geometry):
        raise ValueError(
            f"every={every} takes sections of a volume, and points or ignore_geometry leave one line; leave it away"
        )
    place = Path(output).expanduser()
    folder, record = find_run(run, runs)
    if record["data"].get("per_image"):
        raise ValueError(
            f"the run in {folder} ({record['method']}) gives a whole image one class, so there is no label map to "
            f"write; geoseg.load({str(folder)!r}).predict(picture) gives that class in Python"
        )
    check_writable(place, "output")
    source = record["config"]["data"].get("source") or {}
    rule, why = _rule(source, {"clip": clip, "per": per, "grey_range": grey_range, "turn": turn})
    deep = grey_range if grey_range is not None else source.get("grey_range")
    geometry: dict[str, Any] = {
        "direction": direction,
        "points": points,
        "inline_byte": inline_byte,
        "crossline_byte": crossline_byte,
        "endian": endian,
        "ignore_geometry": ignore_geometry,
    }
    files = _files(Path(input).expanduser())
    volumes = any(_is_segy(file) for file in files)
    if every > 1 and not volumes:
        raise ValueError(
            f"every={every} takes every n-th section of a SEG-Y volume, and {input} is none; leave it away"
        )
    if segy and not volumes:
        raise ValueError(f"segy=true writes answers on SEG-Y files as SEG-Y, and {input} is none; leave it away")
    with bars.display(progress):
        inputs, sections = _opened(files, geometry, rule, every, deep)
        asked = {
            "run": record["run_id"],
            "inputs": {entry["file"]: entry["sha256"] for entry in inputs},
            "segy": {**geometry, "every": every} if volumes else None,
            "amplitudes": {**vars(rule)} if volumes else None,
            "grey_range": None if deep is None else list(deep),
            "tile": tile,
            "overlap": overlap if tile is not None else None,
            "seed": record["config"]["seed"] if seed is None else seed,
            "probs": probs,
            "uncertainty": uncertainty,
        }
        asked = json.loads(json.dumps(asked))  # as it will be read back
        with full_disk_told(place), locked(place, f"what {place} holds"):
            manifest = earlier(place, asked, SCHEMA, "output", "label maps")
            if manifest is not None and manifest["status"] == "done" and not _left(place, manifest, sections):
                log.info("%s: all %d label maps are there already", place, len(sections))
                if segy or not all((place / file).is_file() for file in manifest.get("segy", ())):
                    _as_segy(sections, manifest, place)
                return manifest
            if volumes:
                log.info("amplitudes become greys by %s: %s", why, ", ".join(f"{k}={v}" for k, v in vars(rule).items()))
            method = load(folder, trust=trust, moved=moved, accelerator=accelerator)
            if tile is not None:
                method.in_tiles(tile, overlap)
            manifest = {
                **_described(method, asked),
                "amplitudes_by": why if volumes else None,
                "inputs": inputs,
                "sections": manifest["sections"] if manifest is not None else {},
            }
            size = batch or int(record["config"]["data"].get("batch_size", 1))
            _work(method, sections, manifest, place, size, seed)
            if segy:
                _as_segy(sections, manifest, place)
    return manifest


def _work(
    method: LoadedMethod, sections: list[Section], manifest: dict[str, Any], place: Path, size: int, seed: int | None
) -> None:
    """Labels what is left; the manifest says "unfinished" until all is there."""
    clear_parts(place)
    left = _left(place, manifest, sections)
    if len(left) < len(sections):
        log.info("%s: %d of %d label maps are there already", place, len(sections) - len(left), len(sections))
    done = manifest["sections"] = {one.name: manifest["sections"][one.name] for one in sections if one not in left}
    before, started = sum(one["seconds"] for one in done.values()), time.perf_counter()
    wanted, classes = manifest["asked"], manifest["classes"]
    bars.section(method.record["method"])
    bars.expect("label maps", len(left), "picture")
    manifest["status"] = "unfinished"
    save(place, manifest)
    saved = time.monotonic()
    try:
        for group in _batches(left, size):
            begun = time.perf_counter()
            read = [one.read() for one in group]
            channels = 3 if any(image.ndim == 3 for image, _ in read) else 1  # as many as the richest of a batch has
            images = [image if image.ndim == 3 else np.repeat(image[..., None], channels, 2) for image, _ in read]
            found = method.predict(np.stack(images), [one.name for one in group], seed)
            if found.probs.ndim != 4:
                raise ValueError(f"{method.record['method']} labels whole pictures, not their pixels; it draws no map")
            for i, (one, (image, empty)) in enumerate(zip(group, read, strict=True)):
                done[one.name] = _written(place, one, image, empty, found, i, wanted, classes, method)
            for one in group:
                done[one.name]["seconds"] = round((time.perf_counter() - begun) / len(group), 4)
            bars.advance("label maps", len(group))
            if time.monotonic() - saved > SAVED:
                save(place, manifest)
                saved = time.monotonic()
        manifest["sections"] = {one.name: done[one.name] for one in sections}
        manifest["minutes"] = round((before + time.perf_counter() - started) / 60, 4)
        manifest["status"] = "done"
    finally:
        save(place, manifest)


def _written(
    place: Path,
    one: Section,
    image: np.ndarray,
    empty: np.ndarray,
    found: Prediction,
    i: int,
    wanted: Mapping[str, Any],
    classes: Mapping[str, str],
    method: LoadedMethod,
) -> dict[str, Any]:
    """Writes all files of one section; what the manifest says of it.

    Where there is no sample there is no answer: no class, probabilities of 0, and the greatest uncertainty.
    """
    labels, nothing = found.labels[i].to(torch.uint8), torch.from_numpy(empty)
    labels[nothing] = IGNORE
    title = f"{one.name}: {method.record['method']}, run {method.record['run_id']}"
    files = [
        put(place / "labels" / f"{one.name}.png", lambda part: method.palette.write(labels, part)),
        put(
            place / "overlays" / f"{one.name}.png",
            lambda part: draw_overlay(image, labels.numpy(), classes, part, title),
        ),
    ]
    if method.palette.softness is None:  # the run's targets were shares, of which labels say which are above one half
        files.append(put(place / "mattes" / f"{one.name}.png", lambda part: _grey(found.values[i].float(), part)))
    if wanted["probs"]:
        probs = found.probs[i].float().masked_fill(nothing, 0)
        files.append(put(place / "probs" / f"{one.name}.npy", lambda part: np.save(part, probs.numpy())))
        files.append(put(place / "probs" / f"{one.name}.png", lambda part: _grey(probs.amax(0), part)))
    if wanted["uncertainty"]:
        values = (
            (entropy(found.probs) if found.uncertainty is None else found.uncertainty)[i]
            .float()
            .masked_fill(nothing, 1)
        )
        files.append(put(place / "uncertainty" / f"{one.name}.npy", lambda part: np.save(part, values.numpy())))
        # a variance stays small: its root, the standard deviation, can be seen
        seen = values if found.uncertainty is None else values.clamp(min=0).sqrt()
        files.append(put(place / "uncertainty" / f"{one.name}.png", lambda part: _grey(seen, part)))
    counts = np.bincount(labels.numpy().ravel(), minlength=256)[: len(classes)]
    dead = empty.all(axis=0)
    damaged = int(empty[:, ~dead].sum())
    if damaged:
        log.warning("%s: %d samples are no numbers; their labels are 255 (unknown)", one.name, damaged)
    return {
        "input": one.file,
        "size": list(one.shape),
        "dead_traces": int(dead.sum()),
        "damaged_samples": damaged,
        "shares": dict(zip(classes, (counts / max(1, counts.sum())).round(6).tolist(), strict=True)),
        "files": [path.relative_to(place).as_posix() for path in files],
    } | ({"uncertainty": "entropy" if found.uncertainty is None else "its own"} if wanted["uncertainty"] else {})


def _as_segy(sections: Sequence[Section], manifest: dict[str, Any], place: Path) -> None:
    """Writes what was found in SEG-Y files to ``segy/``, one file for every kind of answer that was asked for.

    A file has the traces that were labelled, with their own headers, so that programs for interpretation place them
    where the amplitudes lie. Class indices are written as numbers, 255 where there is no answer; of probabilities the
    greatest.

    Raises:
        ValueError: a file of an earlier call cannot be read any more.
    """
    kinds: dict[str, Callable[[str], np.ndarray]] = {"labels": lambda name: _read(place / "labels" / f"{name}.png")}
    if manifest["asked"]["probs"]:
        kinds["probability"] = lambda name: _read(place / "probs" / f"{name}.npy").max(0)
    if manifest["asked"]["uncertainty"]:
        kinds["uncertainty"] = lambda name: _read(place / "uncertainty" / f"{name}.npy")
    volumes = {one.file: one.volume for one in sections if one.volume is not None}
    bars.expect("SEG-Y files", len(volumes) * len(kinds), "file")
    written = []
    for file, volume in volumes.items():
        names = [one.name for one in sections if one.volume is volume]
        for kind, values in kinds.items():
            target = place / "segy" / f"{Path(file).stem}_{kind}.sgy"
            put(target, partial(volume.write, names=names, values=values))
            written.append(target.relative_to(place).as_posix())
            bars.advance("SEG-Y files")
    manifest["segy"] = written
    save(place, manifest)


def _read(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path))
        with Image.open(path) as picture:
            return np.asarray(picture)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and the same command makes it again") from None


def _grey(values: Tensor, path: Path) -> None:
    """Values [H, W] as a grey picture, black 0 and white 1 or more."""
    Image.fromarray((255 * values.clamp(0, 1)).round().to(torch.uint8).numpy()).save(path)


def _left(place: Path, manifest: Mapping[str, Any], sections: Sequence[Section]) -> list[Section]:
    """Sections that the manifest does not know, or whose files are gone."""
    known = manifest["sections"]
    return [
        one
        for one in sections
        if one.name not in known or not all((place / file).is_file() for file in known[one.name]["files"])
    ]


def _described(method: LoadedMethod, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the manifest that says by what the label maps were made."""
    record = method.record
    commit, dirty = loaded_code()
    return {
        "schema": SCHEMA,
        "status": "unfinished",
        "method": record["method"],
        "run": {name: record[name] for name in ("run_id", "fit_id", "experiment", "seed", "commit", "checkpoints")},
        "classes": dict(zip(method.class_names, method.palette.hex, strict=True)),
        "asked": dict(asked),
        "made_by": {"commit": commit, "dirty": dirty, "versions": versions(), "device": method.device},
    }


def _rule(source: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Amplitudes, str]:
    """The rule from amplitudes to greys, and whose it is."""
    recorded = source.get("amplitudes")
    of_run = {name: recorded[name] for name in given if name in recorded} if isinstance(recorded, Mapping) else {}
    own = {name: value for name, value in given.items() if value is not None}
    whose = "the run's own rule" if of_run else "the usual rule, since the run was trained on pictures"
    if own:
        whose += f", but {', '.join(own)} as asked for"
    return Amplitudes(**{**of_run, **own}), whose


def _is_segy(path: Path) -> bool:
    return path.suffix.lower() in SEGY


def _files(place: Path) -> list[Path]:
    """The pictures and SEG-Y files that are meant.

    Raises:
        ValueError: there are none, or two share a name.
    """
    kinds = (*SUFFIXES, *SEGY)
    if place.is_file():
        if place.suffix.lower() not in kinds:
            raise ValueError(f"input={place}: a picture ({', '.join(SUFFIXES)}) or SEG-Y file (.sgy, .segy) is wanted")
        return [place]
    if not place.is_dir():
        raise ValueError(f"input={place}: there is no such file or folder")
    there = [path for path in place.iterdir() if path.is_file() and not path.name.startswith(".")]
    files = sorted((path for path in there if path.suffix.lower() in kinds), key=lambda path: natural(path.name))
    if not files:
        inside = [f"input={path}" for path in sorted(place.iterdir()) if path.is_dir()][:5]
        hint = f"; do you mean {' or '.join(inside)}?" if inside else ""
        raise ValueError(f"input={place} holds no picture and no SEG-Y file ({', '.join(kinds)}){hint}")
    stems: dict[str, Path] = {}
    for path in files:
        if path.stem in stems:
            raise ValueError(f"{stems[path.stem].name} and {path.name} in {place} share one name; rename one of them")
        stems[path.stem] = path
    others = sorted((path.name for path in there if path not in files), key=natural)
    if others:
        log.warning("%s: left out, since they are neither pictures nor SEG-Y: %s", place, ", ".join(others[:10]))
    return files


def _opened(
    files: Sequence[Path], geometry: Mapping[str, Any], rule: Amplitudes, every: int, deep: Sequence[float] | None
) -> tuple[list[dict[str, Any]], list[Section]]:
    """Looks at every file once: what the manifest says of it, and its sections.

    Raises:
        ValueError: lists the files that cannot be used.
    """
    inputs, sections, wrong = list[dict[str, Any]](), list[Section](), list[str]()
    total = sum(path.stat().st_size for path in files) / MIB
    if total > LARGE:
        bars.expect("fingerprints", total, "MiB")
    for path in files:
        entry = {"file": path.name, "bytes": path.stat().st_size, "sha256": _digest(path, total > LARGE)}
        inputs.append(entry)
        try:
            if _is_segy(path):
                file = SegyFile(path, **geometry)
                entry["segy"] = file.facts
                # a line through a volume is drawn as its inlines are
                whole = file if geometry["points"] is None else SegyFile(path, **{**geometry, "points": None})
                sections += _of_volume(file, whole, rule, every, entry)
            else:
                height, width = read_profile(path, deep).shape[:2]
                sections.append(Section(path.stem, path.name, (height, width), _reader(path, deep)))
        except ValueError as error:
            hint = "; grey_range=[BLACK,WHITE] says that" if "say for all profiles" in str(error) else ""
            wrong.append(f"{error}{hint}")
    if wrong:
        raise ValueError(wrong[0] if len(wrong) == 1 else listed(f"{len(wrong)} files cannot be used", wrong))
    names = [one.name for one in sections]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice[:5])}: two sections would have this name; rename one of the files")
    return inputs, sections


def _reader(path: Path, deep: Sequence[float] | None) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    def read() -> tuple[np.ndarray, np.ndarray]:
        image = read_profile(path, deep)
        return image, np.zeros(image.shape[:2], bool)

    return read


def _of_volume(file: SegyFile, whole: SegyFile, rule: Amplitudes, every: int, entry: dict[str, Any]) -> list[Section]:
    """Sections of a SEG-Y file, whose scale is measured once for all of them, on all sections of ``whole``."""
    limit: float | None = None
    if rule.measured:
        names, nth = whole.measured_on()
        try:
            limit = rule.limit(whole.read(name, nth) for name in names)
        except ValueError as error:
            raise ValueError(f"{file.path.name}: {error}") from None
        traces = "" if nth == 1 else f", one trace of {nth}"
        entry["amplitude"] = {"white": limit, "measured_on": f"{len(names)} of {len(whole.names)} sections{traces}"}
        log.info(
            "%s: amplitudes beyond %g are drawn black and white, %g per cent of them (%s)",
            file.path.name,
            limit,
            100 - rule.clip,
            entry["amplitude"]["measured_on"],
        )
    if missing := file.facts.get("missing_traces"):
        log.warning(
            "%s: %d traces of its grid are missing; they are dead, and their labels 255 (unknown)",
            file.path.name,
            missing,
        )

    def reader(name: str) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        def read() -> tuple[np.ndarray, np.ndarray]:
            amplitudes = file.read(name)
            empty = np.isnan(amplitudes)
            if empty.all():  # nothing to measure a scale on
                return np.full(amplitudes.shape, 128, np.uint8), empty
            return rule.greys(amplitudes, limit), empty

        return read

    return [Section(name, file.path.name, file.shape(name), reader(name), file) for name in file.names[::every]]


def _digest(path: Path, shown: bool) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(8 * MIB):
            total.update(chunk)
            if shown:
                bars.advance("fingerprints", len(chunk) / MIB)
    return total.hexdigest()


def _batches(sections: Sequence[Section], size: int) -> Iterator[list[Section]]:
    """Neighbours of one height and width, ``size`` at most."""
    group: list[Section] = []
    for one in sections:
        if group and (len(group) == size or one.shape != group[0].shape):
            yield group
            group = []
        group.append(one)
    if group:
        yield group
