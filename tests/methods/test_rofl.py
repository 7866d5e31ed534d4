"""RoFL against loops written from docs/methods.md 9 and its docstring."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import binary_entropy, cosine, cross_entropy, float32_tolerance, mean, sigmoid
from stand_ins import (
    WARMUP,
    C,
    D,
    FakeClient,
    N,
    TwoLayers,
    make_batch,
    make_client,
    make_method,
    make_server,
    message,
    predictions,
)
from tiny import make_config, make_scenario, simulate

from src.messages import Report
from src.methods.rofl import judge, likeliest, moved, pooled
from utils_.datasets.base import ImageDataset
from utils_.rng import derive

ROWS = [[3, 0, 7, 11, 5], [1, 2, 4, 6], [8, 9, 10]]


def make_centroids(seed: int = 0, *, unknown: bool = True) -> np.ndarray:
    centroids = derive(seed, "centroids").random((2, C, D)).astype(np.float32)
    if unknown:
        centroids[1, 2] = 0
        centroids[:, 3] = 0
    return centroids


# ---- the reference: one cell after the other


class Reference:
    """One client's round."""

    def __init__(self, method: Any, centroids: np.ndarray, client: FakeClient, round: int):
        observed, predicted = client.labels.observed, client.predicted
        self.params, self.plan, self.round = method.params, method.plan, round
        self.centroids = {vc: centroids[vc].astype(float).tolist() for vc in np.ndindex(2, C)}
        self.observed = observed
        self.found: set = set()

        self.present = self.likeliest(predicted) if method.params.balanced else predicted > 0.5

    def likeliest(self, predicted: np.ndarray) -> np.ndarray:
        """As many images a class as the client's annotations of it call for."""
        present = np.zeros((N, C), bool)
        for c in range(C):
            order = sorted(range(N), key=lambda i: -predicted[i, c])
            observed = self.observed[:, c][~np.isnan(self.observed[:, c])]
            share = sum(observed) / len(observed) if len(observed) else 0
            present[order[: round(share * N)], c] = True
        return present

    def known(self, v: int, c: int) -> bool:
        return any(self.centroids[v, c])

    def select(self, logits: list, batch: Any) -> set[int]:
        """Positions of the images of smallest loss."""
        losses = {}
        for b in range(len(logits)):
            cells = [c for c in range(C) if batch.weight[b, c] > 0]
            if cells:
                losses[b] = mean(
                    cross_entropy(logits[b][c], float(batch.target[b, c])) for c in cells
                )
        dropped = self.params.drop * min(self.round / self.params.drop_rounds, 1)
        keep = max(1, math.floor((1 - dropped) * len(losses) + 1e-9))
        return set(sorted(losses, key=losses.get)[:keep])

    def loss(self, features: list, logits: list, batch: Any) -> float:
        chosen = self.select(logits, batch)
        supervised, pull, doubt, members = [], [], [], {}
        for b, c in np.ndindex(len(logits), C):
            if b not in chosen or batch.weight[b, c] == 0:
                continue
            y = int(batch.target[b, c])
            judged = self.known(0, c) and self.known(1, c)
            near = [cosine(features[b], self.centroids[v, c]) for v in (0, 1)]
            believed = not judged or int(near[1] > near[0]) == y
            if judged and believed:
                own = self.centroids[y, c]
                pull.append(mean((f - m) ** 2 for f, m in zip(features[b], own, strict=True)))
            if not believed and self.round >= self.plan.warmup_rounds:
                y = int(self.present[batch.rows[b], c])
            supervised.append(cross_entropy(logits[b][c], y))
            doubt.append(binary_entropy(sigmoid(logits[b][c])))
            members.setdefault((y, c), []).append(features[b])
        self.move(members)
        share = min(self.round / self.plan.warmup_rounds, 1) * self.params.centroid
        return mean(supervised) + share * mean(pull) + self.params.entropy * mean(doubt)

    def move(self, members: dict) -> None:
        for key, vectors in members.items():
            centre = [mean(vector[d] for vector in vectors) for d in range(D)]
            old = self.centroids[key]
            share = cosine(old, centre) ** 2 if any(old) else 1
            self.centroids[key] = [
                (1 - share) * o + share * n for o, n in zip(old, centre, strict=True)
            ]
            self.found.add(key)


# ---- the client


