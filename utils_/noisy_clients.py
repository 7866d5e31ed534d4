"""Sites with noisy labels told from clean ones, and how much their models count (FedNoRo)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils_.mixture import fit_two

NOT_HEARD, CLEAN, NOISY = -1, 0, 1


def class_losses(probability: np.ndarray, observed: np.ndarray, *, min_cells: int) -> np.ndarray:
    """Mean cross-entropy of each class's given labels, for negatives and positives apart.

    Args:
        probability: (n, C) in [0, 1].
        observed: (n, C) labels, 0 or 1, NaN where not annotated.
        min_cells: with fewer labels of a kind the mean is undefined.

    Returns:
        (2, C) float32, negatives first; NaN where undefined.
    """
    p = probability.clip(1e-7, 1 - 1e-7).astype(np.float64)
    table = np.full((2, observed.shape[1]), np.nan, np.float32)
    for value, loss in enumerate((-np.log1p(-p), -np.log(p))):
        cells = observed == value
        count = cells.sum(axis=0)
        mean = np.where(cells, loss, 0).sum(axis=0) / np.maximum(count, 1)
        table[value] = np.where(count >= min_cells, mean, np.nan)
    return table


# ---- the vote


def hear(
    memory: dict[str, np.ndarray],
    reports: Iterable[Any],
    *,
    clients: int,
    seeds: Sequence[int],
    min_gap: float,
    fill_minimum: bool = False,
) -> None:
    """Take the losses that sites told and vote anew among all that have been heard.

    Two entries of ``memory`` are kept; where no loss was told, both are left alone:

    - ``losses``, (K, F) float32, NaN where nothing was told;
    - ``noisy``, (K,) int8 of NOT_HEARD, CLEAN and NOISY.

    Args:
        memory: the server's.
        reports: those of a round, each with the number ``client`` and ``extras["losses"]``.
        clients: K.
        seeds, min_gap: see :func:`vote_noisy`.
        fill_minimum: see :func:`normalised`.
    """
    told = {report.client: report.extras["losses"].ravel() for report in reports}
    if not told:
        return
    features = len(next(iter(told.values())))
    table = memory.setdefault("losses", np.full((clients, features), np.nan, np.float32))
    found = memory.get("noisy", np.full(clients, NOT_HEARD, np.int8)).copy()
    for client, losses in told.items():
        table[client], found[client] = losses, CLEAN
    heard = found != NOT_HEARD
    rows = normalised(table[heard], fill_minimum=fill_minimum)
    found[heard] = vote_noisy(rows, seeds=seeds, min_gap=min_gap)
    memory["noisy"] = found


def normalised(losses: np.ndarray, *, fill_minimum: bool) -> np.ndarray:
    """Bring the columns of a table to [0, 1]; those without two different values are left out.

    Args:
        losses: (K, F), NaN where undefined.
        fill_minimum: an undefined entry becomes 0, the best of its column. Otherwise it becomes the
            mean of its row, so that what a site does not annotate speaks neither for nor against
            it.
    """
    known = ~np.isnan(losses)
    least = np.where(known, losses, np.inf).min(axis=0)
    spread = np.where(known, losses, -np.inf).max(axis=0) - least
    used = spread > 0  # not where the column is empty: -inf
    scaled = (losses[:, used] - least[used]) / spread[used]
    known = known[:, used]
    own = np.where(known, scaled, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return np.where(known, scaled, 0 if fill_minimum else own[:, None])


def vote_noisy(table: np.ndarray, *, seeds: Sequence[int], min_gap: float) -> np.ndarray:
    """Tell the noisy sites by vote: each mixture names the group of larger losses.

    A mixture of two Gaussians is fitted for each seed. The set that most of them name wins, of sets
    named equally often the first. Nobody is noisy where fewer than two rows differ, or where the
    mean losses of the two groups lie no more than ``min_gap`` apart.

    Args:
        table: (K, F) in [0, 1], see :func:`normalised`.
        seeds: of the mixtures.
        min_gap: the difference of the groups' mean losses must be above it.

    Returns:
        (K,) bool.
    """
    nobody = np.zeros(len(table), bool)
    if not table.size or len(np.unique(table, axis=0)) < 2:
        return nobody
    ballots = [_group_of_larger_losses(table, seed) for seed in seeds]
    (winner, _), *_ = Counter(tuple(b.tolist()) for b in ballots).most_common()
    noisy = np.array(winner, bool)
    if noisy.all() or not noisy.any():
        return nobody
    return noisy if table[noisy].mean() - table[~noisy].mean() > min_gap else nobody


def _group_of_larger_losses(table: np.ndarray, seed: int) -> np.ndarray:
    mixture, posterior = fit_two(table, seed=seed)
    named: np.ndarray = posterior.argmax(axis=1) == int(np.argmax(mixture.means_.sum(axis=1)))
    return named


# ---- how much a noisy site counts


def weighed(reports: Iterable[Any], verdict: np.ndarray, *, own: int) -> Iterator[Any]:
    """Yield the reports by client number, those of noisy sites with less weight (FedNoRo's DaAgg).

    Args:
        reports: those of a round, dataclasses with ``client``, ``model``, ``samples``, ``credit``.
        verdict: (K,) of NOT_HEARD, CLEAN and NOISY.
        own: so many numbers at the start of a model are parameters; they make the distance.
    """
    held = sorted(reports, key=lambda report: report.client)
    noisy = verdict[[report.client for report in held]] == NOISY
    factors = closeness([report.model[:own] for report in held], noisy).tolist()
    for report, factor in zip(held, factors, strict=True):
        yield replace(report, samples=report.samples * factor, credit=report.credit * factor)


def closeness(vectors: Sequence[Tensor], noisy: np.ndarray) -> np.ndarray:
    """Factors for models: exp(-d), d the distance from the nearest clean one over its maximum.

    d is 0 for clean models. All factors are 1 where everybody is noisy or nobody is, and where no
    distance differs from 0.

    Args:
        vectors: n tensors (P,).
        noisy: (n,) bool.

    Returns:
        (n,) float64 in [1/e, 1].
    """
    distance = np.zeros(len(vectors))
    clean = np.flatnonzero(~noisy).tolist()
    for k in np.flatnonzero(noisy).tolist() if clean else ():
        distance[k] = min(float(torch.dist(vectors[k], vectors[j])) for j in clean)
    largest = distance.max(initial=0)
    return np.exp(-distance / largest) if largest > 0 else np.ones(len(vectors))
