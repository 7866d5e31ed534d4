"""FedProx: local training that is held to the received model.

After Li et al., MLSys 2020 (methods.md 2): mu / 2 times the squared distance of the parameters from
the received ones. Codes that take the plain norm have a gradient of length mu wherever the model
is, and none that is defined at the start. BatchNorm statistics are no part of the distance. Of the
paper's two parts this is the proximal term; sites that stop early are not simulated.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from src.methods.base import Method, param


class FedProx(Method):
    """FedAvg with a proximal term (methods.md 2)."""

    paper = "Li et al., MLSys 2020"
    summary = "squared distance from the received model added to the loss"

    @dataclass(frozen=True)
    class Params:
        """The paper tries 0.001, 0.01, 0.1 and 1."""

        mu: float = param(0.001, "strength of the proximal term; 0 is FedAvg", 0, 1000)

    def before_local(self, client, model, message) -> None:
        client.cache["received"] = model.parameters.detach().clone()

    def loss(self, client, model, batch, message) -> Tensor:
        distance = (model.parameters - client.cache["received"]).square().sum()
        return super().loss(client, model, batch, message) + self.params.mu / 2 * distance
