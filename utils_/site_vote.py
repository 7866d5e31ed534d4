"""Bookkeeping of a vote on noisy sites: who has been heard, and how much a noisy site counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from utils_.noisy_clients import closeness, normalised, vote_noisy

NOT_HEARD, CLEAN, NOISY = -1, 0, 1


def hear(
    memory: dict[str, np.ndarray],
    reports: Iterable[Any],
    *,
    clients: int,
    seeds: Sequence[int],
    min_gap: float,
    fill_minimum: bool = False,
) -> None:
    """Take the ``losses`` that sites told and vote anew among all that have been heard.

    Keeps ``memory["losses"]``, (K, F) with NaN where nothing was told, and ``memory["noisy"]``,
    (K,) int8 of NOT_HEARD, CLEAN and NOISY; without a told loss both are left alone.

    Args:
        seeds, min_gap: of :func:`utils_.noisy_clients.vote_noisy`.
        fill_minimum: of :func:`utils_.noisy_clients.normalised`.
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


def weighed(reports: Iterable[Any], verdict: np.ndarray, *, own: int) -> Iterator[Any]:
    """The reports, ascending, those of noisy sites with less weight (FedNoRo's DaAgg).

    Args:
        verdict: (K,) of NOT_HEARD, CLEAN and NOISY.
        own: the first so many numbers are parameters, of which the distance is taken.
    """
    held = sorted(reports, key=lambda report: report.client)
    noisy = verdict[[report.client for report in held]] == NOISY
    factors = closeness([report.model[:own] for report in held], noisy).tolist()
    for report, factor in zip(held, factors, strict=True):
        yield replace(report, samples=report.samples * factor, trust=report.trust * factor)
