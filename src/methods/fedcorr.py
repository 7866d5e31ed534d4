"""FedCorr: noisy sites by the dimension of their predictions, noisy images there by their losses.

After Xu et al., CVPR 2022 (methods.md 6.1), multi-label. First stage: in an iteration every site
trains once and tells the mean LID of its model's predictions, on all classes, and its noise, the
share of its images in the upper group of losses (means over annotated cells). Sites in the lower
group of LIDs over all iterations have noise 0. A noisy site trains on with a proximal term in
proportion to its noise; where the received model is sure it relabels annotated cells of the images
of largest loss. Second stage: sites of little noise alone. Third: the others relabel all that the
received model is sure of, once; then everybody trains.

In the paper an iteration hands the model from client to client; here all sites train at once and
are averaged, or it would take K rounds (``at_once=0`` does). Stages are shares of the rounds, those
of a client's trainings on CIFAR-100. The proximal norm is squared, unlike the release's, and AdamW
moves all parameters: hence 0.01, not 5. MixUp is milder than published (1). Half is no bar for a
binary cell: the confidence is that of Clothing1M, and a sure absence lies that far below the
class's odds, or rare findings would all be deleted (``balanced=false``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from src.methods.base import Method, param
from utils_.lid import mean_dimensionality
from utils_.mixup import mix_up
from utils_.rng import derive, derive_seed
from utils_.rotation import turn
from utils_.suspects import doubted_images, largest_losses, noise_levels, relabel, remember_scores


class FedCorr(Method):
    """Multi-stage federated learning for label noise correction (methods.md 6.1)."""

    paper = "Xu et al., CVPR 2022"
    summary = "noisy sites by LID, relabelling, fine-tuning on clean sites, then all"

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        preprocessing: float = param(0.1, "share of the rounds in the first stage", 0.001)
        finetuning: float = param(0.45, "share of the rounds in the second stage")
        at_once: float = param(1.0, "share of the sites trained at once in the first stage", 0)
        neighbours: int = param(20, "nearest predictions that make an LID", 2, 10_000)
        clean: float = param(0.1, "largest noise of a site in the second stage")
        relabel: float = param(0.5, "share of the noisy images relabelled in an iteration")
        confidence: float = param(0.9, "a prediction above it is sure of a finding", 0.5)
        balanced: bool = param(True, "sure of an absence: relative to the share of positives")
        proximal: float = param(0.01, "strength of the proximal term at a noise of 1", 0, 1000)
        mixup: float = param(0.2, "both parameters of the Beta distribution; 0: no MixUp", 0, 100)

    def schedule(self) -> tuple[int, int, int]:
        """Rounds of an iteration; the round that ends the first stage; that ends the second."""
        plan, share = self.plan, min(self.params.at_once, self.plan.fraction)
        visits = -(-plan.clients // max(1, int(share * plan.clients + 1e-9)))  # rounded up
        first = visits * max(1, int(self.params.preprocessing * plan.rounds / visits + 0.5))
        return visits, first, first + int(self.params.finetuning * plan.rounds + 0.5)

    def select(self, server) -> list[int]:
        visits, first, second = self.schedule()
        if server.round < first:
            plan = self.plan
            return turn(server.round, clients=plan.clients, rounds=visits, seed=plan.seed)
        if server.round >= second:
            return super().select(server)
        clean = np.flatnonzero(server.memory["noise_level"] <= self.params.clean)
        count = min(len(clean), self.plan.clients_per_round)
        chosen = derive(self.plan.seed, "select", server.round).choice(clean, count, replace=False)
        return sorted(chosen.tolist())

    def extras(self, server) -> dict[str, np.ndarray]:
        unknown = np.zeros(self.plan.clients, np.float32)
        return {"noise_level": server.memory.get("noise_level", unknown)}

    def before_local(self, client, model, message) -> None:
        level = client.logs["noise_level"] = float(message.extras["noise_level"][client.index])
        client.cache |= {"level": level, "received": model.parameters.detach().clone(), "step": 0}
        suspects = np.zeros(len(client.labels.observed), bool)
        if "losses" in client.memory:  # of the last iteration; acted on once
            loss, posterior = client.memory.pop("losses")
            client.memory["noise_score"] = posterior * np.float32(level > 0)
            suspects = largest_losses(loss, level * self.params.relabel)
        if message.round >= self.schedule()[2] and "relabelled" not in client.memory:
            client.memory["relabelled"] = np.ones(1, bool)
            suspects |= level > self.params.clean
        if suspects.any():
            sure = {"confidence": self.params.confidence, "balanced": self.params.balanced}
            relabel(client.labels, suspects, client.predict(model), **sure)

    def loss(self, client, model, batch, message) -> Tensor:
        draw = derive(self.plan.seed, "mixup", client.index, message.round, client.cache["step"])
        client.cache["step"] += 1
        batch = mix_up(batch, alpha=self.params.mixup, draw=draw)
        supervised = super().loss(client, model, batch, message)
        strength = self.params.proximal * client.cache["level"]
        if strength == 0 or message.round >= self.schedule()[1]:
            return supervised
        return supervised + strength * (model.parameters - client.cache["received"]).square().sum()

    def after_local(self, client, model, message) -> dict[str, np.ndarray]:
        if message.round >= self.schedule()[1]:
            return {}
        predicted = client.predict(model)
        seed = derive_seed(self.plan.seed, "losses", client.index)
        client.memory["losses"], level = doubted_images(predicted, client.labels, seed=seed)
        lid = mean_dimensionality(predicted, neighbours=self.params.neighbours)
        return {"lid": np.array(lid), "noise_level": np.array(level)}

    def after_round(self, server, reports) -> None:
        visits, first, _ = self.schedule()
        if server.round < first:
            remember_scores(server.memory, reports, clients=self.plan.clients)
            if (server.round + 1) % visits == 0:
                seed = derive_seed(self.plan.seed, "sites")
                server.memory["noise_level"] = noise_levels(server.memory, seed=seed)
