"""What commands share around their work: quiet libraries, and an exit code with one line for what went wrong."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable


def prepared() -> None:
    """To be called before libraries are imported, some of which speak then."""
    from geoseg.quiet import quieten

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    quieten()


def exit_code(name: str, work: Callable[[], int], stopped: str | None = None) -> int:
    """The code that ``work`` returns, or that of what kept it from it.

    Args:
        name: of the command, before the line that says what went wrong.
        work: the command's.
        stopped: what is said after Ctrl+C, for work that goes on where it was; None lets it through.

    Returns:
        2 where the user can mend something, 4 for a full disk, 130 after Ctrl+C.
    """
    from hydra.errors import HydraException

    from geoseg.places import DiskFull

    try:
        return work()
    except (HydraException, ValueError, DiskFull) as error:
        print(f"geoseg {name}: {error}", file=sys.stderr)
        return 4 if isinstance(error, DiskFull) else 2
    except KeyboardInterrupt:
        if stopped is None:
            raise
        print(f"geoseg {name}: interrupted; {stopped}", file=sys.stderr)
        return 130
