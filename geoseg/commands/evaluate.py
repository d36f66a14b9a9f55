"""geoseg evaluate: a finished run on other data."""

from __future__ import annotations

from geoseg.commands.shell import exit_code, prepared

USAGE = """\
geoseg evaluate run=RUN [data=... data.root=... key=value ...]

Scores what a finished run has trained on other data, with its predictor and without training: all samples that have a
label map, or the test set where the data prescribes one. Pictures that the run was trained on are left out. It leaves a
record of its own in runs/evaluate, or in runs/NAME with name=NAME; classes have to be those of the run. Without data=
it shows what the run recorded; with force=true besides, it predicts the run's own test set anew.

RUN is a run's folder, or its id or the beginning of it below runs=FOLDER. Other settings it takes are those of data,
trainer and logger, such as trainer=cpu or logger=files, and name, tags, force, progress, figure_rows, foresee, trust;
method.model.path_or_id=FOLDER and the like say where a checkpoint of the method lies now.

  geoseg evaluate run=32d1375255 data=profiles data.root=FOLDER name=other_survey
"""

EVALUATED = (
    "data",
    "trainer",
    "logger",
    "name",
    "tags",
    "runs",
    "force",
    "trust",
    "progress",
    "figure_rows",
    "foresee",
)
"""Settings, and groups of them, that an evaluation takes; all others are those of the run it evaluates."""


def command(words: list[str]) -> int:
    """Scores a finished run on other data."""
    if any(word in ("-h", "--help") for word in words):
        print(USAGE)
        return 0
    prepared()
    return exit_code("evaluate", lambda: _evaluate(words))


def _evaluate(words: list[str]) -> int:
    from hydra import compose, initialize_config_dir

    from geoseg.config import conf_folder, register_resolvers
    from geoseg.overrides import check_overrides, own_folders, searching, without_options
    from geoseg.record import find_run

    register_resolvers()
    own, rest = own_folders(words), without_options(words)
    given = {word.partition("=")[0].lstrip("+"): word.partition("=")[2] for word in rest}
    moved = {key: value for key, value in given.items() if key.startswith("method.") and "path" in key}
    overrides = [word for word in rest if word.partition("=")[0] not in ("run", *moved)]
    if not given.get("run"):
        raise ValueError("which run? run=RUN names its folder, runs/EXPERIMENT/RUN_ID, or its id")
    for key in given.keys() - moved.keys() - {"run"}:
        if key.split(".")[0] not in EVALUATED:
            raise ValueError(
                f"{key}: an evaluation takes that from the run; leave it away, or train anew with geoseg run. "
                f"What can be set: {', '.join(EVALUATED)}"
            )
    if "data" not in given and any(key.startswith("data.") for key in given):
        raise ValueError("name the data in full, its group too, such as data=profiles data.root=FOLDER")
    folder, record = find_run(given["run"], given.get("runs", "runs"))
    overrides += ["name=evaluate"] * ("name" not in given) + [f"seed={record['config']['seed']}", "rivals=null"]
    check_overrides(overrides, folders=own)
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("run", overrides=[*searching(own), *overrides])

    from geoseg.evaluate import evaluate
    from geoseg.report import print_run

    found, place = evaluate(folder, record, cfg, "data" in given, moved)
    print_run([found], place)
    return 0
