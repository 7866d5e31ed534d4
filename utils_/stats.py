"""How sure is a number, and are two different: over seeds, over test images, over settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils_.rng import derive

LEVEL = 0.95
LEAST_SEEDS = 3  # of fewer a deviation says next to nothing
FEW_SEEDS = "fewer than three seeds: no interval"
DRAWS = 1000
CELLS_AT_ONCE = 2_000_000  # of all draws together, so that large test parts fit in memory
DRAW_SEED = 1  # one for all reports, so that the same runs give the same intervals


@dataclass(frozen=True)
class Interval:
    """A mean and how far it can be trusted.

    Attributes:
        mean: NaN of nothing.
        low, high: ends of the interval; NaN where there is none.
        count: of how many numbers.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def warning(self) -> str:
        """Text that stands in place of the interval; blank where there is one."""
        return FEW_SEEDS if np.isnan(self.low) else ""


def t_interval(values: Sequence[float] | np.ndarray, *, level: float = LEVEL) -> Interval:
    """Interval of a mean by Student's t; none of fewer than three numbers, or of a NaN.

    Args:
        values: (n,), such as the scores of one method on each seed.
        level: that the interval covers the mean.
    """
    from scipy import stats

    own = np.asarray(values, float)
    mean = float(own.mean()) if len(own) else np.nan
    if len(own) < LEAST_SEEDS or np.isnan(mean):
        return Interval(mean, np.nan, np.nan, len(own))
    reach = float(stats.t.ppf((1 + level) / 2, len(own) - 1) * own.std(ddof=1) / np.sqrt(len(own)))
    return Interval(mean, mean - reach, mean + reach, len(own))


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


def wilcoxon(differences: Sequence[float] | np.ndarray) -> float:
    """Two-sided p of the signed-rank test (Wilcoxon, 1945), such as over settings.

    Five settings or fewer cannot fall below 0.05.

    Returns:
        NaN of fewer than two differences, and where all are zero.
    """
    from scipy import stats

    apart = np.asarray(differences, float)
    if len(apart) < 2 or not apart.any():
        return float("nan")
    return float(stats.wilcoxon(apart).pvalue)


def critical_difference(columns: int, rows: int, *, level: float = LEVEL) -> float:
    """By how much average ranks must differ (Nemenyi; Demsar, JMLR 2006).

    Args:
        columns: methods that are ranked, 2 or more.
        rows: settings and seeds over which they are.
        level: 1 minus the chance of any wrong claim among all pairs.
    """
    from scipy import stats

    spread = float(stats.studentized_range.ppf(level, columns, np.inf)) / np.sqrt(2)
    return float(spread * np.sqrt(columns * (columns + 1) / (6 * rows)))


def drawn_precision(
    models: Mapping[str, np.ndarray], truth: np.ndarray, *, name: str, draws: int = DRAWS
) -> dict[str, np.ndarray]:
    """Average precision of each class over images drawn with replacement, the same for all models.

    Memory is bounded: a few draws at a time, and each sorts nothing, since a draw is a weight of
    the images, which are sorted once.

    Args:
        models: (M, n, C) probabilities in [0, 1] by name; scores of the M are averaged.
        truth: (n, C) of 0, 1 and NaN = unknown.
        name: of the images; other images get other draws.
        draws: how many.

    Returns:
        (draws, C) by name; NaN where a draw shows no positive or no negative of a class.
    """
    images, parts = len(truth), {key: list[np.ndarray]() for key in models}
    draw, width = derive(DRAW_SEED, "bootstrap", name), max(1, CELLS_AT_ONCE // max(images, 1))
    for start in range(0, draws, width):
        weights = _image_weights(draw, images, min(width, draws - start))
        for key, model in models.items():
            scores = [weighted_precision(own, truth, weights) for own in model]
            parts[key].append(np.mean(scores, axis=0))
    return {key: np.concatenate(found) for key, found in parts.items()}


def _image_weights(draw: np.random.Generator, images: int, draws: int) -> np.ndarray:
    """(draws, images) int32: how often each draw holds each image."""
    chosen = draw.integers(0, images, (draws, images))
    places = (chosen + images * np.arange(draws)[:, None]).ravel()
    counts = np.bincount(places, minlength=draws * images).reshape(draws, images)
    weights: np.ndarray = counts.astype(np.int32)
    return weights


def weighted_precision(
    probability: np.ndarray, truth: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Average precision of images that count several times, or not at all.

    Args:
        probability: (n, C).
        truth: (n, C) of 0, 1 and NaN = unknown.
        weights: (B, n) whole numbers of 0 or more.

    Returns:
        (B, C), as :func:`utils_.metrics.multilabel_metrics` has it of images repeated so often.
    """
    columns = zip(probability.T, truth.T, strict=True)
    return np.stack([_precision_of_class(*column, weights) for column in columns], axis=1)


def _precision_of_class(score: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    known = np.flatnonzero(~np.isnan(truth))
    order = known[np.argsort(-score[known], kind="stable")]
    sorted_score, present = score[order], np.flatnonzero(truth[order] == 1)
    nothing = np.full(len(weights), np.nan)
    if not len(present) or len(present) == len(order):
        return nothing
    # Tied scores are one threshold, which lies behind the last of them.
    ends = np.flatnonzero(np.append(sorted_score[1:] != sorted_score[:-1], True))
    end = ends[np.searchsorted(ends, present)]
    ranked = weights[:, order]
    above = ranked.cumsum(axis=1)
    own = ranked[:, present]
    hits = own.cumsum(axis=1)
    hit, rank = hits[:, np.searchsorted(present, end, side="right") - 1], above[:, end]
    precision = np.divide(hit, rank, out=np.zeros(rank.shape), where=rank > 0)
    total = hits[:, -1]
    both = (total > 0) & (total < above[:, -1])
    found: np.ndarray = np.divide((own * precision).sum(axis=1), total, out=nothing, where=both)
    return found


def drawn_difference(first: np.ndarray, second: np.ndarray, *, observed: float) -> Paired:
    """Compare the scores of two models on the same draws of images.

    Args:
        first, second: (draws,), NaN where a draw has no score.
        observed: the difference on the images as they are.

    Returns:
        A percentile interval, and p as twice the smaller share of draws on either side of zero;
        ``wins`` and ``pairs`` count draws.
    """
    apart = first - second
    apart = apart[~np.isnan(apart)]
    if not len(apart):
        return Paired(observed, np.nan, np.nan, np.nan, 0, 0)
    low, high = np.percentile(apart, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    # One more draw on either side: a p of 0 would claim more than the draws can show.
    sides = (apart <= 0).sum() + 1, (apart >= 0).sum() + 1
    p = min(1.0, 2 * min(sides) / (len(apart) + 1))
    return Paired(observed, float(low), float(high), p, int((apart > 0).sum()), len(apart))
