"""Print tables of results: python scripts/table.py [RUN_DIR ...] [--wide] [--csv FILE]

RUN_DIR is a run's folder, one that holds several (default: save/runs), or a CSV file that --csv has
written. The tables are Markdown: one a setting, or with --wide one that has a column a setting.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils_.errors import UserError
from utils_.report import SELECTIONS, overview_table, results_table
from utils_.result_rows import read_rows, write_rows


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


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
    parser = _Parser(description="Print a table of finished runs.")
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
    return parser.parse_args(arguments)


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
    for run in skipped:
        print(f"left out {run}", file=sys.stderr)
    print(table)


if __name__ == "__main__":
    sys.exit(main())
