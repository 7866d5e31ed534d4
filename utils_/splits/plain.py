"""Splits that read no label: iid, quantity and site."""

from __future__ import annotations

import heapq
import logging

import numpy as np

from utils_.errors import UserError, some
from utils_.rng import derive
from utils_.splits.base import (
    FAR,
    Deal,
    TrainingGroups,
    cut_by_shares,
    dirichlet_shares,
    enough_images,
    fill_small_clients,
)

logger = logging.getLogger("fednml")


def iid(groups: TrainingGroups, deal: Deal) -> np.ndarray:
    """Deal shuffled groups, the large ones first, each to the client with the fewest images.

    Nothing is dropped and sizes differ by at most one image, or by at most one group where there
    are groups. Label values play no role.

    Returns:
        (G,) int, the client of each group.
    """
    order = derive(deal.data_seed, "split", "iid").permutation(len(groups.sizes))
    order = order[np.argsort(-groups.sizes[order], kind="stable")]
    loads = [(0, client) for client in range(deal.clients)]
    dealt = []
    for size in groups.sizes[order].tolist():
        load, client = loads[0]
        heapq.heapreplace(loads, (load + size, client))
        dealt.append(client)
    of_group = np.empty(len(order), dtype=np.int64)
    of_group[order] = dealt
    loads_by_client = np.bincount(of_group, weights=groups.sizes)  # each client has a group
    _report_uneven(loads_by_client.astype(np.int64))
    return of_group


def _report_uneven(images: np.ndarray) -> None:
    """Log clients far from an equal share: a patient with many images cannot be dealt out."""
    equal = images.sum() / len(images)
    far = np.flatnonzero(np.abs(images - equal) > max(1, FAR * equal))
    if len(far):
        told = some([f"client {client} {images[client]}" for client in far.tolist()])
        text = "--split iid: images of one patient stay together, so shares are uneven: %s of %d"
        logger.warning(text, told, images.sum())


def quantity(groups: TrainingGroups, deal: Deal) -> np.ndarray:
    """Skew the sizes: clients hold Dirichlet shares of the images, with the same classes.

    Shares q ~ Dir(alpha) cut the shuffled groups (docs/methods.md 15). Every client gets the same
    least number of images as under ``dirichlet``, by moves of small groups from the largest client.
    Label values play no role.

    Returns:
        (G,) int, the client of each group.

    Raises:
        UserError: ``alpha`` is not a positive number.
    """
    rng = derive(deal.data_seed, "split", "quantity")
    shares = dirichlet_shares(deal.clients, alpha=deal.checked_alpha(), rng=rng)
    order = rng.permutation(len(groups.sizes))
    of_group = np.empty(len(order), dtype=np.int64)
    of_group[order] = cut_by_shares(groups.sizes[order], shares)
    enough = enough_images(groups, deal.clients)
    return fill_small_clients(of_group, groups.sizes, clients=deal.clients, enough=enough)


def site(groups: TrainingGroups, deal: Deal) -> np.ndarray:
    """Make each site one client, numbered in the alphabetical order of the sites' names.

    A group seen at several sites goes to the one with most of its images (then the first by name).

    Returns:
        (G,) int, the client of each group.

    Raises:
        UserError: the dataset has no sites, or the number of clients is not theirs.
    """
    if groups.sites is None:
        known = "iid or dirichlet"
        raise UserError(f"--split site needs sites, which this dataset lacks; use --split {known}")
    names, of_group = sites_of_groups(groups)
    if len(names) != deal.clients:
        raise UserError(
            f"--split site makes one client a site and the training images have {len(names)} "
            f"({some(names)}), not {deal.clients}; use --clients {len(names)}"
        )
    return of_group


def sites_of_groups(groups: TrainingGroups) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of the sites, in alphabetical order, and (G,) the site of each group.

    A site whose training images all belong to groups of other sites is left out.
    """
    assert groups.sites is not None
    names, index = np.unique(groups.sites, return_inverse=True)
    pairs = groups.index * len(names) + index
    counts = np.bincount(pairs, minlength=len(groups.sizes) * len(names)).reshape(-1, len(names))
    several = int(((counts > 0).sum(axis=1) > 1).sum())
    if several:
        logger.warning(
            "%d patients or lesions with several sites go to the one with most images", several
        )
    found, of_group = np.unique(counts.argmax(axis=1), return_inverse=True)
    return tuple(str(name) for name in names[found]), of_group