@pytest.mark.parametrize(
    "param", [{}, {"drop": 0.5, "centroid": 3, "entropy": 0.1, "balanced": False}]
)
@pytest.mark.parametrize("round", [1, 5, 10, 40])
def test_a_round_of_a_client_against_the_reference(round: int, param: dict) -> None:
    method, client, model = make_method("rofl", **param), make_client(), TwoLayers()
    client.predicted, centroids = predictions(round), make_centroids()
    reference = Reference(method, centroids, client, round)
    method.before_local(client, model, message(round, centroids=centroids))
    for step, rows in enumerate(ROWS):
        batch = make_batch(client, rows, seed=step)
        features, logits = (table.tolist() for table in model.features(batch.images))
        found = method.loss(client, model, batch, message(round)).item()
        expected = reference.loss(features, logits, batch)
        cells = len(rows) * C
        assert found == pytest.approx(expected, abs=float32_tolerance(2 * cells, expected))
        now, centroids = client.cache["centroids"].numpy(), reference.centroids
        atol = float32_tolerance(2 * D * len(ROWS), [*centroids.values()])
        for vc, centroid in centroids.items():
            np.testing.assert_allclose(now[vc], centroid, rtol=0, atol=atol)
    told = method.after_local(client, model, message(round))
    assert {tuple(vc) for vc in np.argwhere(told["found"])} == reference.found
    assert told["centroids"].shape == (2, C, D)
    assert (told["centroids"][:, 3] == 0).all(), "nothing is known of a class nobody annotates"


def test_the_first_round_starts_from_the_site_s_own_means() -> None:
    method, client = make_method("rofl"), make_client()
    client.embedded = derive(0, "features").random((N, D)).astype(np.float32)
    method.before_local(client, TwoLayers(), message(0))
    for v, c in np.ndindex(2, C):
        rows = [i for i in range(N) if client.labels.observed[i, c] == v]
        expected = [mean(float(client.embedded[i, d]) for i in rows) for d in range(D)]
        atol = float32_tolerance(N, expected)
        np.testing.assert_allclose(client.cache["centroids"][v, c], expected, rtol=0, atol=atol)
    assert "pseudo" not in client.cache


def test_the_centroid_term_has_a_gradient() -> None:
    """The trap: with detached features the term is a number that teaches nothing."""
    gradients = []
    for weight in (0, 5):
        method, client, model = make_method("rofl", centroid=weight, entropy=0), make_client(), None
        model, client.predicted = TwoLayers(), predictions(0)
        told = message(WARMUP, centroids=make_centroids(unknown=False))
        method.before_local(client, model, told)
        method.loss(client, model, make_batch(client, ROWS[0]), told).backward()
        gradients.append(model.parameters.grad)
    inner, head = (gradients[1] - gradients[0])[: D * D], (gradients[1] - gradients[0])[D * D :]
    assert inner.abs().max() > 1e-3
    assert head.abs().max() < 1e-6, "the head has no part in it"


def test_a_step_brings_believed_features_nearer_to_their_centroid() -> None:
    method, client, model = (
        make_method("rofl", entropy=0, centroid=1, drop=0.2),
        make_client(),
        TwoLayers(),
    )
    centroids = make_centroids(unknown=False)
    told, distances = message(WARMUP, centroids=centroids), []
    client.predicted = predictions(0)
    batch = make_batch(client, ROWS[0])
    batch.weight[:, 1:] = 0
    for _ in range(30):
        method.before_local(client, model, told)
        features = model.features(batch.images)[0]
        known = batch.weight[:, 0] > 0
        nearer, _ = judge(features.detach(), torch.from_numpy(centroids))
        believed = known & (nearer[:, 0] == (batch.target[:, 0] > 0.5))
        own = torch.from_numpy(centroids)[batch.target[:, 0].long(), 0]
        distances.append(((features - own) ** 2).mean(dim=1)[believed].mean().item())
        model.parameters.grad = None
        method.loss(client, model, batch, told).backward()
        model.vector -= 0.05 * model.parameters.grad
    assert believed.any()
    assert distances[-1] < 0.7 * distances[0]


def test_images_without_any_label_take_nobody_s_place() -> None:
    method, client = make_method("rofl", drop=0.5, drop_rounds=1), make_client()
    batch = make_batch(client, [0, 1, 2, 3])
    batch.weight.copy_(torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]))
    batch.target.zero_()
    logits = torch.tensor([[-9.0] * C, [1.0] * C, [-1.0] * C, [-9.0] * C])
    assert method.small_losses(logits, batch, 5)[:, 0].tolist() == [False, False, True, False]
    batch.weight.zero_()
    client.predicted = predictions(0)
    told = message(WARMUP, centroids=make_centroids())
    method.before_local(client, TwoLayers(), told)
    assert method.loss(client, TwoLayers(), batch, told).item() == 0


def test_missing_cells_stay_out_of_every_term() -> None:
    method, client, model = make_method("rofl"), make_client(), TwoLayers()
    client.predicted, told = predictions(0), message(WARMUP, centroids=make_centroids())
    batch = make_batch(client, ROWS[0])
    logits = torch.zeros(5, C, requires_grad=True)
    model.features = lambda images: (torch.ones(5, D), logits * 2)
    method.before_local(client, model, told)
    with torch.no_grad():
        logits += torch.randn(5, C, generator=torch.Generator().manual_seed(0))
    method.loss(client, model, batch, told).backward()
    assert (logits.grad[batch.weight == 0] == 0).all()


