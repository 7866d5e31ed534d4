"""Runs side by side, each a process of its own; a row is written as each one ends."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.protocol_code.data import data_folder, place_options
from scripts.protocol_code.plan import Identity, Run, arguments
from scripts.protocol_code.rows import append_row, make_row
from utils_.side_by_side import SideBySide, last_line, open_log, signals_interrupt

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "src" / "main_fednml.py"


@dataclass
class Pool:
    """Starts the runs and keeps what they leave.

    Attributes:
        save_dir: run folders, logs, image cache and folders of links lie below it.
        rows: the file of rows.
        labels: the digest of each run's label files.
        failed: name and reason of every run that failed.
    """

    save_dir: Path
    rows: Path
    commit: str
    folders: Mapping[str, Path]
    labels: Mapping[Identity, str]
    keep: bool
    failed: list[str] = field(default_factory=list)

    def command(self, run: Run, *, places: Sequence[str]) -> list[str]:
        """The command line of one run."""
        seeds = ["--seed", str(run.seed), "--data-seed", str(run.seed)]
        own = ["--name", run.name, "--save-dir", str(self.save_dir), "--workers", "1", "--quiet"]
        own += ["--cache-dir", str(self.save_dir / "cache")]
        own += ["--checkpoint-every", str(run.config().rounds)]  # none is resumed
        return [sys.executable, str(MAIN), *arguments(run.options), *seeds, *own, *places]

    def show(self, runs: Sequence[Run]) -> None:
        """Print the commands and do nothing."""
        for run in runs:
            name = run.options["dataset"]
            folder = None if name == "synthetic" else data_folder(name, self.folders)
            places = ["--data-dir", str(folder)] if folder else []
            print(shlex.join(self.command(run, places=places)))

    def work(self, runs: Sequence[Run], *, jobs: int) -> None:
        """Do the runs, ``jobs`` at a time; a signal ends them and raises KeyboardInterrupt.

        Raises:
            BlockingIOError: a run that an earlier call, since killed, has started is not over.
        """
        signals_interrupt()
        processes: SideBySide[Run] = SideBySide(jobs)
        try:
            for number, run in enumerate(runs, 1):
                self._see_to(processes.collect(below=jobs))
                print(f"compare: {number} of {len(runs)}: {run.name}", file=sys.stderr)
                self._start(run, processes)
            self._see_to(processes.collect(below=1))
        finally:
            processes.stop(at_once=True)

    def _start(self, run: Run, processes: SideBySide[Run]) -> None:
        places = place_options(run, self.folders, save_dir=self.save_dir)
        log = open_log(self._log(run))
        # What a killed run has left is of no use: it may be another commit's.
        shutil.rmtree(self._folder(run), ignore_errors=True)
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        processes.start(run, self.command(run, places=places), log=log, environment=threads)

    def _see_to(self, ended: Iterable[tuple[Run, int]]) -> None:
        for run, code in ended:
            if code == 0 and (self._folder(run) / "DONE").exists():
                labels = self.labels[run.identity]
                row = make_row(run, self._folder(run), commit=self.commit, labels=labels)
                append_row(self.rows, row)
                self._tidy(run)
            else:
                why = last_line(self._log(run))
                self.failed.append(f"{run.name} (exit code {code}): {why}")

    def _tidy(self, run: Run) -> None:
        self._log(run).unlink(missing_ok=True)
        if not self.keep:
            shutil.rmtree(self._folder(run), ignore_errors=True)

    def _folder(self, run: Run) -> Path:
        return self.save_dir / "runs" / run.name

    def _log(self, run: Run) -> Path:
        return self.save_dir / "logs" / f"{run.name}.log"
