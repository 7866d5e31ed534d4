"""The losses of ``--loss`` as training calls them: what they remember, mask, suspect and weigh."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import cross_entropy, sigmoid

from src.plan import Batch
from src.supervision import LOSSES, Loss, build_loss
from utils_.labels import LabelState
from utils_.rng import derive

pytestmark = pytest.mark.numerics

N, C = 10, 4
EACH_LOSS = pytest.mark.parametrize("name", LOSSES)


@dataclass
class Site:
    """What a loss asks of a client."""

    labels: LabelState
    round: int = 0
    memory: dict = field(default_factory=dict)
    cache: dict = field(default_factory=dict)


def make_site(seed: int = 0, *, missing: float = 0.4, round: int = 0) -> Site:
    draw = derive(seed, "observed")
    observed = (draw.random((N, C)) < 0.4).astype(np.float32)
    observed[draw.random((N, C)) < missing] = np.nan
    return Site(LabelState(observed), round)


def make_batch(site: Site, rows: np.ndarray, *, seed: int = 0) -> tuple[torch.Tensor, Batch]:
    """Logits that want a gradient, and the site's labels of the rows."""
    logits = torch.from_numpy(derive(seed, "logits").normal(0, 2, (len(rows), C)))
    target, weight = (torch.from_numpy(t[rows]) for t in (site.labels.target, site.labels.weight))
    batch = Batch(torch.zeros(len(rows)), None, rows, target, weight)
    return logits.float().requires_grad_(), batch


def cells_of(batch: Batch) -> list[tuple[int, int]]:
    return [cell for cell in np.ndindex(batch.weight.shape) if batch.weight[cell] > 0]


# ---- all losses


@EACH_LOSS
def test_garbage_in_cells_of_weight_zero_changes_nothing(name: str) -> None:
    results = []
    for garbage in (0.0, math.nan, 1e30, 1.0):
        site, loss = make_site(round=4), build_loss(name, {})
        logits, batch = make_batch(site, np.arange(6))
        batch.target[batch.weight == 0] = garbage
        value = loss(site, logits, batch)
        value.backward()
        memory = {key: array.tobytes() for key, array in site.memory.items()}
        results.append((value.item(), logits.grad.tolist(), memory))
        assert not logits.grad[batch.weight == 0].any()
    assert results[1:] == results[:1] * 3
    assert results[0][0] != 0


@EACH_LOSS
def test_nothing_known_is_zero_without_gradient(name: str) -> None:
    site = Site(LabelState(np.full((N, C), np.nan, np.float32)), round=4)
    logits, batch = make_batch(site, np.arange(5))
    loss = build_loss(name, {})(site, logits, batch)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@EACH_LOSS
def test_half_precision_is_computed_in_float32(name: str) -> None:
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        site = make_site(round=4)
        logits, batch = make_batch(site, np.arange(6))
        rounded = logits.detach().bfloat16().to(dtype).requires_grad_()
        loss = build_loss(name, {})(site, rounded, batch)
        assert loss.dtype == torch.float32
        results.append(loss.item())
    assert results[0] == results[1]


@EACH_LOSS
def test_soft_targets_and_weights_are_taken(name: str) -> None:
    """A step down the gradient lowers the loss, whatever the labels and their weights."""
    site = make_site(missing=0, round=4)
    draw = derive(0, "soft")
    rows = np.arange(N)
    site.labels.correct(
        np.ones((N, C), bool), draw.random((N, C)), weight=draw.random((N, C)).round(1)
    )
    logits, batch = make_batch(site, rows)
    before = build_loss(name, {})(site, logits, batch)
    before.backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.any()
    site = Site(site.labels, 4)
    stepped = (logits - 0.1 * logits.grad).detach().requires_grad_()
    assert build_loss(name, {})(site, stepped, batch) < before


@EACH_LOSS
def test_a_look_without_gradient_remembers_nothing(name: str) -> None:
    site, loss = make_site(round=4), build_loss(name, {})
    logits, batch = make_batch(site, np.arange(6))
    loss(site, logits, batch)
    memory = {key: array.copy() for key, array in site.memory.items()}
    other, batch = make_batch(site, np.arange(4, 10), seed=1)
    with torch.no_grad():
        loss(site, other.detach(), batch)
    for key, array in memory.items():
        np.testing.assert_array_equal(site.memory[key], array)


@EACH_LOSS
def test_balance_weighs_cells_by_their_label(name: str) -> None:
    """Twice the factors is twice the loss; a factor of 0 for negatives leaves the positives."""
    values = {}
    for key, balance in {
        "none": None,
        "two": (2, 2),
        "positive": (0, 1),
        "negative": (1, 0),
    }.items():
        site = make_site(missing=0)
        logits, batch = make_batch(site, np.arange(6))
        factors = None if balance is None else torch.tensor(balance)[:, None].expand(2, C).float()
        values[key] = build_loss(name, {})(site, logits, batch, balance=factors).item()
    assert values["two"] == pytest.approx(2 * values["none"], rel=1e-5)
    assert values["positive"] + values["negative"] == pytest.approx(values["none"], rel=1e-5)
    assert values["positive"] != 0


