"""Scores the global model and the sites' labels against the truth, which nothing else may hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from utils_.datasets.base import TEST, TRAIN, VAL, ImageDataset
from utils_.diagnostics import judged_and_noisy, label_counts, pool
from utils_.label_pictures import label_picture, suspects_picture
from utils_.labels import Oracle
from utils_.metrics import Metrics, annotated_missing_means, multilabel_metrics
from utils_.one_sided import one_sided
from utils_.scenario import Scenario
from utils_.thresholds import best_thresholds, tuned_metrics
from utils_.truth import Reference, truth_summary

SHOWN_IMAGES = 6

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from src.client import Client


class Evaluator:
    """Holds the Oracle and the images of the validation and test parts.

    Attributes:
        annotated: (K, C) bool, which site annotates which class; a negative that is only assumed
            annotates none.
        predict_rows: as :class:`src.models.Predictor`; a runner may take its place.
        truth: what labels and predictions are judged by, see ``utils_.truth.truth_summary``.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        scenario: Scenario,
        predict_rows: Callable[[Tensor, np.ndarray], np.ndarray],
        *,
        truth: Reference,
    ) -> None:
        """Take what the scenario's training labels are judged by, ``truth``.

        Predictions are judged by verified labels, and by those of the files where there are none.
        """
        training = (scenario.part == TRAIN)[:, None]
        known = np.where(training, truth.labels, dataset.best_known)
        self._oracle = Oracle(known, scenario.noisy)
        self.truth = truth_summary(dataset, scenario.part, truth)
        self._classes, self._files = dataset.classes, dataset.files
        self._images, self.predict_rows = dataset.images, predict_rows
        self._rows = {part: np.flatnonzero(scenario.part == part) for part in (VAL, TEST)}
        clients = range(int(scenario.client.max()) + 1)
        self._client_rows = [scenario.rows(k) for k in clients]
        looked_at = scenario.annotated & ~scenario.assumed
        self.annotated = np.stack([looked_at[rows].any(axis=0) for rows in self._client_rows])

    def has(self, part: int) -> bool:
        """Whether the part has any image."""
        return len(self._rows[part]) > 0

    def one_sided(self, part: int) -> dict[str, list[str]]:
        """The classes that cannot be measured on the part, by what they lack."""
        return one_sided(self._oracle.true(self._rows[part]), self._classes)

    def rows(self, part: int) -> np.ndarray:
        """(n,) rows of the data set that make up the part."""
        return self._rows[part]

    def truth_of(self, part: int) -> np.ndarray:
        """(n, C) what predictions on the part are judged by; NaN where nobody knows."""
        return self._oracle.true(self._rows[part])

    def predict(self, vector: Tensor, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and true labels of the part's images, both (n, C).

        Of several vectors, (K, P), one after the other: both (K n, C).
        """
        found = self.predict_each(vector, part)
        return np.concatenate(found), np.tile(self.truth_of(part), (len(found), 1))

    def predict_each(self, vector: Tensor, part: int) -> np.ndarray:
        """(M, n, C) probabilities of the part's images by each of M vectors; (P,) is one."""
        rows = self._rows[part]
        return np.stack([self.predict_rows(one, rows) for one in vector.view(-1, vector.shape[-1])])

    def score(self, vector: Tensor, part: int) -> Metrics:
        """Metrics of one vector on one part; see :meth:`score_parts`."""
        return self.score_parts(vector, [part])[part]

    def score_parts(self, vector: Tensor, parts: Sequence[int]) -> dict[int, Metrics]:
        """Metrics of one vector on each part, or the mean over the sites' own, (K, P).

        Annotated and missing classes also apart; those of a site's own vector are its own. A
        validation part is predicted, once: each vector's thresholds are chosen on it.
        """
        tuning = [VAL] if self.has(VAL) else []
        wanted = dict.fromkeys([*tuning, *parts])
        predicted = {part: self.predict_each(vector, part) for part in wanted}
        return self.score_predicted(predicted, parts, each_site=vector.ndim == 2)

    def score_predicted(
        self, predicted: Mapping[int, np.ndarray], parts: Sequence[int], *, each_site: bool
    ) -> dict[int, Metrics]:
        """As :meth:`score_parts`, of what is predicted: {part: (M, n, C)}.

        ``each_site`` says that these are the sites' own models. Thresholds are chosen on what is
        predicted of the validation part, if that is there.
        """
        annotated = [row[None] for row in self.annotated] if each_site else [self.annotated]
        each = [
            self._score_one({part: own[m] for part, own in predicted.items()}, parts, looked_at)
            for m, looked_at in enumerate(annotated)
        ]
        if not each_site:
            return each[0]
        return {part: mean_metrics([metrics[part] for metrics in each]) for part in parts}

    def _score_one(
        self, predicted: Mapping[int, np.ndarray], parts: Sequence[int], annotated: np.ndarray
    ) -> dict[int, Metrics]:
        tuned_on = predicted.get(VAL) if self.has(VAL) else None
        thresholds = None if tuned_on is None else best_thresholds(tuned_on, self.truth_of(VAL))
        scores = {}
        for part in parts:
            probability, truth = predicted[part], self.truth_of(part)
            metrics = multilabel_metrics(probability, truth)
            overall = metrics.overall | annotated_missing_means(metrics.per_class["ap"], annotated)
            if thresholds is not None:
                overall |= tuned_metrics(probability, truth, thresholds=thresholds)
            scores[part] = Metrics(overall, metrics.per_class)
        return scores

    def thresholds(self, predicted: Mapping[int, np.ndarray]) -> np.ndarray:
        """(C,) thresholds of best F1 on the validation part; NaN where nothing tells.

        Of several models there are none in common.

        Args:
            predicted: {part: (M, n, C)}, see :meth:`predict_each`.
        """
        found = predicted.get(VAL)
        if found is None or len(found) > 1:
            return np.full(len(self._classes), np.nan)
        return best_thresholds(found[0], self.truth_of(VAL))

    def label_diagnostics(
        self, clients: Sequence[Client]
    ) -> tuple[dict[str, float], list[dict[str, float]]]:
        """How right the sites' labels are now: pooled over the sites, and for each site."""
        counts = [self._count(client) for client in clients]
        return pool(counts), [pool([count]) for count in counts]

    def label_picture(self, client: Client) -> Figure:
        """A figure of images whose labels changed most, for TensorBoard."""
        labels, rows = client.labels, self._client_rows[client.index]
        before = np.where(labels.annotated, labels.observed, 0)
        changed = np.where(labels.weight > 0, np.abs(labels.target - before), 0).sum(axis=1)
        chosen = np.argsort(-changed, kind="stable")[:SHOWN_IMAGES]
        return label_picture(
            self._images[rows[chosen]],
            observed=labels.observed[chosen],
            target=labels.target[chosen],
            status=labels.status[chosen],
            true=self._oracle.true(rows[chosen]),
            classes=self._classes,
            names=[self._files[row] for row in rows[chosen]],
            judge=str(self.truth["reference"]),
        )

    def suspects_picture(self, clients: Sequence[Client]) -> Figure | None:
        """A figure of suspected images against noisy ones, of all sites whose method has a score.

        None where no site has one, or the truth of none of their images is known.
        """
        scores, noisy = [], []
        for client in clients:
            rows, score = self._client_rows[client.index], client.memory.get("noise_score")
            if score is not None:
                true, noise = self._oracle.true(rows), self._oracle.noise(rows)
                cells = judged_and_noisy(client.labels, true=true, noise=noise)
                judged, wrong = (found.sum(axis=1) > 0 for found in cells)
                scores.append(np.asarray(score)[judged])
                noisy.append(wrong[judged])
        if not sum(map(len, scores)):
            return None
        judge = str(self.truth["reference"])
        return suspects_picture(np.concatenate(scores), np.concatenate(noisy), judge=judge)

    def _count(self, client: Client) -> dict[str, float]:
        rows = self._client_rows[client.index]
        score = client.memory.get("noise_score")
        return label_counts(
            client.labels,
            true=self._oracle.true(rows),
            noise=self._oracle.noise(rows),
            noise_score=score,
            flagged=None if score is None else score > 0.5,
        )


def mean_metrics(scores: Sequence[Metrics]) -> Metrics:
    """The mean of each figure over the scores that have it."""
    names = dict.fromkeys(name for score in scores for name in score.overall)
    overall = {
        name: float(np.mean([score.overall[name] for score in scores if name in score.overall]))
        for name in names
    }
    columns = scores[0].per_class
    per_class = {name: np.mean([s.per_class[name] for s in scores], axis=0) for name in columns}
    return Metrics(overall, per_class)
