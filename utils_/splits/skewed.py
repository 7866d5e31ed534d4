"""Cuts images into train, val and test, then train into clients; a patient or lesion stays whole.

Test and val are cut first. Only ``dirichlet`` reads label values, and only those of the training
part: val, test, ``iid`` and ``site`` are the same whatever the labels say.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from utils_.datasets.base import TEST, TRAIN, UNASSIGNED, VAL
from utils_.errors import UserError, nearest
from utils_.rng import derive

logger = logging.getLogger("fednml")

DIRICHLET_TRIES = 10
DIRICHLET_MIN_IMAGES = 10  # as NIID-bench (Li et al., ICDE 2022)


@dataclass(frozen=True)
class TrainingGroups:
    """What a split sees: n training images in G groups (a patient, a lesion, or a single image).

    Attributes:
        index: (n,) int64, the group of each image, 0 .. G-1.
        sizes: (G,) int64, images in each group.
        labels: (n, C) float32, NaN where not annotated.
        sites: (n,) names of the sites, or None.
    """

    index: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    sites: np.ndarray | None


Split = Callable[..., np.ndarray]  # (TrainingGroups, *, clients, alpha, data_seed) -> (G,) client


def cut_parts(
    part: np.ndarray,
    groups: np.ndarray | None,
    *,
    val_share: float,
    test_share: float,
    data_seed: int,
) -> np.ndarray:
    """Give every image a part; groups stay whole and label values play no role.

    Rows that the files put into TRAIN, VAL or TEST stay there, but for a val cut out of TRAIN when
    the files have no VAL row. UNASSIGNED rows follow a fixed row of their group if there is one
    (TEST before VAL before TRAIN); the others are cut into test, unless the files fix a test, then
    val, and train. Shares count images, met to within half a group.

    Args:
        part: (N,) uint8 of TRAIN, VAL, TEST, UNASSIGNED.
        groups: (N,) int64 or None (every image on its own).
        val_share: in [0, 1), of the images that are not test; 0 means no val.
        test_share: in [0, 1), of the unassigned images; 0 means no test but the files'.
        data_seed: the seed of the data.

    Returns:
        (N,) uint8 of TRAIN, VAL, TEST.

    Raises:
        UserError: a share is out of range, or there are too few groups to cut.
    """
    groups = _dense(groups, len(part))
    part = _follow_fixed(part, groups)
    for option, target, source, share in (
        ("--test-share", TEST, UNASSIGNED, test_share),
        ("--val-share", VAL, TRAIN, val_share),
    ):
        if not 0 <= share < 1:
            raise UserError(f"{option} {share} is out of range; give a share from 0 up to below 1")
        if target == VAL:
            part[part == UNASSIGNED] = TRAIN
        if share > 0 and not (part == target).any() and (part == source).any():
            rng = derive(data_seed, "split", option)
            part[_cut(part == source, groups, share=share, rng=rng, option=option)] = target
    return part


def assign_clients(
    part: np.ndarray,
    groups: np.ndarray | None,
    labels: np.ndarray,
    sites: np.ndarray | None,
    *,
    split: str,
    clients: int,
    alpha: float,
    data_seed: int,
) -> np.ndarray:
    """Deal the training images to the clients, every client at least one image.

    Args:
        part: (N,) uint8 as :func:`cut_parts` returns it.
        groups: (N,) int64 or None.
        labels: (N, C) float32, read by ``dirichlet`` only.
        sites: (N,) names or None, read by ``site`` only.
        split: a name of ``SPLITS``.
        clients: number of clients, at least 1.
        alpha: concentration of ``dirichlet``, above 0.
        data_seed: the seed of the data.

    Returns:
        (N,) int32, the client's number, -1 outside train.

    Raises:
        UserError: unknown split, no training image, or more clients than groups.
    """
    if split not in SPLITS:
        raise UserError(f"--split {split} is unknown; {nearest(split, SPLITS)}")
    rows = np.flatnonzero(part == TRAIN)
    if not len(rows):
        raise UserError("no training image is left; lower --val-share or --test-share")
    training = _training_groups(rows, groups, labels, sites)
    _check_clients(clients, training, grouped=groups is not None)
    of_group = SPLITS[split](training, clients=clients, alpha=alpha, data_seed=data_seed)
    client = np.full(len(part), -1, dtype=np.int32)
    client[rows] = of_group[training.index]
    return client


def iid(groups: TrainingGroups, *, clients: int, alpha: float, data_seed: int) -> np.ndarray:
    """Deal shuffled groups, the large ones first, each to the client with the fewest images.

    Nothing is dropped and sizes differ by at most one image, or by at most one group where there
    are groups. Label values play no role.

    Returns:
        (G,) int, the client of each group.
    """
    order = derive(data_seed, "split", "iid").permutation(len(groups.sizes))
    order = order[np.argsort(-groups.sizes[order], kind="stable")]
    loads = [(0, client) for client in range(clients)]
    dealt = []
    for size in groups.sizes[order].tolist():
        load, client = loads[0]
        heapq.heapreplace(loads, (load + size, client))
        dealt.append(client)
    of_group = np.empty(len(order), dtype=np.int64)
    of_group[order] = dealt
    return of_group


def dirichlet(groups: TrainingGroups, *, clients: int, alpha: float, data_seed: int) -> np.ndarray:
    """Skew the classes over the clients: Dirichlet shares of each group's primary class.

    The multi-label rule: the primary class of a group is the rarest class among those positive in
    any of its images (rarity counted over groups); groups without a positive form a class of their
    own. For each primary class, in random order, shares q ~ Dir(alpha) over the clients that hold
    fewer than n/K images so far cut its shuffled groups. That equals the rule of NIID-bench (Li et
    al., ICDE 2022; shares of full clients set to 0, the rest renormalised), since a Dirichlet
    vector restricted to some entries is again Dirichlet, and cannot end in 0/0 at small alpha.

    Every client gets at least a tenth of the mean size, but no less than 2 and no more than 10
    images: the shares are drawn up to ten times, and if no draw will do, the smallest groups of the
    largest client move to the smallest. Where groups or numbers do not allow it, as much as such
    moves give, and never less than one image.

    Returns:
        (G,) int, the client of each group.

    Raises:
        UserError: ``alpha`` is not a positive number.
    """
    if not (np.isfinite(alpha) and alpha > 0):
        raise UserError(f"--alpha {alpha} is out of range; give a number above 0, such as 0.5")
    primary = _primary_class(groups)
    mean_size = len(groups.index) // clients
    enough = min(DIRICHLET_MIN_IMAGES, max(2, mean_size // 10))
    for attempt in range(DIRICHLET_TRIES):
        rng = derive(data_seed, "split", "dirichlet", attempt)
        of_group = _draw_dirichlet(primary, groups.sizes, clients=clients, alpha=alpha, rng=rng)
        if np.bincount(of_group, weights=groups.sizes, minlength=clients).min() >= enough:
            return of_group
    return _fill_small_clients(of_group, groups.sizes, clients=clients, enough=enough)


def site(groups: TrainingGroups, *, clients: int, alpha: float, data_seed: int) -> np.ndarray:
    """Make each site one client, numbered in the alphabetical order of the sites' names.

    A group seen at several sites goes to the one with most of its images (then the first by name).

    Returns:
        (G,) int, the client of each group.

    Raises:
        UserError: the dataset has no sites, or ``clients`` is not their number.
    """
    if groups.sites is None:
        known = "iid or dirichlet"
        raise UserError(f"--split site needs sites, which this dataset lacks; use --split {known}")
    names, index = np.unique(groups.sites, return_inverse=True)
    pairs = groups.index * len(names) + index.reshape(-1)
    counts = np.bincount(pairs, minlength=len(groups.sizes) * len(names)).reshape(-1, len(names))
    several = int(((counts > 0).sum(axis=1) > 1).sum())
    if several:
        logger.warning(
            "%d patients or lesions with several sites go to the one with most images", several
        )
    found, of_group = np.unique(counts.argmax(axis=1), return_inverse=True)
    if len(found) != clients:
        listed = ", ".join(str(name) for name in names[found][:8]) + ", ..." * (len(found) > 8)
        raise UserError(
            f"--split site makes one client a site and the training images have {len(found)} "
            f"({listed}), not {clients}; use --clients {len(found)}"
        )
    return of_group.reshape(-1)


SPLITS: dict[str, Split] = {"iid": iid, "dirichlet": dirichlet, "site": site}


def _dense(groups: np.ndarray | None, images: int) -> np.ndarray:
    """Number the groups 0 .. G-1."""
    if groups is None:
        return np.arange(images)
    return np.unique(groups, return_inverse=True)[1].reshape(-1)


def _training_groups(
    rows: np.ndarray, groups: np.ndarray | None, labels: np.ndarray, sites: np.ndarray | None
) -> TrainingGroups:
    index = _dense(None if groups is None else groups[rows], len(rows))
    return TrainingGroups(
        index=index,
        sizes=np.bincount(index),
        labels=labels[rows],
        sites=None if sites is None else sites[rows],
    )


def _check_clients(clients: int, training: TrainingGroups, *, grouped: bool) -> None:
    most, what = len(training.sizes), "patients or lesions" if grouped else "images"
    if clients < 1:
        raise UserError(f"--clients {clients} is out of range; give 1 or more")
    if clients > most:
        raise UserError(
            f"--clients {clients} is more than the {most} {what} left for training; "
            f"use --clients {most} or fewer"
        )


def _follow_fixed(part: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Send unassigned rows to the part that the files fix for another image of their group."""
    followed = part.astype(np.uint8)
    count = int(groups.max()) + 1 if len(groups) else 0
    parts_of_group = np.zeros(count, dtype=np.int64)
    for fixed in (TRAIN, VAL, TEST):  # the later wins: rather an image less than a patient in two
        has = np.zeros(count, dtype=bool)
        has[groups[part == fixed]] = True
        parts_of_group += has
        followed[(part == UNASSIGNED) & has[groups]] = fixed
    straddling = int((parts_of_group > 1).sum())
    if straddling:
        logger.warning(
            "the files put images of %d patients or lesions into several of train, val and test",
            straddling,
        )
    return followed


