"""What lies where in a vector, and small numbers that rules of aggregation must not trip over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_aggregation import LAYOUT, LENGTH, combine, make_frame, make_reports, table

from src import aggregation
from src.aggregation import (
    AGGREGATORS,
    HeadMean,
    Layout,
    fault,
    geometric_weights,
    krum_scores,
    mean_by_images,
    uniform_mean,
)
from src.messages import ANNOTATED_CELLS
from src.models import FlatModel, build_module


def test_a_layout_without_a_head_has_no_classes() -> None:
    bare = Layout(5)
    assert (bare.classes, bare.lengths, bare.variances) == (0, {"parameters": 5}, ())
    assert bare.weight == bare.bias == slice(0, 0)


def test_lengths_name_the_axes_of_arrays() -> None:
    three = Layout(30, slice(10, 22), slice(22, 25))
    assert three.lengths == {"parameters": 30, "classes": 3, "features": 4}
    weight, bias = three.head(torch.arange(30.0))
    assert weight.tolist() == [[10, 11, 12, 13], [14, 15, 16, 17], [18, 19, 20, 21]]
    assert bias.tolist() == [22, 23, 24]


def test_the_layout_of_a_model_finds_its_head_and_variances() -> None:
    flat = FlatModel(build_module("small", classes=3, weights="none", seed=1))
    layout, vector, state = Layout.of(flat), flat.snapshot(), flat.module.state_dict()
    weight, bias = layout.head(vector)
    assert torch.equal(weight, flat.head.weight) and torch.equal(bias, flat.head.bias)
    variances = [tensor for name, tensor in state.items() if name.endswith("running_var")]
    assert variances
    assert len(layout.variances) == len(variances)
    for place, tensor in zip(layout.variances, variances, strict=True):
        assert torch.equal(vector[place], tensor)
    assert layout.parameters == sum(p.numel() for p in flat.module.parameters())


def test_variances_and_counts_of_nothing_are_no_fault() -> None:
    (report,) = make_reports([10])
    report.model[-1] = 0
    report.extras[ANNOTATED_CELLS] = np.array([0, 10], np.float32)
    assert fault(report, make_frame("classwise", 1)) is None


def test_one_negative_variance_among_others_is_a_fault() -> None:
    (report,) = make_reports([10])
    report.model[-2:] = torch.tensor([-1.0, 5.0])
    layout = replace(LAYOUT, variances=(slice(9, 10), slice(10, 11)))
    frame = replace(make_frame("mean", 1), layout=layout)
    assert fault(report, frame) == "its model holds variances below 0"


def test_reports_in_float64_are_not_changed_either() -> None:
    """As clipping makes them."""
    reports = [replace(report, model=report.model.double()) for report in make_reports([2, 3])]
    before = [report.model.clone() for report in reports]
    mean_by_images(reports)
    assert all(torch.equal(r.model, b) for r, b in zip(reports, before, strict=True))


def test_a_suppressed_site_s_cells_count_less_in_the_head() -> None:
    """Also where its credit makes less than one cell of them."""
    reports = make_reports([10, 20])
    counts = np.array([[1, 8], [0, 20]], np.float32)
    reports = [
        replace(reports[0], credit=0.25, extras={ANNOTATED_CELLS: counts[0]}),
        replace(reports[1], extras={ANNOTATED_CELLS: counts[1]}),
    ]
    found, values = combine("classwise", reports), table(reports)
    np.testing.assert_allclose(found[[4, 5, 8]], values[0, [4, 5, 8]], rtol=1e-6)
    expected = (2 * values[0] + 20 * values[1]) / 22
    np.testing.assert_allclose(found[[6, 7, 9]], expected[[6, 7, 9]], rtol=1e-5)


def test_the_head_is_written_into_a_copy() -> None:
    reports = make_reports([3, 4])
    head = HeadMean(LAYOUT)
    mean = uniform_mean(head.tap(reports, lambda report: np.array([1.0, 0.0])))
    before = mean.clone()
    assert head.write(mean).shape == (LENGTH,)
    assert torch.equal(mean, before)


# ---- distances


def test_krum_scores_of_one_and_of_two() -> None:
    assert krum_scores(torch.tensor([[1.0, 2.0]]), attackers=0).tolist() == [0]
    two = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert krum_scores(two, attackers=1).tolist() == pytest.approx([25, 25])


def test_krum_keeps_what_it_can_of_fewer_reports_and_the_first_of_equals() -> None:
    """Of 5 reports 1 attacker can be withstood (2f + 3), whatever was assumed of more."""
    reports = make_reports([3] * 5)
    frame = make_frame("multikrum", 12)
    for assumed, keep in ((4, 9), (1, 9)):
        parameters = {"assumed_attackers": assumed, "keep": keep}
        found = AGGREGATORS["multikrum"](reports, replace(frame, parameters=parameters))
        scores = krum_scores([r.model[: LAYOUT.parameters] for r in reports], attackers=1)
        best = np.argsort(scores.numpy())[:4]
        np.testing.assert_allclose(found, table(reports)[best].mean(axis=0), atol=1e-6)
    many = [
        replace(r, model=torch.full((LENGTH,), float(r.client % 2))) for r in make_reports([1] * 60)
    ]
    for report in many:
        report.model[-1] = 1 + report.client  # a statistic, by which it is told from its equals
    assert combine("krum", many)[-1] == 1


def test_krum_scores_of_many_far_from_zero_do_not_cancel() -> None:
    """A matrix product, which PyTorch takes from 26 vectors on, would lose the last digits."""
    vectors = 1e8 + 8 * torch.arange(30.0)[:, None].repeat(1, 3)
    assert krum_scores(vectors, attackers=27)[0].item() == pytest.approx(192, rel=1e-9)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_the_geometric_median_ends_as_soon_as_nothing_moves(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def counted(vectors: list[torch.Tensor], shares: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return shares @ torch.stack(list(vectors)).double()

    monkeypatch.setattr(aggregation, "_combination", counted)
    points = torch.tensor([[-spread], [0.0], [spread]])
    weights = torch.ones(3, dtype=torch.float64)
    geometric_weights(points, weights, iterations=50, smoothing=1e-6)
    assert len(steps) == 2


def test_combinations_are_in_float64() -> None:
    vectors = [torch.tensor([1e8]), torch.tensor([1.0])]
    found = aggregation._combination(vectors, torch.tensor([0.5, 0.5]))
    assert found.tolist() == [50_000_000.5]
