"""CSV files as people write them: read strictly, with the place of every mistake."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils_.errors import UserError, nearest

LABEL = re.compile(r"[01](\.0*)?")


@dataclass(frozen=True)
class CsvTable:
    """One CSV file. Cells are text, stripped of surrounding spaces.

    Attributes:
        path: the file.
        header: the column names, without duplicates.
        rows: the cells, each row as long as the header; the first cell is never blank.
        lines: the line in the file (from 1) on which each row ends.
    """

    path: Path
    header: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    @property
    def names(self) -> list[str]:
        """The first column: file names."""
        return [row[0] for row in self.rows]

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
    """Read a CSV file: UTF-8 with or without BOM, any line ends, blank rows skipped.

    Raises:
        UserError: absent, unreadable, not UTF-8, empty, only a header, a row longer or shorter than
            the header, a column without name or named twice, a row without file name.
    """
    records = _records(path, _text(path))
    if not records:
        raise UserError(f"{path}: the file is empty; expected a header and a row per image")
    records = _without_empty_end(records)
    header = _header(path, records[0][1])
    if len(records) == 1:
        raise UserError(f"{path}: only a header and no row; expected a row per image")
    for line, row in records[1:]:
        if len(row) != len(header):
            raise UserError(
                f"{path}, line {line}: {len(row)} cells where the header has {len(header)}; "
                "give every row one cell per column"
            )
        if not row[0]:
            raise UserError(f"{path}, line {line}: no file name in the first column")
    lines, rows = (list(part) for part in zip(*records[1:], strict=True))
    return CsvTable(path, header, rows, lines)


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


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8 text; "
            "save the file as 'CSV UTF-8'"
        ) from error


def _records(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """Split into (line number, stripped cells), rows of nothing but blanks left out."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records = []
    try:
        for row in reader:
            cells = list(map(str.strip, row))
            if any(cells):
                records.append((reader.line_num, cells))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error
    return records


def _without_empty_end(records: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Drop a last column without name or any cell: a comma that ends every line."""
    width = len(records[0][1])
    if width < 2 or any(len(row) != width or row[-1] for _, row in records):
        return records
    return [(line, row[:-1]) for line, row in records]


def _header(path: Path, header: list[str]) -> tuple[str, ...]:
    if len(header) == 1 and (mark := next((m for m in ";\t|" if m in header[0]), None)):
        raise UserError(f"{path}: columns are separated by {mark!r}; save it with commas instead")
    for place, name in enumerate(header, start=1):
        if place > 1 and not name:
            raise UserError(f"{path}, line 1: column {place} has no name")
        if set(name) & set(";\r\n"):
            raise UserError(f"{path}, line 1: {shown(name)}: no ';' or line break in a column name")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{path}, line 1: column {shown(twice[0])} appears more than once")
    return tuple(header)
