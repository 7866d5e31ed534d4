"""FedNML: warm-up, then corrected and pseudo-labels, label-dependent margins, distillation.

Follows methods.md 1.5 and 1.6 with these deviations, all towards honesty or speed:
labels of missing classes start from the prediction, never from hidden values; priors count
annotated cells alone (a missing class takes the prior shared by the sites that annotate it);
agreement and loss are means over annotated cells in every refresh; the mixture sees standardised
features and may find nothing; the teacher predicts once a round on the plain image unless
``teacher_on_batch`` is set.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from src.losses import label_margin, masked_bce, ramp
from src.methods.base import Method
from utils_.gmm import split_noisy
from utils_.rng import derive_seed


def param(default: float | bool, help: str, low: float = 0.0, high: float = 1.0):
    """A parameter with its meaning and its closed range."""
    return field(default=default, metadata={"help": help, "range": (low, high)})


class FedNML(Method):
    """Federated learning with noisy and missing labels (methods.md 1)."""

    paper = "FedNML, methods.md 1"
    summary = "noisy samples corrected, missing classes pseudo-labelled, margins, distillation"

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        refresh_every: int = param(5, "rounds between two label refreshes", 1, 10_000)
        confident: float = param(0.9, "snap a prediction to 1 above it, to 0 below 1 - it", 0.5)
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

    def refining(self, round: int) -> bool:
        """Whether the second phase has begun."""
        return round >= self.plan.warmup_rounds

    def kd(self, round: int) -> float:
        """Weight lambda_t of the distillation term."""
        begin, end = self.plan.warmup_rounds, self.plan.rounds
        return self.params.kd_weight * ramp(round, begin=begin, end=end, kappa=self.params.kd_kappa)

    def extras(self, server) -> dict[str, np.ndarray]:
        return {"prior": server.memory["prior"]} if self.refining(server.round) else {}

    def before_local(self, client, model, message) -> None:
        if not self.refining(message.round):
            return
        predicted = client.predict(model)
        if (message.round - self.plan.warmup_rounds) % self.params.refresh_every == 0:
            self._refresh(client, predicted, message)
        client.cache["teacher"] = torch.from_numpy(predicted)
        client.cache["prior"] = torch.from_numpy(self._prior(client, message))

    def _refresh(self, client, predicted: np.ndarray, message) -> None:
        """Steps 1 to 5 of methods.md 1.6."""
        labels = client.labels
        snapped = snap(predicted, self.params.confident)
        agreement, loss = agreement_and_loss(predicted, labels.target, labels.annotated)
        seed = derive_seed(self.plan.seed, "mixture", client.index, message.round)
        split = split_noisy(
            agreement,
            loss,
            seed=seed,
            min_images=self.params.min_images,
            min_gap=self.params.min_gap,
        )
        client.memory["noise_score"] = split.probability
        client.logs["noisy_share"] = float(split.noisy.mean())
        labels.correct(labels.annotated & split.noisy[:, None], snapped)
        labels.correct(~labels.annotated, self._mixed(client, snapped))

    def _mixed(self, client, snapped: np.ndarray) -> np.ndarray:
        """Labels of missing classes: old ones pulled towards the prediction, which starts them."""
        labels, keep = client.labels, self.params.pseudo_inertia
        old = np.where(labels.weight > 0, labels.target, snapped)
        if self.params.hidden_label_leak and not labels.weight[~labels.annotated].any():
            old = np.where(np.isnan(client.hidden), snapped, client.hidden)
        return keep * old + (1 - keep) * snapped

    def _prior(self, client, message) -> np.ndarray:
        """(C,) share of positives: own annotated cells, else what the other sites count."""
        labels = client.labels
        counted = np.ones_like(labels.annotated) if self.hidden_labels else labels.annotated
        positives = np.where(counted, labels.target, 0).sum(axis=0)
        counts = counted.sum(axis=0)
        own = positives / np.maximum(counts, 1)
        return np.where(counts > 0, own, message.extras["prior"]).astype(np.float32)

    def loss(self, client, model, batch, message) -> Tensor:
        if not self.refining(message.round):
            return super().loss(client, model, batch, message)
        teacher = self._teacher(client, model, batch, message)
        logits = model.forward(batch.images)
        if self.params.margin:
            margin = label_margin(batch.target, client.cache["prior"].to(logits.device))
            logits = logits + self.params.margin * margin
        weight = self.kd(message.round)
        distilled = masked_bce(logits, teacher, torch.ones_like(teacher))
        supervised = masked_bce(logits, batch.target, batch.weight)
        return weight * distilled + (1 - weight) * supervised

    def _teacher(self, client, model, batch, message) -> Tensor:
        if self.params.teacher_on_batch:
            return client.predict_batch(model, message.model, batch.images)
        return client.cache["teacher"][batch.rows].to(batch.images.device)

    def after_local(self, client, model, message) -> dict[str, np.ndarray]:
        annotated = client.labels.annotated
        positives = np.where(annotated, client.labels.target, 0).sum(axis=0)
        return {
            "positives": positives.astype(np.float32),
            "annotated": annotated.sum(axis=0).astype(np.float32),
        }

    def after_round(self, server, reports) -> None:
        for name in ("positives", "annotated"):
            start = np.zeros((self.plan.clients, self.plan.classes), np.float32)
            table = server.memory.setdefault(name, start)
            for report in reports:
                table[report.client] = report.extras[name]
        positives, annotated = (server.memory[n].sum(axis=0) for n in ("positives", "annotated"))
        unknown = np.where(annotated > 0, positives, np.nan)  # a class nobody annotates: no margin
        server.memory["prior"] = (unknown / np.maximum(annotated, 1)).astype(np.float32)


def snap(probability: np.ndarray, confident: float) -> np.ndarray:
    """Hybrid pseudo-labels: hard where the prediction is confident, soft elsewhere."""
    hard = np.where(probability > confident, 1.0, probability)
    return np.where(probability < 1 - confident, 0.0, hard).astype(np.float32)


def agreement_and_loss(
    probability: np.ndarray, target: np.ndarray, cells: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean agreement and mean cross-entropy of each image over the given cells, both (N,)."""
    probability = probability.clip(1e-7, 1 - 1e-7).astype(np.float64)
    agreement = target * probability + (1 - target) * (1 - probability)
    loss = -(target * np.log(probability) + (1 - target) * np.log1p(-probability))
    count = np.maximum(cells.sum(axis=1), 1)
    return tuple(np.where(cells, value, 0).sum(axis=1) / count for value in (agreement, loss))
