"""FedNML's label refresh on one site: doubt annotations, correct them, fill missing classes."""

from __future__ import annotations

import numpy as np

from utils_.gmm import NoiseSplit, split_noisy
from utils_.labels import LabelState
from utils_.pseudo_labels import agreement_and_loss

Memory = dict[str, np.ndarray]


def faded(memory: Memory, predicted: np.ndarray, *, keep: float) -> np.ndarray:
    """Running mean of (N, C) predictions, kept in ``memory`` (Laine and Aila, ICLR 2017)."""
    if keep == 0:
        return predicted
    past = memory.get("ensemble", predicted)
    memory["ensemble"] = keep * past + (1 - keep) * predicted
    return memory["ensemble"]


def doubt_annotations(
    labels: LabelState, memory: Memory, predicted: np.ndarray, *, published: bool, **mixture: float
) -> NoiseSplit:
    """Tell noisy images from clean ones by agreement and loss on annotated cells.

    Published: of the corrected labels, at this refresh. Ours: of the labels as observed, mean of
    all refreshes so far, because a wrong label learned by heart late still shows its early loss.

    Args:
        mixture: ``seed``, ``min_images`` and ``min_gap`` of :func:`utils_.gmm.split_noisy`.
    """
    given = labels.target if published else np.nan_to_num(labels.observed)
    evidence = np.stack(agreement_and_loss(predicted, given, labels.annotated))
    if not published:
        count = memory.get("refreshes", np.zeros(1))
        evidence = (memory.get("evidence", 0) * count + evidence) / (count + 1)
        memory["evidence"], memory["refreshes"] = evidence, count + 1
    split = split_noisy(*evidence, **mixture)
    memory["noise_score"] = split.probability
    return split


def correct(labels: LabelState, snapped: np.ndarray, *, doubt: np.ndarray, published: bool) -> None:
    """Mix annotations with the (N, C) pseudo-labels, by (N,) weights ``doubt`` in [0, 1].

    Published: corrections last. Ours: every refresh starts from the labels as observed.
    """
    given = labels.target if published else np.nan_to_num(labels.observed)
    mixed = given + doubt[:, None] * (snapped - given)
    labels.correct(labels.annotated, mixed.clip(0, 1))


def fill_missing(
    labels: LabelState, snapped: np.ndarray, *, keep: float, start: np.ndarray | None = None
) -> None:
    """Pull missing cells towards the pseudo-labels, from ``start`` (their first value; (N, C))."""
    first = snapped if start is None else np.where(np.isnan(start), snapped, start)
    old = np.where(labels.weight > 0, labels.target, first)
    labels.correct(~labels.annotated, keep * old + (1 - keep) * snapped)
