"""FedELC: sites with noisy labels are found, and learn their labels along with the model.

After Jiang et al., CIKM 2024 (methods.md 7), multi-label. First stage, vote on who is noisy and
aggregation by distance are FedNoRo's, adapted as in src/methods/fednoro.py. In the second stage a
noisy site keeps a logit for each annotated cell, which starts from the annotation. The model fits
the labels that these logits say, by the mean of KL(p || q), and is pressed to decide by its
entropy. The logits move once an epoch, by KL / C and by what ties them to the annotations, C the
number of classes; after the round, label and prediction are averaged. Clean sites train as before.

The published step of 1000 is one of the mean over 64 images: 15.6 an image, whatever the size of
the batch. Every image is visited once an epoch, so its logits move right after its batch. Final
predictions are those of plain images in evaluation mode. The tie to the annotations acts on labels
alone and is no part of the logged loss. Cells not annotated have no weight in any term. A site that
a later vote calls clean has its annotations back. ``--loss`` acts but at noisy sites.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from src.losses import weighted_mean
from src.methods.base import Method, param
from utils_.bernoulli import entropy
from utils_.label_logits import first_logits, label_divergence, merged, step
from utils_.noisy_clients import class_losses
from utils_.pseudo_labels import log_odds
from utils_.rng import derive_seed
from utils_.site_vote import NOISY, NOT_HEARD, hear, weighed


class FedELC(Method):
    """Tackling noisy clients with end-to-end label correction (methods.md 7)."""

    paper = "Jiang et al., CIKM 2024"
    summary = "vote on noisy sites, which learn their labels by gradient"

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        voters: int = param(9, "mixtures that vote on who is noisy", 1, 1000)
        min_cells: int = param(5, "fewest labels of a kind whose mean loss is told", 1, 1_000_000)
        min_gap: float = param(0.5, "least gap of the groups' mean normalised loss; 1: no split")
        scale: float = param(10.0, "logit at which a label starts", 0.1, 100)
        rate: float = param(15.6, "step of a label's logits down the loss of its image", 0, 1e5)
        tie: float = param(0.5, "weight of what ties labels to the annotations", 0, 100)
        entropy: float = param(0.2, "weight of the entropy term", 0, 100)
        logit_adjustment: bool = param(True, "train logits shifted by the site's log prior odds")

    def before_local(self, client, model, message) -> None:
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
            client.cache["told"] = class_losses(client.predict(model), given, min_cells=least)

    def loss(self, client, model, batch, message) -> Tensor:
        logits = model.forward(batch.images)
        if not client.cache["noisy"]:
            return self.supervised(client, logits + client.cache["shift"].to(logits), batch)
        u = client.cache["labels"][batch.rows].to(logits)
        divergence = weighted_mean(label_divergence(logits, u), batch.weight)
        doubt = weighted_mean(entropy(logits), batch.weight)
        self._move(client, u, logits.detach().sigmoid(), batch)
        return divergence + self.params.entropy * doubt

    def _move(self, client, u: Tensor, p: Tensor, batch) -> None:
        given = torch.from_numpy(np.nan_to_num(client.labels.observed[batch.rows])).to(u)
        rate, tie = self.params.rate, self.params.tie
        moved = step(u, p, given, rate=rate, tie=tie, classes=self.plan.classes)
        client.cache["labels"][batch.rows] = torch.where(batch.weight > 0, moved, u).cpu()

    def after_local(self, client, model, message) -> dict[str, np.ndarray]:
        client.logs["noisy"] = float(client.cache["noisy"])
        if client.cache["noisy"]:
            self._keep(client, client.cache["labels"].numpy(), client.predict(model))
        return {"losses": client.cache["told"]} if "told" in client.cache else {}

    def _keep(self, client, u: np.ndarray, predicted: np.ndarray) -> None:
        labels = client.labels
        u = np.where(labels.annotated, merged(u, predicted, scale=self.params.scale), 0)
        learned = torch.from_numpy(u).sigmoid().numpy()
        labels.correct(labels.annotated, learned)
        turned = np.where(labels.annotated, np.abs(learned - labels.observed), 0)
        client.memory |= {"label_logits": u, "noise_score": turned.max(axis=1)}

    def aggregate(self, server, reports) -> Tensor:
        if NOISY in server.memory.get("noisy", ()):
            own = server.layout.parameters
            reports = weighed(reports, server.memory["noisy"], own=own)
        return super().aggregate(server, reports)

    def after_round(self, server, reports) -> None:
        seeds = [derive_seed(self.plan.seed, "vote", i) for i in range(self.params.voters)]
        told = [report for report in reports if "losses" in report.extras]
        count, gap = self.plan.clients, self.params.min_gap
        hear(server.memory, told, clients=count, seeds=seeds, min_gap=gap)

    def extras(self, server) -> dict[str, np.ndarray]:
        return {"noisy": server.memory["noisy"]} if "noisy" in server.memory else {}
