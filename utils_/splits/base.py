"""What a split sees and is asked for, and what several splits share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from utils_.errors import UserError

FAR = 0.5  # from the images that were asked for, in shares of them, is worth a warning
MIN_IMAGES = 10  # of a client under a skewed split, as NIID-bench (Li et al., ICDE 2022)


@dataclass(frozen=True, kw_only=True)
class Deal:
    """What a split is asked for.

    Attributes:
        clients: K, at least 1.
        data_seed: the seed of the data.
        alpha: concentration of the Dirichlet draws, above 0 (``dirichlet``, ``quantity``, ``phi``).
        shards: shards a client, at least 1 (``shards``).
        phi: chance that a client has a class, in [0, 1] (``phi``).
    """

    clients: int
    data_seed: int
    alpha: float
    shards: int
    phi: float

    def checked_alpha(self) -> float:
        """Return ``alpha`` once it is checked.

        Raises:
            UserError: it is not a positive number.
        """
        if not (np.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(
                f"--alpha {self.alpha} is out of range; give a number above 0, such as 0.5"
            )
        return self.alpha


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


Split = Callable[[TrainingGroups, Deal], np.ndarray]  # the result: (G,) client of each group


def dense(groups: np.ndarray | None, images: int) -> np.ndarray:
    """(images,) the groups, numbered 0 .. G-1; if None, every image is one."""
    if groups is None:
        return np.arange(images)
    return np.unique(groups, return_inverse=True)[1]


def training_groups(
    rows: np.ndarray, groups: np.ndarray | None, labels: np.ndarray, sites: np.ndarray | None
) -> TrainingGroups:
    """Take the training ``rows`` of the arrays of all N images."""
    index = dense(None if groups is None else groups[rows], len(rows))
    return TrainingGroups(
        index=index,
        sizes=np.bincount(index),
        labels=labels[rows],
        sites=None if sites is None else sites[rows],
    )


def primary_class(groups: TrainingGroups) -> np.ndarray:
    """(G,) the rarest positive class of each group; C where a group has no positive."""
    classes = groups.labels.shape[1]
    positive = np.zeros((len(groups.sizes), classes), dtype=bool)
    row, column = np.nonzero(groups.labels == 1)
    positive[groups.index[row], column] = True
    by_rarity = np.argsort(positive.sum(axis=0), kind="stable")
    first = positive[:, by_rarity].argmax(axis=1)
    primary: np.ndarray = np.where(positive.any(axis=1), by_rarity[first], classes)
    return primary


def enough_images(groups: TrainingGroups, clients: int) -> int:
    """A tenth of the mean size, but no less than 2 and no more than ``MIN_IMAGES`` images."""
    return min(MIN_IMAGES, max(2, len(groups.index) // clients // 10))


def dirichlet_shares(count: int, *, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Draw from Dir(alpha) through log-gammas, which do not underflow at alpha near 0.

    Gamma(a) equals Gamma(a + 1) * U ** (1 / a) in distribution (Marsaglia and Tsang, 2000).
    """
    # At these bounds one client takes all, or shares are equal, to the accuracy of floats.
    alpha = min(max(alpha, 1e-6), 1e12)
    uniform = 1 - rng.random(count)  # in (0, 1], so that its logarithm is finite
    log_gamma = np.log(rng.standard_gamma(alpha + 1, count)) + np.log(uniform) / alpha
    shares = np.exp(log_gamma - log_gamma.max())
    normalised: np.ndarray = shares / shares.sum()
    return normalised


def cut_by_shares(sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Cut groups, in their order, into runs whose images are about in proportion to ``shares``.

    Args:
        sizes: (g,) images of each group.
        shares: (s,) that add up to 1.

    Returns:
        (g,) int, which share each group falls into, by the images that come before it.
    """
    before = np.cumsum(sizes) - sizes
    share: np.ndarray = np.searchsorted(np.cumsum(shares)[:-1] * sizes.sum(), before, side="right")
    return share


def fill_small_clients(
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
