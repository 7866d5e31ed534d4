"""FedCorr's choices: which images are relabelled, and with what; which sites are noisy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from utils_.labels import LabelState
from utils_.pseudo_labels import agreement_and_loss, prior, snap
from utils_.two_groups import upper_group

Memory = dict[str, np.ndarray]


def doubted_images(
    predicted: np.ndarray, labels: LabelState, *, seed: int
) -> tuple[np.ndarray, float]:
    """Images told by the mean cross-entropy of their labels in use, over annotated cells.

    Args:
        predicted: (n, C) probabilities.
        seed: of the mixture.

    Returns:
        (2, n) float32, loss and posterior of the upper group, for an image without annotated cell
        NaN and 0; and the share of the others that lies in that group, 0 where there are none.
    """
    loss = agreement_and_loss(predicted, labels.target, labels.annotated)[1]
    known = labels.annotated.any(axis=1)
    loss = np.where(known, loss, np.nan)
    posterior = upper_group(loss, seed=seed)
    share = np.count_nonzero(posterior > 0.5) / max(np.count_nonzero(known), 1)
    return np.stack([loss, posterior]).astype(np.float32), share


def largest_losses(loss: np.ndarray, share: float) -> np.ndarray:
    """(n,) bool: the images of largest loss, a ``share`` of those whose loss is known."""
    count = int(share * np.isfinite(loss).sum() + 1e-6)
    order = np.argsort(np.where(np.isfinite(loss), -loss, np.inf), kind="stable")
    chosen = np.zeros(len(loss), bool)
    chosen[order[:count]] = True
    return chosen


def relabel(
    labels: LabelState,
    images: np.ndarray,
    predicted: np.ndarray,
    *,
    confidence: float,
    balanced: bool,
) -> None:
    """Replace the annotations of the given images where a prediction is sure, cell by cell.

    Args:
        images: (n,) bool.
        predicted: (n, C) probabilities.
        confidence: a prediction above it is sure of a finding, see
            :func:`utils_.pseudo_labels.snap`.
        balanced: whether it is sure of an absence relative to the class's share of positives among
            the site's annotations; otherwise below 1 - ``confidence``.
    """
    share = prior(np.nansum(labels.observed, axis=0), labels.annotated.sum(axis=0))
    hard = snap(predicted, confidence, share if balanced else None)
    labels.correct(images[:, None] & labels.annotated & ((hard == 0) | (hard == 1)), hard)


def remember_scores(memory: Memory, reports: Iterable[Any], *, clients: int) -> None:
    """Add the sites' ``lid`` to ``memory["lid"]``, (2, K) sums and counts; keep ``noise_level``."""
    sums = memory.setdefault("lid", np.zeros((2, clients)))
    levels = memory.setdefault("told_level", np.zeros(clients, np.float32))
    for report in reports:
        if np.isfinite(report.extras["lid"]):
            sums[:, report.client] += report.extras["lid"], 1
        levels[report.client] = report.extras["noise_level"]


def noise_levels(memory: Memory, *, seed: int) -> np.ndarray:
    """(K,) float32: what a site told of its noise, if its mean LID lies in the upper group, else 0.

    The mean over iterations divides the sites as their sum does, but for a site of which an
    iteration is not known. One whose dimension is never defined counts as clean.
    """
    sums, counts = memory["lid"]
    mean = np.where(counts > 0, sums, np.nan) / np.maximum(counts, 1)
    noisy = upper_group(mean, seed=seed) > 0.5
    return np.where(noisy, memory["told_level"], 0).astype(np.float32)
