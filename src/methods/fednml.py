"""FedNML: warm-up, then corrected and pseudo-labels, adjusted logits and margins.

FedNML, 2025; docs/methods.md 1.

Differences from the published method, for honesty:

- Missing labels start from the prediction, not from hidden labels (``hidden_label_leak`` brings
  the leak back, marked as such).
- Priors count annotated cells; that of a missing class is the other sites'.

For small models and rare classes:

- The mixture judges only images with a positive label, by their agreement relative to the class,
  and may find nothing.
- A doubtful label loses weight, at every refresh anew. It is replaced only where a prediction is
  hard.
- Pseudo-labels are the latest predictions and count less than annotations.
- Predictions stay soft and nothing is distilled, because hard labels and distillation confirmed
  the model's own errors. ``confident`` (0.9 as published; a hard 0 only far below the class prior)
  and ``kd_weight`` bring them back.
- The margin shifts the supervised term alone.
- From the first round on logits are trained shifted by the site's log prior odds (logit
  adjustment, Menon et al., ICLR 2021, in binary form). Predictions are made without the shift,
  pseudo-labels with it.

For speed, the teacher predicts once a round, on the plain image.

``published=true`` undoes all but honesty, constants and these details: agreement and loss run over
annotated cells at every refresh, and the mixture sees standardised features. Margins then come from
running class counts, in which missing classes start from 0 (with the leak from hidden labels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from src.losses import label_margin, masked_bce, ramp
from src.methods.base import Arrays, SharedPriors, param
from utils_.labels import LabelState
from utils_.mixture import split_noisy
from utils_.priors import log_odds, with_odds
from utils_.pseudo_labels import agreement_and_loss, snap
from utils_.rng import derive_seed

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast
    from src.models import FlatModel
    from src.plan import Batch

LEAK_FADES = 0.8  # what is left of a leaked label after a refresh, as published
COUNTS_RATE, COUNTS_KAPPA = 0.8, 2.0  # ramp by which class counts follow the labels, as published


class FedNML(SharedPriors):
    """Federated learning with noisy and missing labels."""

    paper = "FedNML, 2025"
    summary = "doubtful labels count less, missing classes pseudo-labelled, adjusted logits, margin"
    first_phase = True

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

    params: Params

    @property
    def hidden_labels(self) -> bool:
        return self.params.hidden_label_leak

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
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
        client.cache["prior"] = torch.from_numpy(self._margin_prior(client, message))

    def _refresh(self, client: Client, predicted: np.ndarray, message: Broadcast) -> None:
        params, labels, memory = self.params, client.labels, client.memory
        mixture = {
            "seed": derive_seed(self.plan.seed, "mixture", client.index),
            "min_images": params.min_images,
            "min_gap": params.min_gap,
        }
        weight = params.pseudo_weight
        if params.published:
            weight, snapped = 1, snap(predicted, params.confident)
            noise = doubt_all(labels, memory, predicted, **mixture)
            correct_all(labels, snapped, noisy=noise > 0.5)
        else:
            snapped = snap(predicted, params.confident, self._prior(client, message))
            noise = doubt_positives(labels, memory, predicted, **mixture)
            correct_confident(labels, snapped, noise=noise, trust=params.trust)
        keep = max(params.inertia, LEAK_FADES if self.hidden_labels else 0)
        fill_missing(labels, snapped, keep=keep, weight=weight, start=client.hidden)
        if params.published:
            rate = COUNTS_RATE * self._growth(message.round, COUNTS_KAPPA)
            follow_labels(labels, memory, rate=rate, hidden=client.hidden)

    def _growth(self, round: int, kappa: float) -> float:
        return ramp(round, begin=self.plan.warmup_rounds, end=self.plan.rounds, kappa=kappa)

    def _margin_prior(self, client: Client, message: Broadcast) -> np.ndarray:
        """(C,) float32, from which margins are made."""
        if not self.params.published:
            return self._prior(client, message)
        counts = running_counts(client.labels, client.memory, client.hidden)
        return (counts / len(client.labels.observed)).astype(np.float32)

    def _prior(self, client: Client, message: Broadcast) -> np.ndarray:
        """(C,) share of positives; the leak counts hidden labels as well."""
        if client.hidden is None:
            return self.prior(client, message)
        seen = np.where(client.labels.weight > 0, client.labels.target, client.hidden)
        own = np.nanmean(seen, axis=0)
        return np.where(np.isnan(own), message.extras["prior"], own)

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
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
        weight = self.params.kd_weight * self._growth(message.round, self.params.kappa)
        student = shifted if self.params.published else logits
        distilled = masked_bce(student, teacher, torch.ones_like(teacher))
        return weight * distilled + (1 - weight) * supervised

    def _teacher(
        self, client: Client, model: FlatModel, batch: Batch, message: Broadcast
    ) -> Tensor | None:
        if self.params.kd_weight == 0 or message.round < self.plan.warmup_rounds:
            return None
        if self.params.published:
            return client.predict_batch(model, message.model, batch.images)
        teacher: Tensor = client.cache["teacher"][batch.rows]
        return teacher.to(batch.images.device)


# ---- which images are doubted


def doubt_all(
    labels: LabelState, memory: Arrays, predicted: np.ndarray, **mixture: Any
) -> np.ndarray:
    """As published: (N,) posteriors of noise, from agreement and loss over annotated cells.

    The mixture then mostly finds the images that have a positive label at all, since positives
    are rarer and harder than negatives.

    Args:
        labels: those of the site.
        memory: the client's; keeps the result as ``noise_score``.
        predicted: (N, C) in [0, 1].
        mixture: ``seed``, ``min_images`` and ``min_gap`` of :func:`utils_.mixture.split_noisy`.
    """
    agreement, loss = agreement_and_loss(predicted, labels.target, labels.annotated)
    memory["noise_score"] = split_noisy(agreement, loss, **mixture).probability
    return memory["noise_score"]


def doubt_positives(
    labels: LabelState, memory: Arrays, predicted: np.ndarray, **mixture: Any
) -> np.ndarray:
    """(N,) posteriors of noise, for images with a positive label; the others count as clean.

    Agreement is that of the positives, relative to the class. Labels are those observed, and
    evidence is the mean of all refreshes so far, because a wrong label learned by heart late
    still shows its early loss. Arguments are those of :func:`doubt_all`.
    """
    given = np.nan_to_num(labels.observed)
    positives = labels.annotated & (given == 1)
    loss = agreement_and_loss(predicted, given, labels.annotated)[1]
    evidence = _mean_so_far(memory, np.stack([class_agreement(predicted, positives), loss]))
    judged = positives.any(axis=1)
    noise = np.zeros(len(given), np.float32)
    agreement, loss = evidence[:, judged]
    noise[judged] = split_noisy(agreement, loss, **mixture).probability
    memory["noise_score"] = noise
    return noise


def class_agreement(probability: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """How much more each image looks like its positive labels than the site's images do on average.

    Log odds standardised within each class, mean over the image's positive cells: a rare class,
    whose predictions are all small, is judged by the same measure as a frequent one.

    Args:
        probability: (N, C) in [0, 1].
        positives: (N, C) bool, the cells labelled 1.

    Returns:
        (N,) float64; 0 for an image without a positive label.
    """
    probability = probability.astype(np.float64).clip(1e-6, 1 - 1e-6)
    odds = np.log(probability) - np.log1p(-probability)
    standardised = (odds - odds.mean(axis=0)) / odds.std(axis=0).clip(1e-6)
    count = np.maximum(positives.sum(axis=1), 1)
    agreement: np.ndarray = np.where(positives, standardised, 0).sum(axis=1) / count
    return agreement


def _mean_so_far(memory: Arrays, evidence: np.ndarray) -> np.ndarray:
    count = memory.get("refreshes", np.zeros(1))
    past = memory.get("evidence", np.zeros(1))
    memory["evidence"] = (past * count + evidence) / (count + 1)
    memory["refreshes"] = count + 1
    return memory["evidence"]


# ---- what becomes of the labels


def correct_all(labels: LabelState, snapped: np.ndarray, *, noisy: np.ndarray) -> None:
    """As published: annotations of (N,) noisy images become the (N, C) pseudo-labels, for good."""
    labels.correct(labels.annotated & noisy[:, None], snapped)


def correct_confident(
    labels: LabelState, snapped: np.ndarray, *, noise: np.ndarray, trust: float
) -> None:
    """Correct what is sure, distrust what is not.

    In images that are rather noisy than clean, a cell whose pseudo-label is hard takes it. Every
    other annotation keeps its value and loses weight with the (N,) posterior ``noise``, by up to
    ``trust``. Each refresh starts from the labels as observed.
    """
    given = np.nan_to_num(labels.observed)
    sure = (noise > 0.5)[:, None] & ((snapped == 0) | (snapped == 1))
    weight = np.where(sure, 1, 1 - trust * noise[:, None])
    labels.correct(labels.annotated, np.where(sure, snapped, given), weight=weight)


def fill_missing(
    labels: LabelState,
    snapped: np.ndarray,
    *,
    keep: float,
    weight: float,
    start: np.ndarray | None = None,
) -> None:
    """Pull missing cells towards the pseudo-labels, from ``start`` (their first value; (N, C))."""
    first = snapped if start is None else np.where(np.isnan(start), snapped, start)
    old = np.where(labels.weight > 0, labels.target, first)
    labels.correct(~labels.annotated, keep * old + (1 - keep) * snapped, weight=weight)


# ---- class counts as published


def running_counts(labels: LabelState, memory: Arrays, hidden: np.ndarray | None) -> np.ndarray:
    """(C,) float64 positives as counted so far, at first those observed and, if leaked, hidden."""
    unseen = 0 if hidden is None else np.nan_to_num(hidden)
    first = np.where(labels.annotated, labels.observed, unseen)
    return memory.get("running_counts", np.asarray(first.sum(axis=0, dtype=np.float64)))


def follow_labels(
    labels: LabelState, memory: Arrays, *, rate: float, hidden: np.ndarray | None
) -> None:
    """Pull the running counts towards the present labels, those of missing classes included."""
    now = labels.target.sum(axis=0, dtype=np.float64)
    memory["running_counts"] = rate * now + (1 - rate) * running_counts(labels, memory, hidden)
