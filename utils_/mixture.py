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

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture


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
