"""SCAFFOLD: local steps corrected by what the site's gradients lack of all sites' gradients.

Karimireddy et al., ICML 2020, option II; docs/methods.md 2.

A site keeps a control variate c_i, the server their mean c. Every step is followed by a move of
-lr (c - c_i). Afterwards c_i becomes the mean gradient of the site's own steps.

Differences from the paper:

- The paper adds c - c_i to the gradient of SGD. An adaptive optimiser would normalise the sum, and
  where a gradient is 0, as in head rows of missing classes, turn any correction into a full step.
  So the correction acts outside the optimiser's step. Under SGD without momentum nothing differs.
- Option II computes the mean gradient as c_i - c + (x - y_i) / (steps x lr), which holds for SGD.
  Here the mean is taken of the gradients themselves.
- Both means, of the models and of the variates, are weighted by images, as ``--aggregator mean``
  does for every method. With sites of equal size they are the paper's.
- Sites keep n_i c_i and send its change, so that c stays the mean of the c_i whoever takes part. A
  site that has not been heard from yet counts with the mean size.
- A site keeps its change only once the server has accepted its report: the server sends the round
  of each site's last accepted report.
- A robust ``--aggregator`` guards the models and not the variates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from src.methods.base import Arrays, Method, param
from utils_.arrays import Expected

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast, Report
    from src.models import FlatModel
    from src.server import Server


class Scaffold(Method):
    """Stochastic controlled averaging."""

    paper = "Karimireddy et al., ICML 2020"
    summary = "control variates take the sites' drift out of their gradients"
    reported: ClassVar = {
        "variate": Expected(("parameters",), meaning="change of the site's control variate")
    }

    @dataclass(frozen=True)
    class Params:
        """The paper's value."""

        global_lr: float = param(1.0, "the server's step; 1 takes the mean of the models", 0, 10)

    params: Params

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        zero = np.zeros(model.parameter_count, np.float32)
        self._commit(client, message)
        own = client.memory.setdefault("variate", zero) / len(client)
        shared = message.extras.get("variate", zero)
        client.cache["own"], client.cache["steps"] = own, 0
        correction = torch.from_numpy(shared - own).to(model.device)
        client.cache["move"] = self.plan.lr_at(message.round) * correction
        client.cache["gradients"] = torch.zeros_like(model.gradient)

    def _commit(self, client: Client, message: Broadcast) -> None:
        """Keep the change of the last round in which the site took part, if it was accepted."""
        change, told = client.memory.pop("change", None), client.memory.pop("told", None)
        accepted = message.extras.get("accepted", np.full(self.plan.clients, -1))
        if change is not None and told is not None and accepted[client.index] == told[0]:
            client.memory["variate"] = client.memory["variate"] + change

    def after_backward(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        client.cache["gradients"] += model.gradient
        client.cache["steps"] += 1

    @torch.no_grad()
    def after_step(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        model.parameters.sub_(client.cache["move"])

    def after_local(self, client: Client, model: FlatModel, message: Broadcast) -> Arrays:
        mean = (client.cache["gradients"] / client.cache["steps"]).cpu().numpy()
        change = len(client) * (mean - client.cache["own"])
        if not np.isfinite(change).all():  # a run gone astray must not spoil the later ones
            change = np.zeros_like(change)
        client.memory |= {"change": change, "told": np.array([message.round])}
        return {"variate": change}

    def aggregate(self, server: Server, reports: Iterable[Report]) -> Tensor:
        mean = super().aggregate(server, reports)
        if self.params.global_lr == 1:
            return mean
        own = slice(server.layout.parameters)  # a longer step could make variances negative
        stepped = server.model[own].lerp(mean[own], self.params.global_lr)
        return torch.cat([stepped, mean[server.layout.parameters :]])

    def after_round(self, server: Server, reports: list[Report]) -> None:
        sizes = server.memory.setdefault("sizes", np.zeros(self.plan.clients))
        accepted = server.memory.setdefault("accepted", np.full(self.plan.clients, -1))
        for report in sorted(reports, key=lambda report: report.client):
            sizes[report.client], accepted[report.client] = report.samples, server.round
            server.memory["variate"] = server.memory.get("variate", 0) + report.extras["variate"]

    def extras(self, server: Server) -> Arrays:
        if "variate" not in server.memory:
            return {}
        sizes = server.memory["sizes"]
        mean = server.memory["variate"] / float(len(sizes) * sizes[sizes > 0].mean())
        return {"variate": mean, "accepted": server.memory["accepted"]}
