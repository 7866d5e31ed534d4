"""Missing labels: which cells of the training rows nobody looked at. Label values play no role."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from numbers import Integral, Real

import numpy as np

from utils_.errors import UserError, nearest
from utils_.rng import derive

logger = logging.getLogger("fednml")

# (client (N,), *, classes, clients, missing, data_seed) -> visible (N, C) bool
MissingModel = Callable[..., np.ndarray]


def visible_cells(
    client: np.ndarray,
    *,
    classes: int,
    clients: int,
    missing: float | int,
    missing_type: str,
    data_seed: int,
) -> np.ndarray:
    """Return which cells stay visible; all of them outside train.

    Args:
        client: (N,) int32, -1 outside train.
        classes: C.
        clients: K.
        missing: 0 nothing; a float in (0, 1) is a share, an int a count, of what the type hides.
        missing_type: a name of ``MISSING_TYPES``.
        data_seed: the seed of the data.

    Returns:
        (N, C) bool, True = visible.

    Raises:
        UserError: unknown type, or a value that is out of range or leaves a class to nobody.
    """
    if missing_type not in MISSING_TYPES:
        hint = nearest(missing_type, MISSING_TYPES)
        raise UserError(f"--missing-type {missing_type} is unknown; {hint}")
    visible = MISSING_TYPES[missing_type](
        client, classes=classes, clients=clients, missing=missing, data_seed=data_seed
    )
    visible[client < 0] = True
    return visible


def hidden_count(missing: float | int, classes: int) -> int:
    """Return how many of the classes ``missing`` hides from each client.

    A float is a share: floor(share * C + 1/2) classes, at most C - 1. An int is the count.

    Raises:
        UserError: a share outside [0, 1), or a count outside 0 .. C - 1.
    """
    usage = f"give a share from 0 up to below 1, or a whole number of classes up to {classes - 1}"
    if isinstance(missing, Integral) and not isinstance(missing, bool):
        if not 0 <= missing < classes:
            raise UserError(f"--missing {missing} is out of range for {classes} classes; {usage}")
        return int(missing)
    if isinstance(missing, bool) or not isinstance(missing, Real) or not 0 <= missing < 1:
        raise UserError(f"--missing {missing} is out of range; {usage}")
    count = min(math.floor(missing * classes + 0.5), classes - 1)
    if missing > 0 and count == 0:
        logger.warning(
            "--missing %s of %d classes rounds to none: no label is hidden", missing, classes
        )
    return count


def hide_classes(
    client: np.ndarray, *, classes: int, clients: int, missing: float | int, data_seed: int
) -> np.ndarray:
    """Hide from each client the same number of classes, every class annotated by at least one.

    Any one client's set of classes is uniform over all sets of its size. Coupled: a client that
    hides more classes hides those of the lower value too (see :func:`class_ranks`).

    Returns:
        (N, C) bool, True = visible; rows of client -1 are without meaning.

    Raises:
        UserError: K (C - hidden) < C, so that a class would be annotated by nobody.
    """
    hidden = hidden_count(missing, classes)
    most = classes - math.ceil(classes / clients)
    if hidden > most:
        needed = math.ceil(classes / (classes - hidden))
        raise UserError(
            f"--missing {missing} leaves {classes - hidden} of {classes} classes to each of "
            f"{clients} client(s), so a class would be annotated by nobody; "
            f"use --missing {most} or less, or --clients {needed} or more"
        )
    return (class_ranks(clients, classes, data_seed=data_seed) < classes - hidden)[client]


def class_ranks(clients: int, classes: int, *, data_seed: int) -> np.ndarray:
    """Rank the classes of each client once; a client that keeps a classes keeps ranks below a.

    The classes are dealt at random and evenly, and each client ranks those dealt to it first, the
    others after them, both at random. No client is dealt more than ceil(C/K), so wherever
    K a >= C each class is kept by the client it was dealt to: one ranking serves every count.

    Returns:
        (K, C) int, each row a permutation of 0 .. C-1.
    """
    rng = derive(data_seed, "missing", "classes")
    dealt_to = rng.permutation(np.resize(rng.permutation(clients), classes))
    key = rng.random((clients, classes))
    key[dealt_to, np.arange(classes)] -= 1
    return np.argsort(np.argsort(key, axis=1), axis=1)


MISSING_TYPES: dict[str, MissingModel] = {"classes": hide_classes}
