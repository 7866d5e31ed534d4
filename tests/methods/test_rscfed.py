"""RSCFed against loops written from docs/methods.md 11 and its docstring."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import cross_entropy, float32_tolerance, mean, sigmoid
from stand_ins import (
    WARMUP,
    C,
    TwoLayers,
    make_batch,
    make_client,
    make_method,
    make_server,
    message,
)
from tiny import make_config, make_scenario, simulate

from src.messages import ANNOTATED_CELLS, Report
from src.methods.rscfed import distance_weighted, draw_groups
from utils_.datasets.base import ImageDataset
from utils_.rng import derive

ROWS = [3, 0, 7, 11, 5]
TERMS = 4 * len(ROWS) * C  # cells of two views, and as many steps


# ---- the client


def reference_loss(method: Any, client: Any, batch: Any, model: TwoLayers, teacher: Any) -> float:
    weak, strong = model.forward(batch.images).tolist(), model.forward(batch.second).tolist()
    taught = model.forward(batch.images, torch.from_numpy(teacher).float()).tolist()
    supervised, apart = [], []
    for b, row in enumerate(batch.rows):
        for c in range(C):
            if client.labels.annotated[row, c]:
                supervised.append(cross_entropy(weak[b][c], float(batch.target[b, c])))
            else:
                p = sigmoid(taught[b][c])
                power = method.params.sharpening
                p = p**power / (p**power + (1 - p) ** power)
                apart.append((sigmoid(strong[b][c]) - p) ** 2)
    return mean(supervised) + method.params.consistency * mean(apart)


@pytest.mark.numerics
@pytest.mark.parametrize("param", [{}, {"ema": 0.6, "consistency": 2.5, "sharpening": 2}])
def test_teacher_and_objective_against_the_reference(param: dict) -> None:
    """Three rounds of three steps; the teacher is drawn along after every step, across rounds."""
    method, client = make_method("rscfed", **param), make_client()
    draw, steps, teacher = derive(0, "steps"), 0, None
    for round in range(WARMUP, WARMUP + 3):
        model = TwoLayers(round)
        teacher = model.vector.numpy().astype(float) if teacher is None else teacher
        method.before_local(client, model, message(round))
        for step in range(3):
            batch = make_batch(client, ROWS, seed=step)
            expected = reference_loss(method, client, batch, model, teacher)
            found = method.loss(client, model, batch, message(round)).item()
            assert found == pytest.approx(expected, abs=float32_tolerance(TERMS, expected))
            atol = float32_tolerance(4 * (steps + 1), teacher)  # a running mean
            np.testing.assert_allclose(client.asked[-1][0], teacher, rtol=0, atol=atol)
            assert client.asked[-1][1] is batch.images, "the teacher sees the weak view"
            model.vector += torch.from_numpy(draw.normal(size=len(teacher)) / 5)
            method.after_step(client, model, message(round))
            steps += 1
            keep = min(1 - 1 / steps, method.params.ema)
            teacher = keep * teacher + (1 - keep) * model.vector.numpy()
        assert method.after_local(client, model, message(round)) == {}
        atol = float32_tolerance(4 * steps, teacher)
        np.testing.assert_allclose(client.memory["teacher"], teacher, rtol=0, atol=atol)
        client.cache = {}
    assert client.memory["teacher_steps"] == 9


def test_the_warm_up_is_fedavg_without_a_teacher() -> None:
    method, client, model = make_method("rscfed"), make_client(), TwoLayers()
    batch, told = make_batch(client, ROWS), message(WARMUP - 1)
    method.before_local(client, model, told)
    expected = make_method("fedavg").loss(client, model, batch, told)
    assert method.loss(client, model, batch, told).item() == expected.item()
    method.after_local(client, model, told)
    assert not client.memory
    assert not client.asked


def test_no_gradient_flows_through_the_weak_view_of_missing_cells() -> None:
    method, client, model = make_method("rscfed"), make_client(), TwoLayers()
    batch = make_batch(client, ROWS)
    batch.weight.zero_()
    batch.images.requires_grad_()
    batch.second.requires_grad_()
    method.before_local(client, model, message(WARMUP))
    method.loss(client, model, batch, message(WARMUP)).backward()
    assert batch.images.grad.abs().max() == 0
    assert batch.second.grad.abs().max() > 0


# ---- the server


def make_reports(clients: int, *, size: int = 6, seed: int = 0) -> list[Report]:
    draw = derive(seed, "reports")
    models = torch.from_numpy(draw.normal(size=(clients, size)).astype(np.float32))
    images = draw.integers(20, 90, clients).tolist()
    return [Report(k, images[k], models[k]) for k in range(clients)]


def reference_consensus(reports: list[Report], strength: float, own: int) -> list[float]:
    models = [report.model.tolist() for report in reports]
    images = [report.samples for report in reports]
    size, total = len(models[0]), sum(images)
    centre = [
        sum(n * m[i] for n, m in zip(images, models, strict=True)) / total for i in range(size)
    ]
    weights = []
    for n, m in zip(images, models, strict=True):
        distance = math.sqrt(sum((m[i] - centre[i]) ** 2 for i in range(own)))
        weights.append(n / total * math.exp(-strength * distance / n))
    return [
        sum(w * m[i] for w, m in zip(weights, models, strict=True)) / sum(weights)
        for i in range(size)
    ]


@pytest.mark.numerics
@pytest.mark.parametrize("clients", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("param", [{}, {"groups": 3, "group_share": 0.5, "distance": 10}])
def test_the_server_rule_against_the_reference(clients: int, param: dict) -> None:
    method, reports = make_method("rscfed", **param), make_reports(clients)
    params, round = method.params, WARMUP + 2
    draw = derive(method.plan.seed, "groups", round)
    size = max(1, math.ceil(round_off(params.group_share * clients)))
    models = []
    for _ in range(params.groups):
        group = draw.choice(clients, size, replace=False)
        models.append(reference_consensus([reports[k] for k in group], params.distance, 6))
    expected = [mean(model[i] for model in models) for i in range(6)]
    found = method.aggregate(make_server(method, round=round), iter(reports))
    np.testing.assert_allclose(found, expected, rtol=0, atol=float32_tolerance(4, expected))
    backwards = method.aggregate(make_server(method, round=round), reversed(reports))
    assert torch.equal(found, backwards)


def round_off(number: float) -> float:
    return float(f"{number:.9f}")


def test_groups_of_four_clients_differ_and_leave_somebody_out() -> None:
    groups = draw_groups(4, share=0.6, times=10, draw=derive(0, "groups"))
    assert {len(group) for group in groups} == {3}
    assert len({tuple(group) for group in groups}) == 4
    assert draw_groups(5, share=0.6, times=1, draw=derive(0, "x"))[0] == sorted(
        derive(0, "x").choice(5, 3, replace=False)
    )
    assert draw_groups(1, share=0.0, times=2, draw=derive(0, "x")) == [[0], [0]]


def test_every_round_draws_other_groups() -> None:
    method, reports = make_method("rscfed"), make_reports(4)
    found = [method.aggregate(make_server(method, round=t), reports) for t in (WARMUP, WARMUP + 1)]
    assert not torch.equal(*found)


@pytest.mark.numerics
def test_one_group_of_all_without_distance_is_fedavg() -> None:
    method = make_method("rscfed", group_share=1, distance=0)
    reports, round = make_reports(4), WARMUP
    found = method.aggregate(make_server(method, round=round), reports)
    expected = make_method("fedavg").aggregate(make_server(method, round=round), reports)
    torch.testing.assert_close(found, expected, rtol=0, atol=float32_tolerance(4, expected))


@pytest.mark.numerics
def test_models_far_apart_do_not_underflow() -> None:
    """The trap: exp(-100 * 1e4 / 10) is 0 for everybody, and 0/0 is not a model."""
    models = [torch.full((4,), value) for value in (0.0, 1e4, 3e4)]
    found = distance_weighted(models, [10, 10, 10], strength=100, own=4)
    assert torch.equal(found, models[1]), "the one nearest to the mean"


@pytest.mark.numerics
def test_distances_are_those_of_the_parameters() -> None:
    models = [torch.tensor([0.0, 900.0]), torch.tensor([1.0, 0.0]), torch.tensor([5.0, 0.0])]
    reports = [Report(k, 10, model) for k, model in enumerate(models)]
    found = distance_weighted(models, [10, 10, 10], strength=20, own=1)
    expected = reference_consensus(reports, 20, 1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=float32_tolerance(8, expected))


def test_the_warm_up_aggregates_as_fedavg() -> None:
    method, reports = make_method("rscfed"), make_reports(4)
    found = method.aggregate(make_server(method, round=WARMUP - 1), reports)
    expected = make_method("fedavg").aggregate(make_server(method), reports)
    assert torch.equal(found, expected)


def test_counts_of_a_group_are_those_of_its_members() -> None:
    """So that --aggregator classwise weighs head rows by what the group has seen."""
    method = make_method("rscfed")
    group = [
        Report(k, 10, torch.ones(6), {ANNOTATED_CELLS: np.full(C, k)}, credit=0.5) for k in (1, 3)
    ]
    joined = method._as_report(make_server(method), group, 7)
    assert joined.extras[ANNOTATED_CELLS].tolist() == [4] * C
    assert (joined.client, joined.samples, joined.credit) == (7, 1, 1)


def test_the_teacher_lasts_and_teaches_at_tiny_size(dataset: ImageDataset) -> None:
    scenario = make_scenario(dataset, mask="cells")
    trace = simulate(make_config("rscfed"), dataset, scenario)
    for client in trace.simulation.clients:
        steps = 2 * math.ceil(len(client) / 8)  # two rounds after the warm-up
        assert client.memory["teacher_steps"].tolist() == [steps]
        assert client.memory["teacher"].shape == trace.vector.shape
    alone = simulate(make_config("rscfed", param={"consistency": 0.0}), dataset, scenario)
    assert not torch.equal(trace.vector, alone.vector)
