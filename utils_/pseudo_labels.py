"""From predictions to labels: hybrid pseudo-labels, agreement with labels, shared priors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from utils_.labels import LabelState


def snap(probability: np.ndarray, confident: float, prior: np.ndarray | None = None) -> np.ndarray:
    """Hybrid pseudo-labels: hard where the prediction is confident, soft elsewhere.

    A probability above ``confident`` becomes 1. Below 1 - ``confident`` it becomes 0; with a
    prior, only where its odds are that small compared with the prior's odds, because nearly
    every prediction of a rare class is small, and calling them all 0 would teach its absence.

    Args:
        probability: (N, C) in [0, 1].
        confident: in [0.5, 1].
        prior: (C,) share of positives, NaN where unknown; or None.
    """
    absent = 1 - probability if prior is None else absence(probability, capped_prior(prior))
    hard = np.where(probability > confident, 1.0, probability)
    return np.where(absent > confident, 0.0, hard).astype(np.float32)


def capped_prior(prior: np.ndarray) -> np.ndarray:
    """(C,) float32 share of positives, at most 0.5, and 0.5 where unknown; see :func:`absence`."""
    return np.nan_to_num(prior, nan=0.5).clip(1e-4, 0.5).astype(np.float32)


def absence(probability: np.ndarray | Tensor, share: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """How sure a prediction is of a class's absence, as if half of the images had the class.

    Published thresholds are for classes of equal size or for weighted losses. Held against plain
    predictions, every image would surely lack a rare class, and pseudo-labels would teach just
    that. A frequent class is no reason to call a likely positive absent: hence at most 0.5.

    Args:
        probability: (N, C) in [0, 1].
        share: (C,) from :func:`capped_prior`; 0.5 gives 1 - ``probability``.
    """
    absent, present = (1 - probability) * share, probability * (1 - share)
    return absent / (absent + present)


def agreement_and_loss(
    probability: np.ndarray, target: np.ndarray, cells: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean agreement and mean cross-entropy of each image over the given cells.

    Args:
        probability: (N, C) in [0, 1].
        target: (N, C) in [0, 1]; read at ``cells`` only.
        cells: (N, C) bool.

    Returns:
        Two (N,) float64 arrays; an image without a cell gets 0 and 0.
    """
    probability = probability.clip(1e-7, 1 - 1e-7).astype(np.float64)
    target = np.where(cells, target, 0)
    agreement = target * probability + (1 - target) * (1 - probability)
    loss = -(target * np.log(probability) + (1 - target) * np.log1p(-probability))
    count = np.maximum(cells.sum(axis=1), 1)
    means = (np.where(cells, value, 0).sum(axis=1) / count for value in (agreement, loss))
    return tuple(means)


def class_agreement(probability: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """How much more each image looks like its positive labels than the site's images do on average.

    Log odds standardised within each class, mean over the image's positive cells: a rare class,
    whose predictions are all small, is judged by the same measure as a frequent one.

    Args:
        probability: (N, C) in [0, 1].
        positives: (N, C) bool, the cells labelled 1.

    Returns:
        (N,) float64; 0 for an image without a positive label.
    """
    probability = probability.astype(np.float64).clip(1e-6, 1 - 1e-6)
    odds = np.log(probability) - np.log1p(-probability)
    standardised = (odds - odds.mean(axis=0)) / odds.std(axis=0).clip(1e-6)
    count = np.maximum(positives.sum(axis=1), 1)
    return np.where(positives, standardised, 0).sum(axis=1) / count


def class_counts(labels: LabelState) -> dict[str, np.ndarray]:
    """Positives and annotated cells of each class, (C,) float32, from annotated cells alone."""
    positives = np.where(labels.annotated, labels.target, 0).sum(axis=0)
    annotated = labels.annotated.sum(axis=0)
    return {"positives": positives.astype(np.float32), "annotated": annotated.astype(np.float32)}


def log_prior_odds(positives: np.ndarray, annotated: np.ndarray) -> np.ndarray:
    """(C,) log odds of the share of positives, half a cell added to either count.

    0 for a class without annotated cells; the binary form of a log prior.
    """
    return np.log((positives + 0.5) / (annotated - positives + 0.5))


def log_odds(labels: LabelState, shared: np.ndarray | None = None) -> Tensor:
    """(C,) log prior odds of a site, for logit adjustment.

    Args:
        shared: (C,) share of positives at all sites, for the classes that this one does not
            annotate; NaN, where nobody knows, gives 0. None gives 0 for all of them.
    """
    own = torch.from_numpy(log_prior_odds(**class_counts(labels)))
    if shared is None:
        return own
    others = torch.logit(torch.from_numpy(shared), eps=1e-3).nan_to_num()
    return torch.where(torch.from_numpy(labels.annotated.any(axis=0)), own, others)


def with_odds(probability: np.ndarray, odds: Tensor | None) -> Tensor:
    """(N, C) predictions of a model whose logits were trained shifted by ``odds``, (C,) or none."""
    predicted = torch.from_numpy(probability)
    return predicted if odds is None else (torch.logit(predicted, eps=1e-6) + odds).sigmoid()


def prior(positives: np.ndarray, annotated: np.ndarray) -> np.ndarray:
    """(C,) share of positives; NaN for a class without annotated cells."""
    share = np.where(annotated > 0, positives, np.nan) / np.maximum(annotated, 1)
    return share.astype(np.float32)


def likeliest(probability: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Hard labels, present in the images of highest prediction, a ``share`` of them per class.

    Args:
        probability: (N, C).
        share: (C,) in [0, 1]; NaN, where unknown, counts as 0.

    Returns:
        (N, C) float32 in {0, 1}; equal predictions in the order of the images.
    """
    count = np.round(np.nan_to_num(share) * len(probability))
    rank = (-probability).argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    return (rank < count).astype(np.float32)
