"""How well an order of labels finds the wrong ones, where the truth is known."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DEPTHS = (10, 20, 50, 100, 200, 500)  # labels reviewed, of which precision is told
EARLY = 0.1  # the first tenth


@dataclass(frozen=True)
class Review:
    """What a reviewer finds who follows an order.

    Attributes:
        wrong: (n,) bool, whether each reviewed thing is wrong, in the order of the review.
    """

    wrong: np.ndarray

    @property
    def base(self) -> float:
        """The share of wrong ones among all: what random order finds; NaN of nothing."""
        return float(self.wrong.mean()) if len(self.wrong) else float("nan")

    @property
    def found(self) -> np.ndarray:
        """(n,) how many wrong ones are found after each look."""
        return np.asarray(np.cumsum(self.wrong))

    def precision(self, depth: int) -> float:
        """The share of wrong ones among the first ``depth``; NaN where there are fewer."""
        return float(self.wrong[:depth].mean()) if 0 < depth <= len(self.wrong) else float("nan")

    def gain(self, share: float = EARLY) -> float:
        """How many times as many as in random order are found in the first share; NaN of none."""
        depth = int(share * len(self.wrong))
        return self.precision(depth) / self.base if depth and self.base else float("nan")

    def summary(self) -> dict[str, float]:
        """``looked_at``, ``wrong``, ``random``, ``precision_at_<depth>`` and ``gain_first_tenth``.

        What cannot be measured is left out.
        """
        figures = {
            "looked_at": float(len(self.wrong)),
            "wrong": float(self.wrong.sum()),
            "random": self.base,
        }
        figures |= {f"precision_at_{depth}": self.precision(depth) for depth in DEPTHS}
        figures["gain_first_tenth"] = self.gain()
        return {name: value for name, value in figures.items() if not np.isnan(value)}


def review_cells(score: np.ndarray, wrong: np.ndarray, judged: np.ndarray) -> Review:
    """Review labels by falling score.

    Args:
        score: (N, C), NaN where a label is not ranked.
        wrong: (N, C) bool.
        judged: (N, C) bool, whether it is known what is right.
    """
    chosen = judged & np.isfinite(score)
    order = np.argsort(-score[chosen], kind="stable")
    return Review(wrong[chosen][order])


def review_images(score: np.ndarray, wrong: np.ndarray, judged: np.ndarray) -> Review:
    """Review images by the sum of their labels' scores; one is wrong where any label is.

    Args as :func:`review_cells`.
    """
    chosen = judged & np.isfinite(score)
    images = np.flatnonzero(chosen.any(axis=1))
    total = np.where(chosen, score, 0.0)[images].sum(axis=1)
    any_wrong = (wrong & chosen)[images].any(axis=1)
    return Review(any_wrong[np.argsort(-total, kind="stable")])


def has_cleanlab() -> bool:
    """Whether the optional library is installed."""
    return importlib.util.find_spec("cleanlab") is not None


def cleanlab_scores(probability: np.ndarray, given: np.ndarray) -> np.ndarray:
    """(N, C) suspicion by cleanlab's multi-label ranking, NaN where it has no opinion.

    cleanlab knows no blanks, so each class is ranked by itself over the images that annotate it.
    """
    from cleanlab.multilabel_classification.rank import get_label_quality_scores_per_class

    scores = np.full(given.shape, np.nan)
    for column in range(given.shape[1]):
        rows = np.flatnonzero(~np.isnan(given[:, column]))
        labels: Sequence[list[int]] = [[0] if given[row, column] == 1 else [] for row in rows]
        if not 0 < sum(map(len, labels)) < len(rows):  # it cannot take a class of one kind
            continue
        quality = get_label_quality_scores_per_class(labels, probability[rows, column][:, None])
        scores[rows, column] = 1 - np.asarray(quality)[:, 0]
    return scores
