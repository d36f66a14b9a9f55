"""geoseg compare: which method, with the labels that there are."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from geoseg.commands import run
from geoseg.commands.shell import exit_code, prepared

if TYPE_CHECKING:
    from geoseg.compare import Room

USAGE = """\
geoseg compare [data=... key=value ...] [--dry]

Which method should I use with the labels that I have? Runs every method of experiment=comparison with few to many
labelled images and several seeds, on the same splits and test set, and ranks them. First it says what will be run and
about how long that takes, from earlier runs or from a few steps of each method; --dry stops there. The same command
goes on where an interrupted one stopped, and repeats nothing that is finished.

  methods=unet,dinov2_mla       some methods, as method=... of geoseg run names them; otherwise those of the experiment
  num_train=1,2,4               numbers of labelled images; those that the data set does not have are left out
  seeds=5                       so many seeds, from 0 on
  baseline=unet                 what the others are compared with; otherwise the best of each number of images
  to=FOLDER                     where ranking, figures, sheet and page go; otherwise runs/comparison/report/DATA

Other settings are those of geoseg run, such as data.root=FOLDER, checkpoints=hub, trainer=cpu, workers=2, name=mine;
method.KEY=VALUE holds for all methods trained in steps, such as method.task.fit.steps=200 for trainings of one length.
Where a data set prescribes no split, a quarter of it is kept for the test, unless data.num_test says how many.

  geoseg compare data=profiles data.root=FOLDER num_train=1,2,4,8 seeds=3 workers=2
