"""FedLSR against loops written from docs/methods.md 11 and its docstring."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import binary_entropy, cross_entropy, float32_tolerance, logit, mean, sigmoid
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import C, TwoLayers, make_batch, make_client, make_method, message
from tiny import make_config, make_scenario, simulate

from src.losses import divergence, entropy, mixed_logits
from utils_.datasets.base import ImageDataset
from utils_.rng import derive

ROWS = [3, 0, 7, 11, 5]
TERMS = 4 * len(ROWS) * C  # cells of two views, and as many steps


def sharpened(p: float, power: float) -> float:
    return p**power / (p**power + (1 - p) ** power)


def reference(method: Any, batch: Any, model: TwoLayers, *, round: int, share: float) -> float:
    params = method.params
    one, other = model.forward(batch.images).tolist(), model.forward(batch.second).tolist()
    supervised, apart, doubt = [], [], []
    for b, c in np.ndindex(len(one), C):
        p, q = sigmoid(one[b][c]), sigmoid(other[b][c])
        mixture = sharpened(share * p + (1 - share) * q, params.sharpening)
        if batch.weight[b, c] > 0:
            y = float(batch.target[b, c])
            supervised.append(-y * math.log(mixture) - (1 - y) * math.log(1 - mixture))
        p, q = (sharpened(value, params.view_sharpening) for value in (p, q))
        each = (binary_entropy(p) + binary_entropy(q)) / 2
        apart.append(binary_entropy((p + q) / 2) - each)
        doubt.append(each)
    gamma = params.gamma * min(round / (params.ramp_share * method.plan.rounds), 1)
    return mean(supervised) + gamma * mean(apart) + params.entropy * mean(doubt)


@pytest.mark.numerics
@pytest.mark.parametrize("param", [{}, {"entropy": 0.3, "sharpening": 1.5, "view_sharpening": 2}])
@pytest.mark.parametrize("round", [0, 7, 20, 99])
def test_the_objective_against_the_reference(round: int, param: dict) -> None:
    method, client, model = make_method("fedlsr", **param), make_client(), TwoLayers()
    client.index, client.round = 2, round
    draw = derive(method.plan.seed, "mixture", 2, round)
    method.before_local(client, model, message(round))
    for step in range(3):
        batch = make_batch(client, ROWS, seed=step)
        found = method.loss(client, model, batch, message(round)).item()
        share = draw.beta(1, 1)
        expected = reference(method, batch, model, round=round, share=share)
        assert found == pytest.approx(expected, abs=float32_tolerance(TERMS, expected))


def test_every_step_site_and_round_draws_its_own_mixture() -> None:
    method, drawn = make_method("fedlsr"), set()
    for index, round in ((0, 0), (1, 0), (0, 1)):
        client = make_client(index=index, round=round)
        method.before_local(client, None, message(round))
        drawn |= {client.cache["draw"].beta(1, 1) for _ in range(3)}
    assert len(drawn) == 9


def test_the_ramp_of_the_divergence() -> None:
    method = make_method("fedlsr")
    assert [method.gamma(t) for t in (0, 5, 10, 20, 99)] == pytest.approx([0, 0.1, 0.2, 0.4, 0.4])
    assert make_method("fedlsr", ramp_share=0).gamma(0) == 0.4


def test_probabilities_are_not_taken_for_logits() -> None:
    """The trap: a right, certain prediction must cost nothing, not log(1 + 1/e) = 0.313."""
    method, client, model = make_method("fedlsr"), make_client(), TwoLayers()
    batch = make_batch(client, ROWS)
    sure = torch.where(batch.target > 0, 20.0, -20.0)
    model.forward = model.forward_aside = lambda images: sure
    method.before_local(client, model, message(0))
    assert method.loss(client, model, batch, message(0)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.numerics
def test_certain_and_wrong_predictions_still_learn() -> None:
    """Clamped probabilities would cut the gradient off where it is needed most."""
    logits = torch.tensor([60.0, -60.0, 200.0], requires_grad=True)
    mixed = mixed_logits(logits, logits, 0.3)
    torch.testing.assert_close(mixed, logits)
    mixed.sum().backward()
    torch.testing.assert_close(logits.grad, torch.ones(3))


REAL = st.floats(-12, 12, width=32)


@pytest.mark.numerics
@settings(max_examples=200, deadline=None)
@given(REAL, REAL, st.floats(0, 1))
def test_mixture_and_divergence_by_hand(z: float, v: float, share: float) -> None:
    one, other = torch.tensor(z, dtype=torch.float64), torch.tensor(v, dtype=torch.float64)
    p, q = sigmoid(z), sigmoid(v)
    expected = logit(share * p + (1 - share) * q)
    assert mixed_logits(one, other, share).item() == pytest.approx(expected, abs=1e-6)
    assert entropy(one).item() == pytest.approx(binary_entropy(p), abs=1e-7)
    middle = binary_entropy((p + q) / 2)
    found = divergence(one, other).item()
    assert found == pytest.approx(middle - (binary_entropy(p) + binary_entropy(q)) / 2, abs=1e-7)
    assert -1e-9 <= found <= math.log(2)


def test_gradients_of_entropy_and_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(2, 6, generator=generator, dtype=torch.float64)
    one, other = z.clone().requires_grad_()
    assert torch.autograd.gradcheck(entropy, (one.detach().requires_grad_(),))
    pair = one.detach().requires_grad_(), other.detach().requires_grad_()
    assert torch.autograd.gradcheck(divergence, pair)
    extreme = torch.tensor([90.0, -90.0], requires_grad=True)
    divergence(extreme, -extreme).sum().backward()
    assert torch.isfinite(extreme.grad).all()


def test_cross_entropy_of_the_sharpened_mixture_is_that_of_a_doubled_logit() -> None:
    assert cross_entropy(2 * logit(0.3), 1) == pytest.approx(-math.log(sharpened(0.3, 2)))


def test_the_divergence_takes_part_at_tiny_size(dataset: ImageDataset) -> None:
    scenario = make_scenario(dataset, mask="cells")
    with_it = simulate(make_config("fedlsr"), dataset, scenario)
    without = simulate(make_config("fedlsr", param={"gamma": 0.0}), dataset, scenario)
    assert not torch.equal(with_it.vector, without.vector)
