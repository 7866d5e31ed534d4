"""From predictions to labels: hybrid pseudo-labels, agreement with labels, shared priors."""

from __future__ import annotations

import numpy as np

from utils_.labels import LabelState


def snap(probability: np.ndarray, *, confident: float) -> np.ndarray:
    """Hybrid pseudo-labels: 1 above ``confident``, 0 below 1 - ``confident``, soft between."""
    hard = np.where(probability > confident, 1.0, probability)
    return np.where(probability < 1 - confident, 0.0, hard).astype(np.float32)


def agreement_and_loss(
    probability: np.ndarray, target: np.ndarray, cells: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean agreement and mean cross-entropy of each image over the given cells.

    Args:
        probability: (N, C) in [0, 1].
        target: (N, C) in [0, 1]; read at ``cells`` only.
        cells: (N, C) bool.

    Returns:
        Two (N,) float64 arrays; an image without a cell gets 0 and 0.
    """
    probability = probability.clip(1e-7, 1 - 1e-7).astype(np.float64)
    target = np.where(cells, target, 0)
    agreement = target * probability + (1 - target) * (1 - probability)
    loss = -(target * np.log(probability) + (1 - target) * np.log1p(-probability))
    count = np.maximum(cells.sum(axis=1), 1)
    means = (np.where(cells, value, 0).sum(axis=1) / count for value in (agreement, loss))
    return tuple(means)


def class_counts(labels: LabelState) -> dict[str, np.ndarray]:
    """Positives and annotated cells of each class, (C,) float32, from annotated cells alone."""
    positives = np.where(labels.annotated, labels.target, 0).sum(axis=0)
    annotated = labels.annotated.sum(axis=0)
    return {"positives": positives.astype(np.float32), "annotated": annotated.astype(np.float32)}


def prior(positives: np.ndarray, annotated: np.ndarray) -> np.ndarray:
    """(C,) share of positives; NaN for a class without annotated cells."""
    share = np.where(annotated > 0, positives, np.nan) / np.maximum(annotated, 1)
    return share.astype(np.float32)
