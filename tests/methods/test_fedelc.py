"""FedELC against plain loops written from its equations (docs/methods.md 7 and its docstring)."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import binary_entropy, float32_tolerance, mean, sigmoid
from stand_ins import C, N, TwoLayers, make_batch, make_client, make_method, make_server, message
from stand_ins import predictions as make_predictions
from tiny import Trace, make_config, make_dataset, make_scenario, simulate

from src.messages import Report
from src.methods.fedelc import first_logits, label_divergence, label_step, merged_logits
from utils_.labels import CORRECTED
from utils_.noisy_clients import (
    CLEAN,
    NOISY,
    NOT_HEARD,
    REPLICATES,
    hear,
    normalised,
    vote_noisy,
    weighed,
)
from utils_.rng import derive, derive_seed

EVIDENCE = np.ones((2 + REPLICATES, 2, C), np.float32)
VERDICT = {"noisy": np.array([NOISY, CLEAN, CLEAN], np.int8)}


def make_noisy(**param: Any) -> tuple[Any, Any, TwoLayers]:
    """A site that has just been called noisy."""
    method, client, model = make_method("fedelc", **param), make_client(), TwoLayers()
    client.predicted = make_predictions(0)
    method.before_local(client, model, message(20, **VERDICT))
    return method, client, model


# ---- labels as logits, against labels of two classes with a logit each


def two_logits(u: float, scale: float) -> torch.Tensor:
    """Any pair whose difference is u."""
    return torch.tensor([scale - u / 3, scale + 2 * u / 3], dtype=torch.float64)


def image_loss(labels: torch.Tensor, p: float, y: int, *, tie: float) -> torch.Tensor:
    """What an image's label logits of one cell are moved by: L_c / C + tie L_o."""
    q = torch.softmax(labels, dim=0)
    prediction = torch.tensor([1 - p, p], dtype=torch.float64)
    divergence = (prediction * (prediction.log() - q.log())).sum()
    return divergence / C - tie * q[y].log()


@pytest.mark.numerics
@pytest.mark.parametrize("tie", [0.0, 0.5])
@pytest.mark.parametrize("rate", [0.3, 15.6])
def test_a_step_against_gradients_of_two_logits(rate: float, tie: float) -> None:
    draw = derive(0, "cells")
    for _ in range(20):
        u, p, y = float(draw.normal(0, 3)), float(draw.uniform(0.01, 0.99)), int(draw.integers(2))
        pair = two_logits(u, 1.5).requires_grad_()
        (gradient,) = torch.autograd.grad(image_loss(pair, p, y, tie=tie), pair)
        after = (pair - rate * gradient).detach()
        cell = (torch.tensor(value, dtype=torch.float64) for value in (u, p, float(y)))
        found = label_step(*cell, rate=rate, tie=tie, classes=C)
        assert found.item() == pytest.approx(float(after[1] - after[0]), abs=1e-9)


@pytest.mark.numerics
def test_the_first_and_the_merged_logits_are_differences_of_two() -> None:
    observed = np.array([[1, 0, np.nan]], np.float32)
    np.testing.assert_array_equal(first_logits(observed, scale=10), [[10, -10, 0]])
    u, p = np.array([[2.0, -9, 0.5]], np.float32), np.array([[0.1, 0.8, 0.5]], np.float32)
    for c, found in enumerate(merged_logits(u, p, scale=10)[0]):
        q = sigmoid(float(u[0, c]))
        present, absent = 5 * (q + p[0, c]), 5 * (1 - q + 1 - p[0, c])
        assert found == pytest.approx(present - absent, abs=1e-5)


@pytest.mark.numerics
def test_divergence_against_the_reference_and_far_out() -> None:
    z, u = torch.tensor([[0.3, -2.0, 5.0]]), torch.tensor([[1.0, 3.0, -4.0]])
    for a, b, found in zip(z[0].tolist(), u[0].tolist(), label_divergence(z, u)[0], strict=True):
        p, q = sigmoid(a), sigmoid(b)
        expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        assert found.item() == pytest.approx(expected, abs=1e-5)
    far = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
    label_divergence(far, -far.detach()).sum().backward()
    assert torch.isfinite(far.grad).all()
    assert label_divergence(z, z).abs().max() < 1e-6


# ---- the objective


def reference_loss(method: Any, client: Any, batch: Any, u: np.ndarray, model: Any) -> float:
    logits, divergences, entropies = model.forward(batch.images).tolist(), [], []
    for b, i in enumerate(batch.rows):
        for c in range(C):
            if client.labels.annotated[i, c]:
                p, q = sigmoid(logits[b][c]), sigmoid(float(u[i, c]))
                divergences.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
                entropies.append(binary_entropy(p))
    return mean(divergences) + method.params.entropy * mean(entropies)


