"""What libraries print that asks nothing of the user is not shown."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = {
    **dict.fromkeys(
        ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"), logging.WARNING
    ),
    **dict.fromkeys(("lightning_fabric", "httpx", "matplotlib", "PIL", "urllib3"), logging.WARNING),
    "bitsandbytes": logging.ERROR,  # it misses a 4-bit kernel that nothing here uses
}
"""The least that loggers of libraries have to say to be heard."""


def quieten() -> None:
    """Silences such words for the rest of the process; everything else still shows."""
    for name, level in LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    # data lies in memory here: worker processes would cost more than they bring
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
    # the data module says how far a training has come, and the order of batches goes on from there
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    # a run on a login node is meant to be there
    warnings.filterwarnings("ignore", message=".*The `srun` command is available.*")
    # frozen models arrive in evaluation mode, and the task changes that at its start
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences them inside alone: for calls from other programs, whose own settings come back."""
    before = {name: logging.getLogger(name).level for name in LOGGERS}
    with warnings.catch_warnings():
        quieten()
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
