"""RoFL: class centroids shared with the server, small losses, global pseudo-labels.

Yang et al., IEEE Intelligent Systems 2022; docs/methods.md 9.

Each class has a centroid of absence and one of presence. A given label is believed, cell by cell,
where its own centroid is the nearer one. Images are selected by their mean loss over annotated
cells. ``warmup_rounds`` is the paper's T_pl.

Differences from the paper and the unofficial release:

- The method is about wrong labels: cells without a label keep no weight in any term.
- The features carry their gradient into the centroid term. The release detaches them, so that its
  term does nothing.
- The squared distance is a mean over the dimensions; else the term would collapse the features.
- The server's cosine weights are never negative. Where they vanish, all sites that saw the class
  count alike.
- Pseudo-labels are one pass in batches. The paper's are the likeliest class of an image. Here a
  class is predicted in the likeliest images, in the share of them that is positive among the
  site's annotated cells, because few predictions of a rare class pass 0.5 (``balanced``).
- None are dropped by default, because the images of largest loss are those with findings.
  Published are a drop of 0.2, centroid 1 and entropy 0.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.losses import bce, entropy, weighted_mean
from src.methods.base import Arrays, Method, param
from utils_.priors import class_counts, class_prior
from utils_.prototypes import class_prototypes

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast, Report
    from src.models import FlatModel
    from src.plan import Batch
    from src.server import Server


class RoFL(Method):
    """Robust federated learning with noisy labels."""

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

    params: Params

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        centroids = message.extras.get("centroids")
        if centroids is None:
            features, _ = client.embed(model)
            centroids = class_prototypes(features, client.labels.observed)
        client.cache["centroids"] = torch.from_numpy(centroids.copy()).to(model.device)
        client.cache["found"] = torch.zeros(2, self.plan.classes, device=model.device).bool()
        if message.round >= self.plan.warmup_rounds:
            client.cache["pseudo"] = torch.from_numpy(self.pseudo_labels(client, model))

    def pseudo_labels(self, client: Client, model: FlatModel) -> np.ndarray:
        """(n, C) float32 in {0, 1}, by the received model."""
        predicted = client.predict(model)
        if not self.params.balanced:
            return (predicted > 0.5).astype(np.float32)
        return likeliest(predicted, class_prior(**class_counts(client.labels)))

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
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

    def small_losses(self, logits: Tensor, batch: Batch, round: int) -> Tensor:
        """(B, 1) bool: the images of smallest mean cross-entropy over their annotated cells."""
        cells = batch.weight > 0
        count = cells.sum(dim=1)
        sums = torch.where(cells, bce(logits, batch.target), 0.0).sum(dim=1)
        means = torch.where(count > 0, sums / count.clamp_min(1), torch.inf)
        rank = means.argsort(stable=True).argsort()
        dropped = self.params.drop * min(round / self.params.drop_rounds, 1)
        keep = max(1, int((1 - dropped) * int((count > 0).sum()) + 1e-9))
        return (rank < keep)[:, None]

    def _move(self, client: Client, features: Tensor, present: Tensor, cells: Tensor) -> None:
        means, found = batch_means(features, present, cells)
        client.cache["centroids"] = moved(client.cache["centroids"], means, found)
        client.cache["found"] |= found

    def after_local(self, client: Client, model: FlatModel, message: Broadcast) -> Arrays:
        centroids, found = client.cache["centroids"], client.cache["found"]
        return {"centroids": centroids.cpu().numpy(), "found": found.cpu().numpy()}

    def after_round(self, server: Server, reports: list[Report]) -> None:
        sites, found = ([r.extras[name] for r in reports] for name in ("centroids", "found"))
        server.memory["centroids"] = pooled(server.memory.get("centroids"), sites, found)

    def extras(self, server: Server) -> Arrays:
        return {name: server.memory[name] for name in ("centroids",) if name in server.memory}


def likeliest(probability: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Hard labels, present in the images of highest prediction, a ``share`` of them per class.

    Args:
        probability: (N, C).
        share: (C,) in [0, 1]; NaN, where unknown, counts as 0.

    Returns:
        (N, C) float32 in {0, 1}; equal predictions in the order of the images.
    """
    count = np.round(np.nan_to_num(share) * len(probability))
    rank = (-probability).argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    labels: np.ndarray = rank < count
    return labels.astype(np.float32)


# ---- centroids
#
# A centroid of zeros is unknown: it has no direction, attracts nobody and never judges a label.


def judge(features: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Which centroid of each class lies nearer by cosine.

    Args:
        features: (B, D).
        centroids: (2, C, D).

    Returns:
        (B, C) bool, whether presence is nearer; (C,) bool, whether both centroids are known.
    """
    sides = F.normalize(centroids, dim=-1)
    absent, present = (F.normalize(features, dim=-1) @ side.T for side in sides)
    return present > absent, centroids.any(dim=-1).all(dim=0)


def batch_means(features: Tensor, present: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Mean features of the absent and the present cells of a batch.

    Args:
        features: (B, D).
        present: (B, C) bool, the labels.
        cells: (B, C) bool, those that count.

    Returns:
        (2, C, D) means, zeros where there is no cell; (2, C) bool, where there is one.
    """
    members = torch.stack([cells & ~present, cells & present]).to(features.dtype)
    count = members.sum(dim=1)
    means = members.transpose(1, 2) @ features / count.clamp_min(1)[..., None]
    return means, count > 0


def moved(centroids: Tensor, means: Tensor, found: Tensor) -> Tensor:
    """Centroids drawn towards a batch's means by the square of their cosine similarity.

    One that is unknown so far becomes the mean; one without a mean stays.

    Args:
        centroids: (2, C, D).
        means: (2, C, D).
        found: (2, C) bool, which means there are.
    """
    share = F.cosine_similarity(centroids, means, dim=-1) ** 2
    share = torch.where(centroids.any(dim=-1), share, 1.0)[..., None]
    return torch.where(found[..., None], (1 - share) * centroids + share * means, centroids)


def pooled(
    last: np.ndarray | None, sites: Sequence[np.ndarray], found: Sequence[np.ndarray]
) -> np.ndarray:
    """Mean of the sites' centroids, weighted by their cosine to the last pooled one.

    A negative cosine counts as 0. Where nothing is left, or there is no last one, all sites that
    found the class count alike; where none did, the last one stays. Vectors that are not finite
    count as not found.

    Args:
        last: (2, C, D) or None.
        sites: of each site, (2, C, D).
        found: of each site, (2, C) bool, where it has seen such cells.
    """
    own, seen = np.stack(sites).astype(np.float64), np.stack(found) > 0
    seen &= np.isfinite(own).all(axis=-1)
    own = np.where(seen[..., None], own, 0)
    last = np.zeros(own.shape[1:]) if last is None else last.astype(np.float64)
    norms = np.linalg.norm(own, axis=-1) * np.linalg.norm(last, axis=-1)
    cosine = (own * last).sum(axis=-1) / np.maximum(norms, 1e-12)
    weight = np.where(seen, cosine.clip(0), 0)
    weight = np.where(weight.sum(axis=0) > 1e-6, weight, seen)
    total = weight.sum(axis=0)[..., None]
    mean = (weight[..., None] * own).sum(axis=0) / np.where(total > 0, total, 1)
    return np.where(total > 0, mean, last).astype(np.float32)