@pytest.mark.numerics
def test_the_objective_of_a_noisy_site_against_the_reference() -> None:
    method, client, model = make_noisy()
    observed, known = client.labels.observed, client.labels.annotated
    u = first_logits(observed, scale=10)
    for rows in ([7, 2, 0], [3, 1], [7, 2, 5]):  # two images are visited again
        batch = make_batch(client, rows, seed=rows[0])
        found = method.loss(client, model, batch, message(20))
        assert found.item() == pytest.approx(reference_loss(method, client, batch, u, model), 1e-5)
        logits = model.forward(batch.images).tolist()
        for b, i in enumerate(rows):
            for c in np.flatnonzero(known[i]):
                pair = two_logits(float(u[i, c]), 0).requires_grad_()
                p, y = sigmoid(logits[b][c]), int(observed[i, c])
                (gradient,) = torch.autograd.grad(image_loss(pair, p, y, tie=0.5), pair)
                after = pair.detach() - 15.6 * gradient
                u[i, c] = float(after[1] - after[0])
        np.testing.assert_allclose(client.cache["labels"], u, atol=1e-4)
        u = client.cache["labels"].numpy().copy()
    assert not client.cache["labels"].numpy()[~known].any()


def test_label_logits_pass_no_gradient_and_weights_count() -> None:
    method, client, model = make_noisy(entropy=0)
    batch = make_batch(client, [0, 1, 2])
    batch.weight[1] = 0
    method.loss(client, model, batch, message(20)).backward()
    assert model.parameters.grad.abs().sum() > 0
    first = torch.from_numpy(first_logits(client.labels.observed, scale=10))
    moved = (client.cache["labels"] != first).any(dim=1)
    assert moved[:3].tolist() == [True, False, True] and not moved[3:].any()


@pytest.mark.numerics
@pytest.mark.parametrize("adjusted", [True, False])
@pytest.mark.parametrize("extras", [{}, {"noisy": np.array([CLEAN, NOISY, CLEAN], np.int8)}])
def test_the_objective_elsewhere_is_logit_adjusted_cross_entropy(
    extras: dict, adjusted: bool
) -> None:
    method = make_method("fedelc", logit_adjustment=adjusted)
    client, model = make_client(predicted=make_predictions(0)), TwoLayers()
    method.before_local(client, model, message(5, **extras))
    batch = make_batch(client, [4, 9, 1])
    logits, losses = model.forward(batch.images).tolist(), []
    for b, i in enumerate(batch.rows):
        for c in np.flatnonzero(client.labels.annotated[i]):
            column = [v for v in client.labels.observed[:, c].tolist() if not math.isnan(v)]
            shift = math.log((sum(column) + 0.5) / (len(column) - sum(column) + 0.5)) * adjusted
            p, y = sigmoid(logits[b][c] + shift), client.labels.observed[i, c]
            losses.append(-math.log(p) if y else -math.log(1 - p))
    found = method.loss(client, model, batch, message(5))
    expected = mean(losses)
    atol = float32_tolerance(4 * len(batch.rows) * C, expected)
    assert found.item() == pytest.approx(expected, abs=atol)


# ---- what a site remembers


@pytest.mark.numerics
def test_after_the_round_labels_and_predictions_are_averaged() -> None:
    method, client, model = make_noisy()
    method.loss(client, model, make_batch(client, list(range(N))), message(20))
    u = client.cache["labels"].numpy().copy()
    assert "losses" not in method.after_local(client, model, message(20))
    labels, kept = client.labels, client.memory["label_logits"]
    for i in range(N):
        turned = [0.0]
        for c in range(C):
            if not labels.annotated[i, c]:
                assert kept[i, c] == 0 and labels.weight[i, c] == 0
                continue
            q, p = sigmoid(float(u[i, c])), float(client.predicted[i, c])
            assert kept[i, c] == pytest.approx(10 * (q + p - 1), abs=1e-4)
            assert labels.target[i, c] == pytest.approx(sigmoid(float(kept[i, c])), abs=1e-5)
            turned.append(abs(float(labels.target[i, c] - labels.observed[i, c])))
        assert client.memory["noise_score"][i] == pytest.approx(max(turned), abs=1e-6)
    client.cache = {}
    method.before_local(client, model, message(21, **VERDICT))
    np.testing.assert_array_equal(client.cache["labels"], kept)
    method.loss(client, model, make_batch(client, [0]), message(21))
    np.testing.assert_array_equal(client.memory["label_logits"], kept)  # changes after the round


def test_a_site_that_is_cleared_has_its_annotations_back() -> None:
    method, client, model = make_noisy()
    method.after_local(client, model, message(20))
    labels = client.labels
    assert (labels.status == CORRECTED).any()
    method.before_local(client, model, message(21, noisy=np.full(3, CLEAN)))
    known = labels.annotated
    np.testing.assert_array_equal(labels.target[known], labels.observed[known])
    assert not (labels.status == CORRECTED).any()
    assert set(client.memory) == {"noise_score"} and not client.memory["noise_score"].any()


