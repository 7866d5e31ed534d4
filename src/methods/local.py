"""The lower bound: each site trains alone, and what is reported is the mean of the sites' metrics.

Every site starts from the same initial model and goes on with its own; of what else the server
sends it reads nothing. Its class weights (``--class-weights``) come from its own counts. With
``--fraction`` below 1 it trains in the rounds in which FedAvg would select it.

What passes between sites and server in this simulation is no exchange of the method's, and 0 bytes
are counted: the runner needs a report, and the evaluator is handed the sites' vectors, since the
validation and the test set lie with it. Each site's model is scored on the whole of these sets; a
class it does not annotate is left to chance. ``model.safetensors`` holds the mean of the sites'
vectors, which nobody scored: a run folder has one model. Those of the sites are in the checkpoint.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from src.methods.base import Method
from utils_.class_weights import class_weights
from utils_.pseudo_labels import class_counts


class Local(Method):
    """Training without a federation; a bound, marked as such by its paper's name."""

    paper = "lower bound"
    summary = "each site alone, no exchange; mean of the sites' metrics"
    exchange = False

    def extras(self, server) -> dict[str, np.ndarray]:
        # In the first round the server's model is the initial one, later a mean of the sites'.
        return {"start": server.memory.setdefault("start", server.model.numpy().copy())}

    def before_local(self, client, model, message) -> None:
        own = client.memory.get("vector", message.extras["start"])
        model.load(torch.from_numpy(own))
        if self.plan.class_weights != "none":
            counts = np.stack([*class_counts(client.labels).values()])
            client.cache["class_weights"] = class_weights(counts, self.plan.class_weights)

    def after_local(self, client, model, message) -> dict[str, np.ndarray]:
        client.memory["vector"] = model.snapshot().numpy()
        return {}

    def evaluated(self, server, clients) -> Tensor:
        """(K, P): the sites' own models; the initial one of a site that has not yet trained."""
        own = [client.memory.get("vector", server.memory["start"]) for client in clients]
        return torch.from_numpy(np.stack(own))
