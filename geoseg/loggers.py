"""Where a run's numbers go while it runs: JSON lines always, Weights & Biases beside them."""

from __future__ import annotations

import csv
import errno
import io
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from geoseg.record import write_atomically

log = logging.getLogger("geoseg")


class JsonLines(Logger):
    """Appends every set of numbers to ``metrics.jsonl``, one object per line with its step, flushed at once.

    Args:
        folder: where the file lies. Lines of an earlier training in it go when the first line of this one comes.

    Attributes:
        count: lines of this training.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.count = 0

    @property
    def name(self) -> str:
        return "json"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # JSON has no word for nan and infinity
        numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items() if name != "epoch"}
        if numbers:
            if not self.count:
                self.path.unlink(missing_ok=True)
            line = (json.dumps({"step": step, **numbers}) + "\n").encode()
            with self.path.open("ab", buffering=0) as file:
                size = file.tell()
                try:
                    if file.write(line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                except OSError:
                    file.truncate(size)  # half a line could not be read again
                    raise
            self.count += 1

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Configuration is kept in config.yaml instead."""

    @rank_zero_only
    def write_csv(self) -> Path | None:
        """The same numbers as ``metrics.csv``, a row per step; None where nothing was logged."""
        if not self.path.is_file():
            return None
        rows: dict[int, dict[str, Any]] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            numbers = json.loads(line)
            rows.setdefault(numbers["step"], {}).update(numbers)
        columns = ["step", *sorted({name for row in rows.values() for name in row} - {"step"})]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[step] for step in sorted(rows))
        path = self.path.with_suffix(".csv")
        write_atomically(path, text.getvalue())
        return path

    @rank_zero_only
    def rewind(self, count: int) -> None:
        """Goes on after line ``count`` of an interrupted training; what it logged after that will be logged again."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.is_file() else []
        if len(lines) < count:
            log.warning("%s lacks %d lines that the training had logged before", self.path, count - len(lines))
        if count:
            write_atomically(self.path, "".join(lines[:count]))
        self.count = count


class Relay(Logger):
    """Hands what a training logs to another process.

    Args:
        send: called with the name of a method of ``WandbLogger`` and what it is to be given.
    """

    def __init__(self, send: Callable[..., object]) -> None:
        super().__init__()
        self._send = send

    @property
    def name(self) -> str:
        return "relay"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._send("log_metrics", dict(metrics), step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is given elsewhere."""

    def log_pictures(self, name: str, paths: Sequence[Path]) -> None:
        """Shows picture files."""
        self._send("log_pictures", name, list(paths))


FINISH = 30
"""Seconds that wandb may take at the end of a run to send what is left."""


