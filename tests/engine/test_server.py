"""The server: what it keeps, counts, refuses, and whom it lets count less."""

from __future__ import annotations

import gc
import logging
import re
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_config, make_plan, make_scenario, simulate

from src.aggregation import Layout, mean_by_images
from src.messages import NO_MODEL, Report, message_bytes
from src.methods import method_class, method_names
from src.outliers import credit
from src.server import NoReportLeft, Server
from utils_.datasets.base import ImageDataset

LENGTH = 7


def make_reports(sizes: list[int], length: int = LENGTH, seed: int = 0) -> list[Report]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Report(k, n, torch.randn(length, generator=generator), logs={"loss": 1.0})
        for k, n in enumerate(sizes)
    ]


def make_server(length: int = LENGTH, **settings: Any) -> Server:
    return Server(torch.zeros(length), method_class("fedavg")(make_plan(**settings)))


# ---- what it keeps and counts


@pytest.mark.parametrize("settings", [{}, {"aggregator": "uniform"}])
def test_memory_does_not_grow_with_the_number_of_clients(settings: dict) -> None:
    """When the next report is asked for, the vectors before it can be freed already."""
    assert most_alive(**settings) == 1


@pytest.mark.parametrize("settings", [{"aggregator": "median"}, {"suppress_outliers": True}])
def test_some_rules_and_suppression_hold_a_round(settings: dict) -> None:
    """Else the test above could pass by seeing nothing."""
    assert most_alive(**settings) == 5


def most_alive(**settings: Any) -> int:
    """Of six reports, how many earlier ones are still held when the next one is made."""
    alive: list[weakref.ref] = []
    held: list[int] = []

    def stream() -> Iterator[Report]:
        for k in range(6):
            report = Report(k, 1, torch.zeros(10_000))
            alive.append(weakref.ref(report.model))
            yield report
            del report
            gc.collect()
            held.append(sum(ref() is not None for ref in alive))

    server = make_server(10_000, **settings)
    server.finish_round(stream())
    assert len(alive) == 6
    return max(held[:5])


def test_the_server_counts_bytes_and_drops_models() -> None:
    server = make_server()
    extras = {"counts": np.zeros(5, np.float64), "flag": np.zeros(3, bool)}
    reports = [Report(k, 1, torch.zeros(LENGTH), extras) for k in range(3)]
    assert message_bytes(reports[0]) == 7 * 4 + 5 * 8 + 3
    received = server.finish_round(reports)
    assert server.bytes_up == 3 * (28 + 40 + 3)
    assert all(report.model is NO_MODEL and report.extras is extras for report in received)
    assert server.round == 1


@pytest.mark.parametrize(
    ("clients", "fraction", "count"),
    [(4, 1.0, 4), (10, 0.3, 3), (10, 0.05, 1), (10, 0, 1), (100, 0.29, 29), (100, 0.57, 57)],
)
def test_the_share_of_clients_selected(clients: int, fraction: float, count: int) -> None:
    """int(0.29 * 100) is 28, for want of an exact 0.29; the share means 29."""
    server = make_server(1, clients=clients, fraction=fraction)
    chosen = []
    for server.round in range(20):
        selected = server.select()
        assert selected == sorted(set(selected)) == server.select()
        assert len(selected) == count
        assert 0 <= min(selected) <= max(selected) < clients
        chosen.append(tuple(selected))
    if count < clients:
        assert len(set(chosen)) > 1


# ---- what it refuses


def spoil(report: Report, how: str) -> Report:
    if how == "shape":
        return replace(report, model=torch.zeros(LENGTH + 2))
    model = report.model.clone()
    model[3] = float(how)
    return replace(report, model=model)


