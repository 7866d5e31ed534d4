"""How often a class is present: shares of positives, their log odds, factors that balance them.

Everything here counts annotated cells alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from utils_.labels import LabelState

CLASS_WEIGHTS = ("none", "inverse", "effective")
OVERLAP = 0.999  # beta of the effective number: a class never counts for more than 1 / (1 - beta)


def class_counts(labels: LabelState) -> dict[str, np.ndarray]:
    """Positives and annotated cells of each class, (C,) float32, as labelled now."""
    positives = np.where(labels.annotated, labels.target, 0).sum(axis=0)
    annotated = labels.annotated.sum(axis=0)
    return {"positives": positives.astype(np.float32), "annotated": annotated.astype(np.float32)}


def class_prior(positives: np.ndarray, annotated: np.ndarray) -> np.ndarray:
    """(C,) float32 share of positives; NaN for a class without annotated cells."""
    share: np.ndarray = np.where(annotated > 0, positives, np.nan) / np.maximum(annotated, 1)
    return share.astype(np.float32)


def capped_prior(prior: np.ndarray) -> np.ndarray:
    """(C,) float32 share of positives, at most 0.5, and 0.5 where unknown.

    See :func:`utils_.pseudo_labels.absence`.
    """
    share: np.ndarray = np.nan_to_num(prior, nan=0.5)
    return share.clip(1e-4, 0.5).astype(np.float32)


def log_prior_odds(positives: np.ndarray, annotated: np.ndarray) -> np.ndarray:
    """(C,) log odds of the share of positives, the binary form of a log prior.

    Half a cell is added to either count, so a class without annotated cells has 0.
    """
    odds: np.ndarray = np.log((positives + 0.5) / (annotated - positives + 0.5))
    return odds


def log_odds(labels: LabelState, shared: np.ndarray | None = None) -> Tensor:
    """(C,) log prior odds of a site, for logit adjustment (Menon et al., ICLR 2021).

    Args:
        labels: those of the site.
        shared: (C,) share of positives at all sites, read for the classes that this one does not
            annotate. NaN, where nobody knows it, gives 0; None gives 0 for all of them.
    """
    own = torch.from_numpy(log_prior_odds(**class_counts(labels)))
    if shared is None:
        return own
    others = torch.logit(torch.from_numpy(shared), eps=1e-3).nan_to_num()
    return torch.where(torch.from_numpy(labels.annotated_classes), own, others)


def with_odds(probability: np.ndarray, odds: Tensor | None) -> Tensor:
    """(N, C) predictions of a model trained with logits shifted by ``odds``, (C,); None: by 0."""
    predicted = torch.from_numpy(probability)
    return predicted if odds is None else (torch.logit(predicted, eps=1e-6) + odds).sigmoid()


def balance_factors(counts: np.ndarray, kind: str) -> np.ndarray:
    """Factors of negative and of positive cells, whose mean over a class's annotated cells is 1.

    ``inverse`` gives both sides of a class the same sum. ``effective`` counts the effective number
    of each side instead, (1 - beta^n) / (1 - beta), which grows slower than n because images
    resemble each other (Cui et al., CVPR 2019; here each class is a problem of two).

    Args:
        counts: (2, C) positives and annotated cells of each class, over all sites.
        kind: ``inverse`` or ``effective``.

    Returns:
        (2, C) float32: row 0 for negatives, row 1 for positives. Both are 1 for a class that
        lacks a side, of which there is nothing to balance.
    """
    positives, annotated = counts.astype(np.float64)
    sides = np.stack([annotated - positives, positives])
    sizes = sides if kind == "inverse" else (1 - OVERLAP**sides) / (1 - OVERLAP)
    raw = 1 / np.maximum(sizes, 1e-9)
    scale = annotated / np.maximum((sides * raw).sum(axis=0), 1e-9)
    both = (sides > 0).all(axis=0)
    return np.where(both, raw * scale, 1).astype(np.float32)
