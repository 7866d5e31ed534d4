"""Thresholds of each class, chosen on labelled images, and metrics at them.

At 0.5 a method is judged by where its probabilities lie too: logit adjustment or class weights move
them without ranking images better. A threshold chosen in the same way for each model takes that out
of a comparison.
"""

from __future__ import annotations

import numpy as np

from utils_.metrics import multilabel_metrics

TUNED = ("macro_f1", "macro_recall", "macro_precision", "balanced_accuracy")
SUFFIX = "_tuned"


def best_thresholds(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return for each class the threshold (``>=``) of highest F1; of equals the highest.

    Args:
        probability: (N, C) in [0, 1].
        truth: (N, C) of 0, 1 and NaN = unknown, which is left out.

    Returns:
        (C,) float64, one of the class's probabilities; NaN where no image is known to have the
        class, or none to lack it: then nothing tells a good threshold from a bad one.
    """
    columns = zip(np.asarray(probability, dtype=np.float64).T, np.asarray(truth).T, strict=True)
    return np.array([_best_of_class(*column) for column in columns], dtype=np.float64)


def _best_of_class(score: np.ndarray, truth: np.ndarray) -> float:
    """Only the score of a positive can be best: up to the next one a threshold loses nothing."""
    positives, negatives = np.sort(score[truth == 1]), np.sort(score[truth == 0])
    if not len(positives) or not len(negatives):
        return float("nan")
    candidates = np.unique(positives)[::-1]
    hits = len(positives) - np.searchsorted(positives, candidates)
    claimed = hits + len(negatives) - np.searchsorted(negatives, candidates)
    return float(candidates[np.argmax(2 * hits / (claimed + len(positives)))])


def tuned_metrics(
    probability: np.ndarray, truth: np.ndarray, *, thresholds: np.ndarray
) -> dict[str, float]:
    """Means over classes as in :func:`multilabel_metrics`, at a threshold for each class.

    A class without a threshold is in none of them: at 0.5 it would not be comparable.

    Args:
        probability: (N, C) in [0, 1].
        truth: (N, C) of 0, 1 and NaN.
        thresholds: (C,), from :func:`best_thresholds` on other images.

    Returns:
        ``macro_f1_tuned``, ``macro_recall_tuned``, ``macro_precision_tuned``,
        ``balanced_accuracy_tuned``, and ``classes_tuned``, the number of classes in them.
    """
    judged = np.where(np.isnan(thresholds), np.nan, truth)
    # 1 and 0 lie on the right sides of 0.5, where multilabel_metrics cuts.
    overall = multilabel_metrics((probability >= thresholds).astype(np.float32), judged).overall
    tuned = {name + SUFFIX: overall[name] for name in TUNED}
    return tuned | {"classes_tuned": overall["classes_evaluated"]}
