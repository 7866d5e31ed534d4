"""Which classes of a dataset are used, and in which order."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from utils_.datasets.base import TEST, VAL, ImageDataset
from utils_.datasets.label_files.label_columns import pick
from utils_.errors import UserError

logger = logging.getLogger("fednml")
CLASS_ORDERS = ("official", "alphabetical")


def choose_named(
    dataset: ImageDataset, *, classes: str | None, ignore_columns: str | None
) -> ImageDataset:
    """Leave out classes by name. Images of the classes left out stay, without that label.

    Args:
        dataset: N images of C classes.
        classes: those that stay, with commas between; None keeps all.
        ignore_columns: those that are left out, likewise.

    Raises:
        UserError: a name is no class, or none is left.
    """
    kept = list(dataset.classes)
    if classes:
        kept = pick(kept, classes, "--classes")
    if ignore_columns:
        ignored = pick(dataset.classes, ignore_columns, "--ignore-columns")
        kept = [name for name in kept if name not in ignored]
    if not kept:
        raise UserError("--ignore-columns: no class is left; leave one of them out of it")
    return _with_columns(dataset, [dataset.classes.index(name) for name in kept])


def choose_columns(
    dataset: ImageDataset, *, min_positives: int = 0, class_order: str = "official"
) -> ImageDataset:
    """Leave out rare classes (those that stay are logged) and sort the columns.

    Images of the classes left out stay, without that label.

    Args:
        dataset: N images of C classes.
        min_positives: a class stays if at least so many images show it, counted where the files
            fix no validation or test part, so that test labels have no say in it.
        class_order: ``official``, as the files give it, or ``alphabetical``.

    Raises:
        UserError: no class is left.
    """
    learnt = ~np.isin(dataset.part, (VAL, TEST))
    positives = (dataset.labels[learnt] == 1).sum(axis=0)
    columns = np.flatnonzero(positives >= min_positives).tolist()
    if not columns:
        most = int(positives.argmax())
        raise UserError(
            f"--min-positives {min_positives}: no class of {dataset.name} has so many; the most "
            f"frequent, {dataset.classes[most]}, has {positives[most]}; give at most that"
        )
    if min_positives:
        _report(dataset, columns, min_positives)
    if class_order == "alphabetical":
        columns.sort(key=lambda column: dataset.classes[column].casefold())
    return _with_columns(dataset, columns)


def _with_columns(dataset: ImageDataset, columns: list[int]) -> ImageDataset:
    if columns == list(range(len(dataset.classes))):
        return dataset
    classes = tuple(dataset.classes[column] for column in columns)
    labels = dataset.labels[:, columns]
    uncertain = None if dataset.uncertain is None else dataset.uncertain[:, columns]
    verified = None if dataset.verified is None else dataset.verified[:, columns]
    return replace(dataset, labels=labels, classes=classes, uncertain=uncertain, verified=verified)


def _report(dataset: ImageDataset, columns: list[int], min_positives: int) -> None:
    kept = [dataset.classes[column] for column in columns]
    logger.info(
        "%s: %d of %d classes have at least %d positive images: %s",
        *(dataset.name, len(kept), len(dataset.classes), min_positives, ", ".join(kept)),
    )
