"""What a noise model sees: the training labels, the pixels, and random numbers of each image."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from utils_.rng import derive

Rate = float | np.ndarray  # one number for all rows, or (n, 1): the rate of each row's client


@dataclass(frozen=True)
class TrainingLabels:
    """The n training rows that noise acts on, and the random numbers that belong to them.

    Attributes:
        labels: (n, C) float32 of 0, 1 and NaN (not annotated in the files).
        client: (n,) int32, the client that holds each row.
        rows: (n,) int64, their rows in the dataset.
        images: N, rows of the whole dataset.
        data_seed: the seed of the data.
        classes: C names, or none where they are not known.
        pixels: (N, H, W, 3) uint8 of the whole dataset, or None where they are not at hand.
    """

    labels: np.ndarray
    client: np.ndarray
    rows: np.ndarray
    images: int
    data_seed: int
    classes: tuple[str, ...] = ()
    pixels: np.ndarray | None = None

    @property
    def known(self) -> np.ndarray:
        """(n, C) bool, cells with a label."""
        cells: np.ndarray = ~np.isnan(self.labels)
        return cells

    @property
    def positive(self) -> np.ndarray:
        """(n, C) bool, cells labelled 1."""
        cells: np.ndarray = self.labels == 1
        return cells

    def draw(self, name: str, sample: Callable[[np.random.Generator], np.ndarray]) -> np.ndarray:
        """Draw for all N images of the dataset, from the stream ``name``, and keep our rows."""
        drawn: np.ndarray = sample(derive(self.data_seed, "noise", name))[self.rows]
        return drawn

    def uniform(self, name: str) -> np.ndarray:
        """(n, C) numbers in [0, 1) that belong to the cells, from the stream ``name``."""
        shape = (self.images, self.labels.shape[1])
        return self.draw(name, lambda rng: rng.random(shape))


NoiseModel = Callable[[TrainingLabels, Rate], np.ndarray]  # the result: noisy labels (n, C)


def plain_name(name: str) -> str:
    """Letters and digits in lower case: ``Pleural_Thickening`` becomes ``pleuralthickening``."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
