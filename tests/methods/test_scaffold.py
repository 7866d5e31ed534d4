"""SCAFFOLD against plain loops written from the paper's algorithm and its docstring."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import float32_tolerance
from tiny import Trace, make_config, make_dataset, make_plan, make_scenario, simulate

from src.aggregation import Layout
from src.messages import Broadcast, Report, message_bytes
from src.methods.base import parse_params
from src.methods.scaffold import Scaffold
from src.models import FlatAdamW
from src.server import Server
from utils_.rng import derive

P, K, STEPS, LR, DECAY = 5, 3, 4, 0.1, 0.05
NOISE = {"spread": 0.3}  # spread of the mini-batches' gradients
EQUAL, UNEQUAL = (10, 10, 10), (8, 30, 5)
# The clients of each round: all, some, one who was away.
SELECTED = [[0, 1, 2], [0, 2], [1], [0, 1, 2], [1, 2], [0, 1, 2]]
LATE = [[0, 2], [0], [2], [0, 1], [0, 1, 2]]


def make_method(clients: int = K, **param: Any) -> Scaffold:
    return Scaffold(make_plan(clients=clients, lr=LR), parse_params(Scaffold, param))


def slope(client: int, round: int, step: int) -> np.ndarray:
    """(P, P + 1): a mini-batch's gradient is a linear function of the parameters."""
    curvature = np.diag(derive(client, "curvature").uniform(0.2, 2, P))
    shift = derive(client, "shift").normal(0, 3, P)
    noise = derive(client, "noise", round, step).normal(0, NOISE["spread"], P)
    return np.column_stack([curvature, shift + noise])


def gradient_of(client: int, round: int, step: int, at: list[float]) -> list[float]:
    table = slope(client, round, step).tolist()
    return [sum(table[i][j] * at[j] for j in range(P)) + table[i][P] for i in range(P)]


# ---- the method on that problem


class Site:
    """What SCAFFOLD asks of a client."""

    def __init__(self, index: int, size: int) -> None:
        self.index, self.size = index, size
        self.memory: dict[str, np.ndarray] = {}
        self.cache: dict[str, Any] = {}

    def __len__(self) -> int:
        return self.size

    def train(self, method: Scaffold, message: Broadcast, optimizer: type, **options: Any) -> Any:
        vector = message.model.clone()
        parameters = vector.requires_grad_()
        parameters.grad = torch.zeros(P)
        model = SimpleNamespace(
            vector=vector,
            parameters=parameters,
            gradient=parameters.grad,
            parameter_count=P,
            device=vector.device,
        )
        self.cache = {}
        method.before_local(self, model, message)
        stepper = optimizer([parameters], lr=LR, **options)
        for step in range(STEPS):
            found = gradient_of(self.index, message.round, step, vector.tolist())
            model.gradient.copy_(torch.tensor(found))
            method.after_backward(self, model, message)
            stepper.step()
            method.after_step(self, model, message)
        extras = method.after_local(self, model, message)
        return Report(self.index, self.size, vector.detach(), extras)


def run(sizes: tuple, rounds: list, optimizer: type, *, options: Any, **param: Any) -> tuple:
    """All models of the server, and the sites at the end."""
    method = make_method(len(sizes), **param)
    server = Server(torch.zeros(P), method)
    sites = [Site(k, size) for k, size in enumerate(sizes)]
    models = []
    for selected in rounds:
        message = server.broadcast()
        server.finish_round(sites[k].train(method, message, optimizer, **options) for k in selected)
        models.append(server.model.tolist())
    return models, sites, server


# ---- the reference: lists of Python's floats


def sgd(way: list, corrected: list, state: dict) -> list:
    return [way[i] - LR * corrected[i] for i in range(P)]


