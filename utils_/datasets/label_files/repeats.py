"""Several rows of one image: of readers, boxes or studies. They are refused, or become one."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np

from utils_.datasets.label_files.label_forms import Labels
from utils_.datasets.label_files.tables import CsvTable, bare_name, shown
from utils_.errors import UserError

logger = logging.getLogger("fednml")
FORMS = (  # what a further row of an image is, by the names of columns
    ("box", re.compile(r"[xy](min|max|1|2)|bbox|box|polygon|width|height")),
    ("reader", re.compile(r"radid|(reader|rater|annotator|grader|radiologist|doctor|expert)\w*")),
    ("study", re.compile(r"(study|series|accession|followup|visit|exam|report)\w*")),
)
LINES_SHOWN = 3


def combine_rows(
    tables: Sequence[CsvTable], files: Sequence[str], labels: Labels, *, combine: str | None
) -> tuple[np.ndarray, Labels]:
    """Return the first row of each image, ascending, and one row of labels for each.

    ``any``: 1 where any row says 1, else 0 where any says 0. ``majority``: what more rows say; a
    tie is blank. ``first``: the first row alone. What no row says stays blank.

    Args:
        tables: the label files.
        files: the image file of every row of all of them.
        labels: of these rows.
        combine: ``any``, ``majority``, ``first``, or None, which refuses such rows.

    Raises:
        UserError: an image is in several files, or in several rows and ``combine`` is None.
    """
    numbers: dict[str, int] = {}
    image = np.array([numbers.setdefault(file, len(numbers)) for file in files])
    if len(numbers) == len(files):
        return np.arange(len(files)), labels
    _refuse_several_files(tables, files, image)
    if combine is None:
        raise _several_rows(tables, files, image, labels)
    kept = np.unique(image, return_index=True)[1]
    told = "%d rows of %d images: several rows an image become one by --combine %s"
    logger.info(told, len(files), len(kept), combine)
    if combine == "first":
        taken = Labels(labels.classes, labels.values[kept], labels.uncertain[kept])
        return kept, taken
    values = _pooled(labels.values, image, count=len(kept), combine=combine)
    uncertain = np.zeros(values.shape, bool)
    np.logical_or.at(uncertain, image, labels.uncertain)
    return kept, Labels(labels.classes, values, uncertain & np.isnan(values))


def _pooled(values: np.ndarray, image: np.ndarray, *, count: int, combine: str) -> np.ndarray:
    """(count, C) what the rows of each image say together."""
    says = {}
    for what in (1, 0):
        says[what] = np.zeros((count, values.shape[1]))
        np.add.at(says[what], image, values == what)
    if combine == "any":
        pooled = np.where(says[1] > 0, 1, np.where(says[0] > 0, 0, np.nan))
    else:
        tie = says[1] == says[0]
        contested = int((tie & (says[1] > 0)).sum())
        if contested:
            logger.info("--combine majority: %d cells are a tie and stay blank", contested)
        pooled = np.where(tie, np.nan, says[1] > says[0])
    result: np.ndarray = pooled.astype(np.float32)
    return result


def _refuse_several_files(
    tables: Sequence[CsvTable], files: Sequence[str], image: np.ndarray
) -> None:
    """Check that no image is in two label files, whatever its rows in one of them."""
    table = np.repeat(np.arange(len(tables)), [len(one.lines) for one in tables])
    first = np.unique(image, return_index=True)[1][image]
    again = np.flatnonzero(table != table[first])
    if len(again):
        row, before = int(again[0]), int(first[again[0]])
        lines = [line for one in tables for line in one.lines]
        raise UserError(
            f"{tables[table[row]].path}, line {lines[row]}: image {shown(files[row])} is already "
            f"listed in {tables[table[before]].path.name}, line {lines[before]}; an image is in "
            "one part: remove it from one of the two files"
        )


def _several_rows(
    tables: Sequence[CsvTable], files: Sequence[str], image: np.ndarray, labels: Labels
) -> UserError:
    """The error that says what form the rows have, and how to make them one."""
    counts = np.bincount(image)
    first = int(np.flatnonzero(counts[image] > 1)[0])
    rows = np.flatnonzero(image == image[first])
    lines = [(table.path, line) for table in tables for line in table.lines]
    listed = ", ".join(str(lines[row][1]) for row in rows[:LINES_SHOWN].tolist())
    several, own = int((counts > 1).sum()), labels.values[rows]
    same = np.array_equal(np.broadcast_to(own[:1], own.shape), own, equal_nan=True)
    return UserError(
        f"{lines[first][0]}, lines {listed}: image {shown(files[first])} is already listed: it has "
        f"{len(rows)} rows, whose labels {'agree' if same else 'differ'}, and {several} of "
        f"{len(counts)} images have several rows{_form(tables[0])}; add "
        "--combine any (1 where any row says 1), majority, or first"
    )


def _form(table: CsvTable) -> str:
    for what, pattern in FORMS:
        column = next((name for name in table.header if pattern.fullmatch(bare_name(name))), None)
        if column:
            return f" (a row per {what}, by column {shown(column)})"
    return ""
