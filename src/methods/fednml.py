"""FedNML: warm-up, then corrected and pseudo-labels, label-dependent margins, distillation.

Follows methods.md 1.5 and 1.6 with these deviations, all towards honesty or speed: labels of
missing classes start from the prediction, never from hidden values; priors count annotated cells
alone, and a missing class takes the prior of the sites that annotate it; agreement and loss are
means over annotated cells at every refresh; the mixture sees standardised features and may find
nothing; the teacher predicts once a round on the plain image unless ``teacher_on_batch`` is set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from src.losses import label_margin, masked_bce, ramp
from src.methods.base import Method, param
from utils_.gmm import split_noisy
from utils_.pseudo_labels import agreement_and_loss, class_counts, prior, snap
from utils_.rng import derive_seed


class FedNML(Method):
    """Federated learning with noisy and missing labels (methods.md 1)."""

    paper = "FedNML, 2025"
    summary = "noisy samples corrected, missing classes pseudo-labelled, margins, distillation"

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        refresh_every: int = param(5, "rounds between two label refreshes", 1, 10_000)
        confident: float = param(0.9, "a prediction above it becomes 1, below 1 - it 0", 0.5)
        pseudo_inertia: float = param(0.8, "share of the old label kept on missing classes")
        kd_weight: float = param(0.8, "largest weight of the distillation term")
        kd_kappa: float = param(2.0, "steepness of its ramp from the warm-up to the end", 0, 50)
        margin: float = param(1.0, "scale of the label-dependent margin; 0 turns it off", 0, 10)
        min_images: int = param(20, "fewest images the mixture is fitted to", 4, 1_000_000)
        min_gap: float = param(1.0, "least distance of its means, in standard deviations", 0, 10)
        teacher_on_batch: bool = param(False, "teacher sees the augmented batch, as published")
        hidden_label_leak: bool = param(False, "start from hidden labels, as published (leaky)")

    @property
    def hidden_labels(self) -> bool:
        return self.params.hidden_label_leak

    def before_local(self, client, model, message) -> None:
        if message.round < self.plan.warmup_rounds:
            return
        predicted = client.predict(model)
        if (message.round - self.plan.warmup_rounds) % self.params.refresh_every == 0:
            self._refresh(client, snap(predicted, confident=self.params.confident), predicted)
        own = prior(**class_counts(client.labels))
        if self.hidden_labels:
            own = client.labels.target.mean(axis=0)
        known = np.where(np.isnan(own), message.extras["prior"], own)
        client.cache["prior"] = torch.from_numpy(known)
        client.cache["teacher"] = torch.from_numpy(predicted)

    def _refresh(self, client, snapped: np.ndarray, predicted: np.ndarray) -> None:
        """Correct the samples the mixture calls noisy, then pseudo-label the missing classes."""
        labels, keep = client.labels, self.params.pseudo_inertia
        split = split_noisy(
            *agreement_and_loss(predicted, labels.target, labels.annotated),
            seed=derive_seed(self.plan.seed, "mixture", client.index),
            min_images=self.params.min_images,
            min_gap=self.params.min_gap,
        )
        client.memory["noise_score"] = split.probability
        client.logs["noisy_share"] = float(split.noisy.mean())
        labels.correct(labels.annotated & split.noisy[:, None], snapped)
        start = client.hidden if self.hidden_labels else snapped
        start = np.where(np.isnan(start), snapped, start)
        old = np.where(labels.weight > 0, labels.target, start)
        labels.correct(~labels.annotated, keep * old + (1 - keep) * snapped)

    def loss(self, client, model, batch, message) -> Tensor:
        if message.round < self.plan.warmup_rounds:
            return super().loss(client, model, batch, message)
        teacher = self._teacher(client, model, batch, message)
        shift = label_margin(batch.target, client.cache["prior"].to(batch.target.device))
        logits = model.forward(batch.images) + self.params.margin * shift
        begin, end, kappa = self.plan.warmup_rounds, self.plan.rounds, self.params.kd_kappa
        weight = self.params.kd_weight * ramp(message.round, begin=begin, end=end, kappa=kappa)
        distilled = masked_bce(logits, teacher, torch.ones_like(teacher))
        supervised = masked_bce(logits, batch.target, batch.weight)
        return weight * distilled + (1 - weight) * supervised

    def _teacher(self, client, model, batch, message) -> Tensor:
        if self.params.teacher_on_batch:
            return client.predict_batch(model, message.model, batch.images)
        return client.cache["teacher"][batch.rows].to(batch.images.device)

    def extras(self, server) -> dict[str, np.ndarray]:
        unknown = np.full(self.plan.classes, np.nan, np.float32)
        return {"prior": server.memory.get("prior", unknown)}

    def after_local(self, client, model, message) -> dict[str, np.ndarray]:
        return class_counts(client.labels)

    def after_round(self, server, reports) -> None:
        start = np.zeros((2, self.plan.clients, self.plan.classes), np.float32)
        counts = server.memory.setdefault("counts", start)
        for report in reports:
            counts[:, report.client] = report.extras["positives"], report.extras["annotated"]
        server.memory["prior"] = prior(*counts.sum(axis=1))
