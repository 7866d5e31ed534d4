"""Images that are there more than once: what that spoils, and which copies belong together."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from utils_.datasets.base import TRAIN, UNASSIGNED, VAL, ImageDataset
from utils_.errors import UserError, some

logger = logging.getLogger("fednml")
PARTED = "are in several parts"
CONTRADICT = "are labelled differently"
LOOSE = "belong to no common patient, so the split may part them"
APART = "belong to several sites, so the split may part them"
FINE = "agree in part and labels"
ADVICE = {
    PARTED: "keep each image in one part",
    CONTRADICT: "keep the row whose labels are right",
    APART: "keep one of each",
}
Sets = dict[str, list[list[int]]]
"""Sets of rows with the same pixels, by what is the matter with them."""


def judge_copies(dataset: ImageDataset, copies: Sequence[Sequence[int]]) -> Sets:
    """Sort sets of copies by what they spoil: the keys are the constants of this module."""
    sets: Sets = defaultdict(list)
    for rows in copies:
        sets[_matter(dataset, rows)].append(list(rows))
    return sets


def settle_copies(
    dataset: ImageDataset, copies: Sequence[Sequence[int]], *, allow: bool
) -> ImageDataset:
    """Stop where copies spoil what a run measures; keep others that a split may part together.

    Args:
        dataset: N images.
        copies: sets of rows with the same pixels.
        allow: log what is wrong instead of stopping.

    Returns:
        The dataset; copies that the split could have put into two parts share a group.

    Raises:
        UserError: the same pixels are in two parts, have two labels, or belong to two sites so that
            the split may put them into two parts.
    """
    sets = judge_copies(dataset, copies)
    wrong = {why: sets[why] for why in ADVICE if sets[why]}
    if wrong and not allow:
        raise UserError(f"{dataset.name}: {_described(dataset, wrong)}; {_advice(list(wrong))}")
    if wrong:
        logger.warning("%s: %s", dataset.name, _described(dataset, wrong))
    if sets[FINE]:
        logger.info("%s: %s", dataset.name, _described(dataset, {FINE: sets[FINE]}))
    if not sets[LOOSE]:
        return dataset
    logger.warning(
        "%s: %d sets of images with the same pixels belong to no common patient; each is kept "
        "together, in one part and at one site: %s",
        *(dataset.name, len(sets[LOOSE]), _names(dataset, sets[LOOSE])),
    )
    return replace(dataset, groups=_joined(dataset, sets[LOOSE]))


def _matter(dataset: ImageDataset, rows: Sequence[int]) -> str:
    rows = list(rows)
    if len(set(dataset.part[rows].tolist()) - {UNASSIGNED}) > 1:
        return PARTED
    labels = dataset.labels[rows]
    known = ~np.isnan(labels)
    if ((labels == 1).any(axis=0) & (known & (labels != 1)).any(axis=0)).any():
        return CONTRADICT
    together = dataset.groups is not None and len(set(dataset.groups[rows].tolist())) == 1
    if together or not _will_be_cut(dataset, rows):
        return FINE
    if dataset.sites is not None and len(set(dataset.sites[rows].tolist())) > 1:
        return APART
    return LOOSE


def _will_be_cut(dataset: ImageDataset, rows: Sequence[int]) -> bool:
    """Whether these rows are still to be dealt to parts."""
    parts = set(dataset.part[list(rows)].tolist())
    return UNASSIGNED in parts or (parts == {TRAIN} and not (dataset.part == VAL).any())


def _joined(dataset: ImageDataset, sets: Sequence[Sequence[int]]) -> np.ndarray:
    """Return (N,) int64 groups in which the rows of each set, and their patients, are one."""
    count = len(dataset.files)
    groups = np.arange(count) if dataset.groups is None else dataset.groups.copy()
    for rows in sets:
        own = np.unique(groups[list(rows)])
        groups[np.isin(groups, own)] = own[0]
    return groups.astype(np.int64)


def _described(dataset: ImageDataset, sets: Sets) -> str:
    parts = [
        f"{len(rows)} sets of images with the same pixels {why} ({_names(dataset, rows)})"
        for why, rows in sets.items()
    ]
    return ", ".join(parts)


def _names(dataset: ImageDataset, sets: Sequence[Sequence[int]]) -> str:
    return some(["=".join(dataset.files[row] for row in rows) for rows in sets])


def _advice(why: Sequence[str]) -> str:
    deeds = ", ".join(ADVICE[reason] for reason in why)
    return f"{deeds}, or add --allow-duplicates"
