"""Are two rows of numbers different? Paired intervals, Holm's correction, average ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Paired:
    """What :func:`paired_difference` finds.

    Attributes:
        mean: mean of the differences.
        low, high: ends of the interval of that mean; NaN for a single pair.
        p: of a two-sided paired t test; NaN for a single pair.
        wins: pairs in which the first number is greater.
        pairs: how many there are.
    """

    mean: float
    low: float
    high: float
    p: float
    wins: int
    pairs: int


def paired_difference(first: np.ndarray, second: np.ndarray, *, level: float = 0.95) -> Paired:
    """Compare numbers that belong together in pairs, such as scores of two methods on each seed.

    Args:
        first: (n,), n at least 1.
        second: (n,).
        level: of the interval, by Student's t with n - 1 degrees of freedom.
    """
    from scipy import stats

    apart = np.asarray(first, float) - np.asarray(second, float)
    n, mean, wins = len(apart), float(apart.mean()), int((apart > 0).sum())
    if n < 2:
        return Paired(mean, np.nan, np.nan, np.nan, wins, n)
    error = float(apart.std(ddof=1) / np.sqrt(n))
    if error == 0:  # the test statistic is 0/0 or without bound
        return Paired(mean, mean, mean, float(mean == 0), wins, n)
    reach = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return Paired(mean, mean - reach, mean + reach, p, wins, n)


def holm(values: Sequence[float]) -> np.ndarray:
    """Adjust p-values for their number (Holm, 1979); NaN stays NaN and does not count.

    Returns:
        (m,) float64, each at least as large as what was given and at most 1.
    """
    p = np.asarray(values, float)
    adjusted = np.full(len(p), np.nan)
    told = np.flatnonzero(~np.isnan(p))
    order = told[np.argsort(p[told], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted


def average_ranks(scores: np.ndarray) -> np.ndarray:
    """Mean rank of each column over the rows: 1 is the highest score, equals share their ranks.

    Args:
        scores: (rows, columns) without NaN, such as one row a setting and seed, one column a
            method.
    """
    from scipy import stats

    return np.asarray(stats.rankdata(-scores, axis=1).mean(axis=0))