def adamw(way: list, corrected: list, state: dict) -> list:
    """Loshchilov and Hutter, ICLR 2019."""
    state["t"] = t = state.get("t", 0) + 1
    first, second = state.setdefault("m", [0.0] * P), state.setdefault("v", [0.0] * P)
    after = []
    for i in range(P):
        first[i] = 0.9 * first[i] + 0.1 * corrected[i]
        second[i] = 0.999 * second[i] + 0.001 * corrected[i] ** 2
        root = math.sqrt(second[i] / (1 - 0.999**t)) + 1e-8
        decayed = way[i] * (1 - LR * DECAY)
        after.append(decayed - LR * first[i] / (1 - 0.9**t) / root)
    return after


def reference(sizes: tuple, rounds: list, stepper: Any, *, global_lr: float = 1) -> tuple:
    """Models of the server, c_i of the sites and c; weights are shares of all sites' images."""
    x, variates = [0.0] * P, [[0.0] * P for _ in sizes]
    c, seen, models = [0.0] * P, set(), []
    for round, selected in enumerate(rounds):
        ends = {}
        for k in selected:
            way, own, state, gradients = list(x), variates[k], {}, []
            for step in range(STEPS):
                gradients.append(gradient_of(k, round, step, way))
                way = stepper(way, gradients[-1], state)
                way = [way[i] - LR * (c[i] - own[i]) for i in range(P)]
            ends[k] = way
            if stepper is sgd:  # option II, as printed in the paper
                variates[k] = [own[i] - c[i] + (x[i] - way[i]) / (STEPS * LR) for i in range(P)]
            else:
                variates[k] = [sum(g[i] for g in gradients) / STEPS for i in range(P)]
        total = sum(sizes[k] for k in selected)
        mean = [sum(sizes[k] * ends[k][i] for k in selected) / total for i in range(P)]
        x = [x[i] + global_lr * (mean[i] - x[i]) for i in range(P)]
        seen |= set(selected)
        images = len(sizes) * sum(sizes[k] for k in seen) / len(seen)
        c = [sum(sizes[k] * variates[k][i] for k in range(len(sizes))) / images for i in range(P)]
        models.append(x)
    return models, variates, c


CASES = [
    (EQUAL, SELECTED, 1),
    (EQUAL, SELECTED, 0.5),
    (EQUAL, LATE, 1.5),
    (UNEQUAL, SELECTED, 1),
    (UNEQUAL, LATE, 0.7),
    (UNEQUAL[:1], [[0]] * 5, 1),
]
OPTIMIZERS = [
    (torch.optim.SGD, {}, sgd),
    (torch.optim.AdamW, {"weight_decay": DECAY}, adamw),
]


@pytest.mark.numerics
@pytest.mark.parametrize(("sizes", "rounds", "global_lr"), CASES)
@pytest.mark.parametrize(("optimizer", "options", "stepper"), OPTIMIZERS)
def test_rounds_against_the_reference(
    optimizer: type, options: dict, stepper: Any, sizes: tuple, rounds: list, global_lr: float
) -> None:
    found, sites, server = run(sizes, rounds, optimizer, options=options, global_lr=global_lr)
    models, variates, c = reference(sizes, rounds, stepper, global_lr=global_lr)
    for site in sites:
        make_method(len(sizes))._commit(site, server.broadcast())  # as the next round would begin
    terms = 4 * STEPS * len(rounds)
    atol = float32_tolerance(terms, models)
    np.testing.assert_allclose(found, models, rtol=0, atol=atol)
    own = [site.memory["variate"] / site.size for site in sites]
    atol = float32_tolerance(terms, variates)
    np.testing.assert_allclose(own, variates, rtol=0, atol=atol)
    np.testing.assert_allclose(make_method().extras(server)["variate"], c, rtol=0, atol=atol)
    assert np.abs(c).max() > 0.1


