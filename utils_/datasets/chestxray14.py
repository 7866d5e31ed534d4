"""ChestX-ray14 in its official layout: chest X-rays, 14 findings, official patient-wise lists."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from utils_.datasets.base import TEST, TRAIN, UNASSIGNED, ImageDataset
from utils_.datasets.folder import ImageFolders, refuse_repeats
from utils_.datasets.label_files.groups import report_straddling
from utils_.datasets.label_files.ids import number_groups
from utils_.datasets.label_files.tables import CsvTable, read_csv, shown
from utils_.datasets.listing import DataOptions, Listing, absent, open_listing
from utils_.errors import UserError, nearest

logger = logging.getLogger("fednml")
# The order of the NIH; FedLSM and FedMLP sort by name (--class-order alphabetical).
CLASSES = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening"),
    "Hernia",
)
NOTHING = "No Finding"
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS = {TRAIN: "train_val_list.txt", TEST: "test_list.txt"}
FOLDERS = ("images", "images_*/images", "images_*")  # of the NIH unpacked, and of Kaggle's copy


def load_chestxray14(data_dir: Path, options: DataOptions) -> ImageDataset:
    """Load ChestX-ray14 (Wang et al., CVPR 2017): 112,120 images of 30,805 patients, 14 findings.

    Train (86,524) and test (25,596) are the official lists; without them the images are
    unassigned and cut by patient. "No Finding" is a row of 0.
    """
    return open_listing("chestxray14", read_chestxray14(data_dir), options)


def read_chestxray14(data_dir: Path) -> Listing:
    """Read the table and the lists; rows as in the table.

    Raises:
        UserError: files are absent or wrong; the file and line are named.
    """
    path = next((data_dir / name for name in TABLES if (data_dir / name).exists()), None)
    images = ImageFolders(data_dir, FOLDERS)
    if path is None or not images:
        lacking = data_dir / ("images" if path else TABLES[0]) if data_dir.exists() else data_dir
        raise absent(
            "chestxray14",
            f"{lacking} is absent",
            expected=f"{TABLES[0]}, {', '.join(LISTS.values())} and images/*.png",
            source="get them from https://nihcc.app.box.com/v/ChestXray-NIHCC",
        )
    table = read_csv(path).led_by("Image Index")
    names = table.names
    files = images.place(names)
    refuse_repeats([table], files)
    groups = number_groups(table.column("Patient ID"), what="Patient ID")
    part = _parts(data_dir, path, names)
    report_straddling(data_dir, groups, part)
    labels = _labels(table)
    return Listing(data_dir, data_dir, names, files, labels, CLASSES, part, groups, None)


def _labels(table: CsvTable) -> np.ndarray:
    """Return (N, 14) float32 of findings joined by ``|``; a blank cell is not annotated."""
    cells = table.column("Finding Labels")
    meaning = {cell: _row(cell) for cell in set(cells)}
    for cell, line in zip(cells, table.lines, strict=True):
        if isinstance(meaning[cell], str):
            raise UserError(f"{table.path}, line {line}, column 'Finding Labels': {meaning[cell]}")
    return np.array([meaning[cell] for cell in cells], np.float32)


def _row(cell: str) -> list[float] | str:
    """Return 14 labels, or what is wrong with the cell."""
    if not cell:
        return [np.nan] * len(CLASSES)
    findings = [finding.strip() for finding in cell.split("|")]
    if findings == [NOTHING]:
        return [0.0] * len(CLASSES)
    for finding in findings:
        if finding == NOTHING:
            return f"'{NOTHING}' beside findings in {shown(cell)}; keep one of the two"
        if finding not in CLASSES:
            return f"{shown(finding)} is no finding of ChestX-ray14, {nearest(finding, CLASSES)}"
    return [float(cls in findings) for cls in CLASSES]


def _parts(data_dir: Path, table: Path, names: list[str]) -> np.ndarray:
    """Return (N,) uint8 from the two lists, UNASSIGNED everywhere if there are none."""
    paths = {part: data_dir / name for part, name in LISTS.items()}
    present = [path for path in paths.values() if path.exists()]
    if not present:
        logger.warning("chestxray14: no %s; parts are cut by patient", " or ".join(LISTS.values()))
        return np.full(len(names), UNASSIGNED, np.uint8)
    if len(present) < len(paths):
        raise UserError(
            f"{data_dir}: only {present[0].name} is there; add the other list, or remove this one "
            "to have the parts cut by patient"
        )
    part_of: dict[str, int] = {}
    for part, path in paths.items():
        for line, name in enumerate(_lines(path), start=1):
            if name and part_of.setdefault(name, part) != part:
                raise UserError(
                    f"{path}, line {line}: {shown(name)} is in both lists; fetch them again, or "
                    "take it out of one"
                )
    unlisted = [name for name in names if name not in part_of]
    if unlisted:
        raise UserError(
            f"{table}: {len(unlisted)} images are in neither list, first {shown(unlisted[0])}; "
            f"complete or remove {' and '.join(LISTS.values())}"
        )
    return np.array([part_of[name] for name in names], np.uint8)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
