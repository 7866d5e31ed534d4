"""The losses against loops, golden values, and what cells of weight 0 may hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from src.losses import label_margin, masked_bce, ramp, weighted_mean

SHAPE = (5, 3)
LOGITS = arrays(np.float32, SHAPE, elements=st.floats(-20, 20, width=32))
TARGETS = arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32))
WEIGHTS = arrays(np.float32, SHAPE, elements=st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0]))


def cross_entropy(logit: float, target: float) -> float:
    """Of one cell, stable for large logits."""
    return max(logit, 0) - logit * target + math.log1p(math.exp(-abs(logit)))


@settings(max_examples=100, deadline=None)
@given(LOGITS, TARGETS, WEIGHTS)
def test_masked_bce_against_a_loop(
    logits: np.ndarray, target: np.ndarray, weight: np.ndarray
) -> None:
    total = sum(
        float(weight[cell]) * cross_entropy(float(logits[cell]), float(target[cell]))
        for cell in np.ndindex(SHAPE)
    )
    expected = total / weight.sum() if weight.any() else 0
    found = masked_bce(*map(torch.from_numpy, (logits, target, weight)))
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30, -7.0])
def test_cells_of_weight_zero_may_hold_anything(garbage: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = (torch.rand(6, 4, generator=generator) for _ in range(2))
    weight = (torch.rand(6, 4, generator=generator) < 0.5).float()
    results = []
    for fill in (0.0, garbage):
        filled = torch.where(weight > 0, target, fill)
        leaf = logits.clone().requires_grad_()
        loss = masked_bce(leaf, filled, weight)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not results[0][1][weight == 0].any()
    assert results[0][1][weight > 0].all()


def test_nothing_known_is_a_loss_of_zero_without_gradient() -> None:
    logits = torch.ones(2, 3, requires_grad=True)
    loss = masked_bce(logits, torch.full((2, 3), math.nan), torch.zeros(2, 3))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_half_precision_is_reduced_in_float32() -> None:
    logits = torch.full((100, 100), 3.0, dtype=torch.bfloat16)
    ones = torch.ones(100, 100, dtype=torch.bfloat16)
    loss = masked_bce(logits, ones, ones)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(cross_entropy(3, 1), rel=1e-5)


def test_weighted_mean_takes_the_weights_as_shares() -> None:
    values = torch.tensor([1.0, 5.0, math.nan])
    found = weighted_mean(values, torch.tensor([3.0, 1.0, 0.0]))
    assert found.item() == 2


def test_margin_golden_values() -> None:
    """methods.md 19: log pi = -1.60944, -3.91202 and log(1 - pi) = -0.22314, -0.02020."""
    prior = torch.tensor([0.2, 0.02])
    found = label_margin(torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.999, 0.5]]), prior)
    expected = torch.tensor([[-1.60944, -3.91202], [-0.22314, -0.02020], [-0.22314, -0.02020]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(TARGETS, arrays(np.float32, 3, elements=st.floats(0, 1, width=32) | st.just(np.nan)))
def test_margin_against_a_loop(target: np.ndarray, prior: np.ndarray) -> None:
    found = label_margin(torch.from_numpy(target), torch.from_numpy(prior)).numpy()
    assert np.isfinite(found).all()
    for i, c in np.ndindex(SHAPE):
        share = float(prior[c])
        if math.isnan(share):
            expected = 0.0
        elif target[i, c] == 1:
            expected = math.log(max(share, 1e-12))
        else:
            expected = math.log1p(-min(share, 1 - 1e-7))
        # float32 has no number between 1 - 1.2e-7 and 1 - 6e-8, so the clamp is half a step off.
        assert found[i, c] == pytest.approx(expected, rel=1e-5, abs=0.2 if share > 0.9999 else 1e-6)


@pytest.mark.parametrize(
    ("time", "expected"),
    [(0, 0.10827), (10, 0.10827), (20, 0.16474), (50, 0.43153), (99, 0.79980), (100, 0.8)],
)
def test_ramp_golden_values_of_fednml(time: int, expected: float) -> None:
    assert 0.8 * ramp(time, begin=10, end=100, kappa=2) == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize(
    ("time", "expected"), [(10, 0.00539), (20, 0.05040), (30, 0.24418), (49, 0.8), (80, 0.8)]
)
def test_ramp_golden_values_of_fednoro(time: int, expected: float) -> None:
    assert 0.8 * ramp(time, begin=10, end=49, kappa=5) == pytest.approx(expected, abs=5e-6)


def test_ramp_golden_value_of_fedmlp() -> None:
    assert 0.8 * ramp(250, begin=10, end=499, kappa=5) == pytest.approx(0.21880, abs=5e-6)


@given(st.floats(-5, 300), st.floats(0.1, 50), st.floats(0, 10))
def test_ramp_grows_from_its_floor_to_one(time: float, length: float, kappa: float) -> None:
    values = [ramp(t, begin=10, end=10 + length, kappa=kappa) for t in (time, time + 1)]
    assert math.exp(-kappa) - 1e-12 <= values[0] <= values[1] <= 1
    assert ramp(10 + length, begin=10, end=10 + length, kappa=kappa) == 1


@pytest.mark.parametrize("end", [10, 5])
def test_a_ramp_without_length_is_full(end: int) -> None:
    assert ramp(3, begin=10, end=end, kappa=2) == 1
