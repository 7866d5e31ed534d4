"""Classes that a part of the images cannot measure or teach: of positives alone, or negatives."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from utils_.datasets.base import PART_NAMES, TEST, VAL, ImageDataset
from utils_.uncertainty import FEW, few

FEW_IMAGES = 30  # a part of fewer says next to nothing
KINDS = {"no_positive": "none is known to show", "no_negative": "none is known to lack"}
logger = logging.getLogger("fednml")


def count_labels(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) positives and (C,) known cells of (n, C) labels of 0, 1 and NaN."""
    return (labels == 1).sum(axis=0), (~np.isnan(labels)).sum(axis=0)


def one_sided(labels: np.ndarray, classes: Sequence[str]) -> dict[str, list[str]]:
    """Name the classes that lack a positive, and those that have some but lack a negative.

    Args:
        labels: (n, C) of 0, 1 and NaN = unknown.
        classes: C names.

    Returns:
        ``no_positive`` and ``no_negative``, in the order of the classes. What is in neither can be
        measured.
    """
    positives, known = count_labels(labels)
    lacking = {"no_positive": positives == 0, "no_negative": (positives > 0) & (positives == known)}
    return {kind: named(cells, classes) for kind, cells in lacking.items()}


def named(chosen: np.ndarray, classes: Sequence[str]) -> list[str]:
    """The names of the chosen classes; ``chosen`` is (C,) bool."""
    return [name for name, one in zip(classes, chosen, strict=True) if one]


def report_parts(dataset: ImageDataset, part: np.ndarray) -> None:
    """Warn of what the validation and test parts cannot measure, before anything is trained.

    Args:
        dataset: N images.
        part: (N,) uint8, as a scenario cuts it.
    """
    for place in (VAL, TEST):
        labels, name = dataset.best_known[part == place], PART_NAMES[place]
        if len(labels):
            _report_size(len(labels), name, fixed=bool((dataset.part == place).any()))
            _report_lacking(labels, name, dataset.classes)
            _report_few(labels, name, dataset.classes)


def _report_size(images: int, name: str, *, fixed: bool) -> None:
    if images < FEW_IMAGES:
        advice = f"add images to the {name} part" if fixed else f"raise --{name}-share"
        logger.warning("%s: %d images tell little, however high a score; %s", name, images, advice)


def _report_lacking(labels: np.ndarray, name: str, classes: Sequence[str]) -> None:
    found = one_sided(labels, classes)
    texts = [f"{text} {', '.join(found[kind])}" for kind, text in KINDS.items() if found[kind]]
    if not texts:
        return
    left = len(classes) - sum(map(len, found.values()))
    advice = "; write 0 in the label files where somebody looked" if found["no_negative"] else ""
    logger.warning(
        "%s: of its images %s: nothing can be measured there, so %d of %d classes are scored%s",
        *(name, " and ".join(texts), left, len(classes), advice),
    )


def _report_few(labels: np.ndarray, name: str, classes: Sequence[str]) -> None:
    positives, known = count_labels(labels)
    scarce = few(positives, known)
    if scarce.any():
        counts = [
            f"{cls} ({shown} of {total})"
            for cls, shown, total in zip(classes, positives, known, strict=True)
        ]
        logger.warning(
            "%s: fewer than %d positives or negatives of %s; such scores are rough",
            *(name, FEW, ", ".join(named(scarce, counts))),
        )


def report_one_sided(observed: np.ndarray, classes: Sequence[str]) -> None:
    """Warn of classes that no training image has a label for, or labels of one kind alone.

    Such a class is named once. Hiding never takes a class from all sites, blanks in the files may.

    Args:
        observed: (n, C) what the sites read: 0, 1 and NaN = missing.
        classes: C names.
    """
    found, known = one_sided(observed, classes), count_labels(observed)[1]
    nowhere = named(known == 0, classes)
    if nowhere:
        names = ", ".join(nowhere)
        logger.warning("no client annotates %s: blank in the files where it is not hidden", names)
    only_negative = [name for name in found["no_positive"] if name not in nowhere]
    lacking = {"negative": found["no_negative"], "positive": only_negative}
    texts = [f"{kind} of {', '.join(names)}" for kind, names in lacking.items() if names]
    if texts:
        helped = set(named(known < len(observed), classes)) & set(found["no_negative"])
        advice = "; --assume-negative takes missing cells for negatives" if helped else ""
        logger.warning("no site has an annotated %s%s", ", or ".join(texts), advice)
