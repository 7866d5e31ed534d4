"""Labels that somebody has verified: ``true_data.csv`` beside the label files of a data set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils_.datasets.folder import ImageFolder, refuse_repeats
from utils_.datasets.label_files.label_columns import split_names
from utils_.datasets.label_files.tables import CsvTable, parse_labels, read_csv, shown
from utils_.errors import UserError, nearest

VERIFIED_FILE = "true_data.csv"
logger = logging.getLogger("fednml")


def read_verified(
    data_dir: Path,
    folder: Path,
    *,
    names: Sequence[str],
    files: Sequence[str],
    classes: Sequence[str],
    chosen: str | None = None,
    ignored: str | None = None,
) -> np.ndarray | None:
    """Read ``true_data.csv``: the file name, then some or all classes, for some or all images.

    1 is present, 0 absent, blank not verified. Rows of images that are not listed are counted in
    the log and not used.

    Args:
        data_dir: where the file may lie.
        folder: where the images lie.
        names: N names as in the label files.
        files: N paths below ``folder``.
        classes: C names.
        chosen: ``--classes``; where given, other columns are left out.
        ignored: ``--ignore-columns``; these are left out.

    Returns:
        (N, C) float32, NaN where nothing is verified; None without the file.

    Raises:
        UserError: a column is no class, an image stands twice or none is listed, or a cell is no
            label; the place is named.
    """
    path = data_dir / VERIFIED_FILE
    if not path.exists():
        return None
    table = read_csv(path)
    left_out = split_names(ignored, "--ignore-columns") if ignored else []
    columns = _columns(table, classes, left_out=table.header[1:] if chosen else left_out)
    places = ImageFolder(folder).place(table.names)
    refuse_repeats([table], places)
    rows = _rows(table, places, names=names, files=files)
    labels = parse_labels(table, [classes[column] for column in columns])
    used = np.flatnonzero(rows >= 0)
    verified = np.full((len(files), len(classes)), np.nan, np.float32)
    verified[np.ix_(rows[used], np.array(columns))] = labels[used]
    return verified


def _columns(table: CsvTable, classes: Sequence[str], *, left_out: Sequence[str]) -> list[int]:
    """The class of each column but the first and those left out on purpose."""
    if len(table.header) < 2:
        raise UserError(f"{table.path}: only one column; add one for each class that is verified")
    for name in table.header[1:]:
        if name not in classes and name not in left_out:
            hint = nearest(name, classes)
            raise UserError(
                f"{table.path}: column {shown(name)} is no class of the label files; {hint}, or "
                "remove the column"
            )
    return [list(classes).index(name) for name in table.header[1:] if name in classes]


def _rows(
    table: CsvTable, places: Sequence[str], *, names: Sequence[str], files: Sequence[str]
) -> np.ndarray:
    """The row of the data set for each line of the table, by name or by file; -1 for none."""
    by_file = {file: row for row, file in enumerate(files)}
    by_name = {name: row for row, name in enumerate(names)}
    rows = np.array(
        [
            by_name.get(name, by_file.get(file, -1))
            for name, file in zip(table.names, places, strict=True)
        ],
        dtype=np.int64,
    )
    strange = np.flatnonzero(rows < 0)
    if not len(strange):
        return rows
    first = f"{shown(table.names[strange[0]])} in line {table.lines[strange[0]]}"
    if len(strange) == len(rows):
        raise UserError(
            f"{table.path}: names none of the images of the label files, such as {first}; "
            "use the same names"
        )
    logger.warning(
        "%s: %d of %d rows name no image of the label files, such as %s; they are not used",
        *(table.path, len(strange), len(rows), first),
    )
    return rows
