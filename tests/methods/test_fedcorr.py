"""FedCorr against plain loops written from its equations (docs/methods.md 6.1)."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import cross_entropy, float32_tolerance, mean
from stand_ins import (
    WARMUP,
    C,
    N,
    TwoLayers,
    make_batch,
    make_client,
    make_method,
    make_server,
    message,
)
from stand_ins import predictions as make_predictions
from tiny import Trace, make_config, make_dataset, make_plan, make_scenario, simulate

from src.messages import Report
from src.methods.base import Method, parse_params
from src.methods.fedcorr import (
    FedCorr,
    doubted_images,
    largest_losses,
    local_dimensionality,
    mean_dimensionality,
    noise_levels,
    relabel,
)
from utils_.augment import mix_up
from utils_.labels import CORRECTED, LabelState
from utils_.mixture import mean_and_error, upper_group
from utils_.rng import derive

FIRST, SECOND = 19, 60  # ends of the stages of 100 rounds, of which 10 are the warm-up


def fedcorr(clients: int = 3, **settings: Any) -> FedCorr:
    param = settings.pop("param", {})
    plan = make_plan(**{"clients": clients, "rounds": 100, "warmup_rounds": 0} | settings)
    return FedCorr(plan, parse_params(FedCorr, param))


# ---- the dimension of predictions


def reference_dimension(vectors: np.ndarray, i: int, k: int) -> float | None:
    distances = sorted(math.dist(vectors[i], other) for other in vectors.tolist())
    distances = [d for d in distances if d > 0][:k]
    if len(distances) < 2 or distances[0] == distances[-1]:
        return None
    return -len(distances) / sum(math.log(d / distances[-1]) for d in distances)


@pytest.mark.numerics
@pytest.mark.parametrize("neighbours", [2, 3, 20])  # 20 is more than there are
def test_dimension_against_the_reference(neighbours: int) -> None:
    vectors = make_predictions(1).astype(np.float64)
    vectors[3] = vectors[4] = vectors[0]  # copies
    found = local_dimensionality(vectors, neighbours=neighbours)
    expected = [reference_dimension(vectors, i, neighbours) for i in range(N)]
    assert None not in expected
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    error = np.std(expected) / math.sqrt(N)
    told = mean_dimensionality(vectors, neighbours=neighbours)
    assert told == pytest.approx((mean(expected), error))


@pytest.mark.numerics
def test_dimension_golden_value() -> None:
    line = np.concatenate([[0], np.arange(1, 21) / 20])[:, None]
    assert local_dimensionality(line, neighbours=20)[0] == pytest.approx(1.13772, abs=1e-5)


def test_dimension_of_large_sites_does_not_depend_on_the_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors = derive(0, "vectors").random((50, 3))
    whole = local_dimensionality(vectors, neighbours=5)
    monkeypatch.setattr("src.methods.fedcorr.DISTANCES", 120)
    np.testing.assert_array_equal(local_dimensionality(vectors, neighbours=5), whole)


def test_dimension_tells_a_line_from_a_cube() -> None:
    draw = derive(0, "cloud")
    line = np.outer(draw.random(400), np.ones(6))
    for cloud, dimension in ((line, 1), (draw.random((400, 6)), 6)):
        assert mean_dimensionality(cloud, neighbours=20)[0] == pytest.approx(dimension, rel=0.35)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "vectors",
    [
        np.zeros((0, 3)),
        np.zeros((1, 3)),
        np.eye(2),  # one neighbour
        np.ones((9, 3)),  # copies only
        np.eye(4),  # all equally far
        np.array([[0.0, 0], [0, 0], [1, 1]]),  # one neighbour and a copy
    ],
)
def test_dimension_is_undefined_where_it_has_no_answer(vectors: np.ndarray) -> None:
    found = local_dimensionality(vectors, neighbours=20)
    assert found.shape == (len(vectors),) and np.isnan(found).all()
    assert np.isnan(mean_dimensionality(vectors, neighbours=20)).all()


# ---- two groups


def test_two_groups_of_numbers() -> None:
    draw = derive(0, "groups")
    values = np.concatenate([draw.normal(0, 1, 60), draw.normal(9, 2, 30), [np.nan]])
    found = upper_group(values, seed=1)
    assert (found[:60] < 0.5).all() and (found[60:90] > 0.5).all() and found[90] == 0
    np.testing.assert_array_equal(found, upper_group(values, seed=1))


def test_a_wide_group_does_not_claim_the_other_end() -> None:
    """Trap: far below a narrow lower group, the wide upper one has the larger density."""
    draw = derive(0, "groups")
    values = np.concatenate([draw.normal(0, 0.01, 100), draw.normal(5, 2, 100), [-0.5]])
    found = upper_group(values, seed=0)
    assert found[-1] == 0 and (found[100:200] > 0.5).mean() > 0.9
    assert (upper_group(-values, seed=0)[100:200] < 0.5).mean() > 0.9


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [[], [3], [2, 2, 2], [np.nan, 5], [np.nan] * 3, [1, 1 + 1e-15]])
def test_nothing_to_tell_apart(values: list) -> None:
    np.testing.assert_array_equal(upper_group(np.array(values, float), seed=0), 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("lid", "noisy"),
    [
        ([1, 2], [1]),
        ([5, 1, 1], [0]),
        ([1.0, 1.1, 9.0, 9.3], [2, 3]),
        ([np.nan, 1, 2], [2]),
        ([7], []),
        ([7, 7, 7, 7], []),
        ([np.nan, np.nan], []),
    ],
)
def test_noisy_sites_with_few_clients(lid: list, noisy: list) -> None:
    """Never all: the lower group has the smallest."""
    scores = np.stack([lid, np.full(len(lid), 0.01)], axis=-1)[None].repeat(3, axis=0)
    memory = {"lid": scores, "told_level": np.linspace(0.2, 0.5, len(lid))}
    found = noise_levels(memory, seed=0, alpha=1)
    np.testing.assert_array_equal(np.flatnonzero(found), noisy)
    np.testing.assert_allclose(found[noisy], memory["told_level"][noisy], rtol=1e-6)
    assert not noise_levels(memory, seed=0, alpha=0).any()


@pytest.mark.parametrize(("error", "noisy"), [(0.01, [2, 3]), (3.0, [])])
def test_sites_no_farther_apart_than_by_chance_are_clean(error: float, noisy: list) -> None:
    scores = np.stack([[1.0, 1.1, 2.0, 2.1], np.full(4, error)], axis=-1)[None]
    memory = {"lid": scores, "told_level": np.full(4, 0.3)}
    found = noise_levels(memory, seed=0, alpha=0.01)
    assert np.flatnonzero(found).tolist() == noisy


def test_means_and_errors_against_the_reference() -> None:
    """Residuals of sites and iterations, by hand; an iteration to come is not known."""
    draw = derive(0, "scores")
    scores = np.stack([draw.normal(5, 1, (4, 3)), draw.uniform(0.1, 0.5, (4, 3))], axis=-1)
    scores[3] = np.nan
    mean_found, error_found = mean_and_error(scores)
    lid = scores[:3, :, 0].tolist()
    by_site = [mean(row[k] for row in lid) for k in range(3)]
    by_turn, overall = [mean(row) for row in lid], mean(mean(row) for row in lid)
    rest = [
        (lid[i][k] - by_site[k] - by_turn[i] + overall) ** 2 for i in range(3) for k in range(3)
    ]
    for k in range(3):
        images = mean(float(scores[i, k, 1]) ** 2 for i in range(3))
        assert mean_found[k] == pytest.approx(by_site[k])
        assert error_found[k] == pytest.approx(math.sqrt(images + sum(rest) / 4 / 3))


# ---- losses and labels of a site


def test_losses_against_the_reference() -> None:
    labels, predicted = LabelState(np.full((N, C), np.nan)), make_predictions(2)
    assert doubted_images(predicted, labels, seed=0)[1] == 0
    client = make_client()
    observed = client.labels.observed.copy()
    observed[5] = np.nan
    labels = LabelState(observed)
    labels.correct(labels.annotated & (np.arange(N) == 2)[:, None], np.full((N, C), 0.25))
    (loss, posterior), share = doubted_images(predicted, labels, seed=0)
    cell = {}
    for i, c in np.argwhere(labels.annotated).tolist():
        p = min(max(float(predicted[i, c]), 1e-7), 1 - 1e-7)
        cell[i, c] = cross_entropy(math.log(p / (1 - p)), float(labels.target[i, c]))
    kind = {(i, c): (c, bool(labels.target[i, c] > 0.5)) for i, c in cell}
    usual = {k: mean(cell[at] for at in cell if kind[at] == k) for k in set(kind.values())}
    for i in range(N):
        above = [cell[at] - usual[kind[at]] for at in cell if at[0] == i]
        assert loss[i] == pytest.approx(mean(above), abs=1e-5) if above else math.isnan(loss[i])
    np.testing.assert_allclose(posterior, upper_group(loss, seed=0), atol=1e-6)
    known = labels.annotated.any(axis=1)
    assert not known[5] and 0 < share < 1
    assert share == pytest.approx((posterior > 0.5).sum() / known.sum())


def test_the_images_of_largest_loss() -> None:
    loss = np.array([3, np.nan, 1, 5, 4, 4])
    assert np.flatnonzero(largest_losses(loss, 0.4)).tolist() == [3, 4]
    assert np.flatnonzero(largest_losses(loss, 0.6)).tolist() == [3, 4, 5]
    assert not largest_losses(loss, 0.19).any() and not largest_losses(loss[:0], 1).any()
    assert np.flatnonzero(largest_losses(loss, 1)).tolist() == [0, 2, 3, 4, 5]


def reference_relabel(
    observed: np.ndarray, images: list[int], predicted: np.ndarray, bar: float, balanced: bool
) -> np.ndarray:
    result = observed.copy()
    for i in images:
        for c in range(C):
            y, p = float(observed[i, c]), float(predicted[i, c])
            if math.isnan(y):
                continue
            column = [float(v) for v in observed[:, c] if not math.isnan(v)]
            share = min(max(mean(column), 1e-4), 0.5) if balanced else 0.5
            odds = (1 - bar) / bar * share / (1 - share)
            if p > bar:
                result[i, c] = 1
            elif p < odds / (1 + odds):
                result[i, c] = 0
    return result


@pytest.mark.numerics
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("bar", [0.5, 0.7, 0.9])
def test_relabelling_against_the_reference(bar: float, balanced: bool) -> None:
    labels, predicted = make_client().labels, make_predictions(3)
    images = np.arange(N) % 3 > 0
    expected = reference_relabel(
        labels.observed, np.flatnonzero(images).tolist(), predicted, bar, balanced
    )
    relabel(labels, images, predicted, confidence=bar, balanced=balanced)
    known = labels.annotated
    np.testing.assert_array_equal(labels.target[known], expected[known])
    np.testing.assert_array_equal(labels.weight, known)
    assert (labels.status == CORRECTED).sum() > 3


def test_rare_findings_outlive_predictions_below_half() -> None:
    """Trap: half as the bar of a binary cell, or 0.1 for a finding of 1 %, deletes them all."""
    observed = np.zeros((200, 1), np.float32)
    observed[:2] = 1
    predicted, everything = np.full((200, 1), 0.02, np.float32), np.ones(200, bool)
    kept, lost = LabelState(observed), LabelState(observed)
    relabel(kept, everything, predicted, confidence=0.9, balanced=True)
    relabel(lost, everything, predicted, confidence=0.9, balanced=False)
    assert kept.target.sum() == 2 and lost.target.sum() == 0


# ---- the objective


def reference_loss(
    method: FedCorr, client: Any, batch: Any, model: Any, level: float, *, step: int, round: int
) -> float:
    draw = derive(method.plan.seed, "mixup", client.index, round, step)
    share = draw.beta(method.params.mixup, method.params.mixup)
    share, partner = max(share, 1 - share), draw.permutation(len(batch.rows))
    total = weights = 0.0
    for b, other in enumerate(partner):
        image = share * batch.images[b] + (1 - share) * batch.images[other]
        logits = model.forward(image[None])[0].tolist()
        for i, part in ((b, share), (other, 1 - share)):
            for c in range(C):
                weight = part * float(batch.weight[i, c])
                total += weight * cross_entropy(logits[c], float(batch.target[i, c]))
                weights += weight
    received = client.cache["received"].tolist()
    moved = zip(model.parameters.tolist(), received, strict=True)
    distance = sum((w - r) ** 2 for w, r in moved)
    return total / weights + method.params.proximal * level * distance


@pytest.mark.numerics
@pytest.mark.parametrize(("round", "level"), [(0, 0.0), (12, 0.4), (18, 0.4), (19, 0.4), (60, 0.4)])
def test_the_objective_against_the_reference(round: int, level: float) -> None:
    method, client, model = make_method("fedcorr", proximal=5), make_client(), TwoLayers()
    client.round, client.predicted = round, make_predictions(0)
    levels = np.array([level, 0.9, 0], np.float32)
    method.before_local(client, model, message(round, noise_level=levels))
    with torch.no_grad():
        model.parameters += 0.1
    used = level if round < FIRST else 0
    for step in (0, 1):
        batch = replace(make_batch(client, [7, 2, 0, 10, 4]), step=step)
        found = method.loss(client, model, batch, message(round))
        expected = reference_loss(method, client, batch, model, used, step=step, round=round)
        terms = 4 * len(batch.rows) * C  # two labels a cell, and as many steps
        assert found.item() == pytest.approx(expected, abs=float32_tolerance(terms, expected))
    (gradient,) = torch.autograd.grad(found, model.parameters)
    plain = method.__class__(method.plan, parse_params(FedCorr, {"proximal": 0}))
    (alone,) = torch.autograd.grad(
        plain.loss(client, model, batch, message(round)), model.parameters
    )
    torch.testing.assert_close(gradient, alone + 2 * 5 * used * 0.1, atol=1e-5, rtol=0)


def test_without_mixup_the_batch_is_left_alone() -> None:
    batch = make_batch(make_client(), [1, 2, 3])
    assert mix_up(batch, alpha=0, draw=derive(0, "x")) is batch


def test_mixup_keeps_unknown_cells_unknown() -> None:
    batch = make_batch(make_client(), list(range(N)))
    mixed = mix_up(batch, alpha=1.0, draw=derive(0, "x"))
    assert not mixed.weight[:, 3].any() and not mixed.target[:, 3].any()  # annotated nowhere
    assert float(mixed.target.min()) >= 0 and float(mixed.target.max()) <= 1
    assert mixed.weight.sum() == pytest.approx(float(batch.weight.sum()), rel=1e-5)
    assert ((mixed.target > 0) & (mixed.target < 1)).any()
    np.testing.assert_array_equal(mixed.rows, batch.rows)


# ---- stages


@pytest.mark.parametrize(
    ("rounds", "clients", "settings", "expected"),
    [
        (100, 4, {}, (1, 10, 55)),
        (3, 3, {}, (1, 1, 2)),  # all three stages
        (1, 3, {}, (1, 1, 1)),
        (100, 4, {"param": {"at_once": 0}}, (4, 12, 57)),  # 2.5 iterations: 3
        (100, 5, {"fraction": 0.4}, (3, 9, 54)),
        (8, 100, {"fraction": 0.01}, (100, 100, 104)),
        (100, 4, {"warmup_rounds": 10}, (1, 19, 60)),  # 9 and 40.5 of 90: 9 and 41
        (100, 4, {"warmup_rounds": 10, "param": {"at_once": 0}}, (4, 18, 59)),
        (3, 3, {"warmup_rounds": 3}, (1, 4, 4)),
    ],
)
def test_stages_are_shares_of_the_rounds(
    rounds: int, clients: int, settings: dict, expected: tuple
) -> None:
    assert fedcorr(clients, rounds=rounds, **settings).schedule() == expected


@pytest.mark.parametrize(("clients", "at_once"), [(5, 0.0), (5, 0.4), (5, 1.0), (1, 1.0)])
def test_an_iteration_visits_every_site_once(clients: int, at_once: float) -> None:
    method = fedcorr(clients, param={"at_once": at_once})
    visits, first, _ = method.schedule()
    orders = []
    for start in range(0, first, visits):
        parts = [method.select(SimpleNamespace(round=start + i)) for i in range(visits)]
        assert all(part == sorted(part) and part for part in parts)
        orders.append([site for part in parts for site in part])
        assert sorted(orders[-1]) == list(range(clients))
    assert at_once == 1 or len({tuple(order) for order in orders}) > 1


def test_the_warm_up_is_fedavg_s() -> None:
    method, plain = fedcorr(5, fraction=0.4, warmup_rounds=6), fedcorr(5, fraction=0.4)
    server = make_server(method)
    usual = [Method.select(method, SimpleNamespace(round=r)) for r in range(6)]
    assert [method.select(SimpleNamespace(round=r)) for r in range(6)] == usual
    turns = [method.select(SimpleNamespace(round=r)) for r in range(6, 9)]
    assert turns == [plain.select(SimpleNamespace(round=r)) for r in range(3)]
    client = make_client(predicted=make_predictions(4))
    assert method.after_local(client, TwoLayers(), message(5)) == {} and not client.memory
    method.after_round(server, [Report(0, 9, None, {})])
    assert not server.memory


def test_the_second_stage_is_for_sites_of_little_noise() -> None:
    method = fedcorr(5, fraction=0.4)
    memory = {"noise_level": np.array([0, 0.3, 0.1, 0, 0.11], np.float32)}
    _, first, second = method.schedule()
    chosen = [method.select(SimpleNamespace(round=r, memory=memory)) for r in range(first, second)]
    assert {site for pair in chosen for site in pair} == {0, 2, 3}
    assert all(len(set(pair)) == 2 for pair in chosen)
    one = fedcorr(5, fraction=1.0)
    assert one.select(SimpleNamespace(round=one.schedule()[1], memory=memory)) == [0, 2, 3]
    chosen = [method.select(SimpleNamespace(round=r, memory=memory)) for r in range(second, 100)]
    assert {site for pair in chosen for site in pair} == {0, 1, 2, 3, 4}


def test_the_server_s_rule_against_the_reference() -> None:
    """Two sites of low and two of high dimension, two at a time."""
    method = fedcorr(4, param={"at_once": 0.5, "alpha": 1})
    server, draw = make_server(method), derive(0, "told")
    sums, latest = [0.0] * 4, [0.0] * 4
    for round in range(6):
        server.round = round
        before = method.extras(server)["noise_level"]
        reports = []
        for k in method.select(server):
            lid, latest[k] = draw.random() + (5 if k > 1 else 0), draw.random()
            sums[k] += lid
            extras = {"lid": np.array([lid, 0.1]), "noise_level": np.array(latest[k])}
            reports.append(Report(k, 9, None, extras))
        method.after_round(server, reports[::-1])
        np.testing.assert_allclose(np.nansum(server.memory["lid"][..., 0], axis=0), sums)
        found = method.extras(server)["noise_level"]
        expected = [0, 0, *latest[2:]] if round % 2 else before  # at the end of an iteration
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    server.round = method.schedule()[1]
    method.after_round(server, [Report(0, 9, None, {})])
    np.testing.assert_array_equal(method.extras(server)["noise_level"], found)


def test_a_site_of_unknown_dimension_is_not_counted() -> None:
    method = fedcorr(3)
    server = make_server(method)
    for server.round, lid in enumerate((math.nan, 2.0), method.plan.warmup_rounds):
        extras = {"lid": np.array([lid, 0.1]), "noise_level": np.array(0.3)}
        method.after_round(server, [Report(0, 9, None, extras)])
    assert np.argwhere(np.isfinite(server.memory["lid"][..., 0])).tolist() == [[1, 0]]
    assert not server.memory["noise_level"].any()


def test_a_noisy_site_acts_once_on_an_iteration() -> None:
    method = make_method("fedcorr", relabel=0.8, confidence=0.6, warmup=0)
    client, model = make_client(), TwoLayers()
    client.predicted = make_predictions(4)
    assert "lid" in method.after_local(client, model, message(0))
    loss, posterior = client.memory["losses"].copy()
    level = np.array([0.5, 0, 0], np.float32)
    predicted = client.predicted = make_predictions(5)
    method.before_local(client, model, message(1, noise_level=level))
    worst = sorted(range(N), key=lambda i: -loss[i])[: int(0.5 * 0.8 * N)]
    expected = reference_relabel(client.labels.observed, worst, predicted, 0.6, True)
    known = client.labels.annotated
    np.testing.assert_array_equal(client.labels.target[known], expected[known])
    assert (client.labels.status == CORRECTED).any()
    np.testing.assert_array_equal(client.memory["noise_score"], posterior)
    before = client.labels.target.copy()
    method.before_local(client, model, message(20, noise_level=level))
    np.testing.assert_array_equal(client.labels.target, before)
    assert method.after_local(client, model, message(20)) == {}


def test_a_clean_site_keeps_its_labels() -> None:
    method, client, model = make_method("fedcorr", confidence=0.5), make_client(), TwoLayers()
    client.predicted = make_predictions(4)
    method.after_local(client, model, message(WARMUP))
    for round in (WARMUP + 1, 20, 60, 61):
        method.before_local(client, model, message(round, noise_level=np.zeros(3, np.float32)))
    assert not (client.labels.status == CORRECTED).any()
    np.testing.assert_array_equal(client.memory["noise_score"], 0)


def test_a_noisy_site_relabels_everything_sure_once_after_the_second_stage() -> None:
    method, client, model = make_method("fedcorr"), make_client(), TwoLayers()
    client.predicted = make_predictions(6)
    levels = np.array([0.11, 0, 0], np.float32)
    method.before_local(client, model, message(SECOND - 1, noise_level=levels))
    assert not (client.labels.status == CORRECTED).any()
    method.before_local(client, model, message(SECOND + 3, noise_level=levels))
    observed, known = client.labels.observed, client.labels.annotated
    expected = reference_relabel(observed, list(range(N)), client.predicted, 0.9, True)
    np.testing.assert_array_equal(client.labels.target[known], expected[known])
    client.predicted = make_predictions(7)
    method.before_local(client, model, message(SECOND + 4, noise_level=levels))
    np.testing.assert_array_equal(client.labels.target[known], expected[known])


# ---- whole runs


def run(workers: str = "1", **param: Any) -> Trace:
    dataset = make_dataset()
    scenario = make_scenario(dataset, mask="cells", noise=0.3)
    stages = {"preprocessing": 0.5, "finetuning": 0.25}
    settings = {"rounds": 9, "warmup_rounds": 1, "workers": workers, "lr": 0.01}
    config = make_config("fedcorr", **settings, param=stages | param)
    return simulate(config, dataset, scenario)


@pytest.mark.parametrize("at_once", [1.0, 0.0])
def test_all_stages_run(at_once: float) -> None:
    trace = run(at_once=at_once)
    assert torch.isfinite(trace.vector).all()
    levels = [m.extras["noise_level"] for m in trace.sent]
    assert all(0 < (found > 0).sum() < 3 for found in levels[-4:])
    first, second = trace.simulation.method.schedule()[1:]
    assert 1 < first < second < 9
    assert any("lid" in r.extras for r in trace.received)
    per_round = [
        int(row["bytes_up"] // (4 * trace.vector.numel())) for row in trace.simulation.history
    ]
    clean = int((levels[first] <= 0).sum())
    together = 3 if at_once else 1
    alone = [together] * (first - 1)
    assert per_round == [3, *alone, *[clean] * (second - first), *[3] * (9 - second)]
    noisy = np.max(levels, axis=0) > 0  # at any time
    status = [(client.labels.status == CORRECTED).any() for client in trace.simulation.clients]
    assert any(status) and all(noisy[status])


def test_one_site_at_a_time_hands_the_model_on() -> None:
    trace = run(at_once=0.0)
    first = trace.simulation.method.schedule()[1]
    later = [*(m.model for m in trace.sent[2:]), trace.vector]
    for report, model in zip(trace.received[3 : 2 + first], later, strict=False):
        torch.testing.assert_close(model, report.model, rtol=0, atol=0)


def test_workers_do_not_matter_in_any_stage() -> None:
    one, two = run(), run(workers="2")
    assert torch.equal(one.vector, two.vector)
    assert one.crossed() == two.crossed()
    assert one.labels() == two.labels()


def test_one_site_is_never_noisy() -> None:
    dataset = make_dataset()
    scenario = make_scenario(dataset, clients=1, noise=0.3)
    trace = simulate(make_config("fedcorr", clients=1), dataset, scenario)
    assert not any(m.extras["noise_level"].any() for m in trace.sent)
