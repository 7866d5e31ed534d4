"""From predictions to labels: hybrid pseudo-labels, surety of an absence, agreement with labels."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

from utils_.priors import capped_prior

Table = TypeVar("Table", np.ndarray, Tensor)


def snap(probability: np.ndarray, confident: float, prior: np.ndarray | None = None) -> np.ndarray:
    """Hybrid pseudo-labels: hard where the prediction is confident, soft elsewhere.

    A probability above ``confident`` becomes 1, one below 1 - ``confident`` becomes 0. With a
    prior it becomes 0 only where its odds are that small compared with the prior's odds: nearly
    every prediction of a rare class is small, and calling them all 0 would teach its absence.

    Args:
        probability: (N, C) in [0, 1].
        confident: in [0.5, 1].
        prior: (C,) share of positives, NaN where unknown; or None.

    Returns:
        (N, C) float32 in [0, 1].
    """
    absent = 1 - probability if prior is None else absence(probability, capped_prior(prior))
    hard = np.where(probability > confident, 1.0, probability)
    return np.where(absent > confident, 0.0, hard).astype(np.float32)


def absence(probability: Table, share: Table) -> Table:
    """How sure a prediction is of a class's absence, as if half of the images had the class.

    Published thresholds are for classes of equal size or for weighted losses. Held against plain
    predictions they would find every image to lack a rare class, and pseudo-labels would teach just
    that. A frequent class is no reason to call a likely positive absent, so the share is at most
    0.5.

    Args:
        probability: (N, C) in [0, 1].
        share: (C,) from :func:`utils_.priors.capped_prior`; 0.5 gives 1 - ``probability``.

    Returns:
        (N, C) in [0, 1].
    """
    absent, present = (1 - probability) * share, probability * (1 - share)
    sure: Table = absent / (absent + present)
    return sure


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
    first, second = (np.where(cells, v, 0).sum(axis=1) / count for v in (agreement, loss))
    return first, second
