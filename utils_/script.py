"""What all programs of this repository do alike: refuse wrong options, and end."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from utils_.errors import UserError

BAD_INPUT, INTERRUPTED = 2, 130
NOBODY_READS = 141  # what a shell reports of a program that ended by SIGPIPE


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see --help")


def exit_code(work: Callable[[], int], *, name: str, interrupted: str) -> int:
    """Do the work of a program; return its code, or that of the line it says instead.

    Args:
        work: returns an exit code.
        name: of the program, before the line on stderr.
        interrupted: what Ctrl-C leaves.
    """
    try:
        return work()
    except UserError as error:
        text, code = " ".join(str(error).split()), BAD_INPUT
    except KeyboardInterrupt:
        text, code = f"interrupted; {interrupted}", INTERRUPTED
    sys.stderr.write(f"{name}: {text}\n")
    return code


@contextmanager
def silenced(level: int) -> Iterator[None]:
    """Nothing up to this level of logging is said; afterwards the process logs as before."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


def end_with(main: Callable[[], int]) -> NoReturn:
    """Call ``main`` and end the process with its code.

    Where nobody reads on (``| head``) it ends as other programs do, without a word.
    """
    try:
        code = _code_of(main)
        if sys.stdout is not None:  # it is None where the caller has closed it
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end, and would complain of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = NOBODY_READS
    sys.exit(code)


def _code_of(main: Callable[[], int]) -> int | str | None:
    try:
        return main()
    except SystemExit as ended:  # by --help, whose text is still to be flushed
        return ended.code
