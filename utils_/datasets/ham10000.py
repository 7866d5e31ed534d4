"""HAM10000 as its authors publish it: dermoscopy, one of 7 diagnoses, grouped by lesion."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils_.datasets.base import UNASSIGNED, ImageDataset
from utils_.datasets.folder import ImageFolders, refuse_repeats
from utils_.datasets.label_files.ids import name_sites, number_groups
from utils_.datasets.label_files.tables import CsvTable, read_csv, shown
from utils_.datasets.listing import (
    DataOptions,
    Listing,
    absent,
    open_listing,
    preparing,
)
from utils_.errors import UserError, nearest

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
TABLES = ("HAM10000_metadata.csv", "HAM10000_metadata")
FOLDERS = ("images", "[Hh][Aa][Mm]10000_images_part_[12]", "ISIC2018_Task3_Training_Input")


def load_ham10000(data_dir: Path, options: DataOptions) -> ImageDataset:
    """Load HAM10000 (Tschandl et al., 2018): 10,015 images of 7,470 lesions, 7 diagnoses.

    Labels are one-hot, a blank diagnosis is not annotated. Groups are lesions, sites are the four
    sources in the column ``dataset`` of the metadata where there is one.
    """
    return open_listing("ham10000", read_ham10000(data_dir), options)


def read_ham10000(data_dir: Path) -> Listing:
    """Read the metadata; rows as in the file, none assigned to a part.

    Raises:
        UserError: files are absent or wrong; the file and line are named.
    """
    path = next((data_dir / name for name in TABLES if (data_dir / name).exists()), None)
    images = ImageFolders(data_dir, FOLDERS)
    if path is None or not images:
        lacking = data_dir / ("images" if path else TABLES[0]) if data_dir.exists() else data_dir
        raise absent(
            "ham10000",
            f"{lacking} is absent",
            expected=f"{TABLES[0]} and images/*.jpg (or HAM10000_images_part_1/ and _2/)",
            source=preparing("ham10000", data_dir),
        )
    table = read_csv(path).led_by("image_id")
    names = table.names
    files = images.place(names)
    refuse_repeats([table], files)
    sites = name_sites(table.column("dataset")) if "dataset" in table.header else None
    return Listing(
        data_dir=data_dir,
        folder=data_dir,
        names=names,
        files=files,
        labels=_one_hot(table),
        classes=CLASSES,
        part=np.full(len(files), UNASSIGNED, np.uint8),
        groups=number_groups(table.column("lesion_id"), what="lesion_id"),
        sites=sites,
    )


def _one_hot(table: CsvTable) -> np.ndarray:
    """Return (N, 7) float32: 1 for the diagnosis ``dx``, NaN in the whole row where it is blank."""
    rows = {name.lower(): row for name, row in zip(CLASSES, np.eye(len(CLASSES)), strict=True)}
    rows[""] = np.full(len(CLASSES), np.nan)
    diagnoses = [cell.lower() for cell in table.column("dx")]
    for diagnosis, line in zip(diagnoses, table.lines, strict=True):
        if diagnosis not in rows:
            hint = nearest(diagnosis, [name for name in rows if name])
            raise UserError(
                f"{table.path}, line {line}, column 'dx': {shown(diagnosis)} is no diagnosis of "
                f"HAM10000, {hint}"
            )
    return np.array([rows[diagnosis] for diagnosis in diagnoses], np.float32)
