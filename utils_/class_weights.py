"""Factors that balance the positives and negatives of each class."""

from __future__ import annotations

import numpy as np

CLASS_WEIGHTS = ("none", "inverse", "effective")
OVERLAP = 0.999  # beta of the effective number: a class never counts for more than 1 / (1 - beta)


def class_weights(counts: np.ndarray, kind: str) -> np.ndarray:
    """Factors of negative and of positive cells, whose mean over a class's annotated cells is 1.

    ``inverse`` gives both sides of a class the same sum. ``effective`` counts the effective
    number of each side instead, (1 - beta^n) / (1 - beta), which grows slower than n because
    images resemble each other (Cui et al., CVPR 2019, on each class as a problem of two).

    Args:
        counts: (2, C) positives and annotated cells of each class, over all sites.
        kind: ``inverse`` or ``effective``.

    Returns:
        (2, C) float32: row 0 for negatives, row 1 for positives. Both are 1 for a class that
        lacks a side, of which there is nothing to balance.
    """
    positives, annotated = counts.astype(np.float64)
    sides = np.stack([annotated - positives, positives])
    sizes = sides if kind == "inverse" else (1 - OVERLAP**sides) / (1 - OVERLAP)
    raw = 1 / np.maximum(sizes, 1e-9)
    scale = annotated / np.maximum((sides * raw).sum(axis=0), 1e-9)
    both = (sides > 0).all(axis=0)
    return np.where(both, raw * scale, 1).astype(np.float32)
