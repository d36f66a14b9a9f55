"""Libraries are silenced where asked, and heard again afterwards."""

from __future__ import annotations

import logging
import warnings

import pytest

from geoseg.quiet import LOGGERS, quiet


def test_silence_ends_with_the_block(caplog: pytest.LogCaptureFixture) -> None:
    before = {name: logging.getLogger(name).level for name in LOGGERS}
    filters = list(warnings.filters)
    with quiet():
        logging.getLogger("pytorch_lightning").info("GPU available: no")
        logging.getLogger("pytorch_lightning").warning("something is wrong")
        logging.getLogger("bitsandbytes").warning("a kernel is missing")
        logging.getLogger("geoseg").warning("ours")
        warnings.warn("The loader does not have many workers", stacklevel=1)
    assert [one.message for one in caplog.records] == ["something is wrong", "ours"]
    assert {name: logging.getLogger(name).level for name in LOGGERS} == before
    assert warnings.filters == filters
