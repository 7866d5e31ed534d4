"""Numbers told into a lower and an upper group by a mixture of two Gaussians."""

from __future__ import annotations

import numpy as np

from utils_.threads import single_thread


def upper_group(values: np.ndarray, *, seed: int) -> np.ndarray:
    """Posterior of the component with the larger mean.

    0 at and below the lower mean, 1 at and above the upper one, whatever the variances are; so a
    wide component never claims the far end of the other. Nothing is told apart where fewer than
    two different numbers are known: then every posterior is 0.

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
    posterior[known] = _fit(scaled, seed)
    return posterior


def _fit(scaled: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(2, random_state=seed % 2**32)
    with single_thread():
        posterior = mixture.fit(scaled).predict_proba(scaled)
    low, high = sorted(mixture.means_.ravel())
    upper = posterior[:, int(np.argmax(mixture.means_.ravel()))]
    upper = np.where(scaled[:, 0] >= high, 1, upper)
    return np.where(scaled[:, 0] <= low, 0, upper)