class WandbLogger(Logger):
    """Weights & Biases that can never slow down or stop a run.

    Offline unless the environment's WANDB_MODE says otherwise. Where wandb cannot be reached, this run and all later
    ones of the process go on offline. Whatever else goes wrong inside wandb, such as a full disk, is reported once and
    switches this logger off for the rest of the run.

    Args:
        folder: where wandb writes its files.
        run_id: the run's identity, which is its id in wandb too.
        group: runs of one experiment.
        title: the name that wandb shows.
        tags: words to filter by.
        config: what is shown as the run's configuration; secrets must be taken out before.
        project: wandb's project.
        entity: wandb's user or team; None takes the account's default.
        job_type: what wandb calls the kind of the run.
        anew: replace what wandb has under this id; else go on with it.

    Attributes:
        failed: whether anything has gone wrong inside wandb.
    """

    _staging: str | None = None  # of the latest run in this process
    _unreachable = False  # waiting for a dead network once per process is enough

    def __init__(
        self,
        folder: Path,
        run_id: str,
        group: str,
        title: str,
        tags: Sequence[str],
        config: Mapping[str, Any],
        project: str = "geoseg",
        entity: str | None = None,
        job_type: str | None = None,
        anew: bool = False,
    ) -> None:
        super().__init__()
        self._run: Any = None
        self.failed = False
        self._version = run_id
        start = partial(self._start, folder, group, title, tags, config, project, entity, job_type, anew)
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "online":
            if not WandbLogger._unreachable:
                try:
                    start("online")
                    return
                except Exception as error:
                    WandbLogger._unreachable = True
                    self._safely(_forget)
                    log.warning(
                        "Weights & Biases cannot be reached, so runs stay offline (%s); wandb sync sends them later",
                        error,
                    )
            mode = "offline"
        self._safely(partial(start, mode))

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return self._version

    @property
    def files(self) -> Path | None:
        """The folder that wandb writes to, while it does."""
        return None if self._run is None else Path(self._run.dir).parent

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # the stage's own step is a value, since training and test both begin at 0 and wandb's step only grows
        self._call(lambda run: run.log({**metrics, "step": step}))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is given to wandb at the start."""

    def log_pictures(self, name: str, paths: Sequence[Path]) -> None:
        """Shows picture files."""

        def show(run: Any) -> None:
            import wandb

            run.log({f"{name}/{path.stem}": wandb.Image(str(path)) for path in paths})

        self._call(show)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Shows a table."""

        def show(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

        self._call(show)

    def log_files(self, name: str, kind: str, paths: Sequence[Path]) -> None:
        """Keeps files as an artifact."""

        def keep(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(name, type=kind)
            for path in paths:
                artifact.add_dir(str(path)) if path.is_dir() else artifact.add_file(str(path))
            run.log_artifact(artifact)

        self._call(keep)

    def close(self, summary: Mapping[str, float], failed: bool = False) -> None:
        """Writes the final scores and ends the wandb run, where that has not been done."""

        def end(run: Any) -> None:
            run.summary.update(dict(summary))
            started = time.monotonic()
            run.finish(exit_code=int(failed))
            if time.monotonic() - started > FINISH:  # it gave up
                WandbLogger._unreachable = True

        self._call(end)
        self._run = None

    def _start(
        self,
        folder: Path,
        group: str,
        title: str,
        tags: Sequence[str],
        config: Mapping[str, Any],
        project: str,
        entity: str | None,
        job_type: str | None,
        anew: bool,
        mode: str,
    ) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()  # wandb's own process may work in another directory
        if os.environ.get("WANDB_DATA_DIR") in (None, WandbLogger._staging):  # where the user did not say
            os.environ["WANDB_DATA_DIR"] = WandbLogger._staging = str(folder / "wandb")  # artifacts stay beside the run
        self._run = wandb.init(
            dir=str(folder),
            project=project,
            entity=entity,
            id=self._version,
            name=title,
            group=group,
            job_type=job_type,
            tags=list(tags),
            config=dict(config),
            mode=cast(Any, mode),
            resume=None if anew else "allow",
            reinit="finish_previous",
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=15,
                finish_timeout=FINISH,  # without it, a dead network holds the program at its end for good
                x_disable_stats=True,
                x_disable_meta=True,  # it holds the command line, and that may hold secrets
                disable_git=True,
                save_code=False,
            ),
        )

    def _call(self, action: Callable[[Any], None]) -> None:
        if self._run is not None:
            self._safely(lambda: action(self._run))

    def _safely(self, action: Callable[[], None]) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # wandb's own advice; what matters reaches the except below
                action()
        except Exception as error:
            self._run, self.failed = None, True
            log.warning("Weights & Biases is off for the rest of this run: %s", error)


def address(node: Mapping[str, Any] | None) -> dict[str, Any]:
    """Project and entity of the logger that a run's configuration describes, as ``WandbLogger`` takes them."""
    return {name: value for name, value in (node or {}).items() if name in ("project", "entity")}


def _forget() -> None:
    """Ends wandb's service process, which would still hold the id of a run that did not start."""
    import wandb

    wandb.teardown()
