"""Label noise: which training labels an annotator gets wrong, and what is written instead.

- Every type is coupled: the random numbers belong to the image (its row in the dataset) and the
  class, and never to the rate. A higher rate adds corrupted images or cells and leaves the earlier
  ones as they are.
- Another number or order of clients draws the same numbers. Only the rates of ``reader`` belong to
  the number of a client, whatever the number of clients.
- Cells without a label (NaN) stay without one.
"""

from __future__ import annotations

import logging

import numpy as np

from utils_.errors import UserError, nearest
from utils_.noise.base import NoiseModel, Rate, TrainingLabels
from utils_.noise.cells import commission, flip, omission, pair, symmetric
from utils_.noise.client_rates import CLIENT_RATES, client_rates
from utils_.noise.instance import instance
from utils_.noise.paper import paper
from utils_.noise.reader import reader, reader_profile, reader_rates

__all__ = [
    "CLIENT_RATES",
    "NOISE_TYPES",
    "TrainingLabels",
    "add_noise",
    "client_rates",
    "flip",
    "reader_profile",
    "reader_rates",
]

logger = logging.getLogger("fednml")


def add_noise(
    labels: np.ndarray,
    client: np.ndarray,
    *,
    rate: float | np.ndarray,
    noise_type: str,
    data_seed: int,
    classes: tuple[str, ...] = (),
    pixels: np.ndarray | None = None,
) -> np.ndarray:
    """Return the labels with noise in the training rows.

    Args:
        labels: (N, C) float32 of 0, 1 and NaN.
        client: (N,) int32, -1 outside train.
        rate: in [0, 1], one number or (K,), one for each client. What it is a rate of depends on
            the type.
        noise_type: a name of ``NOISE_TYPES``.
        data_seed: the seed of the data.
        classes: C names, read by ``pair`` and ``reader``. If there are none, no name is known.
        pixels: (N, H, W, 3) uint8, read by ``instance``. If None, random numbers stand in.

    Returns:
        (N, C) float32, NaN where ``labels`` is; unchanged where ``client`` is -1.

    Raises:
        UserError: unknown type, or a rate outside [0, 1].
    """
    if noise_type not in NOISE_TYPES:
        raise UserError(f"--noise-type {noise_type} is unknown; {nearest(noise_type, NOISE_TYPES)}")
    rates = np.atleast_1d(rate)
    wrong = rates[~((rates >= 0) & (rates <= 1))]
    if len(wrong):
        raise UserError(f"--noise {wrong[0]:g} is out of range; give a rate from 0 to 1")
    noisy = labels.astype(np.float32)
    rows = np.flatnonzero(client >= 0)
    if not rates.any() or not len(rows):
        return noisy
    of_row = rates[client[rows], None] if np.ndim(rate) else float(rate)
    training = TrainingLabels(
        noisy[rows], client[rows], rows, len(labels), data_seed, classes, pixels
    )
    changed = np.where(training.known, NOISE_TYPES[noise_type](training, of_row), np.nan)
    if noise_type != "none" and np.array_equal(changed, training.labels, equal_nan=True):
        logger.warning("--noise-type %s changes no label at this rate", noise_type)
    noisy[rows] = changed
    return noisy


def no_noise(training: TrainingLabels, rate: Rate) -> np.ndarray:
    """Leave the labels as they are, whatever the rate."""
    return training.labels.copy()


NOISE_TYPES: dict[str, NoiseModel] = {
    "paper": paper,
    "symmetric": symmetric,
    "pair": pair,
    "flip": flip,
    "omission": omission,
    "commission": commission,
    "instance": instance,
    "reader": reader,
    "none": no_noise,
}
