"""ISIC 2019 in its official layout: skin lesions, 8 classes, grouped by lesion."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from utils_.datasets.base import UNASSIGNED, ImageDataset
from utils_.datasets.folder import ImageFolder, refuse_repeats
from utils_.datasets.label_files.ids import name_sites, number_groups
from utils_.datasets.label_files.tables import CsvTable, parse_labels, read_csv, shown
from utils_.datasets.listing import (
    DataOptions,
    Listing,
    absent,
    open_listing,
)
from utils_.errors import UserError, nearest

logger = logging.getLogger("fednml")
CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
UNKNOWN = "UNK"
TRUTH = "ISIC_2019_Training_GroundTruth.csv"
METADATA = "ISIC_2019_Training_Metadata.csv"
IMAGES = "ISIC_2019_Training_Input"
DOWNSAMPLED = "_downsampled"  # the challenge reduced large images and renamed them so
NAMES_SHOWN = 10


def load_isic(data_dir: Path, options: DataOptions) -> ImageDataset:
    """Load ISIC 2019 (Tschandl et al. 2018, Codella et al. 2018, Combalia et al. 2019).

    The labels are taken as the file gives them, also where a row is not one-hot. Groups are
    lesions, sites are the centres in the column ``center`` of the metadata where there is one.

    Raises:
        UserError: see read_isic and load_images.
    """
    return open_listing("isic", read_isic(data_dir), options)


def read_isic(data_dir: Path) -> Listing:
    """Read ground truth and metadata; rows as in the ground truth, none assigned to a part.

    Rows whose UNK is 1 belong to none of the 8 classes and are left out (logged). An image without
    lesion_id is a group of its own.

    Raises:
        UserError: files are absent or wrong; the file, line and column are named.
    """
    for path in (data_dir, data_dir / TRUTH, data_dir / METADATA, data_dir / IMAGES):
        if not path.exists():
            raise absent(
                "isic",
                f"{path} is absent",
                expected=f"{TRUTH}, {METADATA} and {IMAGES}/*.jpg",
                source="get them from https://challenge.isic-archive.com/data/#2019",
            )
    table = _known_rows(read_csv(data_dir / TRUTH))
    folder = ImageFolder(data_dir / IMAGES)
    files = [_find(folder, name) for name in table.names]
    refuse_repeats([table], files)
    groups, sites = _read_metadata(data_dir / METADATA, table)
    return Listing(
        data_dir=data_dir,
        folder=folder.path,
        names=table.names,
        files=files,
        labels=parse_labels(table, CLASSES),
        classes=CLASSES,
        part=np.full(len(files), UNASSIGNED, np.uint8),
        groups=groups,
        sites=sites,
    )


def _known_rows(table: CsvTable) -> CsvTable:
    """Check the columns and leave out the rows of the class UNK."""
    for column in table.header[1:]:
        if column not in (*CLASSES, UNKNOWN):
            hint = nearest(column, (*CLASSES, UNKNOWN))
            raise UserError(f"{table.path}: {shown(column)} is no class of ISIC 2019, {hint}")
    lacking = [cls for cls in CLASSES if cls not in table.header[1:]]
    if lacking:
        raise UserError(
            f"{table.path}: the columns {', '.join(lacking)} are absent; expected image, "
            f"{', '.join(CLASSES)} and {UNKNOWN}"
        )
    if UNKNOWN not in table.header:
        return table
    known = (parse_labels(table, [UNKNOWN])[:, 0] != 1).tolist()
    left_out = [name for name, keep in zip(table.names, known, strict=True) if not keep]
    if not left_out:
        return table
    if not any(known):
        raise UserError(f"{table.path}: every image is {UNKNOWN}; there is nothing to learn")
    more = f" and {len(left_out) - NAMES_SHOWN} more" if len(left_out) > NAMES_SHOWN else ""
    logger.warning(
        "isic: left out %d images of class %s: %s%s",
        *(len(left_out), UNKNOWN, ", ".join(left_out[:NAMES_SHOWN]), more),
    )
    rows = [row for row, keep in zip(table.rows, known, strict=True) if keep]
    lines = [line for line, keep in zip(table.lines, known, strict=True) if keep]
    return CsvTable(table.path, table.header, rows, lines)


def _find(folder: ImageFolder, name: str) -> str:
    """Return the file of an image, whose name may or may not end in ``_downsampled``."""
    other = _plain(name) if name.endswith(DOWNSAMPLED) else name + DOWNSAMPLED
    return folder.find(name) or folder.find(other) or f"{name.removesuffix('.jpg')}.jpg"


def _plain(name: str) -> str:
    return name.removesuffix(".jpg").removesuffix(DOWNSAMPLED)


def _read_metadata(path: Path, truth: CsvTable) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the lesion number of each image and its centre, or None without that column."""
    table = read_csv(path)
    names = [_plain(name) for name in table.names]
    refuse_repeats([table], names)
    row_of = {name: row for row, name in enumerate(names)}
    rows = [row_of.get(_plain(name)) for name in truth.names]
    if all(row is None for row in rows):
        raise UserError(
            f"{path}: names none of the images of {truth.path.name}; give the two files of one "
            "release"
        )

    def pick(column: str) -> list[str]:
        cells = table.column(column)
        return ["" if row is None else cells[row] for row in rows]

    groups = number_groups(pick("lesion_id"), what="lesion_id")
    return groups, name_sites(pick("center")) if "center" in table.header else None
