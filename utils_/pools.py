"""FedLSM's view of a site: who is uncertain, what a prediction says, how much a class counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def uncertainty(probability: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Sum of -p log p over an image's missing cells, over C; 0 where all cells are annotated.

    Args:
        probability: (N, C) in [0, 1].
        missing: (N, C) bool.

    Returns:
        (N,) float64, at least 0.
    """
    p = np.maximum(probability.astype(np.float64), 1e-12)
    return np.where(missing, -p * np.log(p), 0).mean(axis=1).clip(0)


def split_pools(
    doubt: np.ndarray, *, uncertain: float, confident: float
) -> tuple[np.ndarray, np.ndarray]:
    """The images of largest and of smallest uncertainty.

    Args:
        doubt: (N,) from :func:`uncertainty`.
        uncertain: share of the images; at least one where the share is not 0, and at most half
            of all. Images without doubt are never among them.
        confident: the same for the other end; the pools do not overlap.

    Returns:
        Two (N,) bool arrays.
    """
    order = np.argsort(-doubt, kind="stable")
    most = min(_count(uncertain, len(doubt)), int((doubt > 0).sum()), len(doubt) // 2)
    least = min(_count(confident, len(doubt)), len(doubt) - most)
    pools = np.zeros((2, len(doubt)), bool)
    pools[0, order[:most]] = True
    pools[1, order[len(doubt) - least :]] = True
    return pools[0], pools[1]


def pair_up(
    uncertain: np.ndarray, confident: np.ndarray, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a batch's uncertain images and of a random confident partner for each.

    Args:
        uncertain: (B,) bool.
        confident: (B,) bool; where none is True there are no pairs.
        draw: partners repeat only where there are too few.
    """
    one, other = np.flatnonzero(uncertain), np.flatnonzero(confident)
    one = one if len(other) else one[:0]
    return one, np.resize(draw.permutation(other), len(one))


def _count(share: float, images: int) -> int:
    return max(int(share * images + 1e-9), int(share > 0))


def class_weight(positives: np.ndarray, annotated: np.ndarray, *, cap: float) -> np.ndarray:
    """Negatives per positive of each class, at most ``cap``, divided by the largest.

    A class without positives, without negatives or without annotations has nothing to balance and
    counts as 1 before the division.

    Args:
        positives: (C,) at least 0.
        annotated: (C,) at least ``positives``.
        cap: at least 1.

    Returns:
        (C,) float32 in (0, 1].
    """
    negatives = annotated - positives
    balanced = (positives > 0) & (negatives > 0)
    weight = np.where(balanced, negatives / np.maximum(positives, 1e-6), 1).clip(None, cap)
    return (weight / weight.max()).astype(np.float32)


def remember_counts(memory: dict[str, np.ndarray], reports: Iterable[Any], *, clients: int) -> None:
    """Keep every site's latest ``positives`` and ``annotated``: ``memory["counts"]``, (2, K, C)."""
    for report in reports:
        told = np.stack([report.extras["positives"], report.extras["annotated"]])
        start = np.zeros((2, clients, told.shape[1]), np.float32)
        memory.setdefault("counts", start)[:, report.client] = told
