"""One row a finished run, appended to a CSV file that is committed."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import math
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.protocol_code.plan import Identity, Run
from utils_.errors import UserError
from utils_.files import atomic_path

IDENTITY = ("method", "candidate", "setting", "seed")
FACTS = ("commit", "hardware", "options", "leaky", "bound", "rounds", "seconds")
LABELS = "label_files"  # a digest; rows of earlier versions and of synthetic lack it
VALIDATION = ("val_best_mAP", "val_best_round", "val_last_mAP")
TESTED = ("last", "last5", "val_selected")
# What may change a result. Rows are committed as they come, so the commit of a row is the last one
# that touched these, not the newest.
CODE = ("src", "utils_", "scripts/protocol", "requirements.txt")
DIGITS = 6

Row = dict[str, str]


def make_row(run: Run, folder: Path, *, commit: str, labels: str) -> Row:
    """What a finished run's folder says, as text of at most six digits.

    ``labels`` is the digest of its label files.
    """
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    facts = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    row: dict[str, Any] = dict(zip(IDENTITY, run.identity, strict=True))
    row |= {"commit": commit, "hardware": facts["hardware"], "options": run.text}
    row |= {LABELS: labels} if labels else {}
    row |= {name: result[name] for name in ("leaky", "bound", "rounds", "seconds")}
    row |= _validation(folder / "metrics.csv")
    for part in (*TESTED, "labels"):
        row |= {f"{part}.{name}": value for name, value in (result.get(part) or {}).items()}
    row["bound"] = result["bound"] or run.truth
    return {name: _text(value) for name, value in row.items()}


def _validation(path: Path) -> dict[str, float]:
    with path.open(newline="", encoding="utf-8") as file:
        scores = {int(r["round"]): _number(r.get("val_mAP")) for r in csv.DictReader(file)}
    told = {number: score for number, score in scores.items() if not math.isnan(score)}
    if not told:
        return dict.fromkeys(VALIDATION, math.nan)
    best = max(told, key=told.__getitem__)  # the first of equals
    return dict(zip(VALIDATION, (told[best], best, scores[max(scores)]), strict=True))


def _number(text: str | None) -> float:
    return float(text) if text else math.nan


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; none if there is no file.

    Raises:
        UserError: it cannot be read, or is another kind of file.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); give another --rows") from error
    absent = [n for n in (*IDENTITY, *FACTS, *VALIDATION) if rows and n not in rows[0]]
    if absent:
        raise UserError(
            f"{path}: lacks {', '.join(absent)}; give a file that compare.py has written"
        )
    return rows


def append_row(path: Path, row: Row) -> None:
    """Add a row; several processes may do so at once, and the file is whole at any time."""
    with locked(path):
        rows = [*read_rows(path), row]
        names = list(dict.fromkeys(name for one in rows for name in one))
        with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold what ``path`` names against other processes; the lock lies with temporary files.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is false.
    """
    code = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"fednml-{code}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def identity(row: Mapping[str, str]) -> Identity:
    """As :attr:`Run.identity`."""
    return row["method"], int(row["candidate"]), row["setting"], int(row["seed"])


def missing_runs(runs: Sequence[Run], path: Path, labels: Mapping[Identity, str]) -> list[Run]:
    """The runs that have no row yet.

    Args:
        runs: those that are wanted.
        path: the file of rows.
        labels: the present digest of each run's label files.

    Raises:
        UserError: a row was made with other options than the protocol's present ones, or with
            other labels.
    """
    there = {identity(row): row for row in read_rows(path)}
    for run in runs:
        row = there.get(run.identity, {})
        if row.get("options", run.text) != run.text:
            raise UserError(
                f"{path}: the row of {run.name} was made with other options; "
                "move the file away or undo the change of scripts/protocol"
            )
        if row.get(LABELS) and row[LABELS] != labels[run.identity]:
            raise UserError(
                f"{path}: the row of {run.name} was made with other labels; "
                "move the file away or restore the label files"
            )
    return [run for run in runs if run.identity not in there]


def unverified(runs: Sequence[Run], path: Path, labels: Mapping[Identity, str]) -> int:
    """How many rows of real data do not say from which label files they are."""
    noted = {identity(row) for row in read_rows(path) if not row.get(LABELS)}
    return sum(bool(labels[run.identity]) and run.identity in noted for run in runs)


def code_commit(root: Path) -> str:
    """The last commit that touched the code, and ``-dirty`` if the code differs from it."""
    command = ["git", "-C", str(root)]
    try:
        log = _output([*command, "log", "-1", "--format=%h", "--abbrev=12", "--", *CODE])
        changed = _output([*command, "status", "--porcelain", "--", *CODE])
    except (OSError, subprocess.CalledProcessError):
        return "unknown-dirty"
    return f"{log or 'unknown'}{'-dirty' * bool(changed or not log)}"


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def refuse_thawed(commit: str, path: Path) -> None:
    """One frozen commit makes all rows of the test: see docs/protocol.md.

    Raises:
        UserError: the code is not committed, or the file has rows of another commit.
    """
    if commit.endswith("-dirty"):
        listed = ", ".join(CODE)
        raise UserError(f"{listed}: changes are not committed; commit them or give --allow-dirty")
    others = sorted({row["commit"] for row in read_rows(path)} - {commit})
    if others:
        raise UserError(
            f"{path}: has rows of commit {', '.join(others)}, the code is at {commit}; "
            "move the file away or give --allow-dirty"
        )
