"""FedMLP: a teacher for what a site does not annotate, then labels tagged by class prototypes.

After Sun et al., MICCAI 2024 (methods.md 4). First stage (the warm-up, in the paper a tenth of
the rounds): the supervised loss on annotated cells, without logit adjustment as in the release (in
the paper with it), and consistency with the received model on the others. Second stage: of the
cells not annotated, those nearest to the prototype of absence or presence are tagged for good, the
teacher keeps the rest (in the paper; the release drops it: ``distil=false``). The share tagged in a
round grows with the class's learning degree, the share of its missing cells that the sites' models
are sure of: ``adaptive=false`` is the release, which computes the degree and leaves it unused;
rates of 1 tag the degree itself, the release's commented alternative. At least one cell a group is
tagged; both groups are tagged whatever the other holds; masks may be of single cells; priors, with
half a cell added to either count, and prototypes see annotated cells alone; a site without
positives has no say in their prototype. The last batch counts by its true size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from src.losses import weighted_mean
from src.methods.base import Method, param
from utils_.prototypes import class_prototypes, pool_prototypes, similarity_margin, tag
from utils_.pseudo_labels import log_odds


class FedMLP(Method):
    """Federated multi-label learning with partial annotation (methods.md 4)."""

    paper = "Sun et al., MICCAI 2024"
    summary = "teacher on missing classes, then labels tagged by global class prototypes"
    views = 2

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        negative_rate: float = param(0.005, "share of the likely absent cells tagged in a round")
        positive_rate: float = param(0.01, "share of the likely present cells tagged in a round")
        adaptive: bool = param(True, "rates in proportion to the class's learning degree")
        upper: float = param(0.7, "a model is sure of a prediction above it", 0.5)
        lower: float = param(0.3, "a model is sure of a prediction below it", 0, 0.5)
        logit_adjustment: bool = param(False, "train logits shifted by the site's log prior odds")
        distil: bool = param(True, "the teacher stays for untagged cells in the second stage")

    def before_local(self, client, model, message) -> None:
        client.cache["shift"] = log_odds(client.labels) * self.params.logit_adjustment
        if "prototypes" in message.extras:
            self._tag(client, model, message)

    def _tag(self, client, model, message) -> None:
        features, _ = client.embed(model)
        margin = similarity_margin(features, message.extras["prototypes"])
        degree = message.extras["degree"]
        pace = degree if self.params.adaptive else np.ones_like(degree)
        shares = self.params.negative_rate * pace, self.params.positive_rate * pace
        client.labels.correct(*tag(margin, client.labels.weight == 0, shares))

    def loss(self, client, model, batch, message) -> Tensor:
        views = batch.images, batch.strong
        return sum(self._view_loss(client, model, view, batch, message) for view in views) / 2

    def _view_loss(self, client, model, images: Tensor, batch, message) -> Tensor:
        second = message.round >= self.plan.warmup_rounds
        logits = model.forward(images)
        supervised = self.supervised(client, logits + client.cache["shift"].to(logits), batch)
        known = batch.weight > 0
        if known.all() or (second and not self.params.distil):
            return supervised
        teacher = client.predict_batch(model, message.model, images)
        distilled = weighted_mean((logits.sigmoid() - teacher) ** 2, (~known).float())
        if not second:
            return supervised + distilled
        share = known.float().mean()
        return share * supervised + (1 - share) * distilled

    def after_local(self, client, model, message) -> dict[str, np.ndarray]:
        if message.round < self.plan.warmup_rounds - 1:
            return {}
        features, probability = client.embed(model)
        missing = ~client.labels.annotated
        sure = (probability > self.params.upper) | (probability < self.params.lower)
        return {
            "prototypes": class_prototypes(features, client.labels.observed),
            "sure": (sure & missing).sum(axis=0).astype(np.float32),
            "missing": missing.sum(axis=0).astype(np.float32),
        }

    def after_round(self, server, reports) -> None:
        told = sorted((r for r in reports if r.extras), key=lambda report: report.client)
        if not told:
            return
        prototypes = np.stack([report.extras["prototypes"] for report in told])
        samples = np.array([report.samples for report in told])
        last = server.memory.get("prototypes")
        server.memory["prototypes"] = pool_prototypes(prototypes, samples, last)
        sure, missing = (sum(r.extras[name] for r in told) for name in ("sure", "missing"))
        known = server.memory.get("degree", np.ones(self.plan.classes, np.float32))
        server.memory["degree"] = np.where(missing > 0, sure / np.maximum(missing, 1), known)

    def extras(self, server) -> dict[str, np.ndarray]:
        names = ("prototypes", "degree")
        return {name: server.memory[name] for name in names if name in server.memory}
