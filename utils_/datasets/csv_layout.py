"""The MuReD layout: ``images/`` and a CSV file per part. Serves ``csv``, ``mured`` and ``odir``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils_.datasets.base import PART_NAMES, TEST, TRAIN, UNASSIGNED, VAL, ImageDataset
from utils_.datasets.folder import ImageFolder, refuse_repeats
from utils_.datasets.groups import read_groups, report_straddling
from utils_.datasets.listing import (
    DataOptions,
    Listing,
    absent,
    open_listing,
)
from utils_.datasets.tables import CsvTable, parse_labels, read_csv, shown
from utils_.errors import UserError, nearest

EXPECTED = "images/, train_data.csv and test_data.csv"
MURED_CLASSES = (
    *("DR", "NORMAL", "MH", "ODC", "TSLN", "ARMD", "DN", "MYA", "BRVO", "ODP"),
    *("CRVO", "CNV", "RS", "ODE", "LS", "CSR", "HTR", "ASR", "CRS", "OTHER"),
)
ODIR_CLASSES = ("N", "D", "G", "C", "A", "H", "M", "O")
SOURCES = {
    "csv": "write them as described",
    "mured": "unpack the archive of https://data.mendeley.com/datasets/pc4mb3h8hz there",
    "odir": "prepare them from https://odir2019.grand-challenge.org/dataset/",
}


def load_csv(data_dir: Path, options: DataOptions) -> ImageDataset:
    """Load a user's own data of any classes; the folder has to be named.

    Raises:
        UserError: see read_layout and load_images.
    """
    return open_listing("csv", read_csv_layout(data_dir), options)


def load_mured(data_dir: Path, options: DataOptions) -> ImageDataset:
    """Load MuReD (Rodriguez et al., 2022): 2,208 fundus images, 20 classes.

    The official archive calls its 444 test images ``val_data.csv``; they are the test set here,
    unless there is a ``test_data.csv`` besides.
    """
    return open_listing("mured", read_mured(data_dir), options)


def load_odir(data_dir: Path, options: DataOptions) -> ImageDataset:
    """Load ODIR-5K, labelled by eye, in the MuReD layout: 8 classes."""
    return open_listing("odir", read_odir(data_dir), options)


def read_csv_layout(data_dir: Path) -> Listing:
    """Read the files of any data set in this layout; see read_layout."""
    return read_layout("csv", data_dir)


def read_mured(data_dir: Path) -> Listing:
    """Read the files of MuReD and check its classes; see read_layout."""
    return _with_classes("mured", read_layout("mured", data_dir), MURED_CLASSES)


def read_odir(data_dir: Path) -> Listing:
    """Read the files of ODIR-5K and check its classes; see read_layout."""
    return _with_classes("odir", read_layout("odir", data_dir), ODIR_CLASSES)


def read_layout(name: str, data_dir: Path) -> Listing:
    """Read the CSV files of a folder; rows in the order train, val, test, each as in its file.

    ``train_data.csv`` gives TRAIN, ``val_data.csv`` VAL and ``test_data.csv`` TEST. TRAIN rows may
    still give up a validation part where there is no ``val_data.csv``. Without ``test_data.csv``
    the rows of ``train_data.csv`` are UNASSIGNED, so that the split cuts a test part from them.

    Raises:
        UserError: files are absent or wrong; the file, line and column are named.
    """
    tables = _read_tables(name, data_dir)
    first = next(iter(tables.values()))
    classes = first.header[1:]
    for table in tables.values():
        _check_header(table, first)
    folder = ImageFolder(data_dir / "images")
    names = [file for table in tables.values() for file in table.names]
    files = folder.place(names)
    refuse_repeats(list(tables.values()), files)
    labels = np.concatenate([parse_labels(table, classes) for table in tables.values()])
    parts = (
        dict(tables)
        if TEST in tables
        else {UNASSIGNED if p == TRAIN else p: t for p, t in tables.items()}
    )
    part = np.repeat(np.array(list(parts), np.uint8), [len(t.rows) for t in parts.values()])
    groups, sites = read_groups(data_dir / "groups.csv", folder, files)
    if groups is not None:
        report_straddling(data_dir, groups, part)
    return Listing(data_dir, folder.path, names, files, labels, classes, part, groups, sites)


def _read_tables(name: str, data_dir: Path) -> dict[int, CsvTable]:
    """Return the CSV file of every part that has one; there is always one for TRAIN."""
    paths = {part: data_dir / f"{PART_NAMES[part]}_data.csv" for part in (TRAIN, VAL, TEST)}
    for path in (data_dir, paths[TRAIN], data_dir / "images"):
        if not path.exists():
            source = SOURCES[name]
            raise absent(name, f"{path} is absent", expected=EXPECTED, source=source)
    tables = {part: read_csv(path) for part, path in paths.items() if path.exists()}
    if name == "mured" and VAL in tables and TEST not in tables:
        tables[TEST] = tables.pop(VAL)
    return tables


def _check_header(table: CsvTable, first: CsvTable) -> None:
    classes, wanted = table.header[1:], first.header[1:]
    if not classes:
        raise UserError(
            f"{table.path}: only one column; expected the file name and then one column per class"
        )
    if classes == wanted:
        return
    lacking = [f"lacks {shown(cls)}" for cls in wanted if cls not in classes]
    added = [f"has {shown(cls)}" for cls in classes if cls not in wanted]
    difference = " and ".join((lacking[:1] + added[:1]) or ["has them in another order"])
    raise UserError(
        f"{table.path}: its classes differ from {first.path.name}: it {difference}; "
        "give both files the same columns"
    )


def _with_classes(name: str, listing: Listing, known: Sequence[str]) -> Listing:
    """Check that the columns are the classes of the dataset, in any order."""
    other = [cls for cls in listing.classes if cls not in known]
    lacking = [cls for cls in known if cls not in listing.classes]
    advice = "for other classes use --dataset csv --data-dir " + str(listing.data_dir)
    path = listing.data_dir / "train_data.csv"
    if other:
        hint = nearest(other[0], lacking or known)
        raise UserError(f"{path}: {shown(other[0])} is no class of {name}, {hint}; {advice}")
    if lacking:
        raise UserError(f"{path}: the classes {', '.join(lacking)} of {name} are absent; {advice}")
    return listing