"""

COMPARISON = ("methods", "num_train", "seeds", "baseline", "to")
"""Words of geoseg compare that are no settings of a run."""


@dataclass(frozen=True)
class Line:
    """What was typed, by whom it is for.

    Attributes:
        own: folders that --config-dir names.
        folders: where Hydra looks besides: these, and the user's own.
        asked: values of ``COMPARISON``.
        base: settings of every run.
        of_methods: settings of the methods that are trained in steps.
    """

    own: list[str]
    folders: list[str]
    asked: dict[str, str]
    base: list[str]
    of_methods: list[str]

    def composed(self, *more: str, hydra: bool = False) -> Any:
        """The configuration of these settings and more, with Hydra's own on request.

        Raises:
            HydraException, ValueError: there is no such setting or option.
        """
        from hydra import compose, initialize_config_dir
        from hydra.errors import HydraException

        from geoseg.config import conf_folder
        from geoseg.overrides import check_overrides, searching

        words = [*self.base, *more]
        try:
            with initialize_config_dir(str(conf_folder()), version_base="1.3"):
                return compose("run", overrides=[*searching(self.folders), *words], return_hydra_config=hydra)
        except HydraException:
            check_overrides(words, folders=self.folders)  # says what is wrong in its own words
            raise


class Sweep(NamedTuple):
    """Runs that one multirun makes.

    Attributes:
        methods: as method=... names them.
        sizes: numbers of labelled images.
        settings: of these methods alone.
    """

    methods: list[str]
    sizes: list[int]
    settings: list[str]


def command(words: list[str]) -> int:
    """Plans, runs and reports a comparison of methods."""
    if any(word in ("-h", "--help") for word in words):
        print(USAGE)
        return 0
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see commands.run
    prepared()
    return exit_code("compare", lambda: _compare(words), "the same command goes on with what is left")


def _compare(words: list[str]) -> int:
    from geoseg.config import register_resolvers

    register_resolvers()
    line = _read(words)
    _check(words, line)
    methods, sizes, seeds = _wanted(line)
    configs = {method: line.composed(f"method={method}") for method in methods}
    learning = [method for method in methods if configs[method].method.task is not None]
    trained = [method for method in learning if "fit" in configs[method].method.task]  # the others are tuned

    from geoseg.compare import entries, print_plan, room, speeds, title_of, write_comparison
    from geoseg.ranking import print_ranking

    there = room(configs[methods[0]])
    if there.num_test is not None:
        line = replace(line, base=[*line.base, f"data.num_test={there.num_test}"])
        print(f"{there.title} prescribes no split: {there.num_test} profiles are kept for the test")
    sizes = _there(sizes, there)

    def configured(method: str, *more: str) -> Any:
        return line.composed(f"method={method}", *(line.of_methods if method in trained else ()), *more)

    if line.of_methods or there.num_test is not None:
        configs = {method: configured(method) for method in methods}
    planned = entries(configs, sizes, seeds)
    title = title_of(line.asked.get("baseline"), planned)
    config = configs[methods[0]]
    print_plan(planned, speeds(planned, Path(config.runs), configured), config.workers)
    if "--dry" in words:
        return 0
    unfinished = {entry.method for entry in planned if not entry.finished}
    sweeps = (
        Sweep([method for method in methods if method not in learning], sizes[:1], []),
        Sweep([method for method in learning if method not in trained], sizes, []),
        Sweep(trained, sizes, line.of_methods),
    )
    code = _run(line, [sweep for sweep in sweeps if not unfinished.isdisjoint(sweep.methods)], seeds)
    if code >= 128:  # stopped: there is more to run before there is something to report
        return code
    place = Path(config.runs) / config.name / "report" / re.sub(r"\W+", "_", there.title)
    places, made = write_comparison(planned, Path(line.asked.get("to") or place), line.asked.get("baseline"))
    print_ranking(places, title)
    for name, files in made.items():
        print(f"{name} -> {', '.join(map(str, files))}")
    return code


def _read(words: Sequence[str]) -> Line:
    """The words, sorted; without an experiment it is that of the comparison."""
    from geoseg.overrides import own_folders, users_folder, without_options

    own, rest = own_folders(words), without_options(words)
    asked = {word.partition("=")[0]: word.partition("=")[2] for word in rest if word.partition("=")[0] in COMPARISON}
    others = [word for word in rest if word.partition("=")[0] not in COMPARISON]
    of_methods = [word for word in others if word.lstrip("+~").startswith("method.")]
    base = [word for word in others if word not in of_methods]
    if not any(word.startswith("experiment=") for word in base):
        base.insert(0, "experiment=comparison")
    return Line(own, [*own, *users_folder()], asked, base, of_methods)


def _check(words: Sequence[str], line: Line) -> None:
    """Looks for what a comparison does not take, and for settings that do not exist.

    Raises:
        ValueError: there is such a word.
    """
    from geoseg.overrides import OWN, check_overrides

    unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in ("--dry", *OWN)]
    if unknown:
        raise ValueError(f"there is no option {unknown[0]}; --dry shows the plan and the estimate alone")
    if fixed := [word for word in line.base if word.partition("=")[0] in ("method", "seed", "data.num_train")]:
        raise ValueError(f"{fixed[0]}: a comparison has several; type methods=..., seeds=..., num_train=...")
    check_overrides(line.base, folders=line.folders)


def _wanted(line: Line) -> tuple[list[str], list[int], list[int]]:
    """Methods, numbers of labelled images and seeds: as they were asked for, else those of the experiment.

    Raises:
        ValueError: there are no methods, or the numbers are none.
    """
    asked = line.asked
    swept: Any = line.composed(hydra=True).hydra.sweeper.params or {}
    if not asked.get("methods", swept.get("method")):
        raise ValueError("which methods? methods=unet,dinov2_mla names them")
    methods = [name.strip() for name in str(asked.get("methods") or swept["method"]).split(",") if name.strip()]
    sizes = sorted(set(_numbers("num_train", asked.get("num_train") or swept.get("data.num_train", 4))))
    seeds = _numbers("seeds", swept.get("seed", 0), least=0)
    if "seeds" in asked:
        seeds = list(range(_numbers("seeds", asked["seeds"])[0]))
    return methods, sizes, seeds


def _numbers(key: str, text: Any, least: int = 1) -> list[int]:
    """1,2,4 as whole numbers.

    Raises:
        ValueError: they are none, or too small.
    """
    try:
        found = [int(part) for part in str(text).split(",")]
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise ValueError(f"{key}={text}: whole numbers from {least} on are wanted, with commas between them")
    return found


def _there(sizes: list[int], there: Room) -> list[int]:
    """Those numbers of labelled images that the data set has; says which are left out.

    Raises:
        ValueError: it has none of them.
    """
    beyond = [size for size in sizes if size > there.images]
    if not beyond:
        return sizes
    what = f"{there.title} has {there.images} labelled images to train on"
    if len(beyond) == len(sizes):
        raise ValueError(f"num_train={_listed(sizes)}: {what}; ask for 1 to {there.images}")
    print(f"left out: {', '.join(map(str, beyond))} labelled images, since {what}")
    return [size for size in sizes if size not in beyond]


def _run(line: Line, sweeps: Sequence[Sweep], seeds: Sequence[int]) -> int:
    """Runs what is left, one multirun after the other, until somebody stops one; returns the highest exit code."""
    flags = [option for folder in line.own for option in ("--config-dir", folder)]
    highest = 0
    for methods, sizes, settings in sweeps:
        swept = [f"seed={_listed(seeds)}", f"method={_listed(methods)}", f"data.num_train={_listed(sizes)}"]
        highest = max(highest, run.command(["-m", *flags, *line.base, *settings, *swept]))
        if highest >= 128:
            break
    return highest


def _listed(values: Sequence[Any]) -> str:
    return ",".join(map(str, values))
