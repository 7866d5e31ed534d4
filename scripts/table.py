"""Print tables of results: python scripts/table.py [RUN_DIR ...] [--wide] [--csv F] [--figure F]

RUN_DIR is a run's folder, one that holds several (default: save/runs), or a CSV file that --csv has
written. The tables are Markdown: one a setting, or with --wide one that has a column a setting.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils_.errors import UserError
from utils_.figures import draw_overview
from utils_.finished_runs import SELECTIONS
from utils_.report import overview_table, overview_values, results_table
from utils_.result_rows import read_rows, write_rows
from utils_.script import Parser, end_with

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (".png", ".svg", ".pdf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit code: 0, or 2 with one line on stderr."""
    try:
        options = _parse(arguments)
        _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Print a table of finished runs.")
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN_DIR",
        default=[ROOT / "save" / "runs"],
        help="a run's folder, one that holds several (default: save/runs), or a file of --csv",
    )
    parser.add_argument(
        "--selection",
        default="last5",
        help="which round counts: " + "; ".join(f"{k}: {v}" for k, v in SELECTIONS.items()),
    )
    parser.add_argument(
        "--wide", action="store_true", help="one table of mAP, with a column for each setting"
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="also write one line a run with all numbers"
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help="also draw mAP of all methods (png, svg, pdf)",
    )
    options = parser.parse_args(arguments)
    if options.figure and options.figure.suffix not in FORMATS:
        raise UserError(f"--figure {options.figure}: give a file that ends in {', '.join(FORMATS)}")
    return options


def _run(options: argparse.Namespace) -> None:
    frame = read_rows(options.runs)
    skipped = frame.attrs["skipped"]
    if frame.empty:
        places = ", ".join(map(str, options.runs))
        reason = f" ({len(skipped)} left out, the first: {skipped[0]})" if skipped else ""
        raise UserError(f"{places}: no finished run{reason}; train one with src/main_fednml.py")
    tabulate = overview_table if options.wide else results_table
    table = tabulate(frame, selection=options.selection)
    if options.csv:
        write_rows(frame, options.csv)
    if options.figure:
        _draw(frame, options)
    for run in skipped:
        print(f"left out {run}", file=sys.stderr)
    print(table)


def _draw(frame: pd.DataFrame, options: argparse.Namespace) -> None:
    try:
        draw_overview(overview_values(frame, selection=options.selection), options.figure)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--figure {options.figure}: {reason}; choose another file") from error


if __name__ == "__main__":
    end_with(main)
