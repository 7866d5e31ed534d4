"""Processes side by side, each with a log of its own, and none left behind."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

Task = TypeVar("Task")
BREATH = 0.2  # seconds between two signals, so that they count as two


def open_log(path: Path) -> BinaryIO:
    """Open an empty log that belongs to one process, and to nobody else while that one lives.

    The process holds the lock through its standard error, so that it is held even where whoever
    started the process was killed.

    Raises:
        BlockingIOError: a process that lives writes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    file.truncate(0)
    return file


def last_line(log: Path) -> str:
    """What a process said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    said = [line.rpartition("\r")[2].strip() for line in lines]
    return next((line for line in reversed(said) if line), "it said nothing")


def signals_interrupt() -> None:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does; nohup stays nohup."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


@dataclass
class SideBySide(Generic[Task]):
    """At most ``most`` processes at a time, each of which does one task.

    Ctrl-C reaches none of them by itself: each has a session of its own, see :meth:`stop`.
    """

    most: int
    _running: dict[subprocess.Popen[bytes], Task] = field(default_factory=dict)

    @property
    def tasks(self) -> list[Task]:
        """Those that are being done."""
        return list(self._running.values())

    def start(
        self,
        task: Task,
        command: Sequence[str],
        *,
        log: BinaryIO,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a process, which gets the log and no other output.

        Args:
            log: as :func:`open_log` gives it; it is closed here.
            environment: variables on top of those of this process.
        """
        with log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=os.environ | dict(environment or {}),
                start_new_session=True,
            )
        self._running[process] = task

    def collect(
        self, *, below: int, meanwhile: Callable[[], object] = lambda: None
    ) -> list[tuple[Task, int]]:
        """Wait until fewer than ``below`` run; return those that ended, with their exit codes.

        Args:
            below: ``most`` for room for another, 1 for the end of all.
            meanwhile: what to do ten times a second.
        """
        found: list[tuple[Task, int]] = []
        while True:
            for process in [one for one in self._running if one.poll() is not None]:
                found.append((self._running.pop(process), process.returncode))
            if len(self._running) < below:
                return found
            meanwhile()
            time.sleep(0.1)

    def stop(self, *, at_once: bool) -> list[Task]:
        """End all processes and return their tasks.

        A run finishes its round on the first signal and ends on the second. Ctrl-C while this
        waits is such a second one, and the next one kills.

        Args:
            at_once: give both signals.
        """
        stopped = self.tasks
        signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGTERM]
        self._send(signals.pop())
        if at_once and self._running:
            time.sleep(BREATH)
            self._send(signals.pop())
        while self._running:
            try:
                for process in list(self._running):
                    process.wait()
                    del self._running[process]
            except KeyboardInterrupt:
                self._send(signals.pop() if signals else signal.SIGKILL)
        return stopped

    def _send(self, number: signal.Signals) -> None:
        for process in self._running:
            process.send_signal(number)
