"""BRSET in its official layout: fundus images of Brazilian patients, 13 findings."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from utils_.datasets.base import UNASSIGNED, ImageDataset
from utils_.datasets.folder import ImageFolders, refuse_repeats
from utils_.datasets.label_files.ids import name_sites, number_groups
from utils_.datasets.label_files.tables import CsvTable, parse_labels, read_csv
from utils_.datasets.listing import (
    DataOptions,
    Listing,
    absent,
    open_listing,
)
from utils_.errors import UserError, nearest

logger = logging.getLogger("fednml")
CLASSES = (
    *("diabetic_retinopathy", "macular_edema", "scar", "nevus", "amd", "vascular_occlusion"),
    *("hypertensive_retinopathy", "drusens", "hemorrhage", "retinal_detachment"),
    *("myopic_fundus", "increased_cup_disc", "other"),
)
TABLES = ("labels_brset.csv", "labels.csv")  # versions 1.0.1 and 1.0.0
FOLDERS = ("fundus_photos", "images")
# Rows of version 1.0.1 that never had an image.
WITHOUT_IMAGE = (*(f"img{number:05d}" for number in range(4414, 4420)), "img06900")


def load_brset(data_dir: Path, options: DataOptions) -> ImageDataset:
    """Load BRSET (Nakayama et al., 2024): 16,266 fundus images of 8,524 patients, 13 findings.

    Groups are patients, sites are the two cameras. The seven rows for which the release has no
    image are left out (logged); any other missing image is an error.
    """
    return open_listing("brset", read_brset(data_dir), options)


def read_brset(data_dir: Path) -> Listing:
    """Read the label file; rows as in the file, none assigned to a part.

    Raises:
        UserError: files are absent or wrong; the file, line and column are named.
    """
    path = next((data_dir / name for name in TABLES if (data_dir / name).exists()), None)
    images = ImageFolders(data_dir, FOLDERS)
    if path is None or not images:
        place = data_dir / (FOLDERS[0] if path else TABLES[0]) if data_dir.exists() else data_dir
        raise absent(
            "brset",
            f"{place} is absent",
            expected=f"{TABLES[0]} and {FOLDERS[0]}/*.jpg",
            source="get them from https://physionet.org/content/brazilian-ophthalmological/",
        )
    table = _with_images(read_csv(path).led_by("image_id"), images)
    lacking = [cls for cls in CLASSES if cls not in table.header]
    if lacking:
        hint = nearest(lacking[0], table.header)
        raise UserError(f"{path}: no column '{lacking[0]}' (of {len(lacking)} absent); {hint}")
    names = table.names
    files = images.place(names)
    refuse_repeats([table], files)
    cameras = name_sites(table.column("camera")) if "camera" in table.header else None
    return Listing(
        data_dir=data_dir,
        folder=data_dir,
        names=names,
        files=files,
        labels=parse_labels(table, CLASSES),
        classes=CLASSES,
        part=np.full(len(files), UNASSIGNED, np.uint8),
        groups=number_groups(table.column("patient_id"), what="patient_id"),
        sites=cameras,
    )


def _with_images(table: CsvTable, images: ImageFolders) -> CsvTable:
    """Leave out the rows known to have no image, where they indeed have none."""
    names = table.column("image_id")
    without = [name for name in names if name.removesuffix(".jpg") in WITHOUT_IMAGE]
    lost = {name for name in without if images.find(name) is None}
    if not lost:
        return table
    if len(lost) == len(names):
        raise UserError(f"{table.path}: none of its images is there; put them into {FOLDERS[0]}/")
    logger.warning("brset: left out %d rows that the release has no image for", len(lost))
    kept = [row for row, name in enumerate(names) if name not in lost]
    rows, lines = [table.rows[row] for row in kept], [table.lines[row] for row in kept]
    return CsvTable(table.path, table.header, rows, lines)
