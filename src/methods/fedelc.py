"""FedELC: sites with noisy labels are found, and learn their labels along with the model.

Jiang et al., CIKM 2024; docs/methods.md 7.

The first stage, the verdict on who is noisy and the aggregation by distance are FedNoRo's, see
src/methods/fednoro.py. In the second stage a noisy site keeps a logit for each annotated cell,
which starts from the annotation. The model fits the labels that these logits say, by the mean of
KL(p || q), and is pressed to decide by its entropy. The logits move once an epoch, by KL / C and by
what ties them to the annotations, C the number of classes. After the round the label becomes the
mean of label and prediction. Clean sites train as before.

Differences from the paper and its release:

- The published step of 1000 is one of the mean over 64 images. Here it is 15.6 for each image,
  whatever the size of the batch.
- Every image is visited once an epoch, so its logits move right after its batch.
- Final predictions are those of plain images in evaluation mode.
- The tie to the annotations acts on the labels alone and is no part of the logged loss.
- Cells that are not annotated have no weight in any term.
- Who is noisy is tested, see FedNoRo; ``alpha=1`` is the published vote.
- A site that a later verdict calls clean gets its annotations back.
- ``--loss`` and ``--class-weights`` apply everywhere except at noisy sites.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.losses import entropy, weighted_mean
from src.methods.base import Arrays, Method, param
from utils_.noisy_clients import NOISY, NOT_HEARD, TOLD, hear, tell, weighed
from utils_.priors import log_odds
from utils_.rng import derive_seed

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast, Report
    from src.models import FlatModel
    from src.plan import Batch
    from src.server import Server


class FedELC(Method):
    """Tackling noisy clients with end-to-end label correction."""

    paper = "Jiang et al., CIKM 2024"
    summary = "finds noisy sites, which learn their labels by gradient"
    first_phase = True
    sees_each = "class losses of each site, and how far its model is from others"
    reported: ClassVar = TOLD

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        voters: int = param(9, "mixtures that vote where alpha is 1", 1, 1000)
        min_cells: int = param(5, "fewest labels of a kind whose mean loss is told", 1, 1_000_000)
        alpha: float = param(0.01, "chance of accusing alike sites; 1: split always, 0: never")
        scale: float = param(10.0, "logit at which a label starts", 0.1, 100)
        rate: float = param(15.6, "step of a label's logits down the loss of its image", 0, 1e5)
        tie: float = param(0.5, "weight of what ties labels to the annotations", 0, 100)
        entropy: float = param(0.2, "weight of the entropy term", 0, 100)
        logit_adjustment: bool = param(True, "train logits shifted by the site's log prior odds")

    params: Params

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        labels, memory = client.labels, client.memory
        found = message.extras.get("noisy", np.full(self.plan.clients, NOT_HEARD))
        noisy = client.cache["noisy"] = bool(found[client.index] == NOISY)
        if noisy:
            first = first_logits(labels.observed, scale=self.params.scale)
            client.cache["labels"] = torch.from_numpy(memory.get("label_logits", first).copy())
        elif memory.pop("label_logits", None) is not None:
            labels.correct(labels.annotated, labels.observed)
            memory["noise_score"] = np.zeros_like(memory["noise_score"])
        client.cache["shift"] = log_odds(labels) * self.params.logit_adjustment
        if message.round >= max(self.plan.warmup_rounds - 1, 1) and NOT_HEARD in found:
            given, least = labels.observed, self.params.min_cells
            draw, predicted = client.draw("bootstrap"), client.predict(model)
            client.cache["told"] = tell(predicted, given, min_cells=least, draw=draw)

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
        logits = model.forward(batch.images)
        if not client.cache["noisy"]:
            return self.supervised(client, logits + client.cache["shift"].to(logits), batch)
        u = client.cache["labels"][batch.rows].to(logits)
        divergence = weighted_mean(label_divergence(logits, u), batch.weight)
        doubt = weighted_mean(entropy(logits), batch.weight)
        self._move(client, u, logits.detach().sigmoid(), batch)
        return divergence + self.params.entropy * doubt

    def _move(self, client: Client, u: Tensor, p: Tensor, batch: Batch) -> None:
        given = torch.from_numpy(np.nan_to_num(client.labels.observed[batch.rows])).to(u)
        rate, tie = self.params.rate, self.params.tie
        moved = label_step(u, p, given, rate=rate, tie=tie, classes=self.plan.classes)
        client.cache["labels"][batch.rows] = torch.where(batch.weight > 0, moved, u).cpu()

    def after_local(self, client: Client, model: FlatModel, message: Broadcast) -> Arrays:
        client.logs["noisy"] = float(client.cache["noisy"])
        if client.cache["noisy"]:
            self._keep(client, client.cache["labels"].numpy(), client.predict(model))
        told: Arrays = client.cache.get("told", {})
        return told

    def _keep(self, client: Client, u: np.ndarray, predicted: np.ndarray) -> None:
        labels = client.labels
        u = np.where(labels.annotated, merged_logits(u, predicted, scale=self.params.scale), 0)
        learned = torch.from_numpy(u).sigmoid().numpy()
        labels.correct(labels.annotated, learned)
        turned = np.where(labels.annotated, np.abs(learned - labels.observed), 0)
        client.memory |= {"label_logits": u, "noise_score": turned.max(axis=1)}

    def aggregate(self, server: Server, reports: Iterable[Report]) -> Tensor:
        if NOISY in server.memory.get("noisy", ()):
            own = server.layout.parameters
            reports = weighed(reports, server.memory["noisy"], own=own)
        return super().aggregate(server, reports)

    def after_round(self, server: Server, reports: list[Report]) -> None:
        seeds = [derive_seed(self.plan.seed, "vote", i) for i in range(self.params.voters)]
        count, alpha = self.plan.clients, self.params.alpha
        hear(server.memory, reports, clients=count, seeds=seeds, alpha=alpha)

    def extras(self, server: Server) -> Arrays:
        return {"noisy": server.memory["noisy"]} if "noisy" in server.memory else {}


# ---- learned labels
#
# A cell is a problem of two classes whose label has two logits. Only their difference u matters. It
# moves twice as fast as either would, because the two have opposite gradients.


def first_logits(observed: np.ndarray, *, scale: float) -> np.ndarray:
    """(n, C) float32: ``scale`` for a present cell, -``scale`` for an absent, 0 where unknown.

    Args:
        observed: (n, C) of 0 and 1, NaN where not annotated.
        scale: above 0.
    """
    logits: np.ndarray = scale * np.nan_to_num(2 * observed - 1)
    return logits.astype(np.float32)


def label_divergence(logits: Tensor, label_logits: Tensor) -> Tensor:
    """KL(p || q) of each cell, p the prediction and q the learned label; in float32.

    Args:
        logits: of p, of any shape.
        label_logits: of q, of the same shape; they get no gradient.
    """
    p, u = logits.float().sigmoid(), label_logits.detach().float()
    present = F.logsigmoid(logits.float()) - F.logsigmoid(u)
    absent = F.logsigmoid(-logits.float()) - F.logsigmoid(-u)
    return p * present + (1 - p) * absent


def label_step(
    u: Tensor, p: Tensor, given: Tensor, *, rate: float, tie: float, classes: int
) -> Tensor:
    """The label logits after one step down KL(p || q) / C + tie * CE(q, given).

    Args:
        u: logits of q, any shape.
        p: predictions, of the same shape.
        given: annotations 0 or 1, of the same shape.
        rate: length of the step for either of a label's two logits.
        tie: weight of the second term.
        classes: C.
    """
    q = u.sigmoid()
    return u - 2 * rate * ((q - p) / classes + tie * (q - given))


def merged_logits(u: np.ndarray, predicted: np.ndarray, *, scale: float) -> np.ndarray:
    """Logits of the mean of learned label and prediction, each cell's two set to ``scale`` times.

    Of a label q and a prediction p the present class gets scale (q + p) / 2, the absent one the
    rest of ``scale``; their difference is scale (q + p - 1).
    """
    q = torch.from_numpy(u).sigmoid().numpy()
    merged: np.ndarray = scale * (q + predicted - 1)
    return merged.astype(np.float32)
