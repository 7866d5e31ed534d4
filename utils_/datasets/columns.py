"""Which classes of a dataset are used, and in which order."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from utils_.datasets.base import TEST, VAL, ImageDataset
from utils_.errors import UserError

logger = logging.getLogger("fednml")
CLASS_ORDERS = ("official", "alphabetical")


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
            f"frequent, {dataset.classes[most]}, has {positives[most]}"
        )
    if min_positives:
        _report(dataset, columns, min_positives)
    if class_order == "alphabetical":
        columns.sort(key=lambda column: dataset.classes[column].casefold())
    if columns == list(range(len(dataset.classes))):
        return dataset
    classes = tuple(dataset.classes[column] for column in columns)
    verified = None if dataset.verified is None else dataset.verified[:, columns]
    return replace(dataset, labels=dataset.labels[:, columns], classes=classes, verified=verified)


def _report(dataset: ImageDataset, columns: list[int], min_positives: int) -> None:
    kept = [dataset.classes[column] for column in columns]
    logger.info(
        "%s: %d of %d classes have at least %d positive images: %s",
        *(dataset.name, len(kept), len(dataset.classes), min_positives, ", ".join(kept)),
    )
