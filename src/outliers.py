"""Which clients' updates stand apart from the others' in a round, and how much they then count.

Scores. Each update (new parameters minus old, no BatchNorm statistics) has three: its norm, the
median of its cosines with the other updates, and the median of its distances to them. Each becomes
a robust z, the distance from the round's median in units of 1.4826 times the median absolute
deviation (MAD). Beyond 3.5 it is flagged (Iglewicz and Hoaglin, 1993): a norm on either side, a
cosine below, a distance above.

- Where sites agree closely the MAD would make a trifle look large. So the unit is never below a
  tenth of the median (norm, distance) or 0.05 (cosine).
- Fewer than four reports are not judged: of three, none can be said to stand apart.

Memory. Of each update a sketch of 4,096 numbers is kept until the end of the round, not the vector,
so memory does not grow with K x P. Coordinates are multiplied by random signs and added up in 4,096
sums. That keeps inner products up to about 1/64 of the product of the norms (AMS and count sketch:
Charikar et al., ICALP 2002). Norms are exact, and so are updates that are no longer than a sketch.

Time. An update is held against at most 256 others, so time grows with K, not with K squared. They
are the same for all updates of a round, drawn where there are more. A draw that shifts the scores
shifts all of them alike, and z hardly moves.

Suppression (``--suppress-outliers``). The weight of a flagged client is multiplied by (3.5 / z)^2,
where z is its largest score, so it fades the further away the client stands. To know this before
the first report is folded, the server then holds all vectors of a round.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils_.rng import derive, derive_seed

SKETCH = 4096
OUTLYING = 3.5
MIN_REPORTS = 4
BLOCK = 128  # sketches multiplied, and given room, at once
OTHERS = 256  # that an update is held against
RELATIVE_UNIT, COSINE_UNIT = 0.1, 0.05


class UpdateWatch:
    """Takes a round's updates one at a time and scores them against each other."""

    def __init__(self, length: int, *, seed: int) -> None:
        """Prepare for updates of the given length."""
        self._seed = seed
        generator = torch.Generator().manual_seed(derive_seed(seed, "sketch"))
        self._signs = None
        if length > SKETCH:
            signs = torch.randint(0, 2, (length,), generator=generator, dtype=torch.int8)
            self._signs = signs.float().mul_(2).sub_(1)
        self._norms: dict[int, float] = {}
        self._sketches: dict[int, np.ndarray] = {}
        self._room: list[Tensor] = []  # for BLOCK sketches each; one by one they fragment memory

    def clear(self) -> None:
        """Forget the round."""
        self._norms, self._sketches = {}, {}

    def add(self, client: int, update: Tensor) -> None:
        """Keep the norm and the sketch of a (P,) update."""
        self._norms[client] = float(torch.linalg.vector_norm(update, dtype=torch.float64))
        sketch = self._place(len(self._sketches), min(len(update), SKETCH))
        self._write(update, sketch)
        self._sketches[client] = sketch.numpy()

    def _place(self, number: int, width: int) -> Tensor:
        block, row = divmod(number, BLOCK)
        if block == len(self._room):
            self._room.append(torch.empty(BLOCK, width))
        return self._room[block][row]

    def _write(self, update: Tensor, sketch: Tensor) -> None:
        if self._signs is None:
            sketch.copy_(update)
            return
        signed = update * self._signs
        whole = len(signed) // SKETCH * SKETCH
        torch.sum(signed[:whole].view(-1, SKETCH), dim=0, out=sketch)
        sketch[: len(signed) - whole] += signed[whole:]

    def scores(self) -> dict[int, dict[str, float]]:
        """Robust z of each client: norm, cosine and distance; empty below four reports."""
        clients = sorted(self._norms)  # the order of arrival must not matter
        if len(clients) < MIN_REPORTS:
            return {}
        norms = np.array([self._norms[client] for client in clients])
        sketches = [self._sketches[client] for client in clients]
        table = score_table(norms, sketches, references=self._references(len(clients)))
        return {
            client: {name: float(z[i]) for name, z in table.items()}
            for i, client in enumerate(clients)
        }

    def _references(self, n: int) -> np.ndarray:
        """The updates that each of ``n`` is held against: all, or one more than it needs."""
        if n <= OTHERS:
            return np.arange(n)
        draw = derive(self._seed, "references", n)
        return np.sort(draw.choice(n, OTHERS + 1, replace=False))


def score_table(
    norms: np.ndarray, sketches: Sequence[np.ndarray], *, references: np.ndarray
) -> dict[str, np.ndarray]:
    """Robust z of n updates, each (n,): norm, cosine, distance.

    Args:
        norms: (n,) of the updates.
        sketches: n times (S,), or the updates themselves.
        references: (r,) those that each is held against, itself left out, or the last of them.
    """
    cosine, distance = _medians_of_others(sketches, references)
    return {
        "norm": robust_z(norms, least=RELATIVE_UNIT * np.median(norms)),
        "cosine": robust_z(cosine, least=COSINE_UNIT),
        "distance": robust_z(distance, least=RELATIVE_UNIT * np.median(distance)),
    }


def _medians_of_others(
    sketches: Sequence[np.ndarray], references: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) median cosine with, and (n,) median distance to, the other sketches.

    Both follow from inner products, in float64, of one block of sketches with the references.
    """
    n = len(sketches)
    squares = np.array([np.dot(s, s) for s in (s.astype(np.float64) for s in sketches)])
    lengths = np.sqrt(squares)
    lengths[lengths == 0] = 1  # an update of 0 has cosine 0
    held = _stacked([sketches[place] for place in references]).T
    cosine, distance = np.empty(n), np.empty(n)
    for start in range(0, n, BLOCK):
        own = slice(start, min(start + BLOCK, n))
        inner = (_stacked(sketches[own]) @ held).numpy()
        apart = references != np.arange(n)[own, None]
        apart[apart.all(axis=1), -1] = False  # as many others for everyone
        cosine[own] = _masked_median(inner / lengths[own, None] / lengths[references], apart)
        squared = squares[own, None] + squares[references] - 2 * inner
        distance[own] = _masked_median(np.sqrt(np.maximum(squared, 0)), apart)
    return cosine, distance


def _stacked(sketches: Sequence[np.ndarray]) -> Tensor:
    """For torch, whose products take one thread here, so that sums do not depend on the cores."""
    return torch.from_numpy(np.stack(sketches)).double()


def _masked_median(table: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Median of each row's cells under the mask, of which every row has as many."""
    medians: np.ndarray = np.median(table[mask].reshape(len(table), -1), axis=1)
    return medians


def robust_z(values: np.ndarray, *, least: float) -> np.ndarray:
    """Distance of each value from the median in units of 1.4826 MAD, or of ``least`` if larger.

    All 0 where the values are equal.
    """
    apart: np.ndarray = values - np.median(values)
    unit = max(1.4826 * float(np.median(np.abs(apart))), least, np.finfo(np.float64).tiny)
    scores: np.ndarray = apart / unit
    return scores


def severity(scores: dict[str, float]) -> float:
    """The largest of a client's scores on the side that is suspicious."""
    return max(abs(scores["norm"]), -scores["cosine"], scores["distance"])


def credit(scores: dict[str, float]) -> float:
    """Factor of a client's weight in (0, 1]: 1 unless it is flagged."""
    return min(1.0, (OUTLYING / max(severity(scores), OUTLYING)) ** 2)