def _cut(
    source: np.ndarray,
    groups: np.ndarray,
    *,
    share: float,
    rng: np.random.Generator,
    option: str,
) -> np.ndarray:
    """Return (N,) bool: random whole groups that make about ``share`` of the ``source`` rows."""
    total = np.bincount(groups)
    inside = np.bincount(groups[source], minlength=len(total))
    whole = np.flatnonzero((inside > 0) & (inside == total))  # a straddling group is not spread on
    if len(whole) < 2:
        raise UserError(
            f"{option} {share} cannot be cut: it needs two images, of two patients where patients "
            f"are known; use {option} 0 or add images"
        )
    order = rng.permutation(whole)
    reached = np.cumsum(total[order])
    # the number of groups whose images come nearest to the share, leaving at least one group
    taken = 1 + int(np.abs(reached[:-1] - share * source.sum()).argmin())
    chosen = np.zeros(len(total), dtype=bool)
    chosen[order[:taken]] = True
    return source & chosen[groups]


def _primary_class(groups: TrainingGroups) -> np.ndarray:
    """(G,) the rarest positive class of each group; C where a group has no positive."""
    classes = groups.labels.shape[1]
    positive = np.zeros((len(groups.sizes), classes), dtype=bool)
    row, column = np.nonzero(groups.labels == 1)
    positive[groups.index[row], column] = True
    by_rarity = np.argsort(positive.sum(axis=0), kind="stable")
    first = positive[:, by_rarity].argmax(axis=1) if classes else 0
    return np.where(positive.any(axis=1), by_rarity[first], classes)


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
    for primary_class in rng.permutation(np.unique(primary)):
        members = rng.permutation(np.flatnonzero(primary == primary_class))
        still_open = np.flatnonzero(load * clients < sizes.sum())
        shares = _dirichlet_shares(len(still_open), alpha=alpha, rng=rng)
        before = np.cumsum(sizes[members]) - sizes[members]
        ends = np.cumsum(shares)[:-1] * sizes[members].sum()
        of_group[members] = still_open[np.searchsorted(ends, before, side="right")]
        load += np.bincount(of_group[members], weights=sizes[members], minlength=clients).astype(
            np.int64
        )
    return of_group


