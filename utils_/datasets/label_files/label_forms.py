"""From the columns of label files to classes: 0 and 1 in many columns, or names in one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from utils_.datasets.label_files.cells import NO_LABEL, POSITIVE, UNCERTAIN, Column, advice
from utils_.datasets.label_files.label_columns import (
    find_problems,
    join_names,
    named_like_a_property,
    pick,
    split_names,
)
from utils_.datasets.label_files.named_classes import LABEL_COLUMNS, read_names
from utils_.datasets.label_files.tables import CsvTable, bare_name, shown
from utils_.errors import UserError

logger = logging.getLogger("fednml")
FORMATS = ("auto", "multihot", "onehot", "single", "pipe")
UNCERTAIN_AS = ("blank", "positive", "negative", "soft")
COMBINE = ("any", "majority", "first")
LAYOUT = "write one column of 0 and 1 per class, as data/README.md shows in section csv"


@dataclass(frozen=True, kw_only=True)
class LabelForm:
    """How label files are to be understood. A run's settings of the same names hold the defaults.

    Attributes:
        classes: names that are taken, with commas between; None takes all that may be classes.
        ignore_columns: columns that are no classes, with commas between.
        label_format: a name of ``FORMATS``; ``auto`` judges by the cells.
        uncertain: what -1 means, a name of ``UNCERTAIN_AS``; None refuses it.
        combine: what becomes of several rows an image, a name of ``COMBINE``; None refuses them.
    """

    classes: str | None = None
    ignore_columns: str | None = None
    label_format: str = "auto"
    uncertain: str | None = None
    combine: str | None = None


@dataclass(frozen=True)
class Labels:
    """The labels of N rows for C classes.

    Attributes:
        classes: C names.
        values: (N, C) float32: 1, 0, NaN where nobody looked.
        uncertain: (N, C) bool, blank cells that are to start as a soft target.
    """

    classes: tuple[str, ...]
    values: np.ndarray
    uncertain: np.ndarray


def read_labels(
    tables: Sequence[CsvTable], form: LabelForm, *, every_column: bool = False
) -> Labels:
    """Read the labels of all rows of ``tables``, whose first column names the images.

    Args:
        tables: the label files.
        form: how they are to be understood.
        every_column: whether all columns are known to be classes.

    Raises:
        UserError: columns that may be no classes, all named at once; cells that are no label;
            files whose columns differ.
    """
    names = _offered(tables, form)
    kind = "multihot" if every_column else form.label_format
    if kind == "auto":
        kind = _recognised(tables, names, form)
    if kind in ("single", "pipe"):
        name = _named_column(tables, names)
        if name is None:
            raise _which_column(tables[0], names, kind)
        return _named(tables, name, kind)
    if form.classes:
        names = pick(names, form.classes, "--classes")
    columns = [joined(tables, name) for name in names]
    if not form.classes and not every_column:
        refuse_problems(tables, columns, uncertain=form.uncertain)
    _check_same_columns(tables, names)
    labels = parse_columns(tables, columns, uncertain=form.uncertain, fixed=every_column)
    if kind == "onehot":
        _check_one_hot(tables, labels.values)
    return labels


def joined(tables: Sequence[CsvTable], name: str) -> Column:
    """A column over all files; blank in those that lack it."""
    cells = [t.column(name) if name in t.header else [""] * len(t.rows) for t in tables]
    return Column(name, list(chain.from_iterable(cells)))


def parse_columns(
    tables: Sequence[CsvTable],
    columns: Sequence[Column],
    *,
    uncertain: str | None,
    fixed: bool = False,
) -> Labels:
    """Return what the cells of the columns mean; ``fixed`` columns cannot be left out.

    Raises:
        UserError: a cell is no label, or -1 and nobody says what that means.
    """
    wrong = _wrong_cells(tables, columns, fixed=fixed)
    if wrong:
        raise UserError(wrong)
    values = np.stack([column.values for column in columns], axis=1)
    doubtful = values == UNCERTAIN
    if doubtful.any():
        _check_uncertain(tables, columns, doubtful, uncertain=uncertain)
        values[doubtful] = {"positive": 1, "negative": 0}.get(str(uncertain), np.nan)
    _report(tables, columns)
    soft = doubtful if uncertain == "soft" else np.zeros_like(doubtful)
    return Labels(tuple(column.name for column in columns), values, soft)


def refuse_problems(
    tables: Sequence[CsvTable], columns: Sequence[Column], *, uncertain: str | None
) -> None:
    """Check that every column may be a class; ``uncertain`` is what -1 is said to mean.

    Raises:
        UserError: all that may not, in one line, with the option that settles it.
    """
    problems = find_problems(columns)
    if not problems:
        return
    told = ", ".join(f"{shown(name)} {reason}" for name, reason in problems.items())
    good = [column for column in columns if column.name not in problems]
    if good:
        settle = f"add --ignore-columns {join_names(problems)}, or name the classes, such as "
        settle += f"--classes {join_names(column.name for column in good)}"
    else:
        settle = _only_names(columns)
    kept = "; patients and sites belong into groups.csv" * any(
        bare_name(name) in ("patientid", "patient", "site", "hospital", "center")
        for name in problems
    )
    named = [column.name for column in columns if bare_name(column.name) in LABEL_COLUMNS]
    if good and len(named) == 1 and named[0] in problems:
        settle += f"; for the names in {shown(named[0])} add --label-format single"
    if uncertain is None and any(column.count(UNCERTAIN) for column in good):
        settle += "; and for the cells of -1 --uncertain blank, positive, negative or soft"
    wrong = _wrong_cells(tables, good)
    also = f"; mend besides: {wrong}" if wrong else ""
    raise UserError(f"{tables[0].path}: not every column is a class: {told}; {settle}{kept}{also}")


def _only_names(columns: Sequence[Column]) -> str:
    """What to do where no column holds 0 and 1."""
    named = [column for column in columns if not named_like_a_property(column.name)]
    named = [column for column in named if bare_name(column.name) in LABEL_COLUMNS] or named
    if len(named) != 1:
        return LAYOUT
    kind = "pipe" if any("|" in text for text in named[0].counts) else "single"
    others = [column.name for column in columns if column is not named[0]]
    without = f" --ignore-columns {join_names(others)}" if others else ""
    return f"if {shown(named[0].name)} names classes add --label-format {kind}{without}"


def _offered(tables: Sequence[CsvTable], form: LabelForm) -> list[str]:
    """The columns of all files but those of the images and those to be ignored."""
    for table in tables:
        if len(table.header) < 2:
            raise UserError(
                f"{table.path}: only one column; expected the file name and then one column per "
                "class, with commas between"
            )
    names = list(dict.fromkeys(name for table in tables for name in table.header[1:]))
    if form.ignore_columns:
        ignored = pick(names, form.ignore_columns, "--ignore-columns")
        names = [name for name in names if name not in ignored]
    if not names:
        raise UserError("--ignore-columns: no column is left; leave the classes out of it")
    return names


def _recognised(tables: Sequence[CsvTable], names: list[str], form: LabelForm) -> str:
    """Whether several columns hold 0 and 1, or one column holds names."""
    if form.classes and set(split_names(form.classes, "--classes")) <= set(names):
        return "multihot"
    columns = [joined(tables, name) for name in names]
    if any(c.filled and c.is_label and not named_like_a_property(c.name) for c in columns):
        return "multihot"
    name = _named_column(tables, names)
    column = next((column for column in columns if column.name == name), None)
    if column is None or bare_name(column.name) not in LABEL_COLUMNS or column.graded:
        return "multihot"
    kind = "pipe" if any("|" in text for text in column.counts) else "single"
    logger.info("%s: as with --label-format %s", tables[0].path, kind)
    return kind


def _named_column(tables: Sequence[CsvTable], names: Sequence[str]) -> str | None:
    """The one column that may name classes, or None where that is not clear."""
    known = [name for name in names if bare_name(name) in LABEL_COLUMNS]
    for found in (known, [name for name in names if not named_like_a_property(name)], names):
        if len(found) == 1:
            return found[0]
    return None


def _which_column(table: CsvTable, names: Sequence[str], kind: str) -> UserError:
    listed = ", ".join(map(shown, names))
    kept = next((name for name in names if bare_name(name) in LABEL_COLUMNS), names[0])
    others = join_names(name for name in names if name != kept)
    return UserError(
        f"{table.path}: --label-format {kind} reads one column, and any of {listed} may be it; "
        f"leave out all but one, such as --ignore-columns {others}"
    )


def _named(tables: Sequence[CsvTable], name: str, kind: str) -> Labels:
    _check_same_columns(tables, [name])
    places = [(table.path, line) for table in tables for line in table.lines]
    classes, values = read_names(joined(tables, name), places, several=kind == "pipe")
    others = [other for other in tables[0].header[1:] if other != name]
    unread = f"; not read: {', '.join(others)}" if others else ""
    blank = int(np.isnan(values).all(axis=1).sum())
    told = "%s: classes are the names in column '%s', which %d rows leave blank%s"
    logger.info(told, tables[0].path, name, blank, unread)
    return Labels(classes, values, np.zeros(values.shape, bool))


def _check_same_columns(tables: Sequence[CsvTable], wanted: Sequence[str]) -> None:
    """Check that all files have the columns that are read."""
    for table in (*tables[1:], tables[0]):
        lacking = [name for name in wanted if name not in table.header[1:]]
        if lacking:
            other = next(t for t in tables if lacking[0] in t.header)
            added = [name for name in table.header[1:] if name not in other.header]
            more = f" and has {shown(added[0])}" if added else ""
            raise UserError(
                f"{table.path}: its classes differ from {other.path.name}: it lacks "
                f"{shown(lacking[0])}{more}; give both files the same columns"
            )


def _wrong_cells(
    tables: Sequence[CsvTable], columns: Sequence[Column], *, fixed: bool = False
) -> str | None:
    """Say where the first cell is that is no label, and how many there are."""
    if not any(column.count(NO_LABEL) for column in columns):
        return None
    wrong = np.argwhere(np.stack([column.values == NO_LABEL for column in columns], axis=1))
    row, place = (int(number) for number in wrong[0])
    more = f" (and {len(wrong) - 1} more such cells)" if len(wrong) > 1 else ""
    text, name = columns[place].cells[row], columns[place].name
    return (
        f"{_line(tables, row)}, column '{name}': {shown(text)} is not a label{more}; "
        f"{advice(text, None if fixed else name)}"
    )


def _line(tables: Sequence[CsvTable], row: int) -> str:
    """The file and the line of a row of all files together."""
    for table in tables:
        if row < len(table.lines):
            return f"{table.path}, line {table.lines[row]}"
        row -= len(table.lines)
    raise IndexError(row)


def _check_uncertain(
    tables: Sequence[CsvTable],
    columns: Sequence[Column],
    doubtful: np.ndarray,
    *,
    uncertain: str | None,
) -> None:
    """Ask what -1 means, or say how many such cells there are."""
    row, place = (int(number) for number in np.argwhere(doubtful)[0])
    count, among = int(doubtful.sum()), int(doubtful.any(axis=0).sum())
    if uncertain is None:
        raise UserError(
            f"{_line(tables, row)}, column '{columns[place].name}': -1, as CheXpert marks what is "
            f"uncertain ({count} cells in {among} columns); say what it means: --uncertain blank "
            "(nobody knows), positive, negative, or soft (no annotation; training starts from 0.5)"
        )
    logger.info("%s: %d cells of -1 count as %s", tables[0].path.parent, count, uncertain)


def _check_one_hot(tables: Sequence[CsvTable], values: np.ndarray) -> None:
    known = ~np.isnan(values).any(axis=1)
    wrong = np.flatnonzero(known & ((values == POSITIVE).sum(axis=1) != 1))
    if len(wrong):
        raise UserError(
            f"{_line(tables, int(wrong[0]))}: not exactly one class is 1, and so in {len(wrong)} "
            "rows; mend them, or add --label-format multihot, which allows any number"
        )


def _report(tables: Sequence[CsvTable], columns: Sequence[Column]) -> None:
    """Log cells that are not written as 0, 1 and nothing."""
    by_words: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        if column.words:
            by_words.setdefault(column.words, []).append(column.name)
    for (positive, negative), names in by_words.items():
        told = "%s: '%s' and '%s' read as 1 and 0 in %s"
        logger.info(told, tables[0].path.parent, positive, negative, ", ".join(names))
    spelt = {text for column in columns for text in column.counts if text} & {
        text for column in columns for text, value in column.meaning.items() if np.isnan(value)
    }
    if spelt:
        count = sum(column.counts[text] for column in columns for text in spelt)
        listed = ", ".join(sorted(spelt))
        logger.info("%s: %d cells of %s read as blank", tables[0].path.parent, count, listed)
