"""Clients that take turns, a few at a time."""

from __future__ import annotations

import numpy as np

from utils_.rng import derive


def turn(round: int, *, clients: int, rounds: int, seed: int) -> list[int]:
    """Who is next, ascending: in every ``rounds`` rounds each client once, in a new random order.

    Args:
        round: number of the round, from 0.
        clients: their number, at least ``rounds``.
        rounds: at least 1; the groups' sizes differ by at most one.
    """
    order = derive(seed, "rotation", round // rounds).permutation(clients)
    return sorted(np.array_split(order, rounds)[round % rounds].tolist())
