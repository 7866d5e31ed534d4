"""A folder in which one process works at a time."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("fednml")
_held: set[int] = set()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder, so that no second process works in it; one that is killed holds nothing.

    Where the file system has no locks (some network ones), nothing is held.

    Raises:
        BlockingIOError: another process holds it.
    """
    if os.name != "posix":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        _lock(descriptor)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        logger.debug("no lock: %s", error)


def _let_go() -> None:
    """In a fork: it may outlive the process that holds the folder, and must not go on holding."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
