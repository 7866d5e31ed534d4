"""Noise that acts on cells: labels that move to another class, and labels that flip."""

from __future__ import annotations

import numpy as np

from utils_.noise.base import Rate, TrainingLabels, plain_name

# Findings that are taken for each other. We chose them from differential diagnosis; they are not
# measured.
CONFUSABLE = (
    ("MEL", "NV"), ("AK", "SCC"),  # dermoscopy
    ("BRVO", "CRVO"), ("ARMD", "DN"), ("DR", "HTR"), ("CSR", "CNV"), ("TSLN", "MYA"),  # fundus
    ("RS", "CRS"), ("AMD", "drusens"), ("diabetic_retinopathy", "hypertensive_retinopathy"),
    ("Mass", "Nodule"), ("Consolidation", "Pneumonia"), ("Infiltration", "Atelectasis"),  # chest
    ("Effusion", "Pleural_Thickening"), ("Emphysema", "Pneumothorax"),
)  # fmt: skip


def symmetric(training: TrainingLabels, rate: Rate) -> np.ndarray:
    """Move each positive label, with probability ``rate``, to a class that is negative there.

    See docs/methods.md 14.1.

    - On one-hot rows this is the textbook symmetric noise whose new class is uniform over the C - 1
      others, so the rate is the share of wrong images.
    - On multi-label rows every positive moves on its own, and no two to the same class. The number
      of positives stays. The share of wrong images is larger than the rate: 1 - (1 - rate)^p for p
      positives.
    - Rows without a positive stay as they are. So do positives for which no negative is left.

    Args:
        training: the rows to corrupt.
        rate: share of the positive labels, in [0, 1]; one number, or one for each row's client.

    Returns:
        (n, C) float32 of 0 and 1 where labels are known.
    """
    leave, arrive = training.uniform("symmetric/leave"), training.uniform("symmetric/arrive")
    return move(training, rate, leave=leave, arrive=arrive)


def move(
    training: TrainingLabels, rate: Rate, *, leave: np.ndarray, arrive: np.ndarray
) -> np.ndarray:
    """Move positives of small ``leave`` to negatives of small ``arrive`` in the same row.

    The j-th positive to leave is matched with the j-th negative, whatever the rate, so a higher
    rate only adds.

    Args:
        training: the rows to corrupt.
        rate: positives with ``leave`` below it move.
        leave: (n, C) in [0, 1), read at positives.
        arrive: (n, C) finite, read at negatives.

    Returns:
        (n, C) float32 of 0 and 1 where labels are known.
    """
    positive, negative = training.positive, training.labels == 0
    width = int(positive.sum(axis=1).max())
    source = np.argsort(np.where(positive, leave, 2), axis=1)[:, :width]
    target = np.argsort(np.where(negative, arrive, np.inf), axis=1)[:, :width]
    pairs = np.minimum(positive.sum(axis=1), negative.sum(axis=1))
    moved = np.arange(width) < pairs[:, None]
    moved &= np.take_along_axis(leave, source, axis=1) < rate
    noisy, row = training.labels.copy(), np.nonzero(moved)[0]
    noisy[row, source[moved]] = 0
    noisy[row, target[moved]] = 1
    return noisy


def pair(training: TrainingLabels, rate: Rate) -> np.ndarray:
    """Move each positive label, with probability ``rate``, to the one class it is confused with.

    See docs/methods.md 14.2.

    - The partner of a class is named in ``CONFUSABLE`` where the dataset has both. The other
      classes go to the next of them in the order of the file, the last to the first: this is the
      textbook's pair noise.
    - On one-hot rows the rate is the share of wrong images.
    - A positive stays where its partner is positive too or has no label, and where there is one
      class only.

    Args:
        training: the rows to corrupt.
        rate: share of the positives that can move, in [0, 1]; a number, or one for each row.

    Returns:
        (n, C) float32 of 0 and 1 where labels are known.
    """
    count = training.labels.shape[1]
    partner = partners(training.classes or tuple(f"class {c}" for c in range(count)))
    free = training.labels[:, partner] == 0
    row, source = np.nonzero(training.positive & free & (training.uniform("pair") < rate))
    noisy = training.labels.copy()
    noisy[row, source] = 0
    noisy[row, partner[source]] = 1
    return noisy


def partners(classes: tuple[str, ...]) -> np.ndarray:
    """(C,) int: the class that each is taken for. No two have the same: it is a permutation."""
    place = {plain_name(name): c for c, name in enumerate(classes)}
    partner = np.full(len(classes), -1)
    for names in CONFUSABLE:
        first, second = (place.get(plain_name(name)) for name in names)
        if first is not None and second is not None:
            partner[first], partner[second] = second, first
    others = np.flatnonzero(partner < 0)
    partner[others] = np.roll(others, -1)
    return partner


def flip(
    training: TrainingLabels, rate: Rate, *, false_positive: float | np.ndarray | None = None
) -> np.ndarray:
    """Flip cells independently: positives are omitted, negatives reported as positive.

    - Each positive is omitted with probability ``rate``.
    - Each negative of class c turns positive with probability rate * min(1, positives_c /
      negatives_c), counted over the training set. As many labels come as go, so the prevalence of a
      class stays what it was.
    - With the plain rate for negatives the false positives would outnumber the true ones many times
      over, since most classes are rare.
    - Above a prevalence of one half negatives flip with the rate too. So no cell flips with more
      than the rate, and prevalence falls.

    Args:
        training: the rows to corrupt.
        rate: probability that a positive is omitted (epsilon_10), in [0, 1]; a number, or (n, 1).
        false_positive: probability that a negative turns positive (epsilon_01), a number or (C,),
            in [0, 1], in place of the rule above.

    Returns:
        (n, C) float32 of 0 and 1 where labels are known.
    """
    if false_positive is None:
        false_positive = rate * balance(training)
    return flip_cells(training, omit=rate, add=false_positive)


def omission(training: TrainingLabels, rate: Rate) -> np.ndarray:
    """Omit each positive with probability ``rate`` and add none: the omissions of :func:`flip`."""
    return flip_cells(training, omit=rate, add=0)


def commission(training: TrainingLabels, rate: Rate) -> np.ndarray:
    """Report findings that are not there and omit none: the false positives of :func:`flip`.

    A class gets about rate times as many false positives as it has positives. A class without
    positives gets none.
    """
    return flip_cells(training, omit=0, add=rate * balance(training))


def balance(training: TrainingLabels) -> np.ndarray:
    """(C,) positives a negative, at most 1: the chance that adds as many labels as are omitted."""
    positives = training.positive.sum(axis=0)
    negatives = (training.labels == 0).sum(axis=0)
    chance: np.ndarray = np.minimum(1, positives / np.maximum(negatives, 1))
    return chance


def flip_cells(
    training: TrainingLabels, *, omit: Rate, add: Rate, stream: str = "flip"
) -> np.ndarray:
    """Flip positives with chance ``omit``, negatives with ``add``; both broadcast to (n, C)."""
    flipped = training.uniform(stream) < np.where(training.positive, omit, add)
    return np.where(flipped, 1 - training.labels, training.labels)
