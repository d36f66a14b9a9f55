"""Which way of segmenting geological profiles works, with few labels, and how sure one can be of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from geoseg.predict import LoadedMethod


def load(
    run: str | PathLike[str],
    runs: str | PathLike[str] = "runs",
    trust: Sequence[str] = (),
    moved: Mapping[str, str] | None = None,
    accelerator: str | None = None,
    trained: bool = True,
) -> LoadedMethod:
    """The method of a finished run, with what it has trained, to label pictures with; see ``geoseg.predict.load``."""
    from geoseg.quiet import quiet

    with quiet():
        from geoseg import predict  # nothing heavy is imported before it is needed

        return predict.load(run, runs, trust, moved, accelerator, trained)
