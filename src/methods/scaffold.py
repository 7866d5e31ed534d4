"""SCAFFOLD: local steps corrected by what the site's gradients lack of all sites' gradients.

Karimireddy et al., ICML 2020, option II; docs/methods.md 2.

A site keeps a control variate c_i, the server their mean c. At every step c - c_i is added to the
gradient before AdamW sees it. Afterwards c_i becomes the mean gradient of the site's own steps.

Differences from the paper:

- Option II computes that mean as c_i - c + (x - y_i) / (steps x lr), which holds for SGD. The way
  from x to y_i under AdamW is no multiple of gradients, so the mean is taken of the gradients
  themselves. Correction and gradient keep the same unit, and under SGD nothing differs.
- Both means, of the models and of the variates, are weighted by images, as ``--aggregator mean``
  does for every method. With sites of equal size they are the paper's.
- Sites keep n_i c_i and send its change, so that c stays the mean of the c_i whoever takes part. A
  site that has not been heard from yet counts with the mean size.
- A robust ``--aggregator`` guards the models and not the variates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from src.methods.base import Arrays, Method, param

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast, Report
    from src.models import FlatModel
    from src.server import Server


class Scaffold(Method):
    """Stochastic controlled averaging."""

    paper = "Karimireddy et al., ICML 2020"
    summary = "control variates take the sites' drift out of their gradients"

    @dataclass(frozen=True)
    class Params:
        """The paper's value."""

        global_lr: float = param(1.0, "the server's step; 1 takes the mean of the models", 0, 10)

    params: Params

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        zero = np.zeros(model.parameter_count, np.float32)
        own = client.memory.setdefault("variate", zero) / len(client)
        shared = message.extras.get("variate", zero)
        client.cache["own"], client.cache["steps"] = own, 0
        client.cache["correction"] = torch.from_numpy(shared - own).to(model.device)
        client.cache["gradients"] = torch.zeros_like(model.gradient)

    def after_backward(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        client.cache["gradients"] += model.gradient
        client.cache["steps"] += 1
        model.gradient.add_(client.cache["correction"])

    def after_local(self, client: Client, model: FlatModel, message: Broadcast) -> Arrays:
        mean = (client.cache["gradients"] / client.cache["steps"]).cpu().numpy()
        change = len(client) * (mean - client.cache["own"])
        if not np.isfinite(change).all():  # a run gone astray must not spoil the later ones
            change = np.zeros_like(change)
        client.memory["variate"] = client.memory["variate"] + change
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
        for report in sorted(reports, key=lambda report: report.client):
            sizes[report.client] = report.samples
            server.memory["variate"] = server.memory.get("variate", 0) + report.extras["variate"]

    def extras(self, server: Server) -> Arrays:
        if "variate" not in server.memory:
            return {}
        sizes = server.memory["sizes"]
        return {"variate": server.memory["variate"] / float(len(sizes) * sizes[sizes > 0].mean())}
