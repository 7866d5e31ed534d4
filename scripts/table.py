"""Print tables of results: python scripts/table.py [RUN_DIR ...] [--metric NAME] [--wide] [--latex]

RUN_DIR is a run's folder, one that holds several (default: save/runs), or a CSV file that --csv or
compare.py has written. The tables are Markdown: one a setting; with --wide one that has a column a
setting, with --ranks one of average ranks, with --per-class a row a class. Other CSV files with a
column "method" (notes on tuning) are shown as they stand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from utils_.class_table import ROUND, classes_table
from utils_.errors import UserError
from utils_.figures import draw_overview
from utils_.finished_runs import SELECTIONS
from utils_.rank_table import ranks_table
from utils_.report import overview_table, overview_values, results_table, written
from utils_.result_rows import is_notes, read_cells, read_rows, write_rows
from utils_.script import Parser, end_with

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (".png", ".svg", ".pdf")
FORMS = ("wide", "ranks", "per_class")


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
    add = parser.add_argument
    add(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN_DIR",
        default=[ROOT / "save" / "runs"],
        help="a run's folder, one that holds several (default: save/runs), or a file of rows",
    )
    rules = "; ".join(f"{name}: {text}" for name, text in SELECTIONS.items())
    add("--selection", help=f"which round counts (default last5): {rules}")
    add(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="a number of the results, such as macro_auroc or seconds; may be repeated",
    )
    add("--wide", action="store_true", help="one table, with a column for each setting")
    add("--ranks", action="store_true", help="average ranks over settings and seeds")
    add("--per-class", action="store_true", help="a row for each class (--metric ap, auroc, f1)")
    add("--latex", action="store_true", help="tables for LaTeX with booktabs")
    add("--csv", type=Path, metavar="FILE", help="also write one line a run with all numbers")
    add(
        "--figure",
        type=Path,
        metavar="FILE",
        help="also draw mAP of all methods (png, svg, pdf)",
    )
    options = parser.parse_args(arguments)
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    if options.figure and options.figure.suffix not in FORMATS:
        raise UserError(f"--figure {options.figure}: give a file that ends in {', '.join(FORMATS)}")
    forms = [f"--{name.replace('_', '-')}" for name in FORMS if getattr(options, name)]
    if len(forms) > 1:
        raise UserError(f"{' '.join(forms)}: forms of the table; give one of them")
    if forms and len(options.metric) > 1:
        raise UserError(f"--metric: {forms[0]} shows one; give the option once")
    if options.per_class and options.selection not in (None, ROUND):
        raise UserError(
            f"--selection {options.selection}: scores of classes are of the {ROUND} round"
        )
    options.selection = options.selection or "last5"


def _run(options: argparse.Namespace) -> None:
    if any(map(is_notes, options.runs)):
        print(_notes(options))
        return
    frame = read_rows(options.runs)
    skipped = frame.attrs["skipped"]
    if frame.empty:
        places = ", ".join(map(str, options.runs))
        reason = f" ({len(skipped)} left out, the first: {skipped[0]})" if skipped else ""
        raise UserError(f"{places}: no finished run{reason}; train one with src/main_fednml.py")
    text = _table(frame, options)
    if options.csv:
        write_rows(frame, options.csv)
    if options.figure:
        _draw(frame, options)
    for run in skipped:
        print(f"left out {run}", file=sys.stderr)
    print(text)


def _table(frame: pd.DataFrame, options: argparse.Namespace) -> str:
    own = {"metric": options.metric[0]} if options.metric else {}
    rule, latex = options.selection, options.latex
    if options.per_class:
        return classes_table(frame, latex=latex, **own)
    if options.ranks:
        return ranks_table(frame, selection=rule, latex=latex, **own)
    if options.wide:
        return overview_table(frame, selection=rule, latex=latex, **own)
    return results_table(frame, selection=rule, metrics=options.metric, latex=latex)


def _notes(options: argparse.Namespace) -> str:
    """A file of other rows as it stands.

    Raises:
        UserError: an option that needs rows of runs, or another file beside it.
    """
    given = [n for n in ("metric", *FORMS, "csv", "figure") if getattr(options, n)]
    path = next(path for path in options.runs if is_notes(path))
    if given or len(options.runs) > 1:
        what = f"--{given[0].replace('_', '-')}" if given else "other places beside it"
        raise UserError(f"{path}: notes, shown as they stand; leave out {what}")
    cells = read_cells(path, as_text=True).fillna("")
    rows = cells.to_numpy().tolist()
    title = f"Notes of {path.name}, as they stand."
    return written({"": [list(map(str, cells)), *rows]}, title, latex=options.latex)


def _draw(frame: pd.DataFrame, options: argparse.Namespace) -> None:
    try:
        draw_overview(overview_values(frame, selection=options.selection), options.figure)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--figure {options.figure}: {reason}; choose another file") from error


if __name__ == "__main__":
    end_with(main)
