"""Who belongs together: patients and sites, from ``groups.csv``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils_.datasets.folder import ImageFolder, refuse_repeats
from utils_.datasets.listing import name_sites, number_groups
from utils_.datasets.tables import read_csv
from utils_.errors import UserError

logger = logging.getLogger("fednml")


def read_groups(
    path: Path, folder: ImageFolder, files: Sequence[str]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the patient number and the site of each file; None without the file or column.

    Args:
        path: a ``groups.csv``: file name, ``patient_id`` and perhaps ``site``.
        folder: where the files lie.
        files: N paths below it.

    Raises:
        UserError: the file is wrong or names none of the images.
    """
    if not path.exists():
        return None, None
    table = read_csv(path)
    patients = table.column("patient_id")
    listed = folder.place(table.names)
    refuse_repeats([table], listed)
    row_of = {file: row for row, file in enumerate(listed)}
    if not any(file in row_of for file in files):
        raise UserError(f"{path}: names none of the images of the label files; use the same names")

    def pick(cells: Sequence[str]) -> list[str]:
        return [cells[row_of[file]] if file in row_of else "" for file in files]

    groups = number_groups(pick(patients), what="patient_id")
    sites = name_sites(pick(table.column("site"))) if "site" in table.header else None
    return groups, sites


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
