"""Train a tiny federation for very many rounds: python scripts/long_run.py [--rounds 2000]

What may not grow with the rounds is held against a limit, from the first fifth of the rounds on:

memory      the slope of a line through it (least squares): below 2 KB a round, of which the rows
            that a run keeps, and writes into its checkpoints, are about 1
time        of the processor, the last fifth of the rounds over the second: below 1.25
metrics     bytes of metrics.csv a round, the last fifth over the second: below 1.5
events      the same of TensorBoard's files
checkpoint  bytes of the last checkpoint over one at the first fifth; it holds all rows: no limit

Every fifth round tests, every round writes a checkpoint, as by default. Pictures for TensorBoard
(at most four a run) are not drawn. Exit codes: 0 all held, 1 a limit was passed, 2 bad input,
130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from utils_.errors import UserError
from utils_.script import Parser, end_with, exit_code

if TYPE_CHECKING:
    from src.simulation import Simulation

STATM, PAGE_KB = Path("/proc/self/statm"), 4
TINY = {"dataset": "synthetic", "image_size": 16, "train_images": 40, "test_images": 20}
TINY |= {"local_epochs": 1, "warmup_rounds": 3, "device": "cpu", "workers": "1"}
COLUMNS = ("memory", "time", "metrics", "events", "checkpoint")
LIMITS = {"memory": 2.0, "time": 1.25, "metrics": 1.5, "events": 1.5}
UNITS = {"memory": "KB a round", "time": "times", "metrics": "times", "events": "times"}


class Probe:
    """Stands in for the progress bar and looks at the process after each round.

    Attributes:
        samples: one row a round: KB of memory, seconds of the processor since the start, bytes of
            metrics.csv, of events and of the checkpoint before.
    """

    def __init__(self, folder: Path, rounds: int) -> None:
        self.samples = np.zeros((rounds, len(COLUMNS)))  # all room beforehand
        self._folder, self._count = folder, 0

    def set_postfix(self, values: object) -> None:
        """Nobody looks."""

    def update(self) -> None:
        """Take a sample."""
        resident = int(STATM.read_text().split()[1]) * PAGE_KB
        sizes = (_size(self._folder, name) for name in ("metrics.csv", "events*", "checkpoint/r*"))
        self.samples[self._count] = resident, time.process_time(), *sizes
        self._count += 1


def _size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and judge; return the exit code."""
    return exit_code(lambda: _main(arguments), name="long_run", interrupted="nothing is kept")


def _main(arguments: Sequence[str] | None) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="long_run-") as folder:
        samples = train(Path(folder), options.rounds, options.method)
    found = judge(samples)
    print(table(found, samples))
    return int(any(found[name] >= limit for name, limit in LIMITS.items()))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; raises UserError for wrong ones."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000, help="how many, from 50 (2000)")
    parser.add_argument("--method", default="fednml", help="which method (fednml)")
    options = parser.parse_args(arguments)
    if not 50 <= options.rounds <= 1_000_000:
        raise UserError(f"--rounds {options.rounds}: give a number from 50 to 1000000")
    if not STATM.exists():
        raise UserError(f"{STATM}: absent, so memory cannot be measured here; use Linux")
    return options


def train(folder: Path, rounds: int, method: str) -> np.ndarray:
    """(rounds, 5) samples of :class:`Probe`."""
    from utils_.runlog import RunLog

    simulation, probe = _tiny(folder, rounds, method), Probe(folder, rounds)
    with RunLog(folder) as log:
        simulation.run(folder, log, stop=lambda: False, progress=probe)
    return probe.samples


def _tiny(folder: Path, rounds: int, method: str) -> Simulation:
    from src.config import resolve
    from src.job import IN_PROCESS
    from src.simulation import build_model

    config = resolve(
        TINY | {"rounds": rounds, "method": method, "cache_dir": str(folder / "cache")}
    )
    dataset = IN_PROCESS.load(config, quiet=True)
    scenario = IN_PROCESS.deal(config, dataset, folder=None)
    model = build_model(config, classes=len(dataset.classes))
    simulation = IN_PROCESS.build(config, dataset, scenario, model)
    simulation._picture_due = lambda: False  # type: ignore[method-assign]
    return simulation


def judge(samples: np.ndarray) -> dict[str, float]:
    """What is held against the limits, and the checkpoint's growth, by name."""
    fifth = len(samples) // 5
    later = samples[fifth:]
    grown = np.diff(samples, axis=0)
    early, late = grown[fifth : 2 * fifth].mean(axis=0), grown[-fifth:].mean(axis=0)
    found = dict(zip(COLUMNS, late / np.maximum(early, 1e-9), strict=True))
    found["memory"] = slope(later[:, 0])
    found["checkpoint"] = samples[-1, 4] / samples[fifth, 4]
    return found


def slope(values: np.ndarray) -> float:
    """Of the line of least squares, a step of one in between."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


def table(found: dict[str, float], samples: np.ndarray) -> str:
    """What was found, its limit, and what it is at the end."""
    seconds = np.diff(samples[:, 1])
    ends = {
        "memory": f"{samples[-1, 0] / 1024:.0f} MiB",
        "time": f"{1e3 * np.median(seconds[-len(seconds) // 5 :]):.1f} ms a round",
        **{name: f"{samples[-1, 2 + i] / 1e6:.2f} MB" for i, name in enumerate(COLUMNS[2:])},
    }
    lines = [f"{'':<12}{'found':>8}{'limit':>8}  {'':<12}at the end"]
    for name in COLUMNS:
        limit = f"{LIMITS[name]:>8g}" if name in LIMITS else f"{'-':>8}"
        unit = UNITS.get(name, "times")
        lines.append(f"{name:<12}{found[name]:>8.3f}{limit}  {unit:<12}{ends[name]}")
    return "\n".join(lines)


if __name__ == "__main__":
    end_with(main)
