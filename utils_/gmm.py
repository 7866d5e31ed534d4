"""Noisy samples told from clean ones by a two-component Gaussian mixture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils_.threads import single_thread


@dataclass(frozen=True)
class NoiseSplit:
    """Outcome of the mixture.

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
    """Fit a full-covariance mixture to standardised (agreement, loss), two values an image.

    The noisy component is the one whose mean agreement is smaller. Nothing counts as noisy when
    the question has no answer: too few images, a feature without spread, values that are not
    finite, or components whose means lie less than ``min_gap`` standard deviations of the
    data apart in either feature or contradict each other (clean data).

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
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(2, covariance_type="full", random_state=seed % 2**32, reg_covar=1e-4)
    scaled = (features - centre) / spread
    with single_thread():
        posterior = mixture.fit(scaled).predict_proba(scaled)
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
