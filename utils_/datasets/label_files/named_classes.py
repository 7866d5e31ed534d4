"""Columns that name the classes of an image: a diagnosis, a grade, or findings joined by ``|``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils_.datasets.label_files.cells import NOT_GIVEN, Column
from utils_.datasets.label_files.tables import bare_name, shown
from utils_.errors import UserError

# Names, as tables.plain gives them, of columns that hold the names of classes.
_LABEL_COLUMNS = """
    findinglabels findinglabel finding findings label labels dx diagnosis diagnoses class classes
    classname classid category level grade target disease diseases pathology pathologies condition
    retinopathygrade drgrade annotation imagelabel
"""
LABEL_COLUMNS = frozenset(_LABEL_COLUMNS.split())
NOTHING = frozenset(("nofinding", "nofindings", "nothing"))  # looked at, and no class is there
NOT_LOOKED_AT = NOT_GIVEN | {"unknown", "?", "not annotated", "unlabeled", "unlabelled"}
UNCLEAR = frozenset(("none", "-", "-1", "-1.0", "n", "nil"))  # no finding, or nobody looked?
JOINED = re.compile(r"[;,/+&|]")
MOST_CLASSES = 200
FEW_ROWS = 20  # in which each may well show something else
Places = Sequence[tuple[Path, int]]  # the file and the line of each row


def read_names(
    column: Column, places: Places, *, several: bool
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the classes that a column names and (N, C) float32: 1 where named, 0 where not.

    A cell that says nothing gives NaN for every class, "No Finding" a row of 0.

    Args:
        column: N cells.
        places: where they are.
        several: whether a cell may name several classes, with ``|`` between them.

    Raises:
        UserError: a cell is unclear, a class is spelt in two ways, or the column is free text.
    """
    named = {}
    for text in column.counts:
        try:
            named[text] = _classes_of(text, column.name, several=several)
        except UserError as error:
            path, line = places[column.cells.index(text)]
            raise UserError(f"{path}, line {line}, column '{column.name}': {error}") from error
    classes = sorted({name for names in named.values() for name in names or ()}, key=_order)
    _check_classes(classes, column, f"{places[0][0]}, column '{column.name}'", several=several)
    rows = {
        text: np.full(len(classes), np.nan)
        if names is None
        else np.array([name in names for name in classes], dtype=float)
        for text, names in named.items()
    }
    values = np.stack([rows[text] for text in column.cells])
    return tuple(classes), values.astype(np.float32)


def _classes_of(text: str, column: str, *, several: bool) -> list[str] | None:
    """The classes that one cell names; None where it says nothing."""
    folded = text.casefold()
    if folded in NOT_LOOKED_AT:
        return None
    if folded in UNCLEAR:
        raise UserError(
            f"{shown(text)} may mean that nothing was found or that nobody looked; write "
            "No Finding, or leave the cell blank"
        )
    names = _parts(text) if several else [text]
    nothing = [name for name in names if bare_name(name) in NOTHING]
    if nothing and len(names) > 1:
        raise UserError(f"{shown(nothing[0])} beside findings; keep one of the two")
    return [] if nothing else [_class_name(name, column) for name in names]


def _parts(text: str) -> list[str]:
    """Split findings joined by bars, or a list as PadChest writes it: ['a', 'b']."""
    if text.startswith("[") and text.endswith("]"):
        text = "|".join(part.strip().strip("'\"") for part in text[1:-1].split(","))
    return [part.strip() for part in text.split("|") if part.strip()]


def _class_name(text: str, column: str) -> str:
    """A class is called as the cell says; a grade has the column's name before it."""
    if re.fullmatch(r"\d+([.,]0*)?", text):
        return f"{column} {int(re.split('[.,]', text)[0])}"
    return text


def _order(name: str) -> tuple[str, int, str]:
    """Alphabetical, and grades by their number."""
    stem, _, number = name.rpartition(" ")
    if number.isdecimal():
        return stem.casefold(), int(number), name
    return name.casefold(), -1, name


def _check_classes(classes: Sequence[str], column: Column, where: str, *, several: bool) -> None:
    """Check that the names are classes, each spelt in one way."""
    filled = sum(n for text, n in column.counts.items() if text.casefold() not in NOT_LOOKED_AT)
    if not classes:
        raise UserError(f"{where}: names no class; leave it out by --ignore-columns")
    if len(classes) > MOST_CLASSES or (filled > FEW_ROWS and 2 * len(classes) > filled):
        raise UserError(
            f"{where}: {len(classes)} different texts, such as {shown(classes[0])}; a class is a "
            "name that many images share: write one column of 0 and 1 per class"
        )
    first: dict[str, str] = {}
    for name in classes:
        other = first.setdefault(bare_name(name) or name, name)
        if other != name:
            raise UserError(f"{where}: {shown(other)} and {shown(name)}; write one of the two")
        if not several or ";" in name:
            _refuse_joined(name, classes, where)


def _refuse_joined(name: str, classes: Sequence[str], where: str) -> None:
    parts = {part.strip() for part in JOINED.split(name)}
    if ";" in name or "|" in name or (len(parts) > 1 and parts & set(classes)):
        raise UserError(
            f"{where}: {shown(name)} joins several findings; write | between them and add "
            "--label-format pipe"
        )
