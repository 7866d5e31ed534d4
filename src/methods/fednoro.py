"""FedNoRo: sites with noisy labels are found, taught by the global model, and count less.

Wu et al., IJCAI 2023; docs/methods.md 3.

First stage (the warm-up): logits are adjusted by the site's log prior odds. Then each site tells
the mean loss of its labels under the global model, by class, and the server tells who is noisy.
Second stage: noisy sites learn from the received model as well, on all classes, and count less the
farther their model is from the nearest clean one.

Differences from the paper and its release:

- The prior odds are the binary form of the class priors. They come from annotated cells, with half
  a cell added to either count.
- Losses are told apart for negatives and positives. The release computes them at the server.
- They are those of the model that the last warm-up round starts from, at the earliest that of the
  second round. Where only some sites take part, the vote is repeated until all have been heard; a
  site that has not been heard counts as clean.
- What a site cannot tell is left out. The release takes the least of the column (with
  ``fill_minimum=true`` the vote does), but then classes not annotated make a site look clean.
- Distances are L2 norms of all parameters, as in the paper. The release adds up one norm for each
  tensor, BatchNorm statistics included.
- Where nobody is noisy, or nobody is clean, the mean is FedAvg's.
- Published: the mixtures split the normalised losses, alike sites too (``alpha=1``). Here the share
  of a site's labels that are as if drawn at random is estimated from the same losses. Sites are cut
  in two where these shares scatter more than all but ``alpha`` of replicates of alike sites do.
  Each site tells 99 bootstrap replicates for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from src.losses import bce, ramp
from src.methods.base import Arrays, Method, param
from utils_.noisy_clients import NOISY, NOT_HEARD, TOLD, hear, tell, weighed
from utils_.priors import log_odds
from utils_.rng import derive_seed

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast, Report
    from src.models import FlatModel
    from src.plan import Batch
    from src.server import Server


class FedNoRo(Method):
    """Noise-robust federated learning under class imbalance."""

    paper = "Wu et al., IJCAI 2023"
    summary = "finds noisy sites, which are distilled into and averaged by distance"
    first_phase = True
    sees_each = "class losses of each site, and how far its model is from others"
    reported: ClassVar = TOLD

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        voters: int = param(9, "mixtures that vote where alpha is 1", 1, 1000)
        min_cells: int = param(5, "fewest labels of a kind whose mean loss is told", 1, 1_000_000)
        fill_minimum: bool = param(
            False, "untold losses become the column's least where alpha is 1"
        )
        alpha: float = param(0.01, "chance of accusing alike sites; 1: split always, 0: never")
        kd_weight: float = param(0.8, "largest weight of the distillation term")
        kd_end: float = param(13 / 30, "share of the rounds after the warm-up until it is reached")
        kappa: float = param(5.0, "steepness of its ramp", 0, 50)
        temperature: float = param(0.8, "the teacher's; below 1 sharpens", 0.01, 100)
        logit_adjustment: bool = param(True, "train logits shifted by the site's log prior odds")

    params: Params

    def kd_weight(self, round: int) -> float:
        """Weight of the distillation term at a noisy site."""
        begin = self.plan.warmup_rounds
        end = begin + self.params.kd_end * (self.plan.rounds - begin)
        growth = ramp(round, begin=begin, end=end, kappa=self.params.kappa)
        return self.params.kd_weight * growth

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        client.cache["shift"] = log_odds(client.labels) * self.params.logit_adjustment
        found = message.extras.get("noisy", np.full(self.plan.clients, NOT_HEARD))
        client.cache["noisy"] = found[client.index] == NOISY
        if message.round >= max(self.plan.warmup_rounds - 1, 1) and NOT_HEARD in found:
            given, least = client.labels.observed, self.params.min_cells
            draw, predicted = client.draw("bootstrap"), client.predict(model)
            client.cache["told"] = tell(predicted, given, min_cells=least, draw=draw)

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
        if client.cache["noisy"]:  # before the gradient's pass, as it changes the model in passing
            teacher = client.predict_batch(model, message.model, batch.images)
        logits = model.forward(batch.images)
        logits = logits + client.cache["shift"].to(logits)
        supervised = self.supervised(client, logits, batch)
        if not client.cache["noisy"]:
            return supervised
        soft = torch.logit(teacher, eps=1e-6) / self.params.temperature
        divergence = (bce(logits, soft.sigmoid()) - bce(soft, soft.sigmoid())).mean()
        weight = self.kd_weight(message.round)
        return weight * divergence + (1 - weight) * supervised

    def after_local(self, client: Client, model: FlatModel, message: Broadcast) -> Arrays:
        client.logs["noisy"] = float(client.cache["noisy"])
        told: Arrays = client.cache.get("told", {})
        return told

    def aggregate(self, server: Server, reports: Iterable[Report]) -> Tensor:
        if NOISY not in server.memory.get("noisy", ()):
            return super().aggregate(server, reports)
        own = server.layout.parameters
        return super().aggregate(server, weighed(reports, server.memory["noisy"], own=own))

    def after_round(self, server: Server, reports: list[Report]) -> None:
        hear(
            server.memory,
            reports,
            clients=self.plan.clients,
            seeds=[derive_seed(self.plan.seed, "vote", i) for i in range(self.params.voters)],
            alpha=self.params.alpha,
            fill_minimum=self.params.fill_minimum,
        )

    def extras(self, server: Server) -> Arrays:
        return {"noisy": server.memory["noisy"]} if "noisy" in server.memory else {}
