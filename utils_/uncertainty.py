"""How far scores of few images can be trusted: bootstrap intervals of single classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils_.metrics import measurable, multilabel_metrics
from utils_.rng import derive

FEW = 10  # with fewer positives, or fewer negatives, a number is shown with its interval
SCORES = ("ap", "auroc", "f1", "balanced_accuracy")
DRAWS, LEVEL = 1000, 0.95
CELLS_AT_ONCE = 2_000_000  # of all draws together, so that large test parts fit in memory

Intervals = dict[str, tuple[float, float]]  # {score: (low, high)}


def few(positives: np.ndarray, evaluated: np.ndarray) -> np.ndarray:
    """(C,) bool: classes that can be measured, but on fewer than ten positives or negatives."""
    rarer: np.ndarray = np.minimum(positives, evaluated - positives)
    return measurable(positives, evaluated) & (rarer < FEW)


def bootstrap_intervals(
    probabilities: Sequence[np.ndarray], truth: np.ndarray, *, seed: int
) -> Intervals:
    """Percentile intervals of one class's scores, over images drawn with replacement.

    A draw without positives or negatives measures nothing and is left out. The draws know no image
    but those at hand: of a class whose few images are all ranked right, each says 1.

    Args:
        probabilities: one (n,) array in [0, 1] for each model whose scores are averaged.
        truth: (n,) of 0, 1 and NaN = unknown.
        seed: of the draws; the same for all models.

    Returns:
        ``(low, high)`` of the middle 95 % for each of ``SCORES``; nothing where the class has no
        positive or no negative.
    """
    known = np.flatnonzero(~np.isnan(truth))
    labels = truth[known]
    if not measurable(labels.sum(), np.asarray(len(labels))):
        return {}
    parts = []
    draw, width = derive(seed, "bootstrap"), max(1, CELLS_AT_ONCE // len(known))
    for start in range(0, DRAWS, width):
        rows = draw.integers(0, len(known), (len(known), min(width, DRAWS - start)))
        parts.append(_mean_scores([own[known][rows] for own in probabilities], labels[rows]))
    ends = 50 * np.array([1 - LEVEL, 1 + LEVEL])
    spread = {n: np.nanpercentile(np.concatenate([p[n] for p in parts]), ends) for n in SCORES}
    return {name: (float(low), float(high)) for name, (low, high) in spread.items()}


def _mean_scores(probabilities: Sequence[np.ndarray], truth: np.ndarray) -> dict[str, np.ndarray]:
    """Mean over the models of each score; a draw stands where a class does elsewhere."""
    scores = [multilabel_metrics(drawn, truth).per_class for drawn in probabilities]
    return {name: np.mean([score[name] for score in scores], axis=0) for name in SCORES}
