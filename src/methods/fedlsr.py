"""FedLSR: two views are mixed, sharpened and held together, against learning noise by heart.

After Jiang et al., CIKM 2022 (methods.md 11), multi-label: softmax becomes a sigmoid a cell, and a
sharpened Bernoulli is one whose logit is multiplied. The cross-entropy is that of the sharpened
mixture; the release feeds the mixture's probabilities to a loss that takes logits, which flattens
them a second time. The views' divergence needs no label, so it is a mean over all cells. The
release's entropy term, from the paper's discussion, is off (``entropy``; it differs between its
versions, about 0.3 to 0.6). Nothing is sharpened by default (published: powers 2 and 3): most cells
are absent, and sharper ones only surer of it. The plain and the altered image are the weak and the
strong view.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from src.methods.base import Method, param
from utils_.bernoulli import divergence, entropy, mixed_logits
from utils_.rng import derive


class FedLSR(Method):
    """Local self-regularisation (methods.md 11)."""

    paper = "Jiang et al., CIKM 2022"
    summary = "sharpened mixture of two views, and their divergence"
    views = 2

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        mix: float = param(1.0, "both parameters of the Beta distribution of the mixture", 0.01, 10)
        sharpening: float = param(1.0, "power that sharpens the mixture", 1, 10)
        gamma: float = param(0.4, "weight of the divergence between the sharpened views", 0, 100)
        view_sharpening: float = param(1.0, "power that sharpens the views, 1/T", 1, 20)
        ramp_share: float = param(0.2, "share of the rounds over which that weight grows from 0")
        entropy: float = param(0.0, "weight of the sharpened views' entropy", 0, 100)

    def before_local(self, client, model, message) -> None:
        client.cache["draw"] = derive(self.plan.seed, "mixture", client.index, message.round)

    def loss(self, client, model, batch, message) -> Tensor:
        one, other = model.forward(torch.cat([batch.images, batch.strong])).chunk(2)
        share = float(client.cache["draw"].beta(self.params.mix, self.params.mix))
        mixture = self.params.sharpening * mixed_logits(one, other, share)
        views = self.params.view_sharpening * one, self.params.view_sharpening * other
        apart = self.gamma(message.round) * divergence(*views).mean()
        doubt = self.params.entropy * (entropy(views[0]) + entropy(views[1])).mean() / 2
        return self.supervised(client, mixture, batch) + apart + doubt

    def gamma(self, round: int) -> float:
        """Weight of the divergence: linear from 0 over the first rounds."""
        ramp = self.params.ramp_share * self.plan.rounds
        return self.params.gamma * (min(round / ramp, 1) if ramp > 0 else 1)
