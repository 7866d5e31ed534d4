"""Cuts images into train, val and test, then train into clients; a patient or lesion stays whole.

Test and val are cut first. Only ``dirichlet``, ``shards`` and ``phi`` read label values, and only
those of the training part: val, test and the other splits are the same whatever the labels say.
"""

from __future__ import annotations

import numpy as np

from utils_.datasets.base import TRAIN
from utils_.errors import UserError, nearest
from utils_.splits.base import MIN_IMAGES, Deal, Split, TrainingGroups, training_groups
from utils_.splits.parts import cut_parts
from utils_.splits.plain import iid, quantity, site
from utils_.splits.skewed import dirichlet, phi, shards

__all__ = [
    "MIN_IMAGES",
    "SPLITS",
    "Deal",
    "TrainingGroups",
    "assign_clients",
    "cut_parts",
]

SPLITS: dict[str, Split] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "quantity": quantity,
    "shards": shards,
    "phi": phi,
    "site": site,
}


def assign_clients(
    part: np.ndarray,
    groups: np.ndarray | None,
    labels: np.ndarray,
    sites: np.ndarray | None,
    *,
    split: str,
    deal: Deal,
) -> np.ndarray:
    """Deal the training images to the clients, every client at least one image.

    Args:
        part: (N,) uint8 as :func:`cut_parts` returns it.
        groups: (N,) int64 or None.
        labels: (N, C) float32, read by ``dirichlet``, ``shards`` and ``phi`` only.
        sites: (N,) names or None, read by ``site`` only.
        split: a name of ``SPLITS``.
        deal: among how many clients, by which numbers.

    Returns:
        (N,) int32, the client's number, -1 outside train.

    Raises:
        UserError: unknown split, no training image, more clients than groups, or as the split says.
    """
    if split not in SPLITS:
        raise UserError(f"--split {split} is unknown; {nearest(split, SPLITS)}")
    rows = np.flatnonzero(part == TRAIN)
    if not len(rows):
        raise UserError(
            "no training image is left: the files put each one, or another of its patient, into "
            "val or test; take some out of these files, or check the ids of the patients"
        )
    training = training_groups(rows, groups, labels, sites)
    _check_clients(deal.clients, training, images=None if groups is None else len(rows))
    of_group = SPLITS[split](training, deal)
    client = np.full(len(part), -1, dtype=np.int32)
    client[rows] = of_group[training.index]
    return client


def _check_clients(clients: int, training: TrainingGroups, *, images: int | None) -> None:
    """Refuse more clients than groups; ``images`` is how many they hold, None if one each."""
    most = len(training.sizes)
    if clients < 1:
        raise UserError(f"--clients {clients} is out of range; give 1 or more")
    if clients > most:
        what, ids = "images", ""
        if images is not None:
            what = f"patients or lesions (of {images} images)"
            ids = "check the ids of the patients if there should be more, else "
        raise UserError(
            f"--clients {clients} is more than the {most} {what} left for training; {ids}"
            f"use --clients {most} or fewer"
        )
