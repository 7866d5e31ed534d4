"""FedNML: warm-up, then corrected and pseudo-labels, adjusted logits and margins.

Follows methods.md 1.5 and 1.6 with these deviations. Honesty: missing labels start from the
prediction; priors count annotated cells, a missing class's those of other sites. For small models
and rare classes: the mixture judges images with a positive label alone, by their agreement relative
to the class, and may find nothing; what it doubts loses weight, at every refresh anew, and is
corrected where a prediction is hard; pseudo-labels are the latest predictions and count less.
Predictions stay soft and nothing is distilled, because hard labels and distillation confirmed the
model's own errors; ``confident`` (0.9 as published; a hard 0 only far below the class prior) and
``kd_weight`` bring them back. The margin shifts the supervised term alone. From the first round on
logits are trained shifted by the site's log prior odds too (logit adjustment, Menon et al., ICLR
2021, in binary form), predictions made without, pseudo-labels with them. For speed: the teacher
predicts once a round on the plain image. ``published`` undoes all but honesty and constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from src.losses import label_margin, masked_bce, ramp
from src.methods.base import SharedPriors, param
from utils_ import refinement
from utils_.pseudo_labels import log_odds, snap, with_odds
from utils_.rng import derive_seed


class FedNML(SharedPriors):
    """Federated learning with noisy and missing labels (methods.md 1)."""

    paper = "FedNML, 2025"
    summary = "noisy samples corrected, missing classes pseudo-labelled, logits adjusted, margins"

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        refresh_every: int = param(5, "rounds between two label refreshes", 1, 10_000)
        confident: float = param(1.0, "a higher prediction is 1, a tiny one 0; 1: stay soft", 0.5)
        inertia: float = param(0.0, "share of the old label kept on missing classes")
        pseudo_weight: float = param(0.5, "weight of a missing class's pseudo-label")
        trust: float = param(0.5, "weight that an annotation surely noisy loses")
        kd_weight: float = param(0.0, "largest weight of the distillation term on all cells")
        kappa: float = param(2.0, "steepness of the ramps from the warm-up to the end", 0, 50)
        logit_adjustment: bool = param(True, "train logits shifted by the site's log prior odds")
        margin: float = param(1.0, "scale of the label-dependent margin; 0 turns it off", 0, 10)
        min_images: int = param(20, "fewest images the mixture is fitted to", 4, 1_000_000)
        min_gap: float = param(0.2, "least distance of its means, in standard deviations", 0, 10)
        published: bool = param(False, "hard, lasting corrections and the rest as published")
        hidden_label_leak: bool = param(False, "start from hidden labels, as published (leaky)")

    @property
    def hidden_labels(self) -> bool:
        return self.params.hidden_label_leak

    def before_local(self, client, model, message) -> None:
        if self.params.logit_adjustment and not self.params.published:
            client.cache["shift"] = log_odds(client.labels, self._prior(client, message))
        age = message.round - self.plan.warmup_rounds
        if age < 0:
            return
        refresh = age % self.params.refresh_every == 0
        if refresh or self.params.kd_weight > 0:
            client.cache["teacher"] = with_odds(client.predict(model), client.cache.get("shift"))
        if refresh:
            self._refresh(client, client.cache["teacher"].numpy(), message)
        client.cache["prior"] = torch.from_numpy(self._prior(client, message))

    def _refresh(self, client, predicted: np.ndarray, message) -> None:
        params, labels, memory = self.params, client.labels, client.memory
        seed = derive_seed(self.plan.seed, "mixture", client.index)
        mixture = {"seed": seed, "min_images": params.min_images, "min_gap": params.min_gap}
        weight = params.pseudo_weight
        if params.published:
            weight, snapped = 1, snap(predicted, params.confident)
            noise = refinement.doubt_all(labels, memory, predicted, **mixture)
            refinement.correct_all(labels, snapped, noisy=noise > 0.5)
        else:
            snapped = snap(predicted, params.confident, self._prior(client, message))
            noise = refinement.doubt_positives(labels, memory, predicted, **mixture)
            refinement.correct_confident(labels, snapped, noise=noise, trust=params.trust)
        keep = max(params.inertia, refinement.LEAK_FADES if self.hidden_labels else 0)
        refinement.fill_missing(labels, snapped, keep=keep, weight=weight, start=client.hidden)

    def _prior(self, client, message) -> np.ndarray:
        """(C,) share of positives; the leak counts hidden labels as well."""
        if not self.hidden_labels:
            return self.prior(client, message)
        seen = np.where(client.labels.weight > 0, client.labels.target, client.hidden)
        own = np.nanmean(seen, axis=0)
        return np.where(np.isnan(own), message.extras["prior"], own)

    def loss(self, client, model, batch, message) -> Tensor:
        teacher = self._teacher(client, model, batch, message)
        logits = model.forward(batch.images)
        if "shift" in client.cache:
            logits = logits + client.cache["shift"].to(logits)
        if message.round < self.plan.warmup_rounds:
            return self.supervised(client, logits, batch)
        margin = label_margin(batch.target, client.cache["prior"].to(logits.device))
        shifted = logits + self.params.margin * margin
        supervised = self.supervised(client, shifted, batch)
        if teacher is None:
            return supervised
        begin, end = self.plan.warmup_rounds, self.plan.rounds
        growth = ramp(message.round, begin=begin, end=end, kappa=self.params.kappa)
        weight = self.params.kd_weight * growth
        student = shifted if self.params.published else logits
        distilled = masked_bce(student, teacher, torch.ones_like(teacher))
        return weight * distilled + (1 - weight) * supervised

    def _teacher(self, client, model, batch, message) -> Tensor | None:
        if self.params.kd_weight == 0 or message.round < self.plan.warmup_rounds:
            return None
        if self.params.published:
            return client.predict_batch(model, message.model, batch.images)
        return client.cache["teacher"][batch.rows].to(batch.images.device)
