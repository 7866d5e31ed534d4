"""A split that somebody wrote down: every image's part and client from a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils_.datasets.base import PART_NAMES, TRAIN, UNASSIGNED
from utils_.datasets.label_files.tables import CsvTable, read_csv, shown
from utils_.errors import UserError, nearest
from utils_.spreadsheet import as_was

COLUMNS = ("image", "split", "client")


def read_split(
    path: Path,
    files: Sequence[str],
    groups: np.ndarray | None,
    part: np.ndarray,
    *,
    clients: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Read who holds which image; the form is that of a run's ``assignments.csv``.

    - The header has ``image``, ``split`` and ``client`` in any order; further columns are not read.
    - Every image of the dataset has one row: its name, ``train``, ``val`` or ``test``, and for
      ``train`` the client's number from 0.
    - Images of one patient or lesion are in one part and at one client. Only a spread over parts
      that the dataset's own files make is let through.
    - Label values play no role.

    Args:
        path: the CSV file.
        files: N names of the dataset's images.
        groups: (N,) int64, or None.
        part: (N,) uint8, the parts that the dataset's own files fix; the split file outranks them.
        clients: K; the file must use each of 0 .. K - 1.

    Returns:
        (N,) uint8 part and (N,) int32 client, -1 outside train.

    Raises:
        UserError: a mistake in the file; file and line are named.
    """
    table = read_csv(path)
    names, splits, numbers = (table.column(name) for name in COLUMNS)
    row_of = _rows(table, names, files)
    new_part, client = np.empty(len(files), np.uint8), np.empty(len(files), np.int32)
    line = np.empty(len(files), np.int64)
    for row, split, number, place in zip(row_of, splits, numbers, table.lines, strict=True):
        new_part[row] = _part(path, place, split)
        client[row] = _client(path, place, number, train=new_part[row] == TRAIN)
        line[row] = place
    _check_clients(path, client, line, clients)
    if groups is not None:
        _check_groups(path, groups, new_part, client, fixed=part, line=line)
    return new_part, client


def _rows(table: CsvTable, names: Sequence[str], files: Sequence[str]) -> list[int]:
    """The dataset's row of each line of the table, each once."""
    row_of = {name: row for row, name in enumerate(files)}
    names = [name if name in row_of else as_was(name) for name in names]
    line_of: dict[str, int] = {}
    for name, line in zip(names, table.lines, strict=True):
        if name not in row_of:
            hint = nearest(name, files) if len(files) < 10_000 else "see its label files"
            hint = hint if hint.startswith("did") else "remove the line or correct the name"
            raise UserError(
                f"{table.path}, line {line}: the dataset has no image {shown(name)}; {hint}"
            )
        if name in line_of:
            raise UserError(
                f"{table.path}, line {line}: image {shown(name)} is already in line "
                f"{line_of[name]}; keep one of the two"
            )
        line_of[name] = line
    absent = [name for name in files if name not in line_of]
    if absent:
        raise UserError(
            f"{table.path}: no line for {len(absent)} of {len(files)} images, "
            f"such as {shown(absent[0])}; add a line for each"
        )
    return [row_of[name] for name in names]


def _part(path: Path, line: int, text: str) -> int:
    if text not in PART_NAMES:
        raise UserError(f"{path}, line {line}: split {shown(text)}; write train, val or test")
    return PART_NAMES.index(text)


def _client(path: Path, line: int, text: str, *, train: bool) -> int:
    if not train:
        if text not in ("", "-1"):
            raise UserError(
                f"{path}, line {line}: client {shown(text)} of an image that is not in train; "
                "leave the cell blank"
            )
        return -1
    number = text.removesuffix(".0")  # spreadsheets write 3.0 in a column that has blanks
    if not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise UserError(
            f"{path}, line {line}: client {shown(text)}; write the number of a client, from 0"
        )
    return int(number)


def _check_clients(path: Path, client: np.ndarray, line: np.ndarray, clients: int) -> None:
    if not (client >= 0).any():
        raise UserError(f"{path}: no image is in train; write train in the column 'split'")
    used = np.unique(client[client >= 0])
    found, highest = len(used), int(used[-1])
    if highest >= found:
        unused = np.setdiff1d(np.arange(highest), used)[0]
        raise UserError(
            f"{path}, line {line[client.argmax()]}: the highest client is {highest}, and client "
            f"{unused} has no image; number the clients from 0 without gaps"
        )
    if found != clients:
        raise UserError(
            f"{path}, line {line[client.argmax()]}: the highest client is {highest}, which makes "
            f"{found}, not {clients}; use --clients {found}"
        )


def _check_groups(
    path: Path,
    groups: np.ndarray,
    part: np.ndarray,
    client: np.ndarray,
    *,
    fixed: np.ndarray,
    line: np.ndarray,
) -> None:
    """Stop where a patient or lesion is in two places, unless the dataset's files put it there."""
    order = np.lexsort((fixed, client, part, groups))  # neighbours differ where any two do
    first, second = order[:-1], order[1:]
    same = groups[first] == groups[second]
    holder = np.where(part == TRAIN, client, -1 - part.astype(np.int64))
    own = (fixed[first] != fixed[second]) & (part[first] != part[second])
    own &= (fixed[first] != UNASSIGNED) & (fixed[second] != UNASSIGNED)
    apart = np.flatnonzero(same & (holder[first] != holder[second]) & ~own)
    if len(apart):
        lines = sorted((line[first[apart[0]]], line[second[apart[0]]]))
        raise UserError(
            f"{path}, line {lines[1]}: the same patient or lesion as in line {lines[0]}, or a copy "
            "of that image, but another split or client; keep them together"
        )
