"""FedNoRo against plain loops written from docs/methods.md 3 and its docstring."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import binary_entropy, cross_entropy, float32_tolerance, logit, mean, sigmoid
from scipy import stats
from stand_ins import (
    ROUNDS,
    WARMUP,
    C,
    TwoLayers,
    make_batch,
    make_client,
    make_method,
    make_observed,
    make_server,
    message,
    predictions,
)
from tiny import Trace, make_config, make_dataset, make_scenario, simulate

from src.aggregation import Layout
from src.messages import Report, message_bytes
from src.server import Server
from utils_ import noisy_clients
from utils_.noisy_clients import (
    CLEAN,
    NOISY,
    NOT_HEARD,
    REPLICATES,
    class_losses,
    closeness,
    likeliest_cut,
    normalised,
    scatter,
    surplus,
    told_apart,
    vote_noisy,
)
from utils_.rng import derive, derive_seed

ROWS = [3, 0, 7, 11, 5]
FLAGS = np.array([NOISY, CLEAN, NOT_HEARD], np.int8)


# ---- what the sites tell


def reference_losses(predicted: np.ndarray, observed: np.ndarray, least: int) -> np.ndarray:
    table = np.full((2, C), np.nan)
    for value, c in np.ndindex(2, C):
        found = []
        for i in range(len(observed)):
            if observed[i, c] == value:
                p = min(max(float(predicted[i, c]), 1e-7), 1 - 1e-7)
                found.append(-math.log(p if value else 1 - p))
        if len(found) >= least:
            table[value, c] = mean(found)
    return table


@pytest.mark.numerics
@pytest.mark.parametrize("least", [1, 3, 6, 100])
def test_class_losses_are_means_over_annotated_cells(least: int) -> None:
    predicted, observed = predictions(0), make_observed()
    predicted[0], predicted[1] = 1, 0
    found = class_losses(predicted, observed, min_cells=least)
    expected = reference_losses(predicted, observed, least)
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-6)
    assert np.isnan(found[:, 3]).all(), "nobody looked"
    assert np.isfinite(found).any() == (least < 100)


# ---- the vote


def reference_rows(losses: np.ndarray, fill_minimum: bool) -> list[list[float]]:
    columns = []
    for column in losses.T.tolist():
        known = [v for v in column if not math.isnan(v)]
        if known and max(known) > min(known):
            low, high = min(known), max(known)
            columns.append([(v - low) / (high - low) for v in column])
    rows = [list(row) for row in zip(*columns, strict=True)] or [[] for _ in losses]
    for row in rows:
        own = 0.0 if fill_minimum else mean(v for v in row if not math.isnan(v))
        row[:] = [own if math.isnan(v) else v for v in row]
    return rows


def make_losses(sites: int = 6, columns: int = 8) -> np.ndarray:
    """A column that is constant, one with a single entry, an empty one, a row without any."""
    draw = derive(sites, "losses")
    losses = draw.gamma(2, 0.5, (sites, columns)).astype(np.float32)
    losses[draw.random(losses.shape) < 0.3] = np.nan
    losses[:, 0], losses[:, 1], losses[:, 2] = 0.5, np.nan, np.nan
    losses[0, 1] = 1
    losses[-1] = np.nan
    return losses


@pytest.mark.numerics
@pytest.mark.parametrize("fill_minimum", [True, False])
def test_normalised_losses_against_the_reference(fill_minimum: bool) -> None:
    losses = make_losses()
    found = normalised(losses, fill_minimum=fill_minimum)
    expected = reference_rows(losses, fill_minimum)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.shape == (6, 5)
    assert not found[-1].any()


def noisy_table() -> tuple[np.ndarray, np.ndarray]:
    noisy = np.array([False, True, False, False, True, False, False, True])
    draw = derive(0, "table")
    return np.where(noisy[:, None], 0.8, 0.2) + draw.normal(0, 0.05, (8, 6)), noisy


def test_sites_of_larger_losses_are_found() -> None:
    table, noisy = noisy_table()
    for rows in (table, table[::-1]):
        found = vote_noisy(rows, seeds=range(9))
        np.testing.assert_array_equal(found, noisy if rows is table else noisy[::-1])


def reference_vote(table: np.ndarray, seeds: list[int]) -> list[bool]:
    from sklearn.mixture import GaussianMixture

    ballots: list[list[bool]] = []
    for seed in seeds:
        mixture = GaussianMixture(2, random_state=seed % 2**32).fit(table)
        sums = [sum(row) for row in mixture.means_.tolist()]
        noisy = 0 if sums[0] > sums[1] else 1
        ballots.append([bool(group == noisy) for group in mixture.predict(table)])
    return max(ballots, key=ballots.count)  # the first of those named most often


@pytest.mark.parametrize("sites", [3, 5, 12])
def test_the_vote_against_the_reference(sites: int) -> None:
    seeds = [derive_seed(1, "vote", i) for i in range(9)]
    for draw in range(4):
        table = derive(draw, "rows").random((sites, 8))
        found = vote_noisy(table, seeds=seeds)
        expected = reference_vote(table, seeds)
        assert found.tolist() == expected
        assert 0 < found.sum() < sites


def test_the_set_named_most_often_wins_and_the_first_of_equals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ballots = {1: [0, 0, 1], 2: [0, 1, 1], 3: [0, 1, 1], 4: [0, 0, 1], 5: [1, 0, 0]}
    monkeypatch.setattr(
        noisy_clients,
        "_group_of_larger_losses",
        lambda table, seed: np.array(ballots[seed], bool),
    )
    table = np.array([[0.0], [0.5], [1.0]])
    for seeds, winner in ([(1, 2, 3, 4, 5), 1], [(2, 1, 3, 4), 2], [(5, 1, 2, 3), 2]):
        assert vote_noisy(table, seeds=seeds).tolist() == ballots[winner]


@pytest.mark.parametrize(
    "table",
    [np.zeros((1, 4)), np.zeros((0, 4)), np.zeros((5, 0)), np.full((5, 4), 0.3)],
    ids=["one site", "no site", "no column", "all alike"],
)
def test_nobody_is_noisy_where_nobody_differs(table: np.ndarray) -> None:
    assert vote_noisy(table, seeds=range(9)).tolist() == [False] * len(table)


# ---- the test


def reference_rates(losses: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """Least squares over told cells: loss = mean of its column + rate of its site * lack."""
    sites, columns = losses.shape
    count = np.where(np.isnan(losses), 0, evidence[:, 0])
    rows, wanted = [], []
    for c in range(columns):
        told = [k for k in range(sites) if count[k, c] > 0]
        if len(told) < 2:
            continue
        total = sum(count[k, c] for k in told)
        own = sum(count[k, c] * losses[k, c] for k in told) / total
        lack = max(sum(count[k, c] * evidence[k, 1, c] for k in told) / total - own, 0)
        variance = sum(count[k, c] ** 2 * evidence[k, 2:, c].var() for k in told) / total
        for k in told:
            row = np.zeros(columns + sites)
            row[c], row[columns + k] = 1, lack
            root = math.sqrt(count[k, c] / variance)
            rows.append(row * root)
            wanted.append(losses[k, c] * root)
    rates = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0][columns:]
    return rates - rates.mean()


def make_evidence(losses: np.ndarray, replicates: int = 99) -> np.ndarray:
    draw = derive(0, "evidence")
    count = draw.integers(5, 60, losses.shape)
    deviation = draw.normal(size=(len(losses), replicates, losses.shape[1])) * 0.1
    blind = np.nan_to_num(losses) + draw.uniform(0.2, 3, losses.shape)
    return np.concatenate([np.stack([count, blind], axis=1), deviation], axis=1)


def test_rates_against_least_squares() -> None:
    losses = derive(3, "losses").gamma(2, 0.5, (6, 8))
    losses[derive(4, "losses").random(losses.shape) < 0.3] = np.nan
    evidence = make_evidence(losses)
    rates, information = surplus(losses, evidence)
    expected = reference_rates(losses, evidence)
    assert rates.shape == (100, 6) and (information > 0).all()
    np.testing.assert_allclose(rates[0] - rates[0].mean(), expected, atol=1e-9)
    count = np.where(np.isnan(losses), 0, evidence[:, 0])
    means = (count * np.nan_to_num(losses)).sum(axis=0) / np.maximum(count.sum(axis=0), 1)
    alike = means + evidence[:, 2 + 7]  # replicate 7
    apart = alike - (count * alike).sum(axis=0) / np.maximum(count.sum(axis=0), 1)
    same = np.where(np.isnan(losses), np.nan, means + apart)  # its columns have the pooled means
    expected = reference_rates(same, evidence)
    np.testing.assert_allclose(rates[8] - rates[8].mean(), expected, atol=1e-9)


def test_scatter_against_a_loop() -> None:
    values, weight = derive(0, "rows").normal(size=(3, 5)), derive(0, "weight").uniform(0.5, 3, 5)
    for row, found in zip(values, scatter(values, weight), strict=True):
        mean = sum(w * x for w, x in zip(weight, row, strict=True)) / sum(weight)
        assert found == pytest.approx(
            sum(w * (x - mean) ** 2 for w, x in zip(weight, row, strict=True))
        )


@pytest.mark.parametrize("sites", [2, 3, 7])
def test_the_likeliest_cut_against_all_cuts(sites: int) -> None:
    """By the densities of scipy, each part about its likeliest mean."""
    draw = derive(sites, "cut")
    values, information = draw.normal(size=sites), draw.uniform(20, 90, sites)
    fits = []
    for bar in sorted(values)[:-1]:
        fit = 0.0
        for upper in (False, True):
            rows = [k for k in range(sites) if (values[k] > bar) == upper]
            variance = np.array([1 / information[k] + upper * 0.1**2 for k in rows])
            mean = sum(values[rows] / variance) / sum(1 / variance)
            fit += stats.norm.logpdf(values[rows], mean, np.sqrt(variance)).sum()
        fits.append((fit, [bool(x > bar) for x in values]))
    assert likeliest_cut(values, information).tolist() == max(fits)[1]


def test_noisy_sites_of_unlike_rates_stay_together() -> None:
    """Two equal groups would be cut between the noisy ones, where the squares are largest."""
    rates = np.array([0.02, 0.0, 0.35, 0.5, 0.85])
    assert likeliest_cut(rates, np.full(5, 100.0)).tolist() == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("alpha", "found"), [(0.0, False), (0.009, False), (0.01, True), (0.9, True)]
)
def test_the_sites_themselves_count_among_the_replicates(alpha: float, found: bool) -> None:
    """Far apart, no replicate comes near: the share is 1 of 100."""
    losses = np.where([[False], [True], [False], [True]], 9.0, 1.0) + np.zeros((4, 6))
    noisy = told_apart(losses, make_evidence(losses), alpha=alpha)
    assert noisy.tolist() == [False, found, False, found]


@pytest.mark.parametrize("sites", [0, 1, 5])
def test_sites_that_are_equal_are_not_accused(sites: int) -> None:
    losses = np.full((sites, 6), 0.5)
    assert not told_apart(losses, make_evidence(losses), alpha=0.5).any()
    losses[:] = np.nan
    assert not told_apart(losses, make_evidence(losses), alpha=0.5).any()


# ---- the objective


def reference_objective(
    method: Any, client: Any, batch: Any, student: Any, teacher: Any, round: int
) -> float:
    params, observed = method.params, client.labels.observed
    odds = []
    for c in range(C):
        given = [float(y) for y in observed[:, c] if not math.isnan(y)]
        ratio = (sum(given) + 0.5) / (len(given) - sum(given) + 0.5)
        odds.append(math.log(ratio) if params.logit_adjustment else 0.0)
    logits = student.forward(batch.images).tolist()
    taught = student.forward(batch.images, teacher).tolist()
    supervised, divergence = [], []
    for b, row in enumerate(batch.rows):
        for c in range(C):
            z = logits[b][c] + odds[c]
            q = sigmoid(logit(sigmoid(taught[b][c])) / params.temperature)
            divergence.append(cross_entropy(z, q) - binary_entropy(q))
            if not math.isnan(observed[row, c]):
                supervised.append(cross_entropy(z, float(observed[row, c])))
    if not client.cache["noisy"]:
        return mean(supervised)
    begin, end = WARMUP, WARMUP + params.kd_end * (ROUNDS - WARMUP)
    share = (min(max(round, begin), end) - begin) / (end - begin)
    weight = params.kd_weight * math.exp(-params.kappa * (1 - share) ** 2)
    return weight * mean(divergence) + (1 - weight) * mean(supervised)


@pytest.mark.numerics
@pytest.mark.parametrize(
    "param", [{}, {"logit_adjustment": False, "temperature": 2}, {"kappa": 1, "kd_end": 1}]
)
@pytest.mark.parametrize("round", [0, 9, 10, 30, 99])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_objective_against_the_reference(index: int, round: int, param: dict) -> None:
    method, student = make_method("fednoro", **param), TwoLayers(1)
    client = make_client(index=index, predicted=predictions(0))
    sent = message(round, **({"noisy": FLAGS} if round >= WARMUP else {}))
    sent = replace(sent, model=sent.model / 2)  # float32 probabilities tell no logit beyond 13
    batch = make_batch(client, ROWS)
    method.before_local(client, student, sent)
    loss = method.loss(client, student, batch, sent)
    assert client.cache["noisy"] == (index == 0 and round >= WARMUP)
    assert len(client.asked) == client.cache["noisy"], "only a noisy site asks a teacher"
    expected = reference_objective(method, client, batch, student, sent.model, round)
    terms = 4 * len(ROWS) * C  # cells of student and teacher, and as many steps
    assert loss.item() == pytest.approx(expected, abs=float32_tolerance(terms, expected))
    loss.backward()
    assert torch.isfinite(student.parameters.grad).all()


@pytest.mark.parametrize(
    ("round", "golden"), [(10, 0.00539), (20, 0.05040), (30, 0.24418), (49, 0.8), (99, 0.8)]
)
def test_the_weight_of_distillation_is_golden(round: int, golden: float) -> None:
    assert make_method("fednoro").kd_weight(round) == pytest.approx(golden, abs=5e-6)


@pytest.mark.parametrize("warmup", [0, 16, 50, 98])
def test_distillation_grows_however_long_the_warm_up_is(warmup: int) -> None:
    weights = [make_method("fednoro", warmup=warmup).kd_weight(t) for t in (warmup, ROUNDS)]
    assert weights == pytest.approx([0.8 * math.exp(-5), 0.8])


def test_a_site_without_positives_or_annotations_learns_finite_things() -> None:
    method, client = make_method("fednoro"), make_client(index=0, predicted=predictions(0))
    method.before_local(client, None, message(0))
    observed, shift = client.labels.observed, client.cache["shift"]
    assert shift[3] == 0
    assert torch.isfinite(shift).all()
    known = observed[~np.isnan(observed[:, 0]), 0]
    odds = (known.sum() + 0.5) / (len(known) - known.sum() + 0.5)
    assert float(shift[0]) == pytest.approx(math.log(odds), abs=1e-6)


# ---- who is told what


def tell(method: Any, round: int, index: int = 0, flags: Any = None) -> dict:
    client = make_client(index=index, predicted=predictions(0))
    sent = message(round, **({} if flags is None else {"noisy": np.array(flags, np.int8)}))
    method.before_local(client, TwoLayers(), sent)
    return method.after_local(client, TwoLayers(), sent)


@pytest.mark.parametrize(("warmup", "first"), [(10, 9), (2, 1), (1, 1), (0, 1)])
def test_losses_are_told_once_from_the_last_round_of_the_warm_up(warmup: int, first: int) -> None:
    method = make_method("fednoro", warmup=warmup, min_cells=1)
    assert tell(method, first - 1) == {}
    told = tell(method, first)
    np.testing.assert_array_equal(told["evidence"][0, 1], np.nansum(make_observed(), axis=0))
    np.testing.assert_allclose(
        told["losses"], reference_losses(predictions(0), make_observed(), 1), atol=1e-6, rtol=1e-6
    )
    assert tell(method, first + 1, flags=[0, 1, -1]).keys() == {"losses", "evidence"}, (
        "someone is missing"
    )
    assert tell(method, first + 1, flags=[0, 1, 0]) == {}


def report(client: int, losses: list | None = None, model: Any = None, samples: int = 10) -> Report:
    extras = {}
    if losses is not None:
        extras["losses"] = np.array(losses, np.float32).reshape(2, C)
        extras["evidence"] = np.zeros((2 + REPLICATES, 2, C), np.float32)
    return Report(client, samples, model, extras)


def test_the_vote_is_repeated_until_all_have_been_heard() -> None:
    method, server = make_method("fednoro", alpha=1), make_server(make_method("fednoro"))
    assert method.extras(server) == {}
    method.after_round(server, [report(0), report(1)])
    assert method.extras(server) == {}
    low, high = [0.1] * 8, [0.9] * 8
    method.after_round(server, [report(1, high)])
    first = method.extras(server)["noisy"]
    assert first.tolist() == [NOT_HEARD, CLEAN, NOT_HEARD], "one alone is not noisy"
    method.after_round(server, [report(0, low), report(1, high)])
    assert method.extras(server)["noisy"].tolist() == [CLEAN, NOISY, NOT_HEARD]
    method.after_round(server, [report(2, [0.85] * 8)])
    assert method.extras(server)["noisy"].tolist() == [CLEAN, NOISY, NOISY]
    assert first.tolist() == [NOT_HEARD, CLEAN, NOT_HEARD], "what was sent stays as it was"


# ---- the server's rule


def reference_mean(models: np.ndarray, sizes: list, noisy: list, count: int) -> list[float]:
    """Distance-aware aggregation; distances by the first ``count`` numbers of a model."""
    clean = [k for k in range(len(models)) if not noisy[k]]
    distance = [0.0] * len(models)
    for k in range(len(models)):
        if noisy[k] and clean:
            distance[k] = min(math.dist(models[k][:count], models[j][:count]) for j in clean)
    largest = max(distance) or 1.0
    weight = [n * math.exp(-d / largest) for n, d in zip(sizes, distance, strict=True)]
    columns = zip(*models.tolist(), strict=True)
    return [
        sum(w * v for w, v in zip(weight, column, strict=True)) / sum(weight) for column in columns
    ]


@pytest.mark.numerics
@pytest.mark.parametrize("flags", [(1, 0, 1), (0, 1, 0), (0, 0, 0), (1, 1, 1), (1, -1, 1)])
@pytest.mark.parametrize("count", [6, 4])
@pytest.mark.parametrize("alike", [False, True])
def test_the_server_against_the_reference(flags: tuple, count: int, alike: bool) -> None:
    method, sizes = make_method("fednoro"), [10, 25, 40]
    models = derive(0, "models").normal(size=(3, 6)).astype(np.float32)
    if alike:
        models[:] = models[0]
    server = Server(torch.zeros(6), method, Layout(count))
    server.memory["noisy"] = np.array(flags, np.int8)
    server.finish_round(
        report(k, None, torch.from_numpy(models[k]), sizes[k]) for k in reversed(range(3))
    )
    noisy = [flag == NOISY for flag in flags]
    expected = reference_mean(models, sizes, noisy, count)
    np.testing.assert_allclose(server.model, expected, atol=1e-6)


@pytest.mark.numerics
def test_the_weights_of_distances_are_golden() -> None:
    """docs/methods.md 19: n = 100, 100, 200 and d = 0, 0.5, 2."""
    models = [torch.tensor([0.0]), torch.tensor([0.5]), torch.tensor([2.0])]
    factors = closeness(models, np.array([False, True, True]))
    weights = np.array([100, 100, 200]) * factors
    np.testing.assert_allclose(weights / weights.sum(), [0.397684, 0.309717, 0.292599], atol=1e-6)


@pytest.mark.numerics
def test_distances_count_with_the_uniform_mean_too() -> None:
    method = make_method("fednoro")
    object.__setattr__(method.plan, "aggregator", "uniform")
    server = make_server(method, size=1)
    server.memory["noisy"] = np.array([0, 1, 1], np.int8)
    models = [torch.tensor([v]) for v in (0.0, 0.5, 2.0)]
    server.finish_round(report(k, None, models[k], 10 * k + 10) for k in range(3))
    factors = [1, math.exp(-0.25), math.exp(-1)]
    expected = (0.5 * factors[1] + 2 * factors[2]) / sum(factors)
    assert server.model.item() == pytest.approx(expected, abs=1e-6)


# ---- whole runs


def run(mask: str = "cells", clients: int = 3, noise: float = 0.2, **settings: Any) -> Trace:
    dataset = make_dataset()
    scenario = make_scenario(dataset, mask=mask, noise=noise, clients=clients)
    return simulate(make_config("fednoro", clients=clients, **settings), dataset, scenario)


@pytest.mark.parametrize("mask", ["none", "classes", "cells"])
def test_both_stages_are_run_in_the_tiny_federation(mask: str) -> None:
    trace = run(mask)
    assert [sorted(m.extras) for m in trace.sent] == [[], [], ["noisy"]]
    assert [sorted(r.extras) for r in trace.received] == 3 * [[]] + 3 * [
        ["evidence", "losses"]
    ] + 3 * [[]]
    flags = trace.sent[2].extras["noisy"]
    assert set(flags.tolist()) == {CLEAN, NOISY}
    assert [r.logs["noisy"] for r in trace.received] == [0] * 6 + flags.tolist()
    assert message_bytes(trace.sent[2]) - message_bytes(trace.sent[1]) == 3
    assert trace.received[3].extras["losses"].nbytes == 2 * 4 * 4
    patient = run(mask, warmup_rounds=9)
    assert torch.equal(trace.sent[2].model, patient.sent[2].model)
    assert not torch.equal(trace.vector, patient.vector)


def test_the_losses_told_are_those_of_the_received_model() -> None:
    trace = run("cells")
    simulation = trace.simulation
    for told, client in zip(trace.received[3:6], simulation.clients, strict=True):
        simulation.model.load(trace.sent[1].model)
        predicted = client.predict(simulation.model)
        expected = reference_losses(predicted, client.labels.observed, 1)
        np.testing.assert_allclose(told.extras["losses"], expected, atol=1e-6, rtol=1e-6)


def test_a_site_whose_labels_are_turned_around_is_found() -> None:
    dataset = make_dataset()
    scenario = make_scenario(dataset, clients=4)
    noisy = scenario.noisy.copy()
    noisy[scenario.rows(2)] = 1 - noisy[scenario.rows(2)]
    scenario = replace(scenario, noisy=noisy)
    settings = {"rounds": 8, "warmup_rounds": 6, "local_epochs": 3, "lr": 0.01}
    trace = simulate(make_config("fednoro", clients=4, **settings), dataset, scenario)
    assert trace.sent[-1].extras["noisy"].tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(
    "settings",
    [
        {"clients": 1},
        {"clients": 2, "warmup_rounds": 0},
        {"fraction": 0.4, "rounds": 6},
        {"param": {"min_cells": 1000}},
        {"param": {"fill_minimum": True}, "loss": "elr"},
        {"aggregator": "median", "local_epochs": 2},
        {"aggregator": "uniform", "batch_size": 64},
    ],
)
@pytest.mark.parametrize("mask", ["none", "classes", "cells"])
def test_hard_cases_end_well(mask: str, settings: dict) -> None:
    trace = run(mask, **settings)
    assert torch.isfinite(trace.vector).all()
    assert all(np.isfinite(r.logs["loss"]) for r in trace.received)


def test_a_federation_without_a_positive_and_a_site_without_a_label() -> None:
    dataset = make_dataset()
    scenario = make_scenario(dataset, mask="classes")
    annotated = scenario.annotated.copy()
    annotated[scenario.rows(1)] = False
    scenario = replace(scenario, noisy=np.zeros_like(scenario.noisy), annotated=annotated)
    trace = simulate(make_config("fednoro"), dataset, scenario)
    assert torch.isfinite(trace.vector).all()
    assert trace.sent[2].extras["noisy"][1] == CLEAN, "a site that tells nothing is not accused"
