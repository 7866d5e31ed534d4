"""RoFL: class centroids shared with the server, small losses, global pseudo-labels.

After Yang et al., IEEE Intelligent Systems 2022 (methods.md 9), multi-label: each class has a
centroid of absence and one of presence, and a given label is believed cell by cell where its own
centroid is the nearer one; images are selected by their mean loss over annotated cells. The method
is about wrong labels: cells without a label keep no weight in any term. The features carry their
gradient into the centroid term (the unofficial release detaches them, so that its term does
nothing), and the squared distance is a mean over the dimensions, or the term would collapse the
features. The server's cosine weights are never negative; where they vanish, all sites that saw the
class count alike. Pseudo-labels are one pass in batches; ``warmup_rounds`` is the paper's T_pl. The
paper's are the likeliest class of an image; here a class is predicted in the likeliest images, in
the share of them that is positive among the site's annotated cells, since few predictions of a rare
class pass 0.5 (``balanced``). The images of largest loss are those with findings, so none are
dropped by default; published are a drop of 0.2, centroid 1 and entropy 0.8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from src.losses import weighted_mean
from src.methods.base import Method, param
from utils_.bernoulli import entropy
from utils_.centroids import batch_means, judge, moved, pooled
from utils_.prototypes import class_prototypes
from utils_.pseudo_labels import class_counts, likeliest, prior


class RoFL(Method):
    """Robust federated learning with noisy labels (methods.md 9)."""

    paper = "Yang et al., IEEE Intelligent Systems 2022"
    summary = "shared class centroids judge labels, global pseudo-labels replace them"

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        drop: float = param(0.0, "share of a batch's images dropped for their loss", 0, 0.9)
        drop_rounds: int = param(10, "rounds over which that share grows from 0", 1, 10_000)
        centroid: float = param(0.1, "weight of the centroid term after the warm-up", 0, 100)
        entropy: float = param(0.1, "weight of the entropy term", 0, 100)
        balanced: bool = param(
            True, "a class is predicted as often as the annotations say it is present"
        )

    def before_local(self, client, model, message) -> None:
        centroids = message.extras.get("centroids")
        if centroids is None:
            features, _ = client.embed(model)
            centroids = class_prototypes(features, client.labels.observed)
        client.cache["centroids"] = torch.from_numpy(centroids.copy()).to(model.device)
        client.cache["found"] = torch.zeros(2, self.plan.classes, device=model.device).bool()
        if message.round >= self.plan.warmup_rounds:
            client.cache["pseudo"] = torch.from_numpy(self.pseudo_labels(client, model))

    def pseudo_labels(self, client, model) -> np.ndarray:
        """(n, C) float32 in {0, 1}, by the received model."""
        predicted = client.predict(model)
        if not self.params.balanced:
            return (predicted > 0.5).astype(np.float32)
        return likeliest(predicted, prior(**class_counts(client.labels)))

    def loss(self, client, model, batch, message) -> Tensor:
        features, logits = model.features(batch.images)
        known = (batch.weight > 0) & self.small_losses(logits.detach(), batch, message.round)
        nearer, judged = judge(features.detach(), client.cache["centroids"])
        given = batch.target > 0.5
        believed = (nearer == given) | ~judged
        target = batch.target
        if "pseudo" in client.cache:
            pseudo = client.cache["pseudo"][batch.rows].to(target.device)
            target = torch.where(believed, target, pseudo)
        weight = torch.where(known, batch.weight, 0.0)
        supervised = self.supervised(client, logits, replace(batch, target=target, weight=weight))
        absent, present = client.cache["centroids"]
        own = torch.where(given[..., None], present, absent)
        distance = ((features[:, None] - own) ** 2).mean(dim=-1)
        pull = weighted_mean(distance, (known & believed & judged).float())
        self._move(client, features.detach(), target > 0.5, known)
        share = min(message.round / max(self.plan.warmup_rounds, 1), 1)
        doubt = weighted_mean(entropy(logits), known.float())
        return supervised + share * self.params.centroid * pull + self.params.entropy * doubt

    def small_losses(self, logits: Tensor, batch, round: int) -> Tensor:
        """(B, 1) bool: the images of smallest mean cross-entropy over their annotated cells."""
        values = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, batch.target, reduction="none"
        )
        cells = batch.weight > 0
        count = cells.sum(dim=1)
        means = torch.where(cells, values, 0.0).sum(dim=1) / count.clamp_min(1)
        rank = torch.where(count > 0, means, torch.inf).argsort(stable=True).argsort()
        dropped = self.params.drop * min(round / self.params.drop_rounds, 1)
        keep = max(1, int((1 - dropped) * int((count > 0).sum()) + 1e-9))
        return (rank < keep)[:, None]

    def _move(self, client, features: Tensor, present: Tensor, cells: Tensor) -> None:
        means, found = batch_means(features, present, cells)
        client.cache["centroids"] = moved(client.cache["centroids"], means, found)
        client.cache["found"] |= found

    def after_local(self, client, model, message) -> dict[str, np.ndarray]:
        centroids, found = client.cache["centroids"], client.cache["found"]
        return {"centroids": centroids.cpu().numpy(), "found": found.cpu().numpy()}

    def after_round(self, server, reports) -> None:
        sites, found = ([r.extras[name] for r in reports] for name in ("centroids", "found"))
        server.memory["centroids"] = pooled(server.memory.get("centroids"), sites, found)

    def extras(self, server) -> dict[str, np.ndarray]:
        return {name: server.memory[name] for name in ("centroids",) if name in server.memory}
