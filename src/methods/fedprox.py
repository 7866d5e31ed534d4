"""FedProx: local training that is held to the received model.

Li et al., MLSys 2020; docs/methods.md 2.

Differences from the paper:

- Only the proximal term is built. Sites that stop early are not simulated.
- BatchNorm statistics are no part of the distance.
- The default mu is 0.001: AdamW moves all parameters by about the same step, so a stronger term
  holds them all.

Some codes take the plain norm instead of its square. Its gradient has length mu wherever the model
is, and there is none at the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from src.methods.base import Method, param

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast
    from src.models import FlatModel
    from src.plan import Batch


class FedProx(Method):
    """FedAvg with a proximal term."""

    paper = "Li et al., MLSys 2020"
    summary = "squared distance from the received model added to the loss"

    @dataclass(frozen=True)
    class Params:
        """The paper tries 0.001, 0.01, 0.1 and 1."""

        mu: float = param(0.001, "strength of the proximal term; 0 is FedAvg", 0, 1000)

    params: Params

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        client.cache["received"] = model.parameters.detach().clone()

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
        received: Tensor = client.cache["received"]
        distance = (model.parameters - received).square().sum()
        return super().loss(client, model, batch, message) + self.params.mu / 2 * distance
