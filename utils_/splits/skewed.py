"""Splits that skew the classes and therefore read labels: dirichlet, shards and phi."""

from __future__ import annotations

import numpy as np

from utils_.errors import UserError
from utils_.rng import derive
from utils_.splits.base import (
    Deal,
    TrainingGroups,
    cut_by_shares,
    dirichlet_shares,
    enough_images,
    fill_small_clients,
    primary_class,
)

DIRICHLET_TRIES = 10


def dirichlet(groups: TrainingGroups, deal: Deal) -> np.ndarray:
    """Skew the classes over the clients: Dirichlet shares of each group's primary class.

    - The primary class of a group is the rarest class among those positive in any of its images;
      rarity is counted over groups. Groups without a positive form a class of their own.
    - For each primary class, in random order, shares q ~ Dir(alpha) over the clients that hold
      fewer than n/K images so far cut its shuffled groups.
    - NIID-bench (Li et al., ICDE 2022) sets the shares of full clients to 0 and renormalises the
      rest. That is the same, since a Dirichlet vector restricted to some entries is again
      Dirichlet; but here nothing can end in 0/0 at small alpha.
    - Every client gets at least a tenth of the mean size, but no less than 2 and no more than 10
      images. The shares are drawn up to ten times. If no draw will do, the smallest groups of the
      largest client move to the smallest.
    - Where groups or numbers do not allow so many, a client gets what such moves give, and never
      less than one image.

    Returns:
        (G,) int, the client of each group.

    Raises:
        UserError: ``alpha`` is not a positive number.
    """
    alpha = deal.checked_alpha()
    clients, primary = deal.clients, primary_class(groups)
    enough = enough_images(groups, clients)
    for attempt in range(DIRICHLET_TRIES):
        rng = derive(deal.data_seed, "split", "dirichlet", attempt)
        of_group = _draw_dirichlet(primary, groups.sizes, clients=clients, alpha=alpha, rng=rng)
        if np.bincount(of_group, weights=groups.sizes, minlength=clients).min() >= enough:
            return of_group
    return fill_small_clients(of_group, groups.sizes, clients=clients, enough=enough)


def _draw_dirichlet(
    primary: np.ndarray,
    sizes: np.ndarray,
    *,
    clients: int,
    alpha: float,
    rng: np.random.Generator,
) -> np.ndarray:
    of_group = np.empty(len(primary), dtype=np.int64)
    load = np.zeros(clients, dtype=np.int64)
    for present in rng.permutation(np.unique(primary)):
        members = rng.permutation(np.flatnonzero(primary == present))
        still_open = np.flatnonzero(load * clients < sizes.sum())
        shares = dirichlet_shares(len(still_open), alpha=alpha, rng=rng)
        of_group[members] = still_open[cut_by_shares(sizes[members], shares)]
        load += np.bincount(of_group[members], weights=sizes[members], minlength=clients).astype(
            np.int64
        )
    return of_group


def shards(groups: TrainingGroups, deal: Deal) -> np.ndarray:
    """Give every client a few shards of images sorted by class (McMahan et al., AISTATS 2017).

    Groups are sorted by their primary class, as ``dirichlet`` defines it, at random within a class.
    They are cut into clients x shards pieces of equally many groups, which are dealt at random.

    Returns:
        (G,) int, the client of each group.

    Raises:
        UserError: fewer groups than shards, or no shard a client.
    """
    pieces = deal.clients * deal.shards
    if deal.shards < 1:
        raise UserError(f"--shards {deal.shards} is out of range; give 1 or more")
    if pieces > len(groups.sizes):
        most = len(groups.sizes) // deal.clients
        raise UserError(
            f"--shards {deal.shards}: {deal.clients} clients need {pieces} images or patients, "
            f"and {len(groups.sizes)} are left for training; use --shards {most} or fewer clients"
        )
    rng = derive(deal.data_seed, "split", "shards")
    order = rng.permutation(len(groups.sizes))
    order = order[np.argsort(primary_class(groups)[order], kind="stable")]
    owner = rng.permutation(np.repeat(np.arange(deal.clients), deal.shards))
    of_group = np.empty(len(order), dtype=np.int64)
    for piece, client in zip(np.array_split(order, pieces), owner, strict=True):
        of_group[piece] = client
    return of_group


def phi(groups: TrainingGroups, deal: Deal) -> np.ndarray:
    """Let clients lack whole classes (FedCorr, Xu et al., CVPR 2022; FedNoRo, IJCAI 2023).

    - Each client has each primary class with probability ``phi``. Each group of a class goes to one
      of the clients that have it, drawn with shares q ~ Dir(alpha). FedCorr uses phi 0.7 with alpha
      10, FedNoRo 0.9 with 2.
    - The published code draws a client without any class anew, and loses a class that no client
      has. Here such a client gets one class at random and such a class one client, so nothing is
      lost and nothing loops.
    - Every client gets the same least number of images as under ``dirichlet``, by moves of small
      groups from the largest client. A move may bring a client a class that it should lack.

    Returns:
        (G,) int, the client of each group.

    Raises:
        UserError: ``alpha`` is not a positive number, or ``phi`` no probability.
    """
    if not 0 <= deal.phi <= 1:
        raise UserError(f"--phi {deal.phi} is out of range; give a chance from 0 to 1")
    alpha, rng = deal.checked_alpha(), derive(deal.data_seed, "split", "phi")
    present, index = np.unique(primary_class(groups), return_inverse=True)
    has = _which_classes(deal.clients, len(present), chance=deal.phi, rng=rng)
    of_group = np.empty(len(groups.sizes), dtype=np.int64)
    for c in range(len(present)):
        holders, members = np.flatnonzero(has[:, c]), np.flatnonzero(index == c)
        shares = dirichlet_shares(len(holders), alpha=alpha, rng=rng)
        of_group[members] = rng.choice(holders, len(members), p=shares)
    enough = enough_images(groups, deal.clients)
    return fill_small_clients(of_group, groups.sizes, clients=deal.clients, enough=enough)


def _which_classes(
    clients: int, classes: int, *, chance: float, rng: np.random.Generator
) -> np.ndarray:
    """(K, C) bool, at least one in every row and column."""
    has = rng.random((clients, classes)) < chance
    class_of, client_of = rng.integers(0, classes, clients), rng.integers(0, clients, classes)
    without = ~has.any(axis=1)
    has[without, class_of[without]] = True
    nowhere = ~has.any(axis=0)
    has[client_of[nowhere], nowhere] = True
    return has