def test_a_site_tells_its_losses_until_all_are_heard() -> None:
    method, client, model = make_method("fedelc"), make_client(), TwoLayers()
    client.predicted = make_predictions(0)
    heard = {"noisy": np.array([CLEAN, CLEAN, NOT_HEARD])}
    told = []
    for round, extras in ((3, {}), (9, {}), (10, heard), (11, VERDICT)):
        client.cache = {}
        method.before_local(client, model, message(round, **extras))
        told.append("losses" in method.after_local(client, model, message(round)))
    assert told == [False, True, True, False]


# ---- the server's rule


def test_the_vote_is_that_of_all_sites_heard_so_far() -> None:
    draw, memory = derive(0, "losses"), {}
    table = draw.random((5, 2, C)).astype(np.float32) + np.array([0, 3, 0, 0, 3])[:, None, None]
    seeds = [derive_seed(make_method("fedelc").plan.seed, "vote", i) for i in range(9)]
    for heard in ([0, 2], [1, 3], [4]):
        reports = [Report(k, 9, None, {"losses": table[k], "evidence": EVIDENCE}) for k in heard]
        hear(memory, reports, clients=5, seeds=seeds, alpha=1)
    rows = normalised(table.reshape(5, -1), fill_minimum=False)
    expected = vote_noisy(rows, seeds=seeds)
    np.testing.assert_array_equal(memory["noisy"], expected)
    np.testing.assert_array_equal(memory["noisy"], [0, 1, 0, 0, 1])
    before = dict(memory)
    hear(memory, [], clients=5, seeds=seeds, alpha=1)
    assert memory == before


def test_with_one_site_nobody_is_noisy() -> None:
    memory: dict = {}
    told = {"losses": np.ones((2, C), np.float32), "evidence": EVIDENCE}
    for alpha in (0.5, 1):
        hear(memory, [Report(0, 9, None, told)], clients=1, seeds=[0], alpha=alpha)
        assert memory["noisy"].tolist() == [CLEAN]


@pytest.mark.numerics
def test_the_aggregation_by_distance_by_hand() -> None:
    """n = (100, 100, 200), d = (0, 0.5, 2): docs/methods.md 19; no buffers in a distance."""
    vectors = [torch.tensor(v) for v in ([0.0, 0, 0], [0.3, 0.4, 50], [0, 2.0, 9])]
    samples = (100, 100, 200)
    reports = [Report(k, n, v) for k, (n, v) in enumerate(zip(samples, vectors, strict=True))]
    verdict = np.array([CLEAN, NOISY, NOISY])
    counted = [report.samples for report in weighed(reversed(reports), verdict, own=2)]
    shares = np.array(counted) / sum(counted)
    np.testing.assert_allclose(shares, [0.397684, 0.309717, 0.292599], atol=1e-6)
    method = make_method("fedelc")
    server = make_server(method, size=3)
    plain = sum(n / 400 * v for n, v in zip(samples, vectors, strict=True))
    torch.testing.assert_close(method.aggregate(server, iter(reports)), plain)
    for verdict, weights in (
        ([CLEAN, NOISY, NOISY], shares),
        ([NOISY] * 3, [0.25, 0.25, 0.5]),
        ([CLEAN] * 3, [0.25, 0.25, 0.5]),
    ):
        server.memory["noisy"] = np.array(verdict)
        server.layout = SimpleNamespace(parameters=2)
        found = method.aggregate(server, iter(reports))
        expected = sum(float(w) * v for w, v in zip(weights, vectors, strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# ---- whole runs


def run(**settings: Any) -> Trace:
    dataset = make_dataset()
    scenario = make_scenario(dataset, mask="cells", noise=0.3)
    return simulate(make_config("fedelc", **settings), dataset, scenario)


def test_both_stages_run_and_workers_do_not_matter() -> None:
    one, two = (run(rounds=5, warmup_rounds=2, workers=workers) for workers in ("1", "2"))
    assert torch.equal(one.vector, two.vector)
    assert one.labels() == two.labels()
    noisy = [message.extras.get("noisy") for message in one.sent]
    assert noisy[:2] == [None, None]
    assert NOISY in noisy[2] and CLEAN in noisy[2] and NOT_HEARD not in noisy[2]
    for client in one.simulation.clients:
        learned = bool((client.labels.status == CORRECTED).any())
        assert learned == (noisy[2][client.index] == NOISY) == ("label_logits" in client.memory)
    uploads = ["losses" in report.extras for report in one.received]
    assert uploads == [round == 1 for round in range(5) for _ in range(3)]


def test_without_noisy_sites_it_is_logit_adjusted_fedavg() -> None:
    one = run(rounds=4, warmup_rounds=1, param={"alpha": 0})
    other = run(rounds=4, warmup_rounds=4)
    assert torch.equal(one.vector, other.vector)
    plain = run(rounds=4, param={"alpha": 0, "logit_adjustment": False})
    dataset = make_dataset()
    scenario = make_scenario(dataset, mask="cells", noise=0.3)
    fedavg = simulate(make_config("fedavg", rounds=4), dataset, scenario)
    assert torch.equal(plain.vector, fedavg.vector)
