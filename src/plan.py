"""What every method is handed: the plan of the run, and one step's data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """What all methods of a comparison share: the schedule, the local optimiser, the loss.

    Its fields are settings of the same names, see :class:`src.config.Config`, and ``classes``, the
    number of classes C.
    """

    clients: int
    classes: int
    rounds: int
    warmup_rounds: int
    local_epochs: int
    batch_size: int
    lr: float
    lr_schedule: str
    optimizer: str
    momentum: float
    weight_decay: float
    fraction: float
    aggregator: str
    aggregator_param: dict[str, Any]
    suppress_outliers: bool
    buffers: str
    seed: int
    loss: str
    loss_param: dict[str, Any]
    class_weights: str
    head_bias: str
    consistency: float
    augment: str
    freeze_rounds: int

    @property
    def clients_per_round(self) -> int:
        """At least one; the small term is for shares such as 0.29, whose product is 28.99..."""
        return max(1, int(self.fraction * self.clients + 1e-9))

    def lr_at(self, round: int) -> float:
        """Learning rate of a round: constant, or half a cosine from ``lr`` towards 0."""
        if self.lr_schedule == "constant":
            return self.lr
        return self.lr * (1 + math.cos(math.pi * round / self.rounds)) / 2


@dataclass(frozen=True)
class Batch:
    """One step's data, on the device.

    Attributes:
        images: (B, 3, H, W) float32, normalised, augmented as ``--augment`` says (weakly).
        second: another view of the same images, as the method's ``second_view`` says, or a strong
            one where only ``--consistency`` asks for it; empty where nobody does.
        rows: (B,) int64 positions in the client's own arrays (CPU).
        target: (B, C) float32 in [0, 1]; 0 where weight is 0.
        weight: (B, C) float32, the label's weight in [0, 1] times the image's, see
            :meth:`src.client.Client.train`.
        step: number of the step in this round, from 0, over all local epochs.
    """

    images: Tensor
    second: Tensor
    rows: np.ndarray
    target: Tensor
    weight: Tensor
    step: int = 0
