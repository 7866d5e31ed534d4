"""FedMLP: a teacher for what a site does not annotate, then labels tagged by class prototypes.

Sun et al., MICCAI 2024; docs/methods.md 4.

First stage (the warm-up, in the paper a tenth of the rounds): the supervised loss on annotated
cells, and consistency with the received model on the others. Second stage: of the cells that are
not annotated, those nearest to the prototype of absence or presence are tagged for good, and the
teacher keeps the rest.

Differences from the paper and its release:

- Logits are adjusted, as in the paper; the release has this commented out
  (``logit_adjustment=false``).
- The teacher stays in the second stage, as in the paper; the release drops it (``distil=false``).
- The share tagged in a round grows with the class's learning degree, the share of its missing
  cells that the sites' models are sure of. The release computes this degree and does not use it
  (``adaptive=false``). Rates of 1 tag the degree itself, the release's commented alternative.
- At least one cell of a group is tagged. Both groups are tagged, whatever the other one holds.
- Among the cells that a site has tagged of a class, the share of positives stays at the sites'
  share of them among annotated cells, rounded up to a whole cell. Else about as many positives as
  negatives are tagged of a class that nearly every image lacks.
- Masks may be of single cells. Priors, with half a cell added to either count, and prototypes see
  annotated cells alone. A site without positives has no say in their prototype.
- The last batch counts by its true size.
- The first stage trains on two weak views, the second on one, as in the release.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from src.losses import weighted_mean
from src.methods.base import Arrays, SharedPriors, param
from utils_.arrays import Expected
from utils_.priors import log_odds
from utils_.prototypes import class_prototypes, directions

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast, Report
    from src.models import FlatModel
    from src.plan import Batch
    from src.server import Server


class FedMLP(SharedPriors):
    """Federated multi-label learning with partial annotation."""

    paper = "Sun et al., MICCAI 2024"
    summary = "teacher on missing classes, then labels tagged by global class prototypes"
    first_phase = True
    second_view = "weak"
    reported: ClassVar = {
        **SharedPriors.reported,
        "prototypes": Expected(
            (2, "classes", "features"),
            optional=True,
            meaning="mean features of images with and without each class",
        ),
        "sure": Expected(("classes",), optional=True, meaning="missing cells predicted surely"),
        "missing": Expected(("classes",), optional=True, meaning="missing cells of each class"),
    }

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        negative_rate: float = param(0.005, "share of the likely absent cells tagged in a round")
        positive_rate: float = param(0.01, "share of the likely present cells tagged in a round")
        adaptive: bool = param(True, "rates in proportion to the class's learning degree")
        upper: float = param(0.7, "a model is sure of a prediction above it", 0.5)
        lower: float = param(0.3, "a model is sure of a prediction below it", 0, 0.5)
        logit_adjustment: bool = param(True, "train logits shifted by the site's log prior odds")
        distil: bool = param(True, "the teacher stays for untagged cells in the second stage")

    params: Params

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        client.cache["shift"] = log_odds(client.labels) * self.params.logit_adjustment
        if "prototypes" in message.extras:
            self._tag(client, model, message)

    def _tag(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        labels, degree = client.labels, message.extras["degree"]
        features, _ = client.embed(model)
        margin = similarity_margin(features, message.extras["prototypes"])
        pace = degree if self.params.adaptive else np.ones_like(degree)
        shares = self.params.negative_rate * pace, self.params.positive_rate * pace
        tagged = ~labels.annotated & (labels.weight > 0)
        most = most_positives(message.extras["prior"], tagged.sum(axis=0) + 1)
        most = most - (tagged & (labels.target == 1)).sum(axis=0)
        labels.correct(*tag(margin, labels.weight == 0, shares=shares, most=most))

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
        first = self._view_loss(client, model, batch.images, batch, message)
        if message.round >= self.plan.warmup_rounds:
            return first
        second = self._view_loss(client, model, batch.second, batch, message)
        return (first + second) / 2

    def _view_loss(
        self, client: Client, model: FlatModel, images: Tensor, batch: Batch, message: Broadcast
    ) -> Tensor:
        tagging = message.round >= self.plan.warmup_rounds
        main = images is batch.images
        logits = model.forward(images) if main else model.forward_aside(images)
        supervised = self.supervised(client, logits + client.cache["shift"].to(logits), batch)
        known = batch.weight > 0
        if known.all() or (tagging and not self.params.distil):
            return supervised
        teacher = client.predict_batch(model, message.model, images)
        distilled = weighted_mean((logits.sigmoid() - teacher) ** 2, (~known).float())
        if not tagging:
            return supervised + distilled
        share = known.float().mean()
        return share * supervised + (1 - share) * distilled

    def after_local(self, client: Client, model: FlatModel, message: Broadcast) -> Arrays:
        told = super().after_local(client, model, message)
        if message.round < self.plan.warmup_rounds - 1:
            return told
        features, probability = client.embed(model)
        missing = ~client.labels.annotated
        sure = (probability > self.params.upper) | (probability < self.params.lower)
        return told | {
            "prototypes": class_prototypes(features, client.labels.observed),
            "sure": (sure & missing).sum(axis=0).astype(np.float32),
            "missing": missing.sum(axis=0).astype(np.float32),
        }

    def after_round(self, server: Server, reports: list[Report]) -> None:
        super().after_round(server, reports)
        names = ("prototypes", "sure", "missing")
        told = [report for report in reports if all(name in report.extras for name in names)]
        told.sort(key=lambda report: report.client)
        if not told:
            return
        prototypes = np.stack([report.extras["prototypes"] for report in told])
        samples = np.array([report.samples for report in told])
        last = server.memory.get("prototypes")
        server.memory["prototypes"] = pool_prototypes(prototypes, samples, last)
        sure, missing = (
            np.sum([report.extras[name] for report in told], axis=0) for name in ("sure", "missing")
        )
        known = server.memory.get("degree", np.ones(self.plan.classes, np.float32))
        server.memory["degree"] = np.where(missing > 0, sure / np.maximum(missing, 1), known)

    def extras(self, server: Server) -> Arrays:
        names = ("prototypes", "degree")
        known = {name: server.memory[name] for name in names if name in server.memory}
        return super().extras(server) | known


def pool_prototypes(
    prototypes: np.ndarray, samples: np.ndarray, last: np.ndarray | None
) -> np.ndarray:
    """Mean of the sites' prototypes, weighted by images, over the sites that have one.

    Args:
        prototypes: (K, 2, C, D), zeros where a site has none.
        samples: (K,) images of each site.
        last: (2, C, D), kept where no site has one; None stands for zeros.
    """
    known = prototypes.any(axis=-1, keepdims=True)
    weight = samples.reshape(-1, 1, 1, 1) * known.astype(np.float64)
    total = weight.sum(axis=0)
    mean = (weight * prototypes).sum(axis=0) / np.maximum(total, 1)
    kept = np.zeros_like(mean) if last is None else last
    return np.where(total > 0, mean, kept).astype(np.float32)


def similarity_margin(features: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """Cosine to the prototype of absence less that to the prototype of presence.

    Args:
        features: (N, D).
        prototypes: (2, C, D), zeros where unknown.

    Returns:
        (N, C) float64 in [-2, 2]; NaN for a class that lacks one of its prototypes.
    """
    absent, present = directions(features) @ directions(prototypes).transpose(0, 2, 1)
    known = prototypes.any(axis=-1).all(axis=0)
    return np.where(known, absent - present, np.nan)


def most_positives(prior: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(C,) whole numbers, how many of so many tagged cells may be positives: their prior share.

    Rounded up, so one of a class that has positives anywhere; none of a class of unknown prior.

    Args:
        prior: (C,) share of positives, NaN where unknown.
        cells: (C,) at least 0.
    """
    expected = np.nan_to_num(prior).astype(np.float64) * cells
    count: np.ndarray = np.ceil(expected * (1 - 1e-6))  # 0.1 of 30 is a little above 3
    return count.astype(np.int64)


