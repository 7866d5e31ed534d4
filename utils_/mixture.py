"""Mixtures of two Gaussians: noisy samples told from clean ones, numbers told into two groups.

One fit by scikit-learn serves all. It runs on one thread, since sums must not depend on the number
of cores.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import ThreadpoolController

from utils_.rng import derive

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

REPLICATES = 99  # of alike numbers, for a test


def fit_two(values: np.ndarray, *, seed: int, **options: Any) -> tuple[GaussianMixture, np.ndarray]:
    """Fit two Gaussians with full covariances.

    Args:
        values: (n, D), n at least 2.
        seed: of the initialisation.
        options: further ones of scikit-learn's ``GaussianMixture``.

    Returns:
        The mixture; (n, 2) posteriors of its components.
    """
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(2, random_state=seed % 2**32, **options)
    with _single_thread():
        posterior = mixture.fit(values).predict_proba(values)
    return mixture, posterior


def _single_thread() -> AbstractContextManager[object]:
    """Hold every thread pool to one thread. Import the libraries first: pools are found once."""
    limit: AbstractContextManager[object] = _controller().limit(limits=1)
    return limit


@cache
def _controller() -> ThreadpoolController:
    """The pools of this process. Looking for them takes as long as fitting a small mixture."""
    import sklearn.mixture  # noqa: F401  brings all pools that the project limits

    return ThreadpoolController()


# ---- two numbers an image


@dataclass(frozen=True)
class NoiseSplit:
    """Outcome of :func:`split_noisy`.

    Attributes:
        probability: (N,) posterior of the noisy component; all 0 where nothing was separated.
        separated: whether two components were told apart.
        reason: why not, in a few words; empty when separated.
        means: (2, 2) means of (agreement, loss) in the given units, clean component first;
            NaN where nothing was separated.
    """

    probability: np.ndarray
    separated: bool
    reason: str
    means: np.ndarray

    @property
    def noisy(self) -> np.ndarray:
        """(N,) bool, the hard assignment."""
        return self.probability > 0.5


def split_noisy(
    agreement: np.ndarray,
    loss: np.ndarray,
    *,
    seed: int,
    min_images: int = 20,
    min_gap: float = 1.0,
) -> NoiseSplit:
    """Fit a mixture to standardised (agreement, loss), two values an image.

    The noisy component is the one whose mean agreement is smaller. Nothing counts as noisy where

    - there are too few images;
    - a feature has no spread, or a value is not finite;
    - the means of the components lie less than ``min_gap`` standard deviations of the data apart in
      either feature, or contradict each other: so it is with clean data.

    Args:
        agreement: (N,) how well predictions agree with the labels, in [0, 1].
        loss: (N,) mean cross-entropy of the labels, >= 0.
        seed: seed of the mixture's initialisation.
        min_images: fewest images that a mixture is fitted to.
        min_gap: least distance of the two means, in standard deviations of the data.
    """
    features = np.stack([agreement, loss], axis=1).astype(np.float64)
    reason = _unfit(features, min_images)
    if reason:
        return _nothing(len(features), reason)
    centre, spread = features.mean(axis=0), features.std(axis=0)
    mixture, posterior = fit_two((features - centre) / spread, seed=seed, reg_covar=1e-4)
    noisy = int(np.argmin(mixture.means_[:, 0]))
    gap = mixture.means_[1 - noisy] - mixture.means_[noisy]
    if gap[0] < min_gap or -gap[1] < min_gap:
        return _nothing(len(features), "components not apart")
    means = mixture.means_[[1 - noisy, noisy]] * spread + centre
    return NoiseSplit(posterior[:, noisy].astype(np.float32), True, "", means)


def _unfit(features: np.ndarray, min_images: int) -> str:
    if len(features) < min_images:
        return "too few images"
    if not np.isfinite(features).all():
        return "values not finite"
    if (features.std(axis=0) < 1e-6).any():
        return "no spread"
    return ""


def _nothing(count: int, reason: str) -> NoiseSplit:
    return NoiseSplit(np.zeros(count, np.float32), False, reason, np.full((2, 2), np.nan))


# ---- one number


def upper_group(values: np.ndarray, *, seed: int) -> np.ndarray:
    """Posterior of the component with the larger mean.

    It is 0 at and below the lower mean and 1 at and above the upper one, whatever the variances
    are, so a wide component never claims the far end of the other. Where fewer than two different
    numbers are known, nothing is told apart and every posterior is 0.

    Args:
        values: (n,); what is not finite is unknown and gets 0.
        seed: of the mixture's initialisation.

    Returns:
        (n,) float32 in [0, 1].
    """
    values = np.asarray(values, np.float64)
    posterior = np.zeros(len(values), np.float32)
    known = np.isfinite(values)
    scale = values[known].std() if known.any() else 0.0
    if scale <= 1e-9 * max(1.0, float(np.abs(values[known]).max(initial=0))):
        return posterior
    scaled = ((values[known] - values[known].mean()) / scale)[:, None]
    posterior[known] = _upper_posterior(scaled, seed)
    return posterior


def _upper_posterior(scaled: np.ndarray, seed: int) -> np.ndarray:
    mixture, posterior = fit_two(scaled, seed=seed)
    low, high = sorted(mixture.means_.ravel())
    upper = posterior[:, int(np.argmax(mixture.means_.ravel()))]
    upper = np.where(scaled[:, 0] >= high, 1, upper)
    return np.where(scaled[:, 0] <= low, 0, upper)


def apart(values: np.ndarray, errors: np.ndarray, *, seed: int, alpha: float) -> np.ndarray:
    """Who is in the :func:`upper_group`, nobody where alike numbers are split as widely by chance.

    Numbers with one mean and the given errors are drawn 99 times and split in the same way. The
    groups are told apart if the means of no more than a share of ``alpha``, the numbers themselves
    counted, lie as far apart.

    Args:
        values: (n,), not finite where unknown.
        errors: (n,) standard errors, of the same scale; read where values are known.
        seed: of the mixtures and of the draws.
        alpha: chance of a split of alike numbers; 1 splits always, 0 never.

    Returns:
        (n,) bool.
    """
    upper, gap = _two_groups(values, seed)
    known = np.isfinite(values)
    if alpha >= 1:
        return upper
    if alpha <= 0:
        return np.zeros_like(upper)
    draw = derive(seed, "alike")
    chance, wide = draw.normal(0, errors[known], (REPLICATES, int(known.sum()))), 1
    for row in chance:
        wide += int(_two_groups(row, seed)[1] >= gap)
        if wide > alpha * (REPLICATES + 1) + 1e-9:  # decided: a fit costs more than all else here
            return np.zeros_like(upper)
    return upper


def _two_groups(values: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """The upper group, and how far its mean lies above that of the other known numbers."""
    upper = upper_group(values, seed=seed) > 0.5
    lower = np.isfinite(values) & ~upper
    if not upper.any() or not lower.any():
        return np.zeros_like(upper), 0.0
    return upper, float(values[upper].mean() - values[lower].mean())


def mean_and_error(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over iterations and their standard errors, by what each tells and by what is left.

    An error told comes from the images. They are the same in all iterations, so it does not shrink.
    The rest, of a training, is what sites and iterations do not account for, pooled over all sites.

    Args:
        scores: (iterations, K, 2) means and errors, NaN if unknown.

    Returns:
        Two (K,) arrays; NaN for a site never known.
    """
    known = np.isfinite(scores[..., 0])
    lid, error = np.where(known, scores[..., 0], 0), np.where(known, scores[..., 1], 0)
    count = known.sum(axis=0)
    mean = np.where(count > 0, lid.sum(axis=0), np.nan) / np.maximum(count, 1)
    rest = np.where(known, lid - mean, 0)
    rest -= np.where(known, (rest.sum(axis=1) / np.maximum(known.sum(axis=1), 1))[:, None], 0)
    free = max(int(known.sum()) - int((count > 0).sum()) - int(known.any(axis=1).sum()) + 1, 0)
    training = (rest**2).sum() / max(free, 1)
    images = (error**2).sum(axis=0) / np.maximum(count, 1)
    return mean, np.sqrt(images + training / np.maximum(count, 1))