@pytest.mark.numerics
def test_with_sites_of_equal_size_the_rule_is_the_paper_s() -> None:
    """c + (1 / N) times the sum of the changes, x + (1 / |S|) times the sum of the ways."""
    method = make_method()
    server = Server(torch.ones(P), method)
    server.memory |= {"variate": np.full(P, 30, np.float32), "sizes": np.full(K, 10.0)}
    draw = derive(0, "changes")
    changes, ways = draw.normal(size=(2, 2, P)).astype(np.float32)
    server.finish_round(
        Report(k, 10, torch.ones(P) + torch.from_numpy(ways[k]), {"variate": 10 * changes[k]})
        for k in (0, 1)
    )
    atol = float32_tolerance(8, [ways, changes])
    expected = 1 + (ways[0] + ways[1]) / 2
    np.testing.assert_allclose(server.model, expected, rtol=0, atol=atol)
    expected = 1 + (changes[0] + changes[1]) / 3
    np.testing.assert_allclose(method.extras(server)["variate"], expected, rtol=0, atol=atol)


def test_the_drift_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites that pull to different places settle at the optimum of all; FedAvg beside it."""
    monkeypatch.setitem(NOISE, "spread", 0)
    curvature = np.array([slope(k, 0, 0)[:, :P].diagonal() for k in range(K)])
    shift = np.array([derive(k, "shift").normal(0, 3, P) for k in range(K)])
    optimum = -shift.sum(axis=0) / curvature.sum(axis=0)
    everybody = [[0, 1, 2]] * 60

    def miss(models: list) -> float:
        return float(np.abs(np.array(models[-1]) - optimum).max())

    corrected, *_ = run(EQUAL, everybody, torch.optim.SGD, options={})
    plain = [[0.0] * P]
    for round in range(60):
        ends = []
        for k in range(K):
            way = plain[-1]
            for step in range(STEPS):
                way = sgd(way, gradient_of(k, round, step, way), {})
            ends.append(way)
        plain.append([sum(end[i] for end in ends) / K for i in range(P)])
    assert miss(corrected) < 1e-4 < 0.05 < miss(plain)


def test_statistics_take_no_longer_step_than_the_mean() -> None:
    server = Server(torch.zeros(P), make_method(global_lr=2.0), Layout(3))
    extras = {"variate": np.zeros(3, np.float32)}
    server.finish_round([Report(0, 4, torch.ones(P), extras)])
    assert server.model.tolist() == [2, 2, 2, 1, 1]


def test_a_gradient_that_is_not_finite_leaves_the_variate_as_it_was() -> None:
    site, method = Site(0, 4), make_method()
    site.memory["variate"] = np.ones(P, np.float32)
    site.cache = {"gradients": torch.full((P,), torch.nan), "steps": 1, "own": np.zeros(P)}
    told = Broadcast(3, torch.zeros(P), {"accepted": np.array([3, -1, -1])})
    assert not method.after_local(site, None, told)["variate"].any()
    method._commit(site, told)
    np.testing.assert_array_equal(site.memory["variate"], 1)


@pytest.mark.parametrize(("accepted", "expected"), [(3, 3.0), (-1, 1.0), (2, 1.0)])
def test_a_site_keeps_its_change_only_if_its_report_was_accepted(
    accepted: int, expected: float
) -> None:
    """Trap: the server leaves a report out, and the mean of the sites' variates is no longer c."""
    site, method = Site(0, 4), make_method()
    site.memory |= {"variate": np.ones(P, np.float32), "told": np.array([3])}
    site.memory["change"] = np.full(P, 2, np.float32)
    extras = {"accepted": np.array([accepted, 7, 7])}
    method._commit(site, Broadcast(5, torch.zeros(P), extras))
    np.testing.assert_array_equal(site.memory["variate"], expected)
    assert sorted(site.memory) == ["variate"]