@pytest.mark.parametrize("how", ["nan", "inf", "-inf", "shape"])
@pytest.mark.parametrize("aggregator", ["mean", "median"])
def test_a_report_that_cannot_be_used_is_left_out(
    how: str, aggregator: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_server(aggregator=aggregator)
    reports = make_reports([1, 2, 3, 4, 5])
    reports[1] = spoil(reports[1], how)
    with caplog.at_level(logging.WARNING, "fednml"):
        received = server.finish_round(iter(reports))
    assert list(server.rejected) == [1]
    assert [record.getMessage().partition(": its")[0] for record in caplog.records] == [
        "round 0: client 1 is left out"
    ]
    assert [report.client for report in received] == [0, 2, 3, 4]
    others = make_server(aggregator=aggregator)
    others.finish_round(report for report in reports if report.client != 1)
    assert torch.equal(server.model, others.model)
    assert server.scores == others.scores
    assert server.round == 1
    assert server.bytes_up == sum(message_bytes(report) for report in reports)


SPOILT: dict[str, tuple[Any, str]] = {
    "nan": (lambda a: np.where(np.arange(a.size).reshape(a.shape) == 1, np.nan, a), "not finite"),
    "inf": (lambda a: a / 0.0, "not finite"),
    "one class less": (lambda a: a[..., :-1], r"has shape \(3,\) instead of \(4\)"),
    "one axis more": (lambda a: a[None], r"has shape \(1, 4\) instead of \(4\)"),
    "text": (lambda a: a.astype(str), "instead of numbers"),
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("settings", [{}, {"aggregator": "median"}, {"suppress_outliers": True}])
@pytest.mark.parametrize("place", [0, 1])
def test_a_report_whose_extras_cannot_be_used_is_left_out(
    how: str, settings: dict, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it comes first or later, for reports are folded one at a time."""
    spoil_array, told = SPOILT[how]
    reports = [replace(r, extras=counts_of(r.client)) for r in make_reports([1, 2, 3, 4, 5], 8)]
    with np.errstate(all="ignore"):
        array = spoil_array(reports[place].extras["positives"])
    bad = replace(reports[place], extras=reports[place].extras | {"positives": array})
    servers = [make_priors_server(**settings) for _ in range(2)]
    with caplog.at_level(logging.WARNING, "fednml"):
        servers[0].finish_round([*reports[:place], bad, *reports[place + 1 :]])
    assert list(servers[0].rejected) == [place]
    named = f"round 0: client {place} is left out: its array 'positives' .*{told}"
    assert re.fullmatch(named, caplog.records[0].getMessage())
    servers[1].finish_round([*reports[:place], *reports[place + 1 :]])
    assert torch.equal(servers[0].model, servers[1].model)
    for name, array in servers[1].memory.items():
        np.testing.assert_array_equal(servers[0].memory[name], array)
    assert np.isfinite(servers[0].memory["prior"]).all()


def counts_of(client: int) -> dict[str, np.ndarray]:
    positives = np.arange(1, 5, dtype=np.float32) + client
    return {"positives": positives, "annotated": positives + 10}


def make_priors_server(**settings: Any) -> Server:
    """Of a method whose sites tell their class counts; the model is a head of one feature."""
    layout = Layout(8, slice(0, 4), slice(4, 8))
    method = method_class("fixmatch")(make_plan(clients=5, **settings))
    return Server(torch.zeros(8), method, layout)


@pytest.mark.parametrize("method", method_names())
def test_every_method_says_what_its_sites_report(method: str, dataset: ImageDataset) -> None:
    """Else arrays of a wrong shape would pass, and NaN that means unknown would not."""
    scenario = make_scenario(dataset, mask="cells", noise=0.2)
    trace = simulate(make_config(method), dataset, scenario)
    expected = trace.simulation.method.reported
    lengths = trace.simulation.server.layout.lengths
    reported = {name for report in trace.received for name in report.extras}
    assert reported <= set(expected)
    assert not any(row["rejected"] for row in trace.simulation.history)
    for report in trace.received:
        for name, array in report.extras.items():
            axes = expected[name].axes
            assert np.shape(array) == tuple(lengths.get(axis, axis) for axis in axes)


def test_what_was_rejected_is_forgotten_in_the_next_round() -> None:
    server = make_server()
    reports = make_reports([1, 1])
    server.finish_round([reports[0], spoil(reports[1], "nan")])
    server.finish_round(reports)
    assert server.rejected == {}
    assert server.round == 2


@pytest.mark.parametrize("suppress", [False, True])
def test_a_round_without_a_usable_report_fails_and_names_all(suppress: bool) -> None:
    server = make_server(suppress_outliers=suppress)
    reports = [spoil(make_reports([1])[0], "nan"), spoil(make_reports([1, 1])[1], "shape")]
    with pytest.raises(NoReportLeft, match=r"round 0: .*client 0: .*client 1: "):
        server.finish_round(iter(reports))
    assert server.round == 0
    assert not server.model.any()


def test_statistics_are_checked_where_the_layout_tells_them() -> None:
    plan = make_plan()
    layout = Layout(5, variances=(slice(6, 7),))
    server = Server(torch.ones(LENGTH), method_class("fedavg")(plan), layout)
    good, bad = make_reports([1, 1])
    good.model[6], bad.model[6] = 0.0, -0.1
    server.finish_round([good, bad])
    assert list(server.rejected) == [1]


# ---- who stands apart


def with_outlier(seed: int = 0) -> list[Report]:
    """Five updates that agree, and client 2 far away."""
    common = torch.randn(LENGTH, generator=torch.Generator().manual_seed(99))
    reports = make_reports([10] * 6, seed=seed)
    reports = [replace(r, model=common + 0.1 * r.model) for r in reports]
    reports[2] = replace(reports[2], model=-20 * common)
    return reports


def test_who_stands_apart_is_named(caplog: pytest.LogCaptureFixture) -> None:
    server = make_server()
    with caplog.at_level(logging.INFO, "fednml"):
        server.finish_round(with_outlier())
    assert server.flagged == [2]
    assert set(server.scores) == set(range(6))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert told[0].startswith("round 0: client 2 stands apart (robust z: norm +")
    assert torch.equal(server.model, mean_by_images(with_outlier())), "a flag alone changes nothing"


@pytest.mark.numerics
def test_scores_are_of_updates_and_not_of_models() -> None:
    server = make_server()
    server.finish_round(with_outlier())
    moved = make_server()
    moved.model = torch.full((LENGTH,), 8.0)
    moved.finish_round(replace(r, model=r.model + 8) for r in with_outlier())
    for client, scores in server.scores.items():
        assert moved.scores[client] == pytest.approx(scores, rel=1e-3)


@pytest.mark.numerics
@pytest.mark.parametrize("aggregator", ["mean", "uniform", "geometric", "clip"])
def test_suppression_lets_a_flagged_client_count_less(aggregator: str) -> None:
    server = make_server(aggregator=aggregator, suppress_outliers=True)
    received = server.finish_round(iter(with_outlier()))
    factor = credit(server.scores[2])
    assert 0 < factor < 0.05
    plain = make_server(aggregator=aggregator)
    plain.finish_round(with_outlier())
    honest = mean_by_images(r for r in with_outlier() if r.client != 2)
    assert (server.model - honest).norm() < (plain.model - honest).norm()
    assert all(report.samples == 10 for report in received), "the method sees what was reported"
    if aggregator in ("mean", "uniform"):
        weights = np.array([1, 1, factor, 1, 1, 1])
        values = np.stack([report.model.numpy() for report in with_outlier()])
        np.testing.assert_allclose(server.model, np.average(values, 0, weights), atol=1e-6)


def test_suppression_changes_nothing_where_nobody_stands_apart() -> None:
    reports = [r for r in with_outlier() if r.client != 2]
    server = make_server(suppress_outliers=True)
    server.finish_round(reports)
    assert server.flagged == []
    assert torch.equal(server.model, mean_by_images(reports))


def test_three_reports_are_not_judged() -> None:
    server = make_server(suppress_outliers=True)
    server.finish_round(with_outlier()[:3])
    assert server.scores == {}
    assert server.flagged == []
    assert torch.equal(server.model, mean_by_images(with_outlier()[:3]))