def _dirichlet_shares(count: int, *, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Draw from Dir(alpha) through log-gammas, which do not underflow at alpha near 0.

    Gamma(a) equals Gamma(a + 1) * U ** (1 / a) in distribution (Marsaglia and Tsang, 2000).
    """
    alpha = min(max(alpha, 1e-6), 1e12)  # one client takes all, or equal shares, to float accuracy
    uniform = 1 - rng.random(count)  # in (0, 1], so that its logarithm is finite
    log_gamma = np.log(rng.standard_gamma(alpha + 1, count)) + np.log(uniform) / alpha
    shares = np.exp(log_gamma - log_gamma.max())
    return shares / shares.sum()


def _fill_small_clients(
    of_group: np.ndarray, sizes: np.ndarray, *, clients: int, enough: int
) -> np.ndarray:
    """Move the smallest groups of the largest client to the smallest, until it has ``enough``.

    A move needs the giver to stay larger than the taker was, so the sum of squared sizes falls
    with each move and the loop ends.
    """
    of_group = of_group.copy()
    by_size = np.argsort(-sizes, kind="stable")
    by_client = by_size[np.argsort(of_group[by_size], kind="stable")]
    ends = np.cumsum(np.bincount(of_group, minlength=clients))[:-1]
    held = [chunk.tolist() for chunk in np.split(by_client, ends)]  # the smallest group is last
    load = np.bincount(of_group, weights=sizes, minlength=clients).astype(np.int64)
    can_give = np.array([len(chunk) > 1 for chunk in held])
    while load[taker := int(load.argmin())] < enough and can_give.any():
        giver = int(np.where(can_give, load, -1).argmax())
        size = sizes[held[giver][-1]]
        if load[giver] - size <= load[taker]:
            break
        moved = held[giver].pop()
        held[taker].append(moved)
        of_group[moved] = taker
        load[giver], load[taker] = load[giver] - size, load[taker] + size
        can_give[giver], can_give[taker] = len(held[giver]) > 1, len(held[taker]) > 1
    return of_group
