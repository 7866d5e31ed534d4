"""The server: who takes part, what is sent, how reports become the next model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from src.aggregation import Frame, Layout, fault
from src.messages import CLASS_COUNTS, NO_MODEL, Arrays, Broadcast, Report, message_bytes
from src.outliers import OUTLYING, UpdateWatch, credit, severity
from utils_.arrays import all_finite
from utils_.errors import Diverged
from utils_.priors import log_prior_odds
from utils_.site_names import SiteNames

if TYPE_CHECKING:
    from src.methods.base import Method

NO_NAMES = SiteNames()
logger = logging.getLogger("fednml")


class NoReportLeft(RuntimeError):
    """Every report of a round was rejected; the message names the clients and the reasons."""


class Server:
    """Holds the global vector and what the method remembers; never sees an image or a label.

    Attributes:
        model: (P,) float32, the global model.
        memory: arrays that last between rounds (checkpointed).
        round: number of the next round, from 0.
        bytes_up: bytes received in the latest round.
        layout: what lies where in the model.
        rejected: of the latest round, {client: why its report could not be used}.
        scores: of the latest round, {client: {score: robust z}}, see src/outliers.py; empty below
            four reports.
    """

    def __init__(
        self,
        model: Tensor,
        method: Method,
        layout: Layout | None = None,
        *,
        names: SiteNames = NO_NAMES,
    ) -> None:
        """Start from ``model``; without a layout all of it are parameters.

        ``names`` says what the clients are called in messages.
        """
        self.names = names
        self.model, self.method = model, method
        self.layout = layout or Layout(len(model))
        self.memory: Arrays = {}
        self.round = 0
        self.bytes_up = 0
        self.rejected: dict[int, str] = {}
        self.scores: dict[int, dict[str, float]] = {}
        self._watch = UpdateWatch(self.layout.parameters, seed=method.plan.seed)
        self._introduced = 0  # bytes received before the first round, counted with it

    def meet(self, introductions: Iterable[Report]) -> None:
        """Before the first round: keep the sum of the class counts that the sites tell.

        With ``--head-bias prior`` the biases of the head start at the log odds of these counts.
        """
        for report in introductions:
            self._introduced += message_bytes(report)
            if CLASS_COUNTS in report.extras:
                total = self.memory.get(CLASS_COUNTS, 0)
                self.memory[CLASS_COUNTS] = total + report.extras[CLASS_COUNTS]
        if self.method.plan.head_bias == "prior":
            odds = log_prior_odds(*self.memory[CLASS_COUNTS])
            self.model[self.layout.bias] = torch.from_numpy(odds).to(self.model)

    def select(self) -> list[int]:
        """Clients of this round, ascending."""
        return self.method.select(self)

    def broadcast(self) -> Broadcast:
        """What every selected client receives."""
        shared: Arrays = {}
        if self.method.plan.class_weights != "none":
            shared[CLASS_COUNTS] = self.memory[CLASS_COUNTS]
        return Broadcast(self.round, self.model, shared | self.method.extras(self))

    @property
    def frame(self) -> Frame:
        """What an aggregation rule may know beside the reports."""
        method = self.method
        parameters, needs = method.plan.aggregator_param, method.report_needs
        return Frame(self.model, self.layout, parameters, needs, method.reported)

    def finish_round(self, reports: Iterable[Report]) -> list[Report]:
        """Fold the reports into the next model, one at a time; return them without their models.

        A report that cannot be used is left out, as if its client had not been selected.

        Raises:
            NoReportLeft: none can be used.
            Diverged: what they make is not finite.
        """
        received: list[Report] = []
        self.bytes_up, self._introduced = self._introduced, 0
        self.rejected, self.scores = {}, {}
        self._watch.clear()
        usable = self._receive(reports, received)
        if self.method.plan.suppress_outliers:
            usable = self._suppressed(list(usable))
        self.model = self._aggregated(usable)
        self.scores = self._watch.scores()
        self._say_who_stands_apart()
        self.method.after_round(self, received)
        self.round += 1
        return received

    def _aggregated(self, usable: Iterable[Report]) -> Tensor:
        model = self.method.aggregate(self, usable)
        if not all_finite(model):
            raise Diverged(f"round {self.round}: the global model is not finite")
        return model

    def _receive(self, reports: Iterable[Report], received: list[Report]) -> Iterator[Report]:
        frame = self.frame
        for report in reports:
            self.bytes_up += message_bytes(report)
            reason = fault(report, frame)
            if reason:
                self.rejected[report.client] = reason
                logger.warning(
                    *("round %d: %s is left out: %s", self.round),
                    *(self.names.called(report.client), reason),
                )
                continue
            own = slice(self.layout.parameters)
            self._watch.add(report.client, report.model[own] - frame.model[own])
            received.append(replace(report, model=NO_MODEL))
            yield report
        if not received:
            raise NoReportLeft(self._why_none())

    def _why_none(self) -> str:
        called = self.names.called
        told = "; ".join(f"{called(client)}: {why}" for client, why in self.rejected.items())
        return f"round {self.round}: no report can be used ({told})"

    def _suppressed(self, held: list[Report]) -> Iterator[Report]:
        """The reports, flagged ones with less weight."""
        scores = self._watch.scores()
        for report in held:
            factor = credit(scores[report.client]) if scores else 1.0
            if factor < 1:
                report = replace(report, samples=report.samples * factor, credit=factor)
            yield report

    def _say_who_stands_apart(self) -> None:
        for client in self.flagged:
            z = ", ".join(f"{name} {value:+.1f}" for name, value in self.scores[client].items())
            who = self.names.called(client)
            logger.info("round %d: %s stands apart (robust z: %s)", self.round, who, z)

    @property
    def flagged(self) -> list[int]:
        """Clients whose updates stood apart in the latest round, ascending."""
        return [client for client, z in self.scores.items() if severity(z) > OUTLYING]
