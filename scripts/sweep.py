"""A grid of runs over any settings, and their table: sweep.py [GRID.yaml] [options] [-- ...]

    python scripts/sweep.py --grid method=fedavg,fednml noise=0.2,0.4 seed=1,2,3 -- --rounds 20
    python scripts/sweep.py grid.yaml --jobs 2

GRID.yaml holds names and values as a file of --config; a value that is a list is tried one by one.
Names that are joined by a comma move together ("noise, missing: [[0.2, 2], [0.4, 4]]", in words
noise,missing=0.2:2,0.4:4); param.NAME goes to the methods that have it. What follows "--" goes to
every run. Finished runs are skipped, unfinished ones resumed; runs of other labels, weights or
images than are there now are done anew. After a failed run the sweep goes on. Exit code 1: a run
failed and is tried again next time; 2: bad input; 130: interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from utils_.errors import UserError
from utils_.script import Parser, end_with, exit_code

GOES_ON = "the same command goes on from here"


def main(words: Sequence[str] | None = None) -> int:
    """Do the sweep; return the exit code."""
    given = sys.argv[1:] if words is None else words
    return exit_code(lambda: _run(given), name="sweep", interrupted=GOES_ON)


def _run(words: Sequence[str]) -> int:
    options = _parse(words)
    from scripts.sweep_code.steps import show, work  # torch comes with it, which takes seconds

    return show(options) if options.dry_run else work(options)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="sweep.py"
    )
    add = parser.add_argument
    add("file", nargs="?", type=Path, metavar="GRID.yaml", help="settings and lists of values")
    add("--grid", nargs="+", default=[], metavar="NAME=VALUE,...", help="values to go through")
    add("--jobs", default="1", metavar="N", help="runs side by side (default 1)")
    add("--dry-run", action="store_true", help="print the commands and the time; train nothing")
    add("--measure", action="store_true", help="with --dry-run: time four rounds of each kind")
    options, unknown = parser.parse_known_args(words[:cut])
    options.jobs, options.rest = _count(options.jobs), words[cut + 1 :]
    if unknown:
        raise UserError(f"{unknown[0]}: unknown option; those of main_fednml.py stand after --")
    if not (options.file or options.grid):
        raise UserError("no grid; give --grid NAME=VALUE,VALUE or a YAML file, see --help")
    if options.measure and not options.dry_run:
        raise UserError("--measure: only tells how long it takes; add --dry-run")
    return options


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--jobs {text}: give a number of runs, 1 or more")
    return int(text)


if __name__ == "__main__":
    end_with(main)
