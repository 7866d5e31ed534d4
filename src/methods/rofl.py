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
- Centroids are means over the cells of a round and of all sites. The paper moves them in every
  batch, by the square of their cosine to the batch's mean, and weighs sites by cosine at the
  server. A batch or a site with one case then counts as much as one with many, so centroids of
  rare classes follow their latest images.
- They judge as received throughout a round.
- Pseudo-labels are one pass in batches. The paper's are the likeliest class of an image. Here a
  class is predicted in the likeliest images, in the share of them that is positive among the
  site's annotated cells, because few predictions of a rare class pass 0.5 (``balanced``).
- None are dropped by default, because the images of largest loss are those with findings.
  Published are a drop of 0.2, centroid 1 and entropy 0.8.

After a round the site's labels are those it trained on last, so that they can be judged; the next
round starts from the annotations again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.losses import bce, entropy, weighted_mean
from src.methods.base import Arrays, Method, param
from utils_.arrays import Expected
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
    first_phase = True
    reported: ClassVar = {
        "sums": Expected((2, "classes", "features"), meaning="summed features of each class"),
        "counts": Expected((2, "classes"), meaning="how many images these sums hold"),
    }

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
        labels, cache = client.labels, client.cache
        labels.correct(labels.annotated, labels.observed)  # what after_local wrote is not trained
        centroids = message.extras.get("centroids")
        if centroids is None:
            features, _ = client.embed(model)
            centroids = class_prototypes(features, labels.observed)
        cache["centroids"] = torch.from_numpy(centroids.copy()).to(model.device)
        cache["sums"] = torch.zeros_like(cache["centroids"])
        cache["counts"] = torch.zeros(2, self.plan.classes, device=model.device)
        cache["trained"] = torch.from_numpy(labels.target.copy()).to(model.device)
        cache["tally"] = torch.zeros(3, device=model.device)
        if message.round >= self.plan.warmup_rounds:
            cache["pseudo"] = torch.from_numpy(self.pseudo_labels(client, model))

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
        sums, counts = batch_sums(features.detach(), target > 0.5, known)
        client.cache["sums"] += sums
        client.cache["counts"] += counts
        positives = known & given
        doubted = positives & ~believed
        self._note(client, batch.rows, target, cells=(known, positives, doubted))
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

    def _note(
        self, client: Client, rows: np.ndarray, target: Tensor, *, cells: tuple[Tensor, ...]
    ) -> None:
        """Keep the targets; count positives, those not believed, and those of them made absent."""
        known, positives, doubted = cells
        counted = (positives, doubted, doubted & (target <= 0.5))
        cache, place = client.cache, torch.from_numpy(rows).to(target.device)
        cache["tally"] += torch.stack([table.sum() for table in counted])
        cache["trained"][place] = torch.where(known, target, cache["trained"][place])

    def after_local(self, client: Client, model: FlatModel, message: Broadcast) -> Arrays:
        positives, doubted, absent = client.cache["tally"].tolist()
        if positives:
            client.logs["disbelieved_positives"] = doubted / positives
        if doubted and "pseudo" in client.cache:
            client.logs["replaced_by_absence"] = absent / doubted
        client.labels.correct(client.labels.annotated, client.cache["trained"].cpu().numpy())
        return {name: client.cache[name].cpu().numpy() for name in ("sums", "counts")}

    def after_round(self, server: Server, reports: list[Report]) -> None:
        told = sorted(reports, key=lambda report: report.client)
        tables = ([report.extras[name] for report in told] for name in ("sums", "counts"))
        sums, counts = (np.stack(table).sum(axis=0, dtype=np.float64) for table in tables)
        server.memory["centroids"] = pooled(sums, counts, server.memory.get("centroids"))

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


def batch_sums(features: Tensor, present: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the features of a batch's absent and present cells, and how many cells these are.

    Args:
        features: (B, D).
        present: (B, C) bool, the labels.
        cells: (B, C) bool, those that count.

    Returns:
        (2, C, D) sums; (2, C) counts, in the type of the features.
    """
    members = torch.stack([cells & ~present, cells & present]).to(features.dtype)
    return members.transpose(1, 2) @ features, members.sum(dim=1)


def pooled(sums: np.ndarray, counts: np.ndarray, last: np.ndarray | None) -> np.ndarray:
    """(2, C, D) float32 means; of a class and side that has no cell the last centroid.

    Args:
        sums: (2, C, D), of the features of all sites' cells.
        counts: (2, C), of these cells.
        last: (2, C, D); None stands for zeros.
    """
    kept = np.zeros_like(sums) if last is None else last
    known = counts[..., None] > 0
    centroids: np.ndarray = np.where(known, sums / np.maximum(counts, 1)[..., None], kept)
    return centroids.astype(np.float32)
