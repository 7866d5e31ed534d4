"""The MuReD layout: ``images/`` and a CSV file per part. Serves ``csv``, ``mured`` and ``odir``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from utils_.datasets.base import PART_NAMES, TEST, TRAIN, UNASSIGNED, VAL, ImageDataset
from utils_.datasets.folder import ImageFolder
from utils_.datasets.label_files.groups import read_groups, report_straddling
from utils_.datasets.label_files.image_column import lead_by_images
from utils_.datasets.label_files.label_forms import LabelForm, read_labels
from utils_.datasets.label_files.repeats import combine_rows
from utils_.datasets.label_files.tables import CsvTable, read_csv, shown
from utils_.datasets.label_files.text_files import EXPORT
from utils_.datasets.listing import (
    DataOptions,
    Listing,
    absent,
    open_listing,
)
from utils_.errors import UserError, nearest

EXPECTED = "images/, train_data.csv and test_data.csv"
MURED_CLASSES = (
    *("DR", "NORMAL", "MH", "ODC", "TSLN", "ARMD", "DN", "MYA", "BRVO", "ODP"),
    *("CRVO", "CNV", "RS", "ODE", "LS", "CSR", "HTR", "ASR", "CRS", "OTHER"),
)
ODIR_CLASSES = ("N", "D", "G", "C", "A", "H", "M", "O")
AS_WRITTEN = LabelForm()
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
    return open_listing("csv", read_csv_layout(data_dir, options.form), options)


def load_held_out(data_dir: Path, options: DataOptions, *, needed: int = TEST) -> ImageDataset:
    """Load a folder of the same layout that need have no other part than ``needed``."""
    return open_listing("csv", read_layout("csv", data_dir, options.form, needed=needed), options)


def load_mured(data_dir: Path, options: DataOptions) -> ImageDataset:
    """Load MuReD (Rodriguez et al., 2022): 2,208 fundus images, 20 classes.

    The official archive calls its 444 test images ``val_data.csv``; they are the test set here,
    unless there is a ``test_data.csv`` besides.
    """
    return open_listing("mured", read_mured(data_dir, options.form), options)


def load_odir(data_dir: Path, options: DataOptions) -> ImageDataset:
    """Load ODIR-5K, labelled by eye, in the MuReD layout: 8 classes."""
    return open_listing("odir", read_odir(data_dir, options.form), options)


def read_csv_layout(data_dir: Path, form: LabelForm = AS_WRITTEN) -> Listing:
    """Read the files of any data set in this layout, in the form in which they are."""
    return read_layout("csv", data_dir, form)


def read_mured(data_dir: Path, form: LabelForm = AS_WRITTEN) -> Listing:
    """Read the files of MuReD and check its classes; see read_layout."""
    return _with_classes("mured", read_layout("mured", data_dir, form), MURED_CLASSES)


def read_odir(data_dir: Path, form: LabelForm = AS_WRITTEN) -> Listing:
    """Read the files of ODIR-5K and check its classes; see read_layout."""
    return _with_classes("odir", read_layout("odir", data_dir, form), ODIR_CLASSES)


def read_layout(
    name: str, data_dir: Path, form: LabelForm = AS_WRITTEN, *, needed: int = TRAIN
) -> Listing:
    """Read the CSV files of a folder; rows in the order train, val, test, each as in its file.

    ``train_data.csv`` gives TRAIN, ``val_data.csv`` VAL and ``test_data.csv`` TEST. TRAIN rows may
    still give up a validation part where there is no ``val_data.csv``. Without ``test_data.csv``
    the rows of ``train_data.csv`` are UNASSIGNED, so that the split cuts a test part from them.

    Args:
        name: the data set; the columns of all but ``csv`` are its classes.
        data_dir: its folder.
        form: how the label files are to be understood.
        needed: the part that has to be there.

    Raises:
        UserError: files are absent or wrong; the file, line and column are named.
    """
    tables = _read_tables(name, data_dir, needed)
    folder = ImageFolder(data_dir / "images")
    if name == "csv":
        tables = {part: lead_by_images(table, folder) for part, table in tables.items()}
    else:
        form = replace(form, classes=None, ignore_columns=None)
    every = list(tables.values())
    names = [file for table in every for file in table.names]
    labels = read_labels(every, form, every_column=name != "csv")
    files = folder.place(names)
    kept, labels = combine_rows(every, files, labels, combine=form.combine)
    names, files = ([texts[row] for row in kept.tolist()] for texts in (names, files))
    part = _parts(tables)[kept]
    groups, sites = read_groups(data_dir / "groups.csv", folder, files)
    if groups is not None:
        report_straddling(data_dir, groups, part)
    return Listing(
        data_dir,
        folder.path,
        names,
        files,
        labels.values,
        labels.classes,
        part,
        groups,
        sites,
        labels.uncertain if labels.uncertain.any() else None,
    )


def _parts(tables: Mapping[int, CsvTable]) -> np.ndarray:
    """(N,) uint8, the part of each row; TRAIN is still to be cut where there is no TEST."""
    own = [UNASSIGNED if part == TRAIN and TEST not in tables else part for part in tables]
    return np.repeat(np.array(own, np.uint8), [len(table.rows) for table in tables.values()])


def _read_tables(name: str, data_dir: Path, needed: int) -> dict[int, CsvTable]:
    """Return the CSV file of every part that has one; there is always one for ``needed``."""
    paths = {part: data_dir / f"{PART_NAMES[part]}_data.csv" for part in (TRAIN, VAL, TEST)}
    _refuse_workbooks([*paths.values(), data_dir / "groups.csv"])
    for path in (data_dir, paths[needed], data_dir / "images"):
        if not path.exists():
            source = SOURCES[name]
            raise absent(name, f"{path} is absent", expected=EXPECTED, source=source)
    tables = {part: read_csv(path) for part, path in paths.items() if path.exists()}
    if name == "mured" and VAL in tables and TEST not in tables:
        tables[TEST] = tables.pop(VAL)
    return tables


def _refuse_workbooks(paths: Sequence[Path]) -> None:
    """Name an Excel file that lies where a CSV file belongs, which would pass unseen."""
    for path in paths:
        for suffix in (".xlsx", ".xls", ".ods", ".tsv", ".txt"):
            other = path.with_suffix(suffix)
            if other.exists() and not path.exists():
                raise UserError(f"{other}: is not read; {EXPORT}, as {path.name}")


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
