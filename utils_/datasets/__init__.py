"""The datasets by name. Whatever the files, loading gives uint8 images and a label table."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from utils_.datasets.base import ImageDataset
from utils_.datasets.brset import load_brset, read_brset
from utils_.datasets.cache.decode import FITS
from utils_.datasets.cache.pixel_range import parse_range
from utils_.datasets.chestxray14 import load_chestxray14, read_chestxray14
from utils_.datasets.columns import CLASS_ORDERS, choose_columns, choose_named
from utils_.datasets.csv_layout import (
    EXPECTED,
    load_csv,
    load_mured,
    load_odir,
    read_csv_layout,
    read_mured,
    read_odir,
)
from utils_.datasets.ham10000 import load_ham10000, read_ham10000
from utils_.datasets.ich import load_ich, read_ich
from utils_.datasets.isic import load_isic, read_isic
from utils_.datasets.label_files.verified import VERIFIED_FILE
from utils_.datasets.listing import DataOptions, Listing, report_empty_classes
from utils_.datasets.medmnist import SETS, loader_of
from utils_.datasets.rfmid import load_rfmid, read_rfmid
from utils_.errors import UserError, nearest

logger = logging.getLogger("fednml")
Loader = Callable[[Path, DataOptions], ImageDataset]  # from the data set's folder
DATA = Path(__file__).resolve().parents[2] / "data"
MAX_IMAGE_SIZE = 4096


def _load_synthetic(data_dir: Path, options: DataOptions) -> ImageDataset:
    """Draw fundus-like images with the shape of MuReD; needs no file."""
    from utils_.datasets.synthetic import load_synthetic

    found = sorted(data_dir.glob("*.csv"))
    if options.data_dir and found:
        raise UserError(
            f"--data-dir {data_dir}: holds {found[0].name}, and --dataset synthetic reads no file; "
            "add --dataset csv (or the name of the set), or leave out --data-dir"
        )
    return load_synthetic(
        image_size=options.image_size,
        data_seed=options.data_seed,
        train_images=options.train_images,
        test_images=options.test_images,
        cache_dir=options.cache_in(data_dir),
        labels_only=options.labels_only,
        quiet=options.quiet,
    )


DATASETS: dict[str, Loader] = {
    "synthetic": _load_synthetic,
    "csv": load_csv,
    "mured": load_mured,
    "odir": load_odir,
    "isic": load_isic,
    "ham10000": load_ham10000,
    "rfmid": load_rfmid,
    "brset": load_brset,
    "ich": load_ich,
    "chestxray14": load_chestxray14,
    **{name: loader_of(name) for name in SETS},
}

READERS: dict[str, Callable[[Path], Listing]] = {
    "csv": read_csv_layout,
    "mured": read_mured,
    "odir": read_odir,
    "isic": read_isic,
    "ham10000": read_ham10000,
    "rfmid": read_rfmid,
    "brset": read_brset,
    "ich": read_ich,
    "chestxray14": read_chestxray14,
}
"""What the label files of a data set of single images say, before an image is opened."""


def listed(name: str, data_dir: Path, options: DataOptions) -> Listing:
    """Return what the label files say, read as :func:`load` reads them."""
    layouts = {"csv": read_csv_layout, "mured": read_mured, "odir": read_odir}
    return layouts[name](data_dir, options.form) if name in layouts else READERS[name](data_dir)


def default_folder(name: str) -> Path:
    """Return where a data set is looked for; the sets of MedMNIST share one folder."""
    return DATA / ("medmnist" if name in SETS else name)


def load(name: str, options: DataOptions) -> ImageDataset:
    """Load a data set. Rows are in the order of its label files: train, val, test.

    Args:
        name: a key of DATASETS.
        options: how it is to be loaded.

    Raises:
        UserError: unknown name, value out of range, absent or wrong files, images that cannot be
            read, a cache that cannot be written.
    """
    _check_options(name, options)
    folder = _folder(name, options.data_dir)
    dataset = choose_named(
        DATASETS[name](folder, options),
        classes=options.classes,
        ignore_columns=None if name == "csv" else options.ignore_columns,  # csv has read it
    )
    dataset = choose_columns(
        dataset, min_positives=options.min_positives, class_order=options.class_order
    )
    logger.info("%s: %d classes: %s", name, len(dataset.classes), ", ".join(dataset.classes))
    report_empty_classes(name, dataset.classes, dataset.labels)
    if dataset.verified is None and (folder / VERIFIED_FILE).exists():
        logger.warning("%s is not read: %s has no label files", folder / VERIFIED_FILE, name)
    return dataset


def _folder(name: str, given: Path | None) -> Path:
    if given is None and name == "csv":
        raise UserError(
            f"--dataset csv needs --data-dir: a folder with {EXPECTED}, as described in "
            "data/README.md, section csv; to try the program without data: "
            "python src/main_fednml.py"
        )
    return given or default_folder(name)


def _check_options(name: str, options: DataOptions) -> None:
    fit, class_order, image_size = options.fit, options.class_order, options.image_size
    if name not in DATASETS:
        raise UserError(f"--dataset: unknown dataset '{name}'; {nearest(name, DATASETS)}")
    if fit not in FITS:
        raise UserError(f"--fit: unknown value '{fit}'; {nearest(fit, FITS)}")
    if class_order not in CLASS_ORDERS:
        hint = nearest(class_order, CLASS_ORDERS)
        raise UserError(f"--class-order: unknown value '{class_order}'; {hint}")
    parse_range(options.pixel_range)
    if name != "csv":
        _refuse_forms(name, options)
    if not 8 <= image_size <= MAX_IMAGE_SIZE:
        raise UserError(f"--image-size: {image_size} is outside 8 to {MAX_IMAGE_SIZE}")


def _refuse_forms(name: str, options: DataOptions) -> None:
    """Few sets may be written in several forms; what is asked of others would do nothing."""
    for option, value in (("uncertain", options.uncertain), ("combine", options.combine)):
        if value and name not in ("mured", "odir"):
            raise UserError(f"--{option}: {name} has no such labels; leave it out")
    if options.label_format != "auto":
        raise UserError(f"--label-format: {name} has a form of its own; leave it out")
