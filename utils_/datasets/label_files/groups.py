"""Who belongs together: patients and sites, from ``groups.csv``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils_.datasets.folder import ImageFolder
from utils_.datasets.label_files.ids import name_sites, number_groups
from utils_.datasets.label_files.tables import CsvTable, bare_name, read_csv, shown
from utils_.errors import UserError, nearest

logger = logging.getLogger("fednml")
GROUPED = ("csv", "mured", "odir", "ich")  # the data sets that have such a file
PATIENT, SITE = "patient_id", "site"
# What else these columns are called. They are not guessed, but named where a column is absent.
OTHER_NAMES = {
    PATIENT: ("patient", "subject", "subjectid", "pid", "mrn", "casenumber", "person", "lesionid"),
    SITE: ("siteid", "sitename", "center", "centre", "hospital", "institution", "clinic"),
}


def read_groups(
    path: Path, folder: ImageFolder, files: Sequence[str]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the patient number and the site of each file; None without the file or column.

    Ids are unique within a site: the same ``patient_id`` at two sites is two patients.

    Args:
        path: a ``groups.csv``: file name, ``patient_id``, ``site``, or one of the two.
        folder: where the files lie.
        files: N paths below it.

    Raises:
        UserError: the file is wrong or names none of the images.
    """
    if not path.exists():
        return None, None
    table = read_csv(path)
    patients, sites = _column(table, PATIENT), _column(table, SITE)
    if patients is None and sites is None:
        hint = nearest(PATIENT, table.header)
        raise UserError(f"{path}: no column '{PATIENT}' or '{SITE}'; {hint}")
    listed = folder.place(table.names)
    _refuse_contradictions(table, listed, [column for column in (patients, sites) if column])
    row_of = {file: row for row, file in enumerate(listed)}
    if not any(file in row_of for file in files):
        raise UserError(f"{path}: names none of the images of the label files; use the same names")

    def pick(cells: Sequence[str]) -> list[str]:
        return [cells[row_of[file]] if file in row_of else "" for file in files]

    places = None if sites is None else name_sites(pick(sites))
    if patients is None:
        logger.warning("%s: no column '%s': the split may part one patient's images", path, PATIENT)
        return None, places
    return number_groups(pick(patients), what=PATIENT, sites=places), places


def _column(table: CsvTable, name: str) -> list[str] | None:
    """The cells of a column, whatever the case of its name; None where nothing is like it."""
    found = [column for column in table.header[1:] if bare_name(column) == bare_name(name)]
    if len(found) > 1:
        raise UserError(f"{table.path}: {shown(found[0])} and {shown(found[1])}; keep one of them")
    if found:
        return table.column(found[0])
    for column in table.header[1:]:
        if bare_name(column) in OTHER_NAMES[name]:
            raise UserError(
                f"{table.path}: column {shown(column)} is not read; call it '{name}' if that is "
                "what it holds, else leave it out"
            )
    return None


def _refuse_contradictions(
    table: CsvTable, files: Sequence[str], columns: Sequence[Sequence[str]]
) -> None:
    """Check that rows of one image agree; label files with several rows an image make such."""
    first: dict[str, int] = {}
    for row, file in enumerate(files):
        before = first.setdefault(file, row)
        if any(cells[before] != cells[row] for cells in columns):
            raise UserError(
                f"{table.path}, line {table.lines[row]}: image {shown(file)} has another patient "
                f"or site than in line {table.lines[before]}; make the two rows agree"
            )


def report_straddling(data_dir: Path, groups: np.ndarray, part: np.ndarray) -> None:
    """Log patients with images in several parts; the parts stay as the files fix them."""
    pairs = np.unique(np.stack([groups, part.astype(np.int64)]), axis=1)
    patients = int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())
    if patients:
        logger.warning(
            "%s: %d patients have images in more than one of the train, val and test files",
            data_dir,
            patients,
        )
