"""FedCorr: noisy sites by the dimension of their predictions, noisy images there by their losses.

Xu et al., CVPR 2022; docs/methods.md 6.1.

The first stage follows ``--warmup-rounds`` of plain FedAvg, with MixUp. In an iteration every site
trains once and tells the mean local intrinsic dimensionality (LID) of its model's predictions, and
its noise, the share of its images in the upper group of losses. Sites in the lower group of LIDs
have noise 0. Others have a proximal term in proportion to their noise, and relabel the images of
largest loss, a share of ``relabel`` times the noise, where the received model is sure. Second
stage: sites of little noise train alone. Third: the others relabel, once, all that is sure.

Differences from the paper and its release:

- The paper hands a model from client to client (``at_once=0``). Here all train at once, for speed.
- Stages are shares of the rounds after the warm-up, those of a client's trainings on CIFAR-100.
- A mixture splits alike sites as well. All sites have noise 0 unless the two groups lie farther
  apart than chance puts alike sites in all but ``alpha`` of cases (published: 1).
- A loss is taken relative to its class and label at the site, or images with findings would be
  those of large loss. The only positive of a class is therefore never doubted for it.
- As published, images are chosen by loss first and must then pass the bar, here cell by cell.
- The proximal norm is squared and AdamW moves all parameters: hence 0.01, not 5. MixUp is milder.
- Half is no bar for a binary cell. The confidence is that of Clothing1M, and a sure absence lies
  that far below the class's odds, or rare findings would all be deleted (``balanced=false``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from src.methods.base import Arrays, Method, param
from utils_.arrays import Expected
from utils_.augment import mix_up
from utils_.labels import LabelState
from utils_.mixture import apart, mean_and_error, upper_group
from utils_.priors import class_prior
from utils_.pseudo_labels import snap
from utils_.rng import derive, derive_seed

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast, Report
    from src.models import FlatModel
    from src.plan import Batch
    from src.server import Server

DISTANCES = 2**22  # held at a time
LEAST_SUM = 1e-6  # sums of logarithms below it say that all neighbours are equally far


class FedCorr(Method):
    """Multi-stage federated learning for label noise correction."""

    paper = "Xu et al., CVPR 2022"
    summary = "noisy sites by LID, relabelling, fine-tuning on clean sites, then all"
    first_phase = True
    sees_each = "each site's dimensionality and noise level"
    reported: ClassVar = {
        "lid": Expected((2,), unknown=True, optional=True, item_bytes=8, meaning="mean LIDs"),
        "noise_level": Expected((), optional=True, item_bytes=8, meaning="share of noisy images"),
    }

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        preprocessing: float = param(0.1, "share of the refining rounds in stage 1", 0.001)
        finetuning: float = param(0.45, "share of the refining rounds in stage 2")
        at_once: float = param(1.0, "share of the sites trained at once in the first stage", 0)
        neighbours: int = param(20, "nearest predictions that make an LID", 2, 10_000)
        alpha: float = param(0.01, "chance of accusing alike sites; 1: split always, 0: never")
        clean: float = param(0.1, "largest noise of a site in the second stage")
        relabel: float = param(0.5, "share of the noisy images relabelled in an iteration")
        confidence: float = param(0.9, "a prediction above it is sure of a finding", 0.5)
        balanced: bool = param(True, "sure of an absence: relative to the share of positives")
        proximal: float = param(0.01, "strength of the proximal term at a noise of 1", 0, 1000)
        mixup: float = param(0.2, "both parameters of the Beta distribution; 0: no MixUp", 0, 100)

    params: Params

    def schedule(self) -> tuple[int, int, int]:
        """Rounds of an iteration; the round that ends the first stage; that ends the second.

        The first stage starts after the warm-up; the shares are of the rounds that are left then.
        """
        plan, share = self.plan, min(self.params.at_once, self.plan.fraction)
        left = max(plan.rounds - plan.warmup_rounds, 0)
        visits = -(-plan.clients // max(1, int(share * plan.clients + 1e-9)))  # rounded up
        iterations = max(1, int(self.params.preprocessing * left / visits + 0.5))
        first = plan.warmup_rounds + visits * iterations
        return visits, first, first + int(self.params.finetuning * left + 0.5)

    def select(self, server: Server) -> list[int]:
        visits, first, second = self.schedule()
        plan, turn = self.plan, server.round - self.plan.warmup_rounds
        if turn < 0 or server.round >= second:
            return super().select(server)
        if server.round < first:
            return take_turns(turn, clients=plan.clients, rounds=visits, seed=plan.seed)
        clean = np.flatnonzero(server.memory["noise_level"] <= self.params.clean)
        count = min(len(clean), plan.clients_per_round)
        chosen = derive(plan.seed, "select", server.round).choice(clean, count, replace=False)
        return sorted(chosen.tolist())

    def extras(self, server: Server) -> Arrays:
        unknown = np.zeros(self.plan.clients, np.float32)
        return {"noise_level": server.memory.get("noise_level", unknown)}

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        level = client.logs["noise_level"] = float(message.extras["noise_level"][client.index])
        client.cache |= {"level": level, "received": model.parameters.detach().clone()}
        doubted = np.zeros(len(client.labels.observed), bool)
        if "losses" in client.memory:  # of the last iteration; acted on once
            loss, posterior = client.memory.pop("losses")
            client.memory["noise_score"] = posterior * np.float32(level > 0)
            doubted = largest_losses(loss, level * self.params.relabel)
        if message.round >= self.schedule()[2] and "relabelled" not in client.memory:
            client.memory["relabelled"] = np.ones(1, bool)
            doubted |= level > self.params.clean
        if doubted.any():
            confidence, balanced = self.params.confidence, self.params.balanced
            predicted = client.predict(model)
            relabel(client.labels, doubted, predicted, confidence=confidence, balanced=balanced)

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
        mixed = mix_up(batch, alpha=self.params.mixup, draw=client.draw("mixup", batch.step))
        supervised = super().loss(client, model, mixed, message)
        strength: float = self.params.proximal * client.cache["level"]
        if strength == 0 or message.round >= self.schedule()[1]:
            return supervised
        received: Tensor = client.cache["received"]
        return supervised + strength * (model.parameters - received).square().sum()

    def after_local(self, client: Client, model: FlatModel, message: Broadcast) -> Arrays:
        if not self.plan.warmup_rounds <= message.round < self.schedule()[1]:
            return {}
        predicted = client.predict(model)
        seed = derive_seed(self.plan.seed, "losses", client.index)
        client.memory["losses"], level = doubted_images(predicted, client.labels, seed=seed)
        lid = mean_dimensionality(predicted, neighbours=self.params.neighbours)
        return {"lid": np.array(lid), "noise_level": np.array(level)}

    def after_round(self, server: Server, reports: list[Report]) -> None:
        visits, first, _ = self.schedule()
        turn, turns = (r - self.plan.warmup_rounds for r in (server.round, first))
        if not 0 <= turn < turns:
            return
        shape = (turns // visits, self.plan.clients, 2)
        remember_scores(server.memory, reports, shape=shape, iteration=turn // visits)
        if (turn + 1) % visits == 0:
            seed, alpha = derive_seed(self.plan.seed, "sites"), self.params.alpha
            server.memory["noise_level"] = noise_levels(server.memory, seed=seed, alpha=alpha)


def take_turns(round: int, *, clients: int, rounds: int, seed: int) -> list[int]:
    """Who is next, ascending: in every ``rounds`` rounds each client once, in a new random order.

    Args:
        round: number of the round, from 0.
        clients: their number, at least ``rounds``.
        rounds: at least 1; the groups' sizes differ by at most one.
    """
    order = derive(seed, "rotation", round // rounds).permutation(clients)
    return sorted(np.array_split(order, rounds)[round % rounds].tolist())


# ---- which images are relabelled, and with what


def doubted_images(
    predicted: np.ndarray, labels: LabelState, *, seed: int
) -> tuple[np.ndarray, float]:
    """Images told by the mean of :func:`relative_losses` over their annotated cells.

    Returns:
        (2, n) float32, loss and posterior of the upper group, for an image without annotated cell
        NaN and 0; and the share of the others that lies in that group, 0 where there are none.
    """
    cells = relative_losses(predicted, labels)
    loss = cells.sum(axis=1) / np.maximum(labels.annotated.sum(axis=1), 1)
    known = labels.annotated.any(axis=1)
    loss = np.where(known, loss, np.nan)
    posterior = upper_group(loss, seed=seed)
    share = int((posterior > 0.5).sum()) / max(int(known.sum()), 1)
    return np.stack([loss, posterior]).astype(np.float32), share


def relative_losses(predicted: np.ndarray, labels: LabelState) -> np.ndarray:
    """(n, C) cross-entropy of the labels in use less its mean by class and label, else 0."""
    p = predicted.clip(1e-7, 1 - 1e-7).astype(np.float64)
    target = np.where(labels.annotated, labels.target, 0)
    loss: np.ndarray = -(target * np.log(p) + (1 - target) * np.log1p(-p))
    for cells in (labels.annotated & (target > 0.5), labels.annotated & (target <= 0.5)):
        mean = np.where(cells, loss, 0).sum(axis=0) / np.maximum(cells.sum(axis=0), 1)
        loss -= np.where(cells, mean, 0)
    return np.where(labels.annotated, loss, 0)


def largest_losses(loss: np.ndarray, share: float) -> np.ndarray:
    """(n,) bool: the images of largest loss, a ``share`` of those whose loss is known."""
    count = int(share * np.isfinite(loss).sum() + 1e-6)
    order = np.argsort(np.where(np.isfinite(loss), -loss, np.inf), kind="stable")
    chosen = np.zeros(len(loss), bool)
    chosen[order[:count]] = True
    return chosen


def relabel(
    labels: LabelState,
    images: np.ndarray,
    predicted: np.ndarray,
    *,
    confidence: float,
    balanced: bool,
) -> None:
    """Replace the annotations of the given images where a prediction is sure, cell by cell.

    Args:
        labels: those of the site.
        images: (n,) bool.
        predicted: (n, C) probabilities.
        confidence: a prediction above it is sure, see :func:`utils_.pseudo_labels.snap`.
        balanced: whether it is sure of an absence relative to the class's share of positives among
            the site's annotations; otherwise below 1 - ``confidence``.
    """
    share = class_prior(np.nansum(labels.observed, axis=0), labels.annotated.sum(axis=0))
    hard = snap(predicted, confidence, share if balanced else None)
    labels.correct(images[:, None] & labels.annotated & ((hard == 0) | (hard == 1)), hard)


# ---- which sites are noisy


def remember_scores(
    memory: Arrays, reports: Iterable[Report], *, shape: tuple[int, int, int], iteration: int
) -> None:
    """Keep ``lid``, (iterations, K, 2) means and errors, NaN if unknown, and ``told_level``."""
    scores = memory.setdefault("lid", np.full(shape, np.nan))
    levels = memory.setdefault("told_level", np.zeros(shape[1], np.float32))
    for report in reports:
        scores[iteration, report.client] = report.extras["lid"]
        levels[report.client] = report.extras["noise_level"]


def noise_levels(memory: Arrays, *, seed: int, alpha: float) -> np.ndarray:
    """(K,) float32: what a site told of its noise, if its mean LID lies in the upper group, else 0.

    One whose dimension is never defined counts as clean. See :func:`utils_.mixture.apart`.
    """
    noisy = apart(*mean_and_error(memory["lid"]), seed=seed, alpha=alpha)
    return np.where(noisy, memory["told_level"], 0).astype(np.float32)


def mean_dimensionality(vectors: np.ndarray, *, neighbours: int) -> tuple[float, float]:
    """Mean of :func:`local_dimensionality` where it is defined, and its standard error, or NaN."""
    values = local_dimensionality(vectors, neighbours=neighbours)
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    return float(known.mean()), float(known.std() / np.sqrt(len(known)))


def local_dimensionality(vectors: np.ndarray, *, neighbours: int) -> np.ndarray:
    """-k / sum_j log(d_j / d_k) over the k nearest others (Amsaleg et al., KDD 2015).

    Distances of 0 tell nothing of the growth of a ball, and their logarithm is infinite: copies of
    a vector are no neighbours of it. Where fewer than ``neighbours`` are left, all of them count.

    Args:
        vectors: (n, D).
        neighbours: k, at least 2.

    Returns:
        (n,) float64, above 0; NaN where fewer than two neighbours are left or all are equally far.
    """
    from scipy.spatial.distance import cdist

    vectors = np.asarray(vectors, np.float64)
    step = max(1, DISTANCES // max(len(vectors), 1))
    starts = range(0, len(vectors), step)
    parts = [_from_distances(cdist(vectors[s : s + step], vectors), neighbours) for s in starts]
    return np.concatenate([np.zeros(0), *parts])


def _from_distances(distances: np.ndarray, neighbours: int) -> np.ndarray:
    """(rows,) estimates from (rows, n) distances; each row's own 0 is dropped with the copies'."""
    k = min(neighbours, distances.shape[1])
    ranked = np.where(distances > 0, distances, np.inf)
    nearest = np.sort(np.partition(ranked, k - 1, axis=1)[:, :k], axis=1)
    found = np.isfinite(nearest)
    count = found.sum(axis=1)
    farthest = nearest[np.arange(len(nearest)), np.maximum(count - 1, 0)]
    ratios = np.where(found, nearest, 1) / np.where(count > 0, farthest, 1)[:, None]
    total = -np.where(found, np.log(ratios), 0).sum(axis=1)
    defined = (count >= 2) & (total > LEAST_SUM)
    return np.where(defined, count / np.where(defined, total, 1), np.nan)
