"""The losses against loops, golden values, and what cells of weight 0 may hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from by_hand import cross_entropy, logit, sigmoid
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from src.losses import (
    asymmetric,
    both_sides,
    divergence,
    early_learning_penalty,
    entropy,
    focal,
    generalised_cross_entropy,
    known_share_weight,
    label_margin,
    largest,
    masked_bce,
    mixed_logits,
    partial_mean,
    ramp,
    symmetric_cross_entropy,
    weighted_mean,
)

pytestmark = pytest.mark.numerics

SHAPE = (5, 3)
LOGITS = arrays(np.float32, SHAPE, elements=st.floats(-20, 20, width=32))
TARGETS = arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32))
WEIGHTS = arrays(np.float32, SHAPE, elements=st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0]))


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
    """docs/methods.md 19: log pi = -1.60944, -3.91202 and log(1 - pi) = -0.22314, -0.02020."""
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


# ---- losses of single cells: golden values, loops, soft targets, extremes


def of_label(name: str, z: float, y: int) -> float:
    """The loss of one cell whose label is 0 or 1, from the equations of docs/methods.md 12."""
    p = sigmoid(z)
    mine = p if y else 1 - p  # probability of the label
    if name == "focal":
        return -(0.25 if y else 0.75) * (1 - mine) ** 2 * math.log(mine)
    if name == "asymmetric":
        shifted = max(p - 0.05, 0)
        return -(1 - p) * math.log(p) if y else -(shifted**4) * math.log(1 - shifted)
    if name == "gce":
        return (1 - mine**0.7) / 0.7
    return 0.1 * -math.log(mine) + 4 * abs(p - y)


CELL_LOSSES = {
    "focal": lambda z, y: focal(z, y, gamma=2, alpha=0.25),
    "asymmetric": lambda z, y: asymmetric(z, y, gamma_positive=1, gamma_negative=4, margin=0.05),
    "gce": lambda z, y: generalised_cross_entropy(z, y, q=0.7),
    "sce": lambda z, y: symmetric_cross_entropy(z, y, alpha=0.1, beta=1, log_zero=-4),
}
EACH_CELL_LOSS = pytest.mark.parametrize("name", CELL_LOSSES)


@EACH_CELL_LOSS
@settings(max_examples=50, deadline=None)
@given(logits=arrays(np.float32, SHAPE, elements=st.floats(-12, 12, width=32)), target=TARGETS)
def test_losses_of_cells_against_a_loop(name: str, logits: np.ndarray, target: np.ndarray) -> None:
    """A soft target is a label drawn with that probability."""
    found = CELL_LOSSES[name](torch.from_numpy(logits), torch.from_numpy(target))
    assert found.shape == SHAPE
    for cell in np.ndindex(SHAPE):
        z, t = float(logits[cell]), float(target[cell])
        expected = t * of_label(name, z, 1) + (1 - t) * of_label(name, z, 0)
        assert found[cell].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@EACH_CELL_LOSS
def test_losses_of_cells_are_finite_at_the_extremes(name: str) -> None:
    logits = torch.tensor([-1e4, -200.0, -30, -1, 0, 1, 30, 200, 1e4]).repeat(3, 1)
    logits.requires_grad_()
    target = torch.tensor([0.0, 0.5, 1.0])[:, None].expand(3, 9)
    values = CELL_LOSSES[name](logits, target)
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(logits.grad).all()
    assert (values >= 0).all()


@pytest.mark.parametrize(
    ("z", "y", "gamma", "golden"),
    [
        *((2, 1, 1, 0.015130), (-1, 1, 1, 0.960071), (2, 0, 1, 0.846415), (-4, 0, 1, 0)),
        (2, 1, 0, 0.126928),
    ],
)
def test_asymmetric_golden_values(z: float, y: float, gamma: float, golden: float) -> None:
    numbers = {"gamma_positive": gamma, "gamma_negative": 4, "margin": 0.05}
    found = asymmetric(torch.tensor([[float(z)]]), torch.tensor([[float(y)]]), **numbers)
    assert found.item() == pytest.approx(golden, abs=5e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("margin", [0.0, 0.05])
@pytest.mark.parametrize("detach", [False, True])
def test_asymmetric_has_a_finite_gradient_at_every_setting(
    gamma: float, margin: float, detach: bool
) -> None:
    logits = torch.tensor([[-100.0, -3.0, 0.0, 3.0, 100.0]]).repeat(2, 1).requires_grad_()
    target = torch.tensor([[0.0], [1.0]]).expand(2, 5)
    numbers = {"gamma_positive": gamma, "gamma_negative": gamma, "margin": margin}
    asymmetric(logits, target, **numbers, detach=detach).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[0] >= 0).all()
    assert (logits.grad[1] <= 0).all()


def test_asymmetric_without_fading_is_cross_entropy() -> None:
    logits, target = torch.linspace(-20, 20, 9)[None], torch.linspace(0, 1, 9)[None]
    found = asymmetric(logits, target, gamma_positive=0, gamma_negative=0, margin=0)
    for cell in range(9):
        expected = cross_entropy(logits[0, cell].item(), target[0, cell].item())
        assert found[0, cell].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_detaching_the_focus_keeps_the_value_and_changes_the_gradient() -> None:
    numbers = {"gamma_positive": 1, "gamma_negative": 4, "margin": 0.05}
    results = []
    for detach in (False, True):
        logits = torch.tensor([[0.3, 2.0]], requires_grad=True)
        loss = asymmetric(logits, torch.tensor([[1.0, 0.0]]), **numbers, detach=detach).sum()
        loss.backward()
        results.append((loss.item(), logits.grad))
    assert results[0][0] == results[1][0]
    logits = torch.tensor([[0.3, 2.0]], requires_grad=True)
    asymmetric(logits, torch.tensor([[1.0, 0.0]]), **numbers).sum().backward()
    assert torch.equal(logits.grad, results[0][1]), "it is not detached unless asked for"
    p = sigmoid(0.3)
    assert results[1][1][0, 0].item() == pytest.approx(-((1 - p) ** 2), rel=1e-5)
    assert not torch.allclose(results[0][1], results[1][1])


@pytest.mark.parametrize(
    ("probability", "golden"), [(0.9, 0.101569), (0.5, 0.549183), (0.1, 1.143534)]
)
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_generalised_cross_entropy_golden_values(
    probability: float, golden: float, y: float
) -> None:
    z = logit(probability) * (1 if y else -1)
    found = generalised_cross_entropy(torch.tensor([[z]]), torch.tensor([[y]]), q=0.7)
    assert found.item() == pytest.approx(golden, abs=2e-6)


def test_generalised_cross_entropy_between_its_ends() -> None:
    logits, target = torch.linspace(-5, 5, 11)[None], (torch.arange(11) % 2.0)[None]
    probability = logits.sigmoid()
    absolute = generalised_cross_entropy(logits, target, q=1)
    torch.testing.assert_close(absolute, (probability - target).abs())
    near_zero = generalised_cross_entropy(logits, target, q=1e-3)
    entropy = [cross_entropy(z.item(), y.item()) for z, y in zip(logits[0], target[0], strict=True)]
    torch.testing.assert_close(near_zero, torch.tensor([entropy]), rtol=3e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("log_zero", "alpha", "beta", "golden"),
    [
        *((-4, 1, 0, 0.356675), (-4, 0, 1, 1.2), (math.log(1e-4), 0, 1, 2.763102)),
        (math.log(1e-4), 0.1, 1, 2.798770),
    ],
)
def test_symmetric_cross_entropy_golden_values(
    log_zero: float, alpha: float, beta: float, golden: float
) -> None:
    """docs/methods.md 19 gives them for p = (0.7, 0.2, 0.1), of which a binary label sees 0.7."""
    numbers = {"alpha": alpha, "beta": beta, "log_zero": log_zero}
    found = symmetric_cross_entropy(torch.tensor([[logit(0.7)]]), torch.ones(1, 1), **numbers)
    assert found.item() == pytest.approx(golden, abs=5e-6)


def test_early_learning_penalty_by_hand() -> None:
    logits = torch.tensor([[1.0, -2.0]])
    memory = torch.tensor([[[0.6, 0.0]], [[0.3, 0.0]]])
    found = early_learning_penalty(logits, memory)
    p = sigmoid(1)
    assert found[0, 0].item() == pytest.approx(math.log(1 - 0.6 * p - 0.3 * (1 - p)), abs=1e-6)
    assert found[0, 1].item() == 0, "nothing remembered, nothing asked"


def test_both_sides_are_kept_off_their_ends() -> None:
    found = both_sides(torch.tensor([[-50.0, 0.0, 50.0]]))
    expected = torch.tensor([[[1e-4, 0.5, 1 - 1e-4]], [[1 - 1e-4, 0.5, 1e-4]]])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("share", "gamma", "golden"),
    [
        *((1, 1, 1), (0.5, 1, 3.2222), (0.1, 1, 5)),
        *((1, -1, 1), (0.5, -1, 1.4444), (0.1, -1, 5)),
        *((1, 0, 1), (10**-0.5, 0, 3), (0.1, 0, 5)),
    ],
)
def test_partial_weight_golden_values(share: float, gamma: float, golden: float) -> None:
    found = known_share_weight(torch.tensor(float(share)), gamma=gamma, tenth=5)
    assert found.item() == pytest.approx(golden, abs=5e-5)


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, SHAPE, elements=st.floats(0, 20, width=32)), WEIGHTS)
def test_partial_mean_against_a_loop(values: np.ndarray, weight: np.ndarray) -> None:
    total, images = 0.0, 0
    for v, w in zip(values, weight, strict=True):
        share = float((w > 0).mean())
        if share:
            scale = -40 / 9 * share + 49 / 9
            total += scale / SHAPE[1] * sum(float(a) * float(b) for a, b in zip(v, w, strict=True))
            images += 1
    garbage = np.where(weight > 0, values, np.nan)
    found = partial_mean(torch.from_numpy(garbage), torch.from_numpy(weight), gamma=1, tenth=5)
    assert found.item() == pytest.approx(total / max(images, 1), rel=1e-5, abs=1e-6)


def test_the_largest_are_exactly_so_many() -> None:
    values = torch.tensor([[3.0, 9.0, 3.0], [3.0, 1.0, 3.0]])
    candidates = torch.tensor([[True, False, True], [True, True, False]])
    for count, expected in [
        (0, []),
        (1, [(0, 0)]),
        (2, [(0, 0), (0, 2)]),
        (3, [(0, 0), (0, 2), (1, 0)]),
        (9, [(0, 0), (0, 2), (1, 0), (1, 1)]),
    ]:
        found = largest(values, candidates, count)
        assert [tuple(cell) for cell in found.nonzero().tolist()] == expected
    many = largest(torch.ones(20, 10), torch.ones(20, 10, dtype=torch.bool), 5)
    assert many.flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


# ---- two-valued distributions


def entropy_of(p: float) -> float:
    return -sum(x * math.log(x) for x in (p, 1 - p) if x)


@settings(max_examples=50, deadline=None)
@given(LOGITS, LOGITS, st.sampled_from([0.0, 0.1, 0.5, 0.8, 1.0]))
def test_mixtures_against_probabilities(one: np.ndarray, other: np.ndarray, share: float) -> None:
    """In float64, since the probabilities of large logits are near 1."""
    first, second = (torch.from_numpy(array).double() for array in (one, other))
    found = mixed_logits(first, second, share)
    expected = share * first.sigmoid() + (1 - share) * second.sigmoid()
    torch.testing.assert_close(found.sigmoid(), expected, rtol=1e-9, atol=1e-12)
    rest = share * (-first).sigmoid() + (1 - share) * (-second).sigmoid()
    torch.testing.assert_close((-found).sigmoid(), rest, rtol=1e-9, atol=1e-12)


def test_mixtures_of_extremes_are_finite_and_of_one_share_exact() -> None:
    one, other = torch.tensor([1e4, -1e4, 0.1]), torch.tensor([-1e4, -1e4, 0.7])
    torch.testing.assert_close(mixed_logits(one, other, 0.5)[:2], torch.tensor([0.0, -1e4]))
    assert mixed_logits(one, other, 1) is one
    assert mixed_logits(one, other, 0) is other


@pytest.mark.parametrize(("p", "q"), [(0.5, 0.5), (0.9, 0.2), (0.01, 0.99), (0.3, 0.3)])
def test_entropy_and_divergence_by_their_definition(p: float, q: float) -> None:
    one, other = (torch.tensor([logit(x)], dtype=torch.float64) for x in (p, q))
    assert entropy(torch.cat((one, other))).tolist() == pytest.approx([*map(entropy_of, (p, q))])
    middle = (p + q) / 2
    distances = [
        sum(x * math.log(x / y) for x, y in ((a, middle), (1 - a, 1 - middle))) for a in (p, q)
    ]
    assert divergence(one, other).item() == pytest.approx(sum(distances) / 2, abs=1e-9)