def test_parameters_reach_the_formulas() -> None:
    assert vars(build_loss("sce", {"log_zero": -9.21, "alpha": 1}).params) == {
        "alpha": 1.0,
        "beta": 1.0,
        "log_zero": -9.21,
    }
    for name, given in {
        "focal": {"gamma": 0.0},
        "asl": {"gamma_positive": 3},
        "gce": {"q": 0.2},
        "sce": {"beta": 0},
        "elr": {"strength": 0},
        "partial_bce": {"gamma": -1},
        "ll_r": {"delta": 9},
        "ll_ct": {"delta": 9},
        "ll_cp": {"delta": 9},
    }.items():
        site = make_site(round=4)
        logits, batch = make_batch(site, np.arange(6))
        plain = build_loss(name, {})(Site(site.labels, 4), logits, batch)
        assert build_loss(name, given)(site, logits, batch) != plain, name


# ---- ELR


def test_elr_against_a_loop() -> None:
    """Three visits; targets are kept by row, start from nothing and move with every prediction."""
    site, loss = make_site(), build_loss("elr", {"beta": 0.6, "strength": 2})
    remembered = dict.fromkeys(np.ndindex(N, C), (0.0, 0.0))
    for seed, rows in enumerate(([3, 0, 7], [0, 1], [7, 3, 0, 9])):
        logits, batch = make_batch(site, np.array(rows), seed=seed)
        total, count = 0.0, 0.0
        for b, c in np.ndindex(len(rows), C):
            z, cell = logits[b, c].item(), (rows[b], c)
            p = min(max(sigmoid(z), 1e-4), 1 - 1e-4)
            one, zero = remembered[cell]
            one, zero = 0.6 * one + 0.4 * p, 0.6 * zero + 0.4 * (1 - p)
            remembered[cell] = one, zero
            if batch.weight[b, c] > 0:
                penalty = math.log(1 - one * p - zero * (1 - p))
                total += cross_entropy(z, float(batch.target[b, c])) + 2 * penalty
                count += 1
        assert loss(site, logits, batch).item() == pytest.approx(total / count, abs=1e-5)
    table = site.memory["elr_targets"]
    assert table.shape == (2, N, C)
    for cell, sides in remembered.items():
        assert table[(slice(None), *cell)] == pytest.approx(sides, abs=1e-6)


def test_elr_pulls_towards_what_was_predicted_before() -> None:
    """After confident positives, a negative label pushes less than cross-entropy alone."""
    site = Site(LabelState(np.zeros((1, 1), np.float32)))
    loss, batch = build_loss("elr", {}), Batch(None, None, np.zeros(1, int), *torch.zeros(2, 1, 1))
    batch.weight[:] = 1
    for _ in range(20):
        logits = torch.tensor([[2.0]], requires_grad=True)
        loss(site, logits, batch).backward()
    assert logits.grad.item() < sigmoid(2) - 0.5
    first = torch.tensor([[0.0]], requires_grad=True)
    loss(Site(site.labels), first, batch).backward()
    assert first.grad.item() == pytest.approx(0.5, abs=1e-6), "an even prediction pulls nowhere"


# ---- partial BCE


def test_partial_bce_against_a_loop() -> None:
    site = make_site(missing=0.6)
    logits, batch = make_batch(site, np.arange(N))
    total, images = 0.0, 0
    for b in range(N):
        known = [c for c in range(C) if batch.weight[b, c] > 0]
        if known:
            scale = -4.444444 * len(known) / C + 5.444444
            losses = [cross_entropy(logits[b, c].item(), float(batch.target[b, c])) for c in known]
            total += scale / C * sum(losses)
            images += 1
    assert images > 0
    found = build_loss("partial_bce", {})(site, logits, batch)
    assert found.item() == pytest.approx(total / images, rel=1e-5)


# ---- large losses


def reference_large(
    name: str, site: Site, logits: torch.Tensor, batch: Batch, *, count: int, unobserved: bool
) -> tuple[float, set[tuple[int, int]]]:
    """The loss and the cells taken for false negatives, by sorting a list."""
    target = {cell: float(batch.target[cell]) for cell in cells_of(batch)}
    suspects = [cell for cell, t in target.items() if t < 0.5]
    if unobserved:
        suspects = [cell for cell in np.ndindex(batch.weight.shape) if batch.weight[cell] == 0]
        target |= dict.fromkeys(suspects, 0.0)
    suspects.sort(key=lambda cell: -cross_entropy(logits[cell].item(), 0))
    chosen = set(suspects[:count])
    if name == "ll_r":
        target = {cell: t for cell, t in target.items() if cell not in chosen}
    else:
        target |= dict.fromkeys(chosen, 1.0)
    losses = [cross_entropy(logits[cell].item(), t) for cell, t in target.items()]
    return sum(losses) / len(losses), chosen


