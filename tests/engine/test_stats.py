"""Intervals and tests: against the textbook's formulas, scikit-learn and published tables."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as reference
from sklearn.metrics import average_precision_score

from utils_ import stats
from utils_.metrics import multilabel_metrics
from utils_.rng import derive
from utils_.stats import (
    critical_difference,
    drawn_difference,
    drawn_precision,
    t_interval,
    weighted_precision,
    wilcoxon,
)


def cells(images: int, classes: int, *, levels: int, unknown: float = 0.0) -> tuple:
    """Probabilities of few levels, so that many are tied, and truth."""
    draw = derive(3, "cells", images, levels)
    probability = draw.integers(0, levels, (images, classes)).astype(np.float32) / levels
    truth = (draw.random((images, classes)) < 0.3).astype(np.float32)
    truth[draw.random(truth.shape) < unknown] = np.nan
    return probability, truth, draw


def test_t_intervals_are_those_of_scipy() -> None:
    values = [0.31, 0.35, 0.30, 0.37]
    found = t_interval(values)
    low, high = reference.t.interval(0.95, 3, np.mean(values), reference.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert found.count == 4 and found.warning == ""


@pytest.mark.parametrize("values", [[], [0.3], [0.3, 0.4], [0.3, 0.4, np.nan]])
def test_few_seeds_have_a_warning_and_no_interval(values: list[float]) -> None:
    found = t_interval(values)
    assert np.isnan(found.low) and np.isnan(found.high)
    assert found.warning == "fewer than three seeds: no interval"


@pytest.mark.parametrize("levels", [3, 1000])
def test_a_weight_is_an_image_that_comes_so_often(levels: int) -> None:
    probability, truth, draw = cells(50, 6, levels=levels, unknown=0.2)
    truth[:, 4], truth[:, 5] = 0, 1
    weights = draw.integers(0, 3, (7, 50))
    found = weighted_precision(probability, truth, weights)
    for weight, row in zip(weights, found, strict=True):
        rows = np.repeat(np.arange(50), weight)
        expected = multilabel_metrics(probability[rows], truth[rows]).per_class["ap"]
        np.testing.assert_allclose(row, expected, rtol=1e-12)
        known = rows[~np.isnan(truth[rows, 0])]
        theirs = average_precision_score(truth[known, 0], probability[known, 0])
        assert row[0] == pytest.approx(theirs)
    assert np.isnan(found[:, 4:]).all()


def test_draws_are_the_same_for_all_models_and_in_any_portions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probability, truth, _ = cells(40, 3, levels=50)
    models = {"a": probability[None], "b": np.stack([probability, 1 - probability])}
    found = drawn_precision(models, truth, name="x", draws=20)
    assert found["a"].shape == (20, 3)
    np.testing.assert_array_equal(
        found["a"], drawn_precision({"a": models["a"]}, truth, name="x", draws=20)["a"]
    )
    other = drawn_precision({"b": 1 - probability[None]}, truth, name="x", draws=20)["b"]
    np.testing.assert_allclose(found["b"], (found["a"] + other) / 2)
    assert (drawn_precision(models, truth, name="y", draws=20)["a"] != found["a"]).any()
    monkeypatch.setattr(stats, "CELLS_AT_ONCE", 40 * 3)  # three draws at a time
    few = drawn_precision(models, truth, name="x", draws=20)
    np.testing.assert_array_equal(few["b"], found["b"])


def test_the_better_model_is_found_better_and_an_equal_one_is_not() -> None:
    draw = derive(5, "models")
    truth = (draw.random((300, 4)) < 0.3).astype(np.float32)
    noise = draw.random((3, 300, 4))
    good = (0.5 * truth + noise[0]) / 2
    same, worse = (0.5 * truth + noise[1]) / 2, (0.1 * truth + noise[2]) / 2
    models = {name: own[None] for name, own in {"a": good, "b": same, "c": worse}.items()}
    drawn = {n: d.mean(axis=1) for n, d in drawn_precision(models, truth, name="t").items()}
    scores = {n: multilabel_metrics(m[0], truth).overall["mAP"] for n, m in models.items()}
    better = drawn_difference(drawn["a"], drawn["c"], observed=scores["a"] - scores["c"])
    equal = drawn_difference(drawn["a"], drawn["b"], observed=scores["a"] - scores["b"])
    assert better.low > 0 and better.p < 0.01 and better.low < better.mean < better.high
    assert equal.low < 0 < equal.high and equal.p > 0.05
    itself = drawn_difference(drawn["a"], drawn["a"], observed=0)
    assert (itself.low, itself.high, itself.p) == (0, 0, 1)


def test_the_interval_covers_what_it_should() -> None:
    """Of many samples of one population, about 95 % of the intervals hold its mean difference."""
    draw, inside = derive(8, "cover"), 0
    for _ in range(120):
        shift = draw.normal(0.1, 1, 60)
        weights = draw.integers(0, 60, (200, 60))
        found = drawn_difference(shift[weights].mean(axis=1), np.zeros(200), observed=shift.mean())
        inside += found.low <= 0.1 <= found.high
    assert 0.88 < inside / 120 < 0.99


def test_ranks_differ_by_what_demsar_tabulates() -> None:
    """Demsar, JMLR 2006, table 5(a): q of 0.05 for two to ten methods."""
    table = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    for k, q in enumerate(table, 2):
        assert critical_difference(k, 14) == pytest.approx(q * np.sqrt(k * (k + 1) / 84), abs=1e-3)


def test_wilcoxon_is_exact_for_few_settings() -> None:
    assert wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 2**6)
    assert wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5]) > 0.05
    assert np.isnan(wilcoxon([0.1])) and np.isnan(wilcoxon([0.0, 0.0]))
