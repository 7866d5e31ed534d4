"""FedLSM: pseudo-labels where a site is sure, MixUp where it is not, heads by what was seen.

Deng, Luo and Chen, MICCAI 2023; docs/methods.md 5.

Differences from the paper and its release:

- Masks and class weights act on single entries before the mean, which runs over their sum. The
  release takes the mean before, so that they have no effect on single entries.
- Images are ranked in evaluation mode.
- A class is annotated where somebody looked, with or without a positive. Masks may be of single
  cells.
- A head row whose class nobody has seen is the plain mean.
- Class weights are off by default (``balance``); in the release they act on no class by itself.
  They come from counts that the sites report each round. The release sends them once, and its
  server reads the labels. They are capped, because a class of few positives would drown the rest.
- Every image is visited once an epoch. An uncertain one is mixed with a confident one of its batch
  and left out of the pseudo-label term, which keeps the release's ratio of both.
- The strong view has the release's chances of a change, without its blur and noise.
- Pools are shares of the site (500 and 2000 of about 10,000 images).
- The optimiser starts anew each round, as for all methods.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from src.aggregation import HeadMean
from src.losses import masked_bce
from src.methods.base import Arrays, Method, SharedPriors, param
from utils_.arrays import Expected
from utils_.priors import class_counts

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast, Report
    from src.models import FlatModel
    from src.plan import Batch
    from src.server import Server


class FedLSM(Method):
    """Federated learning with label-set mismatch."""

    paper = "Deng, Luo and Chen, MICCAI 2023"
    summary = "EMA teacher, MixUp of uncertain images, class-wise aggregation of the head"
    second_view = "strong"
    reported: ClassVar = {
        "seen": Expected(("classes",), meaning="positives of each class, pseudo-labels included"),
        **SharedPriors.reported,
    }

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        uncertain: float = param(0.05, "share of a site's images in the uncertain pool")
        confident: float = param(0.2, "share of a site's images in the confident pool")
        ema: float = param(0.999, "share of the old teacher kept at each step")
        high: float = param(0.85, "the teacher's prediction from which a pseudo-label is 1", 0.5)
        low: float = param(0.01, "the prediction up to which it is 0", 0, 0.5)
        uncertain_high: float = param(0.7, "the same for uncertain images", 0.5)
        uncertain_low: float = param(0.005, "the same for uncertain images", 0, 0.5)
        mixup: float = param(0.2, "both parameters of the Beta distribution", 0.01, 10)
        mixup_weight: float = param(0.1, "weight of the MixUp term", 0, 10)
        balance: bool = param(False, "classes weighted by negatives per positive of all sites")
        class_weight_cap: float = param(100.0, "largest of these weights", 1, 1e6)

    params: Params

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        doubt = uncertainty(client.predict(model), ~client.labels.annotated)
        shares = {"uncertain": self.params.uncertain, "confident": self.params.confident}
        client.cache["uncertain"], client.cache["confident"] = split_pools(doubt, **shares)
        client.cache["teacher"] = model.vector.clone()
        client.cache["seen"] = np.zeros(self.plan.classes, np.float32)

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
        uncertain = client.cache["uncertain"][batch.rows]
        batch, hard = self._pseudo_labels(client, model, batch, torch.from_numpy(uncertain))
        client.cache["seen"] += ((batch.target == 1) & (batch.weight > 0)).sum(0).cpu().numpy()
        one, other, share = self._pairs(client, batch)

        def mix(table: Tensor) -> Tensor:
            return share * table[one] + (1 - share) * table[other]

        images = batch.second.index_copy(0, one, mix(batch.images))
        weight = batch.weight * torch.from_numpy(message.extras["imbalance"]).to(images)
        logits = model.forward(images)
        supervised = self.supervised(client, logits, replace(batch, weight=weight))
        mixed = masked_bce(logits[one], mix(batch.target), (hard[one] & hard[other]).float())
        return supervised + self.params.mixup_weight * mixed

    def _pseudo_labels(
        self, client: Client, model: FlatModel, batch: Batch, uncertain: Tensor
    ) -> tuple[Batch, Tensor]:
        """The batch with the teacher's labels, uncertain images without weight; all hard cells."""
        known, uncertain = batch.weight > 0, uncertain.to(batch.weight.device)[:, None]
        p = client.predict_batch(model, client.cache["teacher"], batch.images)
        high = torch.where(uncertain, self.params.uncertain_high, self.params.high)
        low = torch.where(uncertain, self.params.uncertain_low, self.params.low)
        hard = known | (p >= high) | (p <= low)
        target = torch.where(known, batch.target, (p >= high).float())
        weight = torch.where(known, batch.weight, hard.float()) * ~uncertain
        return replace(batch, target=target, weight=weight), hard

    def _pairs(self, client: Client, batch: Batch) -> tuple[Tensor, Tensor, float]:
        """Positions of uncertain images, of a confident partner for each, and MixUp's share."""
        draw = client.draw("mixup", batch.step)
        uncertain, confident = client.cache["uncertain"], client.cache["confident"]
        pairs = pair_up(uncertain[batch.rows], confident[batch.rows], draw)
        one, other = (torch.from_numpy(p).to(batch.images.device) for p in pairs)
        share = float(draw.beta(self.params.mixup, self.params.mixup))
        return one, other, share

    def after_step(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        client.cache["teacher"].lerp_(model.vector, 1 - self.params.ema)

    def after_local(self, client: Client, model: FlatModel, message: Broadcast) -> Arrays:
        return {"seen": client.cache["seen"]} | class_counts(client.labels)

    def aggregate(self, server: Server, reports: Iterable[Report]) -> Tensor:
        head = HeadMean(server.layout)
        seen = head.tap(reports, lambda report: report.extras["seen"])
        return head.write(super().aggregate(server, seen))

    def after_round(self, server: Server, reports: list[Report]) -> None:
        shape = (2, self.plan.clients, self.plan.classes)
        counts = server.memory.setdefault("counts", np.zeros(shape, np.float32))
        for report in reports:
            counts[:, report.client] = report.extras["positives"], report.extras["annotated"]

    def extras(self, server: Server) -> Arrays:
        unknown = np.zeros((2, 1, self.plan.classes), np.float32)
        counts = server.memory.get("counts", unknown) if self.params.balance else unknown
        cap = self.params.class_weight_cap
        return {"imbalance": imbalance(*counts.sum(axis=1), cap=cap)}


def uncertainty(probability: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Sum of -p log p over an image's missing cells, over C; 0 where all cells are annotated.

    Args:
        probability: (N, C) in [0, 1].
        missing: (N, C) bool.

    Returns:
        (N,) float64, at least 0.
    """
    p = np.maximum(probability.astype(np.float64), 1e-12)
    doubt: np.ndarray = np.where(missing, -p * np.log(p), 0).mean(axis=1)
    return doubt.clip(0)


def split_pools(
    doubt: np.ndarray, *, uncertain: float, confident: float
) -> tuple[np.ndarray, np.ndarray]:
    """The images of largest and of smallest uncertainty.

    Args:
        doubt: (N,) from :func:`uncertainty`.
        uncertain: share of the images; at least one where the share is not 0, and at most half
            of all. Images without doubt are never among them.
        confident: the same for the other end; the pools do not overlap.

    Returns:
        Two (N,) bool arrays.
    """
    order = np.argsort(-doubt, kind="stable")
    most = min(_pool_size(uncertain, len(doubt)), int((doubt > 0).sum()), len(doubt) // 2)
    least = min(_pool_size(confident, len(doubt)), len(doubt) - most)
    pools = np.zeros((2, len(doubt)), bool)
    pools[0, order[:most]] = True
    pools[1, order[len(doubt) - least :]] = True
    return pools[0], pools[1]


def _pool_size(share: float, images: int) -> int:
    return max(int(share * images + 1e-9), int(share > 0))


def pair_up(
    uncertain: np.ndarray, confident: np.ndarray, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a batch's uncertain images and of a random confident partner for each.

    Args:
        uncertain: (B,) bool.
        confident: (B,) bool; where none is True there are no pairs.
        draw: partners repeat only where there are too few.
    """
    one, other = np.flatnonzero(uncertain), np.flatnonzero(confident)
    one = one if len(other) else one[:0]
    return one, np.resize(draw.permutation(other), len(one))


def imbalance(positives: np.ndarray, annotated: np.ndarray, *, cap: float) -> np.ndarray:
    """Negatives per positive of each class, at most ``cap``, divided by the largest.

    A class without positives, without negatives or without annotations has nothing to balance and
    counts as 1 before the division.

    Args:
        positives: (C,) at least 0.
        annotated: (C,) at least ``positives``.
        cap: at least 1.

    Returns:
        (C,) float32 in (0, 1].
    """
    negatives = annotated - positives
    balanced = (positives > 0) & (negatives > 0)
    weight = np.where(balanced, negatives / np.maximum(positives, 1e-6), 1).clip(None, cap)
    weight /= weight.max()
    return weight.astype(np.float32)
