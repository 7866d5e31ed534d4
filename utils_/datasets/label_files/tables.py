"""CSV files as people write them: read strictly, with the place of every mistake."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils_.datasets.label_files.text_files import Records, read_records
from utils_.errors import UserError, nearest

logger = logging.getLogger("fednml")
LABEL = re.compile(r"[01](\.0*)?")


@dataclass(frozen=True)
class CsvTable:
    """One CSV file. Cells are text, stripped of surrounding spaces.

    Attributes:
        path: the file.
        header: the column names, without duplicates.
        rows: the cells, each row as long as the header.
        lines: the line in the file (from 1) on which each row ends.
    """

    path: Path
    header: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    @property
    def names(self) -> list[str]:
        """The first column: file names.

        Raises:
            UserError: one is blank.
        """
        names = [row[0] for row in self.rows]
        if "" in names:
            line, what = self.lines[names.index("")], shown(self.header[0])
            where = "the first column" if what == "''" else f"column {what}"
            raise UserError(f"{self.path}, line {line}: no file name in {where}")
        return names

    def led_by(self, name: str) -> CsvTable:
        """Return the table with one column, that of the file names, moved to the front.

        A first column without name is called as pandas does, ``Unnamed: 0``, and moves back.

        Raises:
            UserError: there is no such column.
        """
        self.column(name)
        place = self.header.index(name)
        if place == 0:
            return self
        header = (self.header[0] or "Unnamed: 0", *self.header[1:])
        order = [place, *(other for other in range(len(header)) if other != place)]
        rows = [[row[at] for at in order] for row in self.rows]
        return CsvTable(self.path, tuple(header[at] for at in order), rows, self.lines)

    def column(self, name: str) -> list[str]:
        """Return the cells of one column.

        Raises:
            UserError: there is no such column.
        """
        if name not in self.header:
            raise UserError(f"{self.path}: no column '{name}'; {nearest(name, self.header)}")
        place = self.header.index(name)
        return [row[place] for row in self.rows]


def read_csv(path: Path) -> CsvTable:
    """Read a table; blank rows are skipped. What is unusual in the file is logged.

    Raises:
        UserError: see :func:`utils_.datasets.label_files.text_files.read_records`; or empty, only a
            header, a row longer or shorter than the header, a column without name or named twice.
    """
    text = read_records(path)
    if not text.records:
        raise UserError(f"{path}: the file is empty; expected a header and a row per image")
    records = _without_empty_end(text.records)
    header = _header(path, records[0][1])
    if len(records) == 1:
        raise UserError(f"{path}: only a header and no row; expected a row per image")
    _check_widths(path, len(header), records[1:])
    if text.notes:
        logger.info("%s: read as a table %s", path, ", ".join(text.notes))
    lines, rows = (list(part) for part in zip(*records[1:], strict=True))
    return CsvTable(path, header, rows, lines)


def _check_widths(path: Path, width: int, records: Records) -> None:
    if len(records) > 1 and all(len(row) == width + 1 for _, row in records):
        raise UserError(
            f"{path}: every row has one cell more than the header; if R wrote the file, write it "
            "with row.names = FALSE, else name all columns"
        )
    for line, row in records:
        if len(row) != width:
            raise UserError(
                f"{path}, line {line}: {len(row)} cells where the header has {width}; "
                "give every row one cell per column"
            )


def bare_name(name: str) -> str:
    """A column's name without case, accents' spelling, spaces and marks: 'Patient ID' as given by
    another program is ``patient_id``."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def parse_labels(table: CsvTable, columns: Sequence[str]) -> np.ndarray:
    """Return (N, C) float32 of the given columns: 1 present, 0 absent, NaN where the cell is blank.

    Raises:
        UserError: a cell holds anything but 0, 1, 0.0, 1.0 or nothing; its place is named.
    """
    places = [table.header.index(name) for name in columns]
    cells = [row[place] for row in table.rows for place in places]
    # Few distinct texts occur, so each is understood once however long the file is.
    meaning = {text: _label(text) for text in set(cells)}
    values = np.fromiter(map(meaning.__getitem__, cells), np.float32, len(cells))
    labels = values.reshape(len(table.rows), len(columns))
    wrong = np.argwhere(np.isinf(labels))
    if len(wrong):
        row, column = (int(place) for place in wrong[0])
        more = f" (and {len(wrong) - 1} more such cells)" if len(wrong) > 1 else ""
        raise UserError(
            f"{table.path}, line {table.lines[row]}, column '{columns[column]}': "
            f"{shown(table.rows[row][places[column]])} is not a label{more}; "
            "write 0 or 1, or leave the cell blank where nobody looked"
        )
    return labels


def shown(text: str) -> str:
    """Quote a text of a user's file so that it fits one line of an error message."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _label(text: str) -> float:
    if not text:
        return np.nan
    return float(text) if LABEL.fullmatch(text) else np.inf


def _without_empty_end(records: Records) -> Records:
    """Drop a last column without name or any cell: a comma that ends every line."""
    width = len(records[0][1])
    if width < 2 or any(len(row) != width or row[-1] for _, row in records):
        return records
    return [(line, row[:-1]) for line, row in records]


def _header(path: Path, header: list[str]) -> tuple[str, ...]:
    if len(header) > 1 and len(set(header)) < len(header) and not any(map(_name_like, header[1:])):
        first = ", ".join(header[:4])
        raise UserError(
            f"{path}, line 1: {shown(first)} looks like data, not like the names of columns; "
            "add a line of names above it, such as image,class1,class2"
        )
    for place, name in enumerate(header, start=1):
        if place > 1 and not name:
            raise UserError(f"{path}, line 1: column {place} has no name")
        if set(name) & set(";\r\n"):
            raise UserError(f"{path}, line 1: {shown(name)}: no ';' or line break in a column name")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{path}, line 1: column {shown(twice[0])} appears more than once")
    return tuple(header)


def _name_like(text: str) -> bool:
    """Whether a cell of the first line may be a column's name: no number, and not blank."""
    return bool(text) and re.fullmatch(r"[-+]?[\d.,]+|true|false|nan|na", text.lower()) is None
