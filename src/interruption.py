"""SIGINT and SIGTERM end a run cleanly."""

from __future__ import annotations

import signal
import sys
import threading

from tqdm import tqdm


class Interrupted(Exception):
    """The user asked to stop; a checkpoint of the last finished round is on disk."""


class StopRequest:
    """The first signal ends the run after its present round, the second one at once."""

    def __init__(self) -> None:
        self.asked = False
        if threading.current_thread() is not threading.main_thread():
            return  # signals reach the main thread alone, which is then another program's
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def __call__(self) -> bool:
        return self.asked

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        tqdm.write("main_fednml: finishing this round; once more to stop at once", file=sys.stderr)
