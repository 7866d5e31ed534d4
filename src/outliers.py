"""Which clients' updates stand apart from the others' in a round, and how much they then count.

Three scores of each update (new parameters minus old, BatchNorm statistics left out): its norm,
the median of its cosines with the other updates, the median of its distances to them. Each becomes
a robust z: the distance from the round's median in units of 1.4826 times the median absolute
deviation (MAD), flagged beyond 3.5 (Iglewicz and Hoaglin, 1993): a norm on either side, a cosine
below, a distance above. When sites agree closely the MAD would make a trifle look large, so the
unit is never below a tenth of the median (norm, distance) or 0.05 (cosine). Fewer than four
reports are not judged: of three, none can be said to stand apart.

Memory: of each update a sketch of 4,096 numbers is kept until the end of the round, not the vector,
so memory still does not grow with K x P. Coordinates are multiplied by random signs and added up
in 4,096 sums, which keeps inner products up to about 1/64 of the product of the norms (AMS and
count sketch: Charikar et al., ICALP 2002); norms are exact, and so are updates no longer than it.

Suppression (``--suppress-outliers``): a flagged client's weight is multiplied by (3.5 / z)^2, z its
largest score, so it fades the further away it stands. To know this before the first report is
folded, the server then holds all vectors of a round.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils_.rng import derive_seed

SKETCH = 4096
THRESHOLD = 3.5
MIN_REPORTS = 4
BLOCK = 128  # sketches multiplied at once
RELATIVE_UNIT, COSINE_UNIT = 0.1, 0.05


class UpdateWatch:
    """Takes a round's updates one at a time and scores them against each other."""

    def __init__(self, length: int, *, seed: int) -> None:
        """Prepare for updates of the given length."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "sketch"))
        self._signs = None
        if length > SKETCH:
            signs = torch.randint(0, 2, (length,), generator=generator, dtype=torch.int8)
            self._signs = signs.float().mul_(2).sub_(1)
        self._norms: dict[int, float] = {}
        self._sketches: dict[int, np.ndarray] = {}

    def clear(self) -> None:
        """Forget the round."""
        self._norms, self._sketches = {}, {}

    def add(self, client: int, update: Tensor) -> None:
        """Keep the norm and the sketch of a (P,) update."""
        self._norms[client] = float(torch.linalg.vector_norm(update, dtype=torch.float64))
        self._sketches[client] = self._sketch(update).numpy()

    def _sketch(self, update: Tensor) -> Tensor:
        if self._signs is None:
            return update.clone()  # it must not hold the caller's memory
        signed = update * self._signs
        whole = len(signed) // SKETCH * SKETCH
        sums = signed[:whole].view(-1, SKETCH).sum(dim=0)
        sums[: len(signed) - whole] += signed[whole:]
        return sums

    def scores(self) -> dict[int, dict[str, float]]:
        """Robust z of each client: norm, cosine and distance; empty below four reports."""
        clients = sorted(self._norms)  # the order of arrival must not matter
        if len(clients) < MIN_REPORTS:
            return {}
        norms = np.array([self._norms[client] for client in clients])
        table = score_table(norms, [self._sketches[client] for client in clients])
        return {
            client: {name: float(z[i]) for name, z in table.items()}
            for i, client in enumerate(clients)
        }


def score_table(norms: np.ndarray, sketches: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Robust z of n updates, each (n,): norm, cosine, distance.

    Args:
        norms: (n,) of the updates.
        sketches: n times (S,), or the updates themselves.
    """
    cosine, distance = _medians_of_others(sketches)
    return {
        "norm": robust_z(norms, least=RELATIVE_UNIT * np.median(norms)),
        "cosine": robust_z(cosine, least=COSINE_UNIT),
        "distance": robust_z(distance, least=RELATIVE_UNIT * np.median(distance)),
    }


def _medians_of_others(sketches: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) median cosine with, and (n,) median distance to, the other sketches.

    Both follow from inner products, in float64, of one block of sketches with another.
    """
    n = len(sketches)
    starts = range(0, n, BLOCK)
    squares = np.array([np.dot(s, s) for s in (s.astype(np.float64) for s in sketches)])
    lengths = np.sqrt(squares)
    lengths[lengths == 0] = 1  # an update of 0 has cosine 0
    cosine, distance = np.empty(n), np.empty(n)
    for start in starts:
        own = slice(start, min(start + BLOCK, n))
        block = _stacked(sketches[own])
        others = (_stacked(sketches[other : other + BLOCK]) for other in starts)
        inner = torch.hstack([block @ other.T for other in others]).numpy()
        apart = np.arange(n) != np.arange(n)[own, None]
        cosine[own] = _masked_median(inner / lengths[own, None] / lengths, apart)
        away = np.sqrt(np.maximum(squares[own, None] + squares - 2 * inner, 0))
        distance[own] = _masked_median(away, apart)
    return cosine, distance


def _stacked(sketches: Sequence[np.ndarray]) -> Tensor:
    """For torch, whose products take one thread here, so that sums do not depend on the cores."""
    return torch.from_numpy(np.stack(sketches)).double()


def _masked_median(table: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Median of each row's cells under the mask, of which every row has as many."""
    return np.median(table[mask].reshape(len(table), -1), axis=1)


def robust_z(values: np.ndarray, *, least: float) -> np.ndarray:
    """Distance of each value from the median in units of 1.4826 MAD, or of ``least`` if larger.

    All 0 where the values are equal.
    """
    apart = values - np.median(values)
    unit = max(1.4826 * float(np.median(np.abs(apart))), least, np.finfo(np.float64).tiny)
    return apart / unit


def severity(scores: dict[str, float]) -> float:
    """The largest of a client's scores on the side that is suspicious."""
    return max(abs(scores["norm"]), -scores["cosine"], scores["distance"])


def trust(scores: dict[str, float]) -> float:
    """Factor of a client's weight in (0, 1]: 1 unless it is flagged."""
    return min(1.0, (THRESHOLD / max(severity(scores), THRESHOLD)) ** 2)
