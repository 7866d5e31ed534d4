"""Local intrinsic dimensionality of a cloud of vectors, from the distances of near neighbours."""

from __future__ import annotations

import numpy as np

CHUNK = 2**22  # distances held at a time
LEAST = 1e-6  # sums of logarithms below it say that all neighbours are equally far


def local_dimensionality(vectors: np.ndarray, *, neighbours: int) -> np.ndarray:
    """-k / sum_j log(d_j / d_k) over the k nearest others (Amsaleg et al., KDD 2015).

    Distances of 0 tell nothing of the growth of a ball, and their logarithm is infinite: copies of
    a vector are no neighbours of it. Where fewer than ``neighbours`` are left, all of them count.

    Args:
        vectors: (n, D).
        neighbours: k, at least 2.

    Returns:
        (n,) float64, above 0; NaN where fewer than two neighbours are left or all are equally far.
    """
    from scipy.spatial.distance import cdist

    vectors = np.asarray(vectors, np.float64)
    step = max(1, CHUNK // max(len(vectors), 1))
    starts = range(0, len(vectors), step)
    parts = [_from_distances(cdist(vectors[s : s + step], vectors), neighbours) for s in starts]
    return np.concatenate([np.zeros(0), *parts])


def _from_distances(distances: np.ndarray, neighbours: int) -> np.ndarray:
    """(rows,) estimates from (rows, n) distances; each row's own 0 is dropped with the copies'."""
    k = min(neighbours, distances.shape[1])
    ranked = np.where(distances > 0, distances, np.inf)
    nearest = np.sort(np.partition(ranked, k - 1, axis=1)[:, :k], axis=1)
    found = np.isfinite(nearest)
    count = found.sum(axis=1)
    farthest = nearest[np.arange(len(nearest)), np.maximum(count - 1, 0)]
    ratios = np.where(found, nearest, 1) / np.where(count > 0, farthest, 1)[:, None]
    total = -np.where(found, np.log(ratios), 0).sum(axis=1)
    defined = (count >= 2) & (total > LEAST)
    return np.where(defined, count / np.where(defined, total, 1), np.nan)


def mean_dimensionality(vectors: np.ndarray, *, neighbours: int) -> float:
    """Mean of :func:`local_dimensionality` over the vectors for which it is defined, else NaN."""
    values = local_dimensionality(vectors, neighbours=neighbours)
    known = ~np.isnan(values)
    return float(values[known].mean()) if known.any() else float("nan")
