"""The runs of a sweep done: side by side, finished ones skipped, failures kept, one display."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from scripts.sweep_code.cost import rounds_done, spoken
from scripts.sweep_code.plan import Planned, command_line
from utils_.side_by_side import SideBySide, last_line, open_log, signals_interrupt

LOOK = 2.0  # seconds between two looks at what the runs have done


def say(text: str) -> None:
    """One line on stderr, above the display."""
    tqdm.write(f"sweep: {text}", file=sys.stderr)


class Display:
    """The one display of a sweep: which run of how many, rounds done, time left.

    Without a terminal there is no bar, and the lines that name the runs tell it all.
    """

    def __init__(self, runs: Sequence[Planned]) -> None:
        self.number, self.count = 0, len(runs)
        self.total = sum(run.config.rounds for run in runs)
        self.first = self.done = sum(map(rounds_done, runs))
        self._ended, self._looked, self._begun = 0, 0.0, time.monotonic()
        form = "{desc} {percentage:3.0f}% |{bar:24}| {elapsed}, {remaining} left"
        self.bar = tqdm(
            total=self.total, initial=self.done, bar_format=form, disable=None, leave=False
        )

    def start(self, run: Planned) -> None:
        """Name the run that starts."""
        self.number += 1
        deed = "resuming" if run.folder.exists() else "starting"
        self.bar.set_description_str(f"run {self.number} of {self.count}")
        say(f"run {self.number} of {self.count}{self._left()}: {deed}: {run.folder}")

    def end(self, run: Planned) -> None:
        """Count the run as done, whatever became of it, so that the time left is right."""
        self._ended += run.config.rounds

    def look(self, running: Sequence[Planned]) -> None:
        """Count the rounds, now and then."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        self.done = self._ended + sum(map(rounds_done, running))
        self.bar.update(self.done - self.bar.n)

    def _left(self) -> str:
        trained = self.done - self.first
        if trained <= 0:
            return ""
        passed = time.monotonic() - self._begun
        return f", {spoken(passed / trained * (self.total - self.done))} left"


@dataclass
class Sweep:
    """Does the runs, ``jobs`` at a time.

    Attributes:
        runs: those that are not finished.
        failed: folder and reason of every run that failed.
    """

    runs: Sequence[Planned]
    jobs: int
    failed: list[str] = field(default_factory=list)
    _told: set[str] = field(default_factory=set)
    _elsewhere: set[Path] = field(default_factory=set)

    def command(self, run: Planned) -> list[str]:
        """The command line of a run as its folder is now."""
        there = run.folder if run.folder.exists() else None
        return command_line(run.words, jobs=self.jobs, resume=there)

    def work(self) -> None:
        """Do them all; a signal lets each finish its round and raises KeyboardInterrupt."""
        signals_interrupt()
        processes: SideBySide[Planned] = SideBySide(self.jobs)
        waiting, display = deque(self.runs), Display(self.runs)
        try:
            while waiting or processes.tasks:
                if waiting and len(processes.tasks) < self.jobs:
                    self._next(waiting, processes, display)
                    continue
                for run, code in processes.collect(
                    below=self.jobs if waiting else len(processes.tasks),
                    meanwhile=lambda: display.look(processes.tasks),
                ):
                    self._see_to(run, code)
                    display.end(run)
        except KeyboardInterrupt:
            self._interrupt(processes)
            raise
        finally:
            display.bar.close()
            processes.stop(at_once=True)

    def _next(
        self, waiting: deque[Planned], processes: SideBySide[Planned], display: Display
    ) -> None:
        run = waiting.popleft()
        try:
            log = open_log(run.log)
        except BlockingIOError:  # a sweep that was killed, or another one, has started it
            if run.folder not in self._elsewhere:
                say(f"in work by another process: {run.folder}")
            self._elsewhere.add(run.folder)
            waiting.append(run)
            time.sleep(LOOK / 10)
            return
        if run.finished:  # by that other process, meanwhile
            log.close()
            run.log.unlink(missing_ok=True)
            display.end(run)
            return
        display.start(run)
        processes.start(run, self.command(run), log=log)

    def _see_to(self, run: Planned, code: int) -> None:
        self._pass_on(run)
        if code == 0 and run.finished:
            run.log.unlink(missing_ok=True)
        else:
            how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
            self.failed.append(f"{run.folder} ({how}): {last_line(run.log)}")

    def _pass_on(self, run: Planned) -> None:
        """Say what a run said, unless another one has said it."""
        for line in run.log.read_text(encoding="utf-8", errors="replace").splitlines():
            text = line.removeprefix("main_fednml: ").strip()
            if text and text not in self._told:
                self._told.add(text)
                say(f"{run.folder.name}: {text}")

    def _interrupt(self, processes: SideBySide[Planned]) -> None:
        if processes.tasks:
            say("the runs finish their round; once more to stop them at once")
        for run in processes.stop(at_once=False):
            say(last_line(run.log))
