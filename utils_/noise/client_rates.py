"""How the noise rate differs from client to client."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from utils_.errors import UserError, nearest
from utils_.rng import derive

logger = logging.getLogger("fednml")


def client_rates(
    kind: str,
    *,
    clients: int,
    rate: float,
    lowest: float,
    noisy_share: float,
    data_seed: int,
) -> np.ndarray:
    """Return the noise rate of every client.

    No client's rate falls where ``rate`` or another number is raised.

    - ``same``: ``rate`` everywhere, as in published FedNML.
    - ``uniform``: drawn from U(lowest, rate).
    - ``bernoulli``: a client is noisy with probability ``noisy_share``, then as ``uniform``, else
      0. With rate 1 this is FedCorr's (Xu et al., CVPR 2022).
    - ``linear``: in equal steps from ``lowest`` at client 0 to ``rate`` at the last. In FedRN and
      FedELC the last step stops short of the highest rate (docs/methods.md 14.3).

    Args:
        kind: a name of ``CLIENT_RATES``.
        clients: K, at least 1.
        rate: the highest rate, in [0, 1].
        lowest: the lowest rate of a noisy client, in [0, rate]; not read by ``same``.
        noisy_share: in [0, 1], read by ``bernoulli`` only.
        data_seed: the seed of the data.

    Returns:
        (K,) float64 in [0, rate].

    Raises:
        UserError: unknown kind, or a number out of range.
    """
    if kind not in CLIENT_RATES:
        raise UserError(f"--noise-clients {kind} is unknown; {nearest(kind, CLIENT_RATES)}")
    if not 0 <= rate <= 1:
        raise UserError(f"--noise {rate} is out of range; give a rate from 0 to 1")
    if not 0 <= noisy_share <= 1:
        raise UserError(f"--noisy-share {noisy_share} is out of range; give a share from 0 to 1")
    if rate == 0:
        return np.zeros(clients)
    lowest = rate if kind == "same" else lowest
    if not 0 <= lowest <= rate:
        raise UserError(
            f"--noise-low {lowest} is out of range: --noise {rate} is the highest rate of a "
            f"client; give a rate from 0 to {rate}"
        )
    draw = derive(data_seed, "noise", "clients").random((clients, 2))
    place, noisy = CLIENT_RATES[kind](draw, noisy_share)
    if not noisy.any():
        logger.warning("--noisy-share %s: by chance no client is noisy", noisy_share)
    return np.where(noisy, lowest + (rate - lowest) * place, 0.0)


# (K,) where the clients' rates lie, from 0, the lowest, to 1, the highest; (K,) bool, who is noisy.
Places = tuple[np.ndarray, np.ndarray]


def _uniform(draw: np.ndarray, noisy_share: float) -> Places:
    return draw[:, 0], np.full(len(draw), True)


def _bernoulli(draw: np.ndarray, noisy_share: float) -> Places:
    return draw[:, 0], draw[:, 1] < noisy_share


def _linear(draw: np.ndarray, noisy_share: float) -> Places:
    steps = max(1, len(draw) - 1)
    place = np.arange(len(draw)) / steps if len(draw) > 1 else np.ones(1)
    return place, np.full(len(draw), True)


CLIENT_RATES: dict[str, Callable[[np.ndarray, float], Places]] = {
    "same": _uniform,  # from the rate to the rate
    "uniform": _uniform,
    "bernoulli": _bernoulli,
    "linear": _linear,
}
