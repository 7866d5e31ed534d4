"""The server: who takes part, what is sent, how reports become the next model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from src.messages import CLASS_COUNTS, Broadcast, Report, message_bytes

if TYPE_CHECKING:
    from src.methods.base import Method


class Server:
    """Holds the global vector and what the method remembers; never sees an image or a label.

    Attributes:
        model: (P,) float32, the global model.
        memory: arrays that last between rounds (checkpointed).
        round: number of the next round, from 0.
        bytes_up: bytes received in the latest round.
    """

    def __init__(self, model: Tensor, method: Method) -> None:
        self.model, self.method = model, method
        self.memory: dict[str, np.ndarray] = {}
        self.round = 0
        self.bytes_up = 0
        self._introduced = 0  # bytes received before the first round, counted with it

    def meet(self, introductions: Iterable[Report]) -> None:
        """Before the first round: keep the sum of the class counts that the sites tell."""
        for report in introductions:
            self._introduced += message_bytes(report)
            if CLASS_COUNTS in report.extras:
                total = self.memory.get(CLASS_COUNTS, 0)
                self.memory[CLASS_COUNTS] = total + report.extras[CLASS_COUNTS]

    def select(self) -> list[int]:
        """Clients of this round, ascending."""
        return self.method.select(self)

    def broadcast(self) -> Broadcast:
        """What every selected client receives."""
        shared = {n: self.memory[n] for n in (CLASS_COUNTS,) if n in self.memory}
        return Broadcast(self.round, self.model, shared | self.method.extras(self))

    def finish_round(self, reports: Iterable[Report]) -> list[Report]:
        """Fold the reports into the next model, one at a time; return them without their models.

        Raises:
            FloatingPointError: a client reports a model that is not finite.
        """
        received: list[Report] = []
        self.bytes_up, self._introduced = self._introduced, 0
        self.model = self.method.aggregate(self, self._receive(reports, received))
        self.method.after_round(self, received)
        self.round += 1
        return received

    def _receive(self, reports: Iterable[Report], received: list[Report]) -> Iterator[Report]:
        for report in reports:
            if not torch.isfinite(report.model).all():
                raise FloatingPointError(
                    f"round {self.round}: client {report.client} reports values that are not "
                    "finite; try a smaller --lr"
                )
            self.bytes_up += message_bytes(report)
            received.append(replace(report, model=None))
            yield report
