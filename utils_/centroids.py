"""RoFL's class centroids: two a class, of absence and of presence, moved by batches and pooled.

A centroid of zeros is unknown: it has no direction, attracts nobody and never judges a label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def judge(features: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Which centroid of each class lies nearer by cosine.

    Args:
        features: (B, D).
        centroids: (2, C, D).

    Returns:
        (B, C) bool, whether presence is nearer; (C,) bool, whether both centroids are known.
    """
    directions = F.normalize(centroids, dim=-1)
    absent, present = (F.normalize(features, dim=-1) @ side.T for side in directions)
    return present > absent, centroids.any(dim=-1).all(dim=0)


def batch_means(features: Tensor, present: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Mean features of the absent and the present cells of a batch.

    Args:
        features: (B, D).
        present: (B, C) bool, the labels.
        cells: (B, C) bool, those that count.

    Returns:
        (2, C, D) means, zeros where there is no cell; (2, C) bool, where there is one.
    """
    members = torch.stack([cells & ~present, cells & present]).to(features.dtype)
    count = members.sum(dim=1)
    means = members.transpose(1, 2) @ features / count.clamp_min(1)[..., None]
    return means, count > 0


def moved(centroids: Tensor, means: Tensor, found: Tensor) -> Tensor:
    """Centroids drawn towards a batch's means by the square of their cosine similarity.

    One that is unknown so far becomes the mean; one without a mean stays.

    Args:
        centroids: (2, C, D).
        means: (2, C, D).
        found: (2, C) bool, which means there are.
    """
    share = F.cosine_similarity(centroids, means, dim=-1) ** 2
    share = torch.where(centroids.any(dim=-1), share, 1.0)[..., None]
    return torch.where(found[..., None], (1 - share) * centroids + share * means, centroids)


def pooled(
    last: np.ndarray | None, sites: Sequence[np.ndarray], found: Sequence[np.ndarray]
) -> np.ndarray:
    """Mean of the sites' centroids, weighted by their cosine to the last pooled one.

    A negative cosine counts as 0. Where nothing is left, or there is no last one, all sites that
    found the class count alike; where none did, the last one stays. Vectors that are not finite
    count as not found.

    Args:
        last: (2, C, D) or None.
        sites: of each site, (2, C, D).
        found: of each site, (2, C) bool, where it has seen such cells.
    """
    own, seen = np.stack(sites).astype(np.float64), np.stack(found) > 0
    seen &= np.isfinite(own).all(axis=-1)
    own = np.where(seen[..., None], own, 0)
    last = np.zeros(own.shape[1:]) if last is None else last.astype(np.float64)
    norms = np.linalg.norm(own, axis=-1) * np.linalg.norm(last, axis=-1)
    cosine = (own * last).sum(axis=-1) / np.maximum(norms, 1e-12)
    weight = np.where(seen, cosine.clip(0), 0)
    weight = np.where(weight.sum(axis=0) > 1e-6, weight, seen)
    total = weight.sum(axis=0)[..., None]
    mean = (weight[..., None] * own).sum(axis=0) / np.where(total > 0, total, 1)
    return np.where(total > 0, mean, last).astype(np.float32)
