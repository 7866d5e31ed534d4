"""RSCFed: consensus of random groups of clients, and a mean teacher at each site.

Liang et al., CVPR 2022; docs/methods.md 11.

Differences from the paper and its release:

- All sites are labelled in part: the supervised loss acts on annotated cells, consistency with the
  teacher on missing ones. The release's sixfold weight of labelled clients has no counterpart. The
  warm-up is FedAvg.
- The teacher is not sharpened and keeps 0.99 of itself at a step (published: ``sharpening=2``,
  ``ema=0.999``). On rare classes, where all predictions are small, sharpening teaches absence, and
  so slow a teacher is that of the first rounds.
- The teacher and its step count are kept from round to round; early steps count as 1 / step.
- Both views are weak ones, as in the release: the teacher sees the first, and the student is held
  to it on the second.
- A group takes a share of the reporting clients, so groups differ with 4 clients as with 100
  (paper: 5 of 10, three times).
- Weights are formed in logarithms. The release's underflow to 0/0 when models lie far apart.
- Distances are norms of all parameters; the release adds up one norm for each tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from src.losses import weighted_mean
from src.methods.base import Arrays, Method, param
from utils_.rng import derive

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast, Report
    from src.models import FlatModel
    from src.plan import Batch
    from src.server import Server


class RSCFed(Method):
    """Random sampling consensus."""

    paper = "Liang et al., CVPR 2022"
    summary = "mean of distance-weighted random groups; teacher consistency on missing cells"
    first_phase = True
    second_view = "weak"
    sees_each = "how far each site's model is from random groups of others"

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        groups: int = param(10, "random groups in a round", 1, 1000)
        group_share: float = param(0.6, "share of the reporting clients in a group, rounded up")
        distance: float = param(100.0, "how much distance to the group's mean counts", 0, 1e6)
        ema: float = param(0.99, "largest share of the old teacher kept at a step")
        consistency: float = param(1.0, "weight of the consistency term", 0, 100)
        sharpening: float = param(1.0, "power of the teacher's odds; 1 leaves them", 1, 10)

    params: Params

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        if message.round < self.plan.warmup_rounds:
            return
        teacher = model.vector.clone()
        if "teacher" in client.memory:
            teacher.copy_(torch.from_numpy(client.memory["teacher"]))
        client.cache["teacher"] = teacher

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
        if message.round < self.plan.warmup_rounds:
            return super().loss(client, model, batch, message)
        probability = client.predict_batch(model, client.cache["teacher"], batch.images)
        target = (self.params.sharpening * torch.logit(probability, eps=1e-6)).sigmoid()
        logits, other = model.forward(batch.images), model.forward_aside(batch.second)
        missing = torch.from_numpy(~client.labels.annotated[batch.rows]).to(logits)
        consistency = weighted_mean((other.sigmoid() - target) ** 2, missing)
        return self.supervised(client, logits, batch) + self.params.consistency * consistency

    def after_step(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        if "teacher" not in client.cache:
            return
        steps = client.memory.get("teacher_steps", np.zeros(1)) + 1
        keep = min(1 - 1 / float(steps[0]), self.params.ema)
        client.cache["teacher"].lerp_(model.vector, 1 - keep)
        client.memory["teacher_steps"] = steps

    def after_local(self, client: Client, model: FlatModel, message: Broadcast) -> Arrays:
        if "teacher" in client.cache:
            client.memory["teacher"] = client.cache["teacher"].cpu().numpy()
        return {}

    def aggregate(self, server: Server, reports: Iterable[Report]) -> Tensor:
        """The groups' models, joined by the aggregator of the run; the paper's is the mean.

        Groups need all of a round's reports at once, so memory grows with the clients.
        """
        if server.round < self.plan.warmup_rounds:
            return super().aggregate(server, reports)
        held = sorted(reports, key=lambda report: report.client)
        draw = derive(self.plan.seed, "groups", server.round)
        share, times = self.params.group_share, self.params.groups
        groups = draw_groups(len(held), share=share, times=times, draw=draw)
        joined = (
            self._as_report(server, [held[i] for i in group], number)
            for number, group in enumerate(groups)
        )
        return super().aggregate(server, joined)

    def _as_report(self, server: Server, group: list[Report], number: int) -> Report:
        """A group as one report, which counts like any other; counts of its members add up."""
        model = distance_weighted(
            [report.model for report in group],
            [report.samples for report in group],
            strength=self.params.distance,
            own=server.layout.parameters,
        )
        extras = {
            name: np.sum([report.extras[name] for report in group], axis=0)
            for name in group[0].extras
        }
        return replace(group[0], client=number, samples=1, model=model, extras=extras, credit=1.0)


def draw_groups(
    members: int, *, share: float, times: int, draw: np.random.Generator
) -> list[list[int]]:
    """Random groups of 0 to ``members`` - 1, each drawn anew and in ascending order.

    Args:
        members: at least 1.
        share: of the members in a group, rounded up; at least one is taken.
        times: number of groups.
        draw: where the draws come from.
    """
    size = max(1, math.ceil(share * members - 1e-9))  # 0.6 of 5 is 3.0000000000000004
    chosen = (draw.choice(members, size, replace=False) for _ in range(times))
    return [sorted(group.tolist()) for group in chosen]


def distance_weighted(
    models: Sequence[Tensor], images: Sequence[float], *, strength: float, own: int
) -> Tensor:
    """Mean of the models, weights n exp(-strength d / n), d the distance to their plain mean.

    Args:
        models: vectors (P,).
        images: n of each, above 0.
        strength: at least 0; 0 gives the plain mean.
        own: the first so many numbers are parameters, of which the distance is taken.
    """
    count = torch.tensor(images, dtype=torch.float64)
    mean = _mix(models, count / count.sum())
    distance = torch.stack([(model[:own] - mean[:own]).norm() for model in models])
    return _mix(models, torch.softmax(count.log() - strength * distance / count, dim=0)).float()


def _mix(models: Sequence[Tensor], shares: Tensor) -> Tensor:
    total = torch.zeros(len(models[0]), dtype=torch.float64)
    for share, model in zip(shares.tolist(), models, strict=True):
        total += share * model.double()
    return total