def test_an_unknown_centroid_judges_nobody_and_becomes_the_first_mean() -> None:
    centroids = torch.from_numpy(make_centroids())
    _, judged = judge(torch.ones(6, D), centroids)
    assert judged.tolist() == [True, True, False, False]
    means, found = torch.from_numpy(make_centroids(1, unknown=False)), torch.ones(2, C).bool()
    found[:, 1] = False
    now = moved(centroids, means, found)
    assert torch.equal(now[1, 2], means[1, 2])
    assert torch.equal(now[:, 3], means[:, 3])
    assert torch.equal(now[:, 1], centroids[:, 1])
    assert not torch.equal(now[0, 2], means[0, 2])


def test_the_likeliest_images_get_the_label() -> None:
    """As many as the share says, the first of equals; none of a class nobody has seen."""
    predicted = np.array([[0.1, 0.3, 0.9], [0.4, 0.3, 0.9], [0.2, 0.3, 0.9], [0.3, 0.1, 0.9]])
    found = likeliest(predicted, np.array([0.5, 0.5, np.nan]))
    assert found.T.tolist() == [[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]]


# ---- the server


def reference_pool(last: np.ndarray | None, sites: list, found: list) -> np.ndarray:
    pooled = np.zeros((2, C, D))
    for v, c in np.ndindex(2, C):
        old = [0.0] * D if last is None else last[v, c].astype(float).tolist()
        own = [site[v, c].astype(float).tolist() for site in sites]
        seen = [k for k in range(len(sites)) if found[k][v, c]]
        weight = {k: max(cosine(old, own[k]), 0) for k in seen}
        if sum(weight.values()) <= 1e-6:
            weight = dict.fromkeys(seen, 1)
        if not seen:
            pooled[v, c] = old
            continue
        for d in range(D):
            pooled[v, c, d] = sum(weight[k] * own[k][d] for k in seen) / sum(weight.values())
    return pooled


@pytest.mark.parametrize("seed", range(5))
def test_the_server_s_centroids_against_the_reference(seed: int) -> None:
    draw, method = derive(seed, "server"), make_method("rofl")
    server = make_server(method, size=2)
    assert method.extras(server) == {}
    last = None
    for _ in range(3):
        sites = [draw.normal(size=(2, C, D)).astype(np.float32) for _ in range(3)]
        found = [draw.random((2, C)) < 0.5 for _ in range(3)]
        told = [{"centroids": s, "found": f} for s, f in zip(sites, found, strict=True)]
        server.finish_round([Report(k, 5, torch.zeros(2), told[k]) for k in range(3)])
        last = reference_pool(last, sites, found)
        atol = float32_tolerance(len(sites) * D, last)
        np.testing.assert_allclose(method.extras(server)["centroids"], last, rtol=0, atol=atol)
        last = method.extras(server)["centroids"]


def test_weights_that_vanish_or_are_negative_do_no_harm() -> None:
    """The trap: by the plain formula -1 and 1 divide by 0, and -1 and 0.9 give 19 times one."""
    last = np.zeros((2, 1, 2))
    last[..., 0] = 1
    everywhere = np.ones((2, 1), bool)

    def pool(*vectors: list[float]) -> list:
        sites = [np.broadcast_to(np.array(vector), (2, 1, 2)) for vector in vectors]
        return pooled(last, sites, [everywhere] * len(sites))[0, 0].tolist()

    assert pool([-1, 0], [1, 0]) == [1, 0]
    assert pool([-1, 0], [-3, 0]) == [-2, 0]
    assert pool([0, 1], [0, 3]) == [0, 2]
    assert pool([0, 0], [0, 0]) == [0, 0]
    assert pool([2, 0], [0, 5], [-7, 0]) == [2, 0]
    assert pool([np.nan, 0], [3, 0]) == [3, 0]
    assert pool([np.inf, 0]) == [1, 0]


def test_an_absent_class_takes_no_part() -> None:
    """A site without a class sends back what it got, whose cosine of 1 would outvote the others."""
    last, own = make_centroids(1, unknown=False), make_centroids(2, unknown=False)
    nowhere, everywhere = np.zeros((2, C), bool), np.ones((2, C), bool)
    atol = float32_tolerance(4)
    found = pooled(last, [last, own], [nowhere, everywhere])
    np.testing.assert_allclose(found, own, rtol=0, atol=atol)
    np.testing.assert_allclose(pooled(last, [own], [nowhere]), last, rtol=0, atol=atol)


def test_centroids_travel_and_pseudo_labels_are_used_at_tiny_size(dataset: ImageDataset) -> None:
    scenario = make_scenario(dataset, mask="classes", noise=0.2)
    trace = simulate(make_config("rofl"), dataset, scenario)
    assert "centroids" not in trace.sent[0].extras
    for sent in trace.sent[1:]:
        centroids = sent.extras["centroids"]
        assert centroids.shape[:2] == (2, 4)
        assert centroids.any(axis=-1).all()
    endless = simulate(make_config("rofl", warmup_rounds=3), dataset, scenario)
    assert not torch.equal(trace.vector, endless.vector)
