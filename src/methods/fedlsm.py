"""FedLSM: pseudo-labels where a site is sure, MixUp where it is not, heads by what was seen.

After Deng, Luo and Chen, MICCAI 2023 (methods.md 5), multi-label. Masks and class weights act on
single entries before the mean, which runs over their sum; the release takes the mean before. Images
are ranked in evaluation mode. A class is annotated where somebody looked, with or without a
positive; masks may be of single cells. A head row whose class nobody has seen is the plain mean.
Class weights are off by default (``balance``; in the release they act on no class by itself). They
come from counts that the sites report each round (the release sends them once and its server reads
the labels) and are capped: a class of few positives would drown the rest. Every image is visited
once an epoch; an uncertain one is mixed with a confident one of its batch and left out of the
pseudo-label term, which keeps the release's ratio of both. Pools are shares of the site (500 and
2000 of about 10,000 images). The optimiser starts anew each round, as for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from src.losses import masked_bce
from src.methods.base import Method, param
from utils_.head_mean import HeadMean
from utils_.pools import class_weight, pair_up, remember_counts, split_pools, uncertainty
from utils_.pseudo_labels import class_counts
from utils_.rng import derive


class FedLSM(Method):
    """Federated learning with label-set mismatch (methods.md 5)."""

    paper = "Deng, Luo and Chen, MICCAI 2023"
    summary = "EMA teacher, MixUp of uncertain images, class-wise aggregation of the head"
    views = 2

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

    def before_local(self, client, model, message) -> None:
        doubt = uncertainty(client.predict(model), ~client.labels.annotated)
        shares = {"uncertain": self.params.uncertain, "confident": self.params.confident}
        client.cache["uncertain"], client.cache["confident"] = split_pools(doubt, **shares)
        client.cache["teacher"] = model.vector.clone()
        client.cache["seen"], client.cache["step"] = np.zeros(self.plan.classes, np.float32), 0

    def loss(self, client, model, batch, message) -> Tensor:
        client.cache["teacher"].lerp_(model.vector, 1 - self.params.ema)  # after the last step
        uncertain = client.cache["uncertain"][batch.rows]
        batch, hard = self._pseudo_labels(client, model, batch, torch.from_numpy(uncertain))
        client.cache["seen"] += ((batch.target == 1) & (batch.weight > 0)).sum(0).cpu().numpy()
        one, other, share = self._pairs(client, batch, message)

        def mix(table: Tensor) -> Tensor:
            return share * table[one] + (1 - share) * table[other]

        images = batch.strong.index_copy(0, one, mix(batch.images))
        weight = batch.weight * torch.from_numpy(message.extras["class_weight"]).to(images)
        logits = model.forward(images)
        supervised = self.supervised(client, logits, replace(batch, weight=weight))
        mixed = masked_bce(logits[one], mix(batch.target), (hard[one] & hard[other]).float())
        return supervised + self.params.mixup_weight * mixed

    def _pseudo_labels(self, client, model, batch, uncertain: Tensor):
        """The batch with the teacher's labels, uncertain images without weight; all hard cells."""
        known, uncertain = batch.weight > 0, uncertain.to(batch.weight.device)[:, None]
        p = client.predict_batch(model, client.cache["teacher"], batch.images)
        high = torch.where(uncertain, self.params.uncertain_high, self.params.high)
        low = torch.where(uncertain, self.params.uncertain_low, self.params.low)
        hard = known | (p >= high) | (p <= low)
        target = torch.where(known, batch.target, (p >= high).float())
        weight = torch.where(known, batch.weight, hard.float()) * ~uncertain
        return replace(batch, target=target, weight=weight), hard

    def _pairs(self, client, batch, message) -> tuple[Tensor, Tensor, float]:
        """Positions of uncertain images, of a confident partner for each, and MixUp's share."""
        draw = derive(self.plan.seed, "mixup", client.index, message.round, client.cache["step"])
        client.cache["step"] += 1
        pools = (client.cache[name][batch.rows] for name in ("uncertain", "confident"))
        one, other = (torch.from_numpy(p).to(batch.images.device) for p in pair_up(*pools, draw))
        share = float(draw.beta(self.params.mixup, self.params.mixup))
        return one, other, share

    def after_local(self, client, model, message) -> dict[str, np.ndarray]:
        weight, bias = model.head_slices
        head = np.array([weight.start, weight.stop, bias.start])
        return {"seen": client.cache["seen"], "head": head} | class_counts(client.labels)

    def aggregate(self, server, reports) -> Tensor:
        head = HeadMean()
        return head.write(super().aggregate(server, head.tap(reports)))

    def after_round(self, server, reports) -> None:
        remember_counts(server.memory, reports, clients=self.plan.clients)

    def extras(self, server) -> dict[str, np.ndarray]:
        unknown = np.zeros((2, 1, self.plan.classes), np.float32)
        counts = server.memory.get("counts", unknown) if self.params.balance else unknown
        cap = self.params.class_weight_cap
        return {"class_weight": class_weight(*counts.sum(axis=1), cap=cap)}
