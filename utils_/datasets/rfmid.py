"""RFMiD in its official layouts: three label files, fundus images, 45 diseases."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from utils_.datasets.base import PART_NAMES, TEST, TRAIN, VAL, ImageDataset
from utils_.datasets.folder import ImageFolders, refuse_repeats
from utils_.datasets.label_files.tables import CsvTable, parse_labels, read_csv, shown
from utils_.datasets.listing import DataOptions, Listing, absent, open_listing
from utils_.errors import UserError, nearest

logger = logging.getLogger("fednml")
CLASSES = (
    *("DR", "ARMD", "MH", "DN", "MYA", "BRVO", "TSLN", "ERM", "LS", "MS", "CSR", "ODC", "CRVO"),
    *("TV", "AH", "ODP", "ODE", "ST", "AION", "PT", "RT", "RS", "CRS", "EDN", "RPEC", "MHL", "RP"),
    *("CWS", "CB", "ODPM", "PRH", "MNF", "HR", "CRAO", "TD", "CME", "PTCR", "CF", "VH", "MCA"),
    *("VS", "BRAO", "PLQ", "HPED", "CL"),
)
RISK = "Disease_Risk"  # 1 where any disease is. It is no class: it would betray hidden labels.
LABELS = {
    TRAIN: "RFMiD_Training_Labels.csv",
    VAL: "RFMiD_Validation_Labels.csv",
    TEST: "RFMiD_Testing_Labels.csv",
}
# Our names, then those of the archives. * because some wrap a folder in one of the same name.
FOLDERS = {
    TRAIN: ("train", "Training", "Training_Set/Training", "Training_Set/*/Training"),
    VAL: ("val", "Validation", "Evaluation_Set/Validation", "Evaluation_Set/*/Validation"),
    TEST: ("test", "Test", "Test_Set/Test", "Test_Set/*/Test"),
}
TABLES = ("{}", "*_Set/{}", "*_Set/*/{}")
EXPECTED = "RFMiD_{Training,Validation,Testing}_Labels.csv and train/, val/ and test/ with images"
PAGE = "https://ieee-dataport.org/open-access/retinal-fundus-multi-disease-image-dataset-rfmid"


def load_rfmid(data_dir: Path, options: DataOptions) -> ImageDataset:
    """Load RFMiD (Pachade et al., 2021): 3,200 fundus images, 45 diseases.

    ``Disease_Risk`` is no class. Images are called ``train/1``, since each part counts from 1.
    """
    return open_listing("rfmid", read_rfmid(data_dir), options)


def read_rfmid(data_dir: Path) -> Listing:
    """Read the three label files; rows in the order train, val, test.

    Raises:
        UserError: files are absent or wrong; the file, line and column are named.
    """
    tables = {part: read_csv(_table(data_dir, file)) for part, file in LABELS.items()}
    names: list[str] = []
    files: list[str] = []
    for part, table in tables.items():
        _check_header(table)
        images = ImageFolders(data_dir, FOLDERS[part])
        if not images:
            raise _absent(data_dir / FOLDERS[part][0])
        placed = images.place(table.names)
        refuse_repeats([table], placed)
        files += placed
        names += [f"{PART_NAMES[part]}/{name}" for name in table.names]
    labels = np.concatenate([parse_labels(table, CLASSES) for table in tables.values()])
    _check_risk(tables, labels)
    parts = np.repeat(np.array(list(tables), np.uint8), [len(t.rows) for t in tables.values()])
    return Listing(data_dir, data_dir, names, files, labels, CLASSES, parts, None, None)


def _table(data_dir: Path, file: str) -> Path:
    found = (path for pattern in TABLES for path in sorted(data_dir.glob(pattern.format(file))))
    path = next(found, None)
    if path is None:
        raise _absent(data_dir / file if data_dir.exists() else data_dir)
    return path


def _absent(path: Path) -> UserError:
    return absent("rfmid", f"{path} is absent", expected=EXPECTED, source=f"get them from {PAGE}")


def _check_header(table: CsvTable) -> None:
    for column in table.header[1:]:
        if column not in (*CLASSES, RISK):
            hint = nearest(column, CLASSES)
            raise UserError(f"{table.path}: {shown(column)} is no class of RFMiD, {hint}")
    lacking = [cls for cls in CLASSES if cls not in table.header]
    if lacking:
        raise UserError(
            f"{table.path}: the columns {', '.join(lacking)} are absent; take the file of the "
            "release, or for other classes use --dataset csv"
        )


def _check_risk(tables: dict[int, CsvTable], labels: np.ndarray) -> None:
    """Log the rows whose Disease_Risk contradicts their diseases; official files have none."""
    if any(RISK not in table.header for table in tables.values()):
        return
    risk = np.concatenate([parse_labels(table, [RISK])[:, 0] for table in tables.values()])
    known = ~np.isnan(risk) & ~np.isnan(labels).any(axis=1)
    differ = int((known & (risk != (labels == 1).any(axis=1))).sum())
    if differ:
        logger.warning("rfmid: %s contradicts the diseases of %d images", RISK, differ)
