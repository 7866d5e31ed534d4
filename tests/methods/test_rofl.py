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
from src.methods.rofl import batch_sums, judge, likeliest, pooled
from utils_.datasets.base import ImageDataset
from utils_.labels import CORRECTED, OBSERVED, LabelState
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
        self.members: dict = {}
        self.trained = {(i, c): float(observed[i, c]) for i, c in np.argwhere(observed >= 0)}
        self.positives: list[tuple[bool, bool]] = []  # of each seen: believed, made absent
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
        supervised, pull, doubt = [], [], []
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
            given = y
            if not believed and self.round >= self.plan.warmup_rounds:
                y = int(self.present[batch.rows[b], c])
            if given == 1:
                self.positives.append((believed, y == 0))
            self.trained[batch.rows[b], c] = float(y)
            supervised.append(cross_entropy(logits[b][c], y))
            doubt.append(binary_entropy(sigmoid(logits[b][c])))
            self.members.setdefault((y, c), []).append(features[b])
        share = min(self.round / self.plan.warmup_rounds, 1) * self.params.centroid
        return mean(supervised) + share * mean(pull) + self.params.entropy * mean(doubt)

    def logs(self) -> dict[str, float]:
        doubted = [absent for believed, absent in self.positives if not believed]
        logs = {"disbelieved_positives": len(doubted) / len(self.positives)}
        if doubted and self.round >= self.plan.warmup_rounds:
            logs["replaced_by_absence"] = sum(doubted) / len(doubted)
        return logs


# ---- the client


@pytest.mark.numerics
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
        assert (client.cache["centroids"].numpy() == centroids).all(), "they judge as received"
        assert (client.labels.target == np.nan_to_num(client.labels.observed)).all()
    told = method.after_local(client, model, message(round))
    for vc in np.ndindex(2, C):
        members = reference.members.get(vc, [])
        sums = [sum(vector[d] for vector in members) for d in range(D)]
        atol = float32_tolerance(N * D, sums)
        np.testing.assert_allclose(told["sums"][vc], sums, rtol=0, atol=atol)
        assert told["counts"][vc] == len(members)
    assert not told["counts"][:, 3].any(), "nothing is known of a class nobody annotates"
    assert client.logs == pytest.approx(reference.logs())
    for cell, value in reference.trained.items():
        assert client.labels.target[cell] == value
        expected = OBSERVED if value == client.labels.observed[cell] else CORRECTED
        assert client.labels.status[cell] == expected
    assert len(reference.trained) == client.labels.annotated.sum()
    assert (client.labels.weight == client.labels.annotated).all()


def test_what_was_replaced_is_shown_and_not_trained_again() -> None:
    """The evaluator sees the labels of the round; the next one starts from the annotations."""
    method, client, model = make_method("rofl"), make_client(), TwoLayers()
    client.predicted, told = predictions(3), message(WARMUP, centroids=make_centroids())
    method.before_local(client, model, told)
    for step, rows in enumerate(ROWS):
        method.loss(client, model, make_batch(client, rows, seed=step), told)
    method.after_local(client, model, told)
    assert (client.labels.status == CORRECTED).any()
    method.before_local(client, model, told)
    assert (client.labels.target == np.nan_to_num(client.labels.observed)).all()
    assert not (client.labels.status == CORRECTED).any()


