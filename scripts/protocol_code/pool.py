"""Runs side by side, each a process of its own; a row is written as each one ends."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.protocol_code.data import data_folder, place_options
from scripts.protocol_code.plan import Identity, Run, arguments
from scripts.protocol_code.rows import append_row, make_row

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
    _running: dict[subprocess.Popen[bytes], Run] = field(default_factory=dict)

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
        """Do the runs, ``jobs`` at a time; a signal ends them and raises KeyboardInterrupt."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            for number, run in enumerate(runs, 1):
                while len(self._running) >= jobs:
                    self._collect()
                print(f"compare: {number} of {len(runs)}: {run.name}", file=sys.stderr)
                self._start(run)
            while self._running:
                self._collect()
        finally:
            self._stop()

    def _start(self, run: Run) -> None:
        # What a killed run has left is of no use: it may be another commit's.
        shutil.rmtree(self._folder(run), ignore_errors=True)
        places = place_options(run, self.folders, save_dir=self.save_dir)
        log = self._log(run)
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with log.open("wb") as file:
            process = subprocess.Popen(
                self.command(run, places=places),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env=os.environ | threads,
                start_new_session=True,  # Ctrl-C reaches it once, through _stop
            )
        self._running[process] = run

    def _collect(self) -> None:
        """Wait until at least one run has ended, and see to those that have."""
        while not (ended := [process for process in self._running if process.poll() is not None]):
            time.sleep(0.1)
        for process in ended:
            run = self._running.pop(process)
            if process.returncode == 0 and (self._folder(run) / "DONE").exists():
                labels = self.labels[run.identity]
                row = make_row(run, self._folder(run), commit=self.commit, labels=labels)
                append_row(self.rows, row)
                self._tidy(run)
            else:
                self.failed.append(f"{run.name} (exit code {process.returncode}): {self._why(run)}")

    def _tidy(self, run: Run) -> None:
        self._log(run).unlink(missing_ok=True)
        if not self.keep:
            shutil.rmtree(self._folder(run), ignore_errors=True)

    def _stop(self) -> None:
        """End what still runs; the first signal would wait for the round, so it gets two."""
        for _ in range(2):
            for process in self._running:
                process.terminate()
            time.sleep(0.2 * bool(self._running))
        for process in self._running:
            process.wait()
        self._running.clear()

    def _why(self, run: Run) -> str:
        """The last line of the log."""
        lines = self._log(run).read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"

    def _folder(self, run: Run) -> Path:
        return self.save_dir / "runs" / run.name

    def _log(self, run: Run) -> Path:
        return self.save_dir / "logs" / f"{run.name}.log"
