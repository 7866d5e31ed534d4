"""FedNML's label refresh on one site: doubt annotations, correct them, fill missing classes."""

from __future__ import annotations

import numpy as np

from utils_.gmm import split_noisy
from utils_.labels import LabelState
from utils_.pseudo_labels import agreement_and_loss, class_agreement

LEAK_FADES = 0.8  # what is left of a leaked label after a refresh, as published

Memory = dict[str, np.ndarray]


def doubt_all(
    labels: LabelState, memory: Memory, predicted: np.ndarray, **mixture: float
) -> np.ndarray:
    """As published: (N,) posteriors of noise, from agreement and loss over annotated cells.

    The mixture then mostly finds the images that have a positive label at all, since positives
    are rarer and harder than negatives.

    Args:
        mixture: ``seed``, ``min_images`` and ``min_gap`` of :func:`utils_.gmm.split_noisy`.
    """
    evidence = agreement_and_loss(predicted, labels.target, labels.annotated)
    memory["noise_score"] = split_noisy(*evidence, **mixture).probability
    return memory["noise_score"]


def doubt_positives(
    labels: LabelState, memory: Memory, predicted: np.ndarray, **mixture: float
) -> np.ndarray:
    """(N,) posteriors of noise, for images with a positive label; the others count as clean.

    Agreement is that of the positives, relative to the class. Labels are those observed, and
    evidence is the mean of all refreshes so far, because a wrong label learned by heart late
    still shows its early loss.

    Args:
        mixture: as for :func:`doubt_all`.
    """
    given = np.nan_to_num(labels.observed)
    positives = labels.annotated & (given == 1)
    loss = agreement_and_loss(predicted, given, labels.annotated)[1]
    evidence = _mean_so_far(memory, np.stack([class_agreement(predicted, positives), loss]))
    judged = positives.any(axis=1)
    noise = np.zeros(len(given), np.float32)
    noise[judged] = split_noisy(*evidence[:, judged], **mixture).probability
    memory["noise_score"] = noise
    return noise


def _mean_so_far(memory: Memory, evidence: np.ndarray) -> np.ndarray:
    count = memory.get("refreshes", np.zeros(1))
    memory["evidence"] = (memory.get("evidence", 0) * count + evidence) / (count + 1)
    memory["refreshes"] = count + 1
    return memory["evidence"]


def correct_all(labels: LabelState, snapped: np.ndarray, *, noisy: np.ndarray) -> None:
    """As published: annotations of (N,) noisy images become the (N, C) pseudo-labels, for good."""
    labels.correct(labels.annotated & noisy[:, None], snapped)


def correct_confident(
    labels: LabelState, snapped: np.ndarray, *, noise: np.ndarray, trust: float
) -> None:
    """Correct what is sure, distrust what is not.

    In images that are rather noisy than clean, a cell whose pseudo-label is hard takes it. Every
    other annotation keeps its value and loses weight with the (N,) posterior ``noise``, by up to
    ``trust``. Each refresh starts from the labels as observed.
    """
    given = np.nan_to_num(labels.observed)
    sure = (noise > 0.5)[:, None] & ((snapped == 0) | (snapped == 1))
    weight = np.where(sure, 1, 1 - trust * noise[:, None])
    labels.correct(labels.annotated, np.where(sure, snapped, given), weight=weight)


def fill_missing(
    labels: LabelState,
    snapped: np.ndarray,
    *,
    keep: float,
    weight: float,
    start: np.ndarray | None = None,
) -> None:
    """Pull missing cells towards the pseudo-labels, from ``start`` (their first value; (N, C))."""
    first = snapped if start is None else np.where(np.isnan(start), snapped, start)
    old = np.where(labels.weight > 0, labels.target, first)
    labels.correct(~labels.annotated, keep * old + (1 - keep) * snapped, weight=weight)
