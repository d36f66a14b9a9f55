"""geoseg run: one run of a composed configuration, or a multirun."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from typing import Any


def command(words: list[str]) -> int:
    """Composes the configuration and hands it to ``geoseg.run``."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # waiting threads that spin cost a factor of ten as soon as two processes share the cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import hydra
    from hydra.errors import HydraException

    from geoseg import sweep
    from geoseg.config import conf_folder, register_resolvers
    from geoseg.overrides import TAKES_A_WORD, own_folders, searching, users_folder
    from geoseg.quiet import quieten
    from geoseg.workers import WorkerEnded

    sweep.register()
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    quieten()  # before libraries are imported, some of which speak then
    register_resolvers()
    multirun = "-m" in words or "--multirun" in words
    # a word behind an option without = is that option's own
    before_each = zip(["", *words], words, strict=False)
    overrides = [w for last, w in before_each if not w.startswith("-") and ("=" in w or last not in TAKES_A_WORD)]
    asked = any(word in ("-h", "--help", "--hydra-help") for word in words)
    users = [] if any(word.startswith("hydra.searchpath=") for word in words) else users_folder()
    try:
        _check(words, overrides, multirun, asked, [*own_folders(words), *users])
    except (HydraException, ValueError) as error:
        print(f"geoseg: {error}", file=sys.stderr)
        return 2
    codes: list[int] = []

    def single(cfg: Any) -> float | None:
        try:
            return sweep.job(cfg)
        except Exception as error:
            failed = sweep.describe(error)
            if failed.code == 1 and not isinstance(error, WorkerEnded):  # which says all that is known
                raise
            print(f"geoseg: {failed.text}", file=sys.stderr)
            codes.append(failed.code)
            return None

    before = sys.argv
    try:
        with tempfile.TemporaryDirectory(prefix="geoseg-") as scratch:
            # Hydra writes a sweep's whole configuration beside its results, secrets included; runs keep a redacted one
            places = [] if asked else [f"hydra.run.dir={scratch}", f"hydra.sweep.dir={scratch}"]
            places += searching(users)
            # argparse wants all settings side by side and -m before them
            flags = [word for word in words if word in ("-m", "--multirun")]
            rest = [word for word in words if word not in flags]
            first = next((i for i, word in enumerate(rest) if word in overrides), len(rest))
            sys.argv = ["geoseg run", *flags, *rest[:first], *places, *rest[first:]]
            job = sweep.job if multirun else single  # a sweep's workers find it by its name
            hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="run")(job)()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return max(codes, default=0)


def _check(words: list[str], overrides: list[str], multirun: bool, helped: bool, folders: list[str]) -> None:
    """Looks through the words before anything heavy is imported.

    Args:
        words: all that was typed.
        overrides: those that are settings.
        multirun: whether there may be several runs.
        helped: whether it was asked for help alone.
        folders: where Hydra looks besides.

    Raises:
        ValueError: something cannot work, or the shell took it apart.
    """
    from geoseg.overrides import check_overrides
    from geoseg.quoting import torn

    if line := torn(words):
        raise ValueError(f"a value with spaces needs quotes: {line}")
    shown = helped or any(word.startswith(("--cfg", "-c", "--info", "-i")) for word in words)
    queue = [word for word in overrides if word.startswith("hydra/launcher=slurm")]
    if queue and not multirun and not shown:
        raise ValueError(f"{queue[-1]} is for sweeps; geoseg run -m, with one value for all settings, submits one run")
    check_overrides(overrides, multirun, folders)