@pytest.mark.parametrize("settings", [{}, {"local_epochs": 2, "fraction": 0.67, "rounds": 4}])
def test_showing_the_replaced_labels_changes_no_bit(
    settings: dict, dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = make_scenario(dataset, mask="cells", noise=0.3)
    config = make_config("rofl", **settings)
    shown = simulate(config, dataset, scenario)
    assert any((c.labels.status == CORRECTED).any() for c in shown.simulation.clients)
    figures = shown.simulation.history[-1]
    assert 0 <= figures["labels_correction_precision"] <= 1
    assert figures["labels_flipped_cells"] > 0
    monkeypatch.setattr(LabelState, "correct", lambda *cells, **options: None)
    hidden = simulate(config, dataset, scenario)
    assert not any((c.labels.status == CORRECTED).any() for c in hidden.simulation.clients)
    assert shown.crossed() == hidden.crossed()
    assert torch.equal(shown.vector, hidden.vector)


@pytest.mark.numerics
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


def test_an_unknown_centroid_judges_nobody() -> None:
    _, judged = judge(torch.ones(6, D), torch.from_numpy(make_centroids()))
    assert judged.tolist() == [True, True, False, False]


def test_a_single_positive_does_not_replace_what_is_known_of_its_class() -> None:
    """The trap: moved by the squared cosine, a batch of one image counts as much as one of nine."""
    sums, counts = np.zeros((2, 1, 2)), np.zeros((2, 1))
    for features in ([[1.0, 0.2]] * 9, [[0.2, 1.0]]):
        cells = torch.ones(len(features), 1).bool()
        told = batch_sums(torch.tensor(features), cells, cells)
        sums, counts = sums + told[0].numpy(), counts + told[1].numpy()
    found = pooled(sums, counts, None)
    np.testing.assert_allclose(found[1, 0], [0.92, 0.28], atol=1e-6)
    assert counts.tolist() == [[0], [10]]


def test_the_likeliest_images_get_the_label() -> None:
    """As many as the share says, the first of equals; none of a class nobody has seen."""
    predicted = np.array([[0.1, 0.3, 0.9], [0.4, 0.3, 0.9], [0.2, 0.3, 0.9], [0.3, 0.1, 0.9]])
    found = likeliest(predicted, np.array([0.5, 0.5, np.nan]))
    assert found.T.tolist() == [[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]]


# ---- the server


@pytest.mark.numerics
@pytest.mark.parametrize("seed", range(5))
def test_the_server_s_centroids_against_the_reference(seed: int) -> None:
    """Means over all sites' cells; where there is none the last one stays."""
    draw, method = derive(seed, "server"), make_method("rofl")
    server = make_server(method, size=2)
    assert method.extras(server) == {}
    last = np.zeros((2, C, D))
    for _ in range(3):
        sums = [draw.normal(size=(2, C, D)).astype(np.float32) for _ in range(3)]
        counts = [draw.integers(0, 3, (2, C)).astype(np.float32) for _ in range(3)]
        told = [{"sums": s, "counts": n} for s, n in zip(sums, counts, strict=True)]
        server.finish_round([Report(k, 5, torch.zeros(2), told[k]) for k in (2, 0, 1)])
        for v, c, d in np.ndindex(2, C, D):
            cases = sum(float(n[v, c]) for n in counts)
            if cases:
                last[v, c, d] = sum(float(s[v, c, d]) for s in sums) / cases
        found = method.extras(server)["centroids"]
        np.testing.assert_allclose(found, last, rtol=0, atol=float32_tolerance(4, last))
        last = found.astype(float)


def test_a_site_counts_by_its_cases() -> None:
    """A site of one positive must not outvote one of ninety-nine."""
    server = make_server(make_method("rofl"), size=2)
    reports = []
    for client, (cases, value) in enumerate([(1, 1.0), (99, 0.0)]):
        counts = np.full((2, C), cases, np.float32)
        told = {"sums": counts[..., None] * np.full(D, value, np.float32), "counts": counts}
        reports.append(Report(client, 50, torch.zeros(2), told))
    server.finish_round(reports)
    np.testing.assert_allclose(server.memory["centroids"], 0.01, atol=1e-7)


@pytest.mark.parametrize("name", ["sums", "counts"])
def test_a_site_whose_sums_are_not_finite_is_left_out(name: str) -> None:
    server = make_server(make_method("rofl"), size=2)
    counts = np.ones((2, C), np.float32)
    told = [{"sums": np.ones((2, C, D), np.float32), "counts": counts.copy()} for _ in range(2)]
    told[0][name][0, 0] = np.nan
    server.finish_round([Report(k, 5, torch.zeros(2), told[k]) for k in range(2)])
    assert list(server.rejected) == [0]
    assert (server.memory["centroids"] == 1).all()


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
