"""Write a report of finished runs: report.py [RUN_DIR ...] [--out F] [--markdown F] [--latex F]

RUN_DIR is a run's folder, or one that holds several (default: save/runs). The report is one HTML
file that needs no network; docs/report.md says what is in it. Each run without a model card gets
one, RUN_DIR/model_card.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils_.errors import UserError, nearest, some
from utils_.files import write_text
from utils_.finished_runs import SELECTIONS, collect
from utils_.script import Parser, end_with

if TYPE_CHECKING:
    import pandas as pd

    from utils_.reporting.records import RunRecord

PREFERRED, FALLBACK = "val_selected", "last"
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; return the exit code: 0, 2 with one line on stderr, or 130."""
    try:
        _run(_parse(arguments))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing is half-written", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Write a report of finished runs.")
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN_DIR",
        default=[ROOT / "save" / "runs"],
        help="a run's folder, or one that holds several (default: save/runs)",
    )
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write all tables")
    parser.add_argument("--latex", type=Path, metavar="FILE", help="the same for LaTeX (booktabs)")
    parser.add_argument(
        "--figures", type=Path, metavar="FOLDER", help="also write all figures as SVG and PDF"
    )
    parser.add_argument(
        "--selection",
        help=f"which round counts (default: {PREFERRED}, or {FALLBACK} where a run lacks it): "
        + "; ".join(f"{k}: {v}" for k, v in SELECTIONS.items()),
    )
    options = parser.parse_args(arguments)
    if options.selection not in (None, *SELECTIONS):
        hint = nearest(options.selection, SELECTIONS)
        raise UserError(f"--selection {options.selection}: unknown rule; {hint}")
    _check_places(options)
    return options


def _check_places(options: argparse.Namespace) -> None:
    """Refuse before the work what could not be written after it."""
    files = {name: getattr(options, name) for name in ("out", "markdown", "latex")}
    given = {name: path for name, path in files.items() if path is not None}
    for name, path in given.items():
        if path.is_dir():
            raise UserError(
                f"--{name} {path}: is a folder; give a file, such as {path}/report.html"
            )
    if len({path.resolve() for path in given.values()}) < len(given):
        raise UserError("--out, --markdown, --latex: the same file twice; give each its own")
    if options.figures is not None and options.figures.exists() and not options.figures.is_dir():
        raise UserError(f"--figures {options.figures}: is a file; give a folder")


def _run(options: argparse.Namespace) -> None:
    frame = collect(options.runs)
    frame, records, skipped = _read(frame)
    if frame.empty:
        places = ", ".join(map(str, options.runs))
        reason = f" ({len(skipped)} left out, the first: {skipped[0]})" if skipped else ""
        raise UserError(f"{places}: no finished run{reason}; train one with src/main_fednml.py")
    from utils_.reporting.page import build_report, to_html, to_latex, to_markdown

    report = build_report(frame, records, selection=_selection(options.selection, frame))
    notes = [f"Left out: {run}." for run in skipped]
    texts = {"out": to_html(report, notes=notes)}
    if options.markdown:
        texts["markdown"] = to_markdown(report)
    if options.latex:
        texts["latex"] = to_latex(report)
    for name, text in texts.items():
        _write(getattr(options, name), text, option=f"--{name}")
    if options.figures:
        _write_figures(report.pictures, options.figures)
    for run in skipped:
        print(f"left out {run}", file=sys.stderr)
    _write_cards(records)


def _read(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[Path, RunRecord], list[str]]:
    """The runs whose other files can be read too, and why the rest is left out."""
    from utils_.reporting.records import read_record

    records, skipped = {}, list(frame.attrs["skipped"])
    for folder in map(Path, frame.get("run", [])):
        try:
            records[folder] = read_record(folder)
        except ValueError as error:
            skipped.append(f"{folder}: {error}")
    if not frame.empty:
        frame = frame[[Path(run) in records for run in frame["run"]]]
    return frame, records, skipped


def _selection(asked: str | None, frame: pd.DataFrame) -> str:
    """The rule asked for; else the best round on validation, where every run has one."""
    column = f"{PREFERRED}.mAP"
    chosen = asked or (PREFERRED if column in frame and frame[column].notna().all() else FALLBACK)
    if f"{chosen}.mAP" not in frame or frame[f"{chosen}.mAP"].isna().all():
        raise UserError(f"--selection {chosen}: no run has it; leave the option out")
    return chosen


def _write(path: Path, text: str, *, option: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{option} {path}: {reason}; choose another file") from error
    print(path)


def _write_figures(pictures: Sequence[object], folder: Path) -> None:
    from utils_.reporting.drawing import ReportFigure, write_figure

    try:
        for picture in pictures:
            if isinstance(picture, ReportFigure):
                write_figure(picture, folder)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--figures {folder}: {reason}; choose another folder") from error
    print(folder)


def _write_cards(records: dict[Path, RunRecord]) -> None:
    """Cards of runs that are older than cards; a folder that is read-only stays as it is."""
    from utils_.reporting.model_card import CARD, model_card

    failed = []
    for folder in records:
        if not (folder / CARD).exists():
            try:
                write_text(folder / CARD, model_card(folder))
            except OSError:
                failed.append(folder.name)
    if failed:
        print(f"no {CARD}, since the folder cannot be written: {some(failed)}", file=sys.stderr)


if __name__ == "__main__":
    end_with(main)
