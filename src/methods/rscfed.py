"""RSCFed: consensus of random groups of clients, and a mean teacher at each site.

After Liang et al., CVPR 2022 (methods.md 11), multi-label: the supervised loss on annotated cells,
consistency with the teacher on missing ones. The paper sharpens the teacher (``sharpening=2``) and
keeps 0.999 of it; on rare classes, where all predictions are small, sharpening teaches absence, and
so slow a teacher is that of the first rounds. FedMLP's port does not sharpen. The second view is a
strong one here, so the student takes it and the teacher the weak one. The paper's teacher (EMA,
early steps counted as 1/step) is kept, with its step count, from round to round. A group takes a
share of the reporting clients, so groups differ with 4 clients as with 100 (paper: 5 of 10,
thrice). Weights are formed in logarithms: the release's underflow to 0/0 when models lie far apart.
Distances are norms of all parameters; the release adds up one norm a tensor. Its sixfold weight of
labelled clients has no counterpart, since all sites are labelled in part. The warm-up is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from src.losses import weighted_mean
from src.methods.base import Method, param
from utils_.consensus import distance_weighted, draw_groups
from utils_.rng import derive


class RSCFed(Method):
    """Random sampling consensus (methods.md 11)."""

    paper = "Liang et al., CVPR 2022"
    summary = "mean of distance-weighted random groups; teacher consistency on missing cells"
    views = 2

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        groups: int = param(10, "random groups in a round", 1, 1000)
        group_share: float = param(0.6, "share of the reporting clients in a group, rounded up")
        distance: float = param(100.0, "how much distance to the group's mean counts", 0, 1e6)
        ema: float = param(0.99, "largest share of the old teacher kept at a step")
        consistency: float = param(1.0, "weight of the consistency term", 0, 100)
        sharpening: float = param(1.0, "power of the teacher's odds; 1 leaves them", 1, 10)

    def before_local(self, client, model, message) -> None:
        if message.round < self.plan.warmup_rounds:
            return
        teacher = model.vector.clone()
        if "teacher" in client.memory:
            teacher.copy_(torch.from_numpy(client.memory["teacher"]))
        client.cache["teacher"] = teacher

    def loss(self, client, model, batch, message) -> Tensor:
        if message.round < self.plan.warmup_rounds:
            return super().loss(client, model, batch, message)
        self._follow(client, model)
        probability = client.predict_batch(model, client.cache["teacher"], batch.images)
        target = (self.params.sharpening * torch.logit(probability, eps=1e-6)).sigmoid()
        weak, strong = model.forward(torch.cat([batch.images, batch.strong])).chunk(2)
        missing = torch.from_numpy(~client.labels.annotated[batch.rows]).to(weak)
        consistency = weighted_mean((strong.sigmoid() - target) ** 2, missing)
        client.cache["stepped"] = True
        return self.supervised(client, weak, batch) + self.params.consistency * consistency

    def _follow(self, client, model) -> None:
        """Draw the teacher towards the student, once after every step."""
        if not client.cache.pop("stepped", False):
            return
        steps = client.memory.get("teacher_steps", np.zeros(1)) + 1
        keep = min(1 - 1 / float(steps[0]), self.params.ema)
        client.cache["teacher"].lerp_(model.vector, 1 - keep)
        client.memory["teacher_steps"] = steps

    def after_local(self, client, model, message) -> dict[str, np.ndarray]:
        self._follow(client, model)
        if "teacher" in client.cache:
            client.memory["teacher"] = client.cache["teacher"].cpu().numpy()
        return {}

    def aggregate(self, server, reports) -> Tensor:
        """The groups' models, joined by the aggregator of the run; the paper's is the mean.

        Groups need all of a round's reports at once, so memory grows with the clients.
        """
        if server.round < self.plan.warmup_rounds:
            return super().aggregate(server, reports)
        held = sorted(reports, key=lambda report: report.client)
        draw = derive(self.plan.seed, "groups", server.round)
        sizes = {"share": self.params.group_share, "times": self.params.groups}
        groups = draw_groups(len(held), **sizes, draw=draw)
        groups = ([held[i] for i in group] for group in groups)
        return super().aggregate(
            server, (self._as_report(server, group, m) for m, group in enumerate(groups))
        )

    def _as_report(self, server, group: list, number: int):
        """A group as one report, which counts like any other; counts of its members add up."""
        models, images = zip(*((report.model, report.samples) for report in group), strict=True)
        strength, own = self.params.distance, server.layout.parameters
        model = distance_weighted(models, images, strength=strength, own=own)
        extras = {name: sum(r.extras[name] for r in group) for name in group[0].extras}
        return replace(group[0], client=number, samples=1, model=model, extras=extras, trust=1.0)
