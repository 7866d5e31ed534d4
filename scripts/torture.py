"""Prove that nothing is lost when a program dies: python scripts/torture.py [--points 200]

Kills short programs at random moments and at the n-th write, fsync or rename below their folder, or
lets these fail for want of space (ENOSPC), by a bad disk (EIO) or a signal (EINTR). Then it starts
them again. A point survives if what they leave in the end is to the bit what they leave
undisturbed. Pictures for TensorBoard are not drawn. The stages:

drawn    a run from start to end, its images drawn into a cache
files    the same on a hospital's files, its images decoded into a cache
resume   the resume of a run that has lost its caches
report   scripts/report.py
audit    scripts/audit.py
apply    scripts/audit.py --apply: readers' answers taken back

Exit codes: 0 nothing was lost, 1 something was, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.torture_code.faults import LIBRARY, STAGES, build_library, draw_faults
from utils_.errors import UserError
from utils_.script import Parser, end_with, exit_code

if TYPE_CHECKING:
    from scripts.torture_code.stages import Stage
    from scripts.torture_code.trial import Laboratory

# What the programs import, once for all of them, since each is a fork of this process.
MODULES = ("matplotlib.pyplot", "pandas", "safetensors.torch", "sklearn.mixture", "sklearn.metrics")
MODULES += ("torch.utils.tensorboard", "src.methods.fednml")
SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the points; return the exit code."""
    return exit_code(lambda: _main(arguments), name="torture", interrupted="start it again")


def _main(arguments: Sequence[str] | None) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        if LIBRARY not in os.environ and (library := build_library(Path(folder))):
            return _with_library(library, options)
        return torture(Path(folder).resolve(), options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; raises UserError for wrong ones."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200, help="how many (200)")
    parser.add_argument("--seed", type=int, default=1, help="of where they lie (1)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, metavar="NAME", help="only these")
    options = parser.parse_args(arguments)
    if not 1 <= options.points <= 1_000_000:
        raise UserError(f"--points {options.points}: give a number from 1 to 1000000")
    options.stages = options.stages or list(STAGES)
    return options


def _with_library(library: Path, options: argparse.Namespace) -> int:
    """Start this program anew, the library before all others."""
    variables = {LIBRARY: str(library), "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    words = [f"--points={options.points}", f"--seed={options.seed}", "--stages", *options.stages]
    command = [sys.executable, str(Path(__file__).resolve()), *words]
    return subprocess.run(command, env=os.environ | variables, check=False).returncode


def torture(folder: Path, options: argparse.Namespace) -> int:
    """Disturb the stages in turn and print what came of it; 1 where a point was lost, else 0."""
    from scripts.torture_code.trial import LOST

    laboratory, stages = _prepared(folder, options.stages)
    verdicts: dict[str, Counter[str]] = {stage.name: Counter() for stage in stages}
    notes = [f"not synced: {path}" for path in laboratory.unsynced]
    for point in range(options.points):
        stage = stages[point % len(stages)]
        faults = draw_faults(options.seed, point, operations=laboratory.sees_operations)
        outcome = laboratory.trial(stage, faults)
        verdicts[stage.name][outcome.verdict] += 1
        if outcome.told:
            done = ", then ".join(map(str, faults))
            notes.append(f"{outcome.verdict}: point {point}, {stage.name}, {done}: {outcome.told}")
    print(_table(verdicts))
    print("\n".join(notes[:SHOWN]))
    if not laboratory.sees_operations:
        print("no C compiler or no LD_PRELOAD: killed at moments alone, and no operation failed")
    return int(bool(laboratory.unsynced) or any(one[LOST] for one in verdicts.values()))


def _prepared(folder: Path, stages: Sequence[str]) -> tuple[Laboratory, list[Stage]]:
    """Import all that the programs need and learn what they do undisturbed."""
    for name in MODULES + (("utils_.reporting.page",) if "report" in stages else ()):
        importlib.import_module(name)
    from scripts.torture_code.stages import make_stages
    from scripts.torture_code.trial import Laboratory
    from src.simulation import Simulation

    def never(simulation: Simulation) -> bool:
        return False

    Simulation._picture_due = never  # type: ignore[method-assign]  # nine tenths of the time
    laboratory = Laboratory(folder)
    every = make_stages(folder / "templates", laboratory.place, laboratory.learn)
    chosen = [stage for stage in every if stage.name in stages]
    for stage in chosen:
        laboratory.learn(stage)
    return laboratory, chosen


def _table(verdicts: dict[str, Counter[str]]) -> str:
    """A row a stage: its points, and what came of them."""
    total = sum(verdicts.values(), Counter())
    columns = ("survived", "told", "lost")
    lines = [f"{'stage':<20}{'points':>10}" + "".join(f"{name:>10}" for name in columns)]
    for name, counts in (verdicts | {"all": total}).items():
        cells = (sum(counts.values()), *(counts[column] for column in columns))
        lines.append(f"{name:<20}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    end_with(main)
