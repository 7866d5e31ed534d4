"""CBAFed against loops written from docs/methods.md 11 and its docstring."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import absence, cross_entropy, float32_tolerance, mean
from stand_ins import (
    WARMUP,
    C,
    FakeClient,
    N,
    TwoLayers,
    make_batch,
    make_client,
    make_method,
    make_server,
    message,
    predictions,
    share_of,
)
from tiny import make_config, make_scenario, simulate

from src.messages import Report
from utils_.datasets.base import ImageDataset
from utils_.labels import MISSING, OBSERVED, PSEUDO, LabelState
from utils_.rng import derive

BOTH = pytest.mark.parametrize("one_threshold", [False, True])


# ---- the reference


def deviation(values: list[float]) -> float:
    centre = mean(values)
    return math.sqrt(mean((value - centre) ** 2 for value in values))


def reference_thresholds(used: np.ndarray, images: int, params: Any) -> dict:
    """Threshold of (value, class) from the labels in use."""
    total = [float(used[0, c] + used[1, c]) for c in range(C)]
    found = {}
    for v, c in np.ndindex(2, C):
        if total[c] == 0:
            found[v, c] = params.high
            continue
        share, others = float(used[v, c]) / total[c], [float(used[u, c]) / total[c] for u in (0, 1)]
        if params.one_threshold:
            share, others = total[c] / images, [number / images for number in total]
        level = share + params.base - deviation(others)
        found[v, c] = min(max(level, params.low), params.high)
    return found


def reference_labels(client: FakeClient, threshold: dict, *, balanced: bool) -> dict:
    """The cells in use and their labels."""
    labels, observed = {}, client.labels.observed
    for i, c in np.ndindex(N, C):
        p, share = float(client.predicted[i, c]), share_of(client, c) if balanced else 0.5
        if not math.isnan(observed[i, c]):
            labels[i, c] = float(observed[i, c])
        elif p > threshold[1, c]:
            labels[i, c] = 1.0
        elif absence(p, share) > threshold[0, c]:
            labels[i, c] = 0.0
    return labels


def as_arrays(labels: dict) -> tuple[np.ndarray, np.ndarray]:
    target, weight = np.zeros((2, N, C))
    for cell, value in labels.items():
        target[cell], weight[cell] = value, 1
    return target, weight


def table(threshold: dict) -> np.ndarray:
    return np.array([[threshold[v, c] for c in range(C)] for v in (0, 1)])


# ---- the client


@pytest.mark.numerics
@BOTH
@pytest.mark.parametrize("balanced", [True, False])
def test_labels_and_objective_against_the_reference(one_threshold: bool, balanced: bool) -> None:
    method = make_method("cbafed", one_threshold=one_threshold, balanced=balanced)
    client = make_client()
    observed, model = client.labels.observed, TwoLayers()
    draw, sizes = derive(0, "used"), set()
    for round in range(WARMUP, WARMUP + 6):
        used = draw.integers(0, 30, (2, C)).astype(float)
        used[:, round % C] = 0
        threshold = method.thresholds(used, 60)
        expected = reference_thresholds(used, 60, method.params)
        np.testing.assert_allclose(threshold, table(expected), atol=1e-6)
        client.predicted = predictions(round)
        method.before_local(client, model, message(round, threshold=threshold))
        labels = reference_labels(client, expected, balanced=balanced)
        target, weight = as_arrays(labels)
        np.testing.assert_array_equal(client.labels.target, target)
        np.testing.assert_array_equal(client.labels.weight, weight)
        missing = int(np.isnan(observed).sum())
        pseudo = len(labels) - observed.size + missing
        assert client.logs["pseudo_share"] == pytest.approx(pseudo / missing)
        counts = np.zeros((2, C))
        for (_, c), value in labels.items():
            counts[int(value), c] += 1
        np.testing.assert_array_equal(method.after_local(client, None, None)["used"], counts)
        sizes.add(len(labels))
        batch = make_batch(client, [3, 0, 7, 11, 5], seed=round)
        logits = model.forward(batch.images).tolist()
        cells = [(b, c) for b, row in enumerate(batch.rows) for c in range(C) if (row, c) in labels]
        by_hand = mean(cross_entropy(logits[b][c], labels[batch.rows[b], c]) for b, c in cells)
        found = method.loss(client, model, batch, message(round)).item()
        atol = float32_tolerance(4 * len(batch.rows) * C, by_hand)
        assert found == pytest.approx(by_hand, abs=atol)
    assert len(sizes) > 2, "labels come and go"
    assert set(np.unique(client.labels.status)) >= {OBSERVED, PSEUDO}


def test_the_warm_up_labels_nothing() -> None:
    method = make_method("cbafed", balanced=False)
    client = make_client(predicted=predictions(0))
    loosest = np.full((2, C), 0.5, np.float32)
    method.before_local(client, None, message(WARMUP - 1, threshold=loosest))
    assert set(np.unique(client.labels.status)) == {MISSING, OBSERVED}
    method.before_local(client, None, message(WARMUP, threshold=loosest))
    assert (client.labels.weight == 1).all()


def test_a_label_that_is_no_longer_sure_loses_its_weight() -> None:
    method, labels = make_method("cbafed"), LabelState(np.full((N, C), np.nan))
    threshold = np.full((2, C), 0.8, np.float32)
    client = FakeClient(labels, predicted=np.full((N, C), 0.9, np.float32))
    method.before_local(client, None, message(WARMUP, threshold=threshold))
    assert (labels.weight == 1).all()
    client.predicted = np.full((N, C), 0.7, np.float32)
    method.before_local(client, None, message(WARMUP + 1, threshold=threshold))
    assert (labels.weight == 0).all()
    assert method.after_local(client, None, None)["used"].sum() == 0


# ---- the server


def test_the_rare_answer_has_the_lower_threshold() -> None:
    """By hand: of 100 labels 5 present, 0.05 + 0.45 - 0.45 is raised to 0.55; 0.95 stays 0.95."""
    used = np.array([[95, 50, 60, 0], [5, 50, 40, 0]], float)
    found = make_method("cbafed").thresholds(used, 100)
    np.testing.assert_allclose(found[0], [0.95, 0.95, 0.95, 0.95], atol=1e-6)
    np.testing.assert_allclose(found[1], [0.55, 0.95, 0.75, 0.95], atol=1e-6)


def test_a_class_without_labels_is_not_guessed_at() -> None:
    """Its share is 0: by the formula alone the untrained row would get the lowest threshold."""
    for one_threshold in (False, True):
        method = make_method("cbafed", one_threshold=one_threshold)
        assert (method.thresholds(np.zeros((2, C)), 10) == np.float32(0.95)).all()
    assert (method.extras(make_server(method))["threshold"] == np.float32(0.95)).all()


def report(client: int, model: list[float], used: list, samples: int = 10) -> Report:
    names, counts = ("used", "positives", "annotated"), np.array(used, np.float32)
    extras = dict(zip(names, (counts, counts[1], counts.sum(axis=0)), strict=True))
    return Report(client, samples, torch.tensor(model), extras)


def play(method: Any, rounds: int) -> tuple[list, list]:
    """Models after each round; and the same by loops, with Python's floats."""
    server, draw = make_server(method, size=3), derive(1, "play")
    expected, current, earlier = [], [0.0] * 3, [0.0] * 3
    found = []
    for round in range(rounds):
        models = draw.normal(size=(3, 3)).astype(np.float32).tolist()
        used = draw.integers(0, 20, (3, 2, C))
        used[round % 3] = 0  # a site that has nothing to learn from
        reports = [report(k, models[k], used[k]) for k in range(3)]
        weights = [max(1, int(used[k].sum())) for k in range(3)]
        server.finish_round(iter(reports))
        found.append(server.model.tolist())
        warm, before = round < WARMUP, current
        current = [
            sum(w * m[i] for w, m in zip(weights, models, strict=True)) / sum(weights)
            for i in range(3)
        ]
        share = method.params.warmup_residual if warm else method.params.residual
        step = round if warm else round - WARMUP
        if step == 0:
            earlier = before
        elif step % method.params.residual_every == 0:
            current = [share * e + (1 - share) * n for e, n in zip(earlier, current, strict=True)]
            earlier = current
        expected.append(current)
    return found, expected


