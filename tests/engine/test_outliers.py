"""Scores of updates against each other: by plain loops, by sketches, and what they flag."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src import outliers
from src.outliers import (
    MIN_REPORTS,
    OUTLYING,
    SKETCH,
    UpdateWatch,
    credit,
    robust_z,
    score_table,
    severity,
)


def make_updates(n: int, length: int, *, spread: float = 0.5, seed: int = 0) -> torch.Tensor:
    """(n, length): a common direction and each one's own."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(length, generator=generator)
    return common + spread * torch.randn(n, length, generator=generator)


def watched(updates: torch.Tensor, *, seed: int = 1) -> UpdateWatch:
    watch = UpdateWatch(updates.shape[1], seed=seed)
    for client, update in enumerate(updates):
        watch.add(client, update)
    return watch


def flagged(updates: torch.Tensor) -> list[int]:
    scores = watched(updates).scores()
    return [client for client, z in scores.items() if severity(z) > OUTLYING]


# ---- the scores


def plain_scores(updates: np.ndarray) -> dict[str, list[float]]:
    """As the description says it."""
    n = len(updates)
    norms = [float(np.sqrt((u**2).sum())) for u in updates]
    cosines, distances = [], []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        dots = [float(updates[i] @ updates[j]) / (norms[i] * norms[j]) for j in others]
        apart = [float(np.sqrt(((updates[i] - updates[j]) ** 2).sum())) for j in others]
        cosines.append(statistics.median(dots))
        distances.append(statistics.median(apart))
    units = {"norm": 0.1 * statistics.median(norms), "cosine": 0.05}
    units["distance"] = 0.1 * statistics.median(distances)
    found = {}
    for name, values in (("norm", norms), ("cosine", cosines), ("distance", distances)):
        center = statistics.median(values)
        mad = statistics.median(abs(value - center) for value in values)
        unit = max(1.4826 * mad, units[name])
        found[name] = [(value - center) / unit for value in values]
    return found


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 9), st.floats(0.01, 3), st.integers(0, 99))
def test_scores_against_plain_loops(n: int, spread: float, seed: int) -> None:
    updates = make_updates(n, 20, spread=spread, seed=seed)
    expected = plain_scores(updates.double().numpy())
    scores = watched(updates).scores()
    for client in range(n):
        for name, values in expected.items():
            assert scores[client][name] == pytest.approx(values[client], rel=1e-6, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 9), st.integers(0, 99), st.randoms(use_true_random=False))
def test_the_order_of_arrival_is_irrelevant(n: int, seed: int, random) -> None:
    updates = make_updates(n, 20, seed=seed)
    order = random.sample(range(n), n)
    watch = UpdateWatch(20, seed=1)
    for client in order:
        watch.add(client, updates[client])
    assert watch.scores() == watched(updates).scores()
    assert list(watch.scores()) == list(range(n))


@pytest.mark.parametrize("block", [1, 3, 4, 1000])
def test_blocks_change_nothing(block: int, monkeypatch) -> None:
    updates = make_updates(10, 20)
    expected = plain_scores(updates.double().numpy())
    monkeypatch.setattr(outliers, "BLOCK", block)
    scores = watched(updates).scores()
    for name, values in expected.items():
        assert [scores[k][name] for k in range(10)] == pytest.approx(values, rel=1e-6, abs=1e-6)


def test_robust_z_is_in_standard_deviations_of_a_normal() -> None:
    values = np.random.default_rng(0).normal(5, 2, 100_000)
    z = robust_z(values, least=0)
    assert z.std() == pytest.approx(1, abs=0.01)
    assert np.median(z) == pytest.approx(0, abs=1e-12)


def test_a_unit_is_never_smaller_than_asked() -> None:
    values = np.array([1.0, 1, 1, 1, 1.2])
    np.testing.assert_allclose(robust_z(values, least=0.1), [0, 0, 0, 0, 2])
    np.testing.assert_array_equal(robust_z(np.ones(4), least=0), np.zeros(4))


def test_fewer_than_four_are_not_judged() -> None:
    for n in range(MIN_REPORTS + 2):
        assert len(watched(make_updates(n, 5)).scores()) == (n if n >= 4 else 0)


def test_clear_forgets_the_round() -> None:
    watch = watched(make_updates(5, 20))
    watch.clear()
    assert watch.scores() == {}


# ---- what is flagged


@pytest.mark.parametrize("n", [4, 5, 8, 20])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_clients_that_agree_are_rarely_flagged(n: int, spread: float) -> None:
    found = sum(len(flagged(make_updates(n, 500, spread=spread, seed=s))) for s in range(50))
    assert found <= 0.02 * 50 * n


