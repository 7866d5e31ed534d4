"""Scores over test images drawn again and again, for every run that has kept its predictions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from utils_.metrics import CALIBRATION_BINS, multilabel_metrics
from utils_.predictions import Predictions, read_predictions
from utils_.reporting.records import RunRecord
from utils_.stats import LEVEL, drawn_precision


@dataclass
class ImageScores:
    """Of one method in one setting.

    Attributes:
        observed: {replicate: mAP on the images as they are}.
        drawn: {replicate: (draws,) mAP over drawn images}, the same draws for all methods.
        per_class: {replicate: (C,) average precision}.
        per_class_drawn: (draws, C), mean over the replicates.
        positives, evaluated: (C,) test images that show the class, and those whose truth is known.
        bins: (15, 3) cells, sum of probabilities and positives by probability, all replicates.
    """

    observed: dict[str, float] = field(default_factory=dict)
    drawn: dict[str, np.ndarray] = field(default_factory=dict)
    per_class: dict[str, np.ndarray] = field(default_factory=dict)
    per_class_drawn: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    positives: np.ndarray = field(default_factory=lambda: np.zeros(0))
    evaluated: np.ndarray = field(default_factory=lambda: np.zeros(0))
    bins: np.ndarray = field(default_factory=lambda: np.zeros((CALIBRATION_BINS, 3)))

    def interval(self) -> tuple[float, float, float]:
        """Mean mAP over the replicates, with the ends of its interval over test images."""
        mean = float(np.mean(list(self.observed.values())))
        return (mean, *_ends(np.mean(list(self.drawn.values()), axis=0)))

    def class_interval(self, column: int) -> tuple[float, float, float]:
        """The same of one class's average precision; NaN where it cannot be measured."""
        mean = float(np.mean([own[column] for own in self.per_class.values()]))
        return (mean, *_ends(self.per_class_drawn[:, column]))


def _ends(drawn: np.ndarray) -> tuple[float, float]:
    told = drawn[~np.isnan(drawn)]
    if not len(told):
        return float("nan"), float("nan")
    low, high = np.percentile(told, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def score_images(
    runs: Mapping[str, Mapping[str, RunRecord]], *, selected: bool
) -> dict[str, ImageScores]:
    """Score the runs of each method, {label: {replicate: run}}, on the same draws of images.

    Runs without predictions, or whose file is damaged, are in no score; so are those where
    ``selected`` asks for a model that validation has not chosen.
    """
    found = {label: ImageScores() for label in runs}
    for replicate in dict.fromkeys(key for own in runs.values() for key in own):
        there = {label: own[replicate] for label, own in runs.items() if replicate in own}
        read = {label: _predictions(run, selected=selected) for label, run in there.items()}
        kept = {label: one for label, one in read.items() if one is not None}
        for images in {_images_key(one): one for one in kept.values()}.values():
            alike = {n: one for n, one in kept.items() if _images_key(one) == _images_key(images)}
            _add(found, alike, replicate, selected=selected)
    for own in found.values():
        if own.drawn:
            own.per_class_drawn = own.per_class_drawn / len(own.drawn)
    return {label: own for label, own in found.items() if own.drawn}


def _predictions(run: RunRecord, *, selected: bool) -> Predictions | None:
    try:
        found = read_predictions(run.folder)
        if found is not None:
            found.models(selected=selected)
    except ValueError:  # the report says which runs have none that can be read
        return None
    return found if found is None or len(found.test_row) else None


def _images_key(predictions: Predictions) -> str:
    digest = hashlib.sha256(predictions.test_row.tobytes())
    digest.update(predictions.test_truth.tobytes())
    return digest.hexdigest()


def _add(
    found: dict[str, ImageScores], alike: dict[str, Predictions], replicate: str, *, selected: bool
) -> None:
    """Add one replicate of the methods whose test images are the same."""
    truth = next(iter(alike.values())).test_truth
    models = {label: one.models(selected=selected) for label, one in alike.items()}
    drawn = drawn_precision(models, truth, name=_images_key(next(iter(alike.values()))))
    for label, each in models.items():
        own, scores = found[label], [multilabel_metrics(model, truth) for model in each]
        own.observed[replicate] = float(np.mean([score.overall["mAP"] for score in scores]))
        own.per_class[replicate] = np.mean([score.per_class["ap"] for score in scores], axis=0)
        with np.errstate(invalid="ignore"):
            own.drawn[replicate] = _mean_known(drawn[label])
        own.per_class_drawn = drawn[label] + (
            own.per_class_drawn if own.per_class_drawn.size else 0
        )
        own.positives = scores[0].per_class["positives"]
        own.evaluated = scores[0].per_class["evaluated"]
        own.bins += sum(reliability_bins(model, truth) for model in each)


def _mean_known(table: np.ndarray) -> np.ndarray:
    """(rows,) mean over the columns that are no NaN; NaN where all are."""
    known = ~np.isnan(table)
    total = np.where(known, table, 0).sum(axis=1)
    nothing = np.full(len(table), np.nan)
    mean: np.ndarray = np.divide(total, known.sum(axis=1), out=nothing, where=known.any(axis=1))
    return mean


def reliability_bins(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Count cells by their probability, in bins of equal width.

    Returns:
        (15, 3): known cells, the sum of their probabilities, and how many are positive.
    """
    known = ~np.isnan(truth)
    own, positive = probability[known].astype(float), truth[known]
    place = np.minimum((own * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    columns = [np.bincount(place, weight, CALIBRATION_BINS) for weight in (None, own, positive)]
    return np.stack(columns, axis=1)
