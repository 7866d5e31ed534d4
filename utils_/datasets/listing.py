"""What the label files of a dataset say, and the step from there to an ImageDataset."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from utils_.datasets.base import UNASSIGNED, VAL, ImageDataset
from utils_.datasets.cache.facts import Facts
from utils_.datasets.cache.images import ImageRequest, load_images
from utils_.datasets.copies import settle_copies
from utils_.datasets.label_files.groups import GROUPED
from utils_.datasets.label_files.label_forms import LabelForm
from utils_.datasets.label_files.verified import read_verified
from utils_.errors import UserError

logger = logging.getLogger("fednml")
GROUPS_HELP = "; write image,patient_id into groups.csv"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How a data set is to be loaded. A run's settings of the same names hold the defaults.

    Attributes:
        data_dir: its folder; None stands for :func:`utils_.datasets.default_folder`, which serves
            all but ``csv``.
        image_size: edge of the square images in pixels, 8 to 4096.
        cache_dir: where decoded images are kept; None stands for ``.cache`` in the data folder.
        fit: ``crop`` (centre) or ``pad`` (black); the aspect ratio is kept in both.
        pixel_range: which values of more than 8 bits become black and white, see ImageRequest.
        skip_bad_images: leave out images that cannot be read, instead of stopping.
        allow_duplicates: go on where the same pixels are in two parts or have two labels.
        data_seed: seed of ``synthetic``.
        train_images: size of the training part of ``synthetic``.
        test_images: size of its test part.
        min_positives: leave out classes with fewer positives, see
            :func:`utils_.datasets.columns.choose_columns`.
        class_order: ``official`` or ``alphabetical``.
        classes, ignore_columns, label_format, uncertain, combine: what ``csv`` reads, see
            :class:`utils_.datasets.label_files.label_forms.LabelForm`; the first two choose among
            the classes of every data set.
        workers: processes that decode images.
        quiet: no progress bar.
        labels_only: open no image and write nothing, for a dry run; images are then all 0 and
            ``image_key`` is empty.
    """

    data_dir: Path | None
    image_size: int
    cache_dir: Path | None
    fit: str
    pixel_range: str
    skip_bad_images: bool
    allow_duplicates: bool
    data_seed: int
    train_images: int
    test_images: int
    min_positives: int
    class_order: str
    classes: str | None
    ignore_columns: str | None
    label_format: str
    uncertain: str | None
    combine: str | None
    workers: int
    quiet: bool
    labels_only: bool

    @property
    def form(self) -> LabelForm:
        """How the label files of ``csv`` are to be understood."""
        return LabelForm(**{f.name: getattr(self, f.name) for f in fields(LabelForm)})

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
        labels, classes, part, groups, sites, uncertain: as in ImageDataset.
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
    uncertain: np.ndarray | None = None


def open_listing(name: str, listing: Listing, options: DataOptions) -> ImageDataset:
    """Decode the listed images, or take them from the cache, and put everything together.

    With ``labels_only`` no image is opened: all pixels are 0 and ``image_key`` is empty.

    Raises:
        UserError: see load_images, settle_copies and read_verified.
    """
    verified = read_verified(
        listing.data_dir,
        listing.folder,
        names=listing.names,
        files=listing.files,
        classes=listing.classes,
        chosen=options.classes,
        ignored=options.ignore_columns,
    )
    if options.labels_only:
        shape = (len(listing.files), options.image_size, options.image_size, 3)
        images, rows, key = np.broadcast_to(np.uint8(0), shape), np.arange(len(listing.files)), ""
        facts = Facts()
    else:
        request = ImageRequest(
            folder=listing.folder,
            files=listing.files,
            cache_dir=options.cache_in(listing.data_dir),
            image_size=options.image_size,
            fit=options.fit,
            pixel_range=options.pixel_range,
            skip_bad_images=options.skip_bad_images,
            workers=options.workers,
            quiet=options.quiet,
        )
        cached = load_images(request)
        images, rows, key, facts = cached.images, cached.rows, cached.key, cached.facts
    labels = listing.labels[rows]
    dataset = ImageDataset(
        name=name,
        images=images,
        labels=labels,
        classes=listing.classes,
        files=tuple(listing.names[row] for row in rows.tolist()),
        part=listing.part[rows],
        groups=None if listing.groups is None else listing.groups[rows],
        sites=None if listing.sites is None else listing.sites[rows],
        image_key=key,
        uncertain=None if listing.uncertain is None else listing.uncertain[rows],
        verified=None if verified is None else verified[rows],
        pixel_bounds=facts.used,
    )
    report_unknown_patients(dataset)
    return settle_copies(dataset, facts.copies, allow=options.allow_duplicates)


def report_unknown_patients(dataset: ImageDataset) -> None:
    """Log that a split by image may part the images of a patient, where a split is to be made."""
    cut = (dataset.part == UNASSIGNED).any() or not (dataset.part == VAL).any()
    if dataset.groups is None and cut:
        logger.warning(
            "%s: no patients are known, so the split is by image: if patients have several images, "
            "they may be learnt and tested on at once%s",
            *(dataset.name, GROUPS_HELP if dataset.name in GROUPED else ""),
        )


def report_empty_classes(name: str, classes: Sequence[str], labels: np.ndarray) -> None:
    """Log the classes that no image shows. They stay columns; the metrics leave them out."""
    empty = [
        cls for cls, shown in zip(classes, (labels == 1).any(axis=0), strict=True) if not shown
    ]
    if empty:
        logger.warning("%s: no image shows %s; left out of the metrics", name, ", ".join(empty))


class AbsentData(UserError):
    """The files of a dataset are not there."""


def preparing(name: str, data_dir: Path) -> str:
    """The advice to have a program fetch a data set into the folder that was asked for."""
    return f"run python scripts/prepare_data.py {name} --data-dir {shlex.quote(str(data_dir))}"


def absent(
    name: str, problem: str, *, expected: str, source: str, section: str | None = None
) -> AbsentData:
    """Return the error for absent data: what is expected, where to get it, what else to do."""
    return AbsentData(
        f"--dataset {name}: {problem}; expected {expected}; {source} (steps: data/README.md, "
        f"section {section or name}) or name their folder with --data-dir; to try the program "
        "without them: python src/main_fednml.py"
    )
