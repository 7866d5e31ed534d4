"""FedNML: labels that fit no image are turned down, missing classes filled in, images mixed.

FedNML, 2025; docs/fednml.md and docs/methods.md 1.

Differences from the published method:

- Labels are judged in every round from early on, and what was seen early is kept: a model that has
  learned a wrong label by heart no longer doubts it.
- An image's labels are judged together, by a calibrated prediction against a draw that never looked
  at the image, instead of by a mixture of agreement and loss.
- Nobody is doubted at a site whose labels fit their images much better than those of other images.
- Labels lose weight, anew in every round; predictions take their place only on request.
- Images are mixed, which delays learning by heart. The model that is used is a mean over rounds.
- Missing labels are a mean of predictions and do not start from hidden labels
  (``hidden_label_leak`` brings the leak back, marked as such).

``published=true`` undoes all but honesty, constants and these details: agreement and loss run over
annotated cells at every refresh, and the mixture sees standardised features. Margins then come from
running class counts, in which missing classes start from 0 (with the leak from hidden labels).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from src.losses import label_margin, masked_bce, ramp
from src.methods.base import Arrays, SharedPriors, param
from utils_.augment import mix_up
from utils_.errors import UserError
from utils_.labels import LabelState
from utils_.mixture import split_noisy
from utils_.priors import log_odds, with_odds
from utils_.pseudo_labels import agreement_and_loss, snap
from utils_.rng import derive_seed
from utils_.suspects import (
    TINY,
    Evidence,
    doubt_share,
    mixture_share,
    share_of_strangers,
    weigh_labels,
)

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast, Report
    from src.models import FlatModel
    from src.plan import Batch
    from src.server import Server

LEAK_FADES = 0.8  # what is left of a leaked label after a refresh, as published
COUNTS_RATE, COUNTS_KAPPA = 0.8, 2.0  # ramp by which class counts follow the labels, as published
SHORTEST = 16  # a mean over rounds reaches back over a sixteenth of the training at most
PUBLISHED = {"refresh_every", "confident", "inertia", "margin", "kd_weight", "kappa"}
PUBLISHED |= {"hidden_label_leak"}  # the parameters of the published method
MIN_IMAGES, MIN_GAP = 4, 0.0  # of the published mixture


class AsPublished(SharedPriors):
    """The published method: docs/methods.md 1.5 and 1.6."""

    params: Any

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        age = message.round - self.plan.warmup_rounds
        if age < 0:
            return
        if age % self.params.refresh_every == 0:
            self._refresh(client, client.predict(model), message)
        counts = running_counts(client.labels, client.memory, client.hidden)
        prior = (counts / len(client.labels.observed)).astype(np.float32)
        client.cache["prior"] = torch.from_numpy(prior)

    def _refresh(self, client: Client, predicted: np.ndarray, message: Broadcast) -> None:
        labels, memory = client.labels, client.memory
        seed = derive_seed(self.plan.seed, "mixture", client.index)
        snapped = snap(predicted, self.params.confident)
        memory["noise_score"] = doubt_all(labels, predicted, seed=seed)
        noisy = memory["noise_score"] > 0.5
        labels.correct(labels.annotated & noisy[:, None], snapped)
        keep = max(self.params.inertia, LEAK_FADES if client.hidden is not None else 0)
        fill_missing(labels, snapped, keep=keep, start=client.hidden)
        rate = COUNTS_RATE * self._growth(message.round, COUNTS_KAPPA)
        follow_labels(labels, memory, rate=rate, hidden=client.hidden)

    def _growth(self, round: int, kappa: float) -> float:
        return ramp(round, begin=self.plan.warmup_rounds, end=self.plan.rounds, kappa=kappa)

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
        teacher = None
        if message.round >= self.plan.warmup_rounds and self.params.kd_weight > 0:
            teacher = client.predict_batch(model, message.model, batch.images)
        logits = model.forward(batch.images)
        if message.round < self.plan.warmup_rounds:
            return self.supervised(client, logits, batch)
        margin = label_margin(batch.target, client.cache["prior"].to(logits.device))
        logits = logits + self.params.margin * margin
        supervised = self.supervised(client, logits, batch)
        if teacher is None:
            return supervised
        weight: float = self.params.kd_weight * self._growth(message.round, self.params.kappa)
        distilled = masked_bce(logits, teacher, torch.ones_like(teacher))
        return weight * distilled + (1 - weight) * supervised


class FedNML(AsPublished):
    """Federated learning with noisy and missing labels."""

    paper = "FedNML, 2025"
    summary = "doubtful images count less, missing classes pseudo-labelled, MixUp, averaged model"
    first_phase = True

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        mixup: float = param(1.0, "alpha of MixUp; 0 turns it off", 0, 10)
        mixup_epochs: int = param(80, "a shorter training mixes no images", 0, 1_000_000)
        judge_from: int = param(5, "first round whose model judges labels", 0, 10_000)
        memory: float = param(0.9, "share of what was seen earlier that a round keeps", 0, 1)
        trust: float = param(1.0, "weight that the labels of an image surely noisy lose")
        min_noise: float = param(0.2, "estimated noise below which nobody is doubted; 0: off")
        pseudo_weight: float = param(0.5, "weight of a missing class's pseudo-label")
        doubted_weight: float = param(0.0, "weight of a pseudo-label in place of a doubted label")
        average: float = param(0.9, "share of earlier rounds in the model; 0: the last", 0, 0.999)
        logit_adjustment: bool = param(False, "train logits shifted by the site's log prior odds")
        published: bool = param(False, "mixture, hard and lasting corrections as published")
        refresh_every: int = param(5, "published: rounds between two refreshes", 1, 10_000)
        confident: float = param(0.9, "published: a higher prediction is 1, 1 less it 0", 0.5)
        inertia: float = param(0.8, "published: share of the old label kept on missing classes")
        margin: float = param(1.0, "published: scale of the label-dependent margin", 0, 10)
        kd_weight: float = param(0.8, "published: largest weight of the distillation term")
        kappa: float = param(2.0, "published: steepness of its ramp", 0, 50)
        hidden_label_leak: bool = param(False, "published: start from hidden labels (leaky)")
        oracle_flags: bool = param(False, "the truth says which images are noisy (leaky)")

        def __post_init__(self) -> None:
            refuse_mixtures(self, published=self.published)

    params: Params

    @property
    def leak(self) -> str:
        return "labels" if self.params.hidden_label_leak else "flags" * self.params.oracle_flags

    # ---- at a site

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        if self.params.published:
            super().before_local(client, model, message)
            return
        if self.params.logit_adjustment:
            client.cache["shift"] = log_odds(client.labels, self.prior(client, message))
        if message.round >= self.params.judge_from:
            predicted = with_odds(client.predict(model), client.cache.get("shift")).numpy()
            self._judge(client, predicted)
            if message.round >= self.plan.warmup_rounds:
                self._refine(client)

    def _judge(self, client: Client, predicted: np.ndarray) -> None:
        """Doubt images by all that was seen of them so far; (n, C) predictions."""
        memory = client.memory
        evidence = weigh_labels(predicted, client.labels.observed)
        seen = float(memory.get("judged", np.zeros(1))[0])
        keep = min(self.params.memory, seen / (seen + 1))
        memory["judged"] = np.array([seen + 1])
        remember(memory, keep, evidence=evidence.log_odds)
        remember(memory, reach(keep, self.plan.rounds), predicted=predicted)
        self._estimate_share(client, evidence)
        share = client.logs["estimated_noise"] = float(memory["share"][0])
        memory["noise_score"] = doubt_share(memory["evidence"], share).astype(np.float32)

    def _estimate_share(self, client: Client, evidence: Evidence) -> None:
        """How many images are noisy: as the warm-up ends, or none, for good, where labels fit."""
        memory, warmup = client.memory, self.plan.warmup_rounds
        early = client.round <= max(warmup, self.plan.rounds / 2)  # in the end wrong labels fit too
        if not early and "share" in memory:
            return
        given, draw = client.labels.observed, client.draw("strangers")
        strangers = share_of_strangers(evidence, given, draw)
        if client.round <= warmup or "share" not in memory:
            shares = mixture_share(memory["evidence"]), min(strangers, 1.0)
            memory["share"] = np.array([np.nanmean(shares)])  # one errs low, the other high
        asked = early and client.round >= warmup and self.params.min_noise > 0
        if asked and not strangers >= self.params.min_noise:
            memory["share"] = np.zeros(1)

    def _refine(self, client: Client) -> None:
        """Labels as observed where they are believed; predictions there and where nobody looked."""
        labels, given = client.labels, np.nan_to_num(client.labels.observed)
        noise = client.memory["noise_score"] if client.hidden is None else client.hidden
        doubt = noise.astype(np.float64)[:, None]
        believed = 1 - self.params.trust * doubt
        guess = np.where(doubt > 0.5, self.params.doubted_weight * doubt, 0)
        predicted, weight = client.memory["predicted"], np.minimum(believed + guess, 1)
        mixed = (believed * given + guess * predicted) / np.maximum(believed + guess, TINY)
        labels.correct(labels.annotated, np.where(guess > 0, mixed, given), weight=weight)
        labels.correct(~labels.annotated, predicted, weight=self.params.pseudo_weight)

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
        if self.params.published:
            return super().loss(client, model, batch, message)
        if self.plan.rounds * self.plan.local_epochs >= self.params.mixup_epochs:
            draw = client.draw("mixup", batch.step)
            batch = mix_up(batch, alpha=self.params.mixup, draw=draw)
        logits = model.forward(batch.images)
        if "shift" in client.cache:
            logits = logits + client.cache["shift"].to(logits)
        return self.supervised(client, logits, batch)

    # ---- at the server

    def aggregate(self, server: Server, reports: Iterable[Report]) -> Tensor:
        model = super().aggregate(server, reports)
        if self.params.average > 0 and not self.params.published:
            most = reach(self.params.average, self.plan.rounds)
            keep = min(most, server.round / (server.round + 4))
            remember(server.memory, keep, average=model.cpu().numpy())
        return model

    def evaluated(self, server: Server, clients: Sequence[Client]) -> Tensor:
        if "average" not in server.memory:
            return server.model
        return torch.from_numpy(server.memory["average"])


def refuse_mixtures(params: Any, *, published: bool) -> None:
    """Refuse a parameter of the published method without ``published=true``, and the reverse."""
    for entry in fields(params):
        theirs = entry.name in PUBLISHED
        changed = getattr(params, entry.name) != entry.default
        if changed and entry.name != "published" and theirs != published:
            advice = "add" if theirs else "leave out"
            raise UserError(f"--param {entry.name}: {advice} --param published=true beside it")


def reach(keep: float, rounds: int) -> float:
    """As much as ``keep``, as long as a mean over rounds then reaches back over few of them."""
    return min(keep, max(0.0, 1 - SHORTEST / rounds))


def remember(memory: Arrays, keep: float, **seen: np.ndarray) -> None:
    """Running means by name: ``keep`` of what is in ``memory``, the rest of what is seen now."""
    for name, now in seen.items():
        old = memory.get(name)
        new = now.copy() if old is None else keep * old + (1 - keep) * now
        memory[name] = new.astype(now.dtype)


# ---- labels and class counts as published


def doubt_all(labels: LabelState, predicted: np.ndarray, *, seed: int) -> np.ndarray:
    """(N,) posteriors of noise, from agreement and loss over annotated cells.

    The mixture mostly finds the images that have a positive label at all, since positives are
    rarer and harder than negatives.

    Args:
        labels: those of the site.
        predicted: (N, C) in [0, 1].
        seed: of the mixture.
    """
    agreement, loss = agreement_and_loss(predicted, labels.target, labels.annotated)
    split = split_noisy(agreement, loss, seed=seed, min_images=MIN_IMAGES, min_gap=MIN_GAP)
    return split.probability


def fill_missing(
    labels: LabelState,
    snapped: np.ndarray,
    *,
    keep: float,
    start: np.ndarray | None = None,
) -> None:
    """Pull missing cells towards the pseudo-labels, from ``start`` (their first value; (N, C))."""
    first = snapped if start is None else np.where(np.isnan(start), snapped, start)
    old = np.where(labels.weight > 0, labels.target, first)
    labels.correct(~labels.annotated, keep * old + (1 - keep) * snapped)


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
