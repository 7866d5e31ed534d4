"""How well the global model does on images that hospitals keep: counts go to the server, no score.

A site tells, of each class, its positives, its negatives and the pairs of them that the model
orders rightly, and of all cells how well probabilities fit. Few cases would point at patients, so a
class with fewer of either kind than the site's ``fewest-cases`` is withheld, and so is a bin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.flower.records import BadRecord
from src.messages import Arrays
from utils_.datasets.base import PART_NAMES, TEST, VAL
from utils_.metrics import CALIBRATION_BINS, calibration_bins, multilabel_metrics

PARTS = {PART_NAMES[part]: part for part in (VAL, TEST)}
FIELDS = ("positives", "negatives", "won", "bins")


@dataclass(frozen=True)
class SiteScores:
    """What one site tells of one part, or several sites together.

    Attributes:
        positives: (C,) positives of each class; 0 where it is withheld.
        negatives: (C,) negatives.
        won: (C,) pairs of a positive and a negative in which the positive is higher, ties half.
        pairs: (C,) all such pairs, which of several sites are within a site each.
        bins: (3, 15) cells, sum of their probabilities and positives among them, by probability.
        sites: (C,) how many sites tell of the class.
    """

    positives: np.ndarray
    negatives: np.ndarray
    won: np.ndarray
    pairs: np.ndarray
    bins: np.ndarray
    sites: np.ndarray

    @property
    def auroc(self) -> np.ndarray:
        """(C,) within sites, NaN where nothing could be measured."""
        found = np.full(self.won.shape, np.nan)
        np.divide(self.won, self.pairs, out=found, where=self.pairs > 0)
        return found

    def overall(self) -> dict[str, float]:
        """Figures for a row; only those that could be measured."""
        measured, cells = self.pairs > 0, self.bins[0].sum()
        found = {"classes_evaluated": float(measured.sum())}
        if measured.any():
            found["macro_auroc"] = float(self.auroc[measured].mean())
        if cells:
            found["ece"] = float(np.abs(self.bins[1] - self.bins[2]).sum() / cells)
        return found

    def as_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """For ``result.json``."""
        columns = {
            "auroc": self.auroc,
            "positives": self.positives,
            "negatives": self.negatives,
            "sites": self.sites,
        }
        per_class = {
            name: {key: column[c].item() for key, column in columns.items()}
            for c, name in enumerate(classes)
            if self.pairs[c]
        }
        names = ("cells", "probability", "positives")
        bins = dict(zip(names, self.bins.tolist(), strict=True))
        return self.overall() | {"per_class": per_class, "calibration": bins}

    def to_arrays(self, prefix: str) -> Arrays:
        """For a checkpoint."""
        return {f"{prefix}.{name}": value for name, value in vars(self).items()}


def count_scores(probability: np.ndarray, truth: np.ndarray, *, fewest: int) -> Arrays:
    """What a site tells of what the model predicts of its images.

    Args:
        probability: (n, C).
        truth: (n, C) of 0, 1 and NaN.
        fewest: positives, negatives or cells, below which nothing is told of them.
    """
    scores = multilabel_metrics(probability, truth).per_class
    positives, negatives = scores["positives"], scores["evaluated"] - scores["positives"]
    told = (positives >= fewest) & (negatives >= fewest)
    pairs = np.where(told, scores["auroc"], 0) * positives * negatives
    known = told & ~np.isnan(truth)
    bins = calibration_bins(probability[known], truth[known] == 1)
    counts = {"positives": positives, "negatives": negatives}
    found: Arrays = {name: np.where(told, count, 0) for name, count in counts.items()}
    return found | {"won": np.round(2 * pairs) / 2, "bins": np.where(bins[0] >= fewest, bins, 0)}


def checked_scores(told: Mapping[str, np.ndarray], *, part: str, classes: int) -> SiteScores:
    """What a site tells of a part.

    Raises:
        BadRecord: it cannot be that.
    """
    try:
        positives, negatives, won, bins = (told[f"{part}.{name}"] for name in FIELDS)
    except KeyError as error:
        raise BadRecord(f"its evaluation lacks {error}") from error
    for counts in (positives, negatives):
        if counts.shape != (classes,) or counts.dtype.kind not in "iu" or (counts < 0).any():
            raise BadRecord(f"its counts of {part} are not one number a class")
    pairs = positives.astype(np.float64) * negatives
    if won.shape != (classes,) or not ((won >= 0) & (won <= pairs)).all():
        raise BadRecord(f"its pairs of {part} do not fit its counts")
    cells, sums, hits = bins if bins.shape == (3, CALIBRATION_BINS) else np.full((3, 1), -1.0)
    if not ((hits >= 0) & (hits <= cells) & (sums >= 0) & (sums <= cells)).all():
        raise BadRecord(f"its calibration of {part} is none")
    return SiteScores(positives, negatives, won, pairs, bins, (pairs > 0).astype(np.int64))


def combine_scores(each: Sequence[SiteScores]) -> SiteScores:
    """Of several sites; pairs across sites are nobody's."""
    names = vars(each[0])
    return SiteScores(**{name: np.sum([vars(s)[name] for s in each], axis=0) for name in names})


def scores_from_arrays(arrays: Arrays, prefix: str) -> SiteScores | None:
    """What :meth:`SiteScores.to_arrays` gave, if that is among the arrays."""
    start = f"{prefix}."
    own = {name.removeprefix(start): a for name, a in arrays.items() if name.startswith(start)}
    return SiteScores(**own) if own else None
