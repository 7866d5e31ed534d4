"""SCAFFOLD: local steps corrected by what the site's gradients lack of all sites' gradients.

After Karimireddy et al., ICML 2020, option II. A site keeps a control variate c_i, the server their
mean c. At every step c - c_i is added to the gradient, before AdamW sees it. Afterwards option II
sets c_i to c_i - c + (x - y_i) / (steps x lr), which under the paper's SGD is the mean gradient of
the steps, uncorrected. AdamW's way from x to y_i is no multiple of gradients, so that mean is taken
itself: correction and gradient keep the same unit, and under SGD nothing differs.

Both means, of the models and of the variates, are weighted by images, as ``--aggregator mean``
does for every method; with sites of equal size they are the paper's. So that c stays the mean of
the c_i whoever takes part, sites keep n_i c_i and send its change; a site not heard from yet counts
with the mean size. A robust ``--aggregator`` guards the models and not the variates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from src.methods.base import Method, param


class Scaffold(Method):
    """Stochastic controlled averaging."""

    paper = "Karimireddy et al., ICML 2020"
    summary = "control variates take the sites' drift out of their gradients"

    @dataclass(frozen=True)
    class Params:
        """The paper's value."""

        global_lr: float = param(1.0, "the server's step; 1 takes the mean of the models", 0, 10)

    def before_local(self, client, model, message) -> None:
        zero = np.zeros(model.parameter_count, np.float32)
        own = client.memory.setdefault("variate", zero) / len(client)
        shared = message.extras.get("variate", zero)
        client.cache["own"], client.cache["steps"] = own, 0
        client.cache["correction"] = torch.from_numpy(shared - own).to(model.device)
        client.cache["gradients"] = torch.zeros_like(model.gradient)

    def after_backward(self, client, model, message) -> None:
        client.cache["gradients"] += model.gradient
        client.cache["steps"] += 1
        model.gradient.add_(client.cache["correction"])

    def after_local(self, client, model, message) -> dict[str, np.ndarray]:
        mean = (client.cache["gradients"] / client.cache["steps"]).cpu().numpy()
        change = len(client) * (mean - client.cache["own"])
        if not np.isfinite(change).all():  # a run gone astray must not spoil the later ones
            change = np.zeros_like(change)
        client.memory["variate"] = client.memory["variate"] + change
        return {"variate": change}

    def aggregate(self, server, reports) -> Tensor:
        mean = super().aggregate(server, reports)
        if self.params.global_lr == 1:
            return mean
        own = slice(server.layout.parameters)  # a longer step could make variances negative
        stepped = server.model[own].lerp(mean[own], self.params.global_lr)
        return torch.cat([stepped, mean[server.layout.parameters :]])

    def after_round(self, server, reports) -> None:
        sizes = server.memory.setdefault("sizes", np.zeros(self.plan.clients))
        for report in sorted(reports, key=lambda report: report.client):
            sizes[report.client] = report.samples
            server.memory["variate"] = server.memory.get("variate", 0) + report.extras["variate"]

    def extras(self, server) -> dict[str, np.ndarray]:
        if "variate" not in server.memory:
            return {}
        sizes = server.memory["sizes"]
        return {"variate": server.memory["variate"] / float(len(sizes) * sizes[sizes > 0].mean())}
