"""Class prototypes in feature space (FedMLP, RoFL)."""

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
    means: np.ndarray = sums / np.maximum(members.sum(axis=1), 1)[..., None]
    return means.astype(np.float32)


def directions(vectors: np.ndarray) -> np.ndarray:
    """(..., D) float64 vectors of length 1; zeros stay."""
    vectors = vectors.astype(np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units: np.ndarray = vectors / np.maximum(length, 1e-12)
    return units