@pytest.mark.numerics
@pytest.mark.parametrize(
    "param", [{}, {"warmup_residual": 0.8}, {"residual_every": 3, "residual": 0.3}]
)
def test_the_server_rule_against_the_reference(param: dict) -> None:
    found, expected = play(make_method("cbafed", **param), 25)
    np.testing.assert_allclose(found, expected, rtol=0, atol=float32_tolerance(25, expected))


@pytest.mark.numerics
def test_without_residual_it_is_the_mean_by_labels_in_use() -> None:
    found, expected = play(make_method("cbafed", residual=0.0), 25)
    np.testing.assert_allclose(found, expected, rtol=0, atol=float32_tolerance(25, expected))
    assert not np.allclose(found, play(make_method("cbafed"), 25)[0])


@pytest.mark.numerics
def test_thresholds_come_from_the_sites_that_report() -> None:
    method = make_method("cbafed")
    server = make_server(method, size=1)
    one = [[90, 10, 10, 0], [10, 90, 10, 0]]
    server.finish_round([report(0, [1.0], one), report(2, [1.0], one)])
    expected = reference_thresholds(2 * np.array(one), 20, method.params)
    np.testing.assert_allclose(method.extras(server)["threshold"], table(expected), atol=1e-6)
    server.finish_round([report(1, [1.0], [[5] * C, [5] * C])])
    assert (method.extras(server)["threshold"] == np.float32(0.95)).all()


def test_a_suppressed_site_stays_suppressed() -> None:
    method = make_method("cbafed")
    used = [[1] * C, [1] * C]
    trusted, doubted = report(0, [1.0], used), report(1, [5.0], used)
    doubted = Report(1, 5, doubted.model, doubted.extras, credit=0.5)
    found = method.aggregate(make_server(method, size=1), [trusted, doubted])
    assert found.item() == pytest.approx((1 * 8 + 5 * 4) / 12)


@pytest.mark.parametrize("mask", ["classes", "cells"])
def test_the_main_stage_runs_at_tiny_size(dataset: ImageDataset, mask: str) -> None:
    trace = simulate(make_config("cbafed"), dataset, make_scenario(dataset, mask=mask))
    labels = [client.labels for client in trace.simulation.clients]
    used = np.concatenate([(state.status == PSEUDO) & (state.weight > 0) for state in labels])
    assert used.sum() > 5
    assert "earlier" in trace.simulation.server.memory


def test_the_main_stage_runs_with_default_rounds() -> None:
    """The trap of a warm-up of its own, longer than the run: it is the plan's."""
    assert not [name for name in vars(make_method("cbafed").params) if "rounds" in name]
