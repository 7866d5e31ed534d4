"""The lower bound: each site trains alone, and what is reported is the mean of the sites' metrics.

docs/methods.md 2.

- Every site starts from the same initial model and goes on with its own. It reads nothing else
  that the server sends. Its class weights (``--class-weights``) and the start of its
  biases (``--head-bias prior``) come from its own counts.
- With ``--fraction`` below 1 a site trains in the rounds in which FedAvg would select it.
- 0 bytes are counted. What passes between sites and server here is no exchange of the method: the
  runner needs a report, and the evaluator is handed the sites' vectors, because the validation and
  the test set lie with it.
- Each site's model is scored on the whole of these sets; a class that it does not annotate is left
  to chance.
- ``model.safetensors`` holds the mean of the sites' vectors, which nobody scored, since a run
  folder has one model. Those of the sites are in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from src.methods.base import Arrays, Method
from utils_.priors import balance_factors, class_counts, log_prior_odds

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast
    from src.models import FlatModel
    from src.server import Server


class Local(Method):
    """Training without a federation; a bound, marked as such by its paper's name."""

    paper = "lower bound"
    summary = "each site alone, no exchange; mean of the sites' metrics"
    exchange = False

    def extras(self, server: Server) -> Arrays:
        # In the first round the server's model is the initial one, later a mean of the sites'.
        return {"start": server.memory.setdefault("start", server.model.numpy().copy())}

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        own = client.memory.get("vector", message.extras["start"])
        model.load(torch.from_numpy(own))
        counts = np.stack([*class_counts(client.labels).values()])
        if self.plan.class_weights != "none":
            client.cache["class_weights"] = balance_factors(counts, self.plan.class_weights)
        if self.plan.head_bias == "prior" and "vector" not in client.memory:
            odds = torch.from_numpy(log_prior_odds(*counts))
            model.head_slices[1].view(model.vector).copy_(odds)

    def after_local(self, client: Client, model: FlatModel, message: Broadcast) -> Arrays:
        client.memory["vector"] = model.snapshot().numpy()
        return {}

    def evaluated(self, server: Server, clients: Sequence[Client]) -> Tensor:
        """(K, P): the sites' own models; the initial one of a site that has not yet trained."""
        own = [client.memory.get("vector", server.memory["start"]) for client in clients]
        return torch.from_numpy(np.stack(own))
