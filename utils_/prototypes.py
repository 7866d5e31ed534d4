"""Class prototypes in feature space, and labels tagged by their distance to them (FedMLP)."""

from __future__ import annotations

import numpy as np


def class_prototypes(features: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Mean features of the absent (0) and the present (1) cells of each class.

    Args:
        features: (N, D).
        observed: (N, C) of 0 and 1, NaN where not annotated.

    Returns:
        (2, C, D) float32; zeros, which have no direction, where a class has no such cell.
    """
    members = np.stack([observed == 0, observed == 1]).astype(np.float64)
    sums = members.transpose(0, 2, 1) @ features.astype(np.float64)
    return (sums / np.maximum(members.sum(axis=1), 1)[..., None]).astype(np.float32)


def pool_prototypes(
    prototypes: np.ndarray, samples: np.ndarray, last: np.ndarray | None
) -> np.ndarray:
    """Mean of the sites' prototypes, weighted by images, over the sites that have one.

    Args:
        prototypes: (K, 2, C, D), zeros where a site has none.
        samples: (K,) images of each site.
        last: (2, C, D), kept where no site has one; None stands for zeros.
    """
    known = prototypes.any(axis=-1, keepdims=True)
    weight = samples.reshape(-1, 1, 1, 1) * known.astype(np.float64)
    total = weight.sum(axis=0)
    mean = (weight * prototypes).sum(axis=0) / np.maximum(total, 1)
    kept = np.zeros_like(mean) if last is None else last
    return np.where(total > 0, mean, kept).astype(np.float32)


def similarity_margin(features: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """Cosine to the prototype of absence less that to the prototype of presence.

    Args:
        features: (N, D).
        prototypes: (2, C, D), zeros where unknown.

    Returns:
        (N, C) float64 in [-2, 2]; NaN for a class that lacks one of its prototypes.
    """
    absent, present = _directions(features) @ _directions(prototypes).transpose(0, 2, 1)
    known = prototypes.any(axis=-1).all(axis=0)
    return np.where(known, absent - present, np.nan)


def tag(
    margin: np.ndarray, candidates: np.ndarray, shares: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Tag the cells farthest on either side: large margins as absent, small ones as present.

    Args:
        margin: (N, C); cells of NaN are never tagged.
        candidates: (N, C) bool, the cells that may be tagged.
        shares: of the absent and of the present group of each class, two (C,) in [0, 1].
            At least one cell of a group is tagged, so small sites do not stand still.

    Returns:
        (N, C) bool, the tagged cells; (N, C) float32, their values.
    """
    cells, values = np.zeros(margin.shape, bool), np.zeros(margin.shape, np.float32)
    for c in range(margin.shape[1]):
        sides = (margin[:, c] >= 0, margin[:, c] < 0)
        for value, side in enumerate(sides):
            group = np.flatnonzero(candidates[:, c] & side)
            count = max(1, int(shares[value][c] * len(group) + 1e-6))
            order = np.argsort(-np.abs(margin[group, c]), kind="stable")
            cells[group[order[:count]], c] = True
            values[group[order[:count]], c] = value
    return cells, values


def _directions(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