def test_a_rejected_report_leaves_both_sides_as_they_were() -> None:
    method = make_method()
    server, sites = Server(torch.zeros(P), method), [Site(k, 10) for k in range(K)]
    for round in range(3):
        message = server.broadcast()
        reports = [site.train(method, message, torch.optim.SGD) for site in sites]
        if round == 1:
            reports[2] = replace(reports[2], model=torch.full((P,), torch.nan))
        server.finish_round(reports)
    told = server.broadcast()
    for site in sites:
        method._commit(site, told)
    own = np.stack([site.memory["variate"] for site in sites]).sum(axis=0)
    np.testing.assert_allclose(server.memory["variate"], own, atol=1e-5)


def test_the_correction_of_a_row_without_gradient_is_no_full_step() -> None:
    """Trap: AdamW normalises a correction that enters before it, to a step of the whole lr."""
    trace = flawed_run(method="scaffold", rounds=3, lr=0.01)
    assert torch.isfinite(trace.vector).all()
    site, method, steps = Site(0, 10), make_method(), 6
    correction = np.full(P, 1e-4, np.float32)
    extras = {"variate": correction, "accepted": np.full(K, -1)}
    model = FlatVector(torch.zeros(P))
    method.before_local(site, model, Broadcast(1, torch.zeros(P), extras))
    optimizer = FlatAdamW(model.parameters, lr=LR, weight_decay=0)
    for _ in range(steps):
        model.gradient.zero_()
        method.after_backward(site, model, None)
        optimizer.step()
        method.after_step(site, model, None)
    np.testing.assert_allclose(model.parameters.detach(), -steps * LR * correction, rtol=1e-4)


class FlatVector:
    """A model that is nothing but parameters."""

    device, parameter_count = torch.device("cpu"), P

    def __init__(self, vector: torch.Tensor) -> None:
        self.parameters = vector.requires_grad_()
        self.gradient = self.parameters.grad = torch.zeros_like(vector)


# ---- whole runs


def flawed_run(clients: int = 3, method: str = "scaffold", **settings: Any) -> Trace:
    dataset = make_dataset()
    scenario = make_scenario(dataset, mask="cells", noise=0.2, clients=clients)
    return simulate(make_config(method, clients=clients, **settings), dataset, scenario)


def test_the_server_s_variate_is_the_mean_of_the_sites_and_is_counted() -> None:
    trace = flawed_run()
    simulation, count = trace.simulation, trace.simulation.model.parameter_count
    told = ["accepted", "variate"]
    assert [sorted(m.extras) for m in trace.sent] == [[], told, told]
    extra = message_bytes(trace.sent[1]) - message_bytes(trace.sent[0])
    assert extra == 4 * count + 8 * 3
    for report in trace.received:
        assert report.extras["variate"].dtype == np.float32
        assert message_bytes(report) == 4 * (count + report.model.numel())
    last = simulation.server.broadcast()
    for client in simulation.clients:
        simulation.method._commit(client, last)
    found = last.extras["variate"]
    sums = sum(client.memory["variate"].astype(np.float64) for client in simulation.clients)
    np.testing.assert_allclose(found, sums / 40, atol=1e-6)
    assert np.abs(found).max() > 1e-3


def test_the_first_round_is_fedavg_s_and_the_later_ones_are_not() -> None:
    one, other = flawed_run(), flawed_run(method="fedavg")
    assert torch.equal(one.sent[1].model, other.sent[1].model)
    assert not torch.equal(one.sent[2].model, other.sent[2].model)


@pytest.mark.parametrize(
    "settings",
    [
        {"fraction": 0.4, "rounds": 5},
        {"buffers": "local", "local_epochs": 2},
        {"freeze_rounds": 1},
        {"aggregator": "median", "param": {"global_lr": 0.5}},
        {"batch_size": 64, "loss": "gce", "consistency": 0.5},
    ],
)
def test_hard_cases_end_well(settings: dict) -> None:
    trace = flawed_run(**settings)
    assert torch.isfinite(trace.vector).all()
    for client in trace.simulation.clients:
        assert np.isfinite(client.memory.get("variate", 0)).all()
