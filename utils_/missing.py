"""Missing labels: which cells of the training rows nobody annotated.

- Every type is coupled. The random numbers belong to the client and class, or to the image and its
  cells, and never to the amount, so hiding more only adds hidden cells.
- ``classes``, ``cells`` and ``images`` read no label value.
- ``positive_only`` and ``single_positive`` must read them. What they hide depends on what the
  annotator would have written, so the mask itself says something about the labels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from utils_.errors import UserError, nearest
from utils_.rng import derive

logger = logging.getLogger("fednml")


@dataclass(frozen=True)
class HidableCells:
    """The cells that a type hides from.

    Attributes:
        client: (N,) int32, -1 outside train.
        labels: (N, C) float32, what the annotators would write; NaN blank in the files.
        clients: K.
        data_seed: the seed of the data.
    """

    client: np.ndarray
    labels: np.ndarray
    clients: int
    data_seed: int

    @property
    def known(self) -> np.ndarray:
        """(N, C) bool, training cells with a label."""
        cells: np.ndarray = ~np.isnan(self.labels) & (self.client >= 0)[:, None]
        return cells

    def uniform(self, name: str, *shape: int) -> np.ndarray:
        """Numbers in [0, 1), from the stream ``name``."""
        return derive(self.data_seed, "missing", name).random(shape)


MissingModel = Callable[[HidableCells, float | int], np.ndarray]  # the result: visible (N, C) bool


def visible_cells(
    client: np.ndarray,
    *,
    classes: int,
    clients: int,
    missing: float | int,
    missing_type: str,
    data_seed: int,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """Return which cells stay visible; all of them outside train.

    Args:
        client: (N,) int32, -1 outside train.
        classes: C.
        clients: K.
        missing: 0 nothing; a float is a share, an int a count, of what the type hides.
        missing_type: a name of ``MISSING_TYPES``.
        data_seed: the seed of the data.
        labels: (N, C) what the annotators would write, NaN blank; None: all negative.

    Returns:
        (N, C) bool, True = visible. Every class that has a label stays annotated somewhere.

    Raises:
        UserError: unknown type, or a value that is out of range or leaves a class to nobody.
    """
    if missing_type not in MISSING_TYPES:
        hint = nearest(missing_type, MISSING_TYPES)
        raise UserError(f"--missing-type {missing_type} is unknown; {hint}")
    if labels is None:
        labels = np.zeros((len(client), classes), dtype=np.float32)
    visible = MISSING_TYPES[missing_type](HidableCells(client, labels, clients, data_seed), missing)
    visible[client < 0] = True
    if missing > 0 and missing_type != "classes" and visible.all():
        logger.warning("--missing %s hides no label of these data", missing)
    return visible


# ---- whole classes of a client


def hidden_count(missing: float | int, classes: int) -> int:
    """Return how many of the classes ``missing`` hides.

    A float is a share: floor(share * C + 1/2) classes, at most C - 1. An int is the count.

    Raises:
        UserError: a share outside [0, 1), or a count outside 0 .. C - 1.
    """
    _check_classes(missing, classes)
    if _is_count(missing):
        return int(missing)
    count = min(math.floor(missing * classes + 0.5), classes - 1)
    if missing > 0 and count == 0:
        logger.warning(
            "--missing %s of %d classes rounds to none: no label is hidden", missing, classes
        )
    return count


def _check_classes(missing: float | int, classes: int) -> None:
    usage = f"give a share from 0 up to below 1, or a whole number of classes up to {classes - 1}"
    if _is_count(missing) and not 0 <= missing < classes:
        raise UserError(f"--missing {missing} is out of range for {classes} classes; {usage}")
    if not _is_count(missing) and (not _is_share(missing) or missing == 1):
        raise UserError(f"--missing {missing} is out of range; {usage}")


def hide_classes(cells: HidableCells, missing: float | int) -> np.ndarray:
    """Hide from each client the same number of classes, every class annotated by at least one.

    Any one client's set of classes is uniform over all sets of its size. Coupled: a client that
    hides more classes hides those of the lower value too (see :func:`class_ranks`).

    Returns:
        (N, C) bool, True = visible; rows of client -1 are without meaning.

    Raises:
        UserError: K (C - hidden) < C, so that a class would be annotated by nobody.
    """
    classes, clients = cells.labels.shape[1], cells.clients
    hidden = hidden_count(missing, classes)
    most = classes - math.ceil(classes / clients)
    if hidden > most:
        needed = math.ceil(classes / (classes - hidden))
        raise UserError(
            f"--missing {missing} leaves {classes - hidden} of {classes} classes to each of "
            f"{clients} client(s), so a class would be annotated by nobody; "
            f"use --missing {most}{' or less' if most else ''}, or --clients {needed} or more"
        )
    ranks = class_ranks(clients, classes, data_seed=cells.data_seed)
    visible: np.ndarray = (ranks < classes - hidden)[cells.client]
    return visible


def class_ranks(clients: int, classes: int, *, data_seed: int) -> np.ndarray:
    """Rank the classes of each client once; a client that keeps m classes keeps ranks below m.

    The classes are dealt to the clients at random and evenly. Each client ranks those dealt to it
    first and the others after them, both at random. No client is dealt more than ceil(C/K), so
    wherever K m >= C each class is kept by the client it was dealt to: one ranking serves every m.

    Returns:
        (K, C) int, each row a permutation of 0 .. C-1.
    """
    rng = derive(data_seed, "missing", "classes")
    dealt_to = rng.permutation(np.resize(rng.permutation(clients), classes))
    key = rng.random((clients, classes))
    key[dealt_to, np.arange(classes)] -= 1
    return np.argsort(np.argsort(key, axis=1), axis=1)


# ---- cells and images


def hide_cells(cells: HidableCells, missing: float | int) -> np.ndarray:
    """Hide cells completely at random (MCAR): each with the share's chance, or a count an image.

    Of every class and of every client the cell with the largest random number always stays.

    Returns:
        (N, C) bool, True = visible.

    Raises:
        UserError: a share outside [0, 1), or a count outside 0 .. C - 1.
    """
    _check_classes(missing, cells.labels.shape[1])
    key = cells.uniform("cells", *cells.labels.shape)
    if _is_count(missing):
        hidden = np.argsort(np.argsort(key, axis=1), axis=1) < missing
    else:
        hidden = key < missing
    visible: np.ndarray = ~hidden | _last(cells, np.zeros_like(hidden), key)
    return visible


def hide_images(cells: HidableCells, missing: float | int) -> np.ndarray:
    """Hide all labels of some images: floor(share * n_k + 1/2) of each client, or a count.

    Of every class (among the images with a label for it) and of every client the image with the
    largest random number always stays labelled.

    Returns:
        (N, C) bool, True = visible.

    Raises:
        UserError: a share outside [0, 1), or a count that leaves a client or class without label.
    """
    if not _is_count(missing) and (not _is_share(missing) or missing == 1):
        raise UserError(
            f"--missing {missing} is out of range; give a share from 0 up to below 1, or a whole "
            "number of images of each client"
        )
    key = cells.uniform("images", len(cells.client))
    by_cell = np.broadcast_to(key[:, None], cells.labels.shape)
    stays = np.any(_last(cells, np.zeros(cells.labels.shape, dtype=bool), by_cell), axis=1)
    return np.broadcast_to(
        ~_chosen_images(cells, missing, key, stays)[:, None], by_cell.shape
    ).copy()


def hide_negatives(cells: HidableCells, missing: float | int) -> np.ndarray:
    """Leave of some images only the positives: floor(share * n_k + 1/2) of each client, or a count.

    Share 1.0 is positive-only annotation throughout. A class or client without any positive keeps
    one negative, so that each is annotated somewhere.

    Returns:
        (N, C) bool, True = visible.

    Raises:
        UserError: a share outside [0, 1], or a count above the images of a client.
    """
    return _hide_but(cells, cells.labels == 1, missing)


def hide_but_one(cells: HidableCells, missing: float | int) -> np.ndarray:
    """Leave of some images a single positive, drawn at random; else as :func:`hide_negatives`.

    This is the single-positive setting of Cole et al., CVPR 2021. A class that by chance would
    stay nowhere keeps one more positive.
    """
    positive = cells.labels == 1
    key = np.where(positive, cells.uniform("positive", *positive.shape), -1)
    single = np.arange(positive.shape[1]) == key.argmax(axis=1)[:, None]
    return _hide_but(cells, positive & single, missing)


def _hide_but(cells: HidableCells, kept: np.ndarray, missing: float | int) -> np.ndarray:
    """Hide from some images all but the cells ``kept`` (N, C)."""
    if not _is_count(missing) and not _is_share(missing):
        raise UserError(
            f"--missing {missing} is out of range; give a share of the images from 0 to 1.0, or a "
            "whole number of images of each client"
        )
    key = cells.uniform("images", len(cells.client))
    chosen = _chosen_images(cells, missing, key, np.zeros(len(key), dtype=bool))
    positives_first = (cells.labels == 1) + cells.uniform("cells", *cells.labels.shape)
    visible: np.ndarray = ~chosen[:, None] | kept | _last(cells, kept, positives_first)
    return visible


def _chosen_images(
    cells: HidableCells, missing: float | int, key: np.ndarray, stays: np.ndarray
) -> np.ndarray:
    """(N,) bool: of each client the images of smallest key, none of those that stay."""
    rows = np.flatnonzero(cells.client >= 0)
    client, sizes = cells.client[rows], np.bincount(cells.client[rows], minlength=cells.clients)
    most = sizes - np.bincount(client[stays[rows]], minlength=cells.clients)
    quota = np.floor(missing * sizes + 0.5)
    if _is_count(missing):
        quota = np.full(cells.clients, missing)
        if not 0 <= missing <= most.min():
            raise UserError(
                f"--missing {missing} is out of range: of client {most.argmin()} at most "
                f"{most.min()} of {sizes[most.argmin()]} images can be hidden; "
                "give a lower count or a share such as 0.5"
            )
    order = np.lexsort((key[rows] + stays[rows], client))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = np.zeros(len(key), dtype=bool)
    chosen[rows[order[rank < np.repeat(np.minimum(quota, most), sizes)]]] = True
    return chosen


def _last(cells: HidableCells, visible: np.ndarray, key: np.ndarray) -> np.ndarray:
    """(N, C) bool: a cell for each class and each client that would see none otherwise.

    It is the one of largest ``key``. ``visible`` (N, C) is what stays when as much is hidden as can
    be. It does not depend on the amount, and so the result does not.
    """
    known = cells.known
    key, last = np.where(known, key, -1), np.zeros_like(known)
    empty = known.any(axis=0) & ~(visible & known).any(axis=0)
    last[key.argmax(axis=0)[empty], np.flatnonzero(empty)] = True
    rows = np.flatnonzero(known.any(axis=1))
    client, best = cells.client[rows], key[rows].max(axis=1)
    order = np.lexsort((best, client))
    ends = order[np.flatnonzero(np.diff(client[order], append=-1))]  # the best row of each client
    sees = np.zeros(cells.clients, dtype=bool)
    sees[client[((visible | last) & known)[rows].any(axis=1)]] = True
    ends = rows[ends[~sees[client[ends]]]]
    last[ends, key[ends].argmax(axis=1)] = True
    return last


def _is_count(missing: float | int) -> bool:
    return isinstance(missing, Integral) and not isinstance(missing, bool)


def _is_share(missing: float | int) -> bool:
    return isinstance(missing, Real) and not isinstance(missing, bool) and 0 <= missing <= 1


MISSING_TYPES: dict[str, MissingModel] = {
    "classes": hide_classes,
    "cells": hide_cells,
    "images": hide_images,
    "positive_only": hide_negatives,
    "single_positive": hide_but_one,
}
UP_TO_ALL = ("positive_only", "single_positive")  # the types whose share may be 1
