"""FedLSR: two views are mixed, sharpened and held together, against learning noise by heart.

Jiang et al., CIKM 2022; docs/methods.md 11.

Differences from the paper and its release:

- Softmax becomes a sigmoid for each cell; a sharpened Bernoulli is one whose logit is multiplied.
- The cross-entropy is that of the sharpened mixture. The release feeds the mixture's probabilities
  to a loss that takes logits, which flattens them a second time.
- The divergence of the views needs no label, so it is a mean over all cells.
- The entropy term of the paper's discussion is off (``entropy``; versions of the release have 0.3
  to 0.6).
- Nothing is sharpened by default (published: powers 2 and 3). Most cells are absent, and sharper
  ones would only be surer of it.
- Both views are weak ones, as in the release.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from src.losses import divergence, entropy, mixed_logits
from src.methods.base import Method, param

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast
    from src.models import FlatModel
    from src.plan import Batch


class FedLSR(Method):
    """Local self-regularisation."""

    paper = "Jiang et al., CIKM 2022"
    summary = "sharpened mixture of two views, and their divergence"
    second_view = "weak"

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        mix: float = param(1.0, "both parameters of the Beta distribution of the mixture", 0.01, 10)
        sharpening: float = param(1.0, "power that sharpens the mixture", 1, 10)
        gamma: float = param(0.4, "weight of the divergence between the sharpened views", 0, 100)
        view_sharpening: float = param(1.0, "power that sharpens the views, 1/T", 1, 20)
        ramp_share: float = param(0.2, "share of the rounds over which that weight grows from 0")
        entropy: float = param(0.0, "weight of the sharpened views' entropy", 0, 100)

    params: Params

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        client.cache["draw"] = client.draw("mixture")

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
        one, other = model.forward(batch.images), model.forward_aside(batch.second)
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
