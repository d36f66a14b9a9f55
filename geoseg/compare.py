"""One comparison of many methods with few to many labelled images: what it will take, and what came of it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table as Printed

from geoseg.ablation import ablations
from geoseg.assembly import Models
from geoseg.charts import Cost, costs, draw_ablations, draw_costs
from geoseg.config import build, check_targets, plain
from geoseg.page import Drawing, Table, write_page
from geoseg.ranking import NOTE, Place, learns, ranking, ranking_cells, ranking_text
from geoseg.ranks import on_gpu
from geoseg.record import device, write_atomically
from geoseg.report import Found, find, put_between, write_results
from geoseg.run import jobs_of, run
from geoseg.sheet import draw_sheets
from geoseg.summary import COST_NOTE, answers, cost_cells, settings

MEASURED = 10
"""Steps that a method is trained for, after its warm-up, where nothing else tells how fast it is."""


class Room(NamedTuple):
    """What a data set has for a comparison.

    Attributes:
        images: labelled images that can be trained on.
        num_test: profiles to keep for the test, where the data set leaves that open; None where it does not.
        title: what the data set is called.
    """

    images: int
    num_test: int | None
    title: str


class Entry(NamedTuple):
    """One run of a comparison.

    Attributes:
        method: the option that was chosen, such as "unet".
        title: what the method is called.
        learns: whether it trains something.
        size: labelled images.
        seed: of choice, weights and noise.
        folder: of the run.
        finished: whether it has come to its end before.
        steps: that its optimizer will make.
        pictures: that it will predict.
    """

    method: str
    title: str
    learns: bool
    size: int
    seed: int
    folder: Path
    finished: bool
    steps: int
    pictures: int


class Speed(NamedTuple):
    """How fast a method is here.

    Attributes:
        step: minutes per step of training.
        picture: minutes per test profile, scoring included.
        source: where that is from, in words.
    """

    step: float
    picture: float
    source: str


def room(config: Any) -> Room:
    """Looks how many labelled images there are to train on, with a test set that is the same for every number of them.

    Where the data set prescribes no split and nobody has said ``data.num_test``, a quarter of the samples is kept.

    Args:
        config: a composed configuration.

    Raises:
        ValueError: the data cannot work, or ``data.select`` names samples.
    """
    check_targets(config, config.trust)
    node = plain(config)["data"]
    if not isinstance(node["select"], str):
        raise ValueError("data.select names samples, so that there is one number of them; use random or representative")
    data = build({**node, "num_train": None, "select": "random"}, "data")
    names = data.source.names
    kept = None
    if data.num_test is None and not any(data.source.split(name) for name in names):
        kept = data.num_test = max(1, len(names) // 4)
    data.prepare()
    return Room(len(data.train), kept, str(data.source.title))


def entries(configs: Mapping[str, Any], sizes: Sequence[int], seeds: Sequence[int]) -> list[Entry]:
    """The runs of a comparison: a method that learns nothing has one per seed, others one per number of images too.

    Args:
        configs: method to its composed configuration.
        sizes: numbers of labelled images, in order.
        seeds: one run each.

    Raises:
        ValueError: a configuration or the data cannot work.
    """
    prepared: dict[str, Any] = {}
    found = []
    for method, config in configs.items():
        for seed, size in product(seeds, sizes_of(config, sizes)):
            one = copy.deepcopy(config)
            one.seed, one.data.num_train = seed, size
            job = jobs_of(one, prepared)[0]
            task = job.method["task"]
            steps = 0 if task is None else _steps(task.get("fit"), size)
            pictures = len(job.data.names["test"])
            done = job.finished() is not None
            title = str(job.method["title"])
            found.append(Entry(method, title, task is not None, size, seed, job.folder, done, steps, pictures))
    return found


def sizes_of(config: Any, sizes: Sequence[int]) -> Sequence[int]:
    """The numbers of labelled images that make a difference to a method."""
    return sizes[:1] if config.method.task is None else sizes


def _steps(fit: Mapping[str, Any] | None, size: int) -> int:
    """Steps of a training, where an epoch meets each image once; of a tuning, which has no steps, its images."""
    if fit is None:
        return size
    if fit.get("steps") is not None:
        return int(fit["steps"])
    batches = -(-size // fit.get("batch_size", 1)) * fit.get("epochs", 50) * fit.get("repeats", 1)
    return int(-(-batches // fit.get("accumulate", 1)))


def speeds(planned: Sequence[Entry], runs: Path, compose: Callable[..., Any]) -> dict[str, Speed]:
    """How fast the methods are that have something left to do: by earlier runs, else measured.

    Earlier runs of a method of that name count, on the same data, with the same kind of checkpoints on a device of the
    same name, whatever their length. A measurement is a run in a folder that is thrown away: a few steps, one profile.

    Args:
        planned: the runs of the comparison.
        runs: the folder of all runs.
        compose: makes the configuration of a method, by its name and more words.

    Raises:
        ValueError: a method cannot be run, with the reason.
    """
    there = [one.record for one in find([runs])] if runs.is_dir() else []
    models = Models()
    found = {}
    for method in dict.fromkeys(entry.method for entry in planned if not entry.finished):
        config = compose(method)
        wanted = plain(config)
        here = _without_threads(device(gpu=on_gpu(wanted["trainer"])))
        alike = [
            record
            for record in there
            if record["status"] == "done" and record["method"] == wanted["method"]["title"] and "units" in record
            if record["config"]["data"]["source"] == wanted["data"]["source"]
            if record["config"]["checkpoints"]["kind"] == wanted["checkpoints"]["kind"]
            if _without_threads(record["device"]) == here
        ]
        if alike:
            found[method] = _speed(alike, f"{len(alike)} earlier run{'s' * (len(alike) > 1)} of these data")
        else:
            print(f"{method}: no earlier run of these data; measuring a few steps ...", flush=True)
            measured = _measured(method, wanted["method"]["task"], compose, models)
            found[method] = _speed([measured], "a few steps, one profile")
    return found


def _without_threads(device: str) -> str:
    """CPU x86_64, 2 threads: a worker has fewer of them than this process."""
    return device.partition(",")[0]


def _speed(records: Sequence[Mapping[str, Any]], source: str) -> Speed:
    trained = [one for one in records if learns(one)]
    steps = sum(_steps(one["config"]["method"]["task"].get("fit"), one["num_train"]) for one in trained)
    pictures = sum(len(one["units"]["names"]) for one in records)
    training = sum(one["minutes"]["fit"] for one in trained)
    predicting = sum(one["minutes"]["predict"] + one["minutes"]["score"] for one in records)
    return Speed(training / max(1, steps), predicting / max(1, pictures), source)


def _measured(
    method: str, task: Mapping[str, Any] | None, compose: Callable[..., Any], models: Models
) -> dict[str, Any]:
    """The record of a run of a few steps."""
    with tempfile.TemporaryDirectory(prefix="geoseg-") as folder:
        words = [f"runs={folder}", "name=measured", "data.num_train=1", "data.num_val=0", "data.num_test=1"]
        words += ["foresee=false", "progress=false", "sample_every=0", "figure_rows=0", "++logger.wandb=null"]
        if task is not None and "fit" in task:
            warmup = (task.get("schedule") or {}).get("warmup", 0)
            words += [f"++method.task.fit.steps={warmup + MEASURED}", "++method.task.fit.patience=null"]
        try:
            return run(compose(method, *words), models)[0][0]
        except ValueError as error:
            raise ValueError(f"method={method} cannot be run: {error}; methods=... leaves it out") from error


def minutes_of(entry: Entry, speed: Speed) -> float:
    """What a run will take, by how fast its method is."""
    return entry.steps * speed.step + entry.pictures * speed.picture


def print_plan(
    planned: Sequence[Entry], fast: Mapping[str, Speed], workers: int, console: Console | None = None
) -> None:
    """Prints what will be run, and about how long it takes.

    Args:
        planned: the runs of the comparison.
        fast: speeds of the methods that have something left to do.
        workers: processes that share the work.
        console: where to.
    """
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=max(120, console.width), file=console.file)
    table = Printed(box=box.SIMPLE)
    for title in ("method", "images", "seeds", "runs", "finished", "minutes each", "minutes left"):
        left = title in ("method", "images")
        table.add_column(title, justify="left" if left else "right", no_wrap=left)
    table.add_column("estimated from", no_wrap=True)
    whole = 0.0
    for method in dict.fromkeys(entry.method for entry in planned):
        those = [entry for entry in planned if entry.method == method]
        minutes = [minutes_of(entry, fast[method]) for entry in those if not entry.finished]
        whole += sum(minutes)
        sizes = sorted({entry.size for entry in those}) if those[0].learns else []
        table.add_row(
            f"{method}: {those[0].title}",
            " ".join(map(str, sizes)) or "learns nothing",
            str(len({entry.seed for entry in those})),
            str(len(those)),
            str(len(those) - len(minutes)),
            _span(minutes) if minutes else "",
            _few(sum(minutes)) if minutes else "",
            fast[method].source if minutes else "",
        )
    console.print(table, highlight=False)
    left_over = sum(not entry.finished for entry in planned)
    if not left_over:
        console.print(f"all {len(planned)} runs are finished", highlight=False)
        return
    shared = f" with {workers} workers, if none slows another down" if workers > 1 else ""
    console.print(
        f"{left_over} of {len(planned)} runs are left: about {_long(whole / workers)}{shared}. That takes a training "
        "to be as long as its steps, and leaves out loading, figures and waiting.",
        highlight=False,
        soft_wrap=True,
    )


def _few(minutes: float) -> str:
    return f"{minutes:.0f}" if minutes >= 10 else f"{minutes:.2g}"


def _span(minutes: Sequence[float]) -> str:
    first, last = _few(min(minutes)), _few(max(minutes))
    return first if first == last else f"{first} to {last}"


def _long(minutes: float) -> str:
    """A time as people say it.

    >>> _long(0.4), _long(12.3), _long(200), _long(5000)
    ('1 minute', '12 minutes', '3.3 hours', '3.5 days')
    """
    if minutes < 90:
        count = max(1, round(minutes))
        return f"{count} minute{'s' * (count > 1)}"
    return f"{minutes / 60:.1f} hours" if minutes < 60 * 48 else f"{minutes / 60 / 24:.1f} days"


def write_comparison(
    planned: Sequence[Entry], folder: Path, baseline: str | None = None
) -> tuple[list[Place], dict[str, list[Path]]]:
    """Writes what came of a comparison: ranking, figures, sheet, page.

    Args:
        planned: its runs; those without a record are left out.
        folder: gets ``results.csv``, ``ranking.md`` (or the place between ``<!-- ranking -->`` and
            ``<!-- end of ranking -->`` of a README.md), ``over_num_train``, ``cost``, ``results.png``, ``report.html``.
        baseline: the method, as it was chosen, that others are compared with; None takes the best.

    Returns:
        The ranking, and the files of each part.

    Raises:
        ValueError: no run was tested, or the baseline is none of the methods.
    """
    runs = find([entry.folder for entry in planned if (entry.folder / "record.json").is_file()])
    records = [one.record for one in runs]
    done = [record for record in records if record["status"] == "done"]
    if not done:
        raise ValueError(f"none of {len(planned)} runs came to its end, so there is nothing to rank")
    title = title_of(baseline, planned)
    places = ranking(records, title)
    made: dict[str, list[Path]] = {"runs": [write_results(records, folder / "results.csv", settings(records))]}
    text = ranking_text(places, title)
    failed = [record for record in records if record["status"] == "failed"]
    if failed:
        text += "\n" + "\n".join(f"- failed: {one['method']} `{one['run_id']}`" for one in failed) + "\n"
    readme = folder / "README.md"
    if readme.is_file():
        made["ranking"] = [put_between(readme, "ranking", text)]
    else:
        write_atomically(folder / "ranking.md", text)
        made["ranking"] = [folder / "ranking.md"]
    drawings: list[tuple[str, list[Path]]] = []
    if len({place.size for place in places}) > 1:
        drawings += draw_ablations(ablations(answers(records), {}, "num_train"), folder, "num_train")
    if found := costs_by_size(places):
        drawings.append(("Cost and score", draw_costs(found, folder / "cost")))
    most = largest(places)
    sheet = [one for one in runs if _shown(one, most)]
    whole = [Found(one.folder, answer) for one, answer in zip(sheet, answers([s.record for s in sheet]), strict=True)]
    drawings += [(f"{name}, {most} labelled images", [path]) for name, path in draw_sheets(whole, folder)]
    made |= {files[0].stem: files for _, files in drawings}
    tables = [
        Table("Ranking", *ranking_cells(places, title), NOTE),
        Table("What it costs", *cost_cells(records), COST_NOTE),
    ]
    pictures = [Drawing(name, files[0]) for name, files in drawings]
    made["page"] = [write_page(folder / "report.html", runs, {}, tables, pictures)]
    return places, made


def title_of(baseline: str | None, planned: Sequence[Entry]) -> str | None:
    """What the method is called in tables that was chosen as the baseline.

    Raises:
        ValueError: it is none of those that are compared.
    """
    titles = {entry.method: entry.title for entry in planned}
    if baseline is not None and baseline not in titles:
        raise ValueError(f"baseline={baseline} is none of the methods that are compared: {', '.join(titles)}")
    return None if baseline is None else titles[baseline]


def costs_by_size(places: Sequence[Place]) -> list[Cost]:
    """Minutes and scores, a panel per number of labelled images; methods in the order of the figure over them."""
    several = len({place.data for place in places}) > 1
    found = []
    for size in sorted({place.size for place in places}):
        here = [place for place in places if place.size == size]
        here.sort(key=lambda place: (learns(place.runs[0].record), place.method))
        records = [run.record for place in here for run in place.runs]
        labelled = f"{size} labelled image{'s' * (size > 1)}"
        for cost in costs(records):
            found.append(cost._replace(data=f"{cost.data}, {labelled}" if several else labelled))
    return found


def largest(places: Sequence[Place]) -> int:
    """The largest number of labelled images that most methods were run with."""
    sizes = [place.size for place in places]
    return max(sizes, key=lambda size: (sizes.count(size), size))


def _shown(one: Found, size: int) -> bool:
    return one.record["num_train"] == size or not learns(one.record)
