"""What the label files of a dataset say, and the step from there to an ImageDataset."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils_.datasets.base import ImageDataset
from utils_.datasets.cache.images import ImageRequest, load_images
from utils_.datasets.verified import read_verified
from utils_.errors import UserError

logger = logging.getLogger("fednml")
UNKNOWN_SITE = "unknown"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How a data set is to be loaded. A run's settings of the same names hold the defaults.

    Attributes:
        data_dir: its folder; None stands for :func:`utils_.datasets.default_folder`, which serves
            all but ``csv``.
        image_size: edge of the square images in pixels, 8 to 4096.
        cache_dir: where decoded images are kept; None stands for ``.cache`` in the data folder.
        fit: ``crop`` (centre) or ``pad`` (black); the aspect ratio is kept in both.
        skip_bad_images: leave out images that cannot be read, instead of stopping.
        data_seed: seed of ``synthetic``.
        train_images: size of the training part of ``synthetic``.
        test_images: size of its test part.
        min_positives: leave out classes with fewer positives, see
            :func:`utils_.datasets.columns.choose_columns`.
        class_order: ``official`` or ``alphabetical``.
        workers: processes that decode images.
        quiet: no progress bar.
        labels_only: open no image and write nothing, for a dry run; images are then all 0 and
            ``image_key`` is empty.
    """

    data_dir: Path | None
    image_size: int
    cache_dir: Path | None
    fit: str
    skip_bad_images: bool
    data_seed: int
    train_images: int
    test_images: int
    min_positives: int
    class_order: str
    workers: int
    quiet: bool
    labels_only: bool

    def cache_in(self, data_dir: Path) -> Path:
        """Return where decoded images are kept, if the data lie in ``data_dir``."""
        return self.cache_dir or data_dir / ".cache"


@dataclass(frozen=True)
class Listing:
    """N images as the label files list them, before any image is opened.

    Attributes:
        data_dir: the dataset's folder.
        folder: the folder of the images.
        names: N names as in the first column of the label files.
        files: N paths below ``folder``.
        labels, classes, part, groups, sites: as in ImageDataset.
    """

    data_dir: Path
    folder: Path
    names: Sequence[str]
    files: Sequence[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    part: np.ndarray
    groups: np.ndarray | None
    sites: np.ndarray | None


def open_listing(name: str, listing: Listing, options: DataOptions) -> ImageDataset:
    """Decode the listed images, or take them from the cache, and put everything together.

    With ``labels_only`` no image is opened: all pixels are 0 and ``image_key`` is empty.

    Raises:
        UserError: see load_images and read_verified.
    """
    verified = read_verified(
        listing.data_dir,
        listing.folder,
        names=listing.names,
        files=listing.files,
        classes=listing.classes,
    )
    if options.labels_only:
        shape = (len(listing.files), options.image_size, options.image_size, 3)
        images, rows, key = np.broadcast_to(np.uint8(0), shape), np.arange(len(listing.files)), ""
    else:
        request = ImageRequest(
            folder=listing.folder,
            files=listing.files,
            cache_dir=options.cache_in(listing.data_dir),
            image_size=options.image_size,
            fit=options.fit,
            skip_bad_images=options.skip_bad_images,
            workers=options.workers,
            quiet=options.quiet,
        )
        cached = load_images(request)
        images, rows, key = cached.images, cached.rows, cached.key
    labels = listing.labels[rows]
    return ImageDataset(
        name=name,
        images=images,
        labels=labels,
        classes=listing.classes,
        files=tuple(listing.names[row] for row in rows.tolist()),
        part=listing.part[rows],
        groups=None if listing.groups is None else listing.groups[rows],
        sites=None if listing.sites is None else listing.sites[rows],
        image_key=key,
        verified=None if verified is None else verified[rows],
    )


def report_empty_classes(name: str, classes: Sequence[str], labels: np.ndarray) -> None:
    """Log the classes that no image shows. They stay columns; the metrics leave them out."""
    empty = [
        cls for cls, shown in zip(classes, (labels == 1).any(axis=0), strict=True) if not shown
    ]
    if empty:
        logger.warning("%s: no image shows %s; left out of the metrics", name, ", ".join(empty))


def number_groups(ids: Sequence[str], *, what: str) -> np.ndarray:
    """Return (N,) int64: equal ids share a number, each blank id gets one of its own (logged).

    Args:
        ids: one text per image.
        what: what an id is called in the log, e.g. ``patient_id``.
    """
    names = np.array(ids, dtype=str)
    _, numbers = np.unique(names, return_inverse=True)
    numbers = numbers.astype(np.int64)
    blank = np.flatnonzero(names == "")
    if len(blank):
        logger.warning(
            "%d of %d images have no %s: each counts as one of its own", len(blank), len(ids), what
        )
        numbers[blank] = numbers.max() + 1 + np.arange(len(blank))
    return numbers


def name_sites(ids: Sequence[str]) -> np.ndarray:
    """Return (N,) str, the site of each image; all blank ones (logged) are the site 'unknown'."""
    sites = np.array(ids, dtype=str)
    blank = sites == ""
    if blank.any():
        logger.warning("%d of %d images have no site: they form one", blank.sum(), len(ids))
        sites = np.where(blank, UNKNOWN_SITE, sites)
    return sites


class AbsentData(UserError):
    """The files of a dataset are not there."""


def absent(
    name: str, problem: str, *, expected: str, source: str, section: str | None = None
) -> AbsentData:
    """Return the error for absent data: what is expected, where to get it, what else to do."""
    return AbsentData(
        f"--dataset {name}: {problem}; expected {expected}; {source} (steps: data/README.md, "
        f"section {section or name}) or name their folder with --data-dir; to try the program "
        "without them: python src/main_fednml.py"
    )
