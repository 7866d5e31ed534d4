"""CBAFed: fixed pseudo-labels of a round, thresholds by class balance, residual connection.

Li, Li and Wang, CVPR 2023; docs/methods.md 11.

Differences from the paper and its release:

- A cell is a question with two answers. The distribution whose rare values get lower thresholds
  is, for each class, that of absence and presence among the labels in use. A class without any
  gets the highest threshold.
- An absence is sure relative to the class's share of positives, which the sites share. Every plain
  prediction of a rare class is small, and labels made from it would all say absent
  (``balanced=false`` does that).
- FedMLP's port has one threshold for both answers, from the share of the class's cells in use
  (``one_threshold``, not balanced).
- Second-best labels of rare classes are left out, since binary cells have none.
- All sites are labelled in part, so the warm-up is FedAvg over all of them. The release connects
  its warm-up too (0.2 new, 0.8 old: ``warmup_residual``), which few rounds cannot afford.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from src.methods.base import Arrays, SharedPriors, param
from utils_.arrays import Expected
from utils_.pseudo_labels import absence

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast, Report
    from src.models import FlatModel
    from src.server import Server


class CBAFed(SharedPriors):
    """Class-balanced adaptive pseudo-labels."""

    paper = "Li, Li and Wang, CVPR 2023"
    summary = "class-balanced thresholds for pseudo-labels, models weighted by labels in use"
    first_phase = True
    reported: ClassVar = {
        **SharedPriors.reported,
        "used": Expected((2, "classes"), meaning="cells trained on, absent and present"),
    }

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        base: float = param(0.45, "threshold before the share is added, its spread subtracted")
        low: float = param(0.55, "lowest threshold", 0.5)
        high: float = param(0.95, "highest threshold", 0.5)
        residual: float = param(0.5, "share of the earlier model in a residual connection")
        residual_every: int = param(5, "rounds between two residual connections", 1, 10_000)
        warmup_residual: float = param(0.0, "the same share during the warm-up; 0: none")
        balanced: bool = param(True, "sure of an absence: relative to the share of positives")
        one_threshold: bool = param(False, "one threshold a class, as in FedMLP's port")

    params: Params

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        if message.round < self.plan.warmup_rounds:
            return
        probability, missing = client.predict(model), ~client.labels.annotated
        absent, present = message.extras["threshold"]
        share = self.share_for_absence(client, message, balanced=self.params.balanced)
        positive, negative = probability > present, absence(probability, share) > absent
        sure = missing & (positive | negative)
        client.labels.correct(sure, positive)
        no_longer = missing & ~sure & (client.labels.weight > 0)
        client.labels.correct(no_longer, np.zeros(1), weight=0)
        client.logs["pseudo_share"] = float(sure.sum() / max(missing.sum(), 1))

    def after_local(self, client: Client, model: FlatModel, message: Broadcast) -> Arrays:
        used = client.labels.weight > 0
        present = used & (client.labels.target > 0.5)
        counts = np.stack([used & ~present, present]).sum(axis=1).astype(np.float32)
        return {"used": counts} | super().after_local(client, model, message)

    def aggregate(self, server: Server, reports: Iterable[Report]) -> Tensor:
        by_labels = (replace(r, samples=r.credit * max(1, r.extras["used"].sum())) for r in reports)
        return self._connect(server, super().aggregate(server, by_labels))

    def _connect(self, server: Server, new: Tensor) -> Tensor:
        """Mix in the model of ``residual_every`` rounds ago; each phase starts from what it got."""
        main = server.round - self.plan.warmup_rounds
        step, share = main, self.params.residual
        if main < 0:
            step, share = server.round, self.params.warmup_residual
        if step == 0:
            server.memory["earlier"] = server.model.numpy().copy()
        if step == 0 or step % self.params.residual_every:
            return new
        mixed = share * torch.from_numpy(server.memory["earlier"]) + (1 - share) * new
        server.memory["earlier"] = mixed.numpy().copy()
        return mixed

    def after_round(self, server: Server, reports: list[Report]) -> None:
        used = np.stack([report.extras["used"] for report in reports]).sum(axis=0, dtype=np.float64)
        images = sum(report.samples for report in reports)
        super().after_round(server, reports)
        server.memory["threshold"] = self.thresholds(used, images)

    def thresholds(self, used: np.ndarray, images: float) -> np.ndarray:
        """Thresholds of absence and presence.

        Args:
            used: (2, C) labels in use, absent and present.
            images: of all sites.

        Returns:
            (2, C) float32 in [low, high].
        """
        if self.params.one_threshold:
            share = np.broadcast_to(used.sum(axis=0) / images, used.shape)
            spread = share.std()
        else:
            share = used / np.maximum(used.sum(axis=0), 1)
            spread = share.std(axis=0)
        level = (share + self.params.base - spread).clip(self.params.low, self.params.high)
        return np.where(used.sum(axis=0) > 0, level, self.params.high).astype(np.float32)

    def extras(self, server: Server) -> Arrays:
        highest = np.full((2, self.plan.classes), self.params.high, np.float32)
        threshold = {"threshold": server.memory.get("threshold", highest)}
        return threshold | super().extras(server)
