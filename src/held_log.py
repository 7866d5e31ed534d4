"""Messages that wait until it is certain that the run can begin."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_log() -> Iterator[None]:
    """Hold the messages of the logger ``fednml``; give them out, each once, when the block is done.

    A block that raises gives none: bad input is answered by one line. Each once, because the label
    files are read twice, before and after images are decoded.
    """
    logger = logging.getLogger("fednml")
    held: dict[str, logging.LogRecord] = {}

    def hold(record: logging.LogRecord) -> bool:
        held.setdefault(record.getMessage(), record)
        return False

    logger.addFilter(hold)
    try:
        yield
    finally:
        logger.removeFilter(hold)
    for record in held.values():
        logger.handle(record)
