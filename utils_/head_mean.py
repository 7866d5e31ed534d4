"""Rows of the classification head averaged class by class (FedLSM's proxy aggregation)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


class HeadMean:
    """Folds the heads of passing reports into one sum, row c weighted by the seen cases of c.

    A report says in its extras what it has seen, ``seen`` (C,), and where its head lies in the
    vector, ``head``: start and end of the (C, D) weight and start of the (C,) bias.
    """

    def __init__(self) -> None:
        self._place: np.ndarray | None = None
        self._weight = self._bias = self._seen = torch.zeros(())

    def tap(self, reports: Iterable[Any]) -> Iterator[Any]:
        """Hand the reports on, one at a time, and take their heads in passing."""
        for report in reports:
            self._fold(report.model, report.extras["seen"], report.extras["head"])
            yield report

    def _fold(self, vector: Tensor, seen: np.ndarray, place: np.ndarray) -> None:
        counts = torch.from_numpy(seen).double()
        weight, bias = _head(vector, place, len(seen))
        self._place, self._seen = place, self._seen + counts
        self._weight = self._weight + counts[:, None] * weight.double()
        self._bias = self._bias + counts * bias.double()

    def write(self, vector: Tensor) -> Tensor:
        """A copy of ``vector`` with the means in it, but for the classes that nobody has seen."""
        vector = vector.clone()
        weight, bias = _head(vector, self._place, len(self._seen))
        rows = self._seen > 0
        weight[rows] = (self._weight[rows] / self._seen[rows, None]).to(vector)
        bias[rows] = (self._bias[rows] / self._seen[rows]).to(vector)
        return vector


def _head(vector: Tensor, place: np.ndarray, classes: int) -> tuple[Tensor, Tensor]:
    """Views of the head's weight (C, D) and bias (C,)."""
    start, stop, bias = place.tolist()
    return vector[start:stop].view(classes, -1), vector[bias : bias + classes]
