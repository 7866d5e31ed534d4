"""FixMatch against loops written from docs/methods.md 11 and its docstring."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import absence, cross_entropy, float32_tolerance, mean, sigmoid
from stand_ins import C, TwoLayers, make_batch, make_client, make_method, message, share_of
from tiny import make_config, make_scenario, simulate

from utils_.datasets.base import ImageDataset

ROWS = [3, 0, 7, 11, 5]
TERMS = 4 * len(ROWS) * C  # cells of two views, and as many steps
VARIANTS = pytest.mark.parametrize(
    "param",
    [
        {"confident": 0.8},
        {"confident": 0.8, "all_classes": True},
        {"confident": 0.6, "all_classes": True, "unlabelled": 3},
        {"confident": 0.8, "balanced": False},
        {},
    ],
)


def reference(method: Any, client: Any, batch: Any, model: TwoLayers) -> tuple[float, float]:
    """The loss, and the share of missing cells that got a label."""
    params = method.params
    weak, strong = model.forward(batch.images).tolist(), model.forward(batch.second).tolist()
    supervised, unlabelled, missing, used = [], 0.0, 0, 0
    for b, row in enumerate(batch.rows):
        gaps = [c for c in range(C) if not client.labels.annotated[row, c]]
        sure = set()
        for c in gaps:
            p, share = sigmoid(weak[b][c]), share_of(client, c) if params.balanced else 0.5
            if max(p, absence(p, share)) >= params.confident:
                sure.add(c)
        if params.all_classes and len(sure) < len(gaps):
            sure = set()
        for c in range(C):
            if c in sure:
                unlabelled += cross_entropy(strong[b][c], float(weak[b][c] > 0))
            elif c not in gaps:
                supervised.append(cross_entropy(weak[b][c], float(batch.target[b, c])))
        missing, used = missing + len(gaps), used + len(sure)
    return mean(supervised) + params.unlabelled * unlabelled / missing, used / missing


@pytest.mark.numerics
@VARIANTS
@pytest.mark.parametrize("seed", range(4))
def test_the_objective_against_the_reference(seed: int, param: dict) -> None:
    method, client, model = make_method("fixmatch", **param), make_client(), TwoLayers(seed)
    batch = make_batch(client, ROWS, seed=seed)
    method.before_local(client, model, message(0))
    loss = method.loss(client, model, batch, message(0)).item()
    expected, share = reference(method, client, batch, model)
    assert loss == pytest.approx(expected, abs=float32_tolerance(TERMS, expected))
    assert set(method.after_local(client, model, message(0))) == {"positives", "annotated"}
    assert client.logs["pseudo_share"] == pytest.approx(share)


def test_the_references_differ() -> None:
    """The variants are told apart by these batches: none is equal to another by chance."""
    client, model = make_client(), TwoLayers(3)
    batch = make_batch(client, ROWS)
    several = make_method("fixmatch", confident=0.8), make_method("fixmatch")
    several += (make_method("fixmatch", confident=0.8, all_classes=True),)
    several += (make_method("fixmatch", confident=0.8, balanced=False),)
    found = {round(reference(method, client, batch, model)[0], 5) for method in several}
    assert len(found) == 4


def test_a_prediction_at_the_prior_is_sure_of_nothing() -> None:
    """The trap: against plain predictions, every image surely lacks a rare class."""
    probability, share = torch.tensor([[0.02, 0.0005]]), torch.full((2,), 0.02)
    _, sure = make_method("fixmatch", confident=0.95).pseudo_labels(
        probability, share, torch.ones(1, 2).bool()
    )
    assert sure.tolist() == [[False, True]]
    label, sure = make_method("fixmatch", confident=0.95).pseudo_labels(
        torch.full((1, 1), 0.97), torch.full((1,), 0.02), torch.ones(1, 1).bool()
    )
    assert (label.item(), sure.item()) == (1, True)


def test_with_many_missing_classes_no_image_is_sure_of_all() -> None:
    """The trap of the all-classes condition: one doubtful class takes away all the others."""
    probability = torch.tensor([[0.99, 0.01, 0.6, 0.98], [0.99, 0.01, 0.97, 0.5]])
    missing = torch.tensor([[True, True, True, True], [True, True, True, False]])
    half = torch.full((4,), 0.5)
    label, sure = make_method("fixmatch", confident=0.95).pseudo_labels(probability, half, missing)
    assert sure.tolist() == [[True, True, False, True], [True, True, True, False]]
    assert label[sure].tolist() == [1, 0, 1, 1, 0, 1]
    strict = make_method("fixmatch", confident=0.95, all_classes=True).pseudo_labels(
        probability, half, missing
    )
    assert strict[1].tolist() == [[False] * 4, [True, True, True, False]]


def test_no_gradient_flows_into_the_label() -> None:
    """The weak view of a missing cell is a teacher: only its strong view learns."""
    method, client, model = make_method("fixmatch", confident=0.5), make_client(), TwoLayers()
    batch = make_batch(client, ROWS)
    batch.images.requires_grad_()
    batch.second.requires_grad_()
    batch.weight.zero_()
    method.before_local(client, model, message(0))
    method.loss(client, model, batch, message(0)).backward()
    assert batch.images.grad.abs().max() == 0
    assert batch.second.grad.abs().max() > 0


def test_without_missing_cells_it_is_fedavg_on_the_weak_view() -> None:
    method, client, model = make_method("fixmatch"), make_client(), TwoLayers()
    client.labels.annotated = torch.ones(12, C, dtype=torch.bool).numpy()
    batch = make_batch(client, ROWS)
    method.before_local(client, model, message(0))
    found = method.loss(client, model, batch, message(0))
    assert found.item() == make_method("fedavg").loss(client, model, batch, message(0)).item()


@pytest.mark.parametrize("mask", ["none", "classes", "cells"])
def test_without_its_term_it_is_fedavg_to_the_bit(dataset: ImageDataset, mask: str) -> None:
    """Trap: a strong view in the batch's BatchNorm, or in its random draws, changes FedAvg."""
    scenario = make_scenario(dataset, mask=mask, noise=0.2)
    one = simulate(make_config("fixmatch", param={"unlabelled": 0}), dataset, scenario)
    other = simulate(make_config("fedavg"), dataset, scenario)
    assert torch.equal(one.vector, other.vector)


def test_missing_cells_get_labels_at_tiny_size(dataset: ImageDataset) -> None:
    trace = simulate(make_config("fixmatch"), dataset, make_scenario(dataset, mask="classes"))
    shares = [report.logs["pseudo_share"] for report in trace.received]
    assert 0 < min(shares) <= max(shares) < 1
