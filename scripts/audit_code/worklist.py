"""The labels of a site that are worth a second look, in the order of that worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils_.suspects import Doubt, doubt_labels, second_look

JUDGED, TOO_FEW, NOT_TRAINED = "judged", "not judged", "not trained"


@dataclass(frozen=True)
class ClassFacts:
    """What a class has to go by, over all sites.

    Attributes:
        name: of the class.
        positives, annotated: how many training labels say that it is there, and say anything.
        status: ``judged``; ``not judged`` where the positives are too few to learn the class from;
            ``not trained`` where no site annotates it.
    """

    name: str
    positives: int
    annotated: int
    status: str


@dataclass(frozen=True)
class Suspect:
    """One label.

    Attributes:
        row, column: of the data set.
        given: 1, 0, or NaN for a blank.
        probability: that the class is there, as predicted.
        wrong: probability that the given label is wrong; NaN for a blank.
        suggestion: 1 or 0.
        value: of a second look; the list is ordered by it. Of a blank, the calibrated probability
            that the class is there.
    """

    row: int
    column: int
    given: float
    probability: float
    wrong: float
    suggestion: int
    value: float


@dataclass(frozen=True)
class Federation:
    """The sites' given labels and what is predicted of their images.

    Attributes:
        client: (N,) the site of each image, -1 for none.
        given: (N, C) labels, NaN where nobody looked.
        probability: (N, C) predictions, NaN for images of no site.
        evidence: where these come from: ``cross-fitted`` or ``in-sample``.
    """

    client: np.ndarray
    given: np.ndarray
    probability: np.ndarray
    evidence: str

    def rows(self, site: int) -> np.ndarray:
        """Rows of the images that a site holds, ascending."""
        return np.flatnonzero(self.client == site)


def judge_classes(given: np.ndarray, names: Sequence[str], *, least: int) -> list[ClassFacts]:
    """What each class has to go by.

    Args:
        given: (n, C) labels of all training images, NaN where nobody looked.
        names: C names.
        least: positives below which a class is not judged.
    """
    facts = []
    for column, name in enumerate(names):
        positives = int((given[:, column] == 1).sum())
        annotated = int((~np.isnan(given[:, column])).sum())
        status = JUDGED if positives >= least else TOO_FEW
        facts.append(ClassFacts(name, positives, annotated, status if annotated else NOT_TRAINED))
    return facts


def doubts(federation: Federation, facts: Sequence[ClassFacts]) -> Doubt:
    """(N, C) doubts, each site's by its own images; NaN in classes that are not judged."""
    judged = np.array([fact.status == JUDGED for fact in facts])
    shape = federation.given.shape
    every = Doubt(*(np.full(shape, np.nan) for _ in range(3)), np.full(shape[0], np.nan))
    for site in range(int(federation.client.max()) + 1):
        rows = federation.rows(site)
        cells = np.ix_(rows, np.flatnonzero(judged))
        if rows.size and judged.any():
            found = doubt_labels(federation.probability[cells], federation.given[cells])
            for name in ("wrong", "suspicion", "present"):
                getattr(every, name)[cells] = getattr(found, name)
            every.image[rows] = found.image
    return every


def suspects(federation: Federation, doubt: Doubt, rows: np.ndarray, *, top: int) -> list[Suspect]:
    """The given labels of some images that are worth a second look, at most ``top``."""
    suspicion = doubt.suspicion[rows]
    found = []
    for place, column in _first(suspicion, np.isfinite(suspicion), top):
        row = int(rows[place])
        given, wrong = float(federation.given[row, column]), float(doubt.wrong[row, column])
        suggestion = int(1 - given if wrong > 0.5 else given)
        predicted = float(federation.probability[row, column])
        worth = float(second_look(suspicion[place, column]))
        found.append(Suspect(row, column, given, predicted, wrong, suggestion, worth))
    return found


def blanks(federation: Federation, doubt: Doubt, rows: np.ndarray, *, top: int) -> list[Suspect]:
    """The blank cells of some images whose class is most probably there, at most ``top``."""
    present = doubt.present[rows]
    places = _first(present, np.isfinite(present) & np.isnan(federation.given[rows]), top)
    found = []
    for place, column in places:
        row, likely = int(rows[place]), float(present[place, column])
        predicted = float(federation.probability[row, column])
        found.append(Suspect(row, column, np.nan, predicted, np.nan, int(likely > 0.5), likely))
    return found


def _first(score: np.ndarray, chosen: np.ndarray, top: int) -> list[tuple[int, int]]:
    """Row and column of the highest scores among the chosen cells."""
    cells = np.argwhere(chosen)
    order = np.argsort(-score[chosen], kind="stable")[:top]
    return [(int(row), int(column)) for row, column in cells[order]]
