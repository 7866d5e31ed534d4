"""RSNA intracranial haemorrhage 2019: head CT slices, 5 subtypes, a long label file."""

from __future__ import annotations

import csv
import logging
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils_.datasets.base import UNASSIGNED, ImageDataset
from utils_.datasets.folder import ImageFolder
from utils_.datasets.label_files.groups import read_groups
from utils_.datasets.label_files.tables import shown
from utils_.datasets.listing import DataOptions, Listing, absent, open_listing, preparing
from utils_.errors import UserError

logger = logging.getLogger("fednml")
CLASSES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
ANY = "any"  # 1 where any subtype is. It is no class: it would betray hidden labels.
COLUMNS = (*CLASSES, ANY)
TABLES = ("stage_2_train.csv", "stage_1_train.csv")
VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


def load_ich(data_dir: Path, options: DataOptions) -> ImageDataset:
    """Load the RSNA haemorrhage slices (Flanders et al., 2020), made PNG by prepare_data: 5 types.

    ``any`` is no class. Groups are patients where ``groups.csv`` names them.

    Raises:
        UserError: see read_ich and load_images.
    """
    return open_listing("ich", read_ich(data_dir), options)


def read_ich(data_dir: Path) -> Listing:
    """Read the label file; images in the order of their first row, none assigned to a part.

    Raises:
        UserError: files are absent or wrong; the file and line are named.
    """
    path = next((data_dir / name for name in TABLES if (data_dir / name).exists()), None)
    if path is None or not (data_dir / "images").exists():
        lacking = data_dir / ("images" if path else TABLES[0]) if data_dir.exists() else data_dir
        raise absent(
            "ich",
            f"{lacking} is absent",
            expected=f"{TABLES[0]} and images/*.png (DICOM is converted by prepare_data)",
            source=preparing("ich", data_dir),
        )
    names, labels = read_long(path)
    folder = ImageFolder(data_dir / "images")
    files = [folder.find(name) or f"{name}.png" for name in names]
    groups, sites = read_groups(data_dir / "groups.csv", folder, files)
    part = np.full(len(files), UNASSIGNED, np.uint8)
    return Listing(data_dir, folder.path, names, files, labels, CLASSES, part, groups, sites)


def read_long(path: Path) -> tuple[list[str], np.ndarray]:
    """Turn rows ``ID_12ab_epidural,0`` into image names and (N, 5) float32, NaN without a row.

    A row that is repeated (stage 1 has some) counts once; two that differ are an error.

    Raises:
        UserError: the file cannot be read, or a row is wrong; its line is named.
    """
    cells = _Cells()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            _check_header(path, next(reader, []))
            for row in reader:
                if row and not cells.add(row, reader.line_num):
                    raise UserError(f"{path}, line {reader.line_num}: {_problem(row)}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not cells.row_of:
        raise UserError(f"{path}: only a header and no row; expected six rows per image")
    table = cells.table(path)
    _check_any(table)
    return list(cells.row_of), table[:, : len(CLASSES)]


@dataclass
class _Cells:
    """The cells in the order of the file, 13 bytes each: there are 4.5 million."""

    row_of: dict[str, int] = field(default_factory=dict)
    rows: array[int] = field(default_factory=lambda: array("i"))
    columns: array[int] = field(default_factory=lambda: array("b"))
    values: array[float] = field(default_factory=lambda: array("f"))
    lines: array[int] = field(default_factory=lambda: array("i"))

    def add(self, row: list[str], line: int) -> bool:
        """Take one row of the file; False if it is wrong."""
        name, _, subtype = row[0].strip().rpartition("_")
        value = VALUES.get(row[1].strip()) if len(row) == 2 else None
        if not name or subtype not in COLUMNS or value is None:
            return False
        self.rows.append(self.row_of.setdefault(name, len(self.row_of)))
        self.columns.append(COLUMNS.index(subtype))
        self.values.append(value)
        self.lines.append(line)
        return True

    def table(self, path: Path) -> np.ndarray:
        """Return (N, 6) float32, refusing rows that contradict each other."""
        table = np.full((len(self.row_of), len(COLUMNS)), np.nan, np.float32)
        rows, columns = np.asarray(self.rows), np.asarray(self.columns)
        values = np.asarray(self.values)
        table[rows, columns] = values
        differ = np.flatnonzero(table[rows, columns] != values)
        if len(differ):
            line, column = self.lines[differ[0]], COLUMNS[columns[differ[0]]]
            raise UserError(
                f"{path}, line {line}: a later row gives another '{column}' for the same image; "
                "take out the wrong one of the two"
            )
        return table


def _check_header(path: Path, header: list[str]) -> None:
    if [cell.strip() for cell in header] != ["ID", "Label"]:
        raise UserError(f"{path}, line 1: expected the columns ID,Label of the official file")


def _problem(row: list[str]) -> str:
    text = shown(",".join(row))
    return f"{text} is not IMAGE_SUBTYPE,LABEL with one of {', '.join(COLUMNS)} and 0 or 1"


def _check_any(table: np.ndarray) -> None:
    """Log the images whose ``any`` contradicts the subtypes; the official file has none."""
    known = ~np.isnan(table).any(axis=1)
    differ = int((known & (table[:, -1] != table[:, :-1].max(axis=1))).sum())
    if differ:
        logger.warning("ich: '%s' contradicts the subtypes of %d images", ANY, differ)