@pytest.mark.parametrize("unobserved", [False, True])
@pytest.mark.parametrize(
    ("name", "round"),
    [
        *(("ll_r", 0), ("ll_r", 1), ("ll_r", 3), ("ll_r", 99), ("ll_ct", 0), ("ll_ct", 2)),
        *(("ll_cp", 0), ("ll_cp", 5), ("ll_cp", 10)),
    ],
)
def test_large_losses_against_a_loop(name: str, round: int, unobserved: bool) -> None:
    """With 4 % of the cells a step."""
    site = make_site(1, missing=0.5, round=round)
    rows = np.array([2, 5, 1, 8, 0, 3])
    logits, batch = make_batch(site, rows)
    cells = 24 if unobserved else int((batch.weight > 0).sum())
    steps = min(round, 9) if name != "ll_cp" else int(1 <= round <= 9)
    count = math.ceil(cells * 0.04 * steps - 1e-9)
    loss = build_loss(name, {"delta": 4, "unobserved": unobserved})
    options = {"count": count, "unobserved": unobserved}
    expected, chosen = reference_large(name, site, logits, batch, **options)
    assert loss(site, logits, batch).item() == pytest.approx(expected, rel=1e-5)
    assert len(chosen) == count
    if name == "ll_cp":
        flips = {(rows[b], c) for b, c in chosen}
        assert {tuple(cell) for cell in np.argwhere(site.memory["ll_cp_flips"])} == flips
    else:
        assert site.memory == {}


def counts(name: str, schedule: range, **given: Any) -> list[int]:
    loss: Loss = build_loss(name, given)
    return [loss.count(16 * 20, epoch) for epoch in schedule]


def test_golden_counts() -> None:
    """docs/methods.md 19: B = 16, C = 20."""
    assert counts("ll_r", range(1, 5)) == [0, 2, 4, 5]
    assert counts("ll_r", range(10, 14)) == [15] * 4, "the published schedule ends at 10"
    assert counts("ll_r", range(11, 13), epochs=100) == [16, 18]
    assert counts("ll_cp", range(1, 13)) == [0, *[1] * 9, 0, 0]
    assert build_loss("ll_r", {}).count(1000, 3) == 10, "not 11 for a rounding error"


def test_more_than_there_are_suspects_changes_them_and_nothing_else() -> None:
    site = make_site(missing=0, round=9)
    logits, batch = make_batch(site, np.arange(6))
    loss = build_loss("ll_r", {"delta": 100})(site, logits, batch)
    positives = [c for c in cells_of(batch) if batch.target[c] == 1]
    expected = np.mean([cross_entropy(logits[c].item(), 1) for c in positives])
    assert loss.item() == pytest.approx(float(expected), rel=1e-5)


def test_flips_last_and_grow_by_one_share_a_round() -> None:
    site, loss = make_site(missing=0, round=0), build_loss("ll_cp", {"delta": 5})
    rows, sizes = np.arange(N), []
    for round in range(4):
        site.round, site.cache = round, {}
        before = site.memory.get("ll_cp_flips", np.zeros((N, C), bool)).copy()
        for epoch in range(3):  # the second and third visit of a round flip nothing more
            logits, batch = make_batch(site, rows, seed=10 * round + epoch)
            value = loss(site, logits, batch)
            if epoch == 0:
                after = site.memory["ll_cp_flips"].copy()
            np.testing.assert_array_equal(site.memory["ll_cp_flips"], after)
        target = np.where(after, 1, site.labels.observed)
        losses = [cross_entropy(logits[b, c].item(), target[b, c]) for b, c in np.ndindex(N, C)]
        assert value.item() == pytest.approx(np.mean(losses), rel=1e-5)
        assert (before <= after).all()
        sizes.append(int(after.sum()))
    assert sizes == [0, 2, 4, 6]
    assert not (site.memory["ll_cp_flips"] & (site.labels.observed == 1)).any()


def test_a_flip_yields_to_a_method_that_corrects_the_cell() -> None:
    site, loss = make_site(missing=0, round=1), build_loss("ll_cp", {"delta": 100})
    logits, batch = make_batch(site, np.arange(N))
    loss(site, logits, batch)
    flips = site.memory["ll_cp_flips"]
    np.testing.assert_array_equal(flips, site.labels.observed == 0)
    site.labels.correct(flips, np.ones((N, C)))
    site.round, site.cache = 50, {}
    logits, batch = make_batch(site, np.arange(N))
    plain = build_loss("bce", {})(site, logits, batch)
    assert loss(site, logits, batch).item() == plain.item()
