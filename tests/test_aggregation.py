"""The weighted mean against a loop; what the server keeps and counts."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_plan

from src.aggregation import weighted_mean
from src.messages import Report, message_bytes
from src.methods import method_class
from src.server import Server


def make_reports(sizes: list[int], length: int = 7, seed: int = 0) -> list[Report]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Report(k, n, torch.randn(length, generator=generator), logs={"loss": 1.0})
        for k, n in enumerate(sizes)
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=8), st.integers(0, 99))
def test_the_mean_is_weighted_by_images(sizes: list[int], seed: int) -> None:
    reports = make_reports(sizes, seed=seed)
    found = weighted_mean(iter(reports))
    for i in range(7):
        expected = sum(n * float(r.model[i]) for n, r in zip(sizes, reports, strict=True))
        assert found[i].item() == pytest.approx(expected / sum(sizes), abs=1e-6)
    assert found.dtype == torch.float32


def test_the_mean_of_one_is_the_same_to_the_bit() -> None:
    report = make_reports([37])[0]
    assert torch.equal(weighted_mean([report]), report.model)


def test_equal_reports_stay_equal_to_the_bit() -> None:
    vector = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    reports = [Report(k, n, vector) for k, n in enumerate((1, 3, 7))]
    torch.testing.assert_close(weighted_mean(reports), vector, rtol=0, atol=0)


def test_the_reports_are_not_changed() -> None:
    reports = make_reports([2, 3])
    before = [report.model.clone() for report in reports]
    weighted_mean(reports)
    assert all(torch.equal(r.model, b) for r, b in zip(reports, before, strict=True))


def test_small_differences_survive_a_large_sum() -> None:
    """The sum is in float64: in float32 a thousand ones and a 1e-4 would lose the latter."""
    reports = [Report(k, 10_000, torch.tensor([1.0])) for k in range(1000)]
    reports.append(Report(1000, 1, torch.tensor([2.0])))
    expected = (1000 * 10_000 + 2) / (1000 * 10_000 + 1)
    assert weighted_mean(reports).item() == np.float32(expected)


def test_no_report_is_an_error() -> None:
    with pytest.raises(ValueError, match="no report"):
        weighted_mean([])


def test_memory_does_not_grow_with_the_number_of_clients() -> None:
    """When the next report is asked for, the vectors before it can be freed already."""
    alive: list[weakref.ref] = []

    def stream():
        for k in range(6):
            report = Report(k, 1, torch.zeros(10))
            alive.append(weakref.ref(report.model))
            yield report
            del report
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 1

    server = Server(torch.zeros(10), method_class("fedavg")(make_plan()))
    server.finish_round(stream())
    assert len(alive) == 6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_report_that_is_not_finite_ends_the_round(bad: float) -> None:
    server = Server(torch.zeros(7), method_class("fedavg")(make_plan()))
    reports = make_reports([1, 1])
    reports[1].model[3] = bad
    with pytest.raises(FloatingPointError, match=r"round 0: client 1 .*--lr"):
        server.finish_round(reports)
    assert server.round == 0
    assert not server.model.any()


def test_the_server_counts_bytes_and_drops_models() -> None:
    server = Server(torch.zeros(7), method_class("fedavg")(make_plan()))
    extras = {"counts": np.zeros(5, np.float64), "flag": np.zeros(3, bool)}
    reports = [Report(k, 1, torch.zeros(7), extras) for k in range(3)]
    assert message_bytes(reports[0]) == 7 * 4 + 5 * 8 + 3
    received = server.finish_round(reports)
    assert server.bytes_up == 3 * (28 + 40 + 3)
    assert all(report.model is None and report.extras is extras for report in received)
    assert server.round == 1


@pytest.mark.parametrize(
    ("clients", "fraction", "count"),
    [(4, 1.0, 4), (10, 0.3, 3), (10, 0.05, 1), (10, 0, 1), (100, 0.29, 29), (100, 0.57, 57)],
)
def test_the_share_of_clients_selected(clients: int, fraction: float, count: int) -> None:
    """int(0.29 * 100) is 28, for want of an exact 0.29; the share means 29."""
    server = Server(
        torch.zeros(1), method_class("fedavg")(make_plan(clients=clients, fraction=fraction))
    )
    chosen = []
    for server.round in range(20):
        selected = server.select()
        assert selected == sorted(set(selected)) == server.select()
        assert len(selected) == count
        assert 0 <= min(selected) <= max(selected) < clients
        chosen.append(tuple(selected))
    if count < clients:
        assert len(set(chosen)) > 1