@pytest.mark.parametrize("n", [4, 5, 8, 20])
@pytest.mark.parametrize(
    "false",
    [
        lambda u, noise: -u,
        lambda u, noise: -4 * u,
        lambda u, noise: 4 * noise * u.norm() / noise.norm(),
        lambda u, noise: 3 * u,
        lambda u, noise: 0 * u,
    ],
    ids=["turned", "turned and longer", "noise", "longer", "nothing"],
)
def test_who_misbehaves_is_flagged_alone(n: int, false) -> None:
    updates = make_updates(n, 500)
    noise = torch.randn(500, generator=torch.Generator().manual_seed(7))
    updates[n // 2] = false(updates[n // 2], noise)
    assert flagged(updates) == [n // 2]


def test_two_of_eight_are_flagged() -> None:
    updates = make_updates(8, 500)
    updates[[1, 6]] *= -4
    assert flagged(updates) == [1, 6]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 1.0, 1e30])
def test_equal_updates_are_not_flagged(value: float) -> None:
    assert flagged(torch.full((6, 50), value)) == []


def test_trust_fades_with_the_distance_and_never_rises_above_one() -> None:
    def trusted(norm: float = 0.0, cosine: float = 0.0, distance: float = 0.0) -> float:
        return credit({"norm": norm, "cosine": cosine, "distance": distance})

    assert trusted() == trusted(norm=3.5) == trusted(cosine=50) == trusted(distance=-50) == 1
    assert trusted(norm=7) == trusted(norm=-7) == trusted(cosine=-7) == 0.25
    assert trusted(norm=4, distance=35) == pytest.approx(0.01)
    assert trusted(norm=3.5001) == pytest.approx(1, abs=1e-3)


# ---- sketches


@pytest.mark.parametrize("length", [SKETCH + 1, 3 * SKETCH, 80_001])
def test_sketches_keep_norms_angles_and_distances(length: int) -> None:
    updates = make_updates(6, length)
    updates[3] *= -2
    scores = watched(updates).scores()
    exact = table_of(updates)
    for client in range(6):
        assert scores[client]["norm"] == pytest.approx(exact["norm"][client], abs=1e-9)
        assert severity(scores[client]) == pytest.approx(
            severity({name: z[client] for name, z in exact.items()}), rel=0.25, abs=0.7
        )
    assert flagged(updates) == [3]


def test_a_sketch_is_short_and_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = watched(make_updates(4, 50_000))
    assert {sketch.shape for sketch in watch._sketches.values()} == {(SKETCH,)}
    monkeypatch.setattr(outliers, "SKETCH", 8)
    update = torch.arange(19.0)
    small = UpdateWatch(19, seed=3)
    expected = [sum(float(small._signs[i]) * i for i in range(b, 19, 8)) for b in range(8)]
    small.add(0, update)
    np.testing.assert_allclose(small._sketches[0], expected)
    assert set(small._signs.tolist()) == {-1, 1}


def table_of(updates: torch.Tensor) -> dict[str, np.ndarray]:
    """Of whole updates, each held against all others."""
    norms = updates.double().norm(dim=1).numpy()
    return score_table(norms, updates.double().numpy(), references=np.arange(len(updates)))


def test_of_many_updates_each_is_held_against_some() -> None:
    updates = make_updates(600, 500)
    updates[[3, 77, 599]] *= -1
    exact, scores = table_of(updates), watched(updates).scores()
    for name, values in exact.items():
        assert [scores[k][name] for k in range(600)] == pytest.approx(values, rel=0.1, abs=0.5)
    assert flagged(updates) == [3, 77, 599]


def test_the_others_are_drawn_where_there_are_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than needed, since nobody is held against itself."""
    monkeypatch.setattr(outliers, "OTHERS", 5)
    watch = UpdateWatch(20, seed=1)
    assert watch._references(5).tolist() == [0, 1, 2, 3, 4]
    assert watch._references(6).tolist() == [0, 1, 2, 3, 4, 5]
    drawn = watch._references(40)
    assert len(drawn) == len(set(drawn)) == 6
    assert drawn.tolist() == sorted(drawn) == watch._references(40).tolist()
    assert drawn.tolist() != UpdateWatch(20, seed=2)._references(40).tolist()


def test_nobody_is_held_against_itself() -> None:
    updates = make_updates(9, 20)
    plain = updates.double().numpy()
    references = np.array([1, 4, 5, 8])
    table = score_table(np.linalg.norm(plain, axis=1), plain, references=references)
    others = [[r for r in references if r != i][:3] for i in range(9)]
    away = [
        statistics.median(np.linalg.norm(plain[i] - plain[o], axis=1)) for i, o in enumerate(others)
    ]
    expected = robust_z(np.array(away), least=0.1 * np.median(away))
    np.testing.assert_allclose(table["distance"], expected, rtol=1e-6, atol=1e-9)


def test_a_kept_sketch_does_not_hold_the_update() -> None:
    """Of a short update too, which is kept whole."""
    update = torch.ones(10, dtype=torch.float64)
    watch = UpdateWatch(10, seed=1)
    watch.add(0, update)
    update[:] = 5
    assert watch._sketches[0].tolist() == [1] * 10