def tag(
    margin: np.ndarray,
    candidates: np.ndarray,
    *,
    shares: tuple[np.ndarray, np.ndarray],
    most: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Tag the cells farthest on either side: large margins as absent, small ones as present.

    Args:
        margin: (N, C); cells of NaN are never tagged.
        candidates: (N, C) bool, the cells that may be tagged.
        shares: of the absent and of the present group of each class, two (C,) in [0, 1].
            At least one cell of a group is tagged, so small sites do not stand still.
        most: (C,) cells of each class that may be tagged as present; below 0 counts as 0.

    Returns:
        (N, C) bool, the tagged cells; (N, C) float32, their values.
    """
    cells, values = np.zeros(margin.shape, bool), np.zeros(margin.shape, np.float32)
    for c in range(margin.shape[1]):
        sides = (margin[:, c] >= 0, margin[:, c] < 0)
        for value, side in enumerate(sides):
            group = np.flatnonzero(candidates[:, c] & side)
            count = max(1, int(shares[value][c] * len(group) + 1e-6))
            if value == 1:
                count = min(count, max(0, int(most[c])))
            order = np.argsort(-np.abs(margin[group, c]), kind="stable")
            cells[group[order[:count]], c] = True
            values[group[order[:count]], c] = value
    return cells, values
